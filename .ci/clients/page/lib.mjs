import { chromium } from "playwright-core";
export const URL = (process.env.TWEEDIE_URL ?? "http://127.0.0.1:8791").replace(/\/$/, "");
export const MOCK = URL.endsWith(":8791");
export const KEYED = process.env.TWEEDIE_KEYED_URL ?? (MOCK ? "http://127.0.0.1:8792" : null);
const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
export const launch = () => chromium.launch({ executablePath: "/usr/bin/chromium", args });
export async function open(browser, options = {}, url = URL) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, acceptDownloads: true, ...options });
  const page = await context.newPage();
  page.problems = [];
  page.on("console", (m) => { if (["error", "warning"].includes(m.type())) page.problems.push(m.text()); });
  page.on("pageerror", (e) => page.problems.push(`exception: ${e.message}`));
  page.on("request", (r) => { const u = r.url(); if (!u.startsWith(url) && !/^(blob|data):/.test(u)) page.problems.push(`outside: ${u}`); });
  await page.goto(url + "/");
  await page.waitForFunction(() => document.querySelector("#model")?.options.length > 0).catch(() => {});
  return page;
}
export const mock = async (value, path = "/mock") => MOCK && (await fetch(URL + path, { method: "POST", body: JSON.stringify(value ?? {}) })).json();
let failed = 0;
export function check(ok, what) { console.log(`${ok ? "ok  " : "FAIL"} ${what}`); if (!ok) failed++; }
export function end(browser) { return browser.close().then(() => { console.log(failed ? `${failed} failed` : "all passed"); process.exit(failed ? 1 : 0); }); }
