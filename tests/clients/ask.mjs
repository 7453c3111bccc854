// Asks a server by the packages openai and ollama for JavaScript: node ask.mjs URL PICTURE QUESTION KEY.
// Prints the four answers as JSON: OpenAI's dialect whole and streamed, then Ollama's.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [url, path, question, apiKey, packages] = process.argv.slice(2);
const load = createRequire(`${packages}/`);
const OpenAI = load("openai").default;
const { Ollama } = load("ollama");
const picture = readFileSync(path).toString("base64");

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const content = [
  { type: "text", text: question },
  { type: "image_url", image_url: { url: `data:image/png;base64,${picture}` } },
];
const asked = { model: "demo", messages: [{ role: "user", content }] };
const answers = [(await openai.chat.completions.create(asked)).choices[0].message.content];
let text = "";
for await (const chunk of await openai.chat.completions.create({ ...asked, stream: true })) {
  text += chunk.choices[0]?.delta.content ?? "";
}
answers.push(text);

const ollama = new Ollama({ host: url, headers: { Authorization: `Bearer ${apiKey}` } });
const chat = { model: "demo", messages: [{ role: "user", content: question, images: [picture] }] };
answers.push((await ollama.chat(chat)).message.content);
text = "";
for await (const part of await ollama.chat({ ...chat, stream: true })) text += part.message.content;
answers.push(text);
console.log(JSON.stringify(answers));
