// A picture at its full size with its settings, and what can be done with it.

import { announce, byId, confirmed, download, make, openDialog } from "./dom.js";
import { jobs } from "./jobs.js";
import { fileName, pictureBlob, pictureImage, release, sized } from "./pictures.js";

let current = null;
let gallery = () => [];
let uses = {};

/** Sets what lists the pictures that can be gone through. */
export function setGallery(listed) {
  gallery = listed;
}

/** Opens a picture of a job. */
export function openPicture(id, index) {
  show({ id, index });
  if (!byId("viewer").open) {
    openDialog(byId("viewer")).then(() => {
      release(byId("viewer-picture"));
      byId("viewer-picture").replaceChildren();
    });
  }
}

function show(at) {
  current = at;
  const job = jobs.get(at.id);
  const picture = job.pictures[at.index];
  const holder = byId("viewer-picture");
  release(holder);
  const alt = job.request.prompt || "Picture";
  holder.replaceChildren(picture
    ? sized(make("div", { className: "shown" }, pictureImage(picture.url, alt)), picture.width, picture.height)
    : make("p", { className: "blank", textContent: job.error?.message ?? "There is no picture." }));
  byId("viewer-facts").replaceChildren(...factsOf(job, picture));
  const place = placeOf(at);
  action("previous").disabled = place <= 0;
  action("next").disabled = place < 0 || place >= gallery().length - 1;
  for (const name of ["start", "repaint", "download"]) action(name).disabled = !picture;
}

const action = (name) => byId("viewer").querySelector(`[data-action=${name}]`);
const placeOf = (at) => gallery().findIndex(({ id, index }) => id === at.id && index === at.index);

function factsOf(job, picture) {
  const { prompt, inpaint, seed, ...others } = job.request;
  const facts = { prompt, model: job.model, seed: picture?.seed ?? seed, ...others, ...inpaint };
  if (picture) facts.size = `${picture.width} × ${picture.height}`;
  const rows = Object.entries(facts).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const warnings = (job.warnings ?? []).map((warning) => ["warning", warning]);
  return [...rows, ...warnings].flatMap(([name, value]) => [
    make("dt", { textContent: name.replaceAll("_", " ") }),
    make("dd", { textContent: typeof value === "object" ? JSON.stringify(value) : String(value) }),
  ]);
}

/** The settings that make one picture of a job again, or the whole job's if it made none. */
function settingsOf(job, index, withSeed) {
  const picture = job.pictures[index];
  const { seed, num_images: count, ...options } = job.request;
  if (withSeed) options.seed = picture?.seed ?? seed;
  if (count !== undefined && (!withSeed || !picture)) options.num_images = count;
  return options;
}

/** Takes a picture of a job to start from. */
export async function useAsStart(job, index, mode) {
  const picture = job.pictures[index];
  try {
    await uses.start(await pictureBlob(picture.url), fileName(picture, job), mode);
  } catch (error) {
    uses.problem(error);
  }
}

async function remove(job) {
  const { length } = job.pictures;
  const question = length > 1 ? `All ${length} pictures of this job will be gone.` : "It will be gone for good.";
  if (!(await confirmed(question))) return;
  byId("viewer").close();
  await jobs.delete(job.id);
  announce("Deleted.");
}

function go(by) {
  const next = gallery()[placeOf(current) + by];
  if (next) show(next);
}

async function act(name) {
  const { id, index } = current;
  const job = jobs.get(id);
  const picture = job.pictures[index];
  if (name === "previous") return go(-1);
  if (name === "next") return go(1);
  if (name === "delete") return remove(job);
  if (name === "download") return download(await pictureBlob(picture.url), fileName(picture, job));
  byId("viewer").close();
  if (name === "start") return useAsStart(job, index, "img2img");
  if (name === "repaint") return useAsStart(job, index, "inpaint");
  return uses.recall({ job, options: settingsOf(job, index, name === "settings") });
}

/**
 * `use.start(blob, name, mode)` takes a picture to start from, `use.recall({ job, options })` its settings,
 * `use.problem(error)` tells of what went wrong.
 */
export function prepareViewer(use) {
  uses = use;
  byId("viewer").addEventListener("click", (event) => {
    const name = event.target.closest("[data-action]")?.dataset.action;
    if (name) act(name).catch(uses.problem);
  });
  byId("viewer").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowLeft") go(-1);
    if (event.key === "ArrowRight") go(1);
  });
}
