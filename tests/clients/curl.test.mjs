// curl, as people use it: tokens must appear as they come, in every format.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { describe, test } from "node:test";
import { certificate, missingProgram, needs, opsUrl, tlsUrl, url } from "./gateway.mjs";

/** Forty tokens, a fiftieth of a second apart: eight tenths of a second from first to last. */
const PACED = "scripted?tokens=40&pace=20ms";
const SPREAD_MS = 400;

/** Runs curl; returns its output and when each piece of it came, in milliseconds. */
function curl(...args) {
  return new Promise((resolve, reject) => {
    const child = spawn("curl", ["-sS", "-N", ...args]);
    const pieces = [];
    let errors = "";
    child.stdout.setEncoding("utf8").on("data", (text) => pieces.push({ text, at: performance.now() }));
    child.stderr.setEncoding("utf8").on("data", (text) => { errors += text; });
    child.on("error", reject);
    child.on("close", (code) => {
      if (code !== 0) reject(new Error(`curl ended with ${code}: ${errors}`));
      else resolve({ text: pieces.map((piece) => piece.text).join(""), spread: pieces.at(-1).at - pieces[0].at, pieces: pieces.length });
    });
  });
}

/** What this curl can do, by its own word. */
const features = spawnSync("curl", ["--version"], { encoding: "utf8" }).stdout ?? "";

const post = (path, body, ...args) =>
  curl("-H", "content-type: application/json", "-d", JSON.stringify(body), ...args, `${url}${path}`);

const chat = (model, more = {}) => ({ model, messages: [{ role: "user", content: "Hello!" }], ...more });

function cameAsItWas({ spread, pieces }) {
  assert.ok(spread > SPREAD_MS, `all within ${Math.round(spread)} ms: it was held back`);
  assert.ok(pieces > 10, `only ${pieces} pieces`);
}

describe("curl", needs(missingProgram("curl")), () => {
  test("shows server-sent events as they come", async () => {
    const out = await post("/v1/chat/completions", chat(PACED, { stream: true }), "-i");
    cameAsItWas(out);
    const [head] = out.text.split("\r\n\r\n");
    assert.match(head, /^HTTP\/1\.1 200/);
    assert.match(head, /^content-type: text\/event-stream/im);
    assert.match(head, /^cache-control: .*no-cache/im);
    assert.match(head, /^x-accel-buffering: no/im);
    assert.match(head, /^x-request-id: \S/im);
    assert.match(out.text, /data: \[DONE\]\n\n$/);
    assert.doesNotMatch(out.text, /^id:/m);
  });

  test("shows bare text as it comes, the same text as in JSON", async () => {
    const out = await post("/v1/chat/completions", chat(PACED), "-H", "accept: text/plain");
    cameAsItWas(out);
    const whole = JSON.parse((await post("/v1/chat/completions", chat("scripted?tokens=40"))).text);
    assert.equal(out.text, whole.choices[0].message.content);
  });

  test("shows one JSON object a line as they come", async () => {
    const out = await post("/v1/chat/completions", chat(PACED), "-H", "accept: application/x-ndjson");
    cameAsItWas(out);
    const chunks = out.text.trimEnd().split("\n").map((line) => JSON.parse(line));
    const text = chunks.flatMap((chunk) => chunk.choices).map((choice) => choice.delta.content ?? "").join("");
    assert.ok(text.length > 0);
    assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  });

  test("shows JSON-RPC token notifications, then the response", async () => {
    const params = { ...chat(PACED), stream: true };
    const out = await post("/rpc", { jsonrpc: "2.0", id: 7, method: "chat", params });
    cameAsItWas(out);
    const lines = out.text.trimEnd().split("\n").map((line) => JSON.parse(line));
    const response = lines.pop();
    assert.equal(response.id, 7);
    assert.ok(response.result, JSON.stringify(response.error));
    assert.ok(lines.length >= 40);
    for (const line of lines) {
      assert.equal(line.method, "token");
      assert.equal(line.params.id, 7);
    }
  });

  test("speaks HTTP/2 by prior knowledge", async () => {
    const out = await post("/v1/chat/completions", chat(PACED, { stream: true }), "-i", "--http2-prior-knowledge");
    assert.match(out.text, /^HTTP\/2 200/);
    cameAsItWas(out);
  });

  for (const [option, version, feature] of [["--http1.1", "1.1", "SSL"], ["--http2", "2", "HTTP2"], ["--http3-only", "3", "HTTP3"]]) {
    // Debian's curl has no HTTP/3: the one thing here that may be missing in CI, too.
    const able = new RegExp(`^Features:.* ${feature}\\b`, "m").test(features);
    const options = feature === "HTTP3" && !able ? { skip: "this curl has no HTTP/3" } : needs(tlsUrl ? null : "SLUICEGATE_TLS_URL names no listener");
    test(`speaks HTTP/${version} over TLS`, options, async () => {
      assert.ok(able, features);
      const body = JSON.stringify(chat(PACED, { stream: true }));
      const out = await curl("-i", option, "--cacert", certificate, "-H", "content-type: application/json", "-d", body, `${tlsUrl}/v1/chat/completions`);
      assert.ok(out.text.startsWith(`HTTP/${version} 200`), out.text.slice(0, 100));
      if (version !== "3") assert.match(out.text, /^alt-svc: h3=":\d+"; ma=\d+\r$/im);
      cameAsItWas(out);
    });
  }

  test("gets an error frame, not a silent end, when a stream fails", async () => {
    const { text } = await post("/v1/chat/completions", chat("scripted?fail_at=7&pace=5ms", { stream: true }));
    const frames = text.split(/\r?\n\r?\n/).filter((frame) => frame.startsWith("data: {")).map((frame) => JSON.parse(frame.slice(6)));
    const { error } = frames.at(-1);
    assert.equal(typeof error.message, "string");
    assert.equal(typeof error.code, "string");
  });

  test("gets a real status when the failure comes first", async () => {
    const { text } = await post("/v1/chat/completions", chat("scripted?fail_at=0", { stream: true }), "-i");
    assert.match(text, /^HTTP\/1\.1 500/);
    assert.match(text, /^content-type: application\/json/im);
  });

  test("finds the gateway healthy and ready", async () => {
    assert.match((await curl("-i", `${url}/healthz`)).text, /^HTTP\/1\.1 200/);
    assert.match((await curl("-i", `${url}/readyz`)).text, /^HTTP\/1\.1 200/);
  });

  test("finds metrics on the ops listener, and only there", needs(opsUrl ? null : "SLUICEGATE_OPS_URL names no listener"), async () => {
    assert.match((await curl(`${opsUrl}/metrics`)).text, /^sluicegate_/m);
    assert.match((await curl("-i", `${url}/metrics`)).text, /^HTTP\/1\.1 404/);
  });
});
