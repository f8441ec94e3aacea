// The `openai` package for Node, unchanged, against the gateway.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { needs, url } from "./gateway.mjs";

const client = new OpenAI({ baseURL: `${url || "http://127.0.0.1:1"}/v1`, apiKey: "none", maxRetries: 0, timeout: 30_000 });
const ask = [{ role: "user", content: "Hello!" }];

/** All chunks of a stream. */
async function gather(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

const textOf = (chunks, index = 0) =>
  chunks.flatMap((chunk) => chunk.choices).filter((choice) => choice.index === index).map((choice) => choice.delta?.content ?? choice.text ?? "").join("");

const finishOf = (chunks, index = 0) =>
  chunks.flatMap((chunk) => chunk.choices).filter((choice) => choice.index === index && choice.finish_reason).map((choice) => choice.finish_reason);

describe("the openai package for Node", needs(), () => {
  test("lists and retrieves models", async () => {
    const names = (await gather(client.models.list())).map((model) => model.id);
    assert.ok(names.includes("demo") && names.includes("scripted"), names.join());
    const demo = await client.models.retrieve("demo");
    assert.equal(demo.id, "demo");
    assert.equal(demo.object, "model");
  });

  test("streams a chat: one role, text, one finish, the same id throughout", async () => {
    const chunks = await gather(await client.chat.completions.create({ model: "demo", messages: ask, stream: true, max_tokens: 24 }));
    assert.equal(chunks[0].choices[0].delta.role, "assistant");
    assert.ok(textOf(chunks).length > 0);
    assert.equal(finishOf(chunks).length, 1);
    assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
    assert.ok(chunks.every((chunk) => chunk.object === "chat.completion.chunk" && Array.isArray(chunk.choices)));
    assert.ok(chunks.every((chunk) => !chunk.usage), "usage goes only to those who ask");
  });

  test("gives the same text streamed and whole for one seed", async () => {
    const request = { model: "demo", messages: ask, max_tokens: 24, temperature: 0, seed: 7 };
    const whole = await client.chat.completions.create(request);
    const chunks = await gather(await client.chat.completions.create({ ...request, stream: true }));
    assert.equal(whole.object, "chat.completion");
    assert.equal(whole.choices[0].message.role, "assistant");
    assert.equal(textOf(chunks), whole.choices[0].message.content);
    assert.equal(finishOf(chunks)[0], whole.choices[0].finish_reason);
    assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
  });

  test("sends the usage last, in a chunk without choices, when asked", async () => {
    const chunks = await gather(await client.chat.completions.create({
      model: "scripted?tokens=12", messages: ask, stream: true, stream_options: { include_usage: true },
    }));
    const last = chunks.at(-1);
    assert.deepEqual(last.choices, []);
    assert.equal(last.usage.completion_tokens, 12);
    assert.ok(chunks.slice(0, -1).every((chunk) => !chunk.usage && chunk.choices.length > 0));
  });

  test("completes a plain prompt, streamed and whole", async () => {
    const request = { model: "scripted?tokens=10", prompt: "The gate" };
    const whole = await client.completions.create(request);
    const chunks = await gather(await client.completions.create({ ...request, stream: true }));
    assert.equal(whole.object, "text_completion");
    assert.ok(whole.choices[0].text.length > 0);
    assert.equal(textOf(chunks), whole.choices[0].text);
  });

  test("ends at max_tokens with the reason length", async () => {
    const whole = await client.chat.completions.create({ model: "scripted?tokens=50", messages: ask, max_tokens: 5 });
    assert.equal(whole.choices[0].finish_reason, "length");
    assert.equal(whole.usage.completion_tokens, 5);
  });

  test("ends before a stop string that spans tokens, and never shows it", async () => {
    const model = "scripted?tokens=40&token_bytes=3";
    const full = (await client.chat.completions.create({ model, messages: ask })).choices[0].message.content;
    const stop = full.slice(20, 27);
    const chunks = await gather(await client.chat.completions.create({ model, messages: ask, stop: [stop], stream: true }));
    assert.equal(textOf(chunks), full.slice(0, full.indexOf(stop)));
    assert.deepEqual(finishOf(chunks), ["stop"]);
  });

  test("gives log-probabilities with bytes and alternatives", async () => {
    const whole = await client.chat.completions.create({ model: "demo", messages: ask, max_tokens: 8, logprobs: true, top_logprobs: 3 });
    const { content } = whole.choices[0].logprobs;
    assert.ok(content.length > 0 && content.length <= 8);
    for (const token of content) {
      assert.equal(typeof token.token, "string");
      assert.ok(token.logprob <= 0);
      assert.ok(Array.isArray(token.bytes));
      assert.equal(token.top_logprobs.length, 3);
    }
    const bytes = Buffer.from(content.flatMap((token) => token.bytes)).toString();
    assert.ok(bytes.startsWith(whole.choices[0].message.content.slice(0, 4)));
  });

  test("runs two choices side by side", async () => {
    const request = { model: "demo", messages: ask, n: 2, max_tokens: 12, temperature: 1, seed: 3 };
    const whole = await client.chat.completions.create(request);
    assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1]);
    const chunks = await gather(await client.chat.completions.create({ ...request, stream: true }));
    for (const index of [0, 1]) {
      assert.ok(textOf(chunks, index).length > 0);
      assert.equal(finishOf(chunks, index).length, 1);
    }
  });

  test("embeds one text and many, by base64 as the package asks by itself, and as numbers", async () => {
    const input = ["Hello there.", "Something else."];
    const decoded = await client.embeddings.create({ model: "demo", input });
    const floats = await client.embeddings.create({ model: "demo", input, encoding_format: "float" });
    assert.deepEqual(decoded.data.map((entry) => entry.index), [0, 1]);
    for (const [at, { embedding }] of decoded.data.entries()) {
      assert.ok(Math.abs(embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4);
      assert.equal(embedding.length, floats.data[at].embedding.length);
      assert.ok(embedding.every((x, i) => Math.abs(x - floats.data[at].embedding[i]) < 1e-6));
    }
    const short = await client.embeddings.create({ model: "demo", input: input[0], dimensions: 16 });
    assert.equal(short.data[0].embedding.length, 16);
    assert.equal(decoded.usage.prompt_tokens, decoded.usage.total_tokens);
  });

  test("raises NotFoundError for a model that is not there", async () => {
    const call = client.chat.completions.create({ model: "no-such-model", messages: ask });
    await assert.rejects(call, (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError, String(error));
      assert.equal(error.status, 404);
      assert.equal(error.code, "model_not_found");
      return true;
    });
  });

  test("raises BadRequestError that names the field at fault", async () => {
    const call = client.chat.completions.create({ model: "demo", messages: ask, temperature: -3, stream: true });
    await assert.rejects(call, (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError, String(error));
      assert.equal(error.param, "temperature");
      return true;
    });
  });

  test("raises in mid-stream, after the text that came", async () => {
    const stream = await client.chat.completions.create({ model: "scripted?fail_at=5&pace=5ms", messages: ask, stream: true });
    let text = "";
    await assert.rejects(async () => {
      for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
    }, (error) => error instanceof OpenAI.APIError);
    assert.ok(text.length > 0);
  });

  test("stops at once when the caller aborts, and serves the next request", async () => {
    const stream = await client.chat.completions.create({ model: "scripted?tokens=100000&pace=10ms", messages: ask, stream: true });
    let seen = 0;
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta.content && (seen += 1) === 5) stream.controller.abort();
      assert.ok(seen < 50, "the stream went on after the abort");
    }
    const next = await client.chat.completions.create({ model: "scripted?tokens=3", messages: ask });
    assert.equal(next.usage.completion_tokens, 3);
  });
});
