// The mask editor: its tools, its canvas, and painting by mouse, pen and fingers. The mask outlives changes of the
// form.

import { byId, download, tell } from "./dom.js";
import { Mask } from "./mask.js";
import { prepareMaskKeys } from "./mask-keys.js";
import { greyPng, readMask } from "./mask-file.js";
import { MaskView } from "./mask-view.js";
import { Outpaint } from "./outpaint.js";
import { release, showBlob } from "./pictures.js";
import { source } from "./source.js";

const LARGEST_BRUSH = 256;
/** The mask is shown in stripes of two colours, so that it is seen on a picture of any. */
const DARK_STRIPE = [156, 31, 102, 200];
const LIGHT_STRIPE = [255, 235, 245, 150];

class MaskEditor {
  mask = null;
  cursor = { x: 0, y: 0 };
  outpaint = new Outpaint((settle) => this.view.extend(this.outpaint.margins, settle));
  view = new MaskView((outer) => this.#moved(outer));

  get tool() {
    return document.querySelector("[name=tool]:checked").value;
  }

  set tool(name) {
    document.querySelector(`[name=tool][value=${name}]`).checked = true;
    byId("viewport").dataset.tool = name;
    this.showBrush();
  }

  get size() {
    return Number(byId("brush-size").value);
  }

  set size(size) {
    const whole = Math.min(LARGEST_BRUSH, Math.max(1, Math.round(size) || 1));
    byId("brush-size").value = String(whole);
    byId("brush-size-number").value = String(whole);
    this.showBrush();
  }

  /** The brush's width in pixels of the picture. */
  get brush() {
    const inScreen = byId("brush-unit").value === "screen";
    return Math.max(1, Math.round(inScreen ? this.size / this.view.scale : this.size));
  }

  /** Shows a picture. On one of the same size the mask is cleared so that it can be had back. */
  show(picture) {
    byId("editor").hidden = !picture;
    if (!picture) {
      this.mask = null;
      release(byId("editor-picture"));
      return;
    }
    const { width, height } = picture;
    showBlob(byId("editor-picture"), picture.blob);
    if (this.mask?.width === width && this.mask.height === height) this.mask.clear();
    else this.#renew(width, height);
    this.outpaint.clear();
    this.view.show(width, height);
  }

  #renew(width, height) {
    Object.assign(byId("mask"), { width, height });
    this.mask = new Mask(width, height, (box) => this.#draw(box));
    this.cursor = { x: Math.floor(width / 2), y: Math.floor(height / 2) };
    this.size = Math.max(1, Math.round(Math.min(width, height) / 8));
    byId("rectangle-width").value = String(Math.ceil(width / 2));
    byId("rectangle-height").value = String(Math.ceil(height / 2));
    this.#told();
  }

  line(from, to) {
    this.mask.line(from, to, this.brush, this.tool === "eraser" ? 0 : 255);
  }

  #draw({ left, top, right, bottom }) {
    const [width, height] = [right - left, bottom - top];
    const image = new ImageData(width, height);
    const stripe = Math.max(1, Math.round(Math.max(this.mask.width, this.mask.height) / 96));
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        if (!this.mask.data[(y + top) * this.mask.width + x + left]) continue;
        const isDark = Math.floor((x + left + y + top) / stripe) % 2;
        image.data.set(isDark ? DARK_STRIPE : LIGHT_STRIPE, (y * width + x) * 4);
      }
    }
    byId("mask").getContext("2d").putImageData(image, left, top);
    this.#told();
  }

  #told() {
    byId("undo").disabled = !this.mask.canUndo;
    byId("redo").disabled = !this.mask.canRedo;
    tell(byId("mask-error"), "");
  }

  /** Says how much is painted, once a change is complete. */
  tellPainted() {
    const { data } = this.mask;
    const painted = data.reduce((sum, byte) => sum + (byte ? 1 : 0), 0);
    const percent = (100 * painted) / data.length;
    byId("painted").textContent = painted ? `${percent < 1 ? "Under 1" : Math.round(percent)} % painted.` : "";
  }

  #moved(outer) {
    byId("zoom").textContent = `${Math.round(this.view.scale * 100)} %`;
    this.outpaint.place(outer, this.view.scale);
    this.showBrush();
  }

  showBrush(shown = !byId("brush").hidden) {
    const element = byId("brush");
    element.hidden = !shown || this.tool === "move";
    const width = this.brush * this.view.scale;
    const corner = (at) => (this.brush % 2 ? Math.floor(at) + 0.5 : Math.round(at)) * this.view.scale - width / 2;
    const { x, y } = { x: corner(this.cursor.x) + this.view.x, y: corner(this.cursor.y) + this.view.y };
    Object.assign(element.style, { width: `${width}px`, height: `${width}px`, transform: `translate(${x}px, ${y}px)` });
  }

  undo() {
    this.mask.undo();
    this.tellPainted();
  }

  redo() {
    this.mask.redo();
    this.tellPainted();
  }

  async load(file) {
    try {
      this.mask.replace(await readMask(file, this.mask.width, this.mask.height));
      this.tellPainted();
    } catch {
      tell(byId("mask-error"), "The browser cannot read this file as a picture.");
    }
  }

  /** What a job needs: the mask as a file, unless nothing is painted, and the margins, if there are any. */
  async read() {
    this.mask.commit();
    return {
      mask: this.mask.isEmpty ? null : await greyPng(this.mask),
      outpaint: this.outpaint.isEmpty ? null : { ...this.outpaint.margins },
    };
  }
}

export const editor = new MaskEditor();

/** Painting and moving with pointers: one paints, two fingers zoom and move. */
class Pointers {
  #down = new Map();
  #stroke = null;

  start(event) {
    const viewport = byId("viewport");
    viewport.focus({ preventScroll: true });
    viewport.setPointerCapture(event.pointerId);
    this.#down.set(event.pointerId, { clientX: event.clientX, clientY: event.clientY });
    if (this.#down.size > 1) {
      editor.mask.cancel();
      this.#stroke = null;
    } else if (event.button === 0 && editor.tool !== "move") {
      editor.mask.begin();
      this.#stroke = editor.view.toPicture(event);
      editor.line(this.#stroke, this.#stroke);
    }
    event.preventDefault();
  }

  move(event) {
    editor.cursor = editor.view.toPicture(event);
    editor.showBrush(event.pointerType !== "touch" || this.#stroke !== null);
    const before = this.#down.get(event.pointerId);
    if (!before) return;
    if (this.#stroke) {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.#drawTo(editor.view.toPicture(each));
    } else if (this.#down.size === 2) {
      this.#pinch(event, before);
    } else {
      editor.view.pan(event.clientX - before.clientX, event.clientY - before.clientY);
    }
    this.#down.set(event.pointerId, { clientX: event.clientX, clientY: event.clientY });
  }

  #drawTo(point) {
    editor.line(this.#stroke, point);
    this.#stroke = point;
  }

  #pinch(event, before) {
    const [[, other]] = [...this.#down].filter(([id]) => id !== event.pointerId);
    const far = (point) => Math.hypot(point.clientX - other.clientX, point.clientY - other.clientY);
    const middle = (point) => ({
      clientX: (point.clientX + other.clientX) / 2, clientY: (point.clientY + other.clientY) / 2,
    });
    editor.view.zoom(far(event) / Math.max(1, far(before)), middle(before));
    editor.view.pan(middle(event).clientX - middle(before).clientX, middle(event).clientY - middle(before).clientY);
  }

  end(event) {
    if (!this.#down.delete(event.pointerId) || !this.#stroke) return;
    this.#stroke = null;
    editor.mask.commit();
    editor.tellPainted();
  }
}

function preparePointers() {
  const viewport = byId("viewport");
  const pointers = new Pointers();
  viewport.addEventListener("pointerdown", (event) => pointers.start(event));
  viewport.addEventListener("pointermove", (event) => pointers.move(event));
  for (const end of ["pointerup", "pointercancel"]) viewport.addEventListener(end, (event) => pointers.end(event));
  viewport.addEventListener("pointerleave", () => editor.showBrush(document.activeElement === viewport));
  viewport.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    editor.view.zoom(Math.exp(-event.deltaY / 300), event);
  }, { passive: false });
}

function prepareRectangle() {
  const paint = (value) => {
    const number = (name) => Math.round(byId(`rectangle-${name}`).valueAsNumber || 0);
    editor.mask.rectangle(...["x", "y", "width", "height"].map(number), value);
    editor.tellPainted();
  };
  byId("rectangle-paint").addEventListener("click", () => paint(255));
  byId("rectangle-erase").addEventListener("click", () => paint(0));
}

export function prepareEditor() {
  const clicks = {
    undo: () => editor.undo(),
    redo: () => editor.redo(),
    invert: () => editor.mask.invert(),
    clear: () => editor.mask.clear(),
    "zoom-in": () => editor.view.zoom(1.25),
    "zoom-out": () => editor.view.zoom(0.8),
    "zoom-fit": () => editor.view.fit(),
    "mask-save": async () => download(await greyPng(editor.mask), "mask.png"),
  };
  for (const [id, click] of Object.entries(clicks)) byId(id).addEventListener("click", click);
  for (const id of ["invert", "clear"]) byId(id).addEventListener("click", () => editor.tellPainted());
  byId("tools").addEventListener("change", () => (editor.tool = editor.tool));
  byId("brush-size").addEventListener("input", (event) => (editor.size = event.target.valueAsNumber));
  byId("brush-size-number").addEventListener("change", (event) => (editor.size = event.target.valueAsNumber));
  byId("brush-unit").addEventListener("change", () => editor.showBrush());
  byId("mask-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) await editor.load(file);
    event.target.value = "";
  });
  preparePointers();
  prepareRectangle();
  prepareMaskKeys(editor);
  editor.outpaint.prepare();
  source.addEventListener("change", () => editor.show(source.picture));
}
