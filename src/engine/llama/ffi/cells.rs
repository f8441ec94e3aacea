//! What sequences hold: forgetting, sharing, saving and restoring it.
#![expect(
    unsafe_code,
    reason = "calls C, as its parent; each block says why it is sound"
)]

use llama_cpp_sys_2 as sys;

use super::{Context, LlamaError, MEMORY_IDS, signed, take_errors};

impl Context {
    /// Forgets everything of a sequence.
    pub(in crate::engine::llama) fn forget(&mut self, sequence: u32) {
        self.truncate(sequence, 0);
    }

    /// Forgets a sequence's cells from a position on; false if the model cannot, or an argument is out
    /// of range.
    pub(in crate::engine::llama) fn truncate(&mut self, sequence: u32, from: u32) -> bool {
        let (id, from) = (signed(sequence), signed(from));
        if sequence >= self.ids || from < 0 {
            return false;
        }
        // SAFETY: a live memory and an id in range; -1 means to the end.
        unsafe { sys::llama_memory_seq_rm(self.memory, id, from, -1) }
    }

    /// Forgets a sequence's cells below a position; false as for [`Context::truncate`].
    pub(in crate::engine::llama) fn forget_before(&mut self, sequence: u32, to: u32) -> bool {
        let (id, to) = (signed(sequence), signed(to));
        if sequence >= self.ids || to < 0 {
            return false;
        }
        // SAFETY: a live memory and an id in range; an end of 0 or more is a position.
        unsafe { sys::llama_memory_seq_rm(self.memory, id, 0, to) }
    }

    /// Lets a sequence share another's cells at the positions below `to`. It must hold none there. Only
    /// on a unified layout, where ids that never decode may hold cells too: all below [`MEMORY_IDS`].
    pub(in crate::engine::llama) fn copy(
        &mut self,
        from: u32,
        into: u32,
        to: u32,
    ) -> Result<(), LlamaError> {
        let to = signed(to);
        if self.ids != MEMORY_IDS || from >= self.ids || into >= self.ids || to < 0 {
            return Err(LlamaError::Bounds(
                "cells are shared between two ids of a unified layout",
            ));
        }
        // SAFETY: a live memory, ids in range and one stream, so that no partial copy between
        // streams (which aborts) can come of it.
        unsafe {
            sys::llama_memory_seq_cp(self.memory, signed(from), signed(into), 0, to);
        }
        Ok(())
    }

    /// Bytes of a sequence's state; 0 for an id out of range.
    pub(in crate::engine::llama) fn state_size(&self, sequence: u32) -> usize {
        if sequence >= self.ids {
            return 0;
        }
        // SAFETY: a live context and an id in range; nothing is changed.
        unsafe { sys::llama_state_seq_get_size(self.raw.as_ptr(), signed(sequence)) }
    }

    /// Copies a sequence's state into `out`, in place of what was there.
    pub(in crate::engine::llama) fn state_read(
        &mut self,
        sequence: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), LlamaError> {
        out.clear();
        take_errors();
        let size = self.state_size(sequence);
        out.reserve(size);
        let room = out.spare_capacity_mut();
        // SAFETY: a live context; an id out of range has size 0 and is not asked for. llama.cpp
        // writes at most `size` bytes, which the vector has room for, and none after it returns.
        let written = (size > 0).then(|| unsafe {
            sys::llama_state_seq_get_data(
                self.raw.as_ptr(),
                room.as_mut_ptr().cast(),
                size,
                signed(sequence),
            )
        });
        if written != Some(size) {
            return Err(LlamaError::State {
                what: "save",
                log: take_errors(),
            });
        }
        // SAFETY: all `size` bytes were written: it says so, and it fails rather than leave any out.
        unsafe { out.set_len(size) };
        Ok(())
    }

    /// Puts a saved state in place of what a sequence holds. llama.cpp checks little more than sizes:
    /// `bytes` must be of a context with the same model, layout and K/V types.
    pub(in crate::engine::llama) fn state_write(
        &mut self,
        sequence: u32,
        bytes: &[u8],
    ) -> Result<(), LlamaError> {
        if sequence >= self.ids {
            return Err(LlamaError::Bounds("a sequence id is out of range"));
        }
        take_errors();
        // SAFETY: a live context and an id in range; llama.cpp reads within `bytes` only, and keeps
        // none of it. Its exceptions end inside the call, as a result of 0.
        let read = unsafe {
            sys::llama_state_seq_set_data(
                self.raw.as_ptr(),
                bytes.as_ptr(),
                bytes.len(),
                signed(sequence),
            )
        };
        if read == 0 || read != bytes.len() {
            let log = take_errors();
            self.forget(sequence);
            return Err(LlamaError::State {
                what: "restore",
                log,
            });
        }
        Ok(())
    }
}
