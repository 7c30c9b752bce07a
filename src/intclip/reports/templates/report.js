// The page's state is four values; every change of one draws what depends on it. Text always goes in as text.
const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 120;      // photos drawn at once
const SHOWN = 4;       // labels on a card
const state = { level: 0, label: null, threshold: null, branch: data.branches.includes("fused") ? "fused" : data.branches[0], shown: PAGE, rest: false };
const NONE = -1;       // stands for the photos on which no label holds

const level = () => data.levels[state.level];
// A post has thresholds of its own: those of the channels that it has.
const threshold = (photo, index) => (state.threshold === null ? (photo.thresholds ?? data.thresholds)[index] : state.threshold * 10);

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
  return members.some((index) => photo.probabilities[index] >= threshold(photo, index));
}

const clear = (photo) => data.exclusive || photo.probabilities.some((value, index) => value >= threshold(photo, index));

// Whole percent; with a decimal where they would look as if the threshold that is missed were reached.
function percent(photo, index, value) {
  const missed = state.level === 0 && !data.exclusive && value < threshold(photo, index);
  const whole = Math.round(value / 10);
  return missed && whole * 10 >= threshold(photo, index) ? (value / 10).toFixed(1) : String(whole);
}

function drawLevels() {
  if (data.levels.length < 2) return;
  refill($("levels"), data.levels.map((entry, index) => make("button", {
    type: "button", "aria-pressed": String(index === state.level),
    onclick: () => { state.level = index; state.label = null; state.shown = PAGE; draw(); },
  }, `${entry.name} (${entry.labels.length})`)));
}

function drawBars() {
  const counts = level().members.map((members) => data.photos.filter((photo) => holds(photo, members)).length);
  const unclear = data.photos.filter((photo) => !clear(photo)).length;
  const most = Math.max(1, unclear, ...counts);
  const order = counts.map((_, index) => index).sort((a, b) => counts[b] - counts[a] || a - b);
  const found = order.filter((index) => counts[index] || state.label === index), rest = order.filter((index) => !found.includes(index));
  const rows = [...found, ...(unclear || state.label === NONE ? [NONE] : []), ...(state.rest || !found.length ? rest : [])];
  refill($("bars"), rows.map((index) => {
    const [name, count] = index === NONE ? ["no clear intent", unclear] : [level().labels[index], counts[index]];
    return make("li", {}, make("button", {
      type: "button", "aria-pressed": String(state.label === index), title: name, class: index === NONE ? "none" : "",
      onclick: () => { state.label = state.label === index ? null : index; state.shown = PAGE; draw(); },
    }, make("span", { class: "name" }, name), track(count / most), make("span", { class: "count" }, String(count))));
  }));
  $("rest").hidden = !found.length || !rest.length;
  $("rest").setAttribute("aria-expanded", String(state.rest));
  $("rest").textContent = state.rest ? "Hide labels without photos" : `${rest.length} more without photos`;
  $("threshold-value").textContent = state.threshold === null ? "each label's own" : `${state.threshold} %`;
  $("own").hidden = state.threshold === null;
}

function chosen() {
  if (state.label === null) return data.photos;
  if (state.label === NONE) return data.photos.filter((photo) => !clear(photo));
  const members = level().members[state.label];
  return data.photos.filter((photo) => holds(photo, members)).sort((a, b) => probability(b, members) - probability(a, members));
}

function drawPhotos() {
  const photos = chosen();
  $("filter").textContent = state.label === null ? `${photos.length} in all. Choose a label above to see its photos; choose one on a photo to see its evidence.`
    : state.label === NONE ? `${photos.length} of ${data.photos.length} on which no label reaches its threshold.`
      : `${photos.length} of ${data.photos.length} with “${level().labels[state.label]}”, most probable first.`;
  $("photos").replaceChildren(...photos.slice(0, state.shown).map(card));
  $("more").hidden = photos.length <= state.shown;
}

function card(photo) {
  const frame = make("div", { class: "frame" });
  if (photo.image) frame.append(make("img", { src: photo.image, alt: photo.name, loading: "lazy" }));
  const words = make("p", { class: "words" });
  for (const word of photo.text ?? []) words.append(make("span", {}, word), " ");
  const members = level().members;
  const order = members.map((entry, index) => [index, probability(photo, entry)]).sort((a, b) => b[1] - a[1]).slice(0, SHOWN);
  const list = make("ul");
  for (const [index, value] of order) {
    // Evidence belongs to classes; a group shows that of its most probable class.
    const own = members[index].reduce((best, entry) => (photo.probabilities[entry] > photo.probabilities[best] ? entry : best), members[index][0]);
    const maps = photo.evidence[own], weights = photo.words?.[own];
    const button = make("button", {
      type: "button", class: holds(photo, members[index]) ? "label" : "label below", "aria-pressed": "false", disabled: !maps && !weights,
      title: maps || weights ? `Evidence for ${level().labels[index]}` : level().labels[index],
    }, make("span", { class: "name" }, level().labels[index]), track(value / 1000), make("span", { class: "value" }, `${percent(photo, index, value)} %`));
    button.addEventListener("click", () => toggle({ frame, words, list, button, photo, maps, weights }));
    list.append(make("li", {}, button));
  }
  const parts = [make("h3", { title: photo.path }, photo.name), ...(clear(photo) ? [] : [make("p", { class: "unclear" }, "No clear intent; nearest:")]), list];
  if (photo.text) parts.unshift(words);
  if (photo.image) parts.unshift(frame);
  if (photo.conflict !== undefined) parts.push(make("p", { class: "conflict" }, conflict(photo)));
  return make("article", { class: "photo" }, ...parts);
}

function conflict(photo) {
  const disputed = photo.disputed.map(([name, seen, said]) => `${name} (photo ${seen} %, words ${said} %)`);
  return `photo and words conflict: ${(photo.conflict / 1000).toFixed(2)}${disputed.length ? ": " + disputed.join(", ") : ""}`;
}

function toggle({ frame, words, list, button, photo, maps, weights }) {
  const on = button.getAttribute("aria-pressed") === "true";
  for (const other of list.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
  frame.querySelectorAll("canvas, .asked").forEach((node) => node.remove());
  tint(words.children, [...words.children].map(() => 0));
  if (on) return;
  button.setAttribute("aria-pressed", "true");
  tint(words.children, weights ?? []);
  if (!maps) return;
  const canvas = make("canvas", { role: "img", "aria-label": `${button.title}, ${state.branch}` });
  frame.append(canvas);
  canvas.redraw = () => {
    const [values, rows, columns] = unpack(maps[state.branch] ?? maps[data.branches[0]]);
    const asked = canvas.query !== undefined, map = asked ? unpack(photo.attention)[0].subarray(canvas.query * rows * columns) : values;
    const context = paint(canvas, { size: photo.size, box: photo.box, values: map, rows, columns, palette: data.palette });
    if (asked) outline(context, photo, rows, columns, canvas.query);
  };
  if (photo.attention) askable(canvas, photo, unpack(maps[data.branches[0]]));
  canvas.redraw();
}

// Click a region to see which regions of the sight map it attended to. Arrow keys move, Escape ends.
function askable(canvas, photo, [, rows, columns]) {
  const label = canvas.getAttribute("aria-label");
  const note = make("p", { class: "asked", "aria-live": "polite", hidden: true },
    "The outlined region attended to the bright regions.");
  const ask = (query) => {
    canvas.query = query;
    note.hidden = query === undefined;
    canvas.setAttribute("aria-label", query === undefined ? label
      : `attention of row ${Math.floor(query / columns) + 1}, column ${(query % columns) + 1}`);
    canvas.redraw();
  };
  canvas.tabIndex = 0;
  canvas.title = "Click a region to see which regions it attended to.";
  canvas.after(note);
  canvas.addEventListener("click", (event) => {
    const scale = Math.min(canvas.clientWidth / photo.size[0], canvas.clientHeight / photo.size[1]);
    const share = [event.offsetX - canvas.clientWidth / 2, event.offsetY - canvas.clientHeight / 2].map((offset, axis) => {
      const place = offset / scale / photo.size[axis] + 0.5;
      return (place - photo.box[axis]) / (photo.box[axis + 2] - photo.box[axis]);
    });
    const query = Math.floor(share[1] * rows) * columns + Math.floor(share[0] * columns);
    ask(share.some((place) => place < 0 || place >= 1) || query === canvas.query ? undefined : query);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (event.key === "Escape") ask(undefined);
    if (!step) return;
    event.preventDefault();
    const from = canvas.query ?? Math.floor(rows / 2) * columns + Math.floor(columns / 2);
    const row = Math.min(rows - 1, Math.max(0, Math.floor(from / columns) + step[0]));
    const column = Math.min(columns - 1, Math.max(0, (from % columns) + step[1]));
    ask(row * columns + column);
  });
}

function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return [bytes.subarray(2), bytes[0], bytes[1]];
}

// The place that was asked about.
function outline(context, photo, rows, columns, place) {
  const [left, top, right, bottom] = photo.box.map((share, index) => share * photo.size[index % 2]);
  const [width, height] = [(right - left) / columns, (bottom - top) / rows];
  for (const [color, line] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = color;
    context.lineWidth = line;
    context.strokeRect(left + (place % columns) * width, top + Math.floor(place / columns) * height, width, height);
  }
}

function drawBranches() {
  const legend = $("legend");
  legend.hidden = !data.branches.length;
  paintScale(legend.querySelector("canvas"), data.palette);
  if (data.branches.length < 2) return;
  const told = { sight: "what is seen", semantic: "what is meant", fused: "both, which decides" };
  refill($("branches"), data.branches.map((branch) => make("button", {
    type: "button", "aria-pressed": String(branch === state.branch), title: told[branch] ?? branch,
    onclick: () => {
      state.branch = branch;
      drawBranches();
      for (const canvas of document.querySelectorAll(".frame canvas")) canvas.redraw();
    },
  }, branch)));
}

function draw() { drawLevels(); drawBars(); drawPhotos(); }

$("lead").textContent = `${data.photos.length} ${data.photos.some((photo) => photo.text) ? "post" : "photo"}${data.photos.length === 1 ? "" : "s"}, ${data.levels[0].labels.length} labels of ${data.taxonomy}, model ${data.model}.`;
$("note").textContent = data.note;
document.querySelector(".slider").hidden = data.exclusive;  // the most probable label is the prediction
$("threshold").value = 50;
$("threshold").addEventListener("input", (event) => { state.threshold = Number(event.target.value); drawBars(); drawPhotos(); });
// A button that goes away hands the keyboard on: to the slider, or to the first photo that it brought.
$("rest").addEventListener("click", () => { state.rest = !state.rest; drawBars(); });
$("own").addEventListener("click", () => { state.threshold = null; $("threshold").focus(); draw(); });
$("more").addEventListener("click", () => {
  const before = state.shown;
  state.shown += PAGE;
  drawPhotos();
  if ($("more").hidden) $("photos").children[before].querySelector("button:enabled")?.focus();
});
if (data.failures.length) {
  $("failures").hidden = false;
  $("failures").querySelector("ul").append(...data.failures.map((text) => make("li", {}, text)));
}
drawBranches();
draw();
