//! Where Rust meets llama.cpp: a context, its batch, its thread pool and adapters, over
//! `llama-cpp-sys-2`.
//!
//! `llama-cpp-2`'s safe API carries the backend, the model and the vocabulary. Its context cannot
//! carry an engine: no thread pool, no abort flag, and a borrow of the model that rules out owning
//! both. So the context is ours, and this file, what is below it and `shim.rs` are the only ones in the
//! project with `unsafe` in them. Every id and count is checked here, because llama.cpp aborts the process on most
//! bad ones.
#![expect(
    unsafe_code,
    reason = "the one file that calls C; each block says why it is sound"
)]

mod adapter;
mod cells;

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llama_cpp_2::llama_backend::{LlamaBackend, NumaStrategy};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

pub(super) use self::adapter::Adapter;
use self::adapter::Gate;
use super::adapters::AdapterSet;
use super::pin::Places;
use super::shim;
use super::threads::Limit;

/// What llama.cpp could not do.
#[derive(Debug, thiserror::Error)]
pub(super) enum LlamaError {
    /// The library itself did not start.
    #[error("llama.cpp did not start: {0}")]
    Backend(String),
    /// The context could not be made.
    #[error("llama.cpp could not create a context{}", after_colon(.0))]
    Context(Vec<String>),
    /// The adapter could not be loaded.
    #[error("llama.cpp could not load the adapter{}", after_colon(.0))]
    Adapter(Vec<String>),
    /// The thread pool could not be made.
    #[error("llama.cpp could not start {0} threads")]
    Threads(u32),
    /// The batch found no room in the KV cache; nothing was changed.
    #[error("the KV cache has no room for the batch")]
    NoRoom,
    /// The abort flag was raised while the batch was computed.
    #[error("the computation was aborted")]
    Aborted,
    /// The batch failed; what of it is in the KV cache is unknown.
    #[error("llama_decode failed with {status}{}", after_colon(.log))]
    Decode {
        /// Its return value.
        status: i32,
        /// Its last error lines.
        log: Vec<String>,
    },
    /// A sequence's state could not be saved or restored; restoring leaves the sequence empty.
    #[error("llama.cpp could not {what} the state of a sequence{}", after_colon(.log))]
    State {
        /// What it was told to do.
        what: &'static str,
        /// Its last error lines.
        log: Vec<String>,
    },
    /// llama.cpp threw. What the call had done by then is unknown.
    #[error("llama.cpp threw an exception: {what}{}", after_colon(.log))]
    Exception {
        /// Its words.
        what: String,
        /// The last error lines before it.
        log: Vec<String>,
    },
    /// An earlier call threw; nothing was called.
    #[error("the context is unusable since llama.cpp threw an exception")]
    Broken,
    /// A row or id outside the context's bounds; nothing was called.
    #[error("{0}")]
    Bounds(&'static str),
}

fn after_colon(lines: &[String]) -> String {
    if lines.is_empty() {
        String::new()
    } else {
        format!(": {}", lines.join("; "))
    }
}

/// NUMA placement of ggml's threads, for the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Numa {
    /// Leave it to the kernel.
    #[default]
    Off,
    /// Spread over the nodes.
    Distribute,
    /// Stay on the node the process started on.
    Isolate,
}

/// Starts llama.cpp once for the process. The first caller's `numa` stands.
pub(super) fn backend(numa: Numa) -> Result<&'static LlamaBackend, LlamaError> {
    static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
    BACKEND
        .get_or_init(|| {
            // SAFETY: the callback is a plain function that lives for ever and uses no user data.
            // The logger is global to the library; it is set before anything else is called.
            unsafe { sys::llama_log_set(Some(log_line), std::ptr::null_mut()) };
            // SAFETY: as above; ggml has a logger of its own.
            unsafe { sys::ggml_log_set(Some(log_line), std::ptr::null_mut()) };
            match numa {
                Numa::Off => LlamaBackend::init(),
                Numa::Distribute => LlamaBackend::init_numa(NumaStrategy::DISTRIBUTE),
                Numa::Isolate => LlamaBackend::init_numa(NumaStrategy::ISOLATE),
            }
            .map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(|error| LlamaError::Backend(error.clone()))
}

/// How many of the last error lines of a thread are kept for its next error.
const ERROR_LINES: usize = 4;

thread_local! {
    static ERRORS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// llama.cpp's last error lines on this thread, and forgets them.
pub(super) fn take_errors() -> Vec<String> {
    ERRORS.with_borrow_mut(std::mem::take)
}

/// llama.cpp's log goes to `tracing`; its error lines are also kept for the error that follows.
unsafe extern "C" fn log_line(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp passes a NUL-terminated string that is valid for the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let line = text.trim_end();
    // Its loader prints progress as single dots.
    if line.is_empty() || line == "." {
        return;
    }
    match level {
        sys::GGML_LOG_LEVEL_ERROR => {
            tracing::debug!(target: "llama", "{line}");
            ERRORS.with_borrow_mut(|errors| {
                if errors.len() == ERROR_LINES {
                    errors.remove(0);
                }
                errors.push(line.to_owned());
            });
        }
        sys::GGML_LOG_LEVEL_WARN => tracing::debug!(target: "llama", warning = true, "{line}"),
        _ => tracing::trace!(target: "llama", "{line}"),
    }
}

/// `LLAMA_MAX_SEQ`: ids below it may hold cells of a unified layout, those from `sequences` on without
/// ever decoding. (On a split layout an id beyond `sequences` would name the cells of sequence 0.)
pub(super) const MEMORY_IDS: u32 = 256;

/// How a context is made.
#[derive(Clone, Debug)]
pub(super) struct ContextParams {
    /// Tokens that a sequence may hold.
    pub(super) context: u32,
    /// KV cells in all: those of every sequence on a split layout, the pool on a unified one.
    pub(super) cells: u64,
    /// Sequences at once.
    pub(super) sequences: u32,
    /// One pool of cells for all sequences instead of one each.
    pub(super) unified: bool,
    /// Most rows of one decode call, and of one physical batch.
    pub(super) batch: u32,
    /// Threads for decode steps and for prompts.
    pub(super) threads: Limit,
    pub(super) threads_prefill: Limit,
    /// How eagerly idle pool threads spin, 0 (sleep) to 100.
    pub(super) poll: u32,
    pub(super) flash_attention: sys::llama_flash_attn_type,
    pub(super) type_k: sys::ggml_type,
    pub(super) type_v: sys::ggml_type,
    pub(super) offload_kv: bool,
    /// What a context for vectors gives; one for streams gives logits.
    pub(super) vectors: Option<VectorParams>,
}

/// What a context for vectors gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct VectorParams {
    /// The classes of whole sequences, through the model's head, instead of a vector per row.
    pub(super) ranks: bool,
    /// Most rows of one call while vectors are on: llama.cpp computes the logits of each, too, and
    /// has memory for so many. At least `sequences`.
    pub(super) rows: u32,
}

/// One llama.cpp context with the model that it computes, its thread pool and its abort flag.
///
/// Not `Send`: it is made and used on the engine thread.
pub(super) struct Context {
    raw: NonNull<sys::llama_context>,
    memory: sys::llama_memory_t,
    // Dropped after `raw` (see `Drop`): the context uses all three.
    pool: Option<ThreadPool>,
    threads: u32,
    model: Arc<LlamaModel>,
    abort: Arc<AtomicBool>,
    vocabulary: usize,
    max_rows: u32,
    sequences: u32,
    /// One past the highest id that memory operations may name.
    ids: u32,
    /// A decode threw: nobody knows what it left behind.
    broken: bool,
    seq_pointers: Vec<*mut sys::llama_seq_id>,
    one: Vec<i32>,
    gate: Gate,
    /// What the next call computes with.
    adapters: Option<Arc<AdapterSet>>,
    /// Sets that the graph of the last call may still point to.
    replaced: Vec<Option<Arc<AdapterSet>>>,
    vectors: Option<VectorParams>,
    /// Whether calls compute vectors now.
    gives_vectors: bool,
    /// Rows of the last call that have vectors.
    vector_rows: usize,
}

impl Context {
    /// Makes a context. Raising `abort` makes a running or later decode return early.
    pub(super) fn new(
        model: Arc<LlamaModel>,
        params: &ContextParams,
        abort: Arc<AtomicBool>,
    ) -> Result<Self, LlamaError> {
        // Creating a context writes to the model's hyperparameters: one at a time.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);

        // SAFETY: returns a plain struct by value.
        let mut raw_params = unsafe { sys::llama_context_default_params() };
        raw_params.n_ctx = u32::try_from(params.cells)
            .map_err(|_| LlamaError::Bounds("context times parallel is too large"))?;
        raw_params.n_batch = params.batch;
        raw_params.n_ubatch = params.batch;
        raw_params.n_seq_max = params.sequences;
        raw_params.n_threads = 1;
        raw_params.n_threads_batch = 1;
        raw_params.flash_attn_type = params.flash_attention;
        raw_params.type_k = params.type_k;
        raw_params.type_v = params.type_v;
        raw_params.offload_kqv = params.offload_kv;
        raw_params.kv_unified = params.unified;
        if let Some(vectors) = params.vectors {
            if vectors.rows < params.sequences || vectors.rows > params.batch {
                return Err(LlamaError::Bounds("a call has room for every sequence"));
            }
            raw_params.embeddings = true;
            raw_params.pooling_type = if vectors.ranks {
                sys::LLAMA_POOLING_TYPE_RANK
            } else {
                sys::LLAMA_POOLING_TYPE_NONE
            };
            raw_params.n_outputs_max = vectors.rows;
        }
        raw_params.no_perf = true;
        raw_params.abort_callback = Some(asks_to_abort);
        raw_params.abort_callback_data = Arc::as_ptr(&abort).cast_mut().cast();

        take_errors();
        let gate = Gate::of(&model);
        let turn = gate.pass();
        // SAFETY: a live model, which outlives the context because `Self` holds the `Arc`; the abort
        // flag that the parameters point to does too.
        let raw = unsafe { sys::llama_init_from_model(model_pointer(&model), raw_params) };
        drop(turn);
        let raw = NonNull::new(raw).ok_or_else(|| LlamaError::Context(take_errors()))?;
        // SAFETY: a live context. It takes less than was asked for when its cells are fewer.
        let max_rows = unsafe { sys::llama_n_batch(raw.as_ptr()) }.min(params.batch);
        let mut context = Self {
            // SAFETY: `raw` is a live context.
            memory: unsafe { sys::llama_get_memory(raw.as_ptr()) },
            raw,
            pool: None,
            threads: 1,
            vocabulary: usize::try_from(model.n_vocab()).unwrap_or(0),
            model,
            abort,
            max_rows,
            sequences: params.sequences,
            ids: if params.unified {
                MEMORY_IDS
            } else {
                params.sequences
            },
            broken: false,
            seq_pointers: Vec::with_capacity(max_rows as usize),
            one: vec![1; max_rows as usize],
            gate,
            adapters: None,
            replaced: Vec::new(),
            vectors: params.vectors,
            gives_vectors: params.vectors.is_some(),
            vector_rows: 0,
        };
        if context.memory.is_null() {
            return Err(LlamaError::Context(vec![
                "the model has no KV cache; only generative models can be served".into(),
            ]));
        }
        let most = params.threads.most().max(params.threads_prefill.most());
        if most > 1 {
            context.pool = Some(ThreadPool::new(most, params.poll)?);
        }
        context.set_threads(params.threads.most());
        Ok(context)
    }

    /// The threads that compute the following batches, this one among them; as many as the context was
    /// made for at most. Costs nothing when it is the same number as before.
    pub(super) fn set_threads(&mut self, threads: u32) {
        let most = self.pool.as_ref().map_or(1, |pool| pool.threads);
        let threads = threads.clamp(1, most);
        if threads == self.threads {
            return;
        }
        if let Some(pool) = &self.pool {
            if let Some(places) = &pool.places {
                places.use_threads(threads as usize);
            }
            if threads == 1 {
                // A pool wakes all of its threads for every batch, also those that it does not need.
                // SAFETY: a live context, which computes nothing now.
                unsafe { sys::llama_detach_threadpool(self.raw.as_ptr()) };
            } else {
                // Without a pool, ggml would start and join its threads at every single decode.
                // SAFETY: both are live; the pool is freed after the context (see `Drop`).
                unsafe {
                    sys::llama_attach_threadpool(
                        self.raw.as_ptr(),
                        pool.raw.as_ptr(),
                        std::ptr::null_mut(),
                    );
                }
            }
        }
        // llama.cpp has one count for batches of a single row and one for all others.
        let count = signed(threads);
        // SAFETY: a live context, which computes nothing now.
        unsafe { sys::llama_set_n_threads(self.raw.as_ptr(), count, count) };
        self.threads = threads;
    }

    /// Most rows of one call.
    pub(super) fn max_rows(&self) -> u32 {
        self.max_rows
    }

    /// Whether a call threw. Such a context is fit for nothing but being dropped.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Computes the rows of `batch`. Their logits are readable until the next call.
    pub(super) fn decode(&mut self, batch: &mut Batch) -> Result<(), LlamaError> {
        if self.broken {
            return Err(LlamaError::Broken);
        }
        let rows = batch.tokens.len();
        if rows == 0 || rows > self.max_rows as usize {
            return Err(LlamaError::Bounds("a batch has 1 to n_batch rows"));
        }
        self.vector_rows = 0;
        if let Some(vectors) = self.vectors {
            // llama.cpp takes every row of such a call for an output, and asserts on their number.
            let all = self.gives_vectors;
            let outputs = batch.outputs.iter().filter(|&&wanted| all || wanted != 0);
            if outputs.count() > vectors.rows as usize {
                return Err(LlamaError::Bounds("a call asks for too many vectors"));
            }
        }
        let vocabulary = self.vocabulary;
        let fits = |&token: &i32| usize::try_from(token).is_ok_and(|t| t < vocabulary);
        if !batch.tokens.iter().all(fits) {
            return Err(LlamaError::Bounds("a token id is outside the vocabulary"));
        }
        let sequences = self.sequences;
        if !batch
            .sequences
            .iter()
            .all(|&s| u32::try_from(s).is_ok_and(|s| s < sequences))
        {
            return Err(LlamaError::Bounds("a sequence id is out of range"));
        }
        self.seq_pointers.clear();
        self.seq_pointers
            .extend(batch.sequences.iter_mut().map(std::ptr::from_mut));
        let raw = sys::llama_batch {
            n_tokens: i32::try_from(rows).unwrap_or(0),
            token: batch.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: batch.positions.as_mut_ptr(),
            n_seq_id: self.one.as_mut_ptr(),
            seq_id: self.seq_pointers.as_mut_ptr(),
            logits: batch.outputs.as_mut_ptr(),
        };
        // After a change of adapters the call begins by planning its graph anew.
        let turn = (!self.replaced.is_empty()).then(|| self.gate.pass());
        // SAFETY: all arrays have `rows` entries (`Batch::push` keeps them equal, `one` has
        // `max_rows`), live through the call and are not kept by llama.cpp. Ids were checked above.
        let status = unsafe { shim::decode(self.raw.as_ptr(), &raw) };
        drop(turn);
        if status.is_err() {
            self.broken = true;
            // Nothing is to be called on what it holds either.
            self.ids = 0;
        }
        if matches!(status, Ok(0)) && self.gives_vectors {
            self.vector_rows = rows;
        }
        match status? {
            0 => {
                self.replaced.clear();
                Ok(())
            }
            1 => Err(LlamaError::NoRoom),
            2 => Err(LlamaError::Aborted),
            status => Err(LlamaError::Decode {
                status,
                log: take_errors(),
            }),
        }
    }

    /// The logits of a row of the last batch, one per vocabulary entry; `None` if the row asked for
    /// none. Waits for the computation where it is asynchronous.
    pub(super) fn logits(&mut self, row: usize) -> Option<&[f32]> {
        let row = i32::try_from(row).ok()?;
        // SAFETY: a live context; llama.cpp checks the row and returns null for a bad one.
        let first = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), row) };
        if first.is_null() {
            return None;
        }
        // SAFETY: a row of logits has n_vocab floats and stays valid until the next decode, which
        // needs `&mut self` and so cannot happen while the slice is borrowed.
        Some(unsafe { std::slice::from_raw_parts(first, self.vocabulary) })
    }

    /// Sets what the calls from now on compute with; free of charge where nothing changes. A change
    /// makes the next call plan its graph anew.
    pub(super) fn set_adapters(&mut self, set: Option<&Arc<AdapterSet>>) {
        if self.adapters.as_ref().map(Arc::as_ptr) == set.map(Arc::as_ptr) {
            return;
        }
        let items = set.map_or(&[][..], |set| set.items());
        let mut raw: Vec<_> = items.iter().map(|(a, _)| a.raw.as_ptr()).collect();
        let mut scales: Vec<_> = items.iter().map(|&(_, scale)| scale).collect();
        // SAFETY: a live context; both arrays have as many entries as are said, and are read during
        // the call only. The adapters are of this context's model (`AdapterSet` is made by the shelf
        // of one model) and live on in `self.adapters` until after they are replaced.
        unsafe {
            sys::llama_set_adapters_lora(
                self.raw.as_ptr(),
                raw.as_mut_ptr(),
                raw.len(),
                scales.as_mut_ptr(),
            );
        }
        let replaced = std::mem::replace(&mut self.adapters, set.cloned());
        self.replaced.push(replaced);
    }

    /// Whether the next calls compute vectors, in a context that can. Every row is then an output.
    pub(super) fn give_vectors(&mut self, on: bool) {
        if self.vectors.is_some() && self.gives_vectors != on {
            // SAFETY: a live context.
            unsafe { sys::llama_set_embeddings(self.raw.as_ptr(), on) };
            self.gives_vectors = on;
        }
    }

    /// Numbers of one vector, or classes of the model's head.
    pub(super) fn vector_width(&self) -> usize {
        match self.vectors {
            Some(VectorParams { ranks: true, .. }) => self.model.n_cls_out() as usize,
            _ => usize::try_from(self.model.n_embd_out()).unwrap_or(0),
        }
    }

    /// The vector of a row of the last call; `None` if it has none.
    pub(super) fn vector(&mut self, row: usize) -> Option<&[f32]> {
        let ranks = self.vectors.is_none_or(|vectors| vectors.ranks);
        if ranks || row >= self.vector_rows {
            return None;
        }
        let row = i32::try_from(row).ok()?;
        // SAFETY: a live context, and a row of its last call, all of which were outputs.
        let first = unsafe { sys::llama_get_embeddings_ith(self.raw.as_ptr(), row) };
        self.numbers_at(first)
    }

    /// The classes of a sequence of the last call; `None` if it had no row there.
    pub(super) fn classes(&mut self, sequence: u32) -> Option<&[f32]> {
        let ranks = self.vectors.is_some_and(|vectors| vectors.ranks);
        if !ranks || self.vector_rows == 0 || sequence >= self.sequences {
            return None;
        }
        // SAFETY: a live context; llama.cpp returns null for a sequence that it has nothing of.
        let first = unsafe { sys::llama_get_embeddings_seq(self.raw.as_ptr(), signed(sequence)) };
        self.numbers_at(first)
    }

    fn numbers_at(&mut self, first: *const f32) -> Option<&[f32]> {
        if first.is_null() {
            return None;
        }
        // SAFETY: what llama.cpp hands out holds as many floats as one vector (`n_embd_out`, or
        // `n_cls_out` for ranks) and stays valid until the next decode, which needs `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(first, self.vector_width()) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is freed once, here, before the pool, the flag and the model that it
        // points to: fields are dropped after this body.
        unsafe { sys::llama_free(self.raw.as_ptr()) }
        let _ = (&self.pool, &self.model, &self.abort, &self.adapters);
    }
}

/// llama.cpp's own pointer to a model.
pub(super) fn model_pointer(model: &LlamaModel) -> *mut sys::llama_model {
    // SAFETY: `LlamaModel` is `repr(transparent)` over a non-null `llama_model` pointer (checked by the
    // size assertion below, and the crate's version is pinned).
    unsafe {
        std::ptr::from_ref(model)
            .cast::<*mut sys::llama_model>()
            .read()
    }
}

// `model_pointer` reads the pointer out of `LlamaModel`.
const _: () = assert!(size_of::<LlamaModel>() == size_of::<*mut sys::llama_model>());

/// Asked by ggml between two nodes of the graph.
unsafe extern "C" fn asks_to_abort(flag: *mut c_void) -> bool {
    // SAFETY: the pointer comes from the `Arc<AtomicBool>` that the context holds.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Relaxed)
}

/// A standing team of ggml threads.
struct ThreadPool {
    raw: NonNull<sys::ggml_threadpool>,
    threads: u32,
    places: Option<Places>,
}

impl ThreadPool {
    fn new(threads: u32, poll: u32) -> Result<Self, LlamaError> {
        // SAFETY: returns a plain struct by value.
        let mut team = unsafe { sys::ggml_threadpool_params_default(signed(threads)) };
        team.poll = poll.min(100);
        let mut start = || {
            // SAFETY: ggml copies what it needs of the parameters.
            unsafe { sys::ggml_threadpool_new(&raw mut team) }
        };
        // SAFETY: reads a variable that is set once, when the backend is started.
        let numa = unsafe { sys::ggml_is_numa() };
        let (raw, places) = if numa {
            // ggml places the threads itself.
            (start(), None)
        } else {
            Places::of_new_threads(threads as usize - 1, start)
        };
        Ok(Self {
            raw: NonNull::new(raw).ok_or(LlamaError::Threads(threads))?,
            threads,
            places,
        })
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_threadpool_new`, freed once, after the context that used it.
        unsafe { sys::ggml_threadpool_free(self.raw.as_ptr()) }
    }
}

/// Rows for one decode call: token, position, sequence, and whether logits are wanted.
#[derive(Debug, Default)]
pub(super) struct Batch {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    sequences: Vec<sys::llama_seq_id>,
    outputs: Vec<i8>,
}

impl Batch {
    /// An empty batch with room for `rows`.
    pub(super) fn with_capacity(rows: usize) -> Self {
        Self {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            sequences: Vec::with_capacity(rows),
            outputs: Vec::with_capacity(rows),
        }
    }

    /// Removes all rows; keeps the memory.
    pub(super) fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.outputs.clear();
    }

    /// Adds a row; returns its number.
    pub(super) fn push(
        &mut self,
        token: u32,
        position: u32,
        sequence: u32,
        wants_logits: bool,
    ) -> usize {
        self.tokens.push(signed(token));
        self.positions.push(signed(position));
        self.sequences.push(signed(sequence));
        self.outputs.push(i8::from(wants_logits));
        self.tokens.len() - 1
    }

    /// Rows so far.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// llama.cpp counts in `i32`. What does not fit becomes -1, which it and our checks refuse.
fn signed(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(-1)
}
