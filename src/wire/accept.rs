//! Which format the caller wants: the `Accept` header against the body's `stream`.
//!
//! SDKs send `Accept: application/json` for streams too, and browsers' libraries send
//! `application/json, text/plain, */*`. So the formats that are ours alone (bare text, NDJSON, frames) are
//! chosen only when the header names one and likes it better than JSON and SSE.

use super::sluice::FRAMES;

/// A format for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Server-sent events.
    Events,
    /// One JSON object a line.
    Lines,
    /// Bare text.
    Text,
    /// The frames of `sluice/1`.
    Frames,
    /// One JSON document.
    Document,
}

/// The format and whether it streams. `stream` is the body's field, if it was there.
///
/// Bare text, NDJSON and frames stream unless the body says `"stream": false`; otherwise `stream` decides
/// between SSE and one document. A header that allows nothing we have is ignored (RFC 9110, 12.5.1).
pub(super) fn choose(accept: &str, stream: Option<bool>) -> (Format, bool) {
    let mut usual = None::<f32>;
    let mut anything = 0.0_f32;
    let mut ours = None::<(Format, f32)>;
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(quality).unwrap_or(1.0);
        let format = match name.as_str() {
            "application/json" | "text/event-stream" => {
                usual = Some(usual.map_or(quality, |best| best.max(quality)));
                continue;
            }
            "*/*" => {
                anything = quality;
                continue;
            }
            "application/x-ndjson" | "application/ndjson" => Format::Lines,
            "text/plain" => Format::Text,
            FRAMES => Format::Frames,
            _ => continue,
        };
        if ours.is_none_or(|(_, best)| quality > best) {
            ours = Some((format, quality));
        }
    }
    match ours {
        Some((format, quality)) if quality > usual.unwrap_or(anything) => {
            (format, stream.unwrap_or(true))
        }
        _ if stream == Some(true) => (Format::Events, true),
        _ => (Format::Document, false),
    }
}

/// The weight of a parameter such as `q=0.5`; `None` if it is another parameter.
fn quality(parameter: &str) -> Option<f32> {
    let (name, value) = parameter.split_once('=')?;
    if !name.trim().eq_ignore_ascii_case("q") {
        return None;
    }
    let value: f32 = value.trim().parse().unwrap_or(0.0);
    Some(if value.is_nan() {
        0.0
    } else {
        value.clamp(0.0, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Format::{Document, Events, Frames, Lines, Text};

    #[test]
    fn the_table_of_headers_and_flags() {
        let table: &[(&str, Option<bool>, (Format, bool))] = &[
            ("", None, (Document, false)),
            ("", Some(false), (Document, false)),
            ("", Some(true), (Events, true)),
            ("*/*", Some(true), (Events, true)),
            ("*/*", None, (Document, false)),
            ("application/json", Some(true), (Events, true)),
            ("text/event-stream", Some(true), (Events, true)),
            ("text/event-stream", None, (Document, false)),
            ("text/plain", None, (Text, true)),
            ("text/plain", Some(true), (Text, true)),
            ("text/plain", Some(false), (Text, false)),
            ("TEXT/Plain; charset=utf-8", None, (Text, true)),
            ("application/x-ndjson", None, (Lines, true)),
            ("application/ndjson", Some(true), (Lines, true)),
            ("application/x-ndjson", Some(false), (Lines, false)),
            (
                "application/json, text/plain, */*",
                Some(true),
                (Events, true),
            ),
            ("application/json, text/plain, */*", None, (Document, false)),
            ("text/plain, */*", None, (Document, false)),
            ("text/plain, */*;q=0.1", None, (Text, true)),
            (
                "text/plain;q=0.5, application/json",
                None,
                (Document, false),
            ),
            (
                "text/plain;q=0.9, application/json;q=0.8",
                None,
                (Text, true),
            ),
            (
                "text/plain;q=0.5, application/x-ndjson",
                None,
                (Lines, true),
            ),
            ("text/plain, application/x-ndjson", None, (Text, true)),
            ("application/vnd.sluice.frames", None, (Frames, true)),
            (
                "application/vnd.sluice.frames",
                Some(false),
                (Frames, false),
            ),
            (
                "application/vnd.sluice.frames, */*;q=0.5",
                Some(true),
                (Frames, true),
            ),
            (
                "application/vnd.sluice.frames;q=0.5, application/json",
                Some(true),
                (Events, true),
            ),
            ("text/plain;q=0", None, (Document, false)),
            ("text/plain;q=0, */*", Some(true), (Events, true)),
            ("text/plain;q=nan", None, (Document, false)),
            ("text/plain;q=x", None, (Document, false)),
            (
                "text/plain;format=flowed;q=0.4, application/json;q=0.3",
                None,
                (Text, true),
            ),
            ("image/png", None, (Document, false)),
            ("text/*", Some(true), (Events, true)),
            (",;q=,;;", None, (Document, false)),
            ("application/json;q=0, text/plain;q=0.1", None, (Text, true)),
        ];
        for &(accept, stream, expected) in table {
            assert_eq!(choose(accept, stream), expected, "{accept:?} {stream:?}");
        }
    }
}
