// Pictures of the server: fetched with the key, shown from blob URLs, which are given back when they are not shown any
// more.

import { getBlob } from "./api.js";
import { make } from "./dom.js";

const KEPT = 40;
const SMALL = 512;
const fetched = new Map();
const urls = new WeakMap();

/** The bytes of a picture. The last ones are kept. */
export function pictureBlob(path) {
  const blob = fetched.get(path) ?? getBlob(path);
  fetched.delete(path);
  fetched.set(path, blob);
  blob.catch(() => fetched.delete(path));
  if (fetched.size > KEPT) fetched.delete(fetched.keys().next().value);
  return blob;
}

/** Shows bytes in an image, in place of what it showed. */
export function showBlob(image, blob) {
  releaseImage(image);
  const url = URL.createObjectURL(blob);
  urls.set(image, url);
  image.src = url;
  return image.decode().catch(() => {});
}

/** Gives back the blob URLs of the images in an element that goes away. */
export function release(element) {
  const images = element.matches("img") ? [element] : element.querySelectorAll("img");
  for (const image of images) {
    waiting.unobserve(image);
    releaseImage(image);
  }
}

function releaseImage(image) {
  const url = urls.get(image);
  if (!url) return;
  URL.revokeObjectURL(url);
  urls.delete(image);
  image.removeAttribute("src");
}

const waiting = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    waiting.unobserve(target);
    pictureBlob(target.dataset.path).then((blob) => showBlob(target, blob)).catch(() => {
      target.alt = "The picture could not be fetched.";
    });
  }
}, { rootMargin: "300px" });

/** An image of a picture of the server, fetched when it comes near to what is seen. */
export function pictureImage(path, alt) {
  const image = make("img", { alt });
  image.dataset.path = path;
  waiting.observe(image);
  return image;
}

/** Gives an element the space that a picture of this size takes; small ones are shown larger. */
export function sized(element, width, height) {
  element.style.setProperty("--width", `${Math.max(width, SMALL)}px`);
  element.style.setProperty("--aspect", `${width} / ${height}`);
  element.style.setProperty("--ratio", String(width / height));
  return element;
}

export function fileName(picture, job) {
  const words = String(job.request.prompt ?? "").toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  return `${words.join("-").slice(0, 60)}-${picture.seed}.png`;
}
