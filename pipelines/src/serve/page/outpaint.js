// Margins around the picture, for outpainting: dragged at its edges, moved with the arrow keys, or written as numbers.

import { byId } from "./dom.js";

const STEP = 8;
const MOST = 2048;
const SIDES = ["left", "top", "right", "bottom"];
/** Which way each edge goes outwards, by pointer and by key. */
const OUTWARDS = {
  left: { axis: "clientX", sign: -1, more: "ArrowLeft", less: "ArrowRight" },
  right: { axis: "clientX", sign: 1, more: "ArrowRight", less: "ArrowLeft" },
  top: { axis: "clientY", sign: -1, more: "ArrowUp", less: "ArrowDown" },
  bottom: { axis: "clientY", sign: 1, more: "ArrowDown", less: "ArrowUp" },
};

const handle = (side) => document.querySelector(`.handle.${side}`);

export class Outpaint {
  margins = { left: 0, top: 0, right: 0, bottom: 0 };
  #scale = 1;

  /** `onChange` is called with whether the change is complete. */
  constructor(onChange) {
    this.onChange = onChange;
  }

  get isEmpty() {
    return SIDES.every((side) => this.margins[side] === 0);
  }

  clear() {
    this.write({});
  }

  write(margins) {
    for (const side of SIDES) this.#set(side, margins[side] ?? 0);
    this.onChange(true);
  }

  #set(side, pixels) {
    const whole = Math.min(MOST, Math.max(0, Math.round((pixels || 0) / STEP) * STEP));
    this.margins[side] = whole;
    byId(`margin-${side}`).value = String(whole);
    handle(side).setAttribute("aria-valuenow", String(whole));
    handle(side).setAttribute("aria-valuetext", `${whole} pixels`);
    handle(side).dataset.pixels = whole ? `+${whole}` : "";
  }

  /** Puts the handles at the edges of what is to become the picture, as far as that is seen. */
  place({ x, y, width, height }, scale) {
    this.#scale = scale;
    const { clientWidth, clientHeight } = byId("viewport");
    const seen = (value, most) => Math.min(most, Math.max(0, value));
    const [left, right] = [seen(x, clientWidth), seen(x + width, clientWidth)];
    const [top, bottom] = [seen(y, clientHeight), seen(y + height, clientHeight)];
    const [middle, centre] = [(left + right) / 2, (top + bottom) / 2];
    const at = { left: [left, centre], right: [right, centre], top: [middle, top], bottom: [middle, bottom] };
    for (const side of SIDES) Object.assign(handle(side).style, { left: `${at[side][0]}px`, top: `${at[side][1]}px` });
  }

  prepare() {
    for (const side of SIDES) {
      this.#prepareDrag(side);
      handle(side).addEventListener("keydown", (event) => this.#key(side, event));
      byId(`margin-${side}`).addEventListener("change", (event) => {
        this.#set(side, event.target.valueAsNumber);
        this.onChange(true);
      });
    }
  }

  #prepareDrag(side) {
    const { axis, sign } = OUTWARDS[side];
    const element = handle(side);
    let start = null;
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      start = { at: event[axis], pixels: this.margins[side] };
    });
    element.addEventListener("pointermove", (event) => {
      if (!start) return;
      this.#set(side, start.pixels + (sign * (event[axis] - start.at)) / this.#scale);
      this.onChange(false);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      element.addEventListener(end, () => {
        start = null;
        this.onChange(true);
      });
    }
  }

  #key(side, event) {
    const { more, less } = OUTWARDS[side];
    const pixels = this.margins[side];
    const next = { [more]: pixels + STEP, [less]: pixels - STEP, PageUp: pixels + 8 * STEP, PageDown: pixels - 8 * STEP,
      Home: 0 }[event.key];
    if (next === undefined) return;
    this.#set(side, next);
    this.onChange(true);
    event.preventDefault();
    event.stopPropagation();
  }
}
