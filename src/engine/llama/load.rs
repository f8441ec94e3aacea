//! From a GGUF to a running engine: check, map, size, start.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_sys_2 as sys;

use super::adapters::{self, AdapterError, Adapters};
use super::ffi::{self, Context, ContextParams, LlamaError, Numa};
use super::gguf::{self, GgufError, Summary};
use super::template::ChatTemplate;
use super::vocab::Vocabulary;
use super::worker::{self, Counters, Job, Setup};
use super::{LlamaEngine, Shared, default_threads};
use crate::engine::config::{self, FlashAttention, KvLayout, KvType, Process, Settings};
use crate::engine::ring::Bell;
use crate::engine::{Card, Loading};
use crate::telemetry::ModelMetrics;

/// Tokens per sequence when the configuration names none: enough for a chat, and 16 of them of a
/// 0.5B model are 0.8 GB of K/V.
const DEFAULT_CONTEXT: u32 = 4096;

/// Rows per decode call on a unified layout without a GPU. From 64 rows on, llama.cpp's CPU flash
/// attention works in 64x64 tiles, which cannot skip the cells of other sequences.
const UNIFIED_CPU_ROWS: u32 = 63;

/// Where a model's weights are.
#[derive(Clone, Debug)]
pub enum Weights {
    /// A file.
    File(PathBuf),
    /// A whole GGUF in this program's memory.
    Embedded(&'static [u8]),
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be opened or read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file is not a GGUF that can be run.
    #[error("{path} is not a usable GGUF: {source}")]
    Gguf {
        /// Which file.
        path: String,
        /// What is wrong with it.
        source: GgufError,
    },
    /// It is a model of another kind: an encoder, a diffusion model.
    #[error("{path} is no model that continues text")]
    Kind {
        /// Which file.
        path: String,
    },
    /// llama.cpp refused the model.
    #[error("llama.cpp cannot load {path}: {reason}")]
    Llama {
        /// Which file.
        path: String,
        /// Its own words.
        reason: String,
    },
    /// The process is to end.
    #[error("loading was stopped")]
    Stopped,
    /// One of the model's adapters cannot be used.
    #[error("adapter {name}: {source}")]
    Adapter {
        /// Which one.
        name: String,
        /// Why.
        source: Box<AdapterError>,
    },
    /// The model's chat template does not parse.
    #[error("the chat template does not parse: {0}")]
    Template(minijinja::Error),
    /// The engine could not be started.
    #[error("the engine did not start: {0}")]
    Engine(String),
}

impl From<LlamaError> for LoadError {
    fn from(error: LlamaError) -> Self {
        Self::Engine(error.to_string())
    }
}

/// Loads a model and starts its engine thread.
pub(super) fn load(
    name: &str,
    weights: &Weights,
    settings: &Settings,
    process: &Process,
    ring: usize,
    metrics: &Arc<ModelMetrics>,
    loading: &Arc<Loading>,
) -> Result<Arc<LlamaEngine>, LoadError> {
    let (model, summary) = map(weights, settings, process, loading)?;
    let model = Arc::new(model);
    let vocabulary = Arc::new(Vocabulary::new(model.clone(), &summary.tokenizer));
    let template = template(
        name,
        settings,
        summary.chat_template.as_deref(),
        &vocabulary,
    )?;
    let adapters = Adapters::new(model.clone(), summary.base);
    for adapter in &settings.adapters {
        let added = adapters.add(adapter);
        added.map_err(|source| unusable(adapter, source))?;
    }
    let params = context_params(settings, &model);
    let running = start(name, settings, &params, &model, &vocabulary, metrics)?;
    tracing::info!(
        model = name,
        architecture = summary.architecture.as_str(),
        weights = summary.weights.as_str(),
        context = params.context,
        kv_cells = params.cells,
        parallel = params.sequences,
        threads = params.threads,
        "model loaded"
    );
    if params.context > model.n_ctx_train() {
        tracing::warn!(
            model = name,
            context = params.context,
            trained = model.n_ctx_train(),
            "the context is longer than the model was trained for"
        );
    }
    Ok(Arc::new(LlamaEngine {
        bell: Bell::new(running.join.thread().clone(), running.cancelled),
        thread: running.join.thread().clone(),
        inbox: running.inbox,
        join: Mutex::new(Some(running.join)),
        counters: running.counters,
        stopping: running.stopping,
        abort: running.abort,
        kv_capacity: params.cells,
        places: settings.parallel.saturating_add(settings.waiting),
        ring: u32::try_from(ring).unwrap_or(u32::MAX),
        adapters: Arc::new(adapters),
        shared: Arc::new(Shared {
            card: Card {
                name: name.into(),
                created: crate::generation::clock::unix_seconds(),
                context: params.context,
                vocabulary: u32::try_from(vocabulary.len()).unwrap_or(u32::MAX),
                context_trained: Some(model.n_ctx_train()),
                parameters: Some(model.n_params()),
                bytes: Some(model.size()),
                parent: None,
            },
            sampling: settings.sampling.clone(),
            breakers: Mutex::new(None),
            template,
            vocabulary,
        }),
    }))
}

/// What can be said of a file without loading it: whether it is sound, and whether its chat template,
/// or the one that `settings` put in its place, parses.
///
/// # Errors
/// As [`LlamaEngine::load`], for what needs no llama.cpp.
pub(super) fn inspect(path: &Path, settings: &Settings) -> Result<(), LoadError> {
    let unreadable = |source| LoadError::Read {
        path: path.display().to_string(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let summary = gguf::check(&file, length).map_err(|source| LoadError::Gguf {
        path: path.display().to_string(),
        source,
    })?;
    if !summary.generates {
        return Err(LoadError::Kind {
            path: path.display().to_string(),
        });
    }
    let configured = configured_template(settings)?;
    let source = configured.as_deref().or(summary.chat_template.as_deref());
    ChatTemplate::new(source, "", "").map_err(LoadError::Template)?;
    for adapter in &settings.adapters {
        let fits = adapters::check(&adapter.path, &summary.base);
        fits.map_err(|source| unusable(adapter, source))?;
    }
    Ok(())
}

fn unusable(adapter: &config::Adapter, source: AdapterError) -> LoadError {
    LoadError::Adapter {
        name: adapter.name.to_string(),
        source: Box::new(source),
    }
}

/// Checks a GGUF and lets llama.cpp map it.
pub(super) fn map(
    weights: &Weights,
    settings: &Settings,
    process: &Process,
    loading: &Arc<Loading>,
) -> Result<(LlamaModel, Summary), LoadError> {
    let backend = ffi::backend(match process.numa {
        config::Numa::Off => Numa::Off,
        config::Numa::Distribute => Numa::Distribute,
        config::Numa::Isolate => Numa::Isolate,
    })?;
    let label = match weights {
        Weights::File(path) => path.display().to_string(),
        Weights::Embedded(_) => "the built-in model".to_owned(),
    };
    let unreadable = |source| LoadError::Read {
        path: label.clone(),
        source,
    };
    let mut file = open(weights).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let summary = gguf::check(&file, length).map_err(|source| LoadError::Gguf {
        path: label.clone(),
        source,
    })?;
    if !summary.generates {
        return Err(LoadError::Kind { path: label });
    }
    file.rewind().map_err(unreadable)?;

    // By descriptor: what was checked is what is loaded, whatever happens to the path meanwhile.
    let path = descriptor_path(&file);
    ffi::take_errors();
    let model =
        LlamaModel::load_from_file(backend, &path, &model_params(settings, loading.clone()));
    let model = model.map_err(|error| {
        let lines = ffi::take_errors();
        if loading.is_stopped() {
            return LoadError::Stopped;
        }
        LoadError::Llama {
            path: label.clone(),
            reason: if lines.is_empty() {
                error.to_string()
            } else {
                lines.join("; ")
            },
        }
    })?;
    Ok((model, summary))
}

/// A started engine thread and the ends that its handle keeps.
struct Running {
    inbox: mpsc::SyncSender<Vec<Job>>,
    join: JoinHandle<()>,
    counters: Arc<Counters>,
    stopping: Arc<AtomicBool>,
    abort: Arc<AtomicBool>,
    cancelled: Arc<AtomicBool>,
}

/// Starts the engine thread, which makes the context and owns it; returns when it is ready.
fn start(
    name: &str,
    settings: &Settings,
    params: &ContextParams,
    model: &Arc<LlamaModel>,
    vocabulary: &Vocabulary,
    metrics: &Arc<ModelMetrics>,
) -> Result<Running, LoadError> {
    let counters = Arc::new(Counters::default());
    let stopping = Arc::new(AtomicBool::new(false));
    let abort = Arc::new(AtomicBool::new(false));
    let cancelled = Arc::new(AtomicBool::new(false));
    let places = settings.parallel.saturating_add(settings.waiting);
    let (inbox, work) = mpsc::sync_channel(places as usize);
    let (ready, started) = mpsc::sync_channel(1);
    let mut eog = vec![false; vocabulary.len()];
    for &token in &vocabulary.eog {
        if let Some(flag) = eog.get_mut(token as usize) {
            *flag = true;
        }
    }
    let most_decode_rows = if params.unified && gpu_layers(settings) == 0 {
        UNIFIED_CPU_ROWS
    } else {
        u32::MAX
    };
    let prefill_chunk = settings.prefill_chunk;
    let shared = (counters.clone(), stopping.clone(), cancelled.clone());
    let abort_flag = abort.clone();
    let (params, model, metrics) = (params.clone(), model.clone(), metrics.clone());
    let join = std::thread::Builder::new()
        .name(format!("engine-{name}"))
        .spawn(move || {
            let (counters, stopping, cancelled) = shared;
            let context = match Context::new(model, &params, abort_flag) {
                Ok(context) => context,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let batch = context.max_rows();
            let setup = Setup {
                context,
                inbox: work,
                counters,
                metrics,
                stopping,
                cancelled,
                cells: params.cells,
                sequences: params.sequences,
                decode_rows: most_decode_rows.min(batch),
                prefill_chunk,
                batch,
                one_prompt_per_call: params.unified,
                eog: eog.into(),
            };
            let _ = ready.send(Ok(()));
            worker::run(setup);
        })
        .map_err(|error| LoadError::Engine(error.to_string()))?;
    started
        .recv()
        .map_err(|_| LoadError::Engine("its thread ended".into()))??;
    Ok(Running {
        inbox,
        join,
        counters,
        stopping,
        abort,
        cancelled,
    })
}

fn open(weights: &Weights) -> io::Result<File> {
    match weights {
        Weights::File(path) => File::open(path),
        Weights::Embedded(bytes) => anonymous_file(*bytes),
    }
}

/// A file without a name that holds what `from` gives: nothing is written to disk, and nobody can
/// change it once it is sealed.
#[cfg(target_os = "linux")]
pub(super) fn anonymous_file(mut from: impl Read) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let fd = memfd_create("gguf", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    io::copy(&mut from, &mut file)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    file.rewind()?;
    Ok(file)
}

/// Elsewhere: a temporary file whose name is gone before anybody could use it.
#[cfg(not(target_os = "linux"))]
pub(super) fn anonymous_file(mut from: impl Read) -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("{}.gguf", uuid::Uuid::new_v4().simple()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    io::copy(&mut from, &mut file)?;
    file.rewind()?;
    Ok(file)
}

pub(super) fn descriptor_path(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    let directory = if cfg!(target_os = "linux") {
        "/proc/self/fd"
    } else {
        "/dev/fd"
    };
    Path::new(directory).join(file.as_raw_fd().to_string())
}

fn model_params(settings: &Settings, loading: Arc<Loading>) -> LlamaModelParams {
    LlamaModelParams::default()
        .with_use_mmap(settings.mmap)
        .with_use_mlock(settings.mlock)
        .with_n_gpu_layers(gpu_layers(settings))
        .with_main_gpu(i32::try_from(settings.main_gpu).unwrap_or(0))
        .with_progress_callback(move |done| loading.goes_on(done))
}

/// All layers in a build that can use a GPU, none otherwise, unless the configuration says.
fn gpu_layers(settings: &Settings) -> u32 {
    let has_gpu = cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan"));
    settings.gpu_layers.unwrap_or(if has_gpu { 999 } else { 0 })
}

fn configured_template(settings: &Settings) -> Result<Option<String>, LoadError> {
    let Some(path) = &settings.chat_template else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.display().to_string(),
        source,
    })?;
    Ok(Some(text))
}

fn template(
    name: &str,
    settings: &Settings,
    own: Option<&str>,
    vocabulary: &Vocabulary,
) -> Result<ChatTemplate, LoadError> {
    let configured = configured_template(settings)?;
    let source = configured.as_deref().or(own);
    if source.is_none() {
        tracing::warn!(model = name, "the model has no chat template; using ChatML");
    }
    ChatTemplate::new(source, &vocabulary.bos_text(), &vocabulary.eos_text())
        .map_err(LoadError::Template)
}

pub(super) fn context_params(settings: &Settings, model: &LlamaModel) -> ContextParams {
    let threads = settings.threads.map_or_else(default_threads, Into::into);
    let threads_prefill = settings.threads_prefill.map_or(threads, Into::into);
    let pool = settings.kv_cells.map(u32::from);
    let context = settings.context.map_or_else(
        || {
            let usual = model.n_ctx_train().min(DEFAULT_CONTEXT);
            usual.min(pool.unwrap_or(u32::MAX))
        },
        u32::from,
    );
    // In a split cache every sequence has its own; a pool is as large as it is said to be.
    let each = u64::from(context) * u64::from(settings.parallel);
    ContextParams {
        context,
        cells: pool.map_or(each, u64::from),
        sequences: settings.parallel,
        unified: settings.kv_layout == KvLayout::Unified,
        batch: settings.batch,
        threads: threads.get(),
        threads_prefill: threads_prefill.get(),
        poll: settings.poll,
        flash_attention: match settings.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        },
        type_k: kv_type(settings.kv_type_k),
        type_v: kv_type(settings.kv_type_v),
        offload_kv: gpu_layers(settings) > 0,
    }
}

fn kv_type(kind: KvType) -> sys::ggml_type {
    match kind {
        KvType::F32 => sys::GGML_TYPE_F32,
        KvType::F16 => sys::GGML_TYPE_F16,
        KvType::Bf16 => sys::GGML_TYPE_BF16,
        KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
        KvType::Q4_0 => sys::GGML_TYPE_Q4_0,
    }
}
