// Fields of the form and the JSON values that they stand for, by the kinds that the server gives its options; errors
// beside them.

import { make } from "./dom.js";

/** What is wrong with a field. */
export class FieldError extends Error {
  constructor(element, message) {
    super(message);
    this.element = element;
  }
}

const list = (text) => text.split(",").map((part) => part.trim()).filter(Boolean);
const pair = (separator) => ({
  parse: (text) => {
    const parts = text.split(separator).map((part) => number(part.trim()));
    if (parts.length !== 2) throw new Error(`Give two numbers with ${separator} between.`);
    return parts;
  },
  write: (value) => value.join(separator),
});
const same = { parse: (text) => text, write: String };
const numeric = { parse: number, write: String };
const sides = {
  parse: (text) => Object.fromEntries(list(text).map((part) => {
    const [side, width] = part.split("=");
    return [side, number(width ?? "")];
  })),
  write: (value) => Object.entries(value).map((entry) => entry.join("=")).join(","),
};

/** How the text of a field becomes a value, and back. */
const KINDS = {
  text: same,
  name: same,
  choice: same,
  count: numeric,
  seed: numeric,
  number: numeric,
  counts: { parse: (text) => list(text).map(number), write: (value) => value.join(",") },
  numbers: { parse: (text) => list(text).map(number), write: (value) => value.join(",") },
  names: {
    parse: (text) => list(text).map((part) => (/^\d+$/.test(part) ? Number(part) : part)),
    write: (value) => value.join(","),
  },
  interval: pair(","),
  corner: pair(","),
  size: pair("x"),
  margins: sides,
  json: { parse: parseJson, write: (value) => JSON.stringify(value, null, 1) },
};

/** JSON has no infinities; they are texts to the server. */
function number(text) {
  if (/^-?inf$/.test(text)) return text;
  const value = text === "" ? NaN : Number(text);
  if (Number.isNaN(value)) throw new Error("Give a number.");
  return value;
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("This is not JSON.");
  }
}

export const pathOf = (element) => element.dataset.field.split(".").slice(1);

/** The value of a field, or nothing if it is left to the model. */
export function readField(element) {
  const { kind } = element.dataset;
  if (kind === "flag") return element.checked ? JSON.parse(element.dataset.value) : undefined;
  if (!element.validity.valid) throw new FieldError(element, element.validationMessage);
  const text = element.value.trim();
  if (text === "") return undefined;
  try {
    return KINDS[kind].parse(text);
  } catch (error) {
    throw new FieldError(element, error.message);
  }
}

export function writeField(element, value) {
  clearError(element);
  const none = value === undefined || value === null;
  if (element.dataset.kind === "flag") {
    element.checked = !none && JSON.stringify(value) !== element.dataset.unset;
    if (element.checked) element.dataset.value = JSON.stringify(value);
    return;
  }
  const text = none ? "" : KINDS[element.dataset.kind].write(value);
  if (element.tagName === "SELECT" && ![...element.options].some((choice) => choice.value === text)) {
    element.append(make("option", { value: text, textContent: text }));
  }
  element.value = text;
}

/** The value at a path of an object. */
export function valueAt(object, path) {
  return path.reduce((inner, name) => inner?.[name], object);
}

export function setAt(object, path, value) {
  const inner = path.slice(0, -1).reduce((outer, name) => (outer[name] ??= {}), object);
  inner[path.at(-1)] = value;
}

/** Says beside a field what is wrong with it, and goes there. */
export function showError(element, message) {
  const id = `${element.id}-error`;
  let told = document.getElementById(id);
  if (!told) {
    told = make("p", { id, className: "error", role: "alert" });
    element.after(told);
  }
  told.textContent = message;
  told.hidden = false;
  element.setAttribute("aria-invalid", "true");
  const described = new Set((element.getAttribute("aria-describedby") ?? "").split(" ").filter(Boolean)).add(id);
  element.setAttribute("aria-describedby", [...described].join(" "));
  for (let outer = element.closest("details"); outer; outer = outer.parentElement.closest("details")) outer.open = true;
  element.focus();
}

export function clearError(element) {
  element.removeAttribute("aria-invalid");
  const told = document.getElementById(`${element.id}-error`);
  if (told) told.hidden = true;
}
