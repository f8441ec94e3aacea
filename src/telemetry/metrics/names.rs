//! Every metric of the exporter: name, help and buckets; with those that are written by ourselves.

pub(super) use super::families::*;

pub(super) const TIME_TO_FIRST_TOKEN: &str = "sluicegate_time_to_first_token_seconds";
pub(super) const E2E: &str = "sluicegate_e2e_seconds";
pub(super) const HANDSHAKE_TIME: &str = "sluicegate_tls_handshake_seconds";
pub(super) const QUEUE: &str = "sluicegate_queue_seconds";
pub(super) const PREFILL: &str = "sluicegate_prefill_seconds";
pub(super) const TPOT: &str = "sluicegate_tpot_seconds";
pub(super) const SEND_STALL: &str = "sluicegate_send_stall_seconds";
pub(super) const OVERHEAD: &str = "sluicegate_gateway_overhead_seconds";
pub(super) const SCHEDULING_DELAY: &str = "sluicegate_scheduling_delay_seconds";

/// Every histogram with its help and its buckets; without buckets it would be rendered as a
/// summary, which cannot be added up over processes.
pub(super) const HISTOGRAMS: &[(&str, &str, &[f64])] = &[
    (
        TIME_TO_FIRST_TOKEN,
        "From accepting a request to its first token.",
        &[
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
            10.0, 15.0, 20.0, 30.0, 60.0, 120.0,
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
        HANDSHAKE_TIME,
        "From the first byte of a TLS handshake to its good end, the wait for its turn included.",
        &[
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ],
    ),
    (
        QUEUE,
        "In the waiting line, for requests that left it to run.",
        &[
            0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        ],
    ),
    (
        PREFILL,
        "From the end of the waiting line until all of the prompt was read.",
        &[
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            60.0, 120.0,
        ],
    ),
    (
        TPOT,
        "From a request's first token to its good end, for each of its other tokens.",
        &[
            0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0,
            2.5,
        ],
    ),
    (
        SEND_STALL,
        "How long its reader left a stream with what it was handed, over the whole request.",
        &[
            0.0001, 0.001, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
        ],
    ),
    (
        OVERHEAD,
        "From a request that was read to handing it to its engine: rights, limits, template, tokens.",
        &[
            0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
            1.0, 5.0,
        ],
    ),
    (
        SCHEDULING_DELAY,
        "How much later than due a task ran that had only slept; timers round up to 1 ms.",
        &[
            0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
        ],
    ),
];

pub(super) const REQUESTS: &str = "sluicegate_requests_total";
pub(super) const TOKENS: &str = "sluicegate_tokens_total";
pub(super) const SHED: &str = "sluicegate_shed_total";
pub(super) const SEND_STALLS: &str = "sluicegate_send_stalls_total";
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
pub(super) const QUIC_DATAGRAMS: &str = "sluicegate_quic_datagrams_total";
pub(super) const QUIC_PACKETS: &str = "sluicegate_quic_packets_total";
pub(super) const QUIC_ACKS: &str = "sluicegate_quic_acks_total";
pub(super) const QUIC_CONGESTION: &str = "sluicegate_quic_congestion_events_total";
pub(super) const QUIC_PATHS: &str = "sluicegate_quic_path_challenges_total";
pub(super) const HTTP2_RESETS: &str = "sluicegate_http2_resets_total";
pub(super) const TELEMETRY_DROPPED: &str = "sluicegate_telemetry_dropped_total";
pub(super) const SLO_REQUESTS: &str = "sluicegate_slo_requests_total";
pub(super) const TRACES_KEPT: &str = "sluicegate_traces_kept_total";

pub(super) const CONFIG_RELOADS: &str = "sluicegate_config_reloads_total";
pub(super) const CONFIG_RELOADED_AT: &str =
    "sluicegate_config_last_reload_success_timestamp_seconds";

pub(super) const COUNTERS: &[(&str, &str)] = &[
    (
        CONFIG_RELOADS,
        "Times that the configuration was read again, by whether it was taken.",
    ),
    (REQUESTS, "Requests by how they ended."),
    (
        TOKENS,
        "Tokens by kind; cached ones are among the input tokens too.",
    ),
    (
        SHED,
        "Requests refused or ended for want of capacity, by why; of all models together.",
    ),
    (SEND_STALLS, "Readers cut off because they stopped reading."),
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
    (QUIC_DATAGRAMS, "Datagrams of QUIC connections."),
    (
        QUIC_PACKETS,
        "QUIC packets that were sent, and those of them that were lost.",
    ),
    (
        QUIC_ACKS,
        "ACK frames of QUIC; those that come cost a wake-up each.",
    ),
    (
        QUIC_CONGESTION,
        "Times that QUIC's congestion controller backed off.",
    ),
    (
        QUIC_PATHS,
        "Times that a QUIC peer had to prove its path, as after a change of address.",
    ),
    (
        HTTP2_RESETS,
        "Streams that HTTP/2 peers have reset, by the reason they gave (RFC 9113, section 7).",
    ),
    (
        TELEMETRY_DROPPED,
        "Log lines and traces dropped because whoever takes them was behind.",
    ),
    (
        SLO_REQUESTS,
        "Requests that count for the objective, by whether they met it (telemetry.slo).",
    ),
    (
        TRACES_KEPT,
        "Traces kept for export, by why; those that were dropped then are among them.",
    ),
];

pub(super) const STREAMS_OPEN: &str = "sluicegate_streams_open";
pub(super) const STREAMS_KEPT: &str = "sluicegate_streams_kept";
pub(super) const CONNECTIONS_OPEN: &str = "sluicegate_connections_open";
pub(super) const TRANSPORT_CONNECTIONS: &str = "sluicegate_transport_connections";
pub(super) const REQUESTS_OPEN: &str = "sluicegate_requests_open";
pub(super) const CERTIFICATE_UNTIL: &str = "sluicegate_tls_certificate_not_after_seconds";
pub(super) const TICKETS_LIVE: &str = "sluicegate_tls_tickets_live";
pub(super) const EARLY_IDS: &str = "sluicegate_early_ids";
pub(super) const LIMIT_ACCOUNTS: &str = "sluicegate_limit_accounts";
pub(super) const LIMIT_REDIS_UP: &str = "sluicegate_limit_redis_up";
pub(super) const LIMIT_NODES: &str = "sluicegate_limit_nodes";
pub(super) const BUILD_INFO: &str = "sluicegate_build_info";

pub(super) const SLO_BURN: &str = "sluicegate_slo_burn_rate";
pub(super) const SLO_OBJECTIVE: &str = "sluicegate_slo_objective";
pub(super) const TRACE_RATIO: &str = "sluicegate_trace_ratio";

pub(super) const DETAIL: &str = "sluicegate_detail_factor";

pub(super) const GAUGES: &[(&str, &str)] = &[
    (
        DETAIL,
        "How many times as much as configured is recorded in traces and profiles.",
    ),
    (
        SLO_BURN,
        "How many times faster than allowed the budget of bad requests is used up, by window.",
    ),
    (
        SLO_OBJECTIVE,
        "The part of requests that is to be good (telemetry.slo.objective).",
    ),
    (
        TRACE_RATIO,
        "The part of ordinary traces that is kept now; 0 without a collector.",
    ),
    (
        CONFIG_RELOADED_AT,
        "When the configuration that runs was last read, in seconds since 1970.",
    ),
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
