//! What comes out of answers: rates in windows, gaps, percentiles, medians.

use std::time::{Duration, Instant};

use super::client::Answer;
use crate::numbers::float;

/// A measured value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figure {
    /// What it is.
    pub(super) name: &'static str,
    /// In which unit; none for a share or a factor.
    pub(super) unit: &'static str,
    /// Which way is better.
    pub(super) better: Better,
    /// The value.
    pub(super) value: f64,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    /// More is.
    More,
    /// Less is.
    Less,
}

/// A rate.
pub(super) fn rate(name: &'static str, value: f64) -> Figure {
    Figure {
        name,
        unit: "tokens/s",
        better: Better::More,
        value,
    }
}

/// A share or a factor, of which more is better.
pub(super) fn share(name: &'static str, value: f64) -> Figure {
    Figure {
        name,
        unit: "",
        better: Better::More,
        value,
    }
}

/// A time that is better short.
pub(super) fn millis(name: &'static str, value: Duration) -> Figure {
    Figure {
        name,
        unit: "ms",
        better: Better::Less,
        value: value.as_secs_f64() * 1e3,
    }
}

/// CPU time that a token costs.
pub(super) fn cost(name: &'static str, value: f64) -> Figure {
    Figure {
        name,
        unit: "µs/token",
        better: Better::Less,
        value,
    }
}

/// Tokens and the time in which they came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Flow {
    /// Tokens.
    pub(super) tokens: f64,
    /// Seconds.
    pub(super) seconds: f64,
}

impl Flow {
    /// Adds another spell.
    pub(super) fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.seconds += other.seconds;
    }

    /// Tokens per second.
    pub(super) fn rate(self) -> f64 {
        if self.seconds > 0.0 {
            self.tokens / self.seconds
        } else {
            0.0
        }
    }
}

/// What came while every stream was running: after the last one's first token, up to the first one's
/// last.
pub(super) fn all_running(answers: &[Answer]) -> Flow {
    let begin = answers
        .iter()
        .filter_map(|answer| Some(answer.reads.first()?.0))
        .max();
    let end = answers
        .iter()
        .filter_map(|answer| Some(answer.reads.last()?.0))
        .min();
    let (Some(begin), Some(end)) = (begin, end) else {
        return Flow::default();
    };
    if end <= begin {
        return Flow::default();
    }
    let inside = |at: Instant| begin < at && at <= end;
    let tokens = |answer: &Answer| {
        let events: u64 = answer
            .reads
            .iter()
            .filter(|(at, _)| inside(*at))
            .map(|(_, tokens)| tokens)
            .sum();
        float(events) * per_event(answer)
    };
    Flow {
        tokens: answers.iter().map(tokens).sum(),
        seconds: (end - begin).as_secs_f64(),
    }
}

/// All that came, from the first request to the last token.
pub(super) fn whole(answers: &[Answer]) -> Flow {
    let begin = answers.iter().map(|answer| answer.sent).min();
    let end = answers
        .iter()
        .filter_map(|answer| Some(answer.reads.last()?.0))
        .max();
    let (Some(begin), Some(end)) = (begin, end) else {
        return Flow::default();
    };
    Flow {
        tokens: answers
            .iter()
            .map(|answer| float(answer.events()) * per_event(answer))
            .sum(),
        seconds: (end - begin).as_secs_f64(),
    }
}

/// Tokens behind one event: a token without text of its own (half a character, say) has none.
fn per_event(answer: &Answer) -> f64 {
    match (answer.usage(), answer.events()) {
        (Some(usage), events) if events > 0 && usage.completion > 0 => {
            float(usage.completion) / float(events)
        }
        _ => 1.0,
    }
}

/// The times between tokens that touch the spell from `begin` to `end`. A stream that is still waiting at
/// its end has waited at least until then.
pub(super) fn gaps(answers: &[Answer], begin: Instant, end: Instant) -> Vec<Duration> {
    let mut gaps = Vec::new();
    for answer in answers {
        for pair in answer.reads.windows(2) {
            let [(before, _), (after, tokens)] = pair else {
                continue;
            };
            if *after > begin && *before < end {
                gaps.push(*after - *before);
                // Tokens of one read have no time between them.
                gaps.extend((1..*tokens).map(|_| Duration::ZERO));
            }
        }
        if let Some((last, _)) = answer.reads.last()
            && !answer.ended
            && *last < end
        {
            gaps.push(end - *last);
        }
    }
    gaps
}

/// The share of a text that has stood before, in the prompt or earlier in itself: positions whose next
/// 16 bytes have occurred, of all that have so many.
pub(super) fn copied(prompt: &str, text: &str) -> f64 {
    const RUN: usize = 16;
    let whole = [prompt.as_bytes(), text.as_bytes()].concat();
    let positions = text.len().saturating_sub(RUN - 1);
    let seen = (0..positions)
        .map(|position| prompt.len() + position)
        .filter(|&position| {
            let before = &whole[..position + RUN - 1];
            memchr::memmem::find(before, &whole[position..position + RUN]).is_some()
        })
        .count();
    if positions == 0 {
        return 0.0;
    }
    float(seen as u64) / float(positions as u64)
}

#[cfg(test)]
#[expect(
    clippy::float_cmp,
    reason = "these are whole numbers or come from the same division"
)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// An answer with one token at each of these milliseconds.
    fn answer(start: Instant, times: &[u32], usage: Option<u32>) -> Answer {
        let reads = times.iter().map(|&at| (start + at * MS, 1)).collect();
        let body = usage.map_or(String::new(), |tokens| {
            format!(
                "data: {{\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":{tokens}}}}}\n\n"
            )
        });
        Answer::of(start, reads, &body)
    }

    #[test]
    fn only_what_comes_while_all_run_counts_as_decoding() {
        let start = Instant::now();
        let answers = [
            answer(start, &[10, 20, 30, 40], None),
            answer(start, &[20, 25, 30, 35, 60], None),
        ];
        let flow = all_running(&answers);
        // After 20 up to 40: 30, 40 and 25, 30, 35.
        assert_eq!(flow.tokens, 5.0);
        assert!((flow.rate() - 250.0).abs() < 1e-6);
        assert!((whole(&answers).rate() - 150.0).abs() < 1e-6);
        assert_eq!(all_running(&[]).rate(), 0.0);
    }

    #[test]
    fn tokens_without_text_are_counted_by_the_servers_usage() {
        let start = Instant::now();
        let flow = all_running(&[answer(start, &[10, 20], Some(4))]);
        assert_eq!(flow.tokens, 2.0);
    }

    #[test]
    fn gaps_that_touch_the_spell_count_and_so_does_waiting() {
        let start = Instant::now();
        let mut waiting = answer(start, &[1, 12, 15], None);
        waiting.ended = false;
        let found = gaps(&[waiting], start + 10 * MS, start + 40 * MS);
        assert_eq!(found, [11 * MS, 3 * MS, 25 * MS]);
        let ended = answer(start, &[1, 12, 15], None);
        assert_eq!(gaps(&[ended], start + 13 * MS, start + 40 * MS), [3 * MS]);
        let burst = Answer::of(start, vec![(start, 1), (start + MS, 3)], "");
        assert_eq!(
            gaps(&[burst], start, start + 40 * MS),
            [MS, Duration::ZERO, Duration::ZERO]
        );
    }

    #[test]
    fn copied_text_is_told_from_new_text() {
        let prompt = "the old river ran under the green hill";
        assert_eq!(copied(prompt, "old river ran under the"), 1.0);
        assert_eq!(copied(prompt, "something that nobody has written"), 0.0);
        assert_eq!(copied("", "abcabcabcabcabcabcabcabcabcabcabc"), 15.0 / 18.0);
        assert_eq!(copied(prompt, "short"), 0.0);
    }
}
