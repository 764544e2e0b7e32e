// The queue: jobs that wait or run, each with its place and a button that cancels it.

import { button, byId, make } from "./dom.js";
import { jobs } from "./jobs.js";
import { stateOf } from "./stage.js";

function rowOf(job, cancel) {
  const prompt = job.request.prompt || "No text";
  const text = make("p", { className: "queue-text" },
    make("span", { className: "one-line", textContent: prompt }), make("span", { className: "quiet" }));
  const cancelling = button("Cancel", cancel, { "aria-label": `Cancel: ${prompt}` });
  const row = make("li", { className: "row spread" }, text, cancelling);
  row.dataset.job = job.id;
  return row;
}

/** Shows the jobs; rows that stay are kept, so that a focus on them is. One job alone is in the picture area. */
function show(onError) {
  const waiting = jobs.unfinished();
  const list = byId("queue-list");
  byId("queue").hidden = waiting.length < 2;
  const rows = new Map([...list.children].map((row) => [row.dataset.job, row]));
  const next = waiting.map((job) => {
    const row = rows.get(job.id) ?? rowOf(job, () => jobs.cancel(job.id).catch(onError));
    row.querySelector(".quiet").textContent = stateOf(job);
    return row;
  });
  const same = next.length === list.children.length && next.every((row, i) => row === list.children[i]);
  if (!same) replaceRows(list, next);
}

/** Puts rows in place of others. If the focused row goes, the focus is on the one that comes in its place. */
function replaceRows(list, rows) {
  const focused = [...list.children].findIndex((row) => row.contains(document.activeElement));
  const kept = list.children[focused];
  list.replaceChildren(...rows);
  if (focused < 0) return;
  const row = rows.includes(kept) ? kept : rows[Math.min(focused, rows.length - 1)];
  (row?.querySelector("button") ?? byId("prompt")).focus({ preventScroll: true });
}

export function prepareQueue(onError) {
  for (const name of ["change", "gone"]) jobs.addEventListener(name, () => show(onError));
}
