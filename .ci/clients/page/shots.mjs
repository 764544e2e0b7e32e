// Screenshots of the page in every mode, two sizes and both themes: node shots.mjs FOLDER [part of a name].
import { launch, open, mock } from "./lib.mjs";
const browser = await launch();
await mock({}, "/mock/reset"); await mock({ step: 10 });
const [, , folder = ".", only] = process.argv;
for (const [name, viewport] of [["1280x800", { width: 1280, height: 800 }], ["390x844", { width: 390, height: 844 }]]) {
  for (const colorScheme of ["light", "dark"]) {
    const tag = `${name}-${colorScheme}`;
    if (only && !tag.includes(only)) continue;
    const page = await open(browser, { viewport, colorScheme, deviceScaleFactor: 1, hasTouch: name.startsWith("390") });
    const shot = (what, full = false) => page.screenshot({ path: `${folder}/${what}-${tag}.png`, fullPage: full });
    await page.waitForTimeout(300);
    await shot("1-first");
    await page.fill("#prompt", "a fox on a blue backgroud with zorp");
    await page.waitForTimeout(600);
    await shot("2-unknown");
    await page.fill("#prompt", "a fox on a blue background");
    await mock({ step: 80 });
    await page.keyboard.press("Enter");
    for (let i = 0; i < 2; i++) { await page.waitForTimeout(250); await page.fill("#prompt", ["a castle at sunset", "an octopus in space"][i]); await page.keyboard.press("Enter"); }
    await page.waitForTimeout(900);
    await shot("3-live", true);
    await mock({ step: 5 });
    await page.waitForFunction(() => document.querySelector("#live").hidden, null, { timeout: 20000 });
    await page.waitForTimeout(500);
    await shot("4-done", true);
    await page.click("#settings > summary");
    await page.waitForTimeout(300);
    await shot("5-settings", true);
    await page.click("#settings > summary");
    await page.locator("#gallery-list button.tile").first().click();
    await page.waitForTimeout(400);
    await shot("6-viewer");
    await page.click("#viewer [data-action=repaint]");
    await page.waitForTimeout(500);
    const box = await page.locator("#mask").boundingBox();
    await page.mouse.move(box.x + box.width * 0.3, box.y + box.height * 0.3); await page.mouse.down();
    await page.mouse.move(box.x + box.width * 0.6, box.y + box.height * 0.5); await page.mouse.up();
    await page.locator(".handle.right").focus(); for (let i = 0; i < 4; i++) await page.keyboard.press("ArrowRight");
    await page.waitForTimeout(300);
    await shot("7-editor", true);
    await page.locator("[name=mode][value=img2img]").check({ force: true });
    await page.waitForTimeout(300);
    await shot("8-img2img");
    if (page.problems.length) console.log(tag, page.problems);
    await page.context().close();
  }
}
await browser.close();
