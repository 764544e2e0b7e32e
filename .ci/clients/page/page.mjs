// Tests of the page against a server: TWEEDIE_URL, else the mock. Run: node page.mjs [part of a test's name]
import { readFileSync, writeFileSync } from "node:fs";
import pngjs from "pngjs";
import { AxeBuilder } from "@axe-core/playwright";
import { launch, open, mock, check, end, URL as BASE, MOCK, KEYED } from "./lib.mjs";
const { PNG } = pngjs;
const browser = await launch();
const tests = [];
const test = (name, run) => tests.push([name, run]);
const picture = (w, h) => { const p = new PNG({ width: w, height: h }); for (let i = 0; i < w * h; i++) p.data.set([i % w * 255 / w | 0, 90, (i / w | 0) * 255 / h | 0, 255], i * 4); return PNG.sync.write(p); };
const file = (w, h, name = "start.png") => ({ name, mimeType: "image/png", buffer: picture(w, h) });
const setMode = (page, m) => page.locator(`[name=mode][value=${m}]`).check({ force: true });
const setTool = (page, m) => page.locator(`[name=tool][value=${m}]`).check({ force: true });
const openAll = (page, sel) => page.evaluate((s) => document.querySelectorAll(s).forEach((d) => (d.open = true)), sel);
async function savedMask(page) {
  await openAll(page, "#editor details");
  const [d] = await Promise.all([page.waitForEvent("download"), page.click("#mask-save")]);
  const bytes = readFileSync(await d.path());
  const png = PNG.sync.read(bytes);
  const data = new Uint8Array(png.width * png.height); let exact = bytes[25] === 0 && bytes[24] === 8;
  for (let i = 0; i < data.length; i++) { const [r, g, b, a] = png.data.subarray(i * 4, i * 4 + 4); if (r !== g || g !== b || a !== 255 || (r !== 0 && r !== 255)) exact = false; data[i] = r; }
  return { width: png.width, height: png.height, data, exact };
}
/** Brush by definition: pixel centres within half the size of any point of the segment between snapped ends. */
function expected(w, h, strokes) {
  const m = new Uint8Array(w * h);
  for (const { points, size, value = 255 } of strokes) {
    const snap = (v) => (size % 2 === 1 ? Math.floor(v) + 0.5 : Math.round(v));
    const pts = points.map(([x, y]) => [snap(x), snap(y)]);
    const segs = pts.length === 1 ? [[pts[0], pts[0]]] : pts.slice(1).map((p, i) => [pts[i], p]);
    for (const [[ax, ay], [bx, by]] of segs) for (let j = 0; j < h; j++) for (let i = 0; i < w; i++) {
      const [px, py] = [i + 0.5, j + 0.5]; const [ux, uy] = [bx - ax, by - ay]; const len = Math.hypot(ux, uy);
      let d;
      if (len === 0) d = Math.hypot(px - ax, py - ay);
      else { const along = ((px - ax) * ux + (py - ay) * uy) / len; d = along < 0 ? Math.hypot(px - ax, py - ay) : along > len ? Math.hypot(px - bx, py - by) : Math.abs((px - ax) * uy - (py - ay) * ux) / len; }
      if (d <= size / 2 + 1e-7) m[j * w + i] = value;
    }
  }
  return m;
}
const differ = (a, b) => { let n = 0; for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) n++; return n; };
const sum = (a) => a.reduce((s, v) => s + (v ? 1 : 0), 0);
async function editor(page, w = 128, h = 128) {
  await setMode(page, "inpaint");
  await page.setInputFiles("#source-file", file(w, h));
  await page.waitForSelector("#editor:not([hidden])");
  await page.waitForTimeout(150);
}
async function size(page, n) { await page.fill("#brush-size-number", String(n)); await page.locator("#brush-size-number").blur(); }
/** Draws through whole CSS pixels and says which points of the picture they are, from the picture's own place on the screen. */
async function draw(page, fractions, w, h) {
  await page.locator("#viewport").scrollIntoViewIfNeeded();
  const box = await page.locator("#editor-picture").evaluate((e) => { const r = e.getBoundingClientRect(); return { x: r.x, y: r.y, width: r.width, height: r.height }; });
  const at = fractions.map(([fx, fy]) => [Math.round(box.x + fx * box.width), Math.round(box.y + fy * box.height)]);
  await page.mouse.move(...at[0]); await page.mouse.down();
  for (const p of at.slice(1)) await page.mouse.move(...p);
  await page.mouse.up();
  return at.map(([x, y]) => [(x - box.x) / box.width * w, (y - box.y) / box.height * h]);
}
const idle = (page) => page.waitForFunction(() => document.querySelector("#live").hidden, null, { timeout: 60000 });
const clean = (page, what) => check(page.problems.length === 0, `${what}: no console errors, no outside requests${page.problems.length ? ` (${page.problems.join("; ").slice(0, 300)})` : ""}`);

test("newcomer", async () => {
  const page = await open(browser);
  check(await page.evaluate(() => document.activeElement.id === "prompt"), "the prompt has the focus at first");
  check(!(await page.locator("#settings").getAttribute("open")), "settings are folded away");
  check(await page.locator("#steps").getAttribute("placeholder") === "25", "defaults are placeholders");
  await page.click(".chip >> nth=0");
  check(await page.inputValue("#prompt") === "a fox on a blue background", "an example fills the prompt");
  await page.keyboard.press("Enter");
  await page.waitForSelector("#live:not([hidden])");
  await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 });
  const shown = await page.locator("#finished .shown img").evaluate((i) => [i.naturalWidth, i.getBoundingClientRect().width]);
  check(shown[0] === 128 && shown[1] > 400 && shown[1] <= 513, `the picture is shown larger (${shown})`);
  check(/^Finished: a fox/.test(await page.locator("#announcements").textContent()), "its end is announced");
  check(await page.locator("#gallery-list .tile").count() >= 1, "it is in the gallery");
  await page.fill("#prompt", "a castle\nat sunset"); await page.locator("#prompt").press("Shift+Enter");
  check((await page.inputValue("#prompt")).split("\n").length === 3, "Shift+Enter is a new line");
  await page.fill("#prompt", "a castle"); await page.keyboard.press("Control+Enter");
  await page.waitForSelector("#live:not([hidden])"); check(true, "Ctrl+Enter submits"); await idle(page);
  await page.fill("#prompt", ""); await page.click("#make");
  check(await page.locator("#prompt-error").isVisible() && await page.getAttribute("#prompt", "aria-invalid") === "true", "an empty prompt is told of beside it");
  clean(page, "newcomer"); await page.context().close();
});

test("progress and preview", async () => {
  await mock({ step: 100 });
  const page = await open(browser);
  await page.fill("#prompt", "a fox"); await openAll(page, "#settings"); await page.fill("#steps", MOCK ? "20" : "200");
  await page.click("#make");
  await page.waitForFunction(() => /^Step \d+ of \d+, about .* left$/.test(document.querySelector("#live-text").textContent), null, { timeout: 30000 });
  check(true, `step and time left: ${await page.textContent("#live-text")}`);
  await page.waitForSelector("#live-preview img[src^='blob:']", { timeout: 30000 }); check(true, "a preview is shown");
  check(await page.evaluate(() => document.querySelector("#live-progress").value > 0), "the bar moves");
  await page.click("#live-cancel"); await idle(page);
  check(/Cancelled/.test(await page.textContent("#announcements")), "cancelled, and announced");
  await mock({ step: 20 }); clean(page, "progress"); await page.context().close();
});

test("queue", async () => {
  await mock({ step: 200 });
  const page = await open(browser);
  await openAll(page, "#settings"); await page.fill("#steps", MOCK ? "40" : "400");
  for (const p of ["a fox", "a panda", "a castle", "an owl"]) { await page.fill("#prompt", p); await page.click("#make"); await page.waitForFunction(() => document.querySelector("#make").getAttribute("aria-disabled") === "false"); }
  await page.waitForFunction(() => document.querySelectorAll("#queue-list li").length === 4);
  await page.waitForFunction(() => /Waiting, 3/.test(document.querySelector("#queue-list li:last-child").textContent), null, { timeout: 5000 }).then(() => check(true, "places in the queue"), () => check(false, "places in the queue"));
  await page.getByRole("button", { name: "Cancel: a castle" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#queue-list li").length === 3);
  check(true, "a waiting job is cancelled");
  check(await page.evaluate(() => document.querySelector("#queue-list").contains(document.activeElement)), "the focus stays in the queue");
  const second = await open(browser);
  await second.waitForFunction(() => document.querySelectorAll("#queue-list li").length === 3); check(true, "another tab sees the queue");
  await mock({ step: 3 });
  if (!MOCK) for (const name of ["a fox", "a panda", "an owl"]) await page.getByRole("button", { name: `Cancel: ${name}` }).click({ timeout: 3000 }).catch(() => page.click("#live-cancel", { timeout: 3000 }).catch(() => {}));
  await idle(page); await idle(second);
  clean(page, "queue"); await page.context().close(); await second.context().close();
});

test("words", async () => {
  const page = await open(browser);
  await page.fill("#prompt", "a fox on a blue backgroud, zorp");
  await page.waitForSelector("#unknown p");
  const told = await page.textContent("#unknown");
  check(/“backgroud”/.test(told) && /“zorp”/.test(told) && !/fox/.test(told), `unknown words: ${told}`);
  await page.click("#unknown button");
  check(await page.inputValue("#prompt") === "a fox on a blue background, zorp", "a near word takes its place");
  await page.context().close();
});

// A browser's zoom changes the CSS viewport and devicePixelRatio, nothing else that a page can see.
for (const [name, dpr, width, height] of [["50 %", 0.5, 2560, 1600], ["100 %", 1, 1280, 800], ["150 %", 1.5, 853, 533], ["100 % at 2 dppx", 2, 1280, 800], ["phone at 3 dppx", 3, 390, 844]]) {
  test(`mask zoom ${name}`, async () => {
    for (const [w, h] of [[128, 128], [301, 170]]) {
      const page = await open(browser, { viewport: { width, height }, deviceScaleFactor: dpr });
      check(await page.evaluate(() => devicePixelRatio) === dpr, `devicePixelRatio ${dpr}`);
      await editor(page, w, h);
      const strokes = [];
      await size(page, 16); strokes.push({ size: 16, points: await draw(page, [[0.2, 0.25], [0.7, 0.4], [0.65, 0.8]], w, h) });
      await size(page, 1); strokes.push({ size: 1, points: await draw(page, [[0.05, 0.9], [0.4, 0.6]], w, h) });
      await size(page, 9); await setTool(page, "eraser"); strokes.push({ size: 9, value: 0, points: await draw(page, [[0.5, 0.2], [0.6, 0.6]], w, h) });
      await setTool(page, "brush"); await size(page, 30); strokes.push({ size: 30, points: await draw(page, [[0.99, 0.01]], w, h) });
      await page.click("#zoom-in"); await page.click("#zoom-in"); await size(page, 5);
      strokes.push({ size: 5, points: await draw(page, [[0.5, 0.5], [0.45, 0.62]], w, h) });
      const mask = await savedMask(page);
      const n = differ(mask.data, expected(w, h, strokes));
      check(mask.width === w && mask.height === h && mask.exact, `${name}, ${w}x${h}: a grey PNG of 0 and 255`);
      check(n === 0 && sum(mask.data) > 100, `${name}, ${w}x${h}: ${n} of ${w * h} bytes differ, ${sum(mask.data)} painted`);
      clean(page, name); await page.context().close();
    }
  });
}

test("undo and redo", async () => {
  const page = await open(browser); await editor(page);
  const states = [(await savedMask(page)).data];
  for (let i = 0; i < 3; i++) { await draw(page, [[0.2 + 0.2 * i, 0.3], [0.3 + 0.2 * i, 0.6]], 128, 128); states.push((await savedMask(page)).data); }
  await page.click("#invert"); states.push((await savedMask(page)).data);
  const is = async (i, what) => check(differ((await savedMask(page)).data, states[i]) === 0, what);
  await page.locator("#viewport").focus();
  await page.keyboard.press("Control+z"); await is(3, "Ctrl+Z undoes the inversion");
  await page.keyboard.press("Control+z"); await is(2, "Ctrl+Z undoes a stroke");
  await page.click("#undo"); await is(1, "the button undoes");
  await page.keyboard.press("Control+Shift+Z"); await is(2, "Shift+Ctrl+Z redoes");
  await page.keyboard.press("Control+y"); await is(3, "Ctrl+Y redoes");
  await page.click("#redo"); await is(4, "the button redoes");
  check(await page.locator("#redo").isDisabled(), "nothing more to redo");
  const key = (init) => page.evaluate((i) => document.querySelector("#viewport").dispatchEvent(new KeyboardEvent("keydown", { bubbles: true, cancelable: true, ...i })), init);
  await key({ key: "z", code: "KeyY", ctrlKey: true }); await is(3, "Swiss keyboard: z where US has y");
  await key({ key: "я", code: "KeyZ", ctrlKey: true }); await is(2, "Russian keyboard: the key at its place");
  await key({ key: "z", code: "KeyZ", metaKey: true }); await is(1, "Command+Z");
  const before = Number(await page.inputValue("#brush-size-number"));
  await key({ key: "[", code: "Digit8", ctrlKey: true, altKey: true }); check(Number(await page.inputValue("#brush-size-number")) < before, "[ by AltGr");
  await page.fill("#prompt", "abc"); await page.keyboard.press("Control+z"); await is(1, "Ctrl+Z in the prompt leaves the mask");
  await page.click("#clear"); check(sum((await savedMask(page)).data) === 0, "clear"); await page.click("#undo"); await is(1, "clear is undone");
  clean(page, "undo"); await page.context().close();
});

test("keyboard only", async () => {
  const page = await open(browser); await mock({ posts: [] });
  await page.locator("[name=mode]:checked").focus();
  await page.keyboard.press("ArrowRight"); await page.keyboard.press("ArrowRight");
  check(await page.evaluate(() => document.body.dataset.mode) === "inpaint", "modes by arrow keys");
  await page.setInputFiles("#source-file", file(128, 128)); await page.waitForSelector("#editor:not([hidden])");
  for (let i = 0; i < 40 && await page.evaluate(() => document.activeElement.id !== "viewport"); i++) await page.keyboard.press("Tab");
  check(await page.evaluate(() => document.activeElement.id === "viewport"), "Tab comes to the mask");
  check(await page.locator("#brush").isVisible(), "the brush is seen");
  for (let i = 0; i < 20; i++) await page.keyboard.press("[");
  check(await page.inputValue("#brush-size-number") === "1", "[ makes the brush smaller");
  for (let i = 0; i < 4; i++) await page.keyboard.press("]");
  await page.keyboard.press("Shift+ArrowLeft"); for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowUp");
  await page.keyboard.press(" ");
  await page.keyboard.press("Shift+ArrowRight");
  await page.keyboard.down(" "); for (let i = 0; i < 7; i++) await page.keyboard.press("ArrowDown"); await page.keyboard.up(" ");
  await page.keyboard.press("ArrowRight"); await page.keyboard.press("Enter"); for (let i = 0; i < 2; i++) await page.keyboard.press("Shift+ArrowRight"); await page.keyboard.press("Enter");
  const strokes = [{ size: 5, points: [[54, 61]] }, { size: 5, points: [[64, 61], [64, 68]] }, { size: 5, points: [[65, 68], [85, 68]] }];
  let mask = await savedMask(page); check(differ(mask.data, expected(128, 128, strokes)) === 0, `arrows, space and Enter: ${sum(mask.data)} painted as expected`);
  await page.locator("#viewport").focus(); await page.keyboard.press("e"); await page.keyboard.press(" ");
  strokes.push({ size: 5, points: [[85, 68]], value: 0 }); mask = await savedMask(page); check(differ(mask.data, expected(128, 128, strokes)) === 0, "the eraser by E");
  await page.fill("#rectangle-x", "10"); await page.fill("#rectangle-y", "20"); await page.fill("#rectangle-width", "30"); await page.fill("#rectangle-height", "400");
  await page.locator("#rectangle-paint").press("Enter");
  const want = expected(128, 128, strokes); for (let y = 20; y < 128; y++) want.fill(255, y * 128 + 10, y * 128 + 40);
  mask = await savedMask(page); check(differ(mask.data, want) === 0, "a rectangle by numbers");
  await page.locator(".handle.right").focus(); for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowRight"); await page.keyboard.press("ArrowLeft");
  await page.locator(".handle.top").focus(); await page.keyboard.press("ArrowUp");
  check(await page.inputValue("#margin-right") === "16" && await page.inputValue("#margin-top") === "8", "edges by arrow keys");
  await page.locator("#prompt").focus(); await page.keyboard.type("a frog"); await page.keyboard.press("Enter");
  await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 });
  if (MOCK) {
    const { posts } = await mock(); const body = posts.at(-1); const sent = PNG.sync.read(Buffer.from(body.mask.split(",")[1], "base64"));
    check(sent.width === 128 && want.every((v, i) => sent.data[i * 4] === v), "the mask that is sent is the one that was painted");
    check(JSON.stringify(body.request.inpaint) === JSON.stringify({ outpaint: { left: 0, top: 8, right: 16, bottom: 0 } }), `margins sent: ${JSON.stringify(body.request.inpaint)}`);
    check(Buffer.from(body.image.split(",")[1], "base64").equals(picture(128, 128)), "the picture's bytes are sent as they are");
  }
  clean(page, "keyboard"); await page.context().close();
});

test("mask files and survival", async () => {
  const page = await open(browser); await editor(page, 128, 96);
  const png = new PNG({ width: 64, height: 48 }); for (let y = 0; y < 48; y++) for (let x = 0; x < 64; x++) png.data.set(x < 20 ? [255, 255, 255, 255] : x < 30 ? [100, 100, 100, 255] : [0, 0, 0, 255], (y * 64 + x) * 4);
  await page.setInputFiles("#mask-file", { name: "m.png", mimeType: "image/png", buffer: PNG.sync.write(png) }); await page.waitForTimeout(200);
  const want = new Uint8Array(128 * 96); for (let y = 0; y < 96; y++) want.fill(255, y * 128, y * 128 + 40);
  const is = async (what) => check(differ((await savedMask(page)).data, want) === 0, what);
  await is("a mask is loaded, black and white, at the picture's size");
  await page.fill("#prompt", "a fox"); await openAll(page, "#settings"); await page.fill("#steps", "4"); await page.selectOption("#scheduler", { index: 1 });
  await setMode(page, "txt2img"); await setMode(page, "img2img"); await setMode(page, "inpaint");
  await is("it survives changes of prompt, settings and mode");
  await page.click("#make"); await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 }); await is("it survives a job");
  if (!MOCK) { await page.click("#finished >> text=Details"); } else await page.locator("#gallery-list .tile").first().click();
  await page.click("#viewer [data-action=repaint]"); await page.waitForTimeout(300);
  check(sum((await savedMask(page)).data) === 0, "another picture starts with no mask"); await page.click("#undo"); await is("which undo gives back");
  await page.click("#invert"); check(sum((await savedMask(page)).data) === 128 * 96 - sum(want), "inverted"); await page.click("#invert");
  await page.selectOption("#brush-unit", "screen"); await size(page, 20); await page.click("#zoom-in"); await page.click("#clear");
  const scale = await page.locator("#editor-picture").evaluate((e) => e.getBoundingClientRect().width / 128);
  const points = await draw(page, [[0.5, 0.5]], 128, 96);
  const mask = await savedMask(page); check(differ(mask.data, expected(128, 96, [{ size: Math.max(1, Math.round(20 / scale)), points }])) === 0, `20 screen pixels at ${scale.toFixed(2)}: ${sum(mask.data)} painted`);
  clean(page, "files"); await page.context().close();
});

test("outpainting", async () => {
  const page = await open(browser); await editor(page); await mock({ posts: [] });
  const scale = await page.locator("#editor-picture").evaluate((e) => e.getBoundingClientRect().width / 128);
  for (const [side, dx, dy] of [["left", -1, 0], ["bottom", 0, 1]]) {
    const b = await page.locator(`.handle.${side}`).boundingBox(); const [x, y] = [b.x + b.width / 2, b.y + b.height / 2];
    await page.mouse.move(x, y); await page.mouse.down(); await page.mouse.move(x + dx * 30, y + dy * 30); await page.mouse.move(x + dx * 43, y + dy * 43); await page.mouse.up();
    const s = await page.inputValue(`#margin-${side}`); const first = side === "left" ? scale : null;
    check(Number(s) % 8 === 0 && Number(s) > 0 && (!first || Number(s) === Math.round(43 / first / 8) * 8), `${side} dragged to ${s}`);
  }
  await openAll(page, "#editor details"); await page.fill("#margin-left", "61"); await page.locator("#margin-left").blur();
  check(await page.inputValue("#margin-left") === "64", "numbers are rounded to 8");
  await page.fill("#margin-bottom", "32"); await page.locator("#margin-bottom").blur();
  await page.fill("#prompt", "a fox on a beach"); await page.click("#make"); await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 });
  const done = await page.locator("#finished .shown img").evaluate((i) => [i.naturalWidth, i.naturalHeight]);
  check(done.join() === "192,160", `the result is ${done}`);
  if (MOCK) { const { posts } = await mock(); check(posts.at(-1).mask === undefined && posts.at(-1).request.inpaint.outpaint.left === 64, "no mask is sent for margins alone"); }
  clean(page, "outpainting"); await page.context().close();
});

test("recall", async () => {
  const page = await open(browser);
  await openAll(page, "#settings"); await page.fill("#prompt", "a red fox"); await page.fill("#steps", "7"); await page.fill("#seed", "4711"); await page.fill("#guidance", "3.5"); await page.selectOption("#scheduler", "euler"); await page.fill("#negative", "blue");
  await openAll(page, "#more"); await page.waitForSelector("#more-fields [data-kind]"); const eta = page.locator("[data-field='request.eta']"); if (MOCK) await eta.fill("0.5");
  await page.click("#make"); await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 });
  const id = await page.locator("#finished").getAttribute("data-job");
  const bytes = Buffer.from(await (await fetch(`${BASE}/api/jobs/${id}/pictures/0`)).arrayBuffer());
  const values = () => page.evaluate(() => ["prompt", "steps", "seed", "guidance", "scheduler", "negative"].map((i) => document.getElementById(i).value).join("|"));
  const all = await values();
  const drop = () => page.evaluate((b) => { const d = new DataTransfer(); d.items.add(new File([Uint8Array.from(atob(b), (c) => c.charCodeAt(0))], "x.png", { type: "image/png" })); for (const t of ["dragenter", "dragover", "drop"]) document.body.dispatchEvent(new DragEvent(t, { bubbles: true, cancelable: true, dataTransfer: d })); }, bytes.toString("base64"));
  await page.click("#reset"); await page.fill("#prompt", "other"); check((await values()) === "other|||||", "reset");
  await drop(); await page.waitForSelector("#intake[open]"); await page.waitForSelector("#intake [data-action=settings]:enabled");
  check(/a red fox/.test(await page.textContent("#intake-text")), "the dialog tells the prompt");
  await page.click("#intake [data-action=settings]"); await page.waitForFunction(() => document.querySelector("#prompt").value === "a red fox");
  check((await values()) === all, `recalled from a dropped picture: ${await values()}`); if (MOCK) check(await eta.inputValue() === "0.5", "also rare options");
  await page.click("#reset"); await page.fill("#prompt", ""); await drop(); await page.waitForSelector("#intake [data-action=reseed]:enabled"); await page.click("#intake [data-action=reseed]");
  await page.waitForFunction(() => document.querySelector("#prompt").value === "a red fox"); check(await page.inputValue("#seed") === "", "without the seed");
  await page.click("#reset"); await page.locator("#gallery-list .tile").first().click(); await page.click("#viewer [data-action=settings]"); await page.waitForFunction(() => document.querySelector("#seed").value === "4711");
  check((await values()) === all, "recalled from the gallery");
  await drop(); await page.waitForSelector("#intake [data-action=start]"); await page.click("#intake [data-action=start]"); await page.waitForSelector("#source-thumb:not([hidden])"); check(await page.evaluate(() => document.body.dataset.mode) === "img2img", "a dropped picture starts image to image");
  await page.evaluate((b) => { const d = new DataTransfer(); d.items.add(new File([Uint8Array.from(atob(b), (c) => c.charCodeAt(0))], "", { type: "image/png" })); document.dispatchEvent(new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: d })); }, picture(40, 30).toString("base64"));
  await page.waitForSelector("#intake[open]"); await page.waitForFunction(() => /does not say/.test(document.querySelector("#intake-text").textContent)); check(await page.locator("#intake [data-action=settings]").isDisabled(), "a pasted picture without settings says so");
  await page.keyboard.press("Escape"); check(await page.locator("#intake").isHidden(), "Escape closes");
  page.problems = page.problems.filter((p) => !/400/.test(p)); clean(page, "recall"); await page.context().close();
});

test("gallery", async () => {
  const page = await open(browser);
  await openAll(page, "#settings"); await page.fill("#number", "3"); await page.fill("#steps", "3"); await page.fill("#prompt", "an owl"); await page.click("#make");
  await page.waitForFunction(() => document.querySelectorAll("#finished .shown img[src^='blob:']").length === 3, null, { timeout: 60000 }); check(true, "three pictures of a job");
  const before = await page.locator("#gallery-list .tile").count();
  await page.locator("#finished .shown").nth(1).click(); await page.waitForSelector("#viewer[open]");
  const seed = () => page.locator("#viewer-facts dt:text-is('seed') + dd").textContent(); const s = Number(await seed());
  await page.keyboard.press("ArrowRight"); check(Number(await seed()) === s + 1, "arrow keys go on"); await page.keyboard.press("ArrowLeft");
  const [d] = await Promise.all([page.waitForEvent("download"), page.click("#viewer [data-action=download]")]); check(d.suggestedFilename() === `an-owl-${s}.png`, `download as ${d.suggestedFilename()}`);
  await page.click("#viewer [data-action=delete]"); await page.click("#confirm .close"); check(await page.locator("#gallery-list .tile").count() === before, "kept when not confirmed");
  await page.click("#viewer [data-action=delete]"); await page.click("#confirm-yes"); await page.waitForFunction((n) => document.querySelectorAll("#gallery-list .tile").length === n - 3, before); check(true, "deleted with its job");
  if (MOCK) { for (let i = 0; i < 30; i++) await fetch(`${BASE}/api/jobs`, { method: "POST", body: JSON.stringify({ kind: "txt2img", request: { prompt: `old ${i}`, steps: 1 } }) }); await mock({ step: 1 }); await page.waitForTimeout(800);
    await page.reload(); await page.waitForSelector("#gallery-more:not([hidden])"); const n = await page.locator("#gallery-list .tile").count(); await page.click("#gallery-more"); await page.waitForFunction((k) => document.querySelectorAll("#gallery-list .tile").length > k, n); check(true, "more are shown"); await mock({ step: 20 }); }
  clean(page, "gallery"); await page.context().close();
});

test("errors", async () => {
  const page = await open(browser);
  await openAll(page, "#settings"); await page.fill("#prompt", "a fox"); await page.fill("#width", "100"); await page.evaluate(() => (document.querySelector("#settings").open = false)); await page.click("#make");
  await page.waitForSelector("#width-error"); check(await page.locator("#width-error").isVisible() && await page.evaluate(() => document.activeElement.id === "width"), "an error is beside its field, which is unfolded and focused");
  await page.fill("#width", ""); check(!(await page.locator("#width-error").isVisible()), "it goes when the field changes");
  if (MOCK) {
    await page.fill("#steps", "2000"); await page.click("#make"); await page.waitForSelector("#steps-error"); check(/at most 1000/.test(await page.textContent("#steps-error")), "the server's word on a field"); await page.fill("#steps", "5");
    await mock({ full: 1 }); await page.click("#make"); await page.waitForSelector("#form-error:not([hidden])"); check(/Try again in 2 s/.test(await page.textContent("#form-error")), "429 with the time to wait");
    await page.waitForFunction(() => document.querySelector("#make").textContent === "Make a picture", null, { timeout: 5000 }); check(true, "the button comes back");
    await page.fill("#prompt", "fail"); await page.click("#make"); await page.waitForFunction(() => /failed: the latents/.test(document.querySelector("#finished").textContent), null, { timeout: 20000 }); check(true, "a failure is told");
    await mock({ drop: 4, lastIds: [], step: 60 }); await page.fill("#prompt", "a panda"); await page.fill("#steps", "12"); await page.click("#make");
    await page.waitForFunction(() => document.querySelector("#finished .shown img[src^='blob:']"), null, { timeout: 60000 }); const { lastIds } = await mock(); check(lastIds.length > 2 && lastIds.every((v, i) => i === 0 || Number(v) > Number(lastIds[i - 1])), `lost connections are taken up again after ${lastIds}`); await mock({ drop: 0, step: 20 });
  }
  await setMode(page, "img2img"); await page.click("#make"); await page.waitForSelector("#source-error:not([hidden])"); check(true, "a missing picture is told beside it");
  await editor(page); await page.click("#make"); await page.waitForSelector("#mask-error:not([hidden])"); check(true, "an empty mask is told beside it");
  page.problems = page.problems.filter((p) => !/400|429|INCOMPLETE|EMPTY|reset|ERR_/.test(p)); clean(page, "errors"); await page.context().close();
});

test("offline", async () => {
  const page = await open(browser); await page.fill("#prompt", "a fox"); await page.context().setOffline(true); await page.click("#make");
  await page.waitForSelector("#form-error:not([hidden])", { timeout: 15000 }); check(/cannot be reached/.test(await page.textContent("#form-error")), "no connection is told after some attempts");
  await page.context().setOffline(false); await page.click("#make"); await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 }); check(true, "and then it works"); await page.context().close();
});

if (KEYED) test("key", async () => {
  const page = await open(browser, {}, KEYED).catch((e) => { throw e; });
  await page.waitForSelector("#key[open]"); check(true, "the key is asked for");
  const axe = await new AxeBuilder({ page }).analyze(); check(axe.violations.length === 0, `axe on the key dialog: ${axe.violations.map((v) => v.id)}`);
  await page.fill("#key-value", "wrong"); await page.keyboard.press("Enter"); await page.waitForSelector("#key-error:not([hidden])"); check(true, "a wrong key is told");
  await page.fill("#key-value", process.env.TWEEDIE_KEY ?? "secret"); await page.keyboard.press("Enter"); await page.waitForFunction(() => document.querySelector("#model").options.length > 0);
  await page.fill("#prompt", "a fox"); await page.keyboard.press("Enter"); await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 }); check(true, "events and pictures come with the key");
  await page.reload(); await page.waitForFunction(() => document.querySelector("#model").options.length > 0); check(await page.locator("#key").isHidden(), "the tab keeps it"); await page.context().close();
});

for (const colorScheme of ["light", "dark"]) test(`axe ${colorScheme}`, async () => {
  await mock({ step: 40 });
  const page = await open(browser, { colorScheme });
  const axe = async (what) => { await page.waitForTimeout(150); const r = await new AxeBuilder({ page }).analyze(); check(r.violations.length === 0, `axe ${colorScheme}, ${what}: ${r.violations.length} violations${r.violations.map((v) => ` ${v.id}: ${v.nodes.map((n) => n.target + " " + n.any.map((a) => a.message)).slice(0, 3)}`)}`); };
  await axe("first sight");
  await page.fill("#prompt", "a fox zorp backgroud"); await page.waitForSelector("#unknown p"); await axe("unknown words");
  await openAll(page, "#settings, #more"); await page.waitForSelector("#more-fields [data-kind]"); if (await page.locator("#lora-add").isVisible()) await page.click("#lora-add"); await axe("settings");
  if (await page.locator("#lora-list button").count()) await page.click("#lora-list button");
  await page.fill("#prompt", "a fox"); await page.fill("#steps", MOCK ? "60" : "300"); for (let i = 0; i < 3; i++) { await page.click("#make"); await page.waitForFunction(() => document.querySelector("#make").getAttribute("aria-disabled") === "false"); }
  await page.waitForSelector("#queue:not([hidden])"); await axe("queue and progress");
  while (await page.locator("#queue-list button").count()) { await page.locator("#queue-list button").last().click({ timeout: 2000 }).catch(() => {}); await page.waitForTimeout(150); }
  await page.click("#live-cancel", { timeout: 2000 }).catch(() => {}); await idle(page); await mock({ step: 5 });
  await page.fill("#steps", "3"); await page.fill("#width", "12"); await page.click("#make"); await page.waitForSelector("#width-error"); await axe("an error"); await page.fill("#width", "");
  await page.click("#make"); await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 }); await axe("a picture");
  await page.locator("#finished .shown").click(); await axe("viewer"); await page.click("#viewer [data-action=delete]"); await axe("confirmation"); await page.click("#confirm .close"); await page.click("#viewer .close");
  await setMode(page, "img2img"); await axe("image to image, empty"); await page.setInputFiles("#source-file", file(64, 64)); await axe("image to image");
  await setMode(page, "inpaint"); await openAll(page, "#editor details"); await axe("mask editor");
  await page.evaluate((b) => { const d = new DataTransfer(); d.items.add(new File([Uint8Array.from(atob(b), (c) => c.charCodeAt(0))], "x.png", { type: "image/png" })); document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: d })); }, picture(40, 30).toString("base64"));
  await page.waitForSelector("#intake[open]"); await axe("dropped picture"); await page.context().close(); await mock({ step: 20 });
});

test("phone", async () => {
  const page = await open(browser, { viewport: { width: 360, height: 740 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true });
  const look = async (what) => {
    const r = await page.evaluate(() => { const small = []; for (const e of document.querySelectorAll("button, select, summary, textarea, input, [role=slider], .button, .segments label")) { const b = (e.matches("input[type=radio], input[type=checkbox], .file input") ? e.closest("label") : e).getBoundingClientRect(); if (b.width && getComputedStyle(e).visibility !== "hidden" && (b.height < 40 || b.width < 40)) small.push(`${e.id || e.className || e.textContent} ${b.width.toFixed(0)}x${b.height.toFixed(0)}`); } return { wide: document.documentElement.scrollWidth, small }; });
    check(r.wide <= 360 && r.small.length === 0, `360 px, ${what}: ${r.wide} px wide, small targets: ${r.small}`);
  };
  await look("first"); await page.tap("#settings > summary"); await openAll(page, "#more"); await page.waitForSelector("#more-fields [data-kind]"); await look("settings");
  await page.fill("#prompt", "a fox on a blue backgroud with averyveryverylongwordthatdoesnotendandgoesonandon"); await page.waitForSelector("#unknown p"); await look("long words");
  await page.fill("#steps", "3"); await page.tap("#make"); await page.waitForSelector("#finished .shown img[src^='blob:']", { timeout: 60000 }); await look("picture");
  await page.tap("#finished .shown"); await look("viewer"); await page.tap("#viewer [data-action=repaint]"); await page.waitForTimeout(300); await openAll(page, "#editor details"); await look("editor");
  const view = () => page.locator("#viewport").evaluate((e) => e.scrollIntoView({ block: "center", behavior: "instant" })); await view();
  let box = await page.locator("#mask").boundingBox(); const cdp = await page.context().newCDPSession(page); let [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  const touch = (type, points) => cdp.send("Input.dispatchTouchEvent", { type, touchPoints: points.map(([px, py], id) => ({ x: px, y: py, id })) });
  await touch("touchStart", [[x, y]]); await touch("touchMove", [[x + 30, y + 10]]); await touch("touchEnd", []); await page.waitForTimeout(100);
  const painted = sum((await savedMask(page)).data); check(painted > 0, `a finger paints ${painted}`); const zoom = await page.textContent("#zoom"); await view(); box = await page.locator("#mask").boundingBox(); [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  await touch("touchStart", [[x, y]]); await touch("touchStart", [[x, y], [x + 40, y]]); await touch("touchMove", [[x - 20, y], [x + 80, y]]); await touch("touchEnd", []); await page.waitForTimeout(100);
  check(sum((await savedMask(page)).data) === painted && (await page.textContent("#zoom")) !== zoom, `two fingers zoom (${zoom} to ${await page.textContent("#zoom")}) and paint nothing`);
  clean(page, "phone"); await page.context().close();
});

test("blob URLs", async () => {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 } }); const page = await context.newPage();
  await page.addInitScript(() => { window.live = new Set(); const [make, end] = [URL.createObjectURL, URL.revokeObjectURL]; URL.createObjectURL = (b) => { const u = make.call(URL, b); live.add(u); return u; }; URL.revokeObjectURL = (u) => { live.delete(u); end.call(URL, u); }; });
  await page.goto(BASE + "/"); await page.waitForFunction(() => document.querySelector("#model").options.length > 0); await page.waitForTimeout(500);
  await mock({ step: 30 }); const start = await page.evaluate(() => live.size);
  for (let i = 0; i < 3; i++) { await page.fill("#prompt", `a fox`); await page.click("#make"); await page.waitForSelector("#live:not([hidden])"); await idle(page); await page.waitForTimeout(300); }
  const now = await page.evaluate(() => live.size); const shown = await page.evaluate(() => document.querySelectorAll("img[src^=blob]").length);
  check(now === shown , `${start} at first, ${now} after three jobs with previews, as many as are shown (${shown})`); await context.close();
});

await mock({}, "/mock/reset"); await mock({ step: 20 });
for (const [name, run] of tests) {
  if (process.argv[2] && !name.includes(process.argv[2])) continue;
  console.log(`\n${name}`);
  try { await run(); } catch (error) { check(false, `${name}: ${String(error.stack).split("\n").slice(0, 12).join("\n")}`); for (const c of browser.contexts()) await c.close(); }
}
await end(browser);
