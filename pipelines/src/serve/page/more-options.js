// Fields for all other options that the server lists, made when they are first needed.

import { getJson } from "./api.js";
import { byId, make } from "./dom.js";

/** Options that the page has better means for. */
const ELSEWHERE = new Set(["loras", "inpaint.outpaint"]);
let made = null;

/** Makes the fields, once. */
export function moreOptions() {
  made ??= fill().catch((error) => {
    made = null;
    throw error;
  });
  return made;
}

/** Options of inpainting include those of the other kinds. */
async function fill() {
  const options = await getJson("/api/options?kind=inpaint");
  const groups = new Map();
  for (const option of options) {
    const path = option.path.join(".");
    if (ELSEWHERE.has(path) || document.querySelector(`[data-field="request.${CSS.escape(path)}"]`)) continue;
    const heading = option.heading ?? (option.path.length > 1 ? option.path[0] : "Other");
    if (!groups.has(heading)) groups.set(heading, []);
    groups.get(heading).push(fieldOf(option, path));
  }
  const sets = [...groups].map(([heading, fields]) => (
    make("fieldset", { className: "fields" }, make("legend", { textContent: titled(heading) }), ...fields)
  ));
  byId("more-fields").replaceChildren(...sets);
}

const titled = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ");

function fieldOf(option, path) {
  const id = `option-${path.replaceAll(".", "-")}`;
  const help = make("p", { id: `${id}-help`, className: "quiet", textContent: option.help });
  const input = inputOf(option);
  Object.assign(input, { id });
  Object.assign(input.dataset, { field: `request.${path}`, kind: option.kind });
  input.setAttribute("aria-describedby", help.id);
  const name = titled(option.name);
  const field = make("div", { className: option.path[0] === "inpaint" ? "field wide only-repaint" : "field wide" });
  if (option.kind === "flag") field.append(make("label", { className: "check" }, input, ` ${name}`), help);
  else field.append(make("label", { htmlFor: id, textContent: name }), input, help);
  return field;
}

function inputOf(option) {
  const { kind, choices, default: usual } = option;
  if (kind === "flag") return flagOf(option);
  if (kind === "choice") {
    const empty = make("option", { value: "", textContent: usual || "not given" });
    const named = choices.map((choice) => make("option", { value: choice, textContent: choice }));
    return make("select", {}, empty, ...named);
  }
  const placeholder = usual ?? "";
  if (kind === "json") return make("textarea", { rows: 2, placeholder, spellcheck: false });
  return make("input", { type: "text", placeholder, inputMode: kind === "count" ? "numeric" : "text" });
}

/** A flag stands for a value; one that turns something off stands for false. */
function flagOf(option) {
  const turnsOff = option.name.startsWith("no_") && option.path.at(-1) !== option.name;
  const input = make("input", { type: "checkbox" });
  const value = option.value ?? !turnsOff;
  input.dataset.value = JSON.stringify(value);
  input.dataset.unset = JSON.stringify(value === false);
  return input;
}
