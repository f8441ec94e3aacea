// The page in a real browser: Debian's Chromium, headless.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { chromium } from "playwright-core";
import { missingProgram, needs, url } from "./gateway.mjs";

const executablePath = process.env.CHROMIUM || "/usr/bin/chromium";
const args = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync",
];

/** In the page: texts of these nodes that stand out too little from their ground (WCAG 2.2, 1.4.3). */
function faint(nodes) {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    probe.fillStyle = colour;
    probe.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...probe.getImageData(0, 0, 1, 1).data].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const { backgroundColor } = getComputedStyle(node);
      if (!/^rgba\(.*, 0\)$|transparent/.test(backgroundColor)) return backgroundColor;
    }
    return "white";
  };
  return [...document.querySelectorAll(nodes)]
    .filter((node) => node.checkVisibility() && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()))
    .map((node) => {
      const [a, b] = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
      return [node.textContent.slice(0, 20), Number(((a + 0.05) / (b + 0.05)).toFixed(2))];
    })
    .filter(([, ratio]) => ratio < 4.5);
}

describe("the page", needs(missingProgram(executablePath)), () => {
  let browser;
  before(async () => {
    browser = await chromium.launch({ executablePath, args });
  });
  after(() => browser?.close());

  /** Opens the page with `model` chosen, runs `body`, and fails on anything that the console complains about. */
  async function visit(model, body, { expectRefusal = false, ...options } = {}) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
    try {
      const page = await context.newPage();
      const complaints = [];
      page.on("pageerror", (error) => complaints.push(String(error)));
      page.on("console", (message) => {
        // Chromium itself logs every HTTP status that is an error.
        const refusal = expectRefusal && message.text().startsWith("Failed to load resource");
        if (["error", "warning"].includes(message.type()) && !refusal) complaints.push(message.text());
      });
      page.on("request", (request) => {
        if (!request.url().startsWith(`${url}/`) && !request.url().startsWith("data:")) complaints.push(`asks ${request.url()}`);
      });
      await page.addInitScript(() => {
        globalThis.violations = [];
        document.addEventListener("securitypolicyviolation", (event) => globalThis.violations.push(event.violatedDirective));
      });
      await page.goto(`${url}/${model ? `?model=${encodeURIComponent(model)}` : ""}`);
      await page.waitForFunction(() => !document.querySelector("#model").disabled);
      await body(page);
      assert.deepEqual(await page.evaluate(() => globalThis.violations), []);
      assert.deepEqual(complaints, []);
    } finally {
      await context.close();
    }
  }

  const say = async (page, text) => {
    await page.getByLabel("Message", { exact: true }).fill(text);
    await page.keyboard.press("Enter");
  };
  const answer = (page) => page.locator(".turn.assistant .said").last();
  const length = async (page) => (await answer(page).textContent()).length;
  const ended = (page) => page.locator("#stop").waitFor({ state: "hidden" });

  test("arrives with a strict policy and no outside resource", async () => {
    const response = await fetch(`${url}/`);
    const policy = response.headers.get("content-security-policy");
    assert.match(policy, /default-src 'none'/);
    assert.match(policy, /script-src 'self'(;|$)/);
    assert.match(policy, /style-src 'self'(;|$)/);
    assert.match(response.headers.get("content-type"), /^text\/html/);
    assert.ok(response.headers.get("etag"));
    await visit(null, async () => {});
  });

  test("shows a streamed answer grow, then its figures", async () => {
    await visit("scripted?tokens=60&pace=20ms", async (page) => {
      await say(page, "Hello!");
      await page.waitForFunction(() => document.querySelector(".turn.assistant .said")?.textContent.length > 8);
      const early = await length(page);
      await page.waitForTimeout(300);
      assert.ok(await page.locator("#stop").isVisible(), "still streaming");
      const later = await length(page);
      assert.ok(later > early, "the text grows");
      assert.match(await page.locator("#rate").textContent(), /^[\d.,]+$/);
      await ended(page);
      assert.equal(await page.locator("#tokens").textContent(), "60");
      assert.match(await page.locator("#ttft").textContent(), /^[\d.]+ m?s$/);
      assert.match(await page.locator(".turn.assistant .figures").textContent(), /60 tokens · [\d.,]+ tok\/s · first after/);
      assert.match(await page.locator("#gaps").getAttribute("aria-label"), /median .* longest/);
      const painted = await page.locator("#gaps").evaluate((canvas) =>
        canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.filter((v, i) => i % 4 === 3 && v > 0).length);
      assert.ok(painted > 500, "the gaps are drawn");
      assert.match(await page.locator("#announcer").textContent(), /Answer complete, 60 tokens\./);
    });
  });

  test("talks with the real demo model over several turns", async () => {
    await visit("demo", async (page) => {
      await page.getByLabel("Max tokens").fill("32");
      await page.getByRole("button", { name: "Hello!" }).click();
      await ended(page);
      assert.ok(await length(page) > 0);
      const second = page.waitForRequest("**/v1/chat/completions");
      await say(page, "what is backpressure");
      const body = (await second).postDataJSON();
      assert.deepEqual(body.messages.map((message) => message.role), ["user", "assistant", "user"]);
      assert.equal(body.max_tokens, 32);
      assert.deepEqual(body.stream_options, { include_usage: true });
      await ended(page);
      await page.getByRole("button", { name: "Regenerate" }).click();
      await ended(page);
      assert.equal(await page.locator(".turn").count(), 4);
      await page.getByRole("button", { name: "New chat" }).click();
      assert.equal(await page.locator(".turn").count(), 0);
    });
  });

  for (const [how, stop] of [
    ["button", (page) => page.getByRole("button", { name: "Stop", exact: true }).click()],
    ["Escape key", (page) => page.keyboard.press("Escape")],
  ]) {
    test(`stops within a second by the ${how}`, async () => {
      await visit("scripted?tokens=5000&pace=20ms", async (page) => {
        await say(page, "Hello!");
        await page.waitForFunction(() => document.querySelector(".turn.assistant .said")?.textContent.length > 20);
        const asked = performance.now();
        await stop(page);
        await ended(page);
        assert.ok(performance.now() - asked < 1000);
        const there = await length(page);
        await page.waitForTimeout(200);
        assert.equal(await length(page), there);
        assert.match(await page.locator(".figures").textContent(), /stopped/);
      });
    });
  }

  test("shows a failure in mid-stream, keeps the text, and tries again", async () => {
    await visit("scripted?fail_at=5&pace=5ms", async (page) => {
      await say(page, "Hello!");
      const notice = page.locator(".notice.failed");
      await notice.waitFor();
      assert.match(await notice.textContent(), /This answer is incomplete/);
      assert.ok(await length(page) > 0);
      await notice.getByRole("button", { name: "Try again" }).click();
      await ended(page);
      assert.equal(await page.locator(".turn").count(), 2);
      assert.equal(await page.locator(".notice.failed").count(), 1);
    });
  });

  test("says why a model that is not there gives no answer", async () => {
    await visit("no-such-model", async (page) => {
      await say(page, "Hello!");
      const notice = page.locator(".notice.failed");
      await notice.waitFor();
      assert.match(await notice.textContent(), /No answer.*HTTP 404 · model_not_found/);
    }, { expectRefusal: true });
  });

  test("takes a stream that ends without [DONE] for what it is", async () => {
    await visit("scripted", async (page) => {
      await page.route("**/v1/chat/completions", (route) => route.fulfill({
        contentType: "text/event-stream",
        body: ': hello\r\n\r\ndata: {"choices":[{"index":0,"delta":{"content":"half an ans"}}]}\r\n\r\n',
      }));
      await say(page, "Hello!");
      await page.locator(".notice.failed").waitFor();
      assert.equal(await answer(page).textContent(), "half an ans");
      assert.match(await page.locator(".notice.failed").textContent(), /ended before the answer was complete/);
    });
  });

  test("helps when the list of models fails", async () => {
    const context = await browser.newContext();
    const page = await context.newPage();
    let failing = true;
    await page.route("**/v1/models", (route) => (failing ? route.fulfill({ status: 503, body: "{}" }) : route.continue()));
    await page.goto(`${url}/`);
    await page.getByRole("alert").waitFor();
    assert.match(await page.getByRole("alert").textContent(), /list of models did not load.*503/s);
    failing = false;
    await page.getByRole("button", { name: "Try again" }).click();
    await page.getByRole("alert").waitFor({ state: "hidden" });
    assert.ok(await page.getByLabel("Model").isEnabled());
    await context.close();
  });

  /** A gateway that asks for this key, and a page on it. */
  async function asked(key, body, options = {}) {
    const context = await browser.newContext({ viewport: { width: 390, height: 844 }, ...options });
    const page = await context.newPage();
    const believed = { key };
    await page.route("**/v1/**", (route) => (route.request().headers().authorization === `Bearer ${believed.key}` ? route.continue() : route.fulfill({
      status: 401,
      json: { error: { message: "You are not known here.", type: "authentication_error", param: null, code: "invalid_api_key" } },
    })));
    await page.goto(`${url}/?model=scripted`);
    await body(page, page.getByRole("dialog"), believed);
    await context.close();
  }

  test("asks for a key, keeps it in the tab, and forgets it", async () => {
    await asked("sgk_right", async (page, dialog, believed) => {
      await dialog.waitFor();
      assert.match(await dialog.textContent(), /This gateway asks for a key.*You are not known here\./s);
      await dialog.getByLabel("API key").fill("sgk_wrong");
      await page.keyboard.press("Enter");
      await dialog.getByText("This key was not accepted").waitFor();
      await dialog.getByLabel("API key").fill("sgk_right");
      await dialog.getByRole("button", { name: "Use this key" }).click();
      await dialog.waitFor({ state: "hidden" });
      await page.waitForFunction(() => !document.querySelector("#model").disabled);
      await say(page, "Hello!");
      await ended(page);
      assert.ok(await length(page) > 0);
      const stored = () => page.evaluate(() => [sessionStorage.getItem("sluicegate.key"), Object.values(localStorage).join().includes("sgk_")]);
      assert.deepEqual(await stored(), ["sgk_right", false]);
      await page.reload();
      await page.waitForFunction(() => !document.querySelector("#model").disabled);
      assert.ok(await dialog.isHidden());

      // It is taken from the file of keys: the next answer asks, and goes on with the new one.
      believed.key = "sgk_next";
      await say(page, "Hello!");
      await dialog.getByText("This key was not accepted").waitFor();
      await dialog.getByLabel("API key").fill("sgk_next");
      await page.keyboard.press("Enter");
      await ended(page);
      await page.waitForFunction(() => document.querySelector(".turn.assistant .said")?.textContent);
      assert.equal(await page.locator(".notice.failed").count(), 0);

      await page.getByRole("button", { name: "Settings" }).click();
      await page.getByRole("button", { name: "Forget the key" }).click();
      assert.deepEqual(await stored(), [null, false]);
      assert.ok(await page.getByRole("button", { name: "Forget the key" }).isHidden());
    });
  });

  for (const width of [390, 1280]) {
    for (const colorScheme of ["light", "dark"]) {
      test(`asks for a key readably on ${width} pixels in the ${colorScheme} theme`, async () => {
        await asked("sgk_right", async (page, dialog) => {
          await dialog.waitFor();
          const box = await dialog.boundingBox();
          assert.ok(box.x >= 8 && box.x + box.width <= width - 8 && box.y >= 0 && box.y + box.height <= 844, JSON.stringify(box));
          assert.deepEqual(await page.evaluate(faint, "#ask, #ask *"), []);
          assert.equal(await page.evaluate(() => document.activeElement.id), "ask-key");
          await page.keyboard.press("Escape");
          await dialog.waitFor({ state: "hidden" });
          assert.match(await page.getByRole("alert").textContent(), /You are not known here/);
        }, { viewport: { width, height: 844 }, colorScheme });
      });
    }
  }

  test("reads events wherever the bytes are cut, like an EventSource", async () => {
    await visit(null, async (page) => {
      const wrong = await page.evaluate(async () => {
        const { EventReader } = await import("/stream.js");
        const text = ": note\r\ndata: one\r\n\r\nevent: x\rdata:two\rdata:  three\r\r\n\ndata\n\nid: 1\nretry: 5\n\ndata: {\"a\":\"é你\"}\n\nunended";
        const expected = JSON.stringify([["message", "one"], ["x", "two\n three"], ["message", ""], ["message", "{\"a\":\"é你\"}"]]);
        const read = (pieces) => {
          const reader = new EventReader();
          return JSON.stringify([...pieces.flatMap((piece) => reader.push(piece)), ...reader.finish()].map(({ name, data }) => [name, data]));
        };
        const wrong = [];
        for (let a = 0; a <= text.length; a += 1) {
          for (let b = a; b <= text.length; b += 1) {
            const got = read([text.slice(0, a), text.slice(a, b), text.slice(b)]);
            if (got !== expected) wrong.push([a, b, got]);
          }
        }
        return wrong.slice(0, 3);
      });
      assert.deepEqual(wrong, []);
    });
  });

  test("draws hostile Markdown as text, and the same however it is cut", async () => {
    await visit(null, async (page) => {
      const result = await page.evaluate(async () => {
        const { LiveMarkdown } = await import("/markdown.js");
        const draw = (pieces) => {
          const root = document.createElement("div");
          const live = new LiveMarkdown(root);
          for (const piece of pieces) live.push(piece);
          return root;
        };
        // A small generator with a fixed seed: parts that mean something, in any order, cut anywhere.
        let state = 42;
        const random = (below) => {
          state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
          return Math.floor((state / 2 ** 32) * below);
        };
        const parts = [
          "word ", "*", "**", "_", "`", "``", "```js\n", "```\n", "\n", "\n\n", "# ", "- ", "  - ", "1. ", "12) ", "> ", ">> ", "| a | b |\n", "|--|:-:|\n",
          "---\n", "***\n", "~~", "\\", "[x](https://a.example)", "[x](javascript:alert(1))", "![y](data:text/html,1)", "https://b.example/c).", "<script>alert(1)</script>",
          "<img src=x onerror=alert(1)>", "&amp;", "é", "你好", "\t", "    ", "\u0000", "]", "(",
        ];
        const differing = [];
        const forbidden = new Set();
        for (let round = 0; round < 1500; round += 1) {
          let text = "";
          for (let i = random(40); i > 0; i -= 1) text += parts[random(parts.length)];
          const pieces = [];
          for (let at = 0; at < text.length;) {
            const size = 1 + random(8);
            pieces.push(text.slice(at, at + size));
            at += size;
          }
          const whole = draw([text]);
          const cut = draw(pieces);
          if (whole.innerHTML !== cut.innerHTML) differing.push(text);
          for (const node of whole.querySelectorAll("*")) {
            if (/^(script|img|iframe|object|style|svg|form|input)$/i.test(node.localName)) forbidden.add(node.localName);
            for (const { name } of node.attributes) if (name.startsWith("on") || name === "style" || name === "src") forbidden.add(name);
            if (node.localName === "a" && (!/^https?:$/.test(node.protocol) || !node.rel.includes("noopener"))) forbidden.add(node.href);
          }
        }
        const slow = [];
        for (const [name, text] of Object.entries({
          brackets: "[".repeat(100_000), stars: "*a ".repeat(50_000), runs: Array.from({ length: 600 }, (_, i) => `${"`".repeat(i)} x`).join(""),
          quotes: `${"> ".repeat(20_000)}x`, items: "- a\n\n".repeat(5_000), blanks: `- a${"\n".repeat(50_000)}`, links: "[a](".repeat(30_000), bars: "|".repeat(50_000),
        })) {
          const start = performance.now();
          draw([text]);
          if (performance.now() - start > 2000) slow.push(name);
        }
        return { differing: differing.slice(0, 3), forbidden: [...forbidden], slow };
      });
      assert.deepEqual(result, { differing: [], forbidden: [], slow: [] });
    });
  });

  test("keeps up with a fast stream", async () => {
    await visit("scripted?tokens=20000", async (page) => {
      await page.evaluate(() => {
        globalThis.frames = 0;
        const frame = () => {
          globalThis.frames += 1;
          requestAnimationFrame(frame);
        };
        requestAnimationFrame(frame);
      });
      await say(page, "Hello!");
      await page.waitForFunction(() => document.querySelector("#tokens").textContent === "20,000", null, { timeout: 20_000 });
      assert.ok(await length(page) > 50_000);
      assert.ok(await page.evaluate(() => globalThis.frames) > 3, "the page goes on drawing");
    });
  });

  test("names every control, and can be used by keyboard alone", async () => {
    await visit(null, async (page) => {
      const nameless = await page.locator("button, input, select, textarea, a, canvas").evaluateAll((nodes) =>
        nodes.filter((node) => !(node.getAttribute("aria-label") || node.title || node.textContent.trim() || node.labels?.[0]?.textContent.trim())).map((node) => node.outerHTML));
      assert.deepEqual(nameless, []);
      assert.equal(await page.getByRole("combobox", { name: "Model", exact: true }).count(), 1);
      for (const name of ["Message", "System prompt", "Temperature", "Top p", "Top k", "Min p", "Max tokens", "Seed"]) {
        assert.equal(await page.getByLabel(name, { exact: true }).count(), 1, name);
      }
      assert.equal(await page.getByRole("status").getAttribute("aria-live"), "polite");
      const first = page.locator("a, button, input, select, textarea, [tabindex]").first();
      assert.equal(await first.getAttribute("class"), "skip");
      await first.focus();
      await page.keyboard.press("Enter");
      assert.equal(await page.evaluate(() => document.activeElement.id), "prompt");
      await page.keyboard.type("one");
      await page.keyboard.press("Shift+Enter");
      await page.keyboard.type("two");
      assert.equal(await page.getByLabel("Message", { exact: true }).inputValue(), "one\ntwo");
    });
  });

  for (const width of [390, 1280]) {
    for (const colorScheme of ["light", "dark"]) {
      test(`fits ${width} pixels in the ${colorScheme} theme, with readable contrast`, async () => {
        await visit("scripted?tokens=30", async (page) => {
          await say(page, "a".repeat(300));
          await ended(page);
          const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
          assert.ok(overflow <= 0, `${overflow} pixels too wide`);
          assert.deepEqual(await page.evaluate(faint, "body *"), []);
        }, { viewport: { width, height: 844 }, colorScheme });
      });
    }
  }

  test("remembers a chosen theme", async () => {
    await visit(null, async (page) => {
      await page.getByRole("button", { name: "Switch to dark theme" }).click();
      await page.reload();
      assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
      await page.getByRole("button", { name: "Switch to light theme" }).click();
      assert.equal(await page.evaluate(() => localStorage.getItem("sluicegate.theme")), null);
    }, { colorScheme: "light" });
  });
});
