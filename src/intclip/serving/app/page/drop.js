// Photos that are dropped or chosen, and folders, go to the server one after the other; the names keep their folders.
const MOST = 500;
const KINDS = /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|jp2|ppm|ico)$/i;
const tell = (text) => { element.querySelector(".ic-notice").textContent = text; };
const usable = ({ file }) => file.type.startsWith("image/") || KINDS.test(file.name);

async function entries(directory) {
  const reader = directory.createReader();
  const found = [];
  for (;;) {  // a reader hands out a hundred entries at a time
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return found;
    found.push(...some);
  }
}

async function walk(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return [{ file, name: entry.fullPath.replace(/^\//, "") }];
  }
  const below = [];
  for (const child of await entries(entry)) below.push(...await walk(child));
  return below;
}

async function send(items) {
  const photos = items.filter(usable);
  if (!photos.length) { tell("There is no photo among these files."); return; }
  const taken = photos.slice(0, MOST);
  const sent = [];
  for (const { file, name } of taken) {
    tell(`Reading ${sent.length + 1} of ${taken.length} …`);
    try { sent.push({ path: (await upload(file)).path, name }); } catch (error) { tell(`${name} could not be sent.`); return; }
  }
  tell(`Scoring ${sent.length} …`);
  trigger("upload", { files: sent, left: photos.length - taken.length });
}

const named = (list) => Array.from(list, (file) => ({ file, name: file.webkitRelativePath || file.name }));

element.addEventListener("click", (event) => {
  const pick = event.target.closest("[data-pick]");
  if (pick) element.querySelector(pick.dataset.pick === "files" ? "#ic-files" : "#ic-folder").click();
});
element.addEventListener("change", (event) => {
  const files = named(event.target.files);
  event.target.value = "";
  if (files.length) send(files);
});

// The whole page takes what is dropped; without this the browser would leave it and open the photo.
let depth = 0;
const carries = (event) => event.dataTransfer?.types.includes("Files");
const mark = () => document.body.classList.toggle("ic-over", depth > 0);
window.addEventListener("dragenter", (event) => { if (carries(event)) { depth += 1; mark(); } });
window.addEventListener("dragleave", (event) => { if (carries(event)) { depth -= 1; mark(); } });
window.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
window.addEventListener("drop", async (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  depth = 0;
  mark();
  // Entries must be asked for before the first wait: afterwards the browser has forgotten them.
  const dropped = Array.from(event.dataTransfer.items, (item) => item.webkitGetAsEntry()).filter(Boolean);
  const items = [];
  for (const entry of dropped) items.push(...await walk(entry));
  send(items.sort((a, b) => a.name.localeCompare(b.name)));
});
