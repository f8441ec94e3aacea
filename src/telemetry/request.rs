//! What is counted and logged about one request: its outcome once, its times, one wide log line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use super::metrics::{ModelMetrics, Route};
use crate::generation::{
    Failure, Outcome, Record, Recorder, RequestId, Timeline, Trace, Usage, Waits, Work, chain,
    clock,
};

/// Records one request. Made when the request is accepted, then given to its stream, or told that
/// it was [refused](Self::refused). One that is dropped untold was left by its client.
pub struct RequestRecorder {
    model: Arc<ModelMetrics>,
    route: Route,
    id: RequestId,
    /// [`clock::task_micros`].
    accepted_at: u64,
    /// Output tokens already counted: a long stream shows up in the rates while it runs.
    counted: AtomicU32,
    ended: AtomicBool,
    trace: Trace,
}

impl RequestRecorder {
    /// A request for `model` was accepted now, in this trace.
    #[must_use]
    pub fn new(model: Arc<ModelMetrics>, route: Route, id: RequestId, trace: Trace) -> Self {
        model.request_came();
        Self {
            trace,
            model,
            route,
            id,
            accepted_at: clock::task_micros(),
            counted: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        }
    }

    /// The request goes to its engine now.
    pub fn handed_over(&self) {
        let micros = clock::task_micros().saturating_sub(self.accepted_at);
        self.model.handed_over(Duration::from_micros(micros));
    }

    /// The request failed before there was a stream.
    pub fn refused(&self, failure: &Failure) {
        self.ended(
            &self.without_stream(failure.kind.outcome()),
            Some(failure),
            Timeline::default(),
        );
    }

    /// Another recorder counts this request.
    pub fn pass_on(self) {
        self.ended.store(true, Relaxed);
    }

    /// The request was answered in full without a stream (tokenizing, for one).
    pub fn answered(&self) {
        self.answered_with(Usage::default());
    }

    /// The same, with the tokens that were read for it.
    pub fn answered_with(&self, usage: Usage) {
        let record = Record {
            usage,
            ..self.without_stream(Outcome::Ok)
        };
        self.ended(&record, None, Timeline::default());
    }

    fn without_stream(&self, outcome: Outcome) -> Record {
        Record {
            outcome,
            finish: None,
            usage: Usage::default(),
            time_to_first_token: None,
            duration: Duration::from_micros(clock::task_micros().saturating_sub(self.accepted_at)),
            max_gap_us: 0,
            waits: Waits::default(),
        }
    }

    fn log(&self, record: &Record, failure: Option<&Failure>) {
        let trace = self.trace.context();
        // Text goes in as `str`, which both formats escape: no caller can forge a line.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    request_id = self.id.as_str(),
                    trace_id = trace.map(|trace| tracing::field::display(trace.trace_hex())),
                    span_id = trace.map(|trace| tracing::field::display(trace.span_hex())),
                    model = self.model.name(),
                    route = self.route.as_str(),
                    outcome = record.outcome.as_str(),
                    finish = record.finish.map(|finish| finish.as_str()),
                    prompt_tokens = record.usage.prompt_tokens,
                    cached_tokens = record.usage.cached_tokens,
                    completion_tokens = record.usage.completion_tokens,
                    ttft_ms = record.time_to_first_token.map(millis),
                    duration_ms = millis(record.duration),
                    max_gap_ms = f64::from(record.max_gap_us) / 1e3,
                    code = failure.and_then(|failure| failure.code),
                    param = failure.and_then(|failure| failure.param.as_deref()),
                    error = failure.map(|failure| chain(failure)).as_deref(),
                    "request ended"
                )
            };
        }
        match record.outcome {
            // What a limit or a door is there for is nothing that an operator must look at.
            Outcome::Ok | Outcome::ClientGone | Outcome::Limited => line!(info),
            _ => line!(warn),
        }
    }
}

impl Recorder for RequestRecorder {
    fn gaps(&self, micros: &[u32]) {
        self.model.gaps(micros);
        if self.ended.load(Relaxed) {
            // A stream that was cut from outside: its tokens were counted with its end.
            return;
        }
        let count = u32::try_from(micros.len()).unwrap_or(u32::MAX);
        self.model.tokens_generated(count);
        self.counted.fetch_add(count, Relaxed);
    }

    fn first_token(&self, after: Duration) {
        self.model.first_token(after);
    }

    fn ended(&self, record: &Record, failure: Option<&Failure>, timeline: Timeline) {
        if self.ended.swap(true, Relaxed) {
            return;
        }
        let usage = record.usage;
        let counted = self.counted.load(Relaxed);
        self.model.request_ended(self.route, record.outcome);
        if self.route.generates() {
            self.model.judged(record);
        }
        self.model
            .tokens_read(usage.prompt_tokens, usage.cached_tokens);
        self.model
            .tokens_generated(usage.completion_tokens.saturating_sub(counted));
        self.model.spent(record);
        match record.outcome {
            Outcome::Stalled => self.model.reader_cut(),
            Outcome::Shed => self.model.refused(failure.and_then(|failure| failure.code)),
            _ => {}
        }
        self.log(record, failure);
        self.trace.work(Work {
            route: self.route.as_str(),
            model: self.model.shared_name(),
            accepted_at: self.accepted_at,
            record: record.clone(),
            timeline,
            failure: failure.cloned(),
        });
    }
}

impl Drop for RequestRecorder {
    fn drop(&mut self) {
        if !self.ended.load(Relaxed) {
            let outcome = if std::thread::panicking() {
                Outcome::Internal
            } else {
                Outcome::ClientGone
            };
            self.ended(&self.without_stream(outcome), None, Timeline::default());
        }
    }
}

fn millis(duration: Duration) -> f64 {
    // Whole microseconds, so that a line does not end in noise.
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use serde_json::Value;

    use super::super::config::{Config, Format};
    use super::super::metrics::Metrics;
    use super::super::metrics::tests::{scrape, value};
    use super::*;
    use crate::generation::{Finish, Kind};

    fn record(outcome: Outcome) -> Record {
        Record {
            outcome,
            finish: (outcome == Outcome::Ok).then_some(Finish::Length),
            usage: Usage {
                prompt_tokens: 10,
                cached_tokens: 4,
                completion_tokens: 5,
            },
            time_to_first_token: Some(Duration::from_micros(1500)),
            duration: Duration::from_millis(40),
            max_gap_us: 2500,
            waits: Waits::default(),
        }
    }

    fn recorder(metrics: &Metrics) -> RequestRecorder {
        let id = RequestId::parse("req-1").unwrap();
        RequestRecorder::new(metrics.model("m").clone(), Route::Chat, id, Trace::none())
    }

    fn logged(format: Format, run: impl FnOnce()) -> String {
        let out = Arc::new(Mutex::new(Vec::new()));
        let config = Config {
            format,
            ..Config::default()
        };
        let sink = out.clone();
        let make = move || Sink(sink.clone());
        let (subscriber, _) = super::super::logs::subscriber(&config, false, make);
        tracing::subscriber::with_default(subscriber, run);
        String::from_utf8(out.lock().unwrap().clone()).unwrap()
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_good_request_is_counted_once_with_its_times_and_tokens() {
        let metrics = Metrics::new(["m"]).unwrap();
        let line = logged(Format::Json, || {
            let recorder = recorder(&metrics);
            recorder.first_token(Duration::from_micros(1500));
            recorder.gaps(&[1000, 2000, 2500]);
            recorder.ended(&record(Outcome::Ok), None, Timeline::default());
            recorder.ended(&record(Outcome::Internal), None, Timeline::default());
        });
        let text = scrape(&metrics);
        for (series, expected) in [
            (
                r#"requests_total{model="m",route="chat",outcome="ok"}"#,
                "1",
            ),
            (
                r#"requests_total{model="m",route="chat",outcome="internal"}"#,
                "0",
            ),
            (
                r#"requests_total{model="m",route="chat",outcome="client_gone"}"#,
                "0",
            ),
            (r#"tokens_total{model="m",kind="input"}"#, "10"),
            (r#"tokens_total{model="m",kind="cached"}"#, "4"),
            (r#"tokens_total{model="m",kind="output"}"#, "5"),
            (r#"inter_token_seconds_count{model="m"}"#, "3"),
            (r#"inter_token_seconds_bucket{model="m",le="0.001"}"#, "1"),
            (r#"time_to_first_token_seconds_sum{model="m"}"#, "0.0015"),
            (r#"e2e_seconds_count{model="m"}"#, "1"),
        ] {
            assert_eq!(
                value(&text, &format!("sluicegate_{series}")),
                expected,
                "{series}"
            );
        }
        assert_eq!(line.lines().count(), 1, "{line}");
        let line: Value = serde_json::from_str(&line).unwrap();
        for (key, expected) in [
            ("level", Value::from("INFO")),
            ("message", Value::from("request ended")),
            ("request_id", Value::from("req-1")),
            ("model", Value::from("m")),
            ("route", Value::from("chat")),
            ("outcome", Value::from("ok")),
            ("finish", Value::from("length")),
            ("prompt_tokens", Value::from(10)),
            ("completion_tokens", Value::from(5)),
            ("ttft_ms", Value::from(1.5)),
            ("duration_ms", Value::from(40.0)),
            ("max_gap_ms", Value::from(2.5)),
        ] {
            assert_eq!(line[key], expected, "{key}");
        }
        assert!(line.get("error").is_none());
    }

    #[test]
    fn the_line_names_its_trace() {
        let metrics = Metrics::new(["m"]).unwrap();
        let tracer = super::super::Tracer::off();
        let parent = "00-0bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = tracer.begin(Some(parent), None);
        let span_id = trace.context().unwrap().span_hex().to_string();
        let line = logged(Format::Json, || {
            let id = RequestId::parse("req-1").unwrap();
            let model = metrics.model("m").clone();
            RequestRecorder::new(model, Route::Chat, id, trace.clone()).answered();
        });
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["trace_id"], "0bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(line["span_id"], span_id);
        assert_eq!(span_id.len(), 16);
    }

    #[test]
    fn requests_for_tokens_count_for_the_objective() {
        let metrics = Metrics::new(["m"]).unwrap();
        let judged = |route| {
            let id = RequestId::parse("req-1").unwrap();
            RequestRecorder::new(metrics.model("m").clone(), route, id, Trace::none())
        };
        judged(Route::Chat).answered();
        judged(Route::Rpc).refused(&Failure::new(Kind::Internal, "Broken."));
        judged(Route::Chat).refused(&Failure::new(Kind::Stalled, "Too slow."));
        judged(Route::Tokenize).answered();
        drop(judged(Route::Completions));
        for verdict in ["good", "bad"] {
            let series =
                format!(r#"sluicegate_slo_requests_total{{model="m",verdict="{verdict}"}}"#);
            assert_eq!(value(&scrape(&metrics), &series), "1");
        }
        assert!((metrics.slo.burn().hour - 50.0).abs() < 1e-6);
        let series = r#"sluicegate_slo_burn_rate{window="1h"}"#;
        let burn: f64 = value(&scrape(&metrics), series).parse().unwrap();
        assert!((burn - 50.0).abs() < 1e-6);
    }

    #[test]
    fn a_failure_is_a_warning_with_its_causes() {
        let metrics = Metrics::new(["m"]).unwrap();
        let line = logged(Format::Json, || {
            let inner = io::Error::other("disk on fire");
            recorder(&metrics).refused(&Failure::internal(inner).with_code("boom"));
        });
        let line: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["outcome"], "internal");
        assert_eq!(line["code"], "boom");
        assert_eq!(
            line["error"],
            "The server failed while handling the request: disk on fire"
        );
        let text = scrape(&metrics);
        let count = r#"sluicegate_e2e_seconds_count{model="m"}"#;
        assert_eq!(value(&text, count), "0");
    }

    #[test]
    fn a_stalled_reader_is_counted_as_such() {
        let metrics = Metrics::new(["m"]).unwrap();
        let failure = Failure::new(Kind::Stalled, "Too slow.");
        recorder(&metrics).ended(
            &record(Outcome::Stalled),
            Some(&failure),
            Timeline::default(),
        );
        let series = r#"sluicegate_send_stalls_total{model="m"}"#;
        assert_eq!(value(&scrape(&metrics), series), "1");
    }

    #[test]
    fn a_request_dropped_untold_was_left_by_its_client() {
        let metrics = Metrics::new(["m"]).unwrap();
        drop(recorder(&metrics));
        let series = r#"sluicegate_requests_total{model="m",route="chat",outcome="client_gone"}"#;
        assert_eq!(value(&scrape(&metrics), series), "1");
    }

    #[test]
    fn no_text_of_a_caller_can_forge_a_line() {
        for format in [Format::Json, Format::Text] {
            let metrics = Metrics::new(["m"]).unwrap();
            let text = logged(format, || {
                let message = "No model \"x\nINFO forged\u{1b}[31m\".";
                let failure = Failure::invalid("a\nb", message);
                recorder(&metrics).refused(&failure);
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
        }
    }
}
