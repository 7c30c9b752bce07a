"use strict";
// The page's state, what changes it, and the photos on their way to the model. Each change draws what depends on it.
const facts = { models: [], taxonomies: [] };
const answers = new Answers();
const state = {
  photos: [], listed: [], photo: null, selected: new Set(), anchor: null, model: "", own: [], reader: null,
  label: null, order: "", moved: new Map(), evidence: false, branch: "fused", fine: false,
  filter: "", sort: "added", openOnly: false, draft: null, chips: [], training: false, trained: false, unsaved: false, readText: false,
};
const BATCH = 8;
const work = { running: 0, busy: new Set() };

const tell = (text) => { $("notice").textContent = text; };

function refresh() {
  drawGrid();
  drawProgress();
  drawAnswer();
}

async function look(photo) {
  const before = state.photo;
  if (before === photo) return;
  state.photo = photo;
  if (before) { before.hide(); if (before.card) drawCard(before); }
  if (!photo) { drawAnswer(); return; }
  state.draft = null;
  const held = $("grid").contains(document.activeElement);
  drawCard(photo);
  photo.card.scrollIntoView({ block: "nearest" });
  if (held) photo.card.querySelector(".open").focus({ preventScroll: true });
  hideEvidence();
  $("photo-name").textContent = $("photo-name").title = photo.name;
  drawPlace();
  drawAnswer();
  scoreNext();
  await drawPhoto(photo);
}

async function drawPhoto(photo) {
  const images = [$("photo"), $("full-photo")];
  for (const image of images) { image.removeAttribute("src"); image.alt = photo.name; }
  $("full-name").textContent = photo.name;
  try {
    const { url } = await photo.show();
    if (photo === state.photo) for (const image of images) image.src = url;
  } catch { /* the answer says what is wrong with it */ }
}

const step = (by) => {
  const next = state.listed[state.listed.indexOf(state.photo) + by];
  if (next && state.photo) look(next);
};

// Photos go to the model in small batches, two at a time; the one that is looked at comes first.
function scoreNext() {
  const who = reader();
  while (work.running < 2) {
    const order = [state.photo, ...state.listed, ...state.photos].filter(Boolean);
    const batch = [...new Set(order)].filter((photo) => !photo.answers.has(who.key) && !work.busy.has(photo)).slice(0, state.photo?.answers.has(who.key) ? BATCH : 1);
    if (!batch.length) break;
    work.running += 1;
    batch.forEach((photo) => work.busy.add(photo));
    score(who, batch).finally(() => {
      work.running -= 1;
      batch.forEach((photo) => work.busy.delete(photo));
      drawSoon();
      scoreNext();
    });
  }
  const left = state.photos.filter((photo) => !photo.answers.has(who.key)).length;
  if (left > 1) tell(`Reading: ${state.photos.length - left} of ${state.photos.length}.`);
  else if ($("notice").textContent.startsWith("Reading:")) tell("");
}

// The words in a picture are its caption where the visitor wrote none. A picture is read once.
async function readText(photo) {
  if (photo.caption.trim() || photo.textRead) return;
  photo.textRead = true;
  try { photo.caption = (await post("read-text", [["image", await photo.read()]])).text; } catch { /* its answer says what is wrong */ }
}

async function score(who, batch) {
  if (state.readText && who.reads.includes("text")) await Promise.all(batch.map(readText));
  const texts = batch.map((photo) => photo.caption.trim());
  const fail = (photo, error) => photo.answers.set(who.key, { error });
  try {
    const blobs = await Promise.all(batch.map((photo) => photo.read().catch(() => null)));
    batch.forEach((photo, place) => { if (!blobs[place]) fail(photo, "The file is gone, or the service does not answer."); });
    const there = batch.map((photo, place) => [photo, blobs[place], texts[place]]).filter(([, blob]) => blob);
    const size = there.reduce((sum, [, blob]) => sum + blob.size, 0);
    if (there.length > 1 && (size > facts.max_bytes || there.length > facts.max_photos)) {
      const half = Math.ceil(batch.length / 2);
      await score(who, batch.slice(0, half));
      await score(who, batch.slice(half));
      return;
    }
    if (!there.length) return;
    const words = who.reads.includes("text") && there.some(([, , text]) => text);
    const seen = who.reads.includes("image");
    const readable = there.filter(([photo, , text]) => seen || text || fail(photo, "This model needs text: enter the post’s text below the photo."));
    const fields = [...whoReads(who)];
    for (const [photo, blob, text] of readable) {
      if (seen) fields.push(["images", new File([blob], photo.name)]);
      if (words) fields.push(["texts", text]);
    }
    const answer = await post("predict", fields);
    readable.forEach(([photo, , text], place) => {
      if (photo.caption.trim() !== text) return;
      const found = answer.results[place], channel = !seen ? "text" : words && text ? "both" : "image";
      photo.answers.set(who.key, found.error ? { error: found.error } : { ...found, channel, error: null, values: who.names.map((name) => found.scores[name]) });
    });
  } catch (refusal) { batch.forEach((photo) => { if (!photo.answers.has(who.key)) fail(photo, refusal.message); }); }
}

let waiting = null;
function drawSoon() {
  waiting ??= setTimeout(() => {
    waiting = null;
    drawGrid();
    drawProgress();
    const found = state.photo?.answers.get(reader().key);
    if (found !== state.drawn || !found) { state.drawn = found; drawAnswer(); }
  }, 120);
}

function addPhotos(files) {
  const photos = files.filter(([file, name]) => isPhoto(file, name)).map(([file, name]) => photoOfFile(file, name));
  const known = new Set(state.photos.map((photo) => photo.key)), fresh = photos.filter((photo) => !known.has(photo.key));
  if (state.examples && fresh.length) takeAway(state.photos);
  state.examples = false;
  state.photos.push(...fresh);
  const other = files.length - photos.length, twice = photos.length - fresh.length;
  tell([`${fresh.length} photo${fresh.length === 1 ? "" : "s"} added`, twice ? `${twice} already on the page` : "", other ? `${other} other file${other === 1 ? "" : "s"} skipped` : ""].filter(Boolean).join(", ") + ".");
  refresh();
  if (fresh.length) look(fresh[0]);
  scoreNext();
}

function takeAway(photos) {
  const gone = new Set(photos);
  for (const photo of gone) {
    photo.hide();
    const small = photo.card?.querySelector("img.thumb");
    if (small) URL.revokeObjectURL(small.src);
  }
  state.photos = state.photos.filter((photo) => !gone.has(photo));
  photosGone(gone);
}

function photosGone(gone) {
  for (const photo of gone) state.selected.delete(photo);
  if (gone.has(state.photo)) { state.photo = null; }
}

function fillLabels() {
  const options = (first) => [...first.map(([value, name]) => make("option", { value }, name)), ...reader().names.map((name) => make("option", { value: name }, name))];
  if (state.filter !== "\n" && !reader().names.includes(state.filter)) state.filter = "";
  $("filter").replaceChildren(...options([["", "all"], ["\n", "no clear intent"]]));
  $("filter").value = state.filter;
  $("bulk-label").replaceChildren(...options([]));
}

function readerChanged() {
  state.reader = null;
  state.label = null;
  state.draft = null;
  fillLabels();
  refresh();
  scoreNext();
}

function chooseModel(name) {
  state.model = name;
  $("model").value = name;
  state.own = [];
  readerChanged();
}

async function readModels() {
  [facts.models, facts.taxonomies] = await Promise.all([askJson("../v1/models"), askJson("../v1/taxonomies")]);
  $("model").replaceChildren(...facts.models.map((one) => make("option", { value: one.name }, one.name)));
  if (state.model) $("model").value = state.model;
}

let typing = null;
const later = (act) => { clearTimeout(typing); typing = setTimeout(act, 350); };

function writeOwn() {
  const names = new Map();
  for (const line of $("own").value.split("\n")) {
    const name = line.trim().split(/\s+/).join(" ");
    if (name && !names.has(name.toLowerCase())) names.set(name.toLowerCase(), name);
  }
  const own = [...names.values()];
  if (own.length > facts.most_labels) { $("own-note").textContent = `${own.length} intents are too many: write at most ${facts.most_labels}.`; return; }
  if (own.join("\n") === state.own.join("\n")) return;
  $("own-note").textContent = own.length ? `${own.length} intent${own.length === 1 ? "" : "s"} of your own. Empty the box to go back to ${state.model}.` : "";
  state.own = own;
  readerChanged();
}

function pressed(event) {
  const at = event.target, typingText = at.matches("textarea, select, input:not([type=checkbox])");
  if (event.key === "Escape" && state.selected.size && !document.querySelector("dialog[open]")) { state.selected.clear(); drawSelection(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey || typingText || !$("keys").checked) return;
  const open = document.querySelector("dialog[open]");
  if (open && open !== $("full-view")) return;
  const acts = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1), u: undo, e: () => $("show-evidence").click(), f: () => (open ? open.close() : openFull()),
    x: () => state.photo && select(state.photo, !state.selected.has(state.photo), false), "?": () => $("help-view").showModal(),
  };
  // On a control Enter does what the control does; on the photo's own card it keeps.
  if (event.key === "Enter" && !open && (!at.closest("button, summary, a, input") || at.getAttribute("aria-current") === "true")) acts.Enter = keep;
  const digit = /^[1-9]$/.test(event.key) && !open ? state.chips[Number(event.key) - 1] : undefined;
  const act = digit ? () => switchLabel(digit) : acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || (at === $("full-frame") && $("full-view").classList.contains("actual") && event.key.startsWith("Arrow"))) return;
  event.preventDefault();
  act();
}

function openFull() {
  if (state.photo) $("full-view").showModal();
}

function wire() {
  const on = (id, kind, act) => $(id).addEventListener(kind, act);
  const click = (id, act) => on(id, "click", act);
  click("open-files", () => $("files").click());
  click("open-folder", () => $("folder").click());
  on("files", "change", (event) => { addPhotos([...event.target.files].map((file) => [file, file.name])); event.target.value = ""; });
  on("folder", "change", (event) => { addPhotos([...event.target.files].map((file) => [file, file.webkitRelativePath]).sort((a, b) => (a[1] < b[1] ? -1 : 1))); event.target.value = ""; });
  on("model", "change", (event) => { $("own").value = ""; $("own-note").textContent = ""; chooseModel(event.target.value); });
  click("previous", () => step(-1));
  click("next", () => step(1));
  click("full", openFull);
  click("full-previous", () => step(-1));
  click("full-next", () => step(1));
  click("full-close", () => $("full-view").close());
  click("full-actual", () => {
    const actual = $("full-view").classList.toggle("actual");
    $("full-actual").setAttribute("aria-pressed", String(actual));
  });
  click("show-evidence", () => { state.evidence = !state.evidence; drawAnswer(); });
  on("fine", "change", (event) => { state.fine = event.target.checked; drawAnswer(); });
  on("opacity", "input", fadeEvidence);
  on("order", "change", (event) => { state.order = event.target.value; drawAnswer(); });
  on("threshold", "input", (event) => moveThreshold(Number(event.target.value) / 100));
  click("reset", () => { state.moved.delete(reader().set); $("threshold").focus(); $("threshold").blur(); refresh(); $("threshold").focus(); });
  on("caption", "input", (event) => later(() => {
    const photo = state.photo;
    if (!photo) return;
    photo.caption = event.target.value;
    for (const one of facts.models) if (one.reads.includes("text")) photo.answers.delete(one.name);
    scoreNext();
  }));
  on("read-text", "change", (event) => {
    state.readText = event.target.checked;
    if (!state.readText) return;
    for (const photo of state.photos) if (!photo.caption.trim()) for (const one of facts.models) if (one.reads.includes("text")) photo.answers.delete(one.name);
    drawSoon();
    scoreNext();
  });
  on("own", "input", () => later(writeOwn));
  on("more-labels", "change", (event) => { if (event.target.value) switchLabel(event.target.value, true); });
  click("keep", keep);
  click("drop-answer", () => change([[state.photo.key, null]]));
  click("undo", undo);
  click("download", download);
  click("train", train);
  on("filter", "change", (event) => { state.filter = event.target.value; drawGrid(); });
  on("sort", "change", (event) => { state.sort = event.target.value; drawGrid(); });
  on("open-only", "change", (event) => { state.openOnly = event.target.checked; drawGrid(); });
  click("select-all", () => { state.listed.forEach((photo) => state.selected.add(photo)); drawSelection(); });
  click("select-none", () => { state.selected.clear(); drawSelection(); });
  click("bulk-add", () => changeSelected((labels) => (reader().exclusive ? new Set([$("bulk-label").value]) : labels.add($("bulk-label").value))));
  click("bulk-remove", () => changeSelected((labels) => { labels.delete($("bulk-label").value); return labels; }));
  click("bulk-accept", () => changeSelected((_, model) => new Set(model)));
  click("bulk-away", () => { takeAway([...state.selected]); refresh(); drawSelection(); if (!state.photo && state.listed.length) look(state.listed[0]); });
  click("help", () => $("help-view").showModal());
  click("help-close", () => $("help-view").close());
  document.addEventListener("keydown", pressed);
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    try { addPhotos(await droppedFiles(event.dataTransfer.items)); } catch { tell("The dropped files could not be read; open them by the button."); }
  });
  addEventListener("beforeunload", (event) => { if (state.unsaved && !answers.lasting) event.preventDefault(); });
  addEventListener("storage", (event) => { if (event.key === STORED) refresh(); });
}

async function start() {
  try {
    Object.assign(facts, await askJson("facts"));
    await readModels();
  } catch (refusal) { tell(refusal.message); return; }
  state.model = facts.models.find((one) => one.default).name;
  state.photos = facts.photos.map(photoOfService);
  state.examples = facts.examples;
  $("help-least").textContent = facts.least_rows;
  const [least, scale, most] = $("legend").children;
  [least.textContent, most.textContent] = facts.legend;
  paintScale(scale, facts.palette);
  $("read-text-box").hidden = !facts.reads_text;
  wire();
  fillLabels();
  refresh();
  if (state.listed.length) await look(state.listed[0]);
  document.body.dataset.ready = "true";
}

start();
