"use strict";
// The photos of the page: where their bytes come from, small pictures of them, and the grid.
const THUMB = 320;     // longer side of a small picture, in pixels
const SUFFIXES = /\.(jpe?g|png|webp|gif|bmp|tiff?|heic|heif|hif|avif|jxl|ppm|dng|cr2|cr3|nef|arw|orf|rw2|raf)$/i;

class Photo {
  constructor(name, key, read) {
    [this.name, this.key, this.read] = [name, key, read];  // `read` promises its bytes as a Blob
    this.answers = new Map();  // who read it, to what was found
    this.maps = new Map();
    this.caption = "";
    this.card = null;
    this.shown = null;   // promises {url, size}
  }

  // An address that an <img> takes, and the photo's own size. What the browser cannot decode, the service draws.
  show() {
    this.shown ??= (async () => {
      const blob = await this.read();
      try {
        const bitmap = await createImageBitmap(blob);
        const size = [bitmap.width, bitmap.height];
        bitmap.close();
        return { url: URL.createObjectURL(blob), size, blob };
      } catch {
        const answer = await ask("preview", { method: "POST", body: blob });
        if (answer.status === 204) throw new Refusal("This photo cannot be shown.", 204);
        const drawn = await answer.blob();
        return { url: URL.createObjectURL(drawn), size: answer.headers.get("X-Photo-Size").split("x").map(Number), blob: drawn };
      }
    })();
    this.shown.catch(() => { this.shown = null; });
    return this.shown;
  }

  // Large pictures are given up when another photo is looked at.
  async hide() {
    const shown = this.shown;
    this.shown = null;
    try { URL.revokeObjectURL((await shown)?.url); } catch { /* it was never there */ }
  }

  async thumbnail() {
    const blob = await this.read();
    let bitmap;
    try { bitmap = await createImageBitmap(blob); } catch {
      bitmap = await createImageBitmap(await (await ask("preview", { method: "POST", body: blob })).blob());
    }
    const scale = Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(bitmap.width * scale)), Math.max(1, Math.round(bitmap.height * scale)));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return URL.createObjectURL(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 }));
  }
}

const photoOfFile = (file, name) => new Photo(name, `${name}|${file.size}`, async () => file);
const photoOfService = (name, place) => new Photo(name, `${name}|`, async () => (await ask(`photos/${place}`)).blob());

// Files of a drop, those inside folders too, with their paths.
async function droppedFiles(items) {
  const found = [];
  async function walk(entry, above) {
    if (entry.isFile) {
      const file = await new Promise((done, fail) => { entry.file(done, fail); });
      found.push([file, above + entry.name]);
    } else if (entry.isDirectory) {
      const reader = entry.createReader();
      for (;;) {
        const entries = await new Promise((done, fail) => { reader.readEntries(done, fail); });
        if (!entries.length) break;
        for (const one of entries) await walk(one, `${above}${entry.name}/`);
      }
    }
  }
  for (const entry of [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)) await walk(entry, "");
  return found.sort((a, b) => (a[1] < b[1] ? -1 : 1));
}

const isPhoto = (file, name) => (file.type.startsWith("image/") || SUFFIXES.test(name)) && !/(^|\/)\./.test(name);

// Small pictures are drawn when they come into view, two at a time.
const drawing = { waiting: [], running: 0 };
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    watcher.unobserve(entry.target);
    drawing.waiting.push(entry.target.photo);
  }
  drawNext();
}, { rootMargin: "300px" });

function drawNext() {
  while (drawing.running < 2 && drawing.waiting.length) {
    const photo = drawing.waiting.shift();
    drawing.running += 1;
    photo.thumbnail().then((url) => {
      const image = make("img", { class: "thumb", src: url, alt: "" });
      photo.card.querySelector(".thumb").replaceWith(image);
    }).catch(() => { /* the card says what is wrong once the photo was scored */ }).finally(() => { drawing.running -= 1; drawNext(); });
  }
}

function cardOf(photo) {
  if (photo.card) return photo.card;
  const open = make("button", { type: "button", class: "open", tabindex: "-1" },
    make("span", { class: "thumb" }), make("span", { class: "name", title: photo.name }, photo.name.split("/").pop()), make("span", { class: "top" }));
  const box = make("input", { type: "checkbox", tabindex: "-1", "aria-label": `Select ${photo.name}`, title: "Select (X); with Shift, all up to the one selected last" });
  photo.card = make("li", {}, open, box);
  photo.card.photo = photo;
  open.addEventListener("click", () => look(photo));
  box.addEventListener("click", (event) => select(photo, box.checked, event.shiftKey));
  watcher.observe(photo.card);
  return photo.card;
}

// What the card says: the most probable intent, a mark on weak answers, and whether the visitor answered.
function drawCard(photo) {
  const card = cardOf(photo), open = card.querySelector(".open"), top = card.querySelector(".top");
  const found = photo.answers.get(reader().key), mine = answers.of(reader().set).get(photo.key);
  card.classList.toggle("failed", Boolean(found?.error));
  card.classList.remove("none");
  if (mine) top.textContent = mine.labels.length ? mine.labels.join(", ") : "no intent";
  else if (!found) top.textContent = "…";
  else if (found.error) top.textContent = "cannot be read";
  else {
    const { holding, weak } = summary(found);
    card.classList.toggle("none", !holding.length);
    top.textContent = holding.length ? `${weak ? "≈ " : ""}${holding[0].value.toFixed(2)} ${holding[0].name}` : "no clear intent";
  }
  top.title = top.textContent;
  card.querySelector(".mine")?.remove();
  if (mine) card.append(make("span", { class: "mine" }, "yours"));
  card.querySelector("input").checked = state.selected.has(photo);
  const current = photo === state.photo;
  open.setAttribute("aria-current", String(current));
  open.tabIndex = current ? 0 : -1;
  card.querySelector("input").tabIndex = current ? 0 : -1;
}

// The photos that the grid shows, in its order.
function listed() {
  const rows = answers.of(reader().set), wanted = state.filter;
  let photos = state.photos.filter((photo) => !(state.openOnly && rows.has(photo.key)));
  if (wanted !== "") {
    photos = photos.filter((photo) => {
      const mine = rows.get(photo.key), found = photo.answers.get(reader().key);
      const labels = mine ? mine.labels : found && !found.error ? summary(found).holding.map((one) => one.name) : null;
      return labels !== null && (wanted === "\n" ? !labels.length : labels.includes(wanted));
    });
  }
  const index = reader().names.indexOf(wanted);
  const likely = (photo) => {
    const found = photo.answers.get(reader().key);
    if (!found || found.error) return -1;
    return index >= 0 ? found.values[index] : Math.max(...found.values);
  };
  const unsure = (photo) => {
    const found = photo.answers.get(reader().key);
    return !found || found.error ? 2 : Math.min(...found.values.map((value, place) => Math.abs(value - thresholds(found)[place])));
  };
  const keys = { likely: (photo) => -likely(photo), unsure };
  if (keys[state.sort]) {
    const known = new Map(photos.map((photo) => [photo, keys[state.sort](photo)]));
    photos = [...photos].sort((a, b) => known.get(a) - known.get(b));
  } else if (state.sort === "name") photos = [...photos].sort((a, b) => a.name.localeCompare(b.name));
  return photos;
}

function drawGrid() {
  state.listed = listed();
  const cards = state.listed.map(cardOf);
  const grid = $("grid");
  if (cards.length !== grid.children.length || cards.some((card, place) => grid.children[place] !== card)) grid.replaceChildren(...cards);
  state.listed.forEach(drawCard);
  const many = state.photos.length;
  $("count").textContent = state.listed.length === many ? `${many} photo${many === 1 ? "" : "s"}` : `${state.listed.length} of ${many} photos`;
  $("select-all").hidden = !state.listed.length;
  drawPlace();
}

function drawPlace() {
  const place = state.listed.indexOf(state.photo);
  $("place").textContent = place < 0 ? "" : `${place + 1} of ${state.listed.length}`;
  $("previous").disabled = place <= 0;
  $("next").disabled = place >= state.listed.length - 1;
}
