// The figures of one stream, and the drawing of its token gaps.

/** Columns of the drawing. When they are full, neighbours merge, so it always shows the whole stream. */
const COLUMNS = 96;
/** How far back the live rate looks, in milliseconds. */
const RATE_WINDOW = 1000;
/** Gaps that the live median looks at; the final one looks at all. */
const MEDIAN_WINDOW = 512;

/** Arrival times of one stream's tokens, as the reader saw them. Times are `performance.now()`. */
export class Flow {
	#inLast = 0;
	#windowFrom = 0;

	constructor(startedAt) {
		this.startedAt = startedAt;
		this.times = [];
		this.columns = [];
		this.perColumn = 1;
		this.longest = 0;
	}

	token(at) {
		const previous = this.times.at(-1);
		this.times.push(at);
		if (previous === undefined) return;
		const gap = at - previous;
		this.longest = Math.max(this.longest, gap);
		if (this.#inLast === 0) {
			if (this.columns.length === COLUMNS) this.#merge();
			this.columns.push(gap);
		} else {
			this.columns[this.columns.length - 1] = Math.max(this.columns.at(-1), gap);
		}
		this.#inLast = (this.#inLast + 1) % this.perColumn;
	}

	#merge() {
		const merged = [];
		for (let i = 0; i < this.columns.length; i += 2) {
			merged.push(Math.max(this.columns[i], this.columns[i + 1] ?? 0));
		}
		this.columns = merged;
		this.perColumn *= 2;
	}

	get count() {
		return this.times.length;
	}

	/** Milliseconds from the request to the first token; null before it. */
	get firstToken() {
		return this.count ? this.times[0] - this.startedAt : null;
	}

	/** Tokens per second over the last second. */
	liveRate(now) {
		const { times } = this;
		while (this.#windowFrom < times.length && times[this.#windowFrom] < now - RATE_WINDOW) this.#windowFrom += 1;
		const seen = times.length - this.#windowFrom;
		if (times.length < 2) return null;
		const span = Math.min(RATE_WINDOW, now - times[0]);
		return span > 0 ? (seen * 1000) / span : null;
	}

	/** Tokens per second from the first token to the last; `total` where the server counted for itself. */
	rate(total = this.count) {
		const span = this.times.at(-1) - this.times[0];
		return this.count > 1 && span > 0 ? ((total - 1) * 1000) / span : null;
	}

	medianGap(whole) {
		const from = whole ? 1 : Math.max(1, this.count - MEDIAN_WINDOW);
		const gaps = [];
		for (let i = from; i < this.count; i += 1) gaps.push(this.times[i] - this.times[i - 1]);
		if (!gaps.length) return null;
		gaps.sort((a, b) => a - b);
		return gaps[gaps.length >> 1];
	}
}

/** Draws one bar for each column of `flow`; a wait far above the usual one gets the second colour. */
export function drawGaps(canvas, flow, median) {
	const scale = globalThis.devicePixelRatio || 1;
	const width = Math.round(canvas.clientWidth * scale);
	const height = Math.round(canvas.clientHeight * scale);
	if (!width || !height) return;
	if (canvas.width !== width || canvas.height !== height) {
		canvas.width = width;
		canvas.height = height;
	}
	const style = getComputedStyle(canvas);
	const context = canvas.getContext("2d");
	context.clearRect(0, 0, width, height);
	context.fillStyle = style.borderBottomColor;
	context.fillRect(0, height - scale, width, scale);
	if (!flow?.columns.length) return;
	const step = width / COLUMNS;
	// At least 10 ms tall, so that the noise of an even stream does not look like a storm.
	const top = Math.max(10, flow.longest);
	const stall = Math.max(100, (median ?? 0) * 8);
	flow.columns.forEach((gap, i) => {
		const bar = Math.max(1.5 * scale, (gap / top) * (height - 2 * scale));
		context.fillStyle = gap > stall ? style.outlineColor : style.color;
		context.fillRect(i * step, height - scale - bar, Math.max(scale, step * 0.68), bar);
	});
}

/** A duration for people: three figures at most. */
export function duration(ms) {
	if (ms === null || ms === undefined) return "–";
	if (ms < 9.95) return `${ms.toFixed(1)} ms`;
	if (ms < 999.5) return `${Math.round(ms)} ms`;
	return `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s`;
}

/** A rate for people. */
export function perSecond(rate) {
	if (rate === null || rate === undefined) return "–";
	return rate < 99.95 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en");
}
