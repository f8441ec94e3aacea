// The wire: server-sent events in, chat deltas out. Knows nothing of the page.

/** A failure that the reader should see: a sentence, and what helps to look it up. */
export class StreamError extends Error {
	constructor(message, { status = 0, code = null, requestId = null, retryAfter = null } = {}) {
		super(message);
		this.status = status;
		this.code = code;
		this.requestId = requestId;
		this.retryAfter = retryAfter;
	}
}

/**
 * Incremental reader of `text/event-stream` (WHATWG HTML, 9.2.6). Text may be cut anywhere, also
 * between CR and LF; an event that the stream's end cuts short is dropped, as the standard says.
 */
export class EventReader {
	#rest = "";
	#data = [];
	#name = "";

	/** Takes the next piece of text; returns the events it completes, as `{name, data}`. */
	push(text) {
		const events = [];
		const buffer = this.#rest + text;
		let at = 0;
		for (;;) {
			let end = at;
			while (end < buffer.length && buffer[end] !== "\n" && buffer[end] !== "\r") end += 1;
			// A CR at the very end may be half of a CRLF: wait for what follows.
			if (end === buffer.length || (buffer[end] === "\r" && end + 1 === buffer.length)) break;
			this.#line(buffer.slice(at, end), events);
			at = end + (buffer[end] === "\r" && buffer[end + 1] === "\n" ? 2 : 1);
		}
		this.#rest = buffer.slice(at);
		return events;
	}

	/** The stream is over: a lone CR at its end is a line's end after all. */
	finish() {
		return this.#rest.endsWith("\r") ? this.push("\n") : [];
	}

	#line(line, events) {
		if (line === "") {
			if (this.#data.length) events.push({ name: this.#name || "message", data: this.#data.join("\n") });
			this.#data = [];
			this.#name = "";
			return;
		}
		const colon = line.indexOf(":");
		if (colon === 0) return;
		const field = colon < 0 ? line : line.slice(0, colon);
		let value = colon < 0 ? "" : line.slice(colon + 1);
		if (value.startsWith(" ")) value = value.slice(1);
		if (field === "data") this.#data.push(value);
		else if (field === "event") this.#name = value;
	}
}

function headers(key) {
	return key ? { authorization: `Bearer ${key}` } : {};
}

async function refused(response) {
	let message = "";
	let code = null;
	try {
		const body = await response.json();
		message = body.error?.message ?? "";
		code = body.error?.code ?? null;
	} catch {
		// Not one of our error documents: something between us and the gateway answered.
	}
	return new StreamError(message || `The server answered ${response.status} ${response.statusText}`.trim() + ".", {
		status: response.status,
		code,
		requestId: response.headers.get("x-request-id"),
		retryAfter: response.headers.get("retry-after"),
	});
}

async function reach(path, init) {
	let response;
	try {
		response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...init });
	} catch (cause) {
		if (cause.name === "AbortError") throw cause;
		throw new StreamError("The gateway could not be reached.");
	}
	if (!response.ok) throw await refused(response);
	return response;
}

/** Names of the models that the gateway serves. */
export async function listModels(key) {
	const response = await reach("v1/models", { headers: headers(key) });
	const body = await response.json().catch(() => null);
	if (!Array.isArray(body?.data)) throw new StreamError("The answer is not a list of models.");
	return body.data.map((model) => String(model.id));
}

/** Ends a stream that would otherwise go on for a while, waiting for us to come back. */
function forget(id, key) {
	if (!id) return;
	const path = `v1/streams/${encodeURIComponent(id)}`;
	fetch(path, { method: "DELETE", keepalive: true, headers: headers(key) }).catch(() => {});
}

/**
 * Runs one streamed chat completion. Calls `on.text(string)` for each piece of text; returns
 * `{finish, usage, requestId}` once the stream has said `[DONE]`, and throws a `StreamError` for
 * anything less.
 */
export async function streamChat(body, { key, signal, on }) {
	const response = await reach("v1/chat/completions", {
		method: "POST",
		headers: { "content-type": "application/json", accept: "text/event-stream", ...headers(key) },
		body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
		signal,
	});
	const requestId = response.headers.get("x-request-id");
	const outcome = { finish: null, usage: null, requestId };
	const events = new EventReader();
	const text = new TextDecoder();
	const reader = response.body.getReader();
	try {
		for (;;) {
			const { done, value } = await reader.read();
			const batch = done ? events.finish() : events.push(text.decode(value, { stream: true }));
			for (const event of batch) {
				if (event.data === "[DONE]") return outcome;
				take(event, outcome, on);
			}
			if (done) break;
		}
	} catch (cause) {
		if (cause.name === "AbortError") forget(response.headers.get("x-stream-id"), key);
		if (cause.name === "AbortError" || cause instanceof StreamError) throw cause;
		throw new StreamError("The connection broke before the answer was complete.", { requestId });
	} finally {
		// After [DONE] or a failure nothing more is wanted; the rest must not wait in a buffer.
		reader.cancel().catch(() => {});
	}
	throw new StreamError("The stream ended before the answer was complete.", { code: "truncated", requestId });
}

function take(event, outcome, on) {
	let frame;
	try {
		frame = JSON.parse(event.data);
	} catch {
		throw new StreamError("The stream sent a frame that is not JSON.", { requestId: outcome.requestId });
	}
	if (frame.error || event.name === "error") {
		const error = frame.error ?? frame;
		throw new StreamError(error.message || "The server failed while answering.", {
			code: error.code ?? error.type ?? null,
			requestId: outcome.requestId,
		});
	}
	if (frame.usage) outcome.usage = frame.usage;
	const choice = frame.choices?.[0];
	if (!choice) return;
	if (choice.delta?.content) on.text(choice.delta.content);
	if (choice.finish_reason) outcome.finish = choice.finish_reason;
}
