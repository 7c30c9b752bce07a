"use strict";
// The visitor's answers: nine intents by their keys, many photos at once, progress, the table, and a model that learns.
const NINE = 9;

// The photo's switched-on intents: those just changed, else the stored answer, else the model's.
function draft(photo, found) {
  if (state.draft?.photo === photo && state.draft.set === reader().set) return state.draft.labels;
  const mine = answers.of(reader().set).get(photo.key);
  return new Set(mine ? mine.labels : summary(found).holding.map((one) => one.name));
}

function switchLabel(name, on) {
  const photo = state.photo, found = photo?.answers.get(reader().key);
  if (!found || found.error) return;
  const labels = new Set(draft(photo, found));
  if (on ?? !labels.has(name)) {
    if (reader().exclusive) labels.clear();
    labels.add(name);
  } else labels.delete(name);
  state.draft = { photo, set: reader().set, labels };
  drawChips(photo, found);
}

// The nine most probable intents, and every other one that is switched on; their order stays while one photo is looked at.
function drawChips(photo, found) {
  const labels = draft(photo, found), order = summary(found).all.map((one) => one.name);
  state.chips = order.slice(0, NINE);
  const shown = [...state.chips, ...order.slice(NINE).filter((name) => labels.has(name))];
  refill($("chips"), shown.map((name, place) => make("button", {
    type: "button", "aria-pressed": String(labels.has(name)), title: reader().definitions[name] ?? name, onclick: () => switchLabel(name),
  }, ...(place < NINE ? [make("kbd", {}, String(place + 1))] : []), name)));
  const rest = order.filter((name) => !shown.includes(name)).sort((a, b) => a.localeCompare(b));
  $("more-labels").replaceChildren(make("option", { value: "" }, "choose…"), ...rest.map((name) => make("option", { value: name }, name)));
  $("more-labels").parentElement.hidden = !rest.length;
  $("drop-answer").disabled = !answers.of(reader().set).has(photo.key);
}

function rowOf(photo, labels) {
  const text = photo.caption.trim();
  const row = { name: photo.name, labels: reader().names.filter((name) => labels.has(name)) };
  return text && reader().reads.includes("text") ? { ...row, text } : row;
}

function keep() {
  const photo = state.photo, found = photo?.answers.get(reader().key);
  if (!found || found.error) return;
  const before = state.listed.indexOf(photo);
  change([[photo.key, rowOf(photo, draft(photo, found))]]);
  // Where the photo has left the list, another is at its place already.
  const next = state.listed[state.listed.indexOf(photo) < 0 ? before : before + 1];
  if (next) look(next);
  else { tell("This was the last photo of the list."); drawAnswer(); }
}

function change(entries) {
  answers.change(reader().set, entries);
  state.unsaved = true;
  state.draft = null;
  refresh();
  if (!answers.lasting) tell("This browser does not store your answers: download the table before you close the page.");
}

function undo() {
  const step = answers.undo();
  if (!step) return;
  state.draft = null;
  const photo = state.photos.find((one) => one.key === step.before[0][0]);
  if (photo && step.set === reader().set) look(photo);
  refresh();
  tell(`Undone: ${step.before.length} answer${step.before.length === 1 ? "" : "s"}.`);
}

function select(photo, on, range) {
  const from = state.listed.indexOf(state.anchor), to = state.listed.indexOf(photo);
  const photos = range && from >= 0 && to >= 0 ? state.listed.slice(Math.min(from, to), Math.max(from, to) + 1) : [photo];
  for (const one of photos) state.selected[on ? "add" : "delete"](one);
  state.anchor = photo;
  drawSelection();
}

function drawSelection() {
  $("selection").hidden = !state.selected.size;
  $("selected").textContent = `${state.selected.size} selected`;
  for (const photo of state.photos) if (photo.card) photo.card.querySelector("input").checked = state.selected.has(photo);
}

// One change for all selected photos; those that are not scored yet, or cannot be read, are left as they are.
function changeSelected(edit) {
  const rows = answers.of(reader().set), entries = [];
  for (const photo of state.selected) {
    const found = photo.answers.get(reader().key);
    if (!found || found.error) continue;
    const model = summary(found).holding.map((one) => one.name);
    const labels = edit(new Set(rows.get(photo.key)?.labels ?? model), model);
    entries.push([photo.key, rowOf(photo, labels)]);
  }
  if (entries.length) change(entries);
  tell(`${entries.length} of ${state.selected.size} selected photos answered.`);
}

// Agreement: F1 of the model's intents against the visitor's, over all decisions on answered photos (micro F1).
function agreementWith(who) {
  let [hits, model, mine, photos] = [0, 0, 0, 0];
  const rows = answers.of(who.set);
  for (const photo of state.photos) {
    const row = rows.get(photo.key), found = photo.answers.get(who.key);
    if (!row || !found || found.error) continue;
    const said = summary(found).holding.map((one) => one.name);
    photos += 1;
    hits += said.filter((name) => row.labels.includes(name)).length;
    model += said.length;
    mine += row.labels.length;
  }
  return { photos, share: model + mine ? (2 * hits) / (model + mine) : 1 };
}

const withInterval = (one) => `${percent(one.value, null, true)} % (F1, 95 % interval ${percent(one.low, null, true)} to ${percent(one.high, null, true)})`;

function drawProgress() {
  const rows = answers.of(reader().set), here = state.photos.filter((photo) => rows.has(photo.key)).length;
  $("progress-text").textContent = `${here} of ${state.photos.length} answered`;
  $("progress").max = Math.max(1, state.photos.length);
  $("progress").value = here;
  const away = rows.size - here, found = agreementWith(reader());
  const lines = [];
  if (found.photos) lines.push(`${reader().own ? "The model" : reader().key} agrees with you on ${percent(found.share, null, true)} % (F1 over ${found.photos} photo${found.photos === 1 ? "" : "s"}).`);
  // A model of `fit` may have learned from these answers; the service has its figure on photos that it had not seen.
  const fitted = reader().fitted;
  if (fitted) lines.push(`On photos that it had not seen in training it reached ${withInterval(fitted)}; if it learned from these answers, that is the fair figure.`);
  const other = [...answers.sets].reduce((sum, [set, more]) => sum + (set === reader().set ? 0 : more.size), 0);
  if (other) lines.push(`${other} answer${other === 1 ? "" : "s"} with other labels ${other === 1 ? "is" : "are"} stored; choose the model that has those labels to go on with them.`);
  if (away) lines.push(`${away} more answer${away === 1 ? " is" : "s are"} stored for photos that are not on the page.`);
  $("agreement-text").textContent = lines.join(" ");
  $("download").disabled = !rows.size;
  $("download").textContent = rows.size ? `Download CSV (${rows.size})` : "Download CSV";
  $("undo").disabled = !answers.steps.length;
  $("train").hidden = !facts.training;
  $("train").disabled = here < facts.least_rows || state.training;
  if (!state.training && !state.trained) $("train-note").textContent = !facts.training ? "" : here < facts.least_rows
    ? `Answer ${facts.least_rows - here} more to train a model of your own.` : "";
}

function download() {
  const table = answersTable([...answers.of(reader().set).values()]);
  const link = make("a", { href: URL.createObjectURL(new Blob([table], { type: "text/csv" })), download: "corrections.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  state.unsaved = false;
}

async function train() {
  const who = reader(), rows = answers.of(who.set), before = agreementWith(who);
  const photos = state.photos.filter((photo) => rows.has(photo.key)).slice(0, facts.most_rows);
  state.training = true;
  state.trained = false;
  drawProgress();
  const note = $("train-note");
  try {
    note.textContent = "Sending the photos…";
    const fields = [["name", "mine"], ["model", who.own ? null : who.key], ["rows", JSON.stringify(photos.map((photo) => rows.get(photo.key)))]];
    for (const photo of photos) fields.push(["images", await photo.read()]);
    let status = await post("training", fields, { "X-Intclip-Page": "1" });
    while (status.state === "running") {
      note.textContent = `Training: ${status.stage}${status.total ? `, ${status.done} of ${status.total}` : ""}…`;
      await pause(0.5);
      status = await askJson("training");
    }
    if (status.state !== "done") throw new Refusal(status.error, 0);
    await readModels();
    state.trained = true;
    // A model that learned from these answers is compared by the figure of its own training.
    const held = facts.models.find((one) => one.name === status.model).held_out.micro_f1;
    const old = who.fitted?.value ?? before.share, name = who.own ? "the model" : who.key;
    const better = !held || held.value >= old;
    note.textContent = [
      `Trained “${status.model}” on ${status.photos} photos.`,
      held ? `On photos that it had not seen it agrees with you on ${withInterval(held)}; ${name} agreed on ${percent(old, null, true)} %.` : "",
      better ? "" : `The page stays with ${name}. Answer more photos and train again, or choose “${status.model}” under Model.`,
      `To use it later: intclip app --model ${status.folder}`,
    ].filter(Boolean).join(" ");
    if (better) chooseModel(status.model);
  } catch (refusal) {
    state.trained = true;  // so that the note stays
    note.textContent = `Not trained: ${refusal.message}`;
  } finally {
    state.training = false;
    drawProgress();
  }
}
