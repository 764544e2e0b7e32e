// The page: its modes, and what its parts have to do with each other.

import { chosenModel, loadChoices } from "./choices.js";
import { announce, byId, dataUrl, prepareDialogs, reveal, tell } from "./dom.js";
import { FieldError } from "./fields.js";
import { changed, clearErrors, fillForm, mode, prepareForm, readForm, showFormError } from "./form.js";
import { loadMore, prepareGallery } from "./gallery.js";
import { prepareIntake } from "./intake.js";
import { jobs } from "./jobs.js";
import { editor, prepareEditor } from "./mask-editor.js";
import { pictureBlob } from "./pictures.js";
import { prepareQueue } from "./queue.js";
import { prepareSource, source } from "./source.js";
import { prepareStage } from "./stage.js";
import { prepareViewer } from "./viewer.js";

const SHOWN_FOR = 8000;

function setMode(name) {
  document.querySelector(`[name=mode][value=${name}]`).checked = true;
  document.body.dataset.mode = name;
  byId("source").hidden = name === "txt2img";
  clearErrors();
  changed();
}

/** The body of a job: the form, the picture and the mask. */
async function readJob() {
  const body = readForm();
  if (body.kind === "txt2img") return body;
  const { picture } = source;
  if (!picture) throw new FieldError(byId("source"), "Choose a picture to start from.");
  body.image = await dataUrl(picture.blob);
  if (body.kind === "inpaint") await readRepaint(body);
  return body;
}

async function readRepaint(body) {
  const { mask, outpaint } = await editor.read();
  if (!mask && !outpaint) throw new FieldError(byId("editor"), "Paint what is to be drawn anew, or extend an edge.");
  if (mask) body.mask = await dataUrl(mask);
  if (outpaint) (body.request.inpaint ??= {}).outpaint = outpaint;
}

async function submit(event) {
  event.preventDefault();
  const make = byId("make");
  if (make.getAttribute("aria-disabled") === "true") return;
  clearErrors();
  make.setAttribute("aria-disabled", "true");
  try {
    await jobs.submit(await readJob());
    reveal(byId("result"));
  } catch (error) {
    if (error.status === 429) return waitForRoom(error.wait ?? 5);
    showFormError(error);
  }
  make.setAttribute("aria-disabled", "false");
}

/** Says how long to wait when the queue is full, and then lets the button be used again. */
function waitForRoom(wait) {
  const make = byId("make");
  const text = make.textContent;
  tell(byId("form-error"), `The queue is full. Try again in ${wait} s.`);
  let left = wait;
  const count = () => {
    make.textContent = left > 0 ? `Again in ${left} s` : text;
    if (left > 0) return setTimeout(count, 1000, (left -= 1));
    tell(byId("form-error"), "");
    return make.setAttribute("aria-disabled", "false");
  };
  count();
}

/** Takes a picture to start from, and goes where it is used. */
async function start(blob, name, to) {
  setMode(to);
  if (!(await source.take(blob, name))) return;
  reveal(byId("source"));
  (to === "inpaint" ? byId("viewport") : byId("prompt")).focus({ preventScroll: true });
}

/** Puts the settings of a picture into the form; those of an earlier job with what it started from. */
async function recall({ job, options, model = job?.model, unused = [] }) {
  const kind = job?.kind ?? (mode() === "txt2img" || source.picture ? mode() : "txt2img");
  setMode(kind);
  if (job?.image) await recallPictures(job);
  const left = await fillForm(options, model);
  const lost = [...new Set([...unused, ...left])];
  const text = `The settings are in the form${lost.length ? `, but for: ${lost.join(", ")}` : ""}.`;
  announce(text);
  showNotice(text);
  byId("prompt").focus();
}

async function recallPictures(job) {
  await source.take(await pictureBlob(job.image), "the picture it started from");
  if (job.kind !== "inpaint") return;
  if (job.mask) await editor.load(await pictureBlob(job.mask));
  editor.outpaint.write(job.request.inpaint?.outpaint ?? {});
}

let noticed;
function showNotice(text) {
  tell(byId("notice"), text);
  clearTimeout(noticed);
  noticed = setTimeout(() => tell(byId("notice"), ""), SHOWN_FOR);
}

function showProblem(error) {
  announce(error.message);
  showNotice(error.message);
}

async function begin() {
  prepareDialogs();
  prepareForm();
  prepareSource();
  prepareEditor();
  prepareStage(showProblem);
  prepareQueue(showProblem);
  prepareGallery(showProblem);
  prepareViewer({ start, recall, problem: showProblem });
  prepareIntake({ start, recall }, showProblem);
  byId("modes").addEventListener("change", (event) => setMode(event.target.value));
  byId("model").addEventListener("change", changed);
  byId("form").addEventListener("submit", submit);
  if (matchMedia("(pointer: fine)").matches) byId("prompt").focus();
  await loadAll();
}

/** Fetches what there is to choose from and the earlier jobs; again when the page is come back to. */
async function loadAll() {
  setMode(document.querySelector("[name=mode]:checked").value);
  try {
    await Promise.all([loadChoices(), loadMore()]);
  } catch (error) {
    showFormError(error);
  }
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState !== "visible") return;
    const done = chosenModel().name ? jobs.load() : Promise.all([loadChoices(), jobs.load()]);
    done.catch(() => {});
  });
}

begin();
