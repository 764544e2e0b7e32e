// Requests to the server, with the API key and errors as the server tells them.

import { askForKey, currentKey } from "./key.js";

/** What the server or the network says is wrong. `status` is 0 if there was no answer; `wait` is in seconds. */
export class ApiError extends Error {
  constructor(status, { message, field = null, code = null }, wait = null) {
    super(message);
    Object.assign(this, { status, field, code, wait });
  }
}

/** Sends a request, asks for the key if need be, and gives the answer if it is a good one. */
export async function send(path, { method = "GET", headers = {}, body, signal } = {}) {
  for (;;) {
    const key = currentKey();
    const authorization = key ? { Authorization: `Bearer ${key}` } : {};
    const response = await reach(path, { method, headers: { ...headers, ...authorization }, body, signal });
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401) throw error;
    if (!(await askForKey(key))) throw error;
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new ApiError(0, { message: "The server cannot be reached." });
  }
}

async function errorOf(response) {
  const wait = Number(response.headers.get("Retry-After")) || null;
  const told = await response.json().catch(() => null);
  const error = told?.error?.message ? told.error : { message: `The server answered ${response.status}.` };
  return new ApiError(response.status, error, wait);
}

export async function getJson(path) {
  return (await send(path)).json();
}

export async function getBlob(path) {
  return (await send(path)).blob();
}

export async function postJson(path, value, headers = {}) {
  const options = { method: "POST", headers: { "Content-Type": "application/json", ...headers } };
  return (await send(path, { ...options, body: JSON.stringify(value) })).json();
}

/** What a picture's file says of how it was made. */
export async function settingsOf(blob) {
  const headers = { "Content-Type": blob.type || "application/octet-stream" };
  return (await send("/api/settings", { method: "POST", headers, body: blob })).json();
}
