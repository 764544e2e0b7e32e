// A mask as bytes, 255 where to repaint, else 0: painting without antialiasing, undo and redo. It knows nothing of the
// page.

const MOST_HISTORY = 128 * 1024 * 1024;

export class Mask {
  #past = [];
  #future = [];
  #before = null;
  #box = null;

  /** `onChange` is called with the box that has changed. */
  constructor(width, height, onChange) {
    Object.assign(this, { width, height, onChange });
    this.data = new Uint8Array(width * height);
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  get isEmpty() {
    return !this.data.includes(255);
  }

  /** Starts a change that is undone as a whole. */
  begin() {
    if (this.#before) this.commit();
    this.#before = this.data.slice();
    this.#box = null;
  }

  commit() {
    const [before, box] = [this.#before, this.#box];
    this.#before = null;
    if (!before || !box) return;
    this.#past.push({ box, bytes: cut(before, this.width, box) });
    this.#future = [];
    const size = () => this.#past.reduce((sum, { bytes }) => sum + bytes.length, 0);
    while (this.#past.length > 1 && size() > MOST_HISTORY) this.#past.shift();
    this.onChange(box);
  }

  /** Takes back a change that was begun. */
  cancel() {
    const [before, box] = [this.#before, this.#box];
    this.#before = null;
    if (!before || !box) return;
    this.data.set(before);
    this.onChange(box);
  }

  undo() {
    this.#step(this.#past, this.#future);
  }

  redo() {
    this.#step(this.#future, this.#past);
  }

  #step(from, to) {
    this.commit();
    const entry = from.pop();
    if (!entry) return;
    to.push({ box: entry.box, bytes: cut(this.data, this.width, entry.box) });
    paste(this.data, this.width, entry);
    this.onChange(entry.box);
  }

  /**
   * Draws a line with a round brush: pixels whose centres are at most half the size away from it. Its ends snap to the
   * centre of a pixel if the size is odd, else to a corner, so that a brush of n pixels is n wide.
   */
  line(from, to, size, value) {
    const [a, b] = [snapped(from, size), snapped(to, size)];
    const radius = size / 2;
    const box = this.#clipped(
      Math.floor(Math.min(a.x, b.x) - radius), Math.floor(Math.min(a.y, b.y) - radius),
      Math.ceil(Math.max(a.x, b.x) + radius), Math.ceil(Math.max(a.y, b.y) + radius),
    );
    for (let y = box.top; y < box.bottom; y += 1) {
      for (let x = box.left; x < box.right; x += 1) {
        if (distanceSquared(x + 0.5, y + 0.5, a, b) <= radius * radius + 1e-9) this.data[y * this.width + x] = value;
      }
    }
    this.#touch(box);
  }

  rectangle(left, top, width, height, value) {
    const box = this.#clipped(left, top, left + width, top + height);
    this.#change(box, () => {
      for (let y = box.top; y < box.bottom; y += 1) {
        this.data.fill(value, y * this.width + box.left, y * this.width + box.right);
      }
    });
  }

  invert() {
    this.replace(this.data.map((byte) => 255 - byte));
  }

  clear() {
    if (!this.isEmpty) this.replace(new Uint8Array(this.data.length));
  }

  replace(data) {
    this.#change(this.#clipped(0, 0, this.width, this.height), () => this.data.set(data));
  }

  #change(box, paint) {
    this.begin();
    paint();
    this.#touch(box);
    this.commit();
  }

  #clipped(left, top, right, bottom) {
    const inside = (value, most) => Math.min(most, Math.max(0, value));
    return {
      left: inside(left, this.width), top: inside(top, this.height),
      right: inside(right, this.width), bottom: inside(bottom, this.height),
    };
  }

  #touch(box) {
    if (box.right <= box.left || box.bottom <= box.top) return;
    const old = this.#box ?? box;
    this.#box = {
      left: Math.min(old.left, box.left), top: Math.min(old.top, box.top),
      right: Math.max(old.right, box.right), bottom: Math.max(old.bottom, box.bottom),
    };
    this.onChange(box);
  }
}

function snapped({ x, y }, size) {
  return size % 2 ? { x: Math.floor(x) + 0.5, y: Math.floor(y) + 0.5 } : { x: Math.round(x), y: Math.round(y) };
}

function distanceSquared(x, y, a, b) {
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const length = dx * dx + dy * dy;
  const along = length ? Math.min(1, Math.max(0, ((x - a.x) * dx + (y - a.y) * dy) / length)) : 0;
  const [ex, ey] = [x - a.x - along * dx, y - a.y - along * dy];
  return ex * ex + ey * ey;
}

function cut(data, stride, { left, top, right, bottom }) {
  const bytes = new Uint8Array((right - left) * (bottom - top));
  for (let y = top; y < bottom; y += 1) {
    bytes.set(data.subarray(y * stride + left, y * stride + right), (y - top) * (right - left));
  }
  return bytes;
}

function paste(data, stride, { box: { left, top, right, bottom }, bytes }) {
  const width = right - left;
  for (let y = top; y < bottom; y += 1) {
    data.set(bytes.subarray((y - top) * width, (y - top + 1) * width), y * stride + left);
  }
}
