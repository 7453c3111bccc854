// The page of `mvlm serve`: photos and a question go to the server, and the answer comes back piece by piece.
//
// It asks by OpenAI's chat completions, as any other client may. From top to bottom: photos, the camera, asking, the
// key, reading the stream, showing what came, and what can be pressed. It begins after pages.js, whose helpers it uses.

const LONGEST_SIDE = 1024; // pixels of a photo that is sent; the model itself sees a few hundred
const LARGEST_FILE = 1_000_000; // bytes of a file that is sent as it is
const SENT_AS_IT_IS = ["image/jpeg", "image/png", "image/webp"];
const KEY = "mvlm-key"; // under this name the browser keeps the key, until the tab is closed

const STEPS = {
  queued: "waiting for its turn",
  encode: "seeing the photo",
  prefill: "reading the question",
  decode: "writing the answer",
};

const { model, pictures } = document.body.dataset;
const mostPhotos = Number(pictures); // of a whole conversation, since all of it is sent each time
let turns = []; // the conversation: {question, photos, answer}, and the last answer may still be growing
let photos = []; // those that go with the next question: {name, url}, with the url a data URL
let adding = Promise.resolve(); // is done when the photos that were added last are in `photos`
let running = null; // the AbortController of the answer that is being written, if one is
let key = ""; // what the server wants to see, if it wants a key
let mapsAreOpen = false; // whether the next answer shows where it looked

/** A failure in words for the one who asked. status: the server's, if it was the server that refused. */
class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const cutOff = () => new Failure("The connection ended before the answer did.");
const tell = (words) => (byId("problem").textContent = words);

// ---------------------------------------------------------------- photos

/** A file as it is: a data URL. */
function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

/** Whether a page gets back what it draws. Browsers that hide who they are may give noise in place of it. */
function drawsTruly() {
  const drawing = element("canvas").getContext("2d");
  drawing.fillStyle = "rgb(20 90 200)";
  drawing.fillRect(0, 0, 1, 1);
  const [red, green, blue] = drawing.getImageData(0, 0, 1, 1).data;
  return Math.abs(red - 20) + Math.abs(green - 90) + Math.abs(blue - 200) < 9;
}

/** A picture or a frame of a video, made small enough to be sent: the data URL of a JPEG. */
function shrunk(source, width, height) {
  if (!drawsTruly()) throw new Failure("This browser lets no page make pictures. Send a JPEG, PNG or WebP file.");
  const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
  const canvas = element("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const drawing = canvas.getContext("2d");
  drawing.imageSmoothingQuality = "high";
  drawing.fillStyle = "white"; // behind what is transparent, for which JPEG has no word
  drawing.fillRect(0, 0, canvas.width, canvas.height);
  drawing.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

/** A file as a photo to send. What is small already is sent as it is, so that not a bit of it changes. */
async function readPhoto(file) {
  const name = file.name || "photo";
  let bitmap;
  try {
    bitmap = await createImageBitmap(file); // upright, as its EXIF says
  } catch {
    throw new Failure(`${name}: this browser cannot read it as a picture. JPEG, PNG and WebP always work.`);
  }
  const { width, height } = bitmap;
  const small = Math.max(width, height) <= LONGEST_SIDE && file.size <= LARGEST_FILE;
  const asItIs = SENT_AS_IT_IS.includes(file.type) && (small || !drawsTruly());
  return { name, url: asItIs ? await dataUrl(file) : shrunk(bitmap, width, height) };
}

function addPhoto(photo) {
  if (photos.length + turns.flatMap((turn) => turn.photos).length >= mostPhotos) {
    throw new Failure(`${photo.name}: this server takes ${mostPhotos} photos in a conversation.`);
  }
  photos.push(photo);
}

/** Adds files in their order, after those that are still being read. */
function addFiles(files) {
  const list = [...files]; // a copy: the browser empties its own list when this event is over
  adding = adding.then(async () => {
    const problems = [];
    for (const file of list) {
      try {
        addPhoto(await readPhoto(file));
      } catch (failure) {
        problems.push(failure.message);
      }
    }
    tell(problems.join("\n"));
    showPhotos();
  });
}

function showPhotos() {
  const made = photos.map((photo, i) => {
    const remove = element("button", "", "×");
    Object.assign(remove, { type: "button", ariaLabel: `Remove photo ${i + 1}, ${photo.name}` });
    remove.addEventListener("click", () => removePhoto(i));
    return element("li", "", picture(photo.name, photo.url), remove);
  });
  byId("photos").replaceChildren(...made);
  byId("photos").hidden = photos.length === 0;
  byId("added").textContent = photos.length ? `Photos with the question: ${photos.length}` : "";
}

function removePhoto(i) {
  photos.splice(i, 1);
  showPhotos();
  // The button that had the focus is gone: it goes to the next one, so that the keyboard's place is kept.
  const next = byId("photos").querySelectorAll("button")[Math.min(i, photos.length - 1)];
  (next ?? byId("choose")).focus();
}

// ---------------------------------------------------------------- the camera

// Browsers hand out the camera to pages that came by HTTPS or from this computer. Any other page has
// the file input, which opens the camera of a phone.
const mayUseCamera = () => window.isSecureContext && Boolean(navigator.mediaDevices?.getUserMedia);

function offerCamera(offered) {
  byId("open-camera").hidden = !offered;
  byId("capture-button").hidden = offered;
}

async function openCamera() {
  tell("");
  byId("camera").showModal();
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1280 } };
    const stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
    if (!byId("camera").open) return stopCamera(stream); // closed while the browser asked for leave
    byId("video").srcObject = stream;
    await byId("video").play();
    byId("take").disabled = false;
    byId("take").focus();
  } catch (error) {
    byId("camera").close();
    const refused = error.name === "NotAllowedError";
    tell(refused ? "The browser does not let this page use the camera." : "No camera can be used here.");
    offerCamera(false);
    byId("capture").focus();
  }
}

function stopCamera(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function takePhoto() {
  const video = byId("video");
  try {
    addPhoto({ name: "from the camera", url: shrunk(video, video.videoWidth, video.videoHeight) });
  } catch (failure) {
    tell(failure.message);
  }
  showPhotos();
  byId("camera").close();
  byId("question").focus();
}

function cameraClosed() {
  stopCamera(byId("video").srcObject);
  byId("video").srcObject = null;
  byId("take").disabled = true;
}

// ---------------------------------------------------------------- asking

/** What is sent: the whole conversation, since the server remembers none. */
function request() {
  const asked = ({ question, photos }) => ({
    role: "user",
    content: [
      ...photos.map(({ url }) => ({ type: "image_url", image_url: { url } })),
      { type: "text", text: question },
    ],
  });
  const messages = turns.flatMap((turn) => [asked(turn), { role: "assistant", content: turn.answer }]);
  messages.pop(); // the last answer is the one that is asked for
  return { model, messages, stream: true, stream_options: { include_usage: true }, mvlm: { look: true } };
}

async function ask() {
  await adding;
  const question = byId("question").value.trim();
  if (running || !question) return;
  tell("");
  const turn = { question, photos, answer: "" };
  turns.push(turn);
  photos = [];
  showPhotos();
  byId("question").value = "";
  const shown = showTurn(turn);
  const stopper = new AbortController();
  setRunning(stopper);
  try {
    const came = await receive(turn, shown, stopper.signal);
    shown.end(lastWords(turn, came.reason));
    showTimes(shown, came);
    showMaps(shown, came);
  } catch (failure) {
    if (stopper.signal.aborted) stopped(turn, shown);
    else failed(turn, shown, failure);
  } finally {
    setRunning(null);
  }
}

function setRunning(stopper) {
  const hadFocus = [byId("ask"), byId("stop")].includes(document.activeElement);
  running = stopper;
  byId("ask").hidden = Boolean(running);
  byId("stop").hidden = !running;
  byId("anew").hidden = Boolean(running) || turns.length === 0;
  // One of the two buttons has gone: the keyboard goes on with the other one.
  if (hadFocus) byId(running ? "stop" : "ask").focus();
}

/** Sends the question and hands over the answer as it comes. What else comes is returned: {reason, usage, mvlm}. */
async function receive(turn, shown, signal) {
  const response = await send(request(), signal);
  if (!response.ok) throw await refusal(response);
  shown.wait("Waiting for the answer");
  const came = {};
  for await (const data of eventData(response.body)) {
    if (data === "[DONE]") return came;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Failure(chunk.error.message);
    const [choice] = chunk.choices;
    if (choice?.delta.content) {
      turn.answer += choice.delta.content;
      shown.more(choice.delta.content);
    }
    if (choice?.finish_reason) came.reason = choice.finish_reason;
    if (chunk.usage) came.usage = chunk.usage;
    if (chunk.mvlm) came.mvlm = chunk.mvlm;
    if (chunk.mvlm?.ahead) shown.wait(`Waiting; questions before this one: ${chunk.mvlm.ahead}.`);
  }
  throw cutOff();
}

async function send(what, signal) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { method: "POST", headers, body: JSON.stringify(what), signal, cache: "no-store" };
  try {
    // No slash in front, so that it also works behind a proxy that gives the server a folder.
    return await fetch("v1/chat/completions", options);
  } catch {
    throw new Failure("The server cannot be reached. Is it still running?");
  }
}

/** What the server says when it does not answer a question. */
async function refusal(response) {
  const { status, statusText } = response;
  try {
    return new Failure((await response.json()).error.message, status);
  } catch {
    return new Failure(`The server says: ${status} ${statusText}.`, status); // or a proxy in front of it
  }
}

/** An answer that was stopped counts as far as it came. */
function stopped(turn, shown) {
  shown.end("Stopped.");
  if (!turn.answer) takeBack(turn, shown);
}

function failed(turn, shown, failure) {
  shown.end("The answer broke off.");
  takeBack(turn, shown);
  if (failure.status === 401) return askForKey(failure.message);
  tell(failure.message);
  if (!(failure instanceof Failure)) throw failure; // a fault of this page: the browser's console says where
}

/** The turn leaves the conversation, and what was asked returns to the form: nothing has to be typed again. */
function takeBack(turn, shown) {
  turns.pop();
  photos = [...turn.photos, ...photos];
  showPhotos();
  const field = byId("question");
  if (field.value) return; // the next question is there already, so this one stays where it can be read
  field.value = turn.question;
  if (!turn.answer) shown.box.remove();
}

function askAnew() {
  turns = [];
  byId("talk").replaceChildren();
  tell("");
  setRunning(null);
  byId("question").focus();
}

// ---------------------------------------------------------------- the key

function askForKey(words) {
  byId("key-words").textContent = words;
  byId("key").value = "";
  byId("key-dialog").showModal();
}

function useKey() {
  key = byId("key").value.trim();
  byId("key-dialog").close();
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // A browser that is to keep nothing: the key is known until the page is left.
  }
  ask();
}

function keptKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

// ---------------------------------------------------------------- reading the stream

/**
 * The data of each event in a stream of server-sent events.
 *
 * Its bytes may come in pieces that are cut anywhere: inside a character, a line, or the two characters that end a
 * line. Lines that begin with a colon are comments, which keep the connection open.
 */
async function* eventData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = ""; // the beginning of a line whose end has not come
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(() => Promise.reject(cutOff()));
      if (done) return; // an event without the empty line that ends it was cut off: it is none
      const lines = (rest + value).split(/\r\n|\n|\r(?!$)/); // a last "\r" waits, since "\n" may follow
      rest = lines.pop();
      for (const line of lines) {
        const [, name, text] = line.match(/^([^:]*):? ?(.*)$/);
        if (name === "data") data.push(text);
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // of one that was stopped, there is nothing left to cancel
  }
}

// ---------------------------------------------------------------- showing what came

/** Shows a question. Returned is what to call as its answer comes: wait, then more for each piece, then end. */
function showTurn(turn) {
  const question = element("h2", "", turn.question);
  const answer = element("p", "answer");
  const state = element("p", "state");
  const clock = element("span", "clock");
  for (const text of [question, answer]) text.dir = "auto";
  // A screen reader says the answer when it is whole, and the state at once, but not the ticking clock.
  Object.assign(answer, { ariaLive: "polite", ariaBusy: "true" });
  state.setAttribute("role", "status");
  clock.ariaHidden = "true";
  const images = turn.photos.map(({ name, url }) => element("li", "", picture(name, url)));
  const list = images.length ? [element("ul", "photos", ...images)] : [];
  const box = element("article", "turn", ...list, question, answer, state);
  byId("talk").append(box);
  window.scrollTo(0, document.body.scrollHeight);

  const began = performance.now();
  const passed = () => `${Math.round((performance.now() - began) / 1000)} s`;
  const ticking = setInterval(() => (clock.textContent = passed()), 1000);
  const stay = (words) => {
    clearInterval(ticking);
    state.textContent = words;
  };
  const wait = (words) => state.replaceChildren(words, " ", clock);
  wait("Sending");
  return {
    box,
    wait,
    more(piece) {
      if (!answer.textContent) stay("");
      keepingTheEnd(() => answer.append(piece));
    },
    end(words) {
      stay(words);
      answer.ariaBusy = "false";
    },
  };
}

function picture(name, url) {
  const image = element("img");
  return Object.assign(image, { src: url, alt: name });
}

/** Changes the page. Who looks at its end goes on seeing the end; who has scrolled up to read is left there. */
function keepingTheEnd(change) {
  const atEnd = window.innerHeight + window.scrollY >= document.body.scrollHeight - 50;
  change();
  if (atEnd) window.scrollTo(0, document.body.scrollHeight);
}

/** What there is to say about an answer that is complete. */
function lastWords(turn, reason) {
  if (!turn.answer) return "The model answered nothing.";
  return reason === "length" ? "Cut off: an answer here gets no longer." : "";
}

const time = (seconds) => (seconds >= 1 ? `${seconds.toFixed(2)} s` : `${Math.round(1000 * seconds)} ms`);

/** How long each step took, and on how many tokens. */
function showTimes(shown, { usage, mvlm }) {
  const known = usage?.prompt_tokens_details?.cached_tokens;
  const details = usage && {
    prefill: `, ${usage.prompt_tokens} tokens` + (known ? `, ${known} of them known` : ""),
    decode: `, ${usage.completion_tokens} tokens`,
  };
  const rows = Object.entries(STEPS)
    .filter(([step]) => step in (mvlm?.seconds ?? {}))
    .map(([step, name]) => {
      const words = time(mvlm.seconds[step]) + (details?.[step] ?? "");
      return element("div", "", element("dt", "", name), element("dd", "", words));
    });
  if (rows.length) keepingTheEnd(() => shown.box.append(element("dl", "times", ...rows)));
}

/** A button that opens maps of where the model looked, in the photos that came last, as it began its answer. */
function showMaps(shown, { mvlm }) {
  const photos = turns.findLast((turn) => turn.photos.length)?.photos ?? [];
  const maps = (mvlm?.looked ?? []).slice(-photos.length);
  if (!photos.length || maps.length < photos.length) return;
  const side = maps[0].length;
  const weights = maps.flat(2); // of all photos on one scale, so that they can be compared
  const best = weights.indexOf(largest(weights));
  const alpha = strengths(weights);
  const fields = photos.map((photo, i) => {
    const canvas = element("canvas");
    canvas.ariaHidden = "true"; // the caption says it in words
    paint(canvas, side, side, alpha.slice(i * side * side, (i + 1) * side * side));
    return element("div", "field grey", picture(`${photo.name}, as a square`, photo.url), canvas);
  });
  const which = photos.length > 1 ? ` of photo ${Math.floor(best / side ** 2) + 1}` : "";
  const where = `${place(best % side ** 2, side)} of ${side} × ${side}${which}`;
  const caption = element("figcaption", "", `As it began its answer, it looked most at ${where}.`);
  const figure = element("figure", "looked", element("div", "fields", ...fields), caption);
  const button = element("button", "", "Where it looked");
  button.type = "button";
  const open = (opened) => {
    mapsAreOpen = opened;
    figure.hidden = !opened;
    button.ariaExpanded = String(opened);
  };
  button.addEventListener("click", () => open(figure.hidden));
  keepingTheEnd(() => {
    open(mapsAreOpen);
    shown.box.append(button, figure);
  });
}

// ---------------------------------------------------------------- what can be pressed, dropped and pasted

function on(id, event, act) {
  byId(id).addEventListener(event, act);
}

/** A form that is handled here; the browser itself sends nothing. */
function onSubmit(id, act) {
  on(id, "submit", (event) => {
    event.preventDefault();
    act();
  });
}

for (const id of ["choose", "capture"]) {
  on(id, "change", () => {
    addFiles(byId(id).files);
    byId(id).value = ""; // so that the same file can be chosen again
  });
}
on("open-camera", "click", openCamera);
on("take", "click", takePhoto);
on("close-camera", "click", () => byId("camera").close());
on("camera", "close", cameraClosed);
onSubmit("form", ask);
on("question", "keydown", (event) => {
  // While a word is put together from several keys, as in Japanese, Enter belongs to the word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("form").requestSubmit();
});
on("stop", "click", () => running?.abort());
on("anew", "click", askAnew);
onSubmit("key-form", useKey);
on("close-key", "click", () => byId("key-dialog").close());
on("key-dialog", "close", () => byId("question").focus());

document.addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return; // text goes where it is pasted
  event.preventDefault();
  addFiles(event.clipboardData.files);
});
const isDraggedText = ({ target, dataTransfer }) => target.id === "question" && !dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (isDraggedText(event)) return; // the browser moves it there
  event.preventDefault(); // the browser would open the file in place of this page
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  if (isDraggedText(event)) return;
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) addFiles(event.dataTransfer.files);
  else tell("That is no file. Save the picture first, then drop its file here.");
});

key = keptKey();
offerCamera(mayUseCamera());
byId("add").hidden = mostPhotos === 0; // a model without a vision tower
showPhotos();
