"use strict";
// The page's state is four values; every change of one draws what depends on it. Text always goes in as text.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 120;      // photos drawn at once
const SHOWN = 4;       // labels on a card
const state = { level: 0, label: null, threshold: null, branch: data.branches.includes("fused") ? "fused" : data.branches[0], shown: PAGE };
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

const level = () => data.levels[state.level];
const threshold = (index) => (state.threshold === null ? data.thresholds[index] : state.threshold * 10);

// A parent is as probable as its most probable child; of labels that exclude each other, as all of them together.
function probability(photo, members) {
  const values = members.map((index) => photo.probabilities[index]);
  return data.exclusive ? Math.min(1000, values.reduce((sum, value) => sum + value, 0)) : Math.max(...values);
}

function holds(photo, members) {
  if (data.exclusive) {
    const best = photo.probabilities.indexOf(Math.max(...photo.probabilities));
    return members.includes(best);
  }
  return members.some((index) => photo.probabilities[index] >= threshold(index));
}

function bar(share) {
  const fill = make("i");
  fill.style.width = `${Math.round(share * 100)}%`;
  return make("span", { class: "track", "aria-hidden": "true" }, fill);
}

function drawLevels() {
  const group = $("levels");
  group.replaceChildren();
  if (data.levels.length < 2) return;
  data.levels.forEach((entry, index) => group.append(make("button", {
    type: "button", "aria-pressed": String(index === state.level),
    onclick: () => { state.level = index; state.label = null; state.shown = PAGE; draw(); },
  }, `${entry.name} (${entry.labels.length})`)));
}

function drawBars() {
  const counts = level().members.map((members) => data.photos.filter((photo) => holds(photo, members)).length);
  const most = Math.max(1, ...counts);
  const order = counts.map((_, index) => index).sort((a, b) => counts[b] - counts[a] || a - b);
  $("bars").replaceChildren(...order.map((index) => make("li", {}, make("button", {
    type: "button", "aria-pressed": String(state.label === index), title: level().labels[index],
    onclick: () => { state.label = state.label === index ? null : index; state.shown = PAGE; draw(); },
  }, make("span", { class: "name" }, level().labels[index]), bar(counts[index] / most), make("span", { class: "count" }, String(counts[index]))))));
  $("threshold-value").textContent = state.threshold === null ? "each label's own" : `${state.threshold} %`;
  $("own").hidden = state.threshold === null;
}

function chosen() {
  if (state.label === null) return data.photos;
  const members = level().members[state.label];
  return data.photos.filter((photo) => holds(photo, members)).sort((a, b) => probability(b, members) - probability(a, members));
}

function drawPhotos() {
  const photos = chosen();
  $("filter").textContent = state.label === null ? `${photos.length} in all. Choose a label above to see its photos; choose one on a photo to see its evidence.`
    : `${photos.length} of ${data.photos.length} with “${level().labels[state.label]}”, most probable first.`;
  $("photos").replaceChildren(...photos.slice(0, state.shown).map(card));
  $("more").hidden = photos.length <= state.shown;
}

function card(photo) {
  const image = make("img", { src: photo.image, alt: photo.name, loading: "lazy" });
  const frame = make("div", { class: "frame" }, image);
  const members = level().members;
  const order = members.map((entry, index) => [index, probability(photo, entry)]).sort((a, b) => b[1] - a[1]).slice(0, SHOWN);
  const list = make("ul");
  for (const [index, value] of order) {
    // Evidence belongs to classes; a group shows that of its most probable class.
    const own = members[index].reduce((best, entry) => (photo.probabilities[entry] > photo.probabilities[best] ? entry : best), members[index][0]);
    const maps = photo.evidence[own];
    const button = make("button", {
      type: "button", class: holds(photo, members[index]) ? "label" : "label below", "aria-pressed": "false", disabled: !maps,
      title: maps ? `Evidence for ${level().labels[index]}` : level().labels[index],
    }, make("span", { class: "name" }, level().labels[index]), bar(value / 1000), make("span", { class: "value" }, `${Math.round(value / 10)} %`));
    button.addEventListener("click", () => toggle(frame, list, button, photo, maps));
    list.append(make("li", {}, button));
  }
  return make("article", { class: "photo" }, frame, make("h3", { title: photo.path }, photo.name), list);
}

function toggle(frame, list, button, photo, maps) {
  const on = button.getAttribute("aria-pressed") === "true";
  for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
  frame.querySelector("canvas")?.remove();
  if (on) return;
  button.setAttribute("aria-pressed", "true");
  const canvas = make("canvas", { role: "img", "aria-label": `${button.title}, ${state.branch}` });
  frame.append(canvas);
  canvas.redraw = () => paint(canvas, photo, maps[state.branch] ?? maps[data.branches[0]]);
  canvas.redraw();
}

// Region logits become a small image in the palette's colours, stretched smoothly over what the model saw.
function paint(canvas, photo, packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const [rows, columns] = bytes;
  const small = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  for (let i = 0; i < rows * columns; i += 1) {
    const value = bytes[i + 2];
    pixels.data.set([...data.palette[value], 30 + Math.round(value * 0.62)], i * 4);
  }
  small.getContext("2d").putImageData(pixels, 0, 0);
  [canvas.width, canvas.height] = photo.size;
  const context = canvas.getContext("2d");
  const [left, top, right, bottom] = photo.box.map((share, index) => share * photo.size[index % 2]);
  context.fillStyle = "rgba(10, 9, 13, .55)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.clearRect(left, top, right - left, bottom - top);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, left, top, right - left, bottom - top);
}

function drawBranches() {
  const group = $("branches");
  group.replaceChildren();
  const legend = $("legend");
  legend.hidden = !data.branches.length;
  const scale = legend.querySelector("canvas").getContext("2d");
  for (let x = 0; x < 120; x += 1) {
    scale.fillStyle = `rgb(${data.palette[Math.round((x / 119) * 255)].join(",")})`;
    scale.fillRect(x, 0, 1, 10);
  }
  if (data.branches.length < 2) return;
  const told = { sight: "what is seen", semantic: "what is meant", fused: "both, which decides" };
  for (const branch of data.branches) group.append(make("button", {
    type: "button", "aria-pressed": String(branch === state.branch), title: told[branch] ?? branch,
    onclick: () => {
      state.branch = branch;
      drawBranches();
      for (const canvas of document.querySelectorAll(".frame canvas")) canvas.redraw();
    },
  }, branch));
}

function draw() { drawLevels(); drawBars(); drawPhotos(); }

$("lead").textContent = `${data.photos.length} photo${data.photos.length === 1 ? "" : "s"}, ${data.levels[0].labels.length} labels of ${data.taxonomy}, model ${data.model}.`;
$("threshold").value = 50;
$("threshold").addEventListener("input", (event) => { state.threshold = Number(event.target.value); drawBars(); drawPhotos(); });
$("own").addEventListener("click", () => { state.threshold = null; draw(); });
$("more").addEventListener("click", () => { state.shown += PAGE; drawPhotos(); });
if (data.failures.length) {
  $("failures").hidden = false;
  $("failures").querySelector("ul").append(...data.failures.map((text) => make("li", {}, text)));
}
drawBranches();
draw();
