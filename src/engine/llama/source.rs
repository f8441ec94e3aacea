//! One choice as its reader sees it: tokens out of the ring, text into the burst.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::vocab::Vocabulary;
use crate::engine::ring::{End, Ring};
use crate::engine::text::{Flow, TextAssembler};
use crate::generation::{Burst, Cancel, Finish, Source};

/// Reads one sequence's ring.
pub(super) struct LlamaSource {
    ring: Arc<Ring>,
    vocabulary: Arc<Vocabulary>,
    choice: u32,
    text: TextAssembler,
    /// Log-probabilities of tokens whose text is still held back; they go out with it.
    unscored: Option<Vec<Unscored>>,
    top: Vec<(u32, f32)>,
}

struct Unscored {
    token: u32,
    logprob: f32,
    top: Box<[(u32, f32)]>,
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
            unscored: logprobs.then(Vec::new),
            top: Vec::new(),
        }
    }

    /// Puts the text that is ready since the buffer was `from` bytes long into an event, with the
    /// log-probabilities that waited for it. At the end, log-probabilities go out even without text.
    fn emit(&mut self, burst: &mut Burst, from: usize, is_end: bool) {
        let mark = burst.scored_mark();
        if is_end || burst.buffer().len() > from {
            let vocabulary = &self.vocabulary;
            for entry in self.unscored.iter_mut().flat_map(|list| list.drain(..)) {
                burst.logprob(entry.token, entry.logprob, &entry.top, |t| {
                    vocabulary.piece(t)
                });
            }
            burst.text(self.choice, from, mark);
        }
    }

    fn end(&mut self, burst: &mut Burst, end: End) {
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
            let ended = self.ring.ended().cloned();
            let Some(slot) = self.ring.pop(&mut self.top) else {
                if let Some(end) = ended {
                    self.end(burst, end);
                    return Poll::Ready(());
                }
                break;
            };
            took = true;
            burst.token(self.choice, slot.at);
            if let Some(unscored) = &mut self.unscored {
                unscored.push(Unscored {
                    token: slot.token,
                    logprob: slot.logprob,
                    top: self.top.as_slice().into(),
                });
            }
            let from = burst.buffer().len();
            let flow = self
                .text
                .push(self.vocabulary.piece(slot.token), burst.buffer());
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
        } else if burst.room() == 0 {
            // Full by other choices' tokens: this one is asked again with the next burst.
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        self.ring.clone()
    }
}
