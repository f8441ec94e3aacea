//! What each kind of measurement does to a server that is ready.

use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::count::Method;
use crate::numbers::{float, median, percentile};
use crate::process::{self, Reading};

use super::client::{Answer, Ask, Fault, Reader, Streams};
use super::figures::{self, Figure, Flow, all_running, cost, gaps, millis, rate, share, whole};
use super::neighbour;
use super::scenario::{Kind, Unit};
use super::server::{Product, Running};
use super::text::{Texts, chat, user};

/// How long streams run before something comes beside them.
const BEFORE: Duration = Duration::from_millis(500);

/// How long a server may take to get used to a neighbour.
const SETTLE: Duration = Duration::from_secs(2);

/// How long until the buffers before a stalled reader are full.
const FILL: Duration = Duration::from_secs(4);

/// The core that the neighbour keeps busy.
const NEIGHBOURS_CORE: usize = 0;

/// A measurement under way.
pub(super) struct Bench<'a> {
    /// What is measured.
    pub(super) unit: &'a Unit,
    /// The server.
    pub(super) running: &'a Running,
    /// Where prompts come from.
    pub(super) texts: Texts,
    /// How long to measure, at least.
    pub(super) seconds: Duration,
    /// How long to warm up, at least.
    pub(super) warm_up: Duration,
}

/// Some streams that began together and ended.
struct Wave {
    answers: Vec<Answer>,
    /// CPU time of the server, and that of its decode threads.
    cpu: Option<[Duration; 2]>,
}

impl Bench<'_> {
    /// Does what the unit says.
    ///
    /// # Errors
    /// The server does not serve that, or something failed.
    pub(super) async fn measure(&mut self) -> Result<Vec<Figure>, Fault> {
        self.calibrate().await?;
        self.warm().await?;
        match self.unit.row.kind {
            Kind::Decode => self.decode().await,
            Kind::Prefill => self.prefill().await,
            Kind::Newcomers => self.newcomers().await,
            Kind::Warm => self.known_prefix().await,
            Kind::Chat => self.conversations().await,
            Kind::Beside => self.beside().await,
            Kind::Stalled => self.stalled().await,
            Kind::Neighbour => self.with_neighbour().await,
            Kind::Schema => self.schema().await,
            Kind::Copy => self.copy().await,
        }
    }

    /// Finds how many words make a token, from two prompts of different length.
    async fn calibrate(&mut self) -> Result<(), Fault> {
        const FEW: usize = 10;
        const MANY: usize = 60;
        let mut tokens = [0, 0];
        for (tokens, words) in tokens.iter_mut().zip([FEW, MANY]) {
            let messages = json!([user(&self.texts.words(words))]);
            let answers = self.run(&[Ask::chat(chat(&messages, 1))]).await?;
            *tokens = answers[0].usage().map_or(0, |usage| usage.prompt);
        }
        if tokens[1] > tokens[0] {
            self.texts.words_per_token = float((MANY - FEW) as u64) / float(tokens[1] - tokens[0]);
        }
        Ok(())
    }

    async fn warm(&mut self) -> Result<(), Fault> {
        let begin = Instant::now();
        loop {
            let tokens = (self.unit.row.tokens / 4).clamp(1, 64);
            self.wave(self.unit.streams, tokens).await?;
            if begin.elapsed() >= self.warm_up {
                return Ok(());
            }
        }
    }

    async fn run(&self, asks: &[Ask]) -> Result<Vec<Answer>, Fault> {
        Streams::open(self.running.address, asks).ended().await
    }

    /// Different prompts of one user message each, not longer than a warm-up can bear.
    fn asks(&mut self, streams: usize, tokens: u32) -> Vec<Ask> {
        const LONGEST: u32 = 64;
        let prompt = self.unit.row.prompt.min(LONGEST);
        (0..streams)
            .map(|_| Ask::chat(chat(&json!([user(&self.texts.tokens(prompt))]), tokens)))
            .collect()
    }

    /// Streams with short prompts, from their beginning to their end.
    async fn wave(&mut self, streams: usize, tokens: u32) -> Result<Wave, Fault> {
        let asks = self.asks(streams, tokens);
        let before = cpu(self.running);
        let answers = self.run(&asks).await?;
        let cpu = before
            .zip(cpu(self.running))
            .map(|(before, after)| [0, 1].map(|index| after[index].saturating_sub(before[index])));
        Ok(Wave { answers, cpu })
    }

    async fn decode(&mut self) -> Result<Vec<Figure>, Fault> {
        let begin = Instant::now();
        let (mut steady, mut all) = (Flow::default(), Flow::default());
        let mut spent = Some([0.0; 2]);
        while begin.elapsed() < self.seconds {
            let wave = self.wave(self.unit.streams, self.unit.row.tokens).await?;
            steady.add(all_running(&wave.answers));
            all.add(whole(&wave.answers));
            spent = spent
                .zip(wave.cpu)
                .map(|(sum, cpu)| [0, 1].map(|index| sum[index] + cpu[index].as_secs_f64() * 1e6));
        }
        let mut figures = vec![
            rate("decode", steady.rate()),
            rate("whole answers", all.rate()),
        ];
        if let Some([process, team]) = spent {
            figures.push(cost("CPU", process / all.tokens));
            figures.push(cost(
                "CPU beside decode threads",
                (process - team).max(0.0) / all.tokens,
            ));
        }
        Ok(figures)
    }

    async fn prefill(&mut self) -> Result<Vec<Figure>, Fault> {
        let begin = Instant::now();
        let mut rates = Vec::new();
        while begin.elapsed() < self.seconds {
            let text = self.texts.tokens(self.unit.row.prompt);
            let ask = Ask::chat(chat(&json!([user(&text)]), self.unit.row.tokens));
            let answers = self.run(&[ask]).await?;
            let (usage, first) = (answers[0].usage(), answers[0].first_token());
            if let Some((usage, first)) = usage.zip(first) {
                rates.push(float(usage.prompt - usage.cached) / first.as_secs_f64());
            }
        }
        Ok(vec![rate("prefill", middle(&rates)?)])
    }

    async fn newcomers(&mut self) -> Result<Vec<Figure>, Fault> {
        let begin = Instant::now();
        let (mut medians, mut lasts) = (Vec::new(), Vec::new());
        while begin.elapsed() < self.seconds {
            let system = self.system();
            let asks: Vec<Ask> = (0..self.unit.streams)
                .map(|_| self.under(&system))
                .collect();
            let mut times = first_tokens(&self.run(&asks).await?);
            medians.push(percentile(&mut times, 0.5).as_secs_f64());
            lasts.push(percentile(&mut times, 1.0).as_secs_f64());
        }
        Ok(vec![
            millis("first token, median user", seconds(middle(&medians)?)),
            millis("first token, last user", seconds(middle(&lasts)?)),
        ])
    }

    fn system(&mut self) -> Value {
        json!({"role": "system", "content": self.texts.tokens(self.unit.row.prompt)})
    }

    /// A chat of a new user under a system prompt.
    fn under(&mut self, system: &Value) -> Ask {
        let question = user(&self.texts.words(12));
        Ask::chat(chat(&json!([system, question]), self.unit.row.tokens))
    }

    async fn known_prefix(&mut self) -> Result<Vec<Figure>, Fault> {
        let begin = Instant::now();
        let (mut colds, mut warms, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        while begin.elapsed() < self.seconds {
            let system = self.system();
            let mut times = [0.0; 2];
            for time in &mut times {
                let ask = self.under(&system);
                let answers = self.run(&[ask]).await?;
                let first = answers[0].first_token().unwrap_or_default();
                *time = first.as_secs_f64();
            }
            colds.push(times[0]);
            warms.push(times[1]);
            ratios.push(times[0] / times[1]);
        }
        Ok(vec![
            millis("first token, cold", seconds(middle(&colds)?)),
            millis("first token, warm", seconds(middle(&warms)?)),
            share("cold / warm", middle(&ratios)?),
        ])
    }

    async fn conversations(&mut self) -> Result<Vec<Figure>, Fault> {
        let mut talks: Vec<Vec<Value>> = vec![Vec::new(); self.unit.streams];
        let (mut first, mut later) = (Vec::new(), Vec::new());
        let (mut prompt, mut cached) = (0, 0);
        for turn in 0..self.unit.row.turns {
            for talk in &mut talks {
                talk.push(user(&self.texts.tokens(self.unit.row.prompt)));
            }
            let ask = |talk: &Vec<Value>| Ask::chat(chat(&json!(talk), self.unit.row.tokens));
            let asks: Vec<Ask> = talks.iter().map(ask).collect();
            let answers = self.run(&asks).await?;
            for (talk, answer) in talks.iter_mut().zip(&answers) {
                talk.push(json!({"role": "assistant", "content": answer.text()}));
                let usage = answer.usage().unwrap_or_default();
                if turn > 0 {
                    prompt += usage.prompt;
                    cached += usage.cached;
                }
            }
            let times = if turn == 0 { &mut first } else { &mut later };
            times.extend(first_tokens(&answers));
        }
        Ok(vec![
            millis("first token, turn 1", percentile(&mut first, 0.5)),
            millis("first token, turn 2 on", percentile(&mut later, 0.5)),
            share(
                "prompt from cache, turn 2 on",
                float(cached) / float(prompt.max(1)),
            ),
        ])
    }

    async fn beside(&mut self) -> Result<Vec<Figure>, Fault> {
        let mut asks = self.asks(self.unit.streams, self.unit.row.tokens);
        for ask in &mut asks {
            ask.reader = Reader::Again;
        }
        let text = self.texts.tokens(self.unit.row.prompt);
        let short = Streams::open(self.running.address, &asks);
        short.begun().await?;
        sleep(BEFORE).await;
        let long = Streams::open(
            self.running.address,
            &[Ask::chat(chat(&json!([user(&text)]), 4))],
        );
        long.begun().await?;
        let long = long.now()?;
        let (begin, waited) = (long[0].sent, long[0].first_token().unwrap_or_default());
        let end = begin + waited;
        let answers = short.now()?;
        let mut times = gaps(&answers, begin, end);
        let came: u64 = answers
            .iter()
            .flat_map(|answer| &answer.reads)
            .filter(|(at, _)| begin < *at && *at <= end)
            .map(|(_, tokens)| tokens)
            .sum();
        Ok(vec![
            millis("gap, p50", percentile(&mut times, 0.5)),
            millis("gap, p99", percentile(&mut times, 0.99)),
            millis("gap, max", percentile(&mut times, 1.0)),
            millis("first token of the long prompt", waited),
            rate(
                "short streams meanwhile",
                float(came) / waited.as_secs_f64(),
            ),
        ])
    }

    async fn stalled(&mut self) -> Result<Vec<Figure>, Fault> {
        let begin = Instant::now();
        let (streams, tokens) = (self.unit.streams, self.unit.row.tokens);
        let (mut alone, mut besides) = (Flow::default(), Flow::default());
        while begin.elapsed() < self.seconds {
            alone.add(all_running(&self.wave(streams, tokens).await?.answers));
            // As long as their context lets them.
            let longest = self.unit.row.context - self.unit.row.prompt.min(64) - 64;
            let mut asks = self.asks(self.unit.row.stalled, longest);
            for ask in &mut asks {
                ask.reader = Reader::Stalls;
            }
            let stalled = Streams::open(self.running.address, &asks);
            stalled.begun().await?;
            sleep(FILL).await;
            besides.add(all_running(&self.wave(streams, tokens).await?.answers));
        }
        Ok(vec![
            rate("decode, alone", alone.rate()),
            rate("decode, beside stalled readers", besides.rate()),
            share("kept", besides.rate() / alone.rate()),
        ])
    }

    async fn with_neighbour(&mut self) -> Result<Vec<Figure>, Fault> {
        let (streams, tokens) = (self.unit.streams, self.unit.row.tokens);
        let half = self.seconds / 2;
        let (mut quiet, mut busy) = (Flow::default(), Flow::default());
        for _ in 0..2 {
            let begin = Instant::now();
            while begin.elapsed() < half {
                quiet.add(all_running(&self.wave(streams, tokens).await?.answers));
            }
            let mut neighbour = neighbour::start(NEIGHBOURS_CORE)
                .map_err(|error| Fault::Failed(format!("{error:#}")))?;
            let begin = Instant::now();
            while begin.elapsed() < SETTLE {
                self.wave(streams, (tokens / 4).max(1)).await?;
            }
            let begin = Instant::now();
            while begin.elapsed() < half {
                busy.add(all_running(&self.wave(streams, tokens).await?.answers));
            }
            neighbour.kill().await?;
        }
        Ok(vec![
            rate("decode, quiet", quiet.rate()),
            rate("decode, busy", busy.rate()),
            share("kept", busy.rate() / quiet.rate()),
        ])
    }

    async fn schema(&mut self) -> Result<Vec<Figure>, Fault> {
        let begin = Instant::now();
        let mut flow = Flow::default();
        let (mut answers_seen, mut valid) = (0, 0);
        while begin.elapsed() < self.seconds {
            let mut asks = self.asks(self.unit.streams, self.unit.row.tokens);
            for ask in &mut asks {
                ask.body["response_format"] = response_format();
                ask.body["ignore_eos"] = json!(false);
            }
            let answers = self.run(&asks).await?;
            flow.add(whole(&answers));
            answers_seen += answers.len() as u64;
            valid += answers
                .iter()
                .filter(|answer| is_valid(&answer.text()))
                .count() as u64;
        }
        Ok(vec![
            rate("whole answers", flow.rate()),
            share("valid answers", float(valid) / float(answers_seen)),
        ])
    }

    async fn copy(&mut self) -> Result<Vec<Figure>, Fault> {
        const LINE: &str = "1 2 3 4 5 6 7 8 9 10\n";
        let begin = Instant::now();
        // About a token for each byte: few vocabularies join digits and spaces.
        let prompt = LINE.repeat((self.unit.row.prompt as usize / LINE.len()).max(1));
        let (mut flow, mut copied) = (Flow::default(), Vec::new());
        while begin.elapsed() < self.seconds {
            let mut body = chat(&json!([]), self.unit.row.tokens);
            body["prompt"] = json!(prompt);
            body["temperature"] = json!(0);
            let ask = Ask {
                method: Method::Completions,
                body,
                reader: Reader::Once,
            };
            let answers = self.run(&[ask]).await?;
            flow.add(all_running(&answers));
            copied.push(figures::copied(&prompt, &answers[0].text()));
        }
        Ok(vec![
            rate("decode", flow.rate()),
            share("text that stood before", middle(&copied)?),
        ])
    }
}

/// An answer of some hundred bytes that ends by itself.
fn response_format() -> Value {
    let item = json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue"]},
            "name": {"type": "string", "maxLength": 12},
            "known": {"type": "boolean"},
        },
        "required": ["colour", "name", "known"],
        "additionalProperties": false,
    });
    let schema = json!({
        "type": "object",
        "properties": {"items": {"type": "array", "items": item, "minItems": 4, "maxItems": 4}},
        "required": ["items"],
        "additionalProperties": false,
    });
    json!({"type": "json_schema", "json_schema": {"name": "items", "schema": schema}})
}

/// Whether a text is what the schema describes, as far as its shape goes.
fn is_valid(text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(text) else {
        return false;
    };
    let item = |item: &Value| {
        ["red", "green", "blue"].contains(&item["colour"].as_str().unwrap_or_default())
            && item["name"]
                .as_str()
                .is_some_and(|name| name.chars().count() <= 12)
            && item["known"].is_boolean()
    };
    value["items"]
        .as_array()
        .is_some_and(|items| items.len() == 4 && items.iter().all(item))
}

fn first_tokens(answers: &[Answer]) -> Vec<Duration> {
    answers.iter().filter_map(Answer::first_token).collect()
}

fn middle(values: &[f64]) -> Result<f64, Fault> {
    median(values)
        .filter(|value| value.is_finite())
        .ok_or_else(|| Fault::Failed("no answer had a token".to_owned()))
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// CPU time of a server so far: all of it, and its decode threads alone.
fn cpu(running: &Running) -> Option<[Duration; 2]> {
    let read = || {
        let threads = process::threads(running.pid)?;
        let all = Reading::of(&running.pid.to_string())?.cpu;
        Ok([
            all,
            team(running, &threads).context("it has no decode thread")?,
        ])
    };
    let read: anyhow::Result<_> = read();
    read.ok()
}

/// The CPU time of the threads that decode: in Sluicegate those called so, in llama-server the main thread
/// and those that work beside it at every step.
fn team(running: &Running, threads: &[(u32, String, Duration)]) -> Option<Duration> {
    let main = threads.iter().find(|(id, _, _)| *id == running.pid)?.2;
    let team: Vec<Duration> = threads
        .iter()
        .filter(|(_, name, cpu)| match running.product {
            Product::Sluicegate => name.starts_with("engine"),
            Product::Llama => *cpu >= main / 4,
        })
        .map(|(_, _, cpu)| *cpu)
        .collect();
    (!team.is_empty()).then(|| team.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_valid_when_it_has_the_schemas_shape() {
        let item = r#"{"colour":"red","name":"abc","known":true}"#;
        let items = |count| format!(r#"{{"items":[{}]}}"#, vec![item; count].join(","));
        assert!(is_valid(&items(4)));
        assert!(!is_valid(&items(3)));
        assert!(!is_valid(&items(4).replace("red", "pink")));
        assert!(!is_valid(&items(4).replace("true", "1")));
        assert!(!is_valid(r#"{"items":["#));
    }
}
