// The page over HTTP/3: Chromium's QUIC is an implementation of its own.

import assert from "node:assert/strict";
import { X509Certificate, createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { certificate, missingProgram, needs, opsUrl, tlsUrl } from "./gateway.mjs";

const executablePath = process.env.CHROMIUM || "/usr/bin/chromium";
const missing = [
  missingProgram(executablePath), tlsUrl ? null : "SLUICEGATE_TLS_URL names no listener",
  certificate ? null : "SLUICEGATE_CERT names no file", opsUrl ? null : "SLUICEGATE_OPS_URL names no listener",
];

/** How many requests have ended because their client left. */
async function gone() {
  const metrics = await (await fetch(`${opsUrl}/metrics`)).text();
  const lines = metrics.split("\n").filter((line) => line.startsWith("sluicegate_requests_total{") && line.includes('outcome="client_gone"'));
  return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
}

describe("the page over QUIC", needs(...missing), () => {
  let browser;
  const port = tlsUrl && new URL(tlsUrl).port;

  before(async () => {
    const key = new X509Certificate(readFileSync(certificate)).publicKey.export({ type: "spki", format: "der" });
    browser = await chromium.launch({
      executablePath,
      args: [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        // Without force, Chromium wants a certificate that a public authority vouches for (its own rule for
        // QUIC); with it, the list of keys is enough.
        `--origin-to-force-quic-on=localhost:${port}`,
        `--ignore-certificate-errors-spki-list=${createHash("sha256").update(key).digest("base64")}`,
        // The name may stand for ::1 first, where nobody listens.
        "--host-resolver-rules=MAP localhost 127.0.0.1",
      ],
    });
  });
  after(() => browser?.close());

  /** Opens the page with `model` chosen. */
  async function visit(model) {
    const page = await browser.newPage();
    await page.goto(`https://localhost:${port}/?model=${encodeURIComponent(model)}`);
    await page.waitForFunction(() => !document.querySelector("#model").disabled);
    return page;
  }

  const say = async (page, text) => {
    await page.getByLabel("Message", { exact: true }).fill(text);
    await page.keyboard.press("Enter");
  };
  const answer = (page) => page.locator(".turn.assistant .said").last();
  const ended = (page) => page.locator("#stop").waitFor({ state: "hidden" });

  test("chats token by token, everything over HTTP/3", async () => {
    const page = await visit("scripted?text=abcd&tokens=60&pace=20ms");
    await say(page, "Hello!");
    await page.waitForFunction(() => document.querySelector(".turn.assistant .said")?.textContent.length > 8);
    assert.ok(await page.locator("#stop").isVisible(), "still streaming");
    await ended(page);
    assert.equal(await answer(page).textContent(), "abcd".repeat(60));
    const used = await page.evaluate(() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
      .map(({ name, nextHopProtocol }) => [new URL(name).pathname, nextHopProtocol]));
    assert.ok(used.some(([path]) => path === "/v1/chat/completions"), JSON.stringify(used));
    assert.deepEqual(used.filter(([, protocol]) => protocol !== "h3"), []);
    await page.close();
  });

  for (const model of ["scripted?pace=1h", "scripted?tokens=100000&pace=10ms"]) {
    test(`is seen to stop: ${model}`, async () => {
      const before = await gone();
      const page = await visit(model);
      await say(page, "Hello!");
      await page.waitForFunction(() => document.querySelector(".turn.assistant .said")?.textContent.length > 0);
      await page.keyboard.press("Escape");
      await ended(page);
      while (await gone() === before) await page.waitForTimeout(10);
      assert.equal(await gone(), before + 1);
      // The connection goes on.
      assert.equal(await page.evaluate(async () => (await fetch("/healthz")).text()), "ok\n");
      await page.close();
    });
  }
});
