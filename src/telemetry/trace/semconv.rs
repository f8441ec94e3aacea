//! The names of everything that a span says: OpenTelemetry's semantic conventions, and ours.
//!
//! The conventions for generative models are still in development and change from release to release,
//! so no other file names an attribute, and [`SCHEMA`] says which release this is.

/// The release of the conventions that these names are from, said with every span.
pub(super) const SCHEMA: &str = "https://opentelemetry.io/schemas/1.42.0";

/// Names of the resource: who speaks.
pub(super) const SERVICE_NAME: &str = "service.name";
pub(super) const SERVICE_VERSION: &str = "service.version";
pub(super) const SERVICE_INSTANCE: &str = "service.instance.id";

/// Names of HTTP and of networks.
pub(super) const METHOD: &str = "http.request.method";
pub(super) const ROUTE: &str = "http.route";
pub(super) const STATUS: &str = "http.response.status_code";
pub(super) const BODY_SIZE: &str = "http.response.body.size";
pub(super) const PROTOCOL_NAME: &str = "network.protocol.name";
pub(super) const PROTOCOL_VERSION: &str = "network.protocol.version";
pub(super) const ERROR_TYPE: &str = "error.type";

/// Names of generative models.
pub(super) const OPERATION: &str = "gen_ai.operation.name";
pub(super) const PROVIDER: &str = "gen_ai.provider.name";
pub(super) const REQUEST_MODEL: &str = "gen_ai.request.model";
pub(super) const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub(super) const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
pub(super) const FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
pub(super) const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub(super) const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub(super) const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";

/// Names of ours.
pub(super) const REQUEST_ID: &str = "sluicegate.request.id";
pub(super) const TRANSPORT: &str = "sluicegate.transport";
pub(super) const WHOLE: &str = "sluicegate.response.complete";
pub(super) const RESPONSE_STALLED: &str = "sluicegate.response.stalled_us";
pub(super) const KEPT: &str = "sluicegate.trace.kept";
pub(super) const LATE: &str = "sluicegate.trace.sampled_late";
pub(super) const OUTCOME: &str = "sluicegate.outcome";
pub(super) const CALL_ROUTE: &str = "sluicegate.route";
pub(super) const MAX_GAP: &str = "sluicegate.token.max_gap_us";
pub(super) const OFFSETS: &str = "sluicegate.token.offsets_us";
/// Only every so many-th token has an offset; absent if all have.
pub(super) const STRIDE: &str = "sluicegate.token.stride";
pub(super) const TOKEN_INDEX: &str = "sluicegate.token.index";
pub(super) const TOKEN_BYTES: &str = "sluicegate.token.bytes";
pub(super) const TOKEN_CHOICE: &str = "sluicegate.token.choice";
pub(super) const STALL: &str = "sluicegate.stall_us";

/// Events of a call.
pub(super) const FIRST_TOKEN: &str = "first_token";
pub(super) const TOKEN: &str = "token";
pub(super) const STALLED: &str = "stall";
pub(super) const PAUSED: &str = "paused";
pub(super) const RESUMED: &str = "resumed";
pub(super) const PREEMPTED: &str = "preempted";
pub(super) const FINISH: &str = "finish";

/// Parts of a call.
pub(super) const QUEUE: &str = "queue";
pub(super) const PREFILL: &str = "prefill";
pub(super) const DECODE: &str = "decode";
pub(super) const STALL_SPAN: &str = "send stall";

/// Who computes: the model runs in this process.
pub(super) const US: &str = "sluicegate";

/// The operation that a route is, in the conventions' words where they have one.
pub(super) fn operation(route: &'static str) -> &'static str {
    match route {
        "completions" => "text_completion",
        // `chat`, `embeddings` and what the conventions do not know.
        other => other,
    }
}

/// `network.protocol.name` and `.version` of a transport.
pub(super) fn protocol(transport: &str) -> Option<(&'static str, &'static str)> {
    match transport {
        "h1" => Some(("http", "1.1")),
        "h2" => Some(("http", "2")),
        "h3" => Some(("http", "3")),
        "sluice" => Some(("sluice", "1")),
        _ => None,
    }
}
