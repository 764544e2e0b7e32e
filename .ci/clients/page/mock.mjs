// A stand-in for the server that can be slow, full and cut connections: node mock.mjs PORT [KEY], with the project's folder in TWEEDIE_ROOT.
// POST /mock {step, full, drop} controls it.
import http from "node:http";
import fs from "node:fs";
import pngjs from "pngjs";
const { PNG } = pngjs;
const [,, port = "8791", key = ""] = process.argv;
const root = process.env.TWEEDIE_ROOT;
const page = `${root}/pipelines/src/serve/page/`;
const words = fs.readFileSync(`${root}/weights/emoji-ldm/tokenizer/words.txt`, "utf8").trim().split("\n");
const models = [
  { name: "emoji-ldm", loaded: true, bytes: 24700000, inpainting: false, width: 128, height: 128, factor: 8, steps: 25, guidance_scale: 6, scheduler: "ddim", strength: 0.8, words },
  { name: "sd15", loaded: false, bytes: 4300000000, inpainting: false, width: null, height: null, factor: null, steps: null, guidance_scale: null, scheduler: null, strength: null, words: [] },
];
const options = JSON.parse(fs.readFileSync(new URL("./options.json", import.meta.url)));
const ctl = { step: 60, full: 0, drop: 0, posts: [] };
const jobs = new Map(); const keys = new Map(); let count = 0; let running = null;
const listeners = new Set();
const csp = "default-src 'self'; img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
function draw(w, h, seed, noise) {
  const png = new PNG({ width: w, height: h }); let s = seed * 7919 + 1;
  const hue = seed * 97 % 360; const base = [0, 120, 240].map((o) => 128 + 110 * Math.cos((hue + o) * Math.PI / 180));
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
    const d = Math.hypot(x / w - 0.5, y / h - 0.5); s = (s * 1103515245 + 12345) & 0x7fffffff;
    for (let c = 0; c < 3; c++) {
      const clean = d < 0.3 ? base[(c + 1) % 3] * (1.1 - d) : base[c] * (0.7 + 0.3 * y / h);
      png.data[(y * w + x) * 4 + c] = Math.max(0, Math.min(255, clean * (1 - noise) + noise * ((s >> 8) & 255)));
    }
    png.data[(y * w + x) * 4 + 3] = 255;
  }
  return png;
}
function withText(buf, text) {
  const body = Buffer.concat([Buffer.from("tEXt"), Buffer.from("parameters\0"), Buffer.from(text, "latin1")]);
  let crc = 0xffffffff; for (const b of body) { crc ^= b; for (let k = 0; k < 8; k++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1; }
  const c = Buffer.alloc(body.length + 8); c.writeUInt32BE(body.length - 4, 0); body.copy(c, 4); c.writeUInt32BE((crc ^ 0xffffffff) >>> 0, body.length + 4);
  return Buffer.concat([buf.subarray(0, 33), c, buf.subarray(33)]);
}
const final = (j) => ["done", "failed", "cancelled"].includes(j.doc.state);
function touch(j) { j.doc.sequence++; j.log.push({ id: j.doc.sequence, text: JSON.stringify(j.doc) }); for (const l of listeners) if (l.id === j.doc.id) l.push(); }
function positions() { const q = [...jobs.values()].filter((j) => j.doc.state === "queued"); q.forEach((j, i) => { const p = i + (running ? 1 : 0); if (j.doc.position !== p) { j.doc.position = p; touch(j); } }); }
async function runNext() {
  if (running) return; const j = [...jobs.values()].find((x) => x.doc.state === "queued"); if (!j) return;
  running = j; const d = j.doc; d.state = "running"; d.position = null; touch(j); positions();
  const steps = d.request.steps ?? 25; const n = d.request.num_images ?? 1; const t0 = Date.now();
  await new Promise((r) => setTimeout(r, ctl.step));
  for (let p = 0; p < n; p++) for (let s = 1; s <= steps; s++) {
    await new Promise((r) => setTimeout(r, ctl.step));
    if (j.cancel) { d.state = "cancelled"; d.progress = null; d.preview = null; running = null; touch(j); positions(); return runNext(); }
    const done = p * steps + s; const el = (Date.now() - t0) / 1000;
    d.progress = { step: s, steps, picture: p, pictures: n, elapsed: el, eta: done < 3 ? null : el / done * (n * steps - done) };
    d.preview = `/api/jobs/${d.id}/preview?${done}`; touch(j);
    if (/fail/.test(d.request.prompt) && s === 3) { d.state = "failed"; d.error = { message: "the latents are not numbers any more", field: null }; d.progress = null; d.preview = null; running = null; touch(j); positions(); return runNext(); }
  }
  d.state = "done"; d.preview = null;
  const [w, h] = j.size;
  d.pictures = Array.from({ length: n }, (_, i) => ({ url: `/api/jobs/${d.id}/pictures/${i}`, seed: d.request.seed + i, width: w, height: h }));
  if (/warn/.test(d.request.prompt)) d.warnings = ["the mask is so thin that it vanishes at the size of the latents"];
  running = null; touch(j); positions(); runNext();
}
function create(body) {
  const id = `01J${String(++count).padStart(8, "0")}`; const r = body.request;
  if (r.seed === undefined || r.seed === -1) r.seed = Math.floor(Math.random() * 1e6);
  let size = [r.width ?? 128, r.height ?? 128];
  if (body.image) { const p = PNG.sync.read(Buffer.from(body.image.split(",")[1], "base64")); size = [p.width, p.height]; const o = r.inpaint?.outpaint; if (o) size = [size[0] + o.left + o.right, size[1] + o.top + o.bottom]; }
  const doc = { id, state: "queued", created: Date.now() / 1000, kind: body.kind, model: body.model ?? "emoji-ldm", priority: 0, request: r, position: 0, attempt: 1, progress: null, preview: null, pictures: [], image: body.image ? `/api/jobs/${id}/image` : null, mask: body.mask ? `/api/jobs/${id}/mask` : null, warnings: [], error: null, sequence: 0 };
  const j = { doc, log: [], size, image: body.image, mask: body.mask }; jobs.set(id, j); positions(); touch(j); runNext(); return j;
}
const srv = http.createServer((req, res) => {
  const url = new URL(req.url, "http://x"); const chunks = [];
  req.on("data", (c) => chunks.push(c)); req.on("end", () => handle(req, res, url, Buffer.concat(chunks)));
});
function json(res, status, v, h = {}) { res.writeHead(status, { "content-type": "application/json", "cache-control": "no-store", ...h }); res.end(v === undefined ? "" : JSON.stringify(v)); }
const err = (res, status, message, field = null, h = {}) => json(res, status, { error: { message, field, code: "invalid" } }, h);
function png(res, buf) { res.writeHead(200, { "content-type": "image/png" }); res.end(buf); }
function handle(req, res, url, body) {
  const p = url.pathname;
  if (p === "/mock") { Object.assign(ctl, JSON.parse(body || "{}")); return json(res, 200, { ...ctl }); }
  if (p === "/mock/reset") { jobs.clear(); running = null; Object.assign(ctl, { step: 60, full: 0, drop: 0, posts: [] }); return json(res, 200, {}); }
  if (p === "/" || p.startsWith("/page/")) {
    const file = p === "/" ? "index.html" : p.slice(6);
    if (!/^[\w.-]+$/.test(file) || !fs.existsSync(page + file)) return err(res, 404, "no such page");
    const type = { html: "text/html", css: "text/css", js: "text/javascript" }[file.split(".").pop()];
    res.writeHead(200, { "content-type": `${type}; charset=utf-8`, "content-security-policy": csp, "x-content-type-options": "nosniff", "cache-control": "no-cache" }); return res.end(fs.readFileSync(page + file));
  }
  if (p === "/healthz") return json(res, 200, { status: "ok" });
  if (key && req.headers.authorization !== `Bearer ${key}`) return err(res, 401, "a key is needed");
  if (p === "/api/models") return json(res, 200, { default: "emoji-ldm", models });
  if (p === "/api/loras") return json(res, 200, { loras: [{ name: "ink" }, { name: "paper-cut" }] });
  if (p === "/api/schedulers") return json(res, 200, [{ name: "ddim", label: "DDIM" }, { name: "euler", label: "Euler" }, { name: "euler-a", label: "Euler a" }, { name: "dpm++2m-karras", label: "DPM++ 2M Karras" }]);
  if (p === "/api/options") return json(res, 200, options);
  if (p === "/api/settings") {
    const i = body.indexOf("tEXtparameters\0"); if (i < 0) return err(res, 400, "the file says nothing of how it was made");
    return json(res, 200, JSON.parse(body.subarray(i + 15, body.indexOf("\u0001", i)).toString("latin1")));
  }
  if (p === "/api/jobs" && req.method === "GET") {
    const all = [...jobs.values()].map((j) => j.doc).reverse(); const before = url.searchParams.get("before"); const limit = Number(url.searchParams.get("limit") ?? 50);
    const from = before ? all.findIndex((d) => d.id === before) + 1 : 0; const part = all.slice(from, from + limit);
    return json(res, 200, { jobs: part, next: from + limit < all.length ? part.at(-1).id : null });
  }
  if (p === "/api/jobs" && req.method === "POST") {
    const b = JSON.parse(body); ctl.posts.push(b);
    if (ctl.full > 0) { ctl.full--; return err(res, 429, "the queue is full", null, { "retry-after": "2" }); }
    if (b.request.steps > 1000) return err(res, 400, "steps must be at most 1000", "request.steps");
    if (b.request.width % 8) return err(res, 400, "not a multiple of 8", "request.width");
    const k = req.headers["idempotency-key"]; if (k && keys.has(k)) return json(res, 200, keys.get(k).doc);
    const j = create(b); if (k) keys.set(k, j); return json(res, 202, j.doc);
  }
  const m = /^\/api\/jobs\/([^/]+)(?:\/(.*))?$/.exec(p); const j = m && jobs.get(m[1]); if (!j) return err(res, 404, "no such job");
  const d = j.doc; const rest = m[2] ?? "";
  if (!rest && req.method === "GET") return json(res, 200, d);
  if (!rest && req.method === "DELETE") { if (!final(j)) return err(res, 409, "it runs"); jobs.delete(d.id); res.writeHead(204); return res.end(); }
  if (rest === "cancel") { if (final(j)) return err(res, 409, "it is finished"); if (d.state === "queued") { d.state = "cancelled"; d.position = null; touch(j); positions(); } else j.cancel = true; return json(res, 200, d); }
  if (rest === "events") {
    res.writeHead(200, { "content-type": "text/event-stream" }); let last = Number(req.headers["last-event-id"] ?? -1); let sent = 0;
    ctl.lastIds = [...(ctl.lastIds ?? []), req.headers["last-event-id"] ?? null];
    const l = { id: d.id, push() { for (const e of j.log) if (e.id > last) { last = e.id; res.write(`id: ${e.id}\nevent: job\ndata: ${e.text}\n\n`); sent++; if (ctl.drop && sent >= ctl.drop) { listeners.delete(l); setTimeout(() => res.destroy(), 40); return; } } if (final(j)) { listeners.delete(l); res.end(); } } };
    listeners.add(l); res.on("close", () => listeners.delete(l)); res.write(": hello\n\n"); return l.push();
  }
  if (rest === "preview") { const n = Number(url.search.slice(1)); return png(res, PNG.sync.write(draw(j.size[0] / 2 | 0, j.size[1] / 2 | 0, d.request.seed, 1 - n / (d.request.steps ?? 25)))); }
  if (rest === "image" || rest === "mask") return png(res, Buffer.from(j[rest].split(",")[1], "base64"));
  const q = /^pictures\/(\d+)$/.exec(rest);
  if (q) return png(res, withText(PNG.sync.write(draw(...j.size, d.request.seed + Number(q[1]), 0)), JSON.stringify({ options: { ...d.request, seed: d.request.seed + Number(q[1]) }, model: d.model, unused: [] }) + "\u0001"));
  err(res, 404, "nothing here");
}
srv.listen(Number(port), "127.0.0.1", () => console.log("mock on", port));
