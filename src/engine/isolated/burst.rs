//! The body of a burst frame: what one choice has to tell, compactly.
//!
//! ```text
//!  cached  u32          prompt tokens that were not computed
//!  tokens  u8           at most 16
//!  times   u64 each     when each was generated, by the parent's clock
//!  lengths u8 each      bytes of each, 255 for more
//!  parts to the end of the body; a finish or a failure is the last:
//!    1 score   token u32, logprob f32, bytes, tops u8, tops x (token u32, logprob f32, bytes)
//!    2 text    bytes    with the scores since the last text
//!    3 finish  u8       0 stop, 1 length
//!    4 failure bytes    JSON
//!  bytes   u32 length, then so many
//! ```
//!
//! The parent checks a whole body before it believes any of it.

use super::frame::{Body, Malformed, put_bytes};
use super::messages::Told;
use crate::generation::{Burst, Event, Failure, Finish, TokenLogprob};

/// Most tokens of a burst frame: a choice whose reader is slow gathers more in its ring, where the
/// engine feels it, than in the socket.
pub(super) const TOKENS: usize = 16;

/// Longest body: 16 tokens with 20 alternatives each leave 12 KiB for the bytes of each.
pub(super) const MOST: usize = 4 << 20;

const SCORE: u8 = 1;
const TEXT: u8 = 2;
const FINISH: u8 = 3;
const FAILURE: u8 = 4;

/// Appends a body. `shift` is added to every time.
pub(super) fn encode(burst: &Burst, shift: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&burst.cached_tokens().to_le_bytes());
    out.push(u8::try_from(burst.tokens()).unwrap_or(u8::MAX));
    for token in burst.times() {
        out.extend_from_slice(&token.at.saturating_add_signed(shift).to_le_bytes());
    }
    out.extend(burst.times().iter().map(|token| token.bytes));
    for event in burst.events() {
        match event {
            Event::Text { text, logprobs, .. } => {
                for scored in logprobs.iter() {
                    out.push(SCORE);
                    put_token(out, &scored);
                    out.push(u8::try_from(scored.top().len()).unwrap_or(u8::MAX));
                    for top in scored.top().take(u8::MAX.into()) {
                        put_token(out, &top);
                    }
                }
                out.push(TEXT);
                put_bytes(out, text.as_bytes());
            }
            Event::Finish { reason, .. } => {
                out.extend_from_slice(&[FINISH, u8::from(reason == Finish::Length)]);
            }
            Event::Failed(failure) => {
                out.push(FAILURE);
                put_bytes(out, &Told::of(failure).to_json());
            }
            // A stream's own; no source tells it.
            Event::End(_) => {}
        }
    }
}

fn put_token(out: &mut Vec<u8>, scored: &TokenLogprob<'_>) {
    out.extend_from_slice(&scored.token.to_le_bytes());
    out.extend_from_slice(&scored.logprob.to_le_bytes());
    put_bytes(out, scored.bytes);
}

/// A body that was checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checked<'a> {
    /// Prompt tokens that were not computed.
    pub(super) cached: u32,
    times: &'a [u8],
    lengths: &'a [u8],
    parts: Body<'a>,
}

/// A token with its log-probability.
type Score<'a> = (u32, f32, &'a [u8]);

enum Part<'p, 'a> {
    Score(Score<'a>, &'p [Score<'a>]),
    Text(&'a str),
    Finish(Finish),
    Failure(Failure),
}

impl<'a> Checked<'a> {
    /// Checks a body.
    ///
    /// # Errors
    /// It is not one that [`encode`] writes.
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Body(body);
        let cached = body.u32()?;
        let tokens = usize::from(body.u8()?);
        if tokens > TOKENS {
            return Err(Malformed("more tokens than a burst holds"));
        }
        let times = body.take(tokens * 8)?;
        let lengths = body.take(tokens)?;
        if tokens == 0 && body.is_empty() {
            return Err(Malformed("a burst of nothing"));
        }
        parts(body, |_| {})?;
        Ok(Self {
            cached,
            times,
            lengths,
            parts: body,
        })
    }

    /// When each token was generated, and its bytes.
    pub(super) fn times(&self) -> impl ExactSizeIterator<Item = (u64, usize)> + use<'a> {
        let times = self.times.as_chunks().0.iter();
        let times = times.map(|bytes| u64::from_le_bytes(*bytes));
        times.zip(self.lengths.iter().map(|&length| length.into()))
    }

    /// Adds the parts to `burst` as those of a choice; whether they end it.
    pub(super) fn add_to(&self, burst: &mut Burst, choice: u32) -> bool {
        let mut mark = burst.scored_mark();
        let mut ended = false;
        let added = parts(self.parts, |part| match part {
            Part::Score((token, logprob, bytes), tops) => {
                let alternatives: Vec<_> = tops.iter().map(|top| (top.0, top.1)).collect();
                burst.logprob(token, logprob, &alternatives, |id| {
                    let of_id = |&&(other, _, _): &&Score<'a>| other == id;
                    tops.iter()
                        .find(of_id)
                        .map_or(bytes, |&(_, _, bytes)| bytes)
                });
            }
            Part::Text(text) => {
                let from = burst.buffer().len();
                burst.buffer().push_str(text);
                burst.text(choice, from, mark);
                mark = burst.scored_mark();
            }
            Part::Finish(reason) => {
                burst.finish(choice, reason);
                ended = true;
            }
            Part::Failure(failure) => {
                burst.failed(failure);
                ended = true;
            }
        });
        debug_assert!(added.is_ok(), "it was checked");
        ended
    }
}

/// Walks over the parts of a body.
fn parts<'a>(mut body: Body<'a>, mut each: impl FnMut(Part<'_, 'a>)) -> Result<(), Malformed> {
    let mut tops = Vec::new();
    let mut unused = 0_usize;
    while !body.is_empty() {
        match body.u8()? {
            SCORE => {
                let token = score(&mut body)?;
                tops.clear();
                for _ in 0..body.u8()? {
                    tops.push(score(&mut body)?);
                }
                unused += 1;
                each(Part::Score(token, &tops));
            }
            TEXT => {
                let text = std::str::from_utf8(body.bytes()?);
                let text = text.map_err(|_| Malformed("text that is not UTF-8"))?;
                if text.is_empty() && unused == 0 {
                    return Err(Malformed("a text of nothing"));
                }
                unused = 0;
                each(Part::Text(text));
            }
            _ if unused > 0 => return Err(Malformed("a score without its text")),
            FINISH => {
                let reason = match body.u8()? {
                    0 => Finish::Stop,
                    1 => Finish::Length,
                    _ => return Err(Malformed("an unknown finish")),
                };
                each(Part::Finish(reason));
                return last(body);
            }
            FAILURE => {
                let told = Told::from_json(body.bytes()?)?;
                each(Part::Failure(told.into_failure()));
                return last(body);
            }
            _ => return Err(Malformed("an unknown part of a burst")),
        }
    }
    if unused > 0 {
        return Err(Malformed("a score without its text"));
    }
    Ok(())
}

fn last(body: Body<'_>) -> Result<(), Malformed> {
    if body.is_empty() {
        Ok(())
    } else {
        Err(Malformed("something behind the end"))
    }
}

fn score<'a>(body: &mut Body<'a>) -> Result<Score<'a>, Malformed> {
    let (token, logprob) = (body.u32()?, body.f32()?);
    if logprob.is_nan() {
        return Err(Malformed("a log-probability that is no number"));
    }
    Ok((token, logprob, body.bytes()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::fmt::Write as _;

    use super::*;
    use crate::generation::Kind;

    /// All that a burst tells.
    fn shown(burst: &Burst) -> String {
        let mut out = format!("{:?} {}", burst.times(), burst.cached_tokens());
        for event in burst.events() {
            match event {
                Event::Text {
                    choice,
                    text,
                    logprobs,
                } => {
                    write!(out, "\n{choice} {text:?}").unwrap();
                    for scored in logprobs.iter() {
                        write!(
                            out,
                            " {} {:?} {}",
                            scored.token, scored.bytes, scored.logprob
                        )
                        .unwrap();
                        for top in scored.top() {
                            write!(out, " [{} {:?} {}]", top.token, top.bytes, top.logprob)
                                .unwrap();
                        }
                    }
                }
                Event::Failed(failure) => write!(out, "\n{:?} {failure}", failure.kind).unwrap(),
                event => write!(out, "\n{event:?}").unwrap(),
            }
        }
        out
    }

    fn piece(token: u32) -> &'static [u8] {
        [&b"a"[..], b"\xe4", b"", b"xyz"][token as usize % 4]
    }

    #[derive(Clone, Debug)]
    struct Token {
        at: u64,
        text: String,
        score: Option<(u32, Vec<u32>)>,
    }

    fn token() -> impl Strategy<Value = Token> {
        let tops = proptest::collection::vec(0..4_u32, 0..4);
        let score = proptest::option::of((0..4_u32, tops));
        (1..u64::MAX / 2, ".{0,5}", score).prop_map(|(at, text, score)| Token { at, text, score })
    }

    fn burst(tokens: &[Token], cached: u32, end: u8) -> Burst {
        let mut burst = Burst::with_limit(TOKENS);
        burst.cached(cached);
        for token in tokens {
            burst.token(2, token.at, token.text.len() * 60);
            let (from, mark) = (burst.buffer().len(), burst.scored_mark());
            burst.buffer().push_str(&token.text);
            if let Some((id, tops)) = &token.score {
                let tops: Vec<_> = tops.iter().map(|&top| (top, -1.5)).collect();
                burst.logprob(*id, -0.25, &tops, piece);
            }
            burst.text(2, from, mark);
        }
        match end {
            0 => {}
            1 => burst.finish(2, Finish::Stop),
            2 => burst.finish(2, Finish::Length),
            _ => burst.failed(Failure::new(Kind::Overloaded, "Not now.")),
        }
        burst
    }

    fn decoded(body: &[u8]) -> Result<Burst, Malformed> {
        let checked = Checked::read(body)?;
        let mut burst = Burst::with_limit(TOKENS);
        for (at, bytes) in checked.times() {
            burst.token(2, at, bytes);
        }
        burst.cached(checked.cached);
        checked.add_to(&mut burst, 2);
        Ok(burst)
    }

    proptest! {
        #[test]
        fn a_burst_comes_out_as_it_went_in_and_not_if_it_is_cut(
            tokens in proptest::collection::vec(token(), 0..=TOKENS),
            cached in any::<u32>(),
            end in 0..4_u8,
        ) {
            let sent = burst(&tokens, cached, end);
            let mut body = Vec::new();
            encode(&sent, 0, &mut body);
            if tokens.is_empty() && end == 0 {
                prop_assert!(decoded(&body).is_err());
                return Ok(());
            }
            prop_assert_eq!(shown(&decoded(&body).unwrap()), shown(&sent));
            if end > 0 {
                prop_assert!(decoded(&body[..body.len() - 1]).is_err());
                body.push(0);
                prop_assert!(decoded(&body).is_err(), "something behind the end");
            }
        }

        #[test]
        fn whatever_the_body_it_is_refused_or_told(
            tokens in proptest::collection::vec(token(), 0..4),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut body = Vec::new();
            encode(&burst(&tokens, 0, 1), 0, &mut body);
            let at = at.index(body.len());
            body[at] = byte;
            let _ = decoded(&body);
            let _ = decoded(&tail);
            body.truncate(at);
            body.extend(tail);
            let _ = decoded(&body);
        }
    }

    #[test]
    fn times_are_moved_to_the_other_clock() {
        let mut sent = Burst::new();
        sent.token(0, 100, 3);
        for (shift, there) in [(-40, 60), (40, 140), (-200, 0)] {
            let mut body = Vec::new();
            encode(&sent, shift, &mut body);
            let checked = Checked::read(&body).unwrap();
            assert_eq!(checked.times().collect::<Vec<_>>(), [(there, 3)]);
        }
    }

    #[test]
    fn what_no_child_of_ours_writes_is_refused() {
        let head = [0, 0, 0, 0, 0];
        let with = |tail: &[u8]| decoded(&[&head[..], tail].concat()).map(|_| ());
        assert!(with(&[TEXT, 1, 0, 0, 0, 0xff]).is_err(), "no UTF-8");
        assert!(with(&[TEXT, 0, 0, 0, 0]).is_err(), "no text");
        assert!(
            with(&[TEXT, 0xff, 0xff, 0xff, 0xff, b'a']).is_err(),
            "a length of too much"
        );
        assert!(
            with(&[FINISH, 2]).is_err() && with(&[9]).is_err(),
            "unknown"
        );
        assert!(
            with(&[FAILURE, 2, 0, 0, 0, b'{', b'}']).is_err(),
            "half a failure"
        );
        let mut score = vec![SCORE, 1, 0, 0, 0];
        score.extend(f32::NAN.to_le_bytes());
        score.extend([0, 0, 0, 0, 0, TEXT, 1, 0, 0, 0, b'a']);
        assert!(with(&score).is_err(), "no number");
        assert!(decoded(&[0, 0, 0, 0, 17]).is_err(), "too many tokens");
        assert!(
            decoded(&[9, 0, 0, 0, 0]).is_err(),
            "cached and nothing else"
        );
    }
}
