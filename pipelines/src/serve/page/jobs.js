// The jobs that the page knows: fetched, followed while they are under way, submitted, cancelled and deleted.
//
// Browsers open few connections to one server, so only the first jobs of the queue are followed by events; for the
// others the list is asked for now and then.

import { getJson, postJson, send } from "./api.js";
import { pause } from "./dom.js";
import { followJob, isFinal } from "./events.js";

const FOLLOWED = 2;
const ASKED_EVERY = 2500;
const PAGE = 24;
const ATTEMPTS = 4;

/** Tells of `change` with { job, before }, of `gone` with { id }, and of `connection` with { ok }. */
class Jobs extends EventTarget {
  #known = new Map();
  #followed = new Map();
  #asking = null;

  get(id) {
    return this.#known.get(id);
  }

  /** Those under way: running ones first, then by their place in the queue. */
  unfinished() {
    const jobs = [...this.#known.values()].filter((job) => !isFinal(job));
    const place = (job) => (job.state === "running" ? -1 : job.position ?? 0);
    return jobs.sort((a, b) => place(a) - place(b) || a.created - b.created);
  }

  /** Fetches a page of jobs and gives it; further ones too as long as they may hold jobs under way. */
  async load(before = null) {
    const page = await getJson(`/api/jobs?limit=${PAGE}${before ? `&before=${encodeURIComponent(before)}` : ""}`);
    page.jobs.forEach((job) => this.#put(job));
    const last = page.jobs.at(-1);
    if (!page.next || !last || isFinal(last)) return page;
    const rest = await this.load(page.next);
    return { jobs: [...page.jobs, ...rest.jobs], next: rest.next };
  }

  /** Submits a job. The key lets an attempt be repeated after a lost connection without making the job twice. */
  async submit(body) {
    const random = crypto.getRandomValues(new Uint32Array(4));
    const headers = { "Idempotency-Key": Array.from(random, (part) => part.toString(16).padStart(8, "0")).join("") };
    for (let attempt = 1; ; attempt += 1) {
      try {
        const job = await postJson("/api/jobs", body, headers);
        this.#put(job);
        return job;
      } catch (error) {
        if (error.status !== 0 || attempt === ATTEMPTS) throw error;
        await pause(500 * attempt);
      }
    }
  }

  async cancel(id) {
    try {
      this.#put(await postJson(`/api/jobs/${id}/cancel`, {}));
    } catch (error) {
      if (error.status !== 409) throw error;
      this.#put(await getJson(`/api/jobs/${id}`));
    }
  }

  async delete(id) {
    await send(`/api/jobs/${id}`, { method: "DELETE" });
    this.#forget(id);
  }

  #put(job) {
    const before = this.#known.get(job.id) ?? null;
    if (before && before.sequence > job.sequence) return;
    this.#known.set(job.id, job);
    if (before && before.sequence === job.sequence && before.position === job.position) return;
    this.dispatchEvent(new CustomEvent("change", { detail: { job, before } }));
    this.#watch();
  }

  #forget(id) {
    this.#followed.get(id)?.abort();
    this.#followed.delete(id);
    if (this.#known.delete(id)) this.dispatchEvent(new CustomEvent("gone", { detail: { id } }));
    this.#watch();
  }

  #watch() {
    const waiting = this.unfinished();
    const first = waiting.slice(0, FOLLOWED);
    for (const job of first) if (!this.#followed.has(job.id)) this.#follow(job);
    for (const [id, controller] of this.#followed) {
      if (waiting.some((job) => job.id === id) && !first.some((job) => job.id === id)) {
        controller.abort();
        this.#followed.delete(id);
      }
    }
    if (waiting.length > first.length) this.#asking ??= setTimeout(() => this.#ask(), ASKED_EVERY);
  }

  async #follow(job) {
    const controller = new AbortController();
    this.#followed.set(job.id, controller);
    const onJob = (next) => this.#put(next);
    try {
      await followJob(job, { onJob, onConnection: (ok) => this.#connection(ok), signal: controller.signal });
    } catch (error) {
      if (error.status === 404) this.#forget(job.id);
      else this.#connection(false);
    }
    if (this.#followed.get(job.id) === controller && isFinal(this.#known.get(job.id) ?? job)) {
      this.#followed.delete(job.id);
      this.#watch();
    }
  }

  async #ask() {
    try {
      await this.load();
      this.#connection(true);
    } catch {
      this.#connection(false);
    }
    this.#asking = null;
    this.#watch();
  }

  #connection(ok) {
    this.dispatchEvent(new CustomEvent("connection", { detail: { ok } }));
  }
}

export const jobs = new Jobs();
