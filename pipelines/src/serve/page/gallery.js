// Earlier pictures, newest first, a page at a time; jobs that came to nothing are told of in words.

import { byId, make } from "./dom.js";
import { isFinal } from "./events.js";
import { jobs } from "./jobs.js";
import { pictureImage, release } from "./pictures.js";
import { openPicture, setGallery } from "./viewer.js";

let shown = [];
let next = null;

const list = () => byId("gallery-list");

/** The tiles of a job: one for each picture, or one in words. */
function tilesOf(job) {
  const tiles = job.pictures.length ? job.pictures.map((picture, i) => pictureTile(job, picture, i)) : [wordTile(job)];
  for (const tile of tiles) tile.dataset.job = job.id;
  return tiles;
}

function pictureTile(job, picture, index) {
  const image = pictureImage(picture.url, "");
  const open = make("button", { type: "button", className: "tile", click: () => openPicture(job.id, index) }, image);
  open.setAttribute("aria-label", `${job.request.prompt || "Picture"}, seed ${picture.seed}`);
  return make("li", {}, open);
}

function wordTile(job) {
  const state = job.state === "failed" ? "Failed" : "Cancelled";
  const text = make("span", { textContent: job.request.prompt || "No text" });
  const open = make("button", { type: "button", className: "tile words", click: () => openPicture(job.id, 0) },
    make("strong", { textContent: state }), text);
  return make("li", {}, open);
}

function add(job) {
  if (shown.includes(job.id)) return;
  const place = shown.findIndex((id) => jobs.get(id).created < job.created);
  const at = place < 0 ? shown.length : place;
  const after = list().querySelector(`[data-job="${CSS.escape(shown[at] ?? "")}"]`);
  for (const tile of tilesOf(job)) list().insertBefore(tile, after);
  shown.splice(at, 0, job.id);
  byId("gallery").hidden = false;
}

function remove(id) {
  for (const tile of list().querySelectorAll(`[data-job="${CSS.escape(id)}"]`)) {
    release(tile);
    tile.remove();
  }
  shown = shown.filter((other) => other !== id);
  byId("gallery").hidden = !shown.length;
}

/** Fetches the next page of jobs. */
export async function loadMore() {
  const page = await jobs.load(next);
  next = page.next;
  byId("gallery-more").hidden = !next;
}

export function prepareGallery(onError) {
  jobs.addEventListener("change", ({ detail: { job } }) => isFinal(job) && add(job));
  jobs.addEventListener("gone", ({ detail: { id } }) => remove(id));
  byId("gallery-more").addEventListener("click", () => loadMore().catch(onError));
  setGallery(() => shown.flatMap((id) => {
    const count = Math.max(1, jobs.get(id).pictures.length);
    return Array.from({ length: count }, (_, index) => ({ id, index }));
  }));
}
