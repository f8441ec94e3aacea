//! Where requests spent their time, by what the gateway's own metrics say of a phase.

use serde_json::{Value, json};

use crate::metrics::sum;

/// A part of a request's time, and the histogram that tells it.
const OF_REQUESTS: [(&str, &str); 4] = [
    ("queue", "sluicegate_queue_seconds"),
    ("tokenize", "sluicegate_tokenize_seconds"),
    ("prefill", "sluicegate_prefill_seconds"),
    ("send stall", "sluicegate_send_stall_seconds"),
];

/// All of it, of answers that ended well.
const ALL: &str = "sluicegate_e2e_seconds";

/// A part of the engine's time, and the label that tells it.
const OF_STEPS: [&str; 4] = ["prefill", "decode", "sample", "emit"];

/// Seconds of the engine's steps by part.
const STEPS: &str = "sluicegate_engine_phase_seconds_total";

/// Where time went; what the server does not tell is none.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attribution {
    /// Milliseconds of the mean request.
    pub(super) request: Vec<(&'static str, Option<f64>)>,
    /// Milliseconds of the engine for each second that was measured.
    pub(super) engine: Vec<(&'static str, Option<f64>)>,
}

/// Reads what was told before and after a phase of so many seconds.
pub(super) fn read([before, after]: &[String; 2], seconds: f64) -> Attribution {
    let gained = |name: &str, labels: &[&str]| {
        has(after, name).then(|| sum(after, name, labels) - sum(before, name, labels))
    };
    let mean = |name: &str| {
        let of = |what| gained(&format!("{name}_{what}"), &[]);
        let count = of("count").filter(|count| *count > 0.0)?;
        Some(1e3 * of("sum")? / count)
    };
    let mut request: Vec<(&'static str, Option<f64>)> = OF_REQUESTS
        .iter()
        .map(|(part, name)| (*part, mean(name)))
        .collect();
    let known: f64 = request.iter().filter_map(|(_, part)| *part).sum();
    // Nothing measures it: it is what the other parts leave, encoding and sending included.
    let rest = mean(ALL).map(|all| (all - known).max(0.0));
    request.insert(3, ("decode, encode, send", rest));
    let engine = OF_STEPS
        .iter()
        .map(|part| {
            let label = format!("phase=\"{part}\"");
            let gained = gained(STEPS, &[&label]);
            (*part, gained.map(|gained| 1e3 * gained / seconds))
        })
        .collect();
    Attribution { request, engine }
}

fn has(text: &str, name: &str) -> bool {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .any(|rest| rest.starts_with([' ', '{']))
}

impl Attribution {
    /// For the file of results.
    pub(super) fn json(&self) -> Value {
        let parts = |parts: &[(&'static str, Option<f64>)]| -> Value {
            parts
                .iter()
                .map(|(part, ms)| ((*part).to_owned(), json!(ms)))
                .collect::<serde_json::Map<String, Value>>()
                .into()
        };
        json!({
            "request_ms": parts(&self.request),
            "engine_ms_per_second": parts(&self.engine),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_shared_out_and_what_is_not_is_none() {
        let before = "sluicegate_e2e_seconds_sum{m=\"a\"} 10\nsluicegate_e2e_seconds_count{m=\"a\"} 5\n\
                      sluicegate_queue_seconds_sum{m=\"a\"} 1\nsluicegate_queue_seconds_count{m=\"a\"} 7\n";
        let after = "sluicegate_e2e_seconds_sum{m=\"a\"} 16\nsluicegate_e2e_seconds_count{m=\"a\"} 7\n\
                     sluicegate_queue_seconds_sum{m=\"a\"} 2\n\
                     sluicegate_queue_seconds_count{m=\"a\"} 9\n\
                     sluicegate_engine_phase_seconds_total{phase=\"decode\"} 1.5\n";
        let found = read(&[before.to_owned(), after.to_owned()], 2.0);
        let expected = [
            ("queue", Some(500.0)),
            ("tokenize", None),
            ("prefill", None),
            ("decode, encode, send", Some(2500.0)),
            ("send stall", None),
        ];
        assert_eq!(found.request, expected);
        assert_eq!(found.engine[1], ("decode", Some(750.0)));
        let nothing = read(&[String::new(), String::new()], 1.0);
        assert!(nothing.request.iter().all(|(_, part)| part.is_none()));
        assert!(nothing.json()["request_ms"]["queue"].is_null());
    }
}
