//! Every metric's name, help and buckets.

pub(super) const TIME_TO_FIRST_TOKEN: &str = "sluicegate_time_to_first_token_seconds";
pub(super) const INTER_TOKEN: &str = "sluicegate_inter_token_seconds";
pub(super) const E2E: &str = "sluicegate_e2e_seconds";
pub(super) const QUEUE: &str = "sluicegate_queue_seconds";

/// Every histogram with its help and its buckets; without buckets it would be rendered as a
/// summary, which cannot be added up over processes.
pub(super) const HISTOGRAMS: [(&str, &str, &[f64]); 4] = [
    (
        TIME_TO_FIRST_TOKEN,
        "From accepting a request to its first token.",
        &[
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
            10.0, 15.0, 20.0, 30.0, 60.0, 120.0,
        ],
    ),
    (
        INTER_TOKEN,
        "Between two tokens of one choice.",
        // Finer below 10 ms than OpenTelemetry advises: small local models live there.
        &[
            0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0,
            2.5, 10.0, 60.0,
        ],
    ),
    (
        E2E,
        "From accepting a request to its good end.",
        &[
            0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
            163.84, 327.68, 655.36, 1310.72,
        ],
    ),
    (
        QUEUE,
        "In the waiting line, for requests that left it to run.",
        &[
            0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        ],
    ),
];

pub(super) const REQUESTS: &str = "sluicegate_requests_total";
pub(super) const TOKENS: &str = "sluicegate_tokens_total";
pub(super) const SEND_STALLS: &str = "sluicegate_send_stalls_total";
pub(super) const PAUSES: &str = "sluicegate_pauses_total";
pub(super) const DRAFT_TOKENS: &str = "sluicegate_draft_tokens_total";
pub(super) const PARKS: &str = "sluicegate_parks_total";
pub(super) const MOVES: &str = "sluicegate_moves_total";
pub(super) const ENGINE_DEATHS: &str = "sluicegate_engine_deaths_total";
pub(super) const ENGINE_RELOADS: &str = "sluicegate_engine_reloads_total";
pub(super) const HANDSHAKES: &str = "sluicegate_tls_handshakes_total";
pub(super) const TICKETS: &str = "sluicegate_tls_tickets_total";
pub(super) const EARLY_REQUESTS: &str = "sluicegate_early_requests_total";
pub(super) const AUTH_REFUSALS: &str = "sluicegate_auth_refusals_total";
pub(super) const KEY_RELOADS: &str = "sluicegate_key_reloads_total";
pub(super) const CERTIFICATE_RELOADS: &str = "sluicegate_tls_certificate_reloads_total";
pub(super) const LIMIT_REFUSALS: &str = "sluicegate_limit_refusals_total";
pub(super) const LIMIT_DRY: &str = "sluicegate_limit_dry_total";
pub(super) const LIMIT_TOKENS: &str = "sluicegate_limit_tokens_total";
pub(super) const LIMIT_REDIS_FAILURES: &str = "sluicegate_limit_redis_failures_total";
pub(super) const LIMIT_ALONE: &str = "sluicegate_limit_alone_total";
pub(super) const LIMIT_QUOTA_FAILURES: &str = "sluicegate_limit_quota_write_failures_total";
pub(super) const BYTES: &str = "sluicegate_bytes_total";
/// Written by [`super::traffic`], since its values are no whole numbers.
pub(super) const SEND_STALL_SECONDS: &str = "sluicegate_send_stall_seconds_total";
pub(super) const TELEMETRY_DROPPED: &str = "sluicegate_telemetry_dropped_total";

pub(super) const COUNTERS: [(&str, &str); 23] = [
    (REQUESTS, "Requests by how they ended."),
    (
        TOKENS,
        "Tokens by kind; cached ones are among the input tokens too.",
    ),
    (SEND_STALLS, "Readers cut off because they stopped reading."),
    (
        PARKS,
        "Times that a sequence was set aside for others or for its reader.",
    ),
    (
        MOVES,
        "Times that a running sequence was moved beside the others, so that they compute together.",
    ),
    (
        PAUSES,
        "Times that a sequence left the batch because its reader was behind.",
    ),
    (
        DRAFT_TOKENS,
        "Tokens computed on a guess, by whether they were right.",
    ),
    (
        ENGINE_DEATHS,
        "Times that a model's engine stopped although nobody stopped it, or did not load again.",
    ),
    (
        ENGINE_RELOADS,
        "Times that a model was loaded again after its engine had stopped.",
    ),
    (HANDSHAKES, "TLS handshakes by how they ended."),
    (
        TICKETS,
        "TLS tickets by what became of them; replayed ones had been shown before.",
    ),
    (
        EARLY_REQUESTS,
        "Requests that came before their TLS handshake had ended, by what was done at once.",
    ),
    (
        AUTH_REFUSALS,
        "Requests refused for who asks, their token, their proof, their id, or for being early.",
    ),
    (
        KEY_RELOADS,
        "Times that a file of keys had changed, by whether the new one was taken.",
    ),
    (
        CERTIFICATE_RELOADS,
        "Times that the certificate's files had changed, by whether the new one was taken.",
    ),
    (
        LIMIT_REFUSALS,
        "Requests refused by a limit of their caller, by whose limit and which.",
    ),
    (
        LIMIT_DRY,
        "Streams ended because their caller had no tokens left, by whose limit and which.",
    ),
    (
        LIMIT_TOKENS,
        "Tokens charged to callers who have a limit on tokens.",
    ),
    (
        LIMIT_REDIS_FAILURES,
        "Times that the server of shared limits did not answer well or in time (limits.redis).",
    ),
    (
        LIMIT_ALONE,
        "Requests decided by this node's share of a limit, because the server did not answer.",
    ),
    (
        LIMIT_QUOTA_FAILURES,
        "Times that the use of a day and a month could not be written (limits.quota_file).",
    ),
    (
        BYTES,
        "Bytes that connections carried: over TCP what HTTP reads and writes, within TLS; over QUIC the datagrams.",
    ),
    (
        TELEMETRY_DROPPED,
        "Log lines dropped because their reader was behind.",
    ),
];

pub(super) const STREAMS_OPEN: &str = "sluicegate_streams_open";
pub(super) const STREAMS_KEPT: &str = "sluicegate_streams_kept";
pub(super) const CONNECTIONS_OPEN: &str = "sluicegate_connections_open";
pub(super) const TRANSPORT_CONNECTIONS: &str = "sluicegate_transport_connections";
pub(super) const REQUESTS_OPEN: &str = "sluicegate_requests_open";
pub(super) const REQUESTS_RUNNING: &str = "sluicegate_requests_running";
pub(super) const REQUESTS_WAITING: &str = "sluicegate_requests_waiting";
pub(super) const SEQUENCES_PAUSED: &str = "sluicegate_sequences_paused";
pub(super) const PARKED: &str = "sluicegate_sequences_parked";
pub(super) const KV_USED: &str = "sluicegate_kv_tokens_used";
pub(super) const KV_IDLE: &str = "sluicegate_kv_tokens_idle";
pub(super) const PREFIX_BYTES: &str = "sluicegate_prefix_cache_bytes";
pub(super) const KV_CAPACITY: &str = "sluicegate_kv_tokens_capacity";
pub(super) const ENGINE_THREADS: &str = "sluicegate_engine_threads";
pub(super) const CERTIFICATE_UNTIL: &str = "sluicegate_tls_certificate_not_after_seconds";
pub(super) const TICKETS_LIVE: &str = "sluicegate_tls_tickets_live";
pub(super) const EARLY_IDS: &str = "sluicegate_early_ids";
pub(super) const LIMIT_ACCOUNTS: &str = "sluicegate_limit_accounts";
pub(super) const LIMIT_REDIS_UP: &str = "sluicegate_limit_redis_up";
pub(super) const LIMIT_NODES: &str = "sluicegate_limit_nodes";
pub(super) const BUILD_INFO: &str = "sluicegate_build_info";

pub(super) const GAUGES: [(&str, &str); 21] = [
    (STREAMS_OPEN, "Streams that have not ended."),
    (
        STREAMS_KEPT,
        "Streams that can be resumed, read or not, ended or not (stream.resume).",
    ),
    (CONNECTIONS_OPEN, "Connections to the public listener."),
    (
        TRANSPORT_CONNECTIONS,
        "Connections to the public listener by what they speak; those that have not agreed on it yet are not among them.",
    ),
    (
        REQUESTS_OPEN,
        "Requests from their heads to the last byte of their answers, whatever they ask for.",
    ),
    (REQUESTS_RUNNING, "Sequences in prefill or decode."),
    (REQUESTS_WAITING, "Requests in the waiting line."),
    (
        SEQUENCES_PAUSED,
        "Running sequences whose reader is behind, out of the batch for now.",
    ),
    (
        PARKED,
        "Sequences set aside, with their K/V in host memory.",
    ),
    (KV_USED, "KV cells in use."),
    (KV_IDLE, "KV cells that hold nothing but cached prefixes."),
    (PREFIX_BYTES, "Bytes of cached prefixes in host memory."),
    (KV_CAPACITY, "KV cells in all."),
    (
        ENGINE_THREADS,
        "Threads of the last call of a phase, decode or prefill.",
    ),
    (
        CERTIFICATE_UNTIL,
        "When the certificate ends, in seconds since 1970; 0 without TLS.",
    ),
    (TICKETS_LIVE, "TLS tickets that could be redeemed now."),
    (
        EARLY_IDS,
        "Ids of requests served early that are remembered (auth.max_early_ids).",
    ),
    (
        LIMIT_REDIS_UP,
        "1 while limits are shared; 0 while their server is away, and where there is none (limits.redis).",
    ),
    (
        LIMIT_NODES,
        "Nodes among which shared limits are divided while their server is away.",
    ),
    (
        LIMIT_ACCOUNTS,
        "Accounts of callers, organizations and models that limits keep now (limits.max_accounts).",
    ),
    (BUILD_INFO, "Always 1; the labels say what runs."),
];
