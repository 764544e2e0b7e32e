// Server-sent events from a fetched body, since EventSource sends no API key: read, and taken up again when lost.

import { send } from "./api.js";
import { pause } from "./dom.js";

/** The server says something every 15 s; after this silence the connection counts as lost. */
const SILENCE = 45000;
const LONGEST_PAUSE = 10000;

export const isFinal = (job) => ["done", "failed", "cancelled"].includes(job.state);

/** Follows a job to its end or to the signal, over lost connections. Throws if the server refuses. */
export async function followJob(job, { onJob, onConnection, signal }) {
  let last = job.sequence;
  for (let failures = 0; !signal.aborted; failures += 1) {
    try {
      const headers = { Accept: "text/event-stream", "Last-Event-ID": String(last) };
      const response = await send(`/api/jobs/${job.id}/events`, { headers, signal });
      onConnection(true);
      for await (const { id, event, data } of eventsOf(response.body)) {
        failures = 0;
        last = id || last;
        if (event !== "job") continue;
        const next = JSON.parse(data);
        onJob(next);
        if (isFinal(next)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
    }
    if (failures > 0) onConnection(false);
    await pause(Math.min(LONGEST_PAUSE, 500 * 2 ** failures), signal);
  }
}

/** The events of a body, as they come. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    let text = "";
    for (;;) {
      const { value, done } = await readInTime(reader);
      if (done) return;
      const blocks = (text + value).replaceAll("\r\n", "\n").split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const event = eventOf(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function readInTime(reader) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("silence")), SILENCE);
  });
  try {
    return await Promise.race([reader.read(), silence]);
  } finally {
    clearTimeout(timer);
  }
}

/** An event of its lines, or nothing of comments alone. */
function eventOf(block) {
  const fields = { id: "", event: "message", data: [] };
  for (const line of block.split("\n")) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "data") fields.data.push(value);
    else if (name === "id" || name === "event") fields[name] = value;
  }
  return fields.data.length ? { ...fields, data: fields.data.join("\n") } : null;
}
