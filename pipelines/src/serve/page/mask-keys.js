// The mask editor's keys. They go by what is on the key (event.key), so that they are where other layouts have them,
// and are heard in the editor alone, except for undo and redo.

import { announce, byId } from "./dom.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const FAR = 10;

/** Whether a key belongs to a field that is written in. */
function isWritten(element) {
  if (element.matches("textarea, select")) return true;
  return element.matches("input") && !["radio", "checkbox", "range", "file"].includes(element.type);
}

/** The letter of a key; on layouts without Latin letters, the one at its place. */
function letterOf(event) {
  const key = event.key.toLowerCase();
  return /^[\x20-\x7e]$/.test(key) ? key : event.code.replace(/^Key/, "").toLowerCase();
}

/** Painting with the arrow keys: the brush paints while the space bar is held, or after Enter until the next. */
class KeyBrush {
  #held = false;
  #latched = false;

  constructor(editor) {
    this.editor = editor;
  }

  get #isDown() {
    return this.#held || this.#latched;
  }

  move([dx, dy], far) {
    const { editor } = this;
    const by = far ? FAR : 1;
    if (editor.tool === "move") return editor.view.pan(-dx * by * 4, -dy * by * 4);
    const inside = (value, most) => Math.min(most, Math.max(0, value));
    const from = editor.cursor;
    const x = inside(Math.floor(from.x) + dx * by, editor.mask.width - 1);
    const y = inside(Math.floor(from.y) + dy * by, editor.mask.height - 1);
    editor.cursor = { x, y };
    if (this.#isDown) editor.line({ x: Math.floor(from.x), y: Math.floor(from.y) }, editor.cursor);
    editor.view.reveal(editor.cursor);
    editor.showBrush(true);
    return announce(`${x}, ${y}`);
  }

  press() {
    if (this.#held) return;
    if (!this.#isDown) this.#begin();
    this.#held = true;
  }

  lift() {
    const wasDown = this.#isDown;
    this.#held = false;
    if (wasDown && !this.#isDown) this.#end();
  }

  latch() {
    if (!this.#isDown) this.#begin();
    this.#latched = !this.#latched;
    announce(this.#latched ? "The brush is down." : "The brush is up.");
    if (!this.#isDown) this.#end();
  }

  release() {
    if (!this.#isDown) return;
    this.#held = false;
    this.#latched = false;
    this.#end();
  }

  #begin() {
    const at = { x: Math.floor(this.editor.cursor.x), y: Math.floor(this.editor.cursor.y) };
    this.editor.cursor = at;
    this.editor.mask.begin();
    this.editor.line(at, at);
    this.editor.showBrush(true);
  }

  #end() {
    this.editor.mask.commit();
    this.editor.tellPainted();
  }
}

/** What keys do anywhere in the editor. */
const actions = (editor) => ({
  "[": () => (editor.size -= editor.size > 20 ? 5 : 1),
  "]": () => (editor.size += editor.size >= 20 ? 5 : 1),
  "+": () => editor.view.zoom(1.25),
  "=": () => editor.view.zoom(1.25),
  "-": () => editor.view.zoom(0.8),
  0: () => editor.view.fit(),
  b: () => (editor.tool = "brush"),
  e: () => (editor.tool = "eraser"),
  m: () => (editor.tool = "move"),
});

export function prepareMaskKeys(editor) {
  const viewport = byId("viewport");
  const brush = new KeyBrush(editor);
  const inEditor = actions(editor);

  viewport.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = STEPS[event.key];
    if (step) brush.move(step, event.shiftKey);
    else if (event.key === " ") brush.press();
    else if (event.key === "Enter" && !event.repeat) brush.latch();
    else return;
    event.preventDefault();
  });
  viewport.addEventListener("keyup", (event) => {
    if (event.key === " ") brush.lift();
  });
  viewport.addEventListener("focus", () => editor.showBrush(viewport.matches(":focus-visible")));
  viewport.addEventListener("blur", () => {
    brush.release();
    editor.showBrush(false);
  });

  byId("editor").addEventListener("keydown", (event) => {
    if (isWritten(event.target) || isCommand(event) || event.metaKey) return;
    const action = inEditor[letterOf(event)];
    if (!action) return;
    action();
    event.preventDefault();
  });
  document.addEventListener("keydown", (event) => undoOrRedo(event, editor));
}

/** With Control or Command. Both Control and Alt are AltGr, with which some layouts write brackets. */
const isCommand = (event) => (event.ctrlKey || event.metaKey) && !event.altKey;

function undoOrRedo(event, editor) {
  const seen = editor.mask && document.body.dataset.mode === "inpaint" && !document.querySelector("dialog[open]");
  if (!seen || !isCommand(event) || isWritten(event.target)) return;
  const letter = letterOf(event);
  if (letter === "y" || (letter === "z" && event.shiftKey)) editor.redo();
  else if (letter === "z") editor.undo();
  else return;
  event.preventDefault();
}
