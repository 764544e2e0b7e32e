// The picture that a job starts from: chosen, dropped, pasted, or taken from an earlier job.

import { byId, tell } from "./dom.js";
import { release, showBlob } from "./pictures.js";

/** Holds the picture's bytes and size. Tells of `change`. */
class Source extends EventTarget {
  picture = null;

  /** Takes a picture; says so beside the chooser if the browser cannot read it. Gives whether it could. */
  async take(blob, name) {
    try {
      const bitmap = await createImageBitmap(blob);
      this.picture = { blob, name, width: bitmap.width, height: bitmap.height };
      bitmap.close();
    } catch {
      tell(byId("source-error"), "The browser cannot read this file as a picture.");
      return false;
    }
    this.#show();
    return true;
  }

  remove() {
    this.picture = null;
    this.#show();
  }

  #show() {
    const { picture } = this;
    tell(byId("source-error"), "");
    byId("source-thumb").hidden = !picture;
    byId("source-remove").hidden = !picture;
    if (picture) showBlob(byId("source-thumb"), picture.blob);
    else release(byId("source-thumb"));
    byId("source-name").textContent = picture
      ? `${picture.name}, ${picture.width} × ${picture.height} pixels`
      : "Drop a picture here, paste one, or choose a file.";
    byId("source-file").nextElementSibling.textContent = picture ? "Choose another" : "Choose a picture";
    this.dispatchEvent(new Event("change"));
  }
}

export const source = new Source();

export function prepareSource() {
  byId("source-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) await source.take(file, file.name);
    event.target.value = "";
  });
  byId("source-remove").addEventListener("click", () => {
    source.remove();
    byId("source-file").focus();
  });
}
