// The page: one conversation, and the figures of its streams.

import { Flow, drawGaps, duration, perSecond } from "./flow.js";
import { LiveMarkdown, element } from "./markdown.js";
import { StreamError, listModels, streamChat } from "./stream.js";

const $ = (id) => document.getElementById(id);

/** Figures change at most this often: faster nobody can read them. */
const FIGURES_EVERY = 100;
/** Drawing takes at most one part in this many of the time. */
const DRAW_SHARE = 3;
/** A screen reader gets whole sentences, and is not interrupted more often than this. */
const ANNOUNCE_EVERY = 2500;
/** The most that is announced at once; the rest can be read in the conversation. */
const ANNOUNCE_LENGTH = 600;
/** Coming this near to the end, in pixels, the view follows the stream again. */
const FOLLOW_WITHIN = 80;

/** What was said: `{role, text, state, …}`, oldest first. */
let turns = [];
/** The stream that is running, or null. */
let running = null;
/** The stream whose figures are shown. */
let shown = null;

// Storage that may be forbidden or full.
function recall(store, key) {
	try {
		return store().getItem(`sluicegate.${key}`);
	} catch {
		return null;
	}
}

function remember(store, key, value) {
	try {
		if (value) store().setItem(`sluicegate.${key}`, value);
		else store().removeItem(`sluicegate.${key}`);
	} catch {
		// Nothing is kept then; the page works the same.
	}
}

const local = () => localStorage;
const session = () => sessionStorage;

function button(label, action, className = "plain") {
	const node = element("button", className, label);
	node.addEventListener("click", action);
	return node;
}

// ---- Models

async function loadModels() {
	const picker = $("model");
	const wanted = new URLSearchParams(location.search).get("model") ?? recall(local, "model");
	try {
		const models = await listModels($("key").value);
		// A name in the page's address may carry options that the list does not know of.
		if (wanted && !models.includes(wanted) && location.search.includes("model=")) models.unshift(wanted);
		if (!models.length) throw new StreamError("The gateway serves no model yet.");
		picker.replaceChildren(...models.map((name) => new Option(name, name)));
		picker.value = models.includes(wanted) ? wanted : models[0];
		picker.disabled = false;
		$("models-failed").hidden = true;
		$("examples").hidden = false;
	} catch (error) {
		picker.replaceChildren(new Option("No models", ""));
		picker.disabled = true;
		$("models-reason").textContent = error.message;
		$("models-failed").hidden = false;
		$("examples").hidden = true;
		if (error.status === 401) askForKey(error, loadModels);
	}
}

// ---- Settings

const form = $("settings-form");
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const KEPT = ["system", "stops", ...NUMBERS];

function settings() {
	const chosen = {};
	for (const name of NUMBERS) {
		const { value } = $(name);
		if (value !== "") chosen[name] = Number(value);
	}
	const stop = $("stops").value.split("\n").filter(Boolean);
	if (stop.length) chosen.stop = stop;
	return chosen;
}

function saveSettings() {
	const kept = KEPT.map((name) => [name, $(name).value]);
	remember(local, "settings", JSON.stringify(Object.fromEntries(kept)));
	// A key is worth more than a preference: it lasts as long as the tab.
	remember(session, "key", $("key").value);
	$("key-forget").hidden = !$("key").value;
}

function restoreSettings() {
	try {
		const kept = JSON.parse(recall(local, "settings") ?? "{}");
		for (const name of KEPT) $(name).value = kept[name] ?? "";
	} catch {
		// Written by something else: start with the defaults.
	}
	$("key").value = recall(session, "key") ?? "";
	$("key-forget").hidden = !$("key").value;
}

// ---- The key

/** What failed without a key: done again once there is one. */
let onceKnown = null;

/** Asks who is there, after a 401. */
function askForKey(error, again) {
	const refused = $("key").value !== "";
	$("ask-title").textContent = refused ? "This key was not accepted" : "This gateway asks for a key";
	$("ask-reason").textContent = error.message;
	$("ask-key").value = "";
	$("ask-forget").hidden = !refused;
	onceKnown = again;
	if (!$("ask").open) $("ask").showModal();
}

function useKey(key) {
	$("key").value = key;
	saveSettings();
	$("ask").close();
}

function forgetKey() {
	// The button goes away under the focus.
	if (document.activeElement === $("key-forget")) $("key").focus();
	useKey("");
	announce("The key was forgotten.");
}

$("ask-form").addEventListener("submit", (event) => {
	event.preventDefault();
	useKey($("ask-key").value);
	onceKnown?.();
});
$("ask-close").addEventListener("click", () => $("ask").close());
$("ask").addEventListener("close", () => {
	$("ask-key").value = "";
});
for (const id of ["ask-forget", "key-forget"]) $(id).addEventListener("click", forgetKey);

/** On a narrow page, where they are a sheet; on a wide one they are always there. */
function showSettings(open) {
	$("settings").classList.toggle("open", open);
	$("settings-toggle").setAttribute("aria-expanded", open);
	$(open ? "system" : "settings-toggle").focus();
}

/** Whether every setting can be sent; if not, the reader is led to the one that cannot. */
function settingsValid() {
	if (form.checkValidity()) return true;
	if ($("settings-toggle").offsetParent) showSettings(true);
	return form.reportValidity();
}

// ---- The conversation

/** What the model is shown: without answers that never came, and without their questions. */
function messages() {
	const list = [];
	for (const turn of turns) {
		if (turn.role === "assistant" && !turn.text && turn !== running?.turn) list.pop();
		else if (turn.text) list.push({ role: turn.role, content: turn.text });
	}
	const system = $("system").value;
	return system ? [{ role: "system", content: system }, ...list] : list;
}

function addTurn(role, text = "") {
	const turn = { role, text, item: element("li", `turn ${role}`) };
	turn.item.append(element("h3", "who", role === "user" ? "You" : $("model").value));
	turn.body = element("div", "said");
	turn.item.append(turn.body);
	if (role === "user") turn.body.append(element("p", "", text));
	turns.push(turn);
	$("turns").append(turn.item);
	$("welcome").hidden = true;
	return turn;
}

function send(text) {
	if (running || !text.trim()) return;
	if (!$("model").value) {
		$("models-retry").focus();
		return;
	}
	if (!settingsValid()) return;
	addTurn("user", text);
	$("prompt").value = "";
	fitPrompt();
	answer();
}

/** Drops the last answer and asks for another. */
function again() {
	if (running || turns.at(-1)?.role !== "assistant" || !settingsValid()) return;
	turns.pop().item.remove();
	answer();
}

function newChat() {
	running?.abort.abort();
	turns = [];
	$("turns").replaceChildren();
	$("welcome").hidden = false;
	shown = null;
	drawFigures(true);
	$("latest").hidden = true;
	announce("New chat");
	$("prompt").focus();
}

async function answer() {
	for (const old of document.querySelectorAll(".last-only")) old.remove();
	const turn = addTurn("assistant");
	const stream = new Answer(turn);
	running = stream;
	shown = stream;
	busy(true);
	follow(true);
	drawFigures(true);
	const body = { model: $("model").value, messages: messages(), ...settings() };
	try {
		const outcome = await streamChat(body, {
			key: $("key").value,
			signal: stream.abort.signal,
			on: { text: (text) => stream.take(text) },
		});
		stream.end(outcome);
	} catch (error) {
		if (error.name === "AbortError") stream.end({ stopped: true });
		else {
			stream.end({ error });
			if (error.status === 401 && turns.includes(stream.turn)) askForKey(error, again);
		}
	}
	if (running === stream) {
		running = null;
		busy(false);
	}
}

/** One answer on its way to the page. */
class Answer {
	constructor(turn) {
		this.turn = turn;
		this.abort = new AbortController();
		this.flow = new Flow(performance.now());
		this.markdown = new LiveMarkdown(turn.body);
		this.speech = new Speech();
		this.waiting = [];
		this.frame = 0;
		this.notBefore = 0;
		this.total = null;
		this.done = false;
		// Also while nothing comes: a stall must show in the rate.
		this.ticks = setInterval(drawFigures, 250);
		turn.item.classList.add("streaming");
		turn.item.setAttribute("aria-busy", "true");
	}

	take(text) {
		this.flow.token(performance.now());
		this.waiting.push(text);
		this.frame ||= requestAnimationFrame((now) => this.draw(now));
	}

	/** Draws what has gathered, unless the last drawing was so dear that the page needs a breath. */
	draw(now) {
		this.frame = 0;
		if (now < this.notBefore && !this.done) {
			this.frame = requestAnimationFrame((later) => this.draw(later));
			return;
		}
		const before = performance.now();
		this.flush();
		drawFigures();
		follow();
		this.notBefore = performance.now() + (performance.now() - before) * (DRAW_SHARE - 1);
	}

	flush() {
		if (!this.waiting.length) return;
		const text = this.waiting.join("");
		this.waiting = [];
		this.turn.text += text;
		this.markdown.push(text);
		this.speech.hear(text);
	}

	end({ finish, usage, requestId, stopped, error }) {
		this.done = true;
		cancelAnimationFrame(this.frame);
		clearInterval(this.ticks);
		this.flush();
		if (!turns.includes(this.turn)) return;
		const { turn } = this;
		this.total = usage?.completion_tokens ?? this.flow.count;
		turn.item.classList.remove("streaming");
		turn.item.removeAttribute("aria-busy");
		const notes = [];
		if (stopped) notes.push("stopped");
		if (finish === "length") notes.push("reached the token limit");
		if (error) turn.item.append(failureNotice(error, turn.text !== ""));
		else if (!turn.text && !stopped) turn.body.append(element("p", "quiet", "The model had nothing to say."));
		turn.item.append(this.foot(notes, requestId ?? error?.requestId, Boolean(error)));
		drawFigures(true);
		follow();
		this.speech.end(error ? `Error: ${error.message}` : stopped ? "Stopped." : `Answer complete, ${this.total} tokens.`);
	}

	foot(notes, requestId, failed) {
		const foot = element("div", "foot");
		const actions = element("div", "actions");
		if (this.turn.text) {
			const copy = button("Copy", () => copyText(this.turn.text, copy));
			copy.setAttribute("aria-label", "Copy the answer");
			actions.append(copy);
		}
		if (!failed) actions.append(button("Regenerate", again, "plain last-only"));
		const figures = element("p", "figures", [
			this.total ? `${this.total.toLocaleString("en")} ${this.total === 1 ? "token" : "tokens"}` : null,
			this.flow.count > 1 ? `${perSecond(this.flow.rate(this.total))} tok/s` : null,
			this.flow.count ? `first after ${duration(this.flow.firstToken)}` : null,
			...notes,
		].filter(Boolean).join(" · "));
		if (requestId) figures.title = `Request ${requestId}`;
		foot.append(actions, figures);
		return foot;
	}
}

function failureNotice(error, partial) {
	const notice = element("div", "notice failed");
	const text = element("p");
	text.append(element("strong", "", partial ? "This answer is incomplete. " : "No answer. "), error.message);
	const details = [
		error.status ? `HTTP ${error.status}` : null,
		error.code && error.code !== "truncated" ? error.code : null,
		error.requestId ? `request ${error.requestId}` : null,
		error.retryAfter && /^\d+$/.test(error.retryAfter) ? `the server asks to wait ${error.retryAfter} s` : null,
	].filter(Boolean).join(" · ");
	notice.append(text);
	if (details) notice.append(element("p", "details", details));
	notice.append(button("Try again", again, "plain last-only"));
	return notice;
}

async function copyText(text, from) {
	const label = from.textContent;
	try {
		await navigator.clipboard.writeText(text);
		from.textContent = "Copied";
	} catch {
		from.textContent = "Could not copy";
	}
	announce(from.textContent);
	setTimeout(() => {
		from.textContent = label;
	}, 1500);
}

function busy(is) {
	// Focus must not fall to the page when the button under it goes away.
	const moved = document.activeElement === $("stop") || document.activeElement === $("send");
	$("send").hidden = is;
	$("stop").hidden = !is;
	if (moved) (is ? $("stop") : $("prompt")).focus();
}

// ---- Figures

let figuresAt = 0;

function drawFigures(now) {
	const time = performance.now();
	if (!now && time - figuresAt < FIGURES_EVERY) return;
	figuresAt = time;
	const flow = shown?.flow;
	const done = shown?.done ?? true;
	const median = flow?.medianGap(done) ?? null;
	const rate = flow && (done ? flow.rate(shown.total ?? undefined) : flow.liveRate(time));
	$("rate").textContent = perSecond(rate);
	$("ttft").textContent = duration(flow?.firstToken);
	$("tokens").textContent = flow?.count ? (shown.total ?? flow.count).toLocaleString("en") : "–";
	$("median").textContent = duration(median);
	$("longest").textContent = flow && flow.count > 1 ? duration(flow.longest) : "–";
	$("scale").textContent = flow && flow.count > 1 ? `top ${duration(Math.max(10, flow.longest))}` : "";
	$("flow").classList.toggle("idle", !flow?.count);
	drawGaps($("gaps"), flow, median);
	if (done) {
		$("gaps").setAttribute("aria-label", flow && flow.count > 1
			? `Token gaps: median ${duration(median)}, longest ${duration(flow.longest)}`
			: "Token gaps: no stream yet");
	}
}

// ---- Following the stream

const scroller = $("scroller");
let following = true;

function follow(force = false) {
	if (force) following = true;
	if (following) scroller.scrollTop = scroller.scrollHeight;
	$("latest").hidden = following;
}

let lastTop = 0;

scroller.addEventListener("scroll", () => {
	const top = scroller.scrollTop;
	const below = scroller.scrollHeight - top - scroller.clientHeight;
	// Any move upwards lets go of the stream; coming back to its end takes hold of it again.
	following = below < 2 || (top >= lastTop && (following || below < FOLLOW_WITHIN));
	lastTop = top;
	if (following) $("latest").hidden = true;
}, { passive: true });

$("latest").addEventListener("click", () => follow(true));

// ---- Speech

function announce(text) {
	$("announcer").textContent = text;
}

/** Feeds a screen reader whole sentences at a pace that it can speak. */
class Speech {
	#heard = "";
	#next = performance.now() + ANNOUNCE_EVERY / 2;

	hear(text) {
		this.#heard += text;
		if (performance.now() < this.#next) return;
		const end = Math.max(...[". ", "! ", "? ", "\n", "。", "！", "？"].map((mark) => {
			const at = this.#heard.lastIndexOf(mark);
			return at < 0 ? 0 : at + 1;
		}));
		if (!end) return;
		announce(speakable(this.#heard.slice(0, end)));
		this.#heard = this.#heard.slice(end);
		this.#next = performance.now() + ANNOUNCE_EVERY;
	}

	end(verdict) {
		announce(`${speakable(this.#heard)} ${verdict}`.trim());
	}
}

function speakable(text) {
	const bare = text.slice(0, 2 * ANNOUNCE_LENGTH).replace(/[*_`#>|~]+/g, " ").replace(/\s+/g, " ").trim();
	return bare.length > ANNOUNCE_LENGTH ? `${bare.slice(0, ANNOUNCE_LENGTH)} …` : bare;
}

// ---- Theme

const systemDark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
	const { theme } = document.documentElement.dataset;
	return theme ? theme === "dark" : systemDark.matches;
}

function themeChanged() {
	$("theme").title = `Switch to ${isDark() ? "light" : "dark"} theme`;
	drawFigures(true);
}

$("theme").addEventListener("click", () => {
	const theme = isDark() ? "light" : "dark";
	// Choosing what the system says anyway means following it again.
	const follows = (theme === "dark") === systemDark.matches;
	if (follows) delete document.documentElement.dataset.theme;
	else document.documentElement.dataset.theme = theme;
	remember(local, "theme", follows ? "" : theme);
	themeChanged();
});
systemDark.addEventListener("change", themeChanged);

// ---- Keys and clicks

function fitPrompt() {
	const prompt = $("prompt");
	prompt.style.height = "auto";
	prompt.style.height = `${prompt.scrollHeight}px`;
}

$("prompt").addEventListener("input", fitPrompt);
$("prompt").addEventListener("keydown", (event) => {
	// Enter also picks a word in an input method: that one is not ours.
	if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
	event.preventDefault();
	send($("prompt").value);
});
$("composer").addEventListener("submit", (event) => {
	event.preventDefault();
	send($("prompt").value);
});
$("stop").addEventListener("click", () => running?.abort.abort());
document.addEventListener("keydown", (event) => {
	if (event.key !== "Escape" || event.isComposing || $("ask").open) return;
	if ($("settings").classList.contains("open")) showSettings(false);
	else running?.abort.abort();
});
$("new-chat").addEventListener("click", newChat);
$("examples").addEventListener("click", (event) => {
	const example = event.target.closest("button");
	if (!example) return;
	$("prompt").focus();
	send(example.textContent);
});
$("turns").addEventListener("click", (event) => {
	const copy = event.target.closest("[data-copy]");
	if (copy) copyText(copy.closest(".listing").querySelector("code").textContent, copy);
});
$("model").addEventListener("change", () => remember(local, "model", $("model").value));
$("models-retry").addEventListener("click", loadModels);
$("settings-toggle").addEventListener("click", () => showSettings(!$("settings").classList.contains("open")));
$("settings-close").addEventListener("click", () => showSettings(false));
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("change", (event) => {
	saveSettings();
	if (event.target.id === "key") loadModels();
});
form.addEventListener("reset", () => setTimeout(saveSettings));
new ResizeObserver(() => drawFigures(true)).observe($("gaps"));

restoreSettings();
themeChanged();
loadModels();
// On a touch screen focus would raise the keyboard over the page.
if (matchMedia("(hover: hover)").matches) $("prompt").focus();
