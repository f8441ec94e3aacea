//! `LoRA` adapters in memory, and the gate before llama.cpp's list of them.
#![expect(
    unsafe_code,
    reason = "calls C, as its parent; each block says why it is sound"
)]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::{LlamaError, model_pointer, take_errors};

/// Who may touch a model's list of adapters now, one gate for each model.
///
/// The list is inside of llama.cpp's model and nothing guards it there. An adapter enters it when it
/// is loaded and leaves it when it is freed; a context reads it when it plans a graph, which is when
/// it is made and in the first call after a change of its adapters. All these pass here; other calls
/// do not, so that loading an adapter holds up no stream that keeps its own.
#[derive(Clone)]
pub(super) struct Gate(Arc<Turns>);

#[derive(Default)]
struct Turns {
    /// Held while waiting for the turn: a context that changes its adapters at every step would
    /// otherwise take one turn after the other, and a load would wait for as long as it does.
    next: Mutex<()>,
    turn: Mutex<()>,
}

impl Gate {
    pub(super) fn of(model: &LlamaModel) -> Self {
        static GATES: Mutex<Vec<(usize, Weak<Turns>)>> = Mutex::new(Vec::new());
        let address = model_pointer(model).addr();
        let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
        gates.retain(|(_, gate)| gate.strong_count() > 0);
        let known = gates.iter().find(|(of, _)| *of == address);
        if let Some(gate) = known.and_then(|(_, gate)| gate.upgrade()) {
            return Self(gate);
        }
        let gate = Arc::default();
        gates.push((address, Arc::downgrade(&gate)));
        Self(gate)
    }

    pub(super) fn pass(&self) -> MutexGuard<'_, ()> {
        let _next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A `LoRA` adapter in memory, for one model.
pub(in crate::engine::llama) struct Adapter {
    pub(super) raw: NonNull<sys::llama_adapter_lora>,
    gate: Gate,
    // Dropped after `raw` (see `Drop`): freeing an adapter takes it off its model's list.
    model: Arc<LlamaModel>,
}

// SAFETY: once loaded, an adapter is only read: by the thread of the context that computes with it.
// It is loaded and freed under its model's gate, on whatever thread.
unsafe impl Send for Adapter {}
// SAFETY: as above; `&Adapter` gives nothing but the pointer.
unsafe impl Sync for Adapter {}

impl Adapter {
    /// Reads an adapter that was checked against `model`. Others may decode meanwhile.
    pub(in crate::engine::llama) fn load(
        model: &Arc<LlamaModel>,
        path: &Path,
    ) -> Result<Self, LlamaError> {
        let path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| LlamaError::Bounds("a path has a zero byte in it"))?;
        let gate = Gate::of(model);
        take_errors();
        let turn = gate.pass();
        // SAFETY: a live model and a NUL-terminated path, which is not kept.
        let raw = unsafe { sys::llama_adapter_lora_init(model_pointer(model), path.as_ptr()) };
        drop(turn);
        let raw = NonNull::new(raw).ok_or_else(|| LlamaError::Adapter(take_errors()))?;
        Ok(Self {
            raw,
            gate,
            model: model.clone(),
        })
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let turn = self.gate.pass();
        // SAFETY: freed once, here, while its model lives. No context computes with it: each holds
        // the sets that its graph points to.
        unsafe { sys::llama_adapter_lora_free(self.raw.as_ptr()) }
        drop(turn);
        let _ = &self.model;
    }
}
