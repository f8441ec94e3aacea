//! Every metric that is written when it is asked for: name, kind and help.

use super::text::Family;
use super::text::Kind::{Counter, Gauge, Histogram};

/// Bounds of the buckets between two tokens, in microseconds. Finer below 10 ms than OpenTelemetry advises:
/// small local models live there.
pub(super) const GAP_BOUNDS_US: [u32; 17] = [
    500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000,
    500_000, 1_000_000, 2_500_000, 10_000_000, 60_000_000,
];

/// Its values are no whole numbers, which the recorder's counters are.
pub(super) const TRANSPORT_STALLS: Family = Family {
    name: "sluicegate_transport_stall_seconds_total",
    kind: Counter,
    help: "Time that answers had more to give while their connection had no room for it.",
};
pub(super) const INTER_TOKEN: Family = Family {
    name: "sluicegate_inter_token_seconds",
    kind: Histogram,
    help: "Between two tokens of one choice.",
};
pub(super) const REQUESTS_RUNNING: Family = Family {
    name: "sluicegate_requests_running",
    kind: Gauge,
    help: "Sequences in prefill or decode.",
};
pub(super) const REQUESTS_WAITING: Family = Family {
    name: "sluicegate_requests_waiting",
    kind: Gauge,
    help: "Requests in the waiting line.",
};
pub(super) const SEQUENCES_PAUSED: Family = Family {
    name: "sluicegate_sequences_paused",
    kind: Gauge,
    help: "Running sequences whose reader is behind, out of the batch for now.",
};
pub(super) const PARKED: Family = Family {
    name: "sluicegate_sequences_parked",
    kind: Gauge,
    help: "Sequences set aside, with their K/V in host memory.",
};
pub(super) const KV_USED: Family = Family {
    name: "sluicegate_kv_tokens_used",
    kind: Gauge,
    help: "KV cells in use.",
};
pub(super) const KV_IDLE: Family = Family {
    name: "sluicegate_kv_tokens_idle",
    kind: Gauge,
    help: "KV cells that hold nothing but cached prefixes.",
};
pub(super) const PREFIX_BYTES: Family = Family {
    name: "sluicegate_prefix_cache_bytes",
    kind: Gauge,
    help: "Bytes of cached prefixes in host memory.",
};
pub(super) const KV_CAPACITY: Family = Family {
    name: "sluicegate_kv_tokens_capacity",
    kind: Gauge,
    help: "KV cells in all.",
};
pub(super) const ENGINE_THREADS: Family = Family {
    name: "sluicegate_engine_threads",
    kind: Gauge,
    help: "Threads of the last call of a phase, decode or prefill.",
};
pub(super) const PAUSES: Family = Family {
    name: "sluicegate_pauses_total",
    kind: Counter,
    help: "Times that a sequence left the batch because its reader was behind.",
};
pub(super) const PARKS: Family = Family {
    name: "sluicegate_parks_total",
    kind: Counter,
    help: "Times that a sequence was set aside for others or for its reader.",
};
pub(super) const MOVES: Family = Family {
    name: "sluicegate_moves_total",
    kind: Counter,
    help: "Times that a running sequence was moved beside the others, so that they compute together.",
};
pub(super) const DRAFT_TOKENS: Family = Family {
    name: "sluicegate_draft_tokens_total",
    kind: Counter,
    help: "Tokens computed on a guess, by whether they were right.",
};
pub(super) const MODEL_READY: Family = Family {
    name: "sluicegate_model_ready",
    kind: Gauge,
    help: "1 while the model takes requests; 0 while it loads, and if that failed.",
};
pub(super) const MODEL_INFO: Family = Family {
    name: "sluicegate_model_info",
    kind: Gauge,
    help: "Always 1, for models that have been ready; the labels say what they are.",
};
pub(super) const PREFIX_HITS: Family = Family {
    name: "sluicegate_prefix_cache_hits_tokens_total",
    kind: Counter,
    help: "Prompt tokens found in the cache of prefixes.",
};
pub(super) const PREFIX_QUERIES: Family = Family {
    name: "sluicegate_prefix_cache_queries_tokens_total",
    kind: Counter,
    help: "Prompt tokens looked up in the cache of prefixes.",
};
pub(super) const STEP_SECONDS: Family = Family {
    name: "sluicegate_engine_step_seconds",
    kind: Histogram,
    help: "Steps of the engine that computed something, by how long they took.",
};
pub(super) const PHASE_SECONDS: Family = Family {
    name: "sluicegate_engine_phase_seconds_total",
    kind: Counter,
    help: "Where the time of those steps went: reading prompts, decoding, sampling, waking readers, other.",
};
pub(super) const BATCH_ROWS: Family = Family {
    name: "sluicegate_engine_batch_rows",
    kind: Histogram,
    help: "Calls of a phase by the tokens that they computed at once.",
};
pub(super) const SERIES_DROPPED: Family = Family {
    name: "sluicegate_series_dropped_total",
    kind: Counter,
    help: "Series that were not made because of telemetry.metrics.max_series.",
};
pub(super) const RENDER_SECONDS: Family = Family {
    name: "sluicegate_render_seconds",
    kind: Gauge,
    help: "How long it took to write the page before this one.",
};
pub(super) const REQUEST_RATE: Family = Family {
    name: "sluicegate_request_rate",
    kind: Gauge,
    help: "Requests a second, over the last 10 s.",
};
pub(super) const REQUEST_RATE_BASELINE: Family = Family {
    name: "sluicegate_request_rate_baseline",
    kind: Gauge,
    help: "Requests a second, over the 5 minutes before those 10 s.",
};
pub(super) const REQUEST_RATE_ANOMALY: Family = Family {
    name: "sluicegate_request_rate_anomaly",
    kind: Gauge,
    help: "1 while the rate of requests is above its baseline by more than telemetry.metrics.anomaly_factor allows.",
};
pub(super) const RUNTIME_WORKERS: Family = Family {
    name: "sluicegate_runtime_workers",
    kind: Gauge,
    help: "Threads that run tasks.",
};
pub(super) const RUNTIME_TASKS: Family = Family {
    name: "sluicegate_runtime_tasks",
    kind: Gauge,
    help: "Tasks that have not ended.",
};
pub(super) const RUNTIME_QUEUE: Family = Family {
    name: "sluicegate_runtime_queue_depth",
    kind: Gauge,
    help: "Tasks that wait for any thread (each thread has a line of its own besides).",
};
pub(super) const RUNTIME_BUSY: Family = Family {
    name: "sluicegate_runtime_busy_seconds_total",
    kind: Counter,
    help: "Time that threads spent running tasks, summed up over all of them.",
};
pub(super) const RUNTIME_BUSY_RATIO: Family = Family {
    name: "sluicegate_runtime_busy_ratio",
    kind: Gauge,
    help: "The share of the last second that threads spent running tasks; 0 to 1.",
};
pub(super) const RUNTIME_PARKS: Family = Family {
    name: "sluicegate_runtime_parks_total",
    kind: Counter,
    help: "Times that a thread had nothing to do.",
};
pub(super) const PROCESS_CPU: Family = Family {
    name: "process_cpu_seconds_total",
    kind: Counter,
    help: "CPU time of the process, user and system.",
};
pub(super) const PROCESS_RESIDENT: Family = Family {
    name: "process_resident_memory_bytes",
    kind: Gauge,
    help: "Memory of the process that is in RAM.",
};
pub(super) const PROCESS_VIRTUAL: Family = Family {
    name: "process_virtual_memory_bytes",
    kind: Gauge,
    help: "Address space of the process.",
};
pub(super) const MEMORY_LIMIT: Family = Family {
    name: "sluicegate_memory_limit_bytes",
    kind: Gauge,
    help: "Memory that the process may have: of its control groups (cgroup v2), else of the machine.",
};
pub(super) const PROCESS_FDS: Family = Family {
    name: "process_open_fds",
    kind: Gauge,
    help: "Open files and sockets.",
};
pub(super) const PROCESS_MAX_FDS: Family = Family {
    name: "process_max_fds",
    kind: Gauge,
    help: "Most files and sockets that may be open.",
};
pub(super) const PROCESS_THREADS: Family = Family {
    name: "process_threads",
    kind: Gauge,
    help: "Threads of the process.",
};
pub(super) const PROCESS_START: Family = Family {
    name: "process_start_time_seconds",
    kind: Gauge,
    help: "When the process started, in seconds since 1970.",
};

/// Every family that is written when it is asked for; the others are kept by the exporter.
#[cfg(test)]
pub(super) const WRITTEN: &[Family] = &[
    INTER_TOKEN,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    SEQUENCES_PAUSED,
    PARKED,
    KV_USED,
    KV_IDLE,
    PREFIX_BYTES,
    KV_CAPACITY,
    ENGINE_THREADS,
    PAUSES,
    PARKS,
    MOVES,
    DRAFT_TOKENS,
    MODEL_READY,
    MODEL_INFO,
    PREFIX_HITS,
    PREFIX_QUERIES,
    STEP_SECONDS,
    PHASE_SECONDS,
    BATCH_ROWS,
    SERIES_DROPPED,
    RENDER_SECONDS,
    REQUEST_RATE,
    REQUEST_RATE_BASELINE,
    REQUEST_RATE_ANOMALY,
    RUNTIME_WORKERS,
    RUNTIME_TASKS,
    RUNTIME_QUEUE,
    RUNTIME_BUSY,
    RUNTIME_BUSY_RATIO,
    RUNTIME_PARKS,
    PROCESS_CPU,
    PROCESS_RESIDENT,
    PROCESS_VIRTUAL,
    MEMORY_LIMIT,
    PROCESS_FDS,
    PROCESS_MAX_FDS,
    PROCESS_THREADS,
    PROCESS_START,
];
