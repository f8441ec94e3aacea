//! Our figures under the names of llama-server and of vLLM, so that boards and endpoint pickers made for
//! them work.
//!
//! Both pages are made from our own page, so they cannot tell anything else. A name that means
//! something that we do not count is left out. Buckets are ours: a quantile does not care.

use super::names::{
    BATCH_ROWS, DRAFT_TOKENS, E2E, INTER_TOKEN, KV_CAPACITY, KV_USED, PARKS, PREFILL, PREFIX_HITS,
    PREFIX_QUERIES, QUEUE, REQUESTS_RUNNING, REQUESTS_WAITING, TIME_TO_FIRST_TOKEN, TOKENS,
};
use super::text::Kind::{Counter, Gauge, Histogram};
use super::text::{Family, Kind, Text};
use super::{OTHER_MODEL, UNKNOWN_MODEL};

/// The page of llama-server: one model's figures there, the sum over all models here.
pub(super) fn llama_server(page: &str) -> String {
    let page = Samples(page);
    let tokens = |kind| page.sum(TOKENS, "", ("kind", kind));
    let all = |name| page.sum(name, "", ("", ""));
    let drafts = |result| page.sum(DRAFT_TOKENS.name, "", ("result", result));
    let mut text = Text::default();
    for (name, kind, help, value) in [
        (
            "llamacpp:prompt_tokens_total",
            Counter,
            "Prompt tokens computed.",
            tokens("input") - tokens("cached"),
        ),
        (
            "llamacpp:prompt_tokens_cached_total",
            Counter,
            "Prompt tokens whose K/V was reused.",
            tokens("cached"),
        ),
        (
            "llamacpp:prompt_seconds_total",
            Counter,
            "Time in which prompts were read, summed up over sequences.",
            page.sum(PREFILL, "_sum", ("", "")),
        ),
        (
            "llamacpp:tokens_predicted_total",
            Counter,
            "Tokens generated.",
            tokens("output"),
        ),
        (
            "llamacpp:tokens_predicted_seconds_total",
            Counter,
            "Time between the tokens generated, summed up over sequences.",
            page.sum(INTER_TOKEN.name, "_sum", ("", "")),
        ),
        (
            "llamacpp:n_decode_total",
            Counter,
            "Calls of llama_decode().",
            page.sum(BATCH_ROWS.name, "_count", ("", "")),
        ),
        (
            "llamacpp:requests_processing",
            Gauge,
            "Requests that run.",
            all(REQUESTS_RUNNING.name),
        ),
        (
            "llamacpp:requests_deferred",
            Gauge,
            "Requests that wait.",
            all(REQUESTS_WAITING.name),
        ),
        (
            "llamacpp:spec_decode_num_draft_tokens_total",
            Counter,
            "Tokens computed on a guess.",
            drafts("accepted") + drafts("rejected"),
        ),
        (
            "llamacpp:spec_decode_num_accepted_tokens_total",
            Counter,
            "Those of them that were right.",
            drafts("accepted"),
        ),
    ] {
        text.single(&Family { name, kind, help }, value);
    }
    text.into_string()
}

/// The page of vLLM.
pub(super) fn vllm(page: &str) -> String {
    let page = Samples(page);
    let mut text = Text::default();
    for (name, kind, help, ours, only) in [
        (
            "vllm:num_requests_running",
            Gauge,
            "Requests in prefill or decode.",
            REQUESTS_RUNNING.name,
            "",
        ),
        (
            "vllm:num_requests_waiting",
            Gauge,
            "Requests that wait.",
            REQUESTS_WAITING.name,
            "",
        ),
        (
            "vllm:num_preemptions_total",
            Counter,
            "Times that a sequence was set aside.",
            PARKS.name,
            "",
        ),
        (
            "vllm:prefix_cache_queries_total",
            Counter,
            "Prompt tokens looked up in the cache of prefixes.",
            PREFIX_QUERIES.name,
            "",
        ),
        (
            "vllm:prefix_cache_hits_total",
            Counter,
            "Prompt tokens found in the cache of prefixes.",
            PREFIX_HITS.name,
            "",
        ),
        (
            "vllm:prompt_tokens_total",
            Counter,
            "Prompt tokens.",
            TOKENS,
            "input",
        ),
        (
            "vllm:generation_tokens_total",
            Counter,
            "Tokens generated.",
            TOKENS,
            "output",
        ),
    ] {
        let samples = page.of(ours, "");
        let samples = samples.filter(|sample| only.is_empty() || sample.has("kind", only));
        vllm_family(&mut text, name, kind, help, samples);
    }
    vllm_cache_use(&mut text, &page);
    for (name, help, ours) in [
        (
            "vllm:time_to_first_token_seconds",
            "From accepting a request to its first token.",
            TIME_TO_FIRST_TOKEN,
        ),
        (
            "vllm:inter_token_latency_seconds",
            "Between two tokens.",
            INTER_TOKEN.name,
        ),
        (
            "vllm:e2e_request_latency_seconds",
            "From accepting a request to its good end.",
            E2E,
        ),
        (
            "vllm:request_queue_time_seconds",
            "In the waiting line.",
            QUEUE,
        ),
        (
            "vllm:request_prefill_time_seconds",
            "From the end of the waiting line until all of the prompt was read.",
            PREFILL,
        ),
    ] {
        let parts = ["_bucket", "_sum", "_count"];
        let samples = parts.into_iter().flat_map(|part| page.of(ours, part));
        vllm_family(&mut text, name, Histogram, help, samples);
    }
    text.into_string()
}

fn vllm_family<'a>(
    text: &mut Text,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    samples: impl Iterator<Item = Sample<'a>>,
) {
    text.family(&Family { name, kind, help });
    for sample in samples {
        let Some(model) = sample.model() else {
            continue;
        };
        let bound = sample.label("le");
        let labels = [("model_name", model), ("engine", "0"), ("le", bound)];
        let count = if bound.is_empty() { 2 } else { 3 };
        text.part(name, sample.part, &labels[..count], sample.value);
    }
}

fn vllm_cache_use(text: &mut Text, page: &Samples<'_>) {
    let family = Family {
        name: "vllm:kv_cache_usage_perc",
        kind: Gauge,
        help: "The share of KV cells in use; 0 to 1.",
    };
    text.family(&family);
    for (used, capacity) in page.of(KV_USED.name, "").zip(page.of(KV_CAPACITY.name, "")) {
        let Some(model) = used.model() else {
            continue;
        };
        let number = |sample: &Sample<'_>| sample.value.parse().unwrap_or(0.0);
        let share = number(&used) / f64::max(number(&capacity), 1.0);
        text.sample(&family, &[("model_name", model), ("engine", "0")], share);
    }
}

/// A page of ours.
struct Samples<'a>(&'a str);

struct Sample<'a> {
    /// `_sum` and its like.
    part: &'static str,
    labels: &'a str,
    value: &'a str,
}

impl<'a> Samples<'a> {
    /// The samples of this name and this part of it, in order.
    fn of(&self, name: &'static str, part: &'static str) -> impl Iterator<Item = Sample<'a>> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?.strip_prefix(part)?;
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            Some(Sample {
                part,
                labels,
                value,
            })
        })
    }

    /// The sum over those with this label, or over all.
    fn sum(&self, name: &'static str, part: &'static str, (label, value): (&str, &str)) -> f64 {
        let samples = self.of(name, part);
        let samples = samples.filter(|sample| label.is_empty() || sample.has(label, value));
        samples
            .map(|sample| sample.value.parse().unwrap_or(0.0))
            .sum()
    }
}

impl<'a> Sample<'a> {
    /// A label's value; empty if there is none. Names of models and label values of ours have no quotes.
    fn label(&self, name: &str) -> &'a str {
        let labels = self.labels.split("\",");
        let value = labels.filter_map(|label| label.split_once("=\""));
        let mut value = value.filter(|(key, _)| *key == name);
        value
            .next()
            .map_or("", |(_, value)| value.trim_end_matches('"'))
    }

    fn has(&self, label: &str, value: &str) -> bool {
        self.label(label) == value
    }

    /// The model, if it is one of the configured ones.
    fn model(&self) -> Option<&'a str> {
        let model = self.label("model");
        (model != UNKNOWN_MODEL && model != OTHER_MODEL && !model.is_empty()).then_some(model)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Metrics;
    use super::super::tests::{check_page, scrape, value};
    use super::*;

    fn page() -> String {
        let metrics = Metrics::new(["m", "n"]).unwrap();
        for model in ["m", "n", "strange"] {
            let model = metrics.model(model);
            model.gaps(&[1_000, 2_000_000]);
            model.tokens_read(10, 4);
            model.tokens_generated(7);
            model.queued(Duration::from_millis(20));
        }
        scrape(&metrics)
    }

    #[test]
    fn llama_servers_names_have_the_sums_over_all_models() {
        let text = llama_server(&page());
        check_page(&text);
        for (name, expected) in [
            ("prompt_tokens_total", "18"),
            ("prompt_tokens_cached_total", "12"),
            ("prompt_seconds_total", "0"),
            ("tokens_predicted_total", "21"),
            ("tokens_predicted_seconds_total", "6.003"),
            ("n_decode_total", "4"),
            ("requests_processing", "1"),
            ("requests_deferred", "2"),
            ("spec_decode_num_draft_tokens_total", "9"),
            ("spec_decode_num_accepted_tokens_total", "7"),
        ] {
            assert_eq!(
                value(&text, &format!("llamacpp:{name}")),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn vllms_names_have_each_configured_model() {
        let text = vllm(&page());
        check_page(&text);
        let m = r#"{model_name="m",engine="0"}"#;
        let share = (5.0 / 6.0).to_string();
        for (name, expected) in [
            ("num_requests_running", "1"),
            ("num_requests_waiting", "2"),
            ("kv_cache_usage_perc", &share),
            ("prefix_cache_queries_total", "15"),
            ("prefix_cache_hits_total", "14"),
            ("num_preemptions_total", "10"),
            ("prompt_tokens_total", "10"),
            ("generation_tokens_total", "7"),
            ("time_to_first_token_seconds_count", "0"),
            ("inter_token_latency_seconds_count", "2"),
            ("inter_token_latency_seconds_sum", "2.001"),
            ("e2e_request_latency_seconds_count", "0"),
            ("request_queue_time_seconds_count", "1"),
            ("request_prefill_time_seconds_count", "0"),
        ] {
            assert_eq!(value(&text, &format!("vllm:{name}{m}")), expected, "{name}");
        }
        let bucket = r#"vllm:inter_token_latency_seconds_bucket{model_name="n",engine="0",le="1"}"#;
        assert_eq!(value(&text, bucket), "1");
        assert!(!text.contains(UNKNOWN_MODEL), "{text}");
    }
}
