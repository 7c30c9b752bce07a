"use strict";
// The answer for the photo that is looked at: a line, all bars on demand, thresholds, evidence, words.
const MAYBE = 0.8;   // an intent below its threshold is named from this share of it on
const WEAK = 0.05;   // an intent that passes its threshold by less is marked

// Whole percent of a share; with a decimal where it would look as if the threshold that is missed were reached.
function percent(value, threshold, holds) {
  const whole = Math.round(value * 100);
  return !holds && threshold !== null && whole >= Math.round(threshold * 1000) / 10 ? (Math.floor(value * 1000) / 10).toFixed(1) : String(whole);
}

function reader() {
  if (state.reader) return state.reader;
  const own = state.own;
  if (own.length) {
    state.reader = {
      key: `own\n${own.join("\n")}`, set: setName("own intents", own), taxonomy: "own intents", names: own, levels: [["label", own]], parents: {},
      thresholds: own.map(() => facts.own_threshold), apart: {}, exclusive: false, definitions: {}, evidence: true, reads: ["image"], own: true, note: facts.own_note, fitted: null,
    };
    return state.reader;
  }
  const info = facts.models.find((one) => one.name === state.model);
  const labels = facts.taxonomies.find((one) => one.models.includes(info.name));
  const levels = Object.entries(labels.levels), names = levels[0][1];
  state.reader = {
    key: info.name, set: setName(labels.name, names), taxonomy: labels.name, names, levels, parents: labels.parents, exclusive: labels.exclusive,
    note: info.note, thresholds: names.map((name) => labels.thresholds[info.name][name]),
    apart: Object.fromEntries(Object.entries(labels.channel_thresholds[info.name] ?? {}).map(([channel, levels]) => [channel, names.map((name) => levels[name])])), definitions: labels.definitions, evidence: info.evidence,
    reads: info.reads, own: false, fitted: info.method === "post_heads" ? info.held_out.micro_f1 : null,
  };
  return state.reader;
}

// A photo without a caption has the thresholds of photos alone.
const thresholds = (found) => state.moved.get(reader().set) ?? reader().apart[found.channel] ?? reader().thresholds;

// Intents that hold, most probable first; those that nearly do; whether the model is unsure of its answer.
function summary(found) {
  const { names, exclusive } = reader(), limits = thresholds(found);
  const all = names.map((name, place) => ({ name, place, value: found.values[place], limit: exclusive ? null : limits[place] }))
    .sort((a, b) => b.value - a.value || a.place - b.place);
  if (exclusive) return { holding: all.slice(0, 1), maybe: all.slice(1, 3), weak: all.length > 1 && all[0].value - all[1].value < 2 * WEAK, all };
  const holding = all.filter((one) => one.value >= one.limit);
  const maybe = all.filter((one) => one.value < one.limit && one.value >= MAYBE * one.limit).slice(0, 2);
  return { holding, maybe, weak: holding.length > 0 && holding.every((one) => one.value - one.limit < WEAK), all };
}

const chosenLabel = (found) => (reader().names.includes(state.label) ? state.label : summary(found).all[0].name);

function drawAnswer() {
  const photo = state.photo;
  $("empty").hidden = Boolean(photo);
  $("shown").hidden = !photo;
  if (!photo) return;
  const found = photo.answers.get(reader().key), line = $("headline");
  $("doubt").textContent = $("agreement").textContent = "";
  $("model-note").textContent = reader().note ?? "";
  const readable = found && !found.error;
  for (const id of ["evidence", "all", "correct"]) $(id).hidden = !readable;
  $("caption-box").hidden = !reader().reads.includes("text");
  if (document.activeElement !== $("caption")) $("caption").value = photo.caption;
  if (!readable) {
    line.textContent = found ? "This photo cannot be read" : "Reading…";
    $("doubt").textContent = found?.error ?? "";
    hideEvidence();
    return;
  }
  const { holding, maybe, weak, all } = summary(found);
  const said = (one) => [one.name, " ", make("span", { class: "sure" }, one.value.toFixed(2))];
  const joined = (ones) => ones.flatMap((one, place) => [place ? ", " : "", ...said(one)]);
  line.replaceChildren(...(holding.length
    ? [weak ? make("span", { class: "weak-mark", title: "The model is not sure" }, "≈ ") : "", "Probably: ", ...joined(holding.slice(0, 3)),
      holding.length > 3 ? ` and ${holding.length - 3} more` : "", maybe.length ? make("span", { class: "maybe" }, "; maybe ", ...joined(maybe)) : ""]
    : ["No clear intent"]));
  if (!holding.length) $("doubt").textContent = `Closest: ${all.slice(0, 3).map((one) => `${one.name} ${one.value.toFixed(2)} (threshold ${one.limit.toFixed(2)})`).join(", ")}`;
  else if (weak) $("doubt").textContent = "≈ The model is not sure: the probability is only just above the threshold.";
  if (found.conflict !== null && found.conflict !== undefined) $("agreement").textContent = agreementOf(found);
  drawBars(found);
  drawEvidence(photo, found);
  drawChips(photo, found);
}

function agreementOf(found) {
  const disputed = Object.entries(found.disputed);
  const score = `(conflict ${found.conflict.toFixed(2)} of 1)`;
  if (!disputed.length) return `Photo and words agree ${score}.`;
  const named = disputed.slice(0, 2).map(([name, [seen, said]]) => `${name}, ${seen.toFixed(2)} by the photo and ${said.toFixed(2)} by the words`);
  return `Photo and words disagree: ${named.join("; ")}${disputed.length > 2 ? `; ${disputed.length - 2} more` : ""} ${score}.`;
}

// Rows of a level: a parent is as probable as its most probable child; of labels that exclude each other, as all together.
function rowsOf(found, level) {
  const { names, levels, parents, exclusive, definitions } = reader(), holding = new Set(summary(found).holding.map((one) => one.place));
  return levels[level][1].map((name, index) => {
    const members = level === 0 ? [index] : names.flatMap((label, place) => (parents[label][level - 1] === name ? [place] : []));
    const values = members.map((place) => found.values[place]);
    const best = members[values.indexOf(Math.max(...values))];
    return {
      name, best, value: exclusive ? Math.min(1, values.reduce((sum, value) => sum + value, 0)) : Math.max(...values),
      holds: members.some((place) => holding.has(place)), limit: level === 0 && !exclusive ? thresholds(found)[index] : null,
      definition: definitions[name] ?? name, group: level === 0 && levels.length > 1 ? parents[name].at(-1) : "",
    };
  }).sort((a, b) => b.value - a.value);
}

function drawBars(found) {
  const { levels, names, exclusive } = reader(), chosen = chosenLabel(found);
  const kinds = [["", "most probable first"], ...(levels.length > 1 ? [["group", `by ${levels.at(-1)[0]}`]] : []), ...levels.slice(1).map(([level], place) => [String(place + 1), `as ${level}`])];
  if (!kinds.some(([kind]) => kind === state.order)) state.order = "";
  $("order").replaceChildren(...kinds.map(([kind, name]) => make("option", { value: kind, selected: kind === state.order }, name)));
  const level = Number(state.order) || 0, rows = rowsOf(found, level), grouped = state.order === "group";
  const tops = grouped ? rowsOf(found, levels.length - 1) : [{ name: "" }];
  const nodes = [];
  for (const top of tops) {
    if (grouped) nodes.push(make("li", {}, make("h3", {}, make("span", {}, top.name), make("span", {}, `${percent(top.value, null, true)} %`))));
    for (const row of rows.filter((one) => !grouped || one.group === top.name)) {
      const meter = make("span", { class: "meter" }, track(row.value));
      if (row.limit !== null) {
        const mark = make("b");
        mark.style.left = `${row.limit * 100}%`;
        meter.append(mark);
      }
      const label = names[row.best];
      nodes.push(make("li", {}, make("button", {
        type: "button", class: row.holds ? "" : "below", "aria-pressed": String(label === chosen), title: `${row.definition.replace(/\.$/, "")}. Choose it to see its evidence.`,
        onclick: () => { state.label = label; drawAnswer(); },
      }, make("span", {}, row.name), meter, make("span", { class: "value" }, `${percent(row.value, row.limit, row.holds)} %`))));
    }
  }
  refill($("bars"), nodes);
  $("all").querySelector("summary").textContent = `All ${names.length} intents`;
  $("thresholds").hidden = exclusive;
  const limit = thresholds(found)[names.indexOf(chosen)];
  if (document.activeElement !== $("threshold")) $("threshold").value = Math.round(limit * 100);
  $("threshold-value").textContent = `${Math.round(limit * 100)} %`;
  $("only-name").textContent = chosen;
  $("reset").disabled = !state.moved.has(reader().set);
}

function moveThreshold(value) {
  const names = reader().names, found = state.photo.answers.get(reader().key);
  const moved = [...thresholds(found)], chosen = names.indexOf(chosenLabel(found));
  state.moved.set(reader().set, $("only").checked ? moved.with(chosen, value) : moved.map(() => value));
  drawAnswer();
  drawGrid();
}

const overlays = () => [$("overlay"), $("full-overlay")];
const hideEvidence = () => { for (const canvas of overlays()) canvas.hidden = true; };
const fadeEvidence = () => { for (const canvas of overlays()) canvas.style.opacity = $("opacity").value / 100; };

// Evidence is fetched when it is wanted, and kept with the photo.
async function drawEvidence(photo, found) {
  const label = chosenLabel(found), wanted = state.evidence && reader().evidence, canvas = $("overlay");
  $("evidence").hidden = !reader().evidence;
  $("show-evidence").setAttribute("aria-pressed", String(wanted));
  $("show-evidence").textContent = wanted ? "Hide evidence" : "Show evidence";
  $("show-evidence").title = `Where in the photo the model found “${label}” (E)`;
  $("evidence-tools").hidden = !wanted;
  $("evidence-note").textContent = "";
  drawWords(photo, label);
  if (!wanted) { hideEvidence(); return; }
  const key = `${reader().key}\n${label}\n${state.fine}`, who = reader();
  try {
    if (!photo.maps.has(key)) {
      $("evidence-note").textContent = "Computing the evidence…";
      const fields = [["image", await photo.read()], ["label", label], ["kind", state.fine ? "fine" : "regions"], ...whoReads(who)];
      photo.maps.set(key, await post("explain", fields));
    }
    const { size } = await photo.show();
    if (photo !== state.photo || who !== reader() || label !== chosenLabel(found) || !state.evidence) return;
    const map = photo.maps.get(key), names = Object.keys(map.regions);
    const branch = names.includes(state.branch) ? state.branch : names.includes("fused") ? "fused" : names[0];
    const told = { sight: "what is seen", semantic: "what is meant", fused: "both together: the model’s answer" };
    refill($("branches"), names.length < 2 ? [] : names.map((name) => make("button", {
      type: "button", "aria-pressed": String(name === branch), title: told[name] ?? name,
      onclick: () => { state.branch = name; drawAnswer(); },
    }, name)));
    const rows = map.regions[branch], flat = rows.flat(), low = Math.min(...flat), high = Math.max(...flat);
    const box = [map.box.left / size[0], map.box.top / size[1], map.box.right / size[0], map.box.bottom / size[1]];
    const scale = Math.min(1, 1024 / Math.max(...size));
    paint(canvas, {
      size: size.map((side) => Math.max(1, Math.round(side * scale))), box, rows: rows.length, columns: rows[0].length, palette: facts.palette,
      values: flat.map((value) => (high > low ? Math.round(((value - low) / (high - low)) * 255) : 0)),
    });
    canvas.hidden = false;
    canvas.setAttribute("aria-label", `evidence for ${label}`);
    const large = $("full-overlay");
    [large.width, large.height, large.hidden] = [canvas.width, canvas.height, false];
    large.getContext("2d").drawImage(canvas, 0, 0);
    large.style.setProperty("--width", `${size[0]}px`);
    fadeEvidence();
    const cut = box[0] > 0.001 || box[1] > 0.001 ? " The model does not see the dark edges." : "";
    $("evidence-note").textContent = `Bright: the regions that most support “${label}”.${cut}`;
  } catch (refusal) {
    hideEvidence();
    if (photo === state.photo) $("evidence-note").textContent = refusal.message;
  }
}

async function drawWords(photo, label) {
  const text = photo.caption.trim(), who = reader(), line = $("words");
  line.replaceChildren();
  if (!text || !facts.models.find((one) => one.name === who.key)?.explains_words) return;
  const key = `${who.key}\n${label}\n${text}`;
  try {
    if (!photo.maps.has(key)) photo.maps.set(key, await post("explain", [["text", text], ["label", label], ...whoReads(who)]));
    if (photo !== state.photo || who !== reader() || photo.caption.trim() !== text) return;
    const words = photo.maps.get(key).words, most = Math.max(...words.map(([, weight]) => Math.abs(weight))) || 1;
    const nodes = words.map(([word]) => make("span", {}, word));
    line.replaceChildren(`For “${label}”: `, ...nodes.flatMap((node) => [node, " "]));
    tint(nodes, words.map(([, weight]) => Math.round((weight / most) * 100)));
  } catch (refusal) { line.textContent = refusal.message; }
}

const whoReads = (who) => (who.own ? who.names.map((name) => ["labels", name]) : [["model", who.key]]);
