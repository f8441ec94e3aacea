//! A full context that goes on: the older half of what can be left out is, the rest is computed again.
//!
//! llama.cpp can move cells to other positions instead, by turning their keys. That is not exact, turns
//! the keys of all sequences in one call that nobody else gets past, and is not there for every model
//! and type. Computing the rest again is what any prompt is: in chunks beside the other streams, and
//! about as much work as the tokens took that made it necessary, at the price of prompts.

use super::sequence::Sequence;
use super::worker::{Slot, Worker};

/// Tokens at the beginning that stay when the prompt cannot: attention rests on the first few whatever
/// they are (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023).
const SINKS: u32 = 4;

impl Worker {
    /// Makes room in every sequence whose context is full and whose answer is to go on.
    pub(super) fn shift_full(&mut self) {
        for (id, slot) in (0..).zip(&mut self.slots) {
            let Slot::Busy(sequence) = slot else {
                continue;
            };
            // Who waits for its reader need not hurry.
            if sequence.position < sequence.job.most || !sequence.job.ring.has_room() {
                continue;
            }
            sequence.shift();
            if !self.context.truncate(id, sequence.position) {
                self.context.forget(id);
                sequence.position = 0;
            }
        }
    }
}

impl Sequence {
    /// Tokens at the beginning that are never left out: the prompt, or its first few if it takes more
    /// than half of the context.
    pub(super) fn head(&self) -> u32 {
        if self.prompt_len() <= self.job.most / 2 {
            self.prompt_len()
        } else {
            SINKS.min(self.job.most / 2)
        }
    }

    /// Leaves out the older half of what follows the head; what follows that is no longer computed.
    fn shift(&mut self) {
        let head = self.head();
        self.left_out += (self.position - head).div_ceil(2);
        self.position = head;
        // The cells no longer hold what the prompt's blocks are named after, and its first token is out.
        self.job.keys.clear();
        self.job.first_token_due_us = None;
    }
}
