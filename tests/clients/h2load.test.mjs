// h2load: nghttp2's HTTP/2, many streams on each of many connections.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { missingProgram, needs, tlsUrl, url } from "./gateway.mjs";

const REQUESTS = 200;
const LOAD = ["--requests", String(REQUESTS), "--clients", "10", "--max-concurrent-streams", "10"];

describe("h2load", needs(missingProgram("h2load"), tlsUrl ? null : "SLUICEGATE_TLS_URL names no listener"), () => {
  let folder;
  before(() => {
    folder = mkdtempSync(join(tmpdir(), "h2load-"));
  });
  after(() => rmSync(folder, { recursive: true }));

  /** Runs it; returns what it says of the answers. */
  async function load(...args) {
    const { stdout } = await promisify(execFile)("h2load", [...LOAD, ...args]);
    assert.match(stdout, new RegExp(`^requests: ${REQUESTS} total, .* ${REQUESTS} succeeded, 0 failed, 0 errored, 0 timeout`, "m"));
    assert.match(stdout, new RegExp(`^status codes: ${REQUESTS} 2xx`, "m"));
    return stdout;
  }

  for (const [how, base] of [["by prior knowledge", url], ["over TLS", tlsUrl]]) {
    test(`gets every plain answer ${how}`, async () => {
      await load(`${base}/v1/models`);
    });

    test(`gets every stream to its end ${how}`, async () => {
      const body = join(folder, "body.json");
      const request = { model: "scripted?text=abcd&tokens=50", stream: true, messages: [{ role: "user", content: "Hello!" }] };
      writeFileSync(body, JSON.stringify(request));
      const out = await load("--data", body, "--header", "content-type: application/json", `${base}/v1/chat/completions`);
      // A stream's least: each token's four letters, in events of their own or not.
      const bytes = Number(/\((\d+)\) data$/m.exec(out)?.[1]);
      assert.ok(bytes > REQUESTS * 50 * 4, out);
      if (base === tlsUrl) assert.match(out, /^Application protocol: h2$/m);
    });
  }
});
