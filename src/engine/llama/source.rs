//! One choice as its reader sees it: tokens out of the ring, text into the burst.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::vocab::Vocabulary;
use crate::engine::ring::{End, Ring};
use crate::engine::text::{Flow, TextAssembler};
use crate::generation::{Burst, Cancel, Finish, Queued, Source};

/// Reads one sequence's ring.
pub(super) struct LlamaSource {
    ring: Arc<Ring>,
    vocabulary: Arc<Vocabulary>,
    choice: u32,
    text: TextAssembler,
    /// Log-probabilities of tokens whose text is still held back; they go out with it.
    unscored: Option<Unscored>,
    top: Vec<(u32, f32)>,
    /// Whether the reader was told of cached tokens.
    told_cached: bool,
}

/// Tokens with their log-probabilities, oldest first.
#[derive(Debug, Default)]
struct Unscored {
    entries: Vec<Entry>,
    /// The alternatives of all entries, in their order.
    tops: Vec<(u32, f32)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    token: u32,
    logprob: f32,
    /// How many of `tops` are this entry's.
    tops: usize,
}

impl Unscored {
    fn push(&mut self, token: u32, logprob: f32, top: &[(u32, f32)]) {
        self.tops.extend_from_slice(top);
        self.entries.push(Entry {
            token,
            logprob,
            tops: top.len(),
        });
    }

    /// How many entries come before those that lie wholly within the last `bytes` bytes.
    fn before<'v>(&self, mut bytes: usize, piece: impl Fn(u32) -> &'v [u8]) -> usize {
        let mut count = self.entries.len();
        while bytes > 0
            && let Some(last) = count.checked_sub(1)
            && let Some(left) = bytes.checked_sub(piece(self.entries[last].token).len())
        {
            (count, bytes) = (last, left);
        }
        count
    }

    /// Hands the first `count` entries to `take` and forgets them.
    fn drain(&mut self, count: usize, mut take: impl FnMut(Entry, &[(u32, f32)])) {
        let mut from = 0;
        for entry in self.entries.drain(..count) {
            let to = from + entry.tops;
            take(entry, &self.tops[from..to]);
            from = to;
        }
        self.tops.drain(..from);
    }
}

impl LlamaSource {
    pub(super) fn new(
        ring: Arc<Ring>,
        vocabulary: Arc<Vocabulary>,
        choice: u32,
        stops: &[String],
        logprobs: bool,
    ) -> Self {
        Self {
            ring,
            vocabulary,
            choice,
            text: TextAssembler::new(stops),
            unscored: logprobs.then(Unscored::default),
            top: Vec::new(),
            told_cached: false,
        }
    }

    /// Puts the text that is ready since the buffer was `from` bytes long into an event, with the
    /// log-probabilities that waited for it; those of tokens that are wholly unshown wait on, and at
    /// a stop string are never shown. At the end, log-probabilities go out even without text.
    fn emit(&mut self, burst: &mut Burst, from: usize, is_end: bool) {
        let mark = burst.scored_mark();
        if is_end || burst.buffer().len() > from {
            let vocabulary = &self.vocabulary;
            let unshown = self.text.unshown();
            if let Some(unscored) = &mut self.unscored {
                let count = unscored.before(unshown, |t| vocabulary.piece(t));
                unscored.drain(count, |entry, top| {
                    burst.logprob(entry.token, entry.logprob, top, |t| vocabulary.piece(t));
                });
            }
            burst.text(self.choice, from, mark);
        }
    }

    /// Tells once how much of the prompt was cached; the engine knows it before the first token.
    fn tell_cached(&mut self, burst: &mut Burst) {
        if !std::mem::replace(&mut self.told_cached, true) {
            burst.cached(self.ring.cached());
        }
    }

    fn end(&mut self, burst: &mut Burst, end: End) {
        self.tell_cached(burst);
        match end {
            End::Finish(reason) => {
                let from = burst.buffer().len();
                self.text.finish(burst.buffer());
                self.emit(burst, from, true);
                burst.finish(self.choice, reason);
            }
            End::Failed(failure) => burst.failed(failure),
        }
    }
}

impl Source for LlamaSource {
    fn poll_fill(&mut self, cx: &mut Context<'_>, burst: &mut Burst) -> Poll<()> {
        self.ring.register(cx.waker());
        let mut took = false;
        while burst.room() > 0 {
            let has_ended = self.ring.ended().is_some();
            let Some(slot) = self.ring.pop(&mut self.top) else {
                if has_ended && let Some(end) = self.ring.ended().cloned() {
                    self.end(burst, end);
                    return Poll::Ready(());
                }
                break;
            };
            took = true;
            self.tell_cached(burst);
            let piece = self.vocabulary.piece(slot.token);
            burst.token(self.choice, slot.at, piece.len());
            if let Some(unscored) = &mut self.unscored {
                unscored.push(slot.token, slot.logprob, &self.top);
            }
            let from = burst.buffer().len();
            let flow = self.text.push(piece, burst.buffer());
            self.emit(burst, from, flow == Flow::Stopped);
            if flow == Flow::Stopped {
                // The engine knows nothing of strings: it may be a token or two ahead.
                self.ring.cancel();
                burst.finish(self.choice, Finish::Stop);
                return Poll::Ready(());
            }
        }
        if took {
            self.ring.release();
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn end_here(&mut self, burst: &mut Burst) {
        self.end(burst, End::Finish(Finish::Length));
    }

    fn queued(&self) -> Option<Queued> {
        self.ring.queued()
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        self.ring.clone()
    }
}

impl Drop for LlamaSource {
    /// Nobody will read on: the engine need not either.
    fn drop(&mut self) {
        self.ring.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(token: u32) -> &'static [u8] {
        [&b"ab"[..], b"abS", b"S", b"TO", b"P!", b""][token as usize]
    }

    fn shown(tokens: &[u32], unshown: usize) -> Vec<(u32, Vec<(u32, f32)>)> {
        let mut unscored = Unscored::default();
        for &token in tokens {
            unscored.push(token, -0.5, &[(token, -0.5)]);
        }
        let count = unscored.before(unshown, pieces);
        let mut shown = Vec::new();
        unscored.drain(count, |entry, top| shown.push((entry.token, top.to_vec())));
        assert_eq!(unscored.tops.len(), tokens.len() - count);
        shown
    }

    #[test]
    fn tokens_within_a_stop_string_report_nothing() {
        // "ab", "S", "TO", "P!" with the stop string "STOP" and one byte behind it.
        assert_eq!(shown(&[0, 2, 3, 4], 5), [(0, vec![(0, -0.5)])]);
        // "abS" lies partly before the stop string: its text "ab" is shown, and so is the token.
        assert_eq!(shown(&[1, 3, 4], 5), [(1, vec![(1, -0.5)])]);
        // A token without text does not hide what stands before it.
        assert_eq!(shown(&[0, 5, 2, 3, 5, 4], 5).len(), 2);
    }

    #[test]
    fn nothing_is_withheld_when_all_is_shown() {
        assert_eq!(shown(&[0, 2, 5], 0).len(), 3);
    }
}
