// Markdown to DOM nodes, while it is still being written.
//
// Text becomes text nodes and nothing else: there is no path from a model's answer to markup. Blocks
// that can no longer change are left alone; each update parses and redraws only the last ones.

/** Nesting of quotes, lists and emphasis beyond this is shown as plain text. */
const MAX_DEPTH = 6;
/** Longest label and address of a link; bounds the search from every `[`. */
const MAX_LABEL = 1000;
const MAX_ADDRESS = 2000;
/** A table's header and rule line longer than this is no table. */
const MAX_RULE = 1000;

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: {1,4}(?=\S)|[ \t]+|$)/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

/** An element with a class and text. */
export function element(name, className = "", text = "") {
	const node = document.createElement(name);
	if (className) node.className = className;
	if (text) node.textContent = text;
	return node;
}

/** Draws Markdown into `root` as it grows. */
export class LiveMarkdown {
	#root;
	#tail = "";
	#open = [];

	constructor(root) {
		this.#root = root;
	}

	/** Takes the text that came since the last call and brings the page up to date. */
	push(text) {
		this.#tail += text;
		const lines = this.#tail.split("\n");
		const blocks = parse(lines, 0);
		// A block is settled once two whole lines of its successor are there: no rule looks further.
		const settled = blocks.findLastIndex((block, i) => i > 0 && block.from + 2 < lines.length);
		const keep = Math.max(0, settled);
		this.#draw(blocks, keep);
		if (keep) {
			let length = 0;
			for (let i = 0; i < blocks[keep].from; i += 1) length += lines[i].length + 1;
			this.#tail = this.#tail.slice(length);
		}
	}

	#draw(blocks, settled) {
		const drawn = [];
		let reused = 0;
		const [first] = this.#open;
		if (first?.code && blocks[0]?.kind === "code" && blocks[0].language === first.language) {
			// A long listing grows at its end; redrawing it whole for every line would be felt.
			const text = blocks[0].text;
			if (text.startsWith(first.code.data)) first.code.appendData(text.slice(first.code.data.length));
			else first.code.data = text;
			drawn.push(first);
			reused = 1;
		}
		for (const old of this.#open.slice(reused)) old.node.remove();
		for (const block of blocks.slice(reused)) {
			const made = build(block, 0);
			this.#root.append(made.node);
			drawn.push(made);
		}
		this.#open = drawn.slice(settled);
	}
}

function startsBlock(line) {
	return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || (ITEM.test(line) && indent(line) < 4);
}

function startsTable(lines, i) {
	const rule = lines[i + 1];
	return rule !== undefined && rule.length <= MAX_RULE && rule.includes("-") && rule.includes("|") && lines[i].includes("|") && lines[i].length <= MAX_RULE && TABLE_RULE.test(rule);
}

function indent(line) {
	return line.length - line.trimStart().length;
}

/** Blocks of `lines`, each with the index of its first line. */
function parse(lines, depth) {
	const blocks = [];
	let i = 0;
	while (i < lines.length) {
		if (!lines[i].trim()) {
			i += 1;
			continue;
		}
		const block = (depth < MAX_DEPTH && (fence(lines, i) ?? heading(lines, i) ?? rule(lines, i) ?? quote(lines, i) ?? list(lines, i) ?? table(lines, i))) || paragraph(lines, i, depth);
		blocks.push({ ...block, from: i });
		i = block.to;
	}
	return blocks;
}

function fence(lines, i) {
	const open = FENCE.exec(lines[i]);
	if (!open) return null;
	const [, marks, info] = open;
	const closes = (line) => {
		const close = line.trim();
		return close.length >= marks.length && indent(line) < 4 && close === marks[0].repeat(close.length);
	};
	let end = i + 1;
	while (end < lines.length && !closes(lines[end])) end += 1;
	return { kind: "code", language: info.trim().split(/\s/)[0], text: lines.slice(i + 1, end).join("\n"), to: end + 1 };
}

function heading(lines, i) {
	const match = HEADING.exec(lines[i]);
	return match && { kind: "heading", level: match[1].length, text: (match[2] ?? "").replace(/[ \t]#+$/, "").trim(), to: i + 1 };
}

function rule(lines, i) {
	return lines[i].length <= MAX_RULE && RULE.test(lines[i]) ? { kind: "rule", to: i + 1 } : null;
}

function quote(lines, i) {
	const inner = [];
	let to = i;
	for (; to < lines.length; to += 1) {
		const match = QUOTE.exec(lines[to]);
		if (match) inner.push(match[1]);
		else if (to > i && inner.at(-1).trim() && lines[to].trim() && !startsBlock(lines[to])) inner.push(lines[to]);
		else break;
	}
	return inner.length ? { kind: "quote", lines: inner, to } : null;
}

function list(lines, i) {
	const first = ITEM.exec(lines[i]);
	if (!first || first[1].length > 3) return null;
	const mark = first[2].at(-1);
	const items = [];
	let width = 0;
	let to = i;
	for (; to < lines.length; to += 1) {
		const line = lines[to];
		const item = ITEM.exec(line);
		const base = first[1].length;
		if (item && item[1].length < base + 2 && item[2].at(-1) === mark && !(RULE.test(line) && items.length)) {
			width = item[0].length;
			items.push([line.slice(width)]);
		} else if (!line.trim()) {
			// Blank lines belong to the list only if the list goes on after them.
			let next = to + 1;
			while (next < lines.length && !lines[next].trim()) next += 1;
			if (next === lines.length || !(indent(lines[next]) >= base + 2 || ITEM.exec(lines[next])?.[2].at(-1) === mark)) break;
			items.at(-1).push("");
			to = next - 1;
		} else if (indent(line) >= base + 2) {
			items.at(-1).push(line.slice(Math.min(indent(line), width)));
		} else if (items.at(-1).at(-1).trim() && !startsBlock(line)) {
			items.at(-1).push(line);
		} else break;
	}
	return { kind: "list", ordered: /\d/.test(first[2]), start: parseInt(first[2], 10), items, to };
}

function table(lines, i) {
	if (!startsTable(lines, i)) return null;
	let to = i + 2;
	while (to < lines.length && lines[to].includes("|") && !startsBlock(lines[to])) to += 1;
	const align = cells(lines[i + 1]).map((c) => (c.startsWith(":") && c.endsWith(":") ? "center" : c.endsWith(":") ? "right" : ""));
	const rows = [lines[i], ...lines.slice(i + 2, to)].map((line) => cells(line).slice(0, align.length));
	return { kind: "table", align, rows, to };
}

/** Cells of a table's line: split at bars that are neither escaped nor inside code. */
function cells(line) {
	const found = [""];
	let code = false;
	for (let i = 0; i < line.length; i += 1) {
		if (line[i] === "\\" && line[i + 1] === "|") {
			found[found.length - 1] += "|";
			i += 1;
		} else if (line[i] === "|" && !code) found.push("");
		else {
			if (line[i] === "`") code = !code;
			found[found.length - 1] += line[i];
		}
	}
	const trimmed = found.map((cell) => cell.trim());
	if (trimmed.length > 1 && trimmed[0] === "") trimmed.shift();
	if (trimmed.length > 1 && trimmed.at(-1) === "") trimmed.pop();
	return trimmed;
}

function paragraph(lines, i, depth) {
	let to = i + 1;
	while (to < lines.length && lines[to].trim() && !(depth < MAX_DEPTH && (startsBlock(lines[to]) || startsTable(lines, to)))) to += 1;
	return { kind: "paragraph", text: lines.slice(i, to).map((line) => line.trim()).join("\n"), to };
}

function build(block, depth) {
	switch (block.kind) {
		case "code":
			return buildCode(block);
		case "heading": {
			// The page's own headings are levels 1 and 2, so an answer begins at 3.
			const node = element(`h${Math.min(6, block.level + 2)}`);
			inline(block.text, node, 0);
			return { node };
		}
		case "rule":
			return { node: element("hr") };
		case "quote": {
			const node = element("blockquote");
			for (const child of parse(block.lines, depth + 1)) node.append(build(child, depth + 1).node);
			return { node };
		}
		case "list": {
			const node = element(block.ordered ? "ol" : "ul");
			if (block.ordered && block.start !== 1) node.start = block.start;
			for (const lines of block.items) node.append(buildItem(lines, depth));
			return { node };
		}
		case "table":
			return buildTable(block);
		default: {
			const node = element("p");
			inline(block.text, node, 0);
			return { node };
		}
	}
}

function buildItem(lines, depth) {
	const node = element("li");
	const children = parse(lines, depth + 1);
	const loose = lines.slice(0, -1).includes("");
	for (const child of children) {
		if (child.kind === "paragraph" && !loose) inline(child.text, node, 0);
		else node.append(build(child, depth + 1).node);
	}
	return node;
}

function buildCode({ language, text }) {
	const node = element("figure", "listing");
	const head = element("figcaption");
	const copy = element("button", "plain", "Copy code");
	copy.dataset.copy = "code";
	head.append(element("span", "", language || "text"), copy);
	const pre = element("pre");
	// A long line scrolls sideways, so the keyboard must be able to get there.
	pre.tabIndex = 0;
	const code = element("code");
	const data = document.createTextNode(text);
	code.append(data);
	pre.append(code);
	node.append(head, pre);
	return { node, code: data, language };
}

function buildTable({ rows, align }) {
	const node = element("div", "table");
	node.tabIndex = 0;
	const grid = element("table");
	rows.forEach((row, r) => {
		const line = element("tr");
		align.forEach((side, c) => {
			const cell = element(r ? "td" : "th");
			if (!r) cell.scope = "col";
			if (side) cell.className = side;
			inline(row[c] ?? "", cell, 0);
			line.append(cell);
		});
		grid.append(line);
	});
	node.append(grid);
	return { node };
}

/** Appends the nodes of one run of text. Time is linear in the text, whatever it holds. */
function inline(text, out, depth, inLink = false) {
	const scan = new Scan(text);
	const special = /\\|`+|\*+|_+|~~|!?\[|\n|https?:\/\//g;
	let plain = 0;
	const flush = (end) => {
		if (end > plain) out.append(text.slice(plain, end));
	};
	for (let match = special.exec(text); match; match = special.exec(text)) {
		const at = match.index;
		const found = construct(scan, match[0], at, depth, inLink);
		if (!found) continue;
		flush(at);
		out.append(found.node);
		plain = found.to;
		special.lastIndex = found.to;
	}
	flush(text.length);
}

/** What begins at a special character: `{node, to}`, or null if it is only a character. */
function construct(scan, mark, at, depth, inLink) {
	const { text } = scan;
	switch (mark[0]) {
		case "\n":
			return { node: element("br"), to: at + 1 };
		case "\\":
			return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { node: text[at + 1], to: at + 2 } : null;
		case "`": {
			const end = scan.codeEnd(at);
			if (end < 0) return { node: mark, to: at + mark.length };
			const node = element("code");
			const inner = text.slice(at + mark.length, end - mark.length).replaceAll("\n", " ");
			node.textContent = inner.length > 2 && inner.startsWith(" ") && inner.endsWith(" ") ? inner.slice(1, -1) : inner;
			return { node, to: end };
		}
		case "*":
		case "_":
		case "~":
			return emphasis(scan, mark, at, depth, inLink);
		case "!":
		case "[":
			return inLink ? null : link(scan, mark, at, depth);
		default: {
			if (inLink) return null;
			const match = /^https?:\/\/[^\s<>"'`|]+/.exec(text.slice(at, at + MAX_ADDRESS));
			let address = match?.[0].replace(/[.,;:!?*_~\]}]+$/, "") ?? "";
			if (address.endsWith(")") && !address.includes("(")) address = address.replace(/[).,;:!?]+$/, "");
			return anchored(address, address, at + address.length);
		}
	}
}

function emphasis(scan, mark, at, depth, inLink) {
	const { text } = scan;
	const whole = { node: mark, to: at + mark.length };
	if (depth >= MAX_DEPTH || mark.length > 3) return whole;
	const delimiter = mark.length > 1 ? mark.slice(0, 2) : mark;
	const from = at + delimiter.length;
	const opens = from < text.length && !/\s/.test(text[from]) && !(mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[at - 1] ?? ""));
	const end = opens ? scan.closer(delimiter, from) : -1;
	if (end < 0) return whole;
	const node = element({ "**": "strong", "__": "strong", "~~": "del" }[delimiter] ?? "em");
	inline(text.slice(from, end), node, depth + 1, inLink);
	return { node, to: end + delimiter.length };
}

function link(scan, mark, at, depth) {
	const { text } = scan;
	const from = at + mark.length;
	const middle = scan.linkMiddle(from);
	if (middle < 0 || middle - from > MAX_LABEL) return null;
	const match = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+"[^"\n]*")?\s*\)/.exec(text.slice(middle + 1, middle + 1 + MAX_ADDRESS));
	if (!match) return null;
	const label = text.slice(from, middle);
	const made = anchored(match[1], "", middle + 1 + match[0].length);
	if (!made) return null;
	inline(label || match[1], made.node, depth + 1, true);
	return made;
}

/** A link, if the address is one that a reader may safely follow. */
function anchored(address, label, to) {
	let url;
	try {
		url = new URL(address);
	} catch {
		return null;
	}
	if (url.protocol !== "https:" && url.protocol !== "http:") return null;
	const node = element("a");
	node.href = url.href;
	node.rel = "noopener noreferrer";
	node.target = "_blank";
	node.textContent = label;
	return { node, to };
}

/** Looks for closing marks in one text, and remembers what is not there, so no search is made twice. */
class Scan {
	#code = null;
	#none = new Set();
	#middle = -2;

	constructor(text) {
		this.text = text;
	}

	/** Spans of code as a map from first to one past the last index. */
	#spans() {
		if (this.#code) return this.#code;
		this.#code = new Map();
		const runs = [...this.text.matchAll(/`+/g)];
		// From the end, so that the next run of each length is known.
		const next = new Map();
		const closing = [];
		for (let i = runs.length - 1; i >= 0; i -= 1) {
			closing[i] = next.get(runs[i][0].length);
			next.set(runs[i][0].length, i);
		}
		for (let i = 0; i < runs.length; i += 1) {
			if (closing[i] === undefined || this.text[runs[i].index - 1] === "\\") continue;
			const close = runs[closing[i]];
			this.#code.set(runs[i].index, close.index + close[0].length);
			i = closing[i];
		}
		return this.#code;
	}

	codeEnd(at) {
		return this.#spans().get(at) ?? -1;
	}

	/** Where `delimiter` closes what began before `from`; -1 if it never does. */
	closer(delimiter, from) {
		if (this.#none.has(delimiter)) return -1;
		const { text } = this;
		const mark = delimiter[0];
		const spans = this.#spans();
		const next = new RegExp(`\\\\.|\`+|[${mark}]+`, "gs");
		next.lastIndex = from;
		for (let match = next.exec(text); match; match = next.exec(text)) {
			const at = match.index;
			const run = match[0].length;
			const end = at + run;
			if (match[0][0] === "\\") continue;
			if (match[0][0] === "`") {
				next.lastIndex = spans.get(at) ?? end;
				continue;
			}
			const fits = delimiter.length === 1 ? run !== 2 : run >= 2;
			if (!fits || at === from || /\s/.test(text[at - 1])) continue;
			if (mark === "_" && /[\p{L}\p{N}]/u.test(text[end] ?? "")) continue;
			return end - delimiter.length;
		}
		this.#none.add(delimiter);
		return -1;
	}

	/** Where the next `](` stands at or after `from`. */
	linkMiddle(from) {
		if (this.#middle !== -1 && this.#middle < from) this.#middle = this.text.indexOf("](", from);
		return this.#middle;
	}
}
