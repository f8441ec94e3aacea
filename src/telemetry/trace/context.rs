//! W3C Trace Context in and out (the Recommendation of 2021, "Trace Context - Level 1").
//!
//! A caller's header is never an error: what cannot be used is as if it had not come (section 2.2,
//! "Processing model"). Nothing of it is allocated but a `tracestate` that is handed on.

use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use crate::generation::TraceContext;

/// The longest `tracestate` that is handed on (section 3.3.1.5: at least as long as this).
const STATE_BYTES: usize = 512;

/// The most members of one (section 3.3.1.1).
const STATE_MEMBERS: usize = 32;

/// Bytes of `version-traceid-parentid-flags`.
const PARENT_BYTES: usize = 55;

/// The flag of a caller who keeps their part (section 3.2.2.5.1).
const SAMPLED: u8 = 1;

/// A new part, in the trace that these headers name, if they do.
pub(super) fn begin(traceparent: Option<&str>, tracestate: Option<&str>) -> TraceContext {
    let ids = RandomIdGenerator::default();
    // Zero is no id (section 3.2.2.3 and .4).
    let span_id = u64::from_be_bytes(ids.new_span_id().to_bytes()).max(1);
    if let Some((trace_id, parent, flags)) = traceparent.and_then(parse) {
        return TraceContext {
            trace_id,
            span_id,
            parent: Some(parent),
            is_sampled: flags & SAMPLED != 0,
            // A state without a parent means nothing (section 3.3).
            state: tracestate.filter(|state| is_state(state)).map(Into::into),
            is_debug: false,
        };
    }
    TraceContext {
        trace_id: u128::from_be_bytes(ids.new_trace_id().to_bytes()).max(1),
        span_id,
        ..TraceContext::default()
    }
}

/// Trace, parent and flags (section 3.2.2).
fn parse(text: &str) -> Option<(u128, u64, u8)> {
    let bytes = text.trim_matches([' ', '\t']).as_bytes();
    let version = hex(bytes.get(..2)?)?;
    let rest = bytes.get(PARENT_BYTES..)?;
    // A version to come may have more behind a dash; this one has not, and ff is none.
    let fits = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.first().is_none_or(|&next| next == b'-'),
    };
    let dashed = [2, 35, 52].iter().all(|&at| bytes[at] == b'-');
    if !fits || !dashed {
        return None;
    }
    let trace_id = hex(&bytes[3..35])?;
    let parent = u64::try_from(hex(&bytes[36..52])?).ok()?;
    let flags = u8::try_from(hex(&bytes[53..55])?).ok()?;
    (trace_id != 0 && parent != 0).then_some((trace_id, parent, flags))
}

/// Lower-case hexadecimal digits only (section 3.2.2: upper case is invalid).
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

/// Whether it may be handed on: members `key=value` of printable characters, not too many.
fn is_state(text: &str) -> bool {
    let members = || {
        text.split(',')
            .map(|member| member.trim_matches([' ', '\t']))
    };
    text.len() <= STATE_BYTES
        && text
            .bytes()
            .all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
        && members().count() <= STATE_MEMBERS
        && members().any(|member| !member.is_empty())
        && members().all(|member| member.is_empty() || is_member(member))
}

/// Section 3.3.1.3.
fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else {
        return false;
    };
    let begins = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let goes_on = |byte| begins(byte) || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@');
    key.len() <= 256
        && key.bytes().next().is_some_and(begins)
        && key.bytes().all(goes_on)
        && (1..=256).contains(&value.len())
        && !value.contains('=')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_request_joins_its_callers_trace() {
        let context = begin(Some(PARENT), Some("vendor=a, other@b=c"));
        assert_eq!(context.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.parent, Some(0x00f0_67aa_0ba9_02b7));
        assert!(context.is_sampled && context.span_id != 0);
        assert_ne!(Some(context.span_id), context.parent);
        assert_eq!(context.state.as_deref(), Some("vendor=a, other@b=c"));
    }

    #[test]
    fn a_version_to_come_is_read_as_far_as_it_is_known() {
        for (text, joins) in [
            (PARENT.replacen("00", "cc", 1), true),
            (PARENT.replacen("00", "cc", 1) + "-more", true),
            (PARENT.replacen("00", "cc", 1) + ".more", false),
            (PARENT.to_owned() + "-more", false),
            (format!(" {PARENT}\t"), true),
        ] {
            assert_eq!(begin(Some(&text), None).parent.is_some(), joins, "{text}");
        }
    }

    #[test]
    fn what_is_no_parent_begins_a_new_trace() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let (no_trace, no_span) = ("0".repeat(32), "0".repeat(16));
        for text in [
            String::new(),
            "00".to_owned(),
            PARENT.to_uppercase(),
            PARENT.replacen("00", "ff", 1),
            format!("00-{no_trace}-{span}-01"),
            format!("00-{trace}-{no_span}-01"),
            format!("00-{trace}-{span}-1"),
            format!("00-{trace}-{span}-0g"),
            format!("00_{trace}-{span}-01"),
            format!("{PARENT},{PARENT}"),
            format!("{PARENT}, {PARENT}"),
            "\u{e4}".repeat(28),
        ] {
            let context = begin(Some(&text), Some("a=b"));
            assert_eq!(context.parent, None, "{text}");
            assert_eq!(context.state, None, "{text}");
            assert!(context.trace_id != 0 && context.span_id != 0);
        }
    }

    #[test]
    fn a_state_that_breaks_the_rules_is_not_handed_on_and_costs_nothing_else() {
        for state in [
            format!("a={}", "b".repeat(511)),
            "a".to_owned(),
            "A=b".to_owned(),
            "a=b=c".to_owned(),
            "a=".to_owned(),
            ", ,".to_owned(),
            "a=b\r\nset-cookie: c".to_owned(),
            "a=\u{fc}".to_owned(),
            ["a=b"; 33].join(","),
        ] {
            let context = begin(Some(PARENT), Some(&state));
            assert_eq!(context.state, None, "{state:?}");
            assert!(context.parent.is_some());
        }
        let long = ["a=b"; 32].join(",");
        assert_eq!(
            begin(Some(PARENT), Some(&long)).state.as_deref(),
            Some(&*long)
        );
    }

    proptest! {
        #[test]
        fn nothing_that_can_come_is_an_error(parent in "\\PC{0,80}", state in "\\PC{0,600}") {
            let context = begin(Some(&parent), Some(&state));
            prop_assert!(context.trace_id != 0 && context.span_id != 0);
            prop_assert!(context.state.is_none_or(|state| state.len() <= STATE_BYTES));
        }

        #[test]
        fn nearly_right_ones_are_right_or_new(at in 0..PARENT.len(), byte in 0u8..128) {
            let mut bytes = PARENT.as_bytes().to_vec();
            bytes[at] = byte;
            let text = String::from_utf8(bytes).unwrap();
            let context = begin(Some(&text), None);
            let is_hex = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let is_dash = matches!(at, 2 | 35 | 52);
            let fits = if is_dash { byte == b'-' } else { is_hex };
            prop_assert_eq!(context.parent.is_some(), fits);
        }

        #[test]
        fn every_name_is_read_as_it_was_written(trace_id in 1u128.., span_id in 1u64.., is_sampled: bool) {
            let flags = u8::from(is_sampled);
            let next = begin(Some(&format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}")), None);
            prop_assert_eq!(next.trace_id, trace_id);
            prop_assert_eq!(next.parent, Some(span_id));
            prop_assert_eq!(next.is_sampled, is_sampled);
        }
    }
}
