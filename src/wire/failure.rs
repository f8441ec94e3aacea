//! The only table from a failure's kind to the codes of every protocol, and OpenAI's error object.

use bytes::{BufMut, BytesMut};

use super::{JSON, Refusal, json};
use crate::generation::{Failure, Kind};

/// What each protocol calls one kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// Our own name for the kind: `data.kind` in JSON-RPC errors.
    pub name: &'static str,
    /// HTTP status.
    pub status: u16,
    /// `error.type` in OpenAI's error object.
    pub openai_type: &'static str,
    /// `error.code` in OpenAI's error object when the failure has no finer code of its own.
    pub openai_code: Option<&'static str>,
    /// JSON-RPC 2.0 error code (section 5.1; -32000 to -32099 are the server's own).
    pub rpc: i32,
    /// Application error code of the QUIC protocol; fits a one-, two- or four-byte varint.
    pub quic: u32,
    /// Whether the same request may succeed if it is sent again: `x-should-retry`. SDKs repeat any
    /// 429 and 5xx twice unless told otherwise, so this is `false` for what ends the same way
    /// again or spends the tokens twice. The kinds that say `true` mostly come before any token; a whole
    /// answer that a drain or an upstream broke off may be repeated all the same.
    pub retry: bool,
}

/// The codes for a kind of failure.
#[must_use]
#[rustfmt::skip]
pub const fn codes(kind: Kind) -> Codes {
    const INVALID: &str = "invalid_request_error";
    const SERVER: &str = "server_error";
    match kind {
        Kind::Invalid => row("invalid", 400, INVALID, None, -32602, 0x10, false),
        Kind::ContextExceeded => row("context_exceeded", 400, INVALID, Some("context_length_exceeded"), -32001, 0x11, false),
        Kind::TooLarge => row("too_large", 413, INVALID, Some("request_too_large"), -32002, 0x12, false),
        Kind::NotFound => row("not_found", 404, INVALID, Some("not_found"), -32003, 0x13, false),
        Kind::Gone => row("gone", 410, INVALID, Some("gone"), -32005, 0x17, false),
        Kind::MethodNotAllowed => row("method_not_allowed", 405, INVALID, Some("method_not_allowed"), -32600, 0x14, false),
        Kind::UnsupportedMedia => row("unsupported_media", 415, INVALID, Some("unsupported_media_type"), -32600, 0x15, false),
        // Nothing was started, so a repeat costs nothing.
        Kind::SlowRequest => row("slow_request", 408, INVALID, Some("request_timeout"), -32004, 0x16, true),
        Kind::Unauthorized => row("unauthorized", 401, "authentication_error", Some("invalid_api_key"), -32010, 0x20, false),
        Kind::Forbidden => row("forbidden", 403, "permission_error", Some("forbidden"), -32011, 0x21, false),
        Kind::Limited => row("limited", 429, "rate_limit_error", Some("rate_limit_exceeded"), -32012, 0x22, true),
        Kind::Replayed => row("replayed", 409, INVALID, Some("request_replayed"), -32013, 0x23, false),
        // RFC 8470: nothing was started, and after the handshake the same request is welcome.
        Kind::TooEarly => row("too_early", 425, INVALID, Some("too_early"), -32014, 0x24, true),
        // 503 and not 429: the caller did nothing wrong, the server is full. Load balancers move on at
        // a 503, and SDKs repeat both after Retry-After.
        Kind::Overloaded => row("overloaded", 503, "overloaded_error", Some("overloaded"), -32020, 0x30, true),
        Kind::Draining => row("draining", 503, "overloaded_error", Some("shutting_down"), -32021, 0x31, true),
        Kind::NotReady => row("not_ready", 503, "overloaded_error", Some("model_not_ready"), -32022, 0x32, true),
        Kind::Deadline => row("deadline", 504, "timeout_error", Some("deadline_exceeded"), -32030, 0x33, false),
        Kind::Stalled => row("stalled", 504, "timeout_error", Some("reader_stalled"), -32031, 0x34, false),
        // nginx's 499, which SDKs do not repeat.
        Kind::Cancelled => row("cancelled", 499, INVALID, Some("cancelled"), -32032, 0x35, false),
        Kind::Upstream => row("upstream", 502, SERVER, Some("upstream_error"), -32040, 0x40, true),
        // A defect strikes again: the two repeats of an SDK would only triple the damage.
        Kind::Internal => row("internal", 500, SERVER, Some("internal_error"), -32603, 0x41, false),
    }
}

const fn row(
    name: &'static str,
    status: u16,
    openai_type: &'static str,
    openai_code: Option<&'static str>,
    rpc: i32,
    quic: u32,
    retry: bool,
) -> Codes {
    Codes {
        name,
        status,
        openai_type,
        openai_code,
        rpc,
        quic,
        retry,
    }
}

/// Appends OpenAI's error body, `{"error":{message,type,param,code}}`, and says what goes above it.
///
/// All four keys are always there; `param` and `code` are strings or null, because typed clients choke
/// on anything else.
pub fn refuse(failure: &Failure, out: &mut BytesMut) -> Refusal {
    body(failure, out);
    Refusal {
        status: codes(failure.kind).status,
        content_type: JSON,
    }
}

/// Appends `{"error":{…}}`.
pub(super) fn body(failure: &Failure, out: &mut BytesMut) {
    let codes = codes(failure.kind);
    out.extend_from_slice(b"{\"error\":{\"message\":");
    json::string(out, &failure.message);
    out.extend_from_slice(b",\"type\":");
    json::string(out, codes.openai_type);
    out.extend_from_slice(b",\"param\":");
    json::string_or_null(out, failure.param.as_deref());
    out.extend_from_slice(b",\"code\":");
    json::string_or_null(out, failure.code.or(codes.openai_code));
    out.extend_from_slice(b"}}");
}

/// Appends a JSON-RPC error object: `{code, message, data: {kind, param, code, retry_after_ms}}`.
pub(super) fn rpc_error(failure: &Failure, code: i32, out: &mut BytesMut) {
    let codes = codes(failure.kind);
    out.extend_from_slice(b"{\"code\":");
    json::integer(out, code);
    out.extend_from_slice(b",\"message\":");
    json::string(out, &failure.message);
    out.extend_from_slice(b",\"data\":{\"kind\":");
    json::string(out, codes.name);
    out.extend_from_slice(b",\"param\":");
    json::string_or_null(out, failure.param.as_deref());
    out.extend_from_slice(b",\"code\":");
    json::string_or_null(out, failure.code.or(codes.openai_code));
    out.extend_from_slice(b",\"retry_after_ms\":");
    match failure.retry_after {
        Some(after) => json::integer(out, after.as_millis()),
        None => out.extend_from_slice(b"null"),
    }
    out.put_slice(b"}}");
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const KINDS: [Kind; 21] = [
        Kind::Invalid,
        Kind::ContextExceeded,
        Kind::TooLarge,
        Kind::NotFound,
        Kind::Gone,
        Kind::MethodNotAllowed,
        Kind::UnsupportedMedia,
        Kind::SlowRequest,
        Kind::Unauthorized,
        Kind::Forbidden,
        Kind::Replayed,
        Kind::TooEarly,
        Kind::Limited,
        Kind::Overloaded,
        Kind::Draining,
        Kind::NotReady,
        Kind::Deadline,
        Kind::Stalled,
        Kind::Cancelled,
        Kind::Upstream,
        Kind::Internal,
    ];

    #[test]
    fn names_and_quic_codes_are_unique_and_rpc_codes_are_in_their_ranges() {
        let names: HashSet<_> = KINDS.map(|kind| codes(kind).name).into();
        let quic: HashSet<_> = KINDS.map(|kind| codes(kind).quic).into();
        assert_eq!((names.len(), quic.len()), (KINDS.len(), KINDS.len()));
        for kind in KINDS {
            let codes = codes(kind);
            assert!(
                matches!(codes.rpc, -32603 | -32602 | -32600 | -32099..=-32000),
                "{codes:?}"
            );
            assert!((400..600).contains(&codes.status), "{codes:?}");
        }
    }

    #[test]
    fn only_what_sdks_would_repeat_by_themselves_says_retry() {
        for codes in KINDS.map(codes) {
            assert!(
                !codes.retry || matches!(codes.status, 408 | 425 | 429 | 502 | 503),
                "{codes:?}"
            );
        }
    }

    #[test]
    fn the_error_body_has_four_keys_of_strings_or_null() {
        let failure = Failure::invalid("messages[0].role", "The role is \"wrong\".\n");
        let mut out = BytesMut::new();
        let refusal = refuse(&failure, &mut out);
        assert_eq!((refusal.status, refusal.content_type), (400, JSON));
        let body: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            body,
            serde_json::json!({"error": {
                "message": "The role is \"wrong\".\n",
                "type": "invalid_request_error",
                "param": "messages[0].role",
                "code": null,
            }})
        );
    }

    #[test]
    fn a_failures_own_code_is_finer_than_its_kinds() {
        let mut out = BytesMut::new();
        refuse(
            &Failure::new(Kind::NotFound, "No.").with_code("model_not_found"),
            &mut out,
        );
        let body: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(body["error"]["code"], "model_not_found");
        assert_eq!(body["error"]["param"], serde_json::Value::Null);
    }
}
