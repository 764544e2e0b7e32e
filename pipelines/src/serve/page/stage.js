// The picture area: the job under way with its progress, its time left and its preview, and then what has come of it.

import { getBlob } from "./api.js";
import { chosenModel } from "./choices.js";
import { announce, button, byId, make, seconds, tell } from "./dom.js";
import { isFinal } from "./events.js";
import { jobs } from "./jobs.js";
import { pictureImage, release, showBlob, sized } from "./pictures.js";
import { openPicture, useAsStart } from "./viewer.js";

let live = null;
let preview = null;

/** A line on where a job is. */
export function stateOf(job) {
  if (job.state === "queued") {
    const before = job.position ?? 0;
    return before ? `Waiting, ${before} before it` : "Next in the queue";
  }
  if (job.state !== "running") return { done: "Done", failed: "Failed", cancelled: "Cancelled" }[job.state];
  const { progress } = job;
  if (!progress?.steps) return "Starting";
  const of = progress.pictures > 1 ? `Picture ${progress.picture + 1} of ${progress.pictures}, step` : "Step";
  const left = progress.eta > 0 ? `, about ${seconds(progress.eta)} left` : "";
  return `${of} ${progress.step} of ${progress.steps}${left}`;
}

function fraction({ progress }) {
  if (!progress?.steps) return null;
  const pictures = Math.max(1, progress.pictures ?? 1);
  return Math.min(1, ((progress.picture ?? 0) + progress.step / progress.steps) / pictures);
}

/** The size that a job's pictures will have, as far as it can be known. */
function sizeOf(job) {
  const model = chosenModel();
  return [job.request.width ?? model.width ?? 512, job.request.height ?? model.height ?? 512];
}

function showLive(job) {
  const isNew = live !== job?.id;
  live = job?.id ?? null;
  byId("live").hidden = !job;
  byId("finished").hidden = job?.state === "running";
  document.title = job?.state === "running" ? `${Math.round(100 * (fraction(job) ?? 0))} % · Tweedie` : "Tweedie";
  if (isNew) clearPreview();
  if (!job) return;
  byId("live-text").textContent = stateOf(job);
  byId("live-cancel").dataset.job = job.id;
  const share = fraction(job);
  byId("live-progress").hidden = job.state !== "running";
  if (share === null) byId("live-progress").removeAttribute("value");
  else byId("live-progress").value = share;
  if (job.state === "running") showPreview(job);
}

function clearPreview() {
  release(byId("live-preview"));
  byId("live-preview").replaceChildren();
  preview = null;
}

/** Shows the newest preview. While one is fetched others are passed over. */
async function showPreview(job) {
  if (!byId("live-preview").firstChild) {
    const image = make("img", { alt: "Preview", hidden: true });
    byId("live-preview").append(sized(make("div", { className: "shown waiting" }, image), ...sizeOf(job)));
  }
  if (!job.preview || preview === "fetching" || preview === job.preview) return;
  preview = "fetching";
  try {
    const blob = await getBlob(job.preview);
    const image = byId("live-preview").querySelector("img");
    if (live === job.id && image) {
      await showBlob(image, blob);
      image.hidden = false;
    }
  } catch {
    // A preview that is gone is of no use any more; the next one follows.
  }
  if (preview !== "fetching") return;
  preview = job.preview;
  const newest = jobs.get(job.id);
  if (live === job.id && newest?.preview !== preview && newest?.state === "running") showPreview(newest);
}

function showFinished(job) {
  const element = byId("finished");
  release(element);
  element.dataset.job = job.id;
  const parts = [];
  if (job.state === "failed") parts.push(make("p", { className: "error", textContent: failureOf(job) }));
  const pictures = job.pictures.map((_, i) => shown(job, i));
  if (pictures.length) parts.push(make("div", { className: "pictures" }, ...pictures));
  for (const warning of job.warnings ?? []) parts.push(make("p", { className: "note", textContent: warning }));
  if (job.pictures.length === 1) parts.push(actionsOf(job));
  if (!parts.length) parts.push(make("p", { className: "blank", textContent: "Cancelled." }));
  element.replaceChildren(...parts);
}

export const failureOf = (job) => `This picture failed: ${job.error?.message ?? "the server does not say why."}`;

function shown(job, index) {
  const picture = job.pictures[index];
  const image = pictureImage(picture.url, job.request.prompt || "Picture");
  const open = make("button", { type: "button", className: "shown", click: () => openPicture(job.id, index) }, image);
  open.setAttribute("aria-label", `Open: ${job.request.prompt || "picture"}, seed ${picture.seed}`);
  return sized(open, picture.width, picture.height);
}

function actionsOf(job) {
  const [picture] = job.pictures;
  const facts = `Seed ${picture.seed}, ${picture.width} × ${picture.height}`;
  return make("div", { className: "row centre" },
    make("span", { className: "quiet", textContent: facts }),
    button("Details", () => openPicture(job.id, 0)),
    button("Start from it", () => useAsStart(job, 0, "img2img")),
    button("Repaint a part", () => useAsStart(job, 0, "inpaint")));
}

function announceChange(job, before) {
  const text = String(job.request.prompt ?? "").slice(0, 80);
  const told = { queued: `Queued: ${text}`, running: `Started: ${text}`, done: `Finished: ${text}`,
    failed: failureOf(job), cancelled: `Cancelled: ${text}` };
  if (before?.state !== job.state) return announce(told[job.state]);
  const quarter = (share) => Math.floor(4 * (share ?? 0));
  const now = quarter(fraction(job));
  if (now > quarter(fraction(before)) && now < 4) announce(`${now * 25} %`);
}

export function prepareStage(onError) {
  jobs.addEventListener("change", ({ detail: { job, before } }) => {
    const wasSeen = before && !isFinal(before);
    if (wasSeen || !isFinal(job)) announceChange(job, before);
    if (isFinal(job) && wasSeen) showFinished(job);
    showLive(jobs.unfinished()[0]);
  });
  jobs.addEventListener("gone", ({ detail: { id } }) => {
    showLive(jobs.unfinished()[0]);
    if (byId("finished").dataset.job !== id) return;
    release(byId("finished"));
    byId("finished").replaceChildren(make("p", { className: "blank", textContent: "Deleted." }));
  });
  jobs.addEventListener("connection", ({ detail: { ok } }) => {
    tell(byId("connection"), ok ? "" : "The connection is lost. Trying again …");
  });
  byId("live-cancel").addEventListener("click", (event) => jobs.cancel(event.target.dataset.job).catch(onError));
}
