// What the scripts of the pages have in common; a page's own script follows.
"use strict";

const byId = (id) => document.getElementById(id);

/** A new element. Strings among its children become text, never markup. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function percent(share) {
  const value = 100 * share;
  if (!value) return "0 %";
  if (value > 0 && value < 0.1) return "<0.1 %";
  if (value < 100 && value > 99.9) return ">99.9 %";
  return `${value.toFixed(1)} %`;
}

const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);

/** Strength of colour: the share of the largest weight in the map. */
function strengths(weights) {
  const peak = largest(weights) || 1;
  return Float32Array.from(weights, (weight) => weight / peak);
}

function paint(canvas, columns, rows, alpha) {
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows);
  alpha.forEach((strength, i) => image.data.set([247, 103, 7, 235 * strength], 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const place = (cell, columns) => `row ${Math.floor(cell / columns) + 1}, column ${(cell % columns) + 1}`;
