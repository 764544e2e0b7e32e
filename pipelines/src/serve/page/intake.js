// Pictures that are dropped or pasted: a question what to do with them.

import { settingsOf } from "./api.js";
import { byId, openDialog } from "./dom.js";
import { editor } from "./mask-editor.js";
import { release, showBlob } from "./pictures.js";

const isPicture = (file) => file.type.startsWith("image/");
const action = (name) => byId("intake").querySelector(`[data-action=${name}]`);

/** Asks what to do with a picture and does it. */
async function takeIn(file, use) {
  const name = file.name || "pasted picture";
  if (document.querySelector("dialog[open]")) return;
  showBlob(byId("intake-picture"), file);
  action("mask").hidden = !editor.mask || document.body.dataset.mode !== "inpaint";
  const told = lookInto(file);
  const chosen = await openDialog(byId("intake"));
  release(byId("intake-picture"));
  if (chosen === "mask") await editor.load(file);
  if (chosen === "start") await use.start(file, name, "img2img");
  if (chosen === "repaint") await use.start(file, name, "inpaint");
  if (chosen === "settings" || chosen === "reseed") await recall(await told, chosen === "settings", use);
}

async function recall(found, withSeed, use) {
  const { seed, ...options } = found.options;
  if (withSeed && seed !== undefined) options.seed = seed;
  await use.recall({ options, model: found.model, unused: found.unused ?? [] });
}

/** What the file says of how it was made; the buttons for it can be used if it says something. */
async function lookInto(file) {
  const buttons = [action("settings"), action("reseed")];
  for (const element of buttons) element.disabled = true;
  byId("intake-text").textContent = "Looking for its settings …";
  try {
    const found = await settingsOf(file);
    for (const element of buttons) element.disabled = false;
    const { prompt } = found.options;
    byId("intake-text").textContent = prompt ? `Made of: ${prompt}` : "Its settings are in it.";
    return found;
  } catch (error) {
    const nothing = "This file does not say how it was made.";
    byId("intake-text").textContent = error.status === 400 ? nothing : error.message;
    return null;
  }
}

const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");

export function prepareIntake(use, onError) {
  byId("intake").addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-action]")?.dataset.action;
    if (chosen) byId("intake").close(chosen);
  });
  const drop = (shown) => (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    byId("drop").hidden = !shown;
  };
  document.addEventListener("dragenter", drop(true));
  document.addEventListener("dragover", drop(true));
  document.addEventListener("dragleave", (event) => event.relatedTarget === null && drop(false)(event));
  const take = (event, files) => {
    const file = [...(files ?? [])].find(isPicture);
    if (!file) return;
    event.preventDefault();
    takeIn(file, use).catch(onError);
  };
  document.addEventListener("drop", (event) => {
    drop(false)(event);
    take(event, event.dataTransfer?.files);
  });
  document.addEventListener("paste", (event) => take(event, event.clipboardData?.files));
}
