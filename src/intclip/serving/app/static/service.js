"use strict";
// What the page asks of the service. A busy service is asked again after the time that it names.
class Refusal extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

const PATIENCE = 20;
const pause = (seconds) => new Promise((done) => { setTimeout(done, seconds * 1000); });

async function ask(path, options = {}) {
  for (let turn = 0; ; turn += 1) {
    let answer;
    try { answer = await fetch(path, options); } catch { throw new Refusal("The service does not answer. Is it still running?", 0); }
    if (answer.ok) return answer;
    if ([429, 503].includes(answer.status) && turn < PATIENCE) {
      await pause(Number(answer.headers.get("Retry-After") ?? 2));
      continue;
    }
    let detail = `The service answered ${answer.status}.`;
    try { detail = (await answer.json()).detail; } catch { /* not one of its own answers */ }
    throw new Refusal(detail, answer.status);
  }
}

const askJson = async (path, options) => (await ask(path, options)).json();

function form(fields) {
  const filled = new FormData();
  for (const [name, value] of fields) if (value !== undefined && value !== null) filled.append(name, value);
  return filled;
}

const post = (path, fields, headers = {}) => askJson(path, { method: "POST", body: form(fields), headers });
