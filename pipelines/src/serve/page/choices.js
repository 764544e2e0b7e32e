// Models, samplers and LoRAs to choose from, and what the chosen model takes where a field is left empty.

import { getJson } from "./api.js";
import { button, byId, make } from "./dom.js";

let models = [];
let usual = null;

/** The chosen model; an empty one before models are known. */
export function chosenModel() {
  return models.find((model) => model.name === byId("model").value) ?? { name: "", words: [] };
}

/** The chosen model's name, or nothing if it is the server's usual one. */
export function modelName() {
  const { name } = chosenModel();
  return name && name !== usual ? name : undefined;
}

/** Chooses a model by name, if there is one of that name. Gives whether there is. */
export function chooseModel(name) {
  const found = models.some((model) => model.name === name);
  if (found) byId("model").value = name;
  byId("model").dispatchEvent(new Event("change"));
  return found;
}

export const chooseUsualModel = () => chooseModel(usual);

export async function loadChoices() {
  const [answer, schedulers, loras] = await Promise.all(
    ["/api/models", "/api/schedulers", "/api/loras"].map((path) => getJson(path)),
  );
  models = answer.models.map((model) => ({ ...model, words: model.words ?? [] }));
  usual = answer.default;
  byId("model").replaceChildren(...models.map(modelChoice));
  byId("model").value = usual ?? models[0]?.name ?? "";
  const names = schedulers.map(({ name, label }) => make("option", { value: name, textContent: label ?? name }));
  byId("scheduler").replaceChildren(make("option", { value: "", textContent: "The model’s own" }), ...names);
  byId("lora-choice").replaceChildren(...loras.loras.map(({ name }) => make("option", { textContent: name })));
  byId("loras").hidden = !loras.loras.length;
  byId("model").dispatchEvent(new Event("change"));
}

function modelChoice({ name, bytes, loaded }) {
  const size = bytes ? `${Math.max(1, Math.round(bytes / 1e6)).toLocaleString("en")} MB` : null;
  const notes = [size, loaded ? "loaded" : null].filter(Boolean).join(", ");
  return make("option", { value: name, textContent: notes ? `${name} (${notes})` : name });
}

/** Shows as placeholders what the model takes where a field is empty. */
export function showDefaults(mode) {
  const model = chosenModel();
  const own = "the model’s";
  const ofPicture = mode === "txt2img" ? null : "the picture’s";
  const placeholders = {
    width: ofPicture ?? model.width ?? own,
    height: ofPicture ?? model.height ?? own,
    steps: model.steps ?? own,
    guidance: model.guidance_scale ?? own,
    strength: (mode === "inpaint" ? null : model.strength) ?? own,
  };
  for (const [id, text] of Object.entries(placeholders)) byId(id).placeholder = text;
  const scheduler = [...byId("scheduler").options].find(({ value }) => value && value === model.scheduler);
  const [first] = byId("scheduler").options;
  if (first) first.textContent = scheduler ? `The model’s own (${scheduler.textContent})` : "The model’s own";
}

/** The LoRAs that were added, as a request has them. */
export function readLoras() {
  return [...byId("lora-list").children].map((row) => {
    const weight = row.querySelector("input").valueAsNumber;
    return { name: row.dataset.name, weight: Number.isNaN(weight) ? 1 : weight };
  });
}

export function writeLoras(loras) {
  byId("lora-list").replaceChildren();
  for (const lora of loras) addLora(lora);
}

function addLora({ name, weight = 1 }) {
  const id = `lora-${name}`;
  const input = make("input", { id, type: "number", step: "any", value: String(weight), className: "short" });
  const remove = button("Remove", () => {
    row.remove();
    byId("lora-choice").focus();
    byId("lora-list").dispatchEvent(new Event("change", { bubbles: true }));
  }, { "aria-label": `Remove ${name}` });
  const row = make("li", { className: "row" }, make("label", { htmlFor: id, textContent: name }), input, remove);
  row.dataset.name = name;
  byId("lora-list").append(row);
  byId("loras").hidden = false;
}

export function prepareLoras() {
  byId("lora-add").addEventListener("click", () => {
    const name = byId("lora-choice").value;
    const taken = readLoras().some((lora) => lora.name === name);
    if (name && !taken) addLora({ name });
    byId("lora-list").dispatchEvent(new Event("change", { bubbles: true }));
  });
}
