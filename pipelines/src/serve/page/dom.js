// Small helpers for the document: finding and making elements, dialogs, files, and what screen readers are told.

export const byId = (id) => document.getElementById(id);

/** Makes an element. Names with a hyphen and `role` become attributes, functions become listeners. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function button(text, click, properties = {}) {
  return make("button", { type: "button", textContent: text, click, ...properties });
}

/** Tells screen readers, without moving the focus. */
export function announce(text) {
  byId("announcements").textContent = text;
}

/** Shows a text in a paragraph that is hidden while it has none. */
export function tell(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

export function seconds(number) {
  if (number < 90) return `${Math.max(1, Math.round(number))} s`;
  return number < 5400 ? `${Math.round(number / 60)} min` : `${(number / 3600).toFixed(1)} h`;
}

export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}

/** Opens a dialog, each `.close` button of which closes it, and resolves when it is closed, with its return value. */
export function openDialog(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

export function prepareDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const closing of dialog.querySelectorAll(".close")) closing.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }
}

export async function confirmed(text) {
  const dialog = byId("confirm");
  byId("confirm-text").textContent = text;
  byId("confirm-yes").onclick = () => dialog.close("yes");
  return (await openDialog(dialog)) === "yes";
}

export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** Scrolls an element into view, if it is out of it. */
export function reveal(element) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
}
