"use strict";
// What the app and the reports draw alike: elements, and maps of evidence over photos. Text always goes in as text.
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Draw buttons anew; whoever is at one of them by the keyboard stays there.
function refill(parent, nodes) {
  const held = [...parent.querySelectorAll("button")].indexOf(document.activeElement);
  parent.replaceChildren(...nodes);
  if (held >= 0) parent.querySelectorAll("button")[held]?.focus();
}

function track(share) {
  const fill = make("i");
  fill.style.width = `${Math.round(share * 100)}%`;
  return make("span", { class: "track", "aria-hidden": "true" }, fill);
}

// A map (0 to 255, row by row) becomes a small image in the palette's colours, stretched smoothly over what the model saw.
function paint(canvas, { size, box, values, rows, columns, palette }) {
  const small = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i += 1) {
    const value = values[i];
    pixels.data.set([...palette[value], 30 + Math.round(value * 0.62)], i * 4);
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  [canvas.width, canvas.height] = size;
  const context = canvas.getContext("2d");
  const [left, top, right, bottom] = box.map((share, index) => share * size[index % 2]);
  context.fillStyle = "rgba(10, 9, 13, .55)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.clearRect(left, top, right - left, bottom - top);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, left, top, right - left, bottom - top);
  return context;
}

function paintScale(canvas, palette) {
  const scale = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x += 1) {
    scale.fillStyle = `rgb(${palette[Math.round((x / (canvas.width - 1)) * 255)].join(",")})`;
    scale.fillRect(x, 0, 1, canvas.height);
  }
}

// Words tinted by their weights: percent of the strongest, above 0 for the label, below 0 against it.
function tint(nodes, weights) {
  weights.forEach((weight, place) => {
    const faint = Math.abs(weight) < 8;
    nodes[place].className = faint ? "" : weight > 0 ? "for" : "against";
    nodes[place].title = faint ? "" : `${weight} % of the strongest word`;
    nodes[place].style.setProperty("--share", `${Math.abs(weight) * 0.6}%`);
  });
}
