// The form: what it asks for, as a request; settings that are recalled into it; hints at words that the model does not
// know.

import {
  chooseModel, chooseUsualModel, chosenModel, modelName, prepareLoras, readLoras, showDefaults, writeLoras,
} from "./choices.js";
import { button, byId, make, tell } from "./dom.js";
import { clearError, FieldError, pathOf, readField, setAt, showError, valueAt, writeField } from "./fields.js";
import { moreOptions } from "./more-options.js";
import { replaced, unknownWords } from "./vocabulary.js";

const EXAMPLES = [
  "a fox on a blue background",
  "a castle at sunset",
  "an octopus in space",
  "a panda on a pink background, flat style",
];
const PAUSE_IN_TYPING = 400;

const form = byId("form");
const fields = () => [...form.querySelectorAll("[data-kind]")];
export const mode = () => document.body.dataset.mode;

/** Whether a field has a meaning in this mode. */
function applies(element) {
  const [first] = pathOf(element);
  if (first === "strength") return mode() !== "txt2img";
  return first !== "inpaint" || mode() === "inpaint";
}

/** What the form asks for, without pictures. Throws a FieldError at what is wrong. */
export function readForm() {
  const request = {};
  for (const element of fields().filter(applies)) {
    const value = readField(element);
    if (value !== undefined) setAt(request, pathOf(element), value);
  }
  request.prompt ??= "";
  if (!request.prompt) throw new FieldError(byId("prompt"), "Write what should be in the picture.");
  const loras = readLoras();
  if (loras.length) request.loras = loras;
  return { kind: mode(), model: modelName(), request };
}

/** Puts recalled settings into the form, all others at the model's own. Gives names of those without a place in it. */
export async function fillForm(options, model) {
  if (Object.keys(options).some((name) => !valueAtMain(name))) await moreOptions();
  const unused = [];
  if (model && !chooseModel(model)) unused.push(`model ${model}`);
  const left = structuredClone(options);
  for (const element of fields()) {
    const path = pathOf(element);
    writeField(element, valueAt(options, path));
    drop(left, path);
  }
  writeLoras(options.loras ?? []);
  drop(left, ["loras"]);
  drop(left, ["inpaint", "outpaint"]);
  unused.push(...Object.keys(left));
  changed();
  return unused;
}

const valueAtMain = (name) => byId("form").querySelector(`[data-field="request.${CSS.escape(name)}"]`);

/** Takes a path out of an object, and what has become empty by it. */
function drop(object, path) {
  if (path.length > 1) {
    const inner = object[path[0]];
    if (typeof inner !== "object" || inner === null) return;
    drop(inner, path.slice(1));
    if (Object.keys(inner).length) return;
  }
  delete object[path[0]];
}

/** Shows an error of the server or of a field where it belongs. */
export function showFormError(error) {
  const element = error instanceof FieldError ? error.element : elementOf(error.field);
  if (element === byId("source")) return showSectionError("source", error.message);
  if (element === byId("editor")) return showSectionError("mask", error.message);
  if (element) return showError(element, error.message);
  tell(byId("form-error"), error.message);
  return byId("form-error").focus();
}

function showSectionError(name, message) {
  tell(byId(`${name}-error`), message);
  byId(name === "source" ? "source" : "editor").focus();
}

/** The element of a field that the server names, or of what that is a part of. */
function elementOf(field) {
  const parts = (field ?? "").split(".");
  for (; parts.length; parts.pop()) {
    const element = document.querySelector(`[data-field="${CSS.escape(parts.join("."))}"]`);
    if (element) return element.closest("[hidden]") ? null : element;
  }
  return null;
}

export function clearErrors() {
  for (const element of document.querySelectorAll("[aria-invalid]")) clearError(element);
  for (const id of ["form-error", "source-error", "mask-error"]) tell(byId(id), "");
}

/** Brings up to date what depends on the fields. */
export function changed() {
  showDefaults(mode());
  byId("examples").hidden = !chosenModel().words.length || mode() !== "txt2img";
  const set = fields().filter((element) => element.closest("#settings") && applies(element) && isSet(element));
  const names = set.map((element) => nameOf(element));
  if (modelName()) names.unshift(modelName());
  names.push(...readLoras().map(({ name }) => name));
  byId("settings-set").textContent = names.join(", ");
  byId("reset").disabled = !names.length;
  showUnknown();
}

const isSet = (element) => (element.dataset.kind === "flag" ? element.checked : element.value.trim() !== "");

function nameOf(element) {
  const label = element.labels[0].textContent.trim().toLowerCase();
  return element.type === "number" || element.tagName === "SELECT" ? `${label} ${element.value}` : label;
}

let toldUnknown = "[]";

/** Tells of unknown words. What is told already stays, since it has buttons that may be pressed right now. */
function showUnknown() {
  const unknown = unknownWords(byId("prompt").value, new Set(chosenModel().words));
  const told = JSON.stringify(unknown);
  if (told === toldUnknown) return;
  toldUnknown = told;
  const parts = unknown.map(({ word, nearest }) => {
    const offers = nearest.map((other) => button(other, () => replace(word, other)));
    const text = `The model does not know “${word}”.${offers.length ? " Rather:" : ""}`;
    return make("p", { className: "row" }, text, ...offers);
  });
  byId("unknown").replaceChildren(...parts);
}

function replace(word, other) {
  byId("prompt").value = replaced(byId("prompt").value, word, other);
  byId("prompt").focus();
  changed();
}

export function prepareForm() {
  let typing;
  form.addEventListener("input", (event) => {
    if (event.target.dataset.kind) clearError(event.target);
    tell(byId("form-error"), "");
    clearTimeout(typing);
    typing = setTimeout(changed, PAUSE_IN_TYPING);
  });
  // The prompt is heard as it is written; what shows up when it is left would move what is being clicked.
  form.addEventListener("change", (event) => event.target !== byId("prompt") && changed());
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  form.addEventListener("keydown", (event) => {
    if (event.target === byId("prompt") || event.key !== "Enter") return;
    if (event.ctrlKey || event.metaKey) form.requestSubmit();
  });
  byId("examples").append(make("span", { className: "quiet", textContent: "Try" }), ...EXAMPLES.map(exampleChip));
  byId("more").addEventListener("toggle", () => moreOptions().catch(showFormError));
  byId("reset").addEventListener("click", reset);
  prepareLoras();
}

const exampleChip = (text) => button(text, () => {
  byId("prompt").value = text;
  byId("prompt").focus();
  changed();
}, { className: "chip" });

function reset() {
  for (const element of fields()) if (element.closest("#settings")) writeField(element, undefined);
  writeLoras([]);
  chooseUsualModel();
  changed();
  byId("settings").querySelector("summary").focus();
}
