// Keys and tokens by clients that know nothing of us: a gateway of our own that asks who is there.

import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createHash, generateKeyPairSync, randomBytes, sign } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import OpenAI from "openai";
import { missingProgram, needs } from "./gateway.mjs";

const program = process.env.SLUICEGATE_PROGRAM ?? "";

const newKey = () => `sgk_${randomBytes(32).toString("base64url")}`;
const hash = (key) => `sha256:${createHash("sha256").update(key).digest("hex")}`;

const RIGHT = newKey();
/** Good for one model only. */
const NARROW = newKey();
const WRONG = newKey();

/** An issuer, and what it publishes. */
const issuer = generateKeyPairSync("ed25519");
const jwks = { keys: [{ ...issuer.publicKey.export({ format: "jwk" }), kid: "1", use: "sig" }] };

/** A token of the issuer that is good for so many seconds. */
function token(seconds, claims = {}) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  const exp = Math.floor(Date.now() / 1000) + seconds;
  const message = `${part({ alg: "EdDSA", kid: "1", typ: "JWT" })}.${part({ sub: "alice", aud: "gate", exp, ...claims })}`;
  return `${message}.${sign(null, Buffer.from(message), issuer.privateKey).toString("base64url")}`;
}

describe("a gateway that asks who is there", needs(program ? missingProgram(program) : "SLUICEGATE_PROGRAM names no program", missingProgram("curl")), () => {
  let dir, gateway, url, tlsUrl;

  before(async () => {
    dir = mkdtempSync(join(tmpdir(), "sluicegate-keys-"));
    const jwksFile = join(dir, "jwks.json");
    writeFileSync(jwksFile, JSON.stringify(jwks));
    const keys = [
      `{id="right",hash="${hash(RIGHT)}"}`,
      `{id="narrow",hash="${hash(NARROW)}",models=["scripted"]}`,
    ];
    gateway = spawn(program, [
      "serve", ...["server", "ops", "tls"].flatMap((section) => ["--set", `${section}.listen="127.0.0.1:0"`]),
      "--set", 'drain.lag="0s"', "--set", `server.state_dir="${dir}"`,
      "--set", `auth.keys=[${keys}]`, "--set", `auth.jwt={jwks_file="${jwksFile}",audience="gate"}`,
      "--set", 'models=[{name="scripted",engine="scripted"},{name="other",engine="scripted"}]',
    ], { stdio: ["ignore", "pipe", "ignore"] });
    let out = "";
    for await (const text of gateway.stdout.setEncoding("utf8").iterator({ destroyOnReturn: false })) {
      out += text;
      if (out.includes("operators")) break;
    }
    gateway.stdout.resume();
    url = /open (http:\/\/[^/]*)\//.exec(out)?.[1];
    tlsUrl = /TLS (https:\/\/[^/]*)\//.exec(out)?.[1];
    assert.ok(url && tlsUrl, `the gateway did not get ready: ${out}`);
  });

  after(async () => {
    if (gateway && gateway.exitCode === null) {
      const ended = new Promise((resolve) => gateway.once("exit", resolve));
      gateway.kill();
      await ended;
    }
    if (dir) rmSync(dir, { recursive: true });
  });

  const client = (apiKey) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 30_000 });

  /** Streams a chat through the SDK; its text. */
  async function chat(apiKey, model = "scripted") {
    const messages = [{ role: "user", content: "Hello!" }];
    let text = "";
    for await (const chunk of await client(apiKey).chat.completions.create({ model, messages, stream: true, max_tokens: 8 })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    return text;
  }

  /** Runs curl; the status and the body. */
  function curl(path, ...args) {
    const { stdout } = spawnSync("curl", ["-sS", "-w", "\n%{http_code}", ...args, `${url}${path}`], { encoding: "utf8" });
    const end = stdout.lastIndexOf("\n");
    return { status: Number(stdout.slice(end + 1)), body: stdout.slice(0, end) };
  }

  test("serves the openai package with the right key, and with a token", async () => {
    for (const credential of [RIGHT, NARROW, token(600), token(600, { aud: ["other", "gate"], scope: "openid generate" })]) {
      assert.ok((await chat(credential)).length > 0);
    }
    const names = async (credential) => (await client(credential).models.list()).data.map((model) => model.id);
    assert.deepEqual(await names(RIGHT), ["scripted", "other"]);
    assert.deepEqual(await names(NARROW), ["scripted"]);
  });

  test("raises what the openai package has for a wrong key, and for the wrong rights", async () => {
    for (const wrong of [WRONG, `${RIGHT}x`, RIGHT.slice(0, -1), "none", token(-600), token(600, { aud: "other" }), `${token(600).slice(0, -4)}AAAA`, `${token(600).split(".", 2).join(".")}.`]) {
      await assert.rejects(chat(wrong), (error) => {
        assert.ok(error instanceof OpenAI.AuthenticationError, String(error));
        assert.equal(error.status, 401);
        assert.ok(error.code && error.requestID, "a code, and an id to ask about");
        assert.ok(wrong === "none" || !error.message.includes(wrong), "the credential is not repeated");
        return true;
      });
    }
    for (const [credential, model] of [[NARROW, "other"], [token(600, { scope: "embed" }), "scripted"]]) {
      await assert.rejects(chat(credential, model), OpenAI.PermissionDeniedError);
    }
  });

  test("takes the key where others put it", () => {
    const body = ["-H", "content-type: application/json", "-d", JSON.stringify({ model: "scripted", messages: [{ role: "user", content: "Hello!" }], max_tokens: 4 })];
    assert.equal(curl("/v1/chat/completions", ...body).status, 401);
    for (const header of [`x-api-key: ${RIGHT}`, `authorization: bearer ${RIGHT}`, `X-Api-Key: ${token(600)}`]) {
      assert.equal(curl("/v1/chat/completions", ...body, "-H", header).status, 200, header.split(":")[0]);
    }
    for (const headers of [[`x-api-key: ${WRONG}`], [`x-api-key: ${RIGHT}`, `authorization: Bearer ${WRONG}`], [`authorization: Basic ${RIGHT}`]]) {
      const refused = curl("/v1/chat/completions", ...body, ...headers.flatMap((header) => ["-H", header]));
      assert.equal(refused.status, 401);
      assert.equal(typeof JSON.parse(refused.body).error.code, "string");
    }
  });

  test("asks on JSON-RPC, too, and answers in its words", () => {
    const call = ["-H", "content-type: application/json", "-d", JSON.stringify({
      jsonrpc: "2.0", id: 7, method: "chat", params: { model: "scripted", messages: [{ role: "user", content: "Hello!" }], max_tokens: 4 },
    })];
    const good = curl("/rpc", ...call, "-H", `authorization: Bearer ${RIGHT}`);
    assert.equal(good.status, 200);
    assert.ok(!("error" in JSON.parse(good.body.trim().split("\n").at(-1))), good.body);
    const refused = curl("/rpc", ...call, "-H", `authorization: Bearer ${WRONG}`);
    assert.equal(refused.status, 401);
    assert.equal(JSON.parse(refused.body).jsonrpc, "2.0");
    assert.ok(JSON.parse(refused.body).error.message);
  });

  test("leaves open what says nothing", () => {
    for (const path of ["/", "/app.js", "/healthz", "/readyz", "/rpc/openrpc.json"]) {
      assert.equal(curl(path).status, 200, path);
    }
    assert.equal(curl("/v1/models").status, 401);
  });

  for (const [name, flags] of [["HTTP/1.1", []], ["HTTP/2", ["--http2"]], ["HTTP/3", ["--http3"]], ["sluice/1", ["--quic"]]]) {
    test(`serves our own client over ${name} with the key from the environment, and tells a stranger what to do`, () => {
      const talk = (key) => spawnSync(program, ["chat", "--url", tlsUrl, "--insecure", "--max-tokens", "8", ...flags, "Hello!"], {
        encoding: "utf8", env: { ...process.env, SLUICEGATE_API_KEY: key },
      });
      for (const credential of [RIGHT, token(600)]) {
        const known = talk(credential);
        assert.equal(known.status, 0, known.stderr);
        assert.ok(known.stdout.trim());
      }
      for (const key of ["", WRONG]) {
        const stranger = talk(key);
        assert.equal(stranger.status, 1);
        assert.match(stranger.stderr, /401 Unauthorized.*SLUICEGATE_API_KEY.*--key-file/);
        assert.ok(!stranger.stderr.includes(WRONG));
      }
    });
  }
});
