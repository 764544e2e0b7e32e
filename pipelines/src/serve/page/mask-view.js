// Where the picture lies in the mask editor's window: zoom, pan, and from positions on the screen to pixels of the
// picture.

import { byId } from "./dom.js";

const LARGEST = 32;
/** Room for the handles around the picture. */
const ROOM = 44;

export class MaskView {
  #viewport = byId("viewport");
  #size = { width: 1, height: 1 };
  #margins = { left: 0, top: 0, right: 0, bottom: 0 };
  #fitted = true;
  scale = 1;
  x = 0;
  y = 0;

  /** `onChange` is called when the picture lies elsewhere. */
  constructor(onChange) {
    this.onChange = onChange;
    new ResizeObserver(() => (this.#fitted ? this.fit() : this.#apply())).observe(this.#viewport);
  }

  show(width, height) {
    this.#size = { width, height };
    this.fit();
  }

  /** Takes the margins around the picture, which moves only if all is to be seen. */
  extend(margins, settle) {
    this.#margins = margins;
    if (settle && this.#fitted) this.fit();
    else this.#apply();
  }

  fit() {
    const { left, top, right, bottom } = this.#margins;
    const [width, height] = [this.#size.width + left + right, this.#size.height + top + bottom];
    const { clientWidth, clientHeight } = this.#viewport;
    if (!clientWidth) return;
    const across = Math.max(32, clientWidth - 2 * ROOM);
    const down = Math.max(32, clientHeight - 2 * ROOM);
    this.scale = Math.min(LARGEST, across / width, down / height);
    this.x = (clientWidth - width * this.scale) / 2 + left * this.scale;
    this.y = (clientHeight - height * this.scale) / 2 + top * this.scale;
    this.#fitted = true;
    this.#apply();
  }

  /** Zooms and keeps what is at a position of the screen, or in the middle of the window, where it is. */
  zoom(factor, at = this.#middle()) {
    const scale = Math.min(LARGEST, Math.max(0.02, this.scale * factor));
    const box = this.#viewport.getBoundingClientRect();
    const [atX, atY] = [at.clientX - box.left, at.clientY - box.top];
    this.x = atX - ((atX - this.x) * scale) / this.scale;
    this.y = atY - ((atY - this.y) * scale) / this.scale;
    this.scale = scale;
    this.#moved();
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.#moved();
  }

  /** Moves the picture as far as is needed to see a point of it. */
  reveal({ x, y }) {
    const { clientWidth, clientHeight } = this.#viewport;
    const [atX, atY] = [this.x + x * this.scale, this.y + y * this.scale];
    const dx = Math.max(0, ROOM - atX) - Math.max(0, atX - clientWidth + ROOM);
    const dy = Math.max(0, ROOM - atY) - Math.max(0, atY - clientHeight + ROOM);
    if (dx || dy) this.pan(dx, dy);
  }

  /** The point of the picture at a position of the screen. The element's own box is right at any zoom of a browser. */
  toPicture({ clientX, clientY }) {
    const box = byId("mask").getBoundingClientRect();
    return {
      x: ((clientX - box.left) / box.width) * this.#size.width,
      y: ((clientY - box.top) / box.height) * this.#size.height,
    };
  }

  #middle() {
    const box = this.#viewport.getBoundingClientRect();
    return { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
  }

  #moved() {
    this.#fitted = false;
    this.#apply();
  }

  #apply() {
    const { width, height } = this.#size;
    const { left, top, right, bottom } = this.#margins;
    place(byId("world"), this.x, this.y, width * this.scale, height * this.scale);
    const outer = {
      x: this.x - left * this.scale,
      y: this.y - top * this.scale,
      width: (width + left + right) * this.scale,
      height: (height + top + bottom) * this.scale,
    };
    place(byId("frame"), outer.x, outer.y, outer.width, outer.height);
    this.onChange(outer);
  }
}

function place(element, x, y, width, height) {
  Object.assign(element.style, {
    transform: `translate(${x}px, ${y}px)`, width: `${width}px`, height: `${height}px`,
  });
}
