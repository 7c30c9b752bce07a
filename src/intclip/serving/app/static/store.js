"use strict";
// The visitor's answers: photo key to {name, labels, text}, apart for each list of labels. They are kept in this browser.
const STORED = "intclip:answers";

class Answers {
  constructor() {
    this.steps = [];       // what undo goes back to
    this.lasting = true;   // whether the browser stores them
    this.read();
    addEventListener("storage", (event) => { if (event.key === STORED) this.read(); });
  }

  read() {
    let stored = [];
    try { stored = JSON.parse(localStorage.getItem(STORED) ?? "[]"); } catch { this.lasting = false; }
    this.sets = new Map(stored.map(([set, rows]) => [set, new Map(rows)]));
  }

  write() {
    try {
      localStorage.setItem(STORED, JSON.stringify([...this.sets].map(([set, rows]) => [set, [...rows]])));
      this.lasting = true;
    } catch { this.lasting = false; }
  }

  of(set) { return this.sets.get(set) ?? new Map(); }

  // Change some answers at once; null removes one.
  change(set, entries) {
    const rows = this.sets.get(set) ?? new Map();
    this.steps.push({ set, before: entries.map(([key]) => [key, rows.get(key) ?? null]) });
    this.put(set, rows, entries);
  }

  undo() {
    const step = this.steps.pop();
    if (step) this.put(step.set, this.sets.get(step.set) ?? new Map(), step.before);
    return step;
  }

  put(set, rows, entries) {
    for (const [key, row] of entries) {
      if (row === null) rows.delete(key);
      else rows.set(key, row);
    }
    this.sets.set(set, rows);
    this.write();
  }
}

// One name for a list of labels, whichever model has it.
function setName(taxonomy, names) {
  let hash = 5381;
  for (const letter of names.join("\n")) hash = (Math.imul(hash, 33) ^ letter.codePointAt(0)) >>> 0;
  return `${taxonomy} ${names.length} ${hash.toString(36)}`;
}

// As `intclip fit` reads it: labels joined by ";", a JSON list where that would be read otherwise, [] for none.
function answersTable(rows) {
  const cell = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const listed = (labels) => (labels.length && !labels[0].startsWith("[") && !labels.some((label) => label.includes(";"))
    ? labels.join("; ") : JSON.stringify(labels));
  const words = rows.some((row) => row.text);
  const lines = rows.map((row) => [row.name, ...(words ? [row.text ?? ""] : []), listed(row.labels)]);
  return [["image", ...(words ? ["text"] : []), "labels"], ...lines].map((line) => line.map(cell).join(",") + "\n").join("");
}
