// Draws what one points at. Words and numbers come from the block "numbers", maps from the blocks named as they are.

const numbers = JSON.parse(byId("numbers").textContent);
const { picture, steps, positions } = numbers;
const blocks = numbers.blocks;
const PARTS = {
  picture: "the picture",
  first: "the first token",
  text: "the rest of the prompt",
  answer: "its own answer so far",
};

// ---------------------------------------------------------------- small helpers

/** A token as one can see it: its spaces and line breaks, too. */
const shown = (piece) => piece.replaceAll("▁", "·").replaceAll("\n", "⏎") || "∅";

/** The bytes of a map, or null where the page leaves it out. */
async function bytes(id) {
  const block = byId(id);
  if (!block) return null;
  const text = atob(block.textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return { buffer, shape: block.dataset.shape.split(",").map(Number) };
}

/** Rows of attention: row(i) are the weights of row i, peak * (level / 255)^2. */
async function attention(id) {
  const found = await bytes(id);
  if (!found) return null;
  const { buffer, shape } = found;
  const width = shape.at(-1);
  const count = shape.slice(0, -1).reduce((a, b) => a * b, 1);
  const peaks = new Float32Array(buffer, 0, count);
  const levels = new Uint8Array(buffer, 4 * count);
  const row = (i) => {
    const weights = new Float32Array(width);
    for (let j = 0; j < width; j++) weights[j] = peaks[i] * (levels[i * width + j] / 255) ** 2;
    return weights;
  };
  return { row, shape };
}

function mean(rows) {
  const sum = new Float32Array(rows[0].length);
  for (const row of rows) row.forEach((weight, i) => (sum[i] += weight / rows.length));
  return sum;
}

/**
 * A grid of cells of which one is chosen: by pointing (for as long as one points), clicking or arrow keys.
 * show(cell) draws what belongs to it and returns the words for it.
 */
function field(id, { columns, rows, label, chosen, show }) {
  const host = byId(id);
  const words = byId(`${id}-words`);
  const mark = element("i", "mark");
  host.append(mark);
  if (host.classList.contains("grey")) {
    const image = element("img");
    Object.assign(image, { src: byId("picture").src, alt: "" });
    host.prepend(image);
  }
  host.tabIndex = 0;
  const said = { role: "slider", "aria-label": label, "aria-valuemin": 1, "aria-valuemax": columns * rows };
  for (const [name, value] of Object.entries(said)) host.setAttribute(name, value);
  let pinned = chosen;

  function go(cell) {
    mark.style.left = `${(100 * (cell % columns)) / columns}%`;
    mark.style.top = `${(100 * Math.floor(cell / columns)) / rows}%`;
    mark.style.width = `${100 / columns}%`;
    mark.style.height = `${100 / rows}%`;
    const text = show(cell);
    host.setAttribute("aria-valuenow", cell + 1);
    host.setAttribute("aria-valuetext", text);
    if (words) words.textContent = text;
  }
  function pin(cell) {
    pinned = cell;
    go(cell);
  }
  function under(event) {
    const box = host.getBoundingClientRect();
    const at = (value, count) => Math.min(Math.max(Math.floor(value * count), 0), count - 1);
    const column = at((event.clientX - box.left) / box.width, columns);
    return column + columns * at((event.clientY - box.top) / box.height, rows);
  }
  host.addEventListener("pointermove", (event) => event.pointerType === "mouse" && go(under(event)));
  host.addEventListener("pointerleave", () => go(pinned));
  host.addEventListener("click", (event) => pin(under(event)));
  host.addEventListener("keydown", (event) => {
    const column = pinned % columns;
    const row = Math.floor(pinned / columns);
    const moves = {
      ArrowLeft: [column - 1, row], ArrowRight: [column + 1, row], ArrowUp: [column, row - 1], ArrowDown: [column, row + 1],
      Home: [0, row], End: [columns - 1, row], PageUp: [column, 0], PageDown: [column, rows - 1],
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const [to, down] = move;
    if (to >= 0 && to < columns && down >= 0 && down < rows) pin(down * columns + to);
  });
  go(chosen);
  return { pin, again: () => go(pinned) };
}

/** One of several, as radio buttons: arrow keys move between them. choose(i) is called at the start, too. */
function radios(host, labels, chosen, choose) {
  labels.forEach((label, i) => {
    const input = element("input");
    Object.assign(input, { type: "radio", name: host.id, checked: i === chosen });
    input.addEventListener("change", () => choose(i));
    label.prepend(input);
    host.append(label);
  });
  choose(chosen);
}

function slider(id, most, value, moved) {
  const input = byId(id);
  Object.assign(input, { max: most, value });
  input.addEventListener("input", () => moved(Number(input.value)));
  return (to, name) => {
    input.value = to;
    input.setAttribute("aria-valuetext", name);
    byId(`${id}-name`).textContent = name;
  };
}

const headName = (head) => (head ? `${head}` : "mean of all");

// ---------------------------------------------------------------- the tower

async function tower() {
  const [means, heads] = [await attention("tower-mean"), await attention("tower-heads")];
  byId("tower-maps").hidden = !means;
  if (!means) return;
  const count = picture.blocks[0];
  const headCount = heads ? picture.heads : 0;
  const grid = Math.sqrt(means.shape.at(-1) - 1);
  const small = heads ? Math.sqrt(heads.shape.at(-1) - 1) : grid;
  let patch = Math.floor(grid / 2) * (grid + 1);
  let block = count - 1;
  let head = 0;
  byId("tower-heads-slide").hidden = !heads;

  /** Weights of one patch in one block and head (0: their mean): the class token's, then the patches'. */
  function weights(b, h) {
    if (!h) return means.row(b * (grid * grid + 1) + 1 + patch);
    const to = (line) => Math.floor((line * small) / grid);
    const at = to(Math.floor(patch / grid)) * small + to(patch % grid);
    return heads.row((b * headCount + h - 1) * (small * small + 1) + 1 + at);
  }

  function draw() {
    const all = weights(block, head);
    const patches = all.subarray(1);
    const side = Math.sqrt(patches.length);
    paint(byId("patches").querySelector("canvas"), side, side, strengths(patches));
    setBlock(block + 1, `${block + 1} of ${count}`);
    setHead(head, headName(head));
    const best = patches.indexOf(largest(patches));
    const cells = side === grid ? "" : ` of ${side} × ${side}`;
    return (
      `The patch in ${place(patch, grid)} looks most at ${place(best, side)}${cells} (${percent(patches[best])}); ` +
      `${percent(all[0])} goes to the class token.`
    );
  }

  /** All blocks and heads at once, each a small map. */
  function drawOverview() {
    const [columns, rows] = [count * (small + 1) - 1, (headCount + 1) * (small + 1) - 1];
    const alpha = new Float32Array(columns * rows);
    for (let b = 0; b < count; b++) {
      const each = [];
      for (let h = 1; h <= headCount; h++) each.push(weights(b, h));
      [headCount ? mean(each) : weights(b, 0), ...each].forEach((map, h) =>
        strengths(map.subarray(1)).forEach((strength, i) => {
          const row = h * (small + 1) + Math.floor(i / small);
          alpha[row * columns + b * (small + 1) + (i % small)] = strength;
        }),
      );
    }
    paint(byId("overview").querySelector("canvas"), columns, rows, alpha);
  }

  byId("overview-about").textContent =
    "All at once: blocks from left to right" + (headCount ? `; their mean over heads, and heads 1 to ${headCount} below it.` : ".");
  const setBlock = slider("tower-block", count, count, (to) => overview.pin(head * count + to - 1));
  const setHead = slider("tower-head", headCount, 0, (to) => overview.pin(to * count + block));
  const chooser = field("patches", {
    columns: grid, rows: grid, label: "Patch of the picture", chosen: patch,
    show(cell) {
      patch = cell;
      drawOverview();
      return draw();
    },
  });
  const overview = field("overview", {
    columns: count, rows: headCount + 1, label: "Block and head of the tower", chosen: block,
    show(cell) {
      block = cell % count;
      head = Math.floor(cell / count);
      chooser.again();
      return `Block ${block + 1}, head ${headName(head)}.`;
    },
  });
}

// ---------------------------------------------------------------- image tokens and prompt

async function tokens() {
  const side = picture.token_grid;
  const before = picture.tokens - side * side; // a class token, in some models
  const likeness = new Uint8Array((await bytes("likeness")).buffer);
  field("tokens", {
    columns: side, rows: side, label: "Image token", chosen: Math.floor(side / 2) * (side + 1),
    show(cell) {
      const row = likeness.subarray(cell * side * side, (cell + 1) * side * side);
      paint(byId("tokens").querySelector("canvas"), side, side, Float32Array.from(row, (level) => level / 255));
      const others = row.map((level, i) => (i === cell ? 0 : level));
      const best = others.indexOf(largest(others));
      return (
        `Token ${cell + before + 1} of ${picture.tokens} (${place(cell, side)}) is most like the one in ` +
        `${place(best, side)} (cosine ${(others[best] / 255).toFixed(2)}).`
      );
    },
  });
}

function prompt() {
  const labels = numbers.prompt.map((entry) =>
    "picture" in entry
      ? element("label", "picture", `${entry.picture} image tokens`)
      : element("label", "", shown(entry.piece)),
  );
  radios(byId("prompt"), labels, Math.max(0, numbers.prompt.findIndex((entry) => "picture" in entry)), (i) => {
    const entry = numbers.prompt[i];
    byId("prompt-words").textContent =
      "picture" in entry
        ? `Positions ${entry.position} to ${entry.position + entry.picture - 1}: the picture.`
        : `Position ${entry.position}: token ${entry.id}, “${shown(entry.piece)}”.`;
  });
}

// ---------------------------------------------------------------- the answer

function bar(share) {
  const line = element("i");
  line.style.setProperty("--share", share);
  return element("td", "", element("div", "bar", line, element("span", "", percent(share))));
}

function likeliest(step) {
  const rows = step.likeliest.map((entry) => {
    const row = element("tr", entry.id === step.id ? "taken" : "", element("td", "token", shown(entry.piece)), bar(entry.probability));
    return row;
  });
  byId("likeliest").replaceChildren(...rows);
}

function lens(step) {
  byId("lens-own").textContent = `“${shown(step.piece)}”`;
  const rows = step.lens.map((entry, i) => {
    const after = element("th", "", i ? `block ${i}` : "none");
    after.scope = "row";
    return element(
      "tr", entry.id === step.id ? "taken" : "", after,
      element("td", "token", shown(entry.piece)), bar(entry.probability), element("td", "", percent(entry.answered)),
    );
  });
  byId("lens").replaceChildren(...rows);
}

function wholeLens() {
  const head = element("tr", "", element("th", "", "after"));
  for (const step of steps) {
    const name = element("th", "token", shown(step.piece));
    name.scope = "col";
    head.append(name);
  }
  const rows = [head];
  for (let i = 0; i <= blocks; i++) {
    const after = element("th", "", i ? `block ${i}` : "none");
    after.scope = "row";
    const row = element("tr", "", after);
    for (const step of steps) {
      const cell = element("td", "token", shown(step.lens[i].piece));
      cell.style.setProperty("--share", step.lens[i].probability);
      row.append(cell);
    }
    rows.push(row);
  }
  byId("lens-all").replaceChildren(...rows);
}

async function answer() {
  const [means, heads] = [await attention("answer-mean"), await attention("answer-heads")];
  const headCount = heads ? numbers.heads : 0;
  const known = means ? means.shape[0] : 0; // of later steps the attention is left out
  const start = picture ? numbers.prompt.find((entry) => "picture" in entry).position : -1;
  const imageTokens = picture ? picture.tokens : 0;
  let [step, block, head] = [0, 0, 0];
  byId("answer-heads-slide").hidden = !heads;

  const partOf = (position) => {
    if (position >= start && position < start + imageTokens) return "picture";
    if (position === 0) return "first";
    return position < positions ? "text" : "answer";
  };
  const parts = Object.keys(PARTS).filter((part) => part !== "picture" || picture);

  /** Weights over all positions in one block (0: mean of all) and head (0: mean of all). */
  function weights(b) {
    if (!b) return mean(Array.from({ length: blocks }, (_, i) => weights(i + 1)));
    const at = step * blocks + b - 1;
    return head ? heads.row(at * headCount + head - 1) : means.row(at);
  }

  function shares(b) {
    if (!head) {
      const of = (part) => steps[step].looked[part];
      const all = (part) => of(part).reduce((a, c) => a + c, 0) / blocks;
      return Object.fromEntries(parts.map((part) => [part, b ? of(part)[b - 1] : all(part)]));
    }
    const sums = Object.fromEntries(parts.map((part) => [part, 0]));
    weights(b).forEach((weight, position) => (sums[partOf(position)] += weight));
    return sums;
  }

  const columns = Array.from({ length: blocks + 1 }, (_, b) => {
    const every = blocks <= 12 || b === 0 || b === 1 || b % 4 === 0;
    const stack = element("span", "stack", ...parts.map((part) => element("i", `of-${part}`)));
    const name = element("b", "", b ? (every ? `${b}` : "\u00a0") : "all");
    name.ariaHidden = "true";
    return element("label", "", stack, name, element("span", "unseen", b ? `block ${b}` : "all blocks"));
  });
  byId("parts").append(...parts.map((part) => element("li", "", element("i", `of-${part}`), PARTS[part])));

  // The text that can be looked at: the prompt with the picture as one entry, and the answer.
  const texts = [
    ...numbers.prompt,
    ...steps.map((s, i) => ({ position: positions + i, piece: s.piece })),
  ];
  const chips = texts.map((entry) =>
    "picture" in entry ? element("span", "picture", "picture") : element("span", "", shown(entry.piece)),
  );
  byId("looked-text").append(...chips);

  let map = null;
  function draw() {
    const has = step < known;
    byId("looked").hidden = !has;
    columns.forEach((column, b) => {
      const share = shares(b);
      column.querySelectorAll("i").forEach((line, i) => line.style.setProperty("--share", share[parts[i]]));
    });
    const share = shares(block);
    const words = parts.filter((part) => share[part]).map((part) => `${percent(share[part])} to ${PARTS[part]}`).join(", ");
    byId("shares-words").textContent = `${block ? `Block ${block}` : "Mean of all blocks"}, ${head ? `head ${head}` : "mean of all heads"}: ${words}.`;
    if (!has) return;
    if (map) map.again();
    const all = weights(block);
    const weightOf = (entry) => ("picture" in entry ? 0 : all[entry.position] ?? 0);
    const peak = largest(texts.map((entry) => (entry.position ? weightOf(entry) : 0))) || 1;
    chips.forEach((chip, i) => {
      const entry = texts[i];
      chip.hidden = entry.position >= positions + step;
      chip.style.setProperty("--weight", Math.min(1, weightOf(entry) / peak));
    });
    const best = texts.filter((entry) => entry.position && !("picture" in entry)).sort((a, b) => weightOf(b) - weightOf(a));
    byId("text-words").textContent =
      "Of the text, beside the first token, it looked most at " +
      best.slice(0, 3).map((entry) => `“${shown(entry.piece)}” (${percent(weightOf(entry))})`).join(", ") + ".";
  }

  const setHead = slider("answer-head", headCount, 0, (to) => {
    head = to;
    setHead(head, headName(head));
    draw();
  });
  setHead(0, headName(0));
  radios(byId("shares"), columns, 0, (b) => {
    block = b;
    draw();
  });
  if (picture && known) {
    const side = picture.token_grid;
    const first = start + imageTokens - side * side;
    map = field("looked-picture", {
      columns: side, rows: side, label: "Image token that was looked at", chosen: Math.floor(side / 2) * (side + 1),
      show(cell) {
        if (step >= known) return "";
        const seen = weights(block).subarray(first, first + side * side);
        paint(byId("looked-picture").querySelector("canvas"), side, side, strengths(seen));
        const best = seen.indexOf(largest(seen));
        return `Most at ${place(best, side)} (${percent(seen[best])}). Pointed at: ${place(cell, side)} (${percent(seen[cell])}).`;
      },
    });
  }
  const labels = steps.map((s) =>
    element("label", "", shown(s.piece), element("small", "", percent(s.probability))),
  );
  radios(byId("steps"), labels, 0, (i) => {
    step = i;
    likeliest(steps[i]);
    lens(steps[i]);
    draw();
  });
  byId("lens-details").addEventListener("toggle", wholeLens, { once: true });
}

// ---------------------------------------------------------------- all of it

async function start() {
  if (picture) {
    byId("lines").style.setProperty("--cells", picture.grid);
    document.body.style.setProperty("--rendering", picture.pixels[0] < 200 ? "pixelated" : "auto");
    await tower();
    await tokens();
  }
  prompt();
  await answer();
  document.body.dataset.ready = "yes";
}

start();
