//! From a GGUF to a running engine: check, map, size, start.

use std::fs::File;
use std::io::Seek;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

use super::adapters::{self, AdapterError, Adapters};
use super::cache::{Cache, Kind as Kept};
use super::canary::{self, CanaryError};
use super::context::{Maker, context_params, gpu_layers};
use super::crew::{Crew, Threads};
use super::embed::Embedder;
use super::ffi::{self, ContextParams, Numa};
use super::gguf::{self, Summary};
use super::grammar::{self, Grammars};
use super::job::{Counters, Job};
use super::layout::Chooser;
pub use super::load_error::LoadError;
use super::pages::IdleCells;
use super::places::Places;
use super::prefix::{self, DiskLimits, Root, Store};
use super::sampling::pool::{self, Pool};
use super::speculate::{self, DraftError, DraftModel, no_draft};
use super::template::{self, ChatTemplate};
use super::vectors::{self, Vectors};
use super::vocab::Vocabulary;
pub use super::weights::Weights;
use super::weights::{descriptor_path, is_row_neutral, model_id, open};
use super::worker::{self, Setup};
use super::{LlamaEngine, Shared};
use crate::engine::config::{self, Process, Settings, Speculation};
use crate::engine::ring::Bell;
use crate::engine::{Card, Loading};
use crate::generation::chain;
use crate::telemetry::{ModelMetrics, PROCESS};

/// Disk space for prefixes where the configuration names a directory and no bound: nobody's disk is to
/// fill up unasked.
const DEFAULT_DISK: u64 = 8 << 30;

/// Rows of a call for vectors beside running streams: two grid lines, at which prompts are read about as
/// fast as in larger calls.
const VECTOR_ROWS: u32 = 128;

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
    let (model, summary, file) = map(weights, settings, process, loading)?;
    let model_id = model_id(&file, settings).map_err(|source| LoadError::Read {
        path: weights.label(),
        source,
    })?;
    let model = Arc::new(model);
    let vocabulary = Arc::new(Vocabulary::new(model.clone(), &summary.tokenizer));
    let template = template::of_model(
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
    let draft = speculate::load(settings, process, loading, &vocabulary)?;
    let params = context_params(settings, &model);
    let plan = vectors::Plan::new(settings, &summary.vectors, &params, &model);
    let (embedder, vectors) = embedder(plan, summary.vectors.rank_template.clone());
    let running = start(
        name,
        settings,
        process,
        &params,
        &model,
        &model_id,
        &vocabulary,
        draft,
        metrics,
        vectors,
    )?;
    tracing::info!(
        model = name,
        architecture = summary.architecture.as_str(),
        weights = summary.weights.as_str(),
        context = params.context,
        kv_cells = params.cells,
        parallel = params.sequences,
        threads = params.threads.most(),
        "model loaded"
    );
    if settings.deterministic && !is_row_neutral(&summary.weights) {
        tracing::warn!(
            model = name,
            weights = summary.weights.as_str(),
            "deterministic, but for weights of this type other streams can change rounding"
        );
    }
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
        places: running.places,
        counters: running.counters,
        stopping: running.stopping,
        abort: running.abort,
        embedder,
        vector_width: model.n_embd_out(),
        kv_capacity: params.cells,
        #[cfg(test)]
        pooled: params.unified,
        threads: running.threads,
        shifts: settings.context_shift,
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
                deterministic: settings.deterministic && is_row_neutral(&summary.weights),
            },
            sampling: settings.sampling.clone(),
            model_id,
            breakers: Mutex::new(None),
            grammars: {
                let vocabulary = vocabulary.clone();
                Grammars::new(move || grammar::words(&vocabulary))
            },
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
    let configured = template::configured(settings)?;
    let source = configured.as_deref().or(summary.chat_template.as_deref());
    ChatTemplate::new(source, "", "").map_err(LoadError::Template)?;
    if let Some(path) = &settings.draft_model {
        inspect(path, &Settings::default()).map_err(|source| no_draft(path, source))?;
    }
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
) -> Result<(LlamaModel, Summary, File), LoadError> {
    let _reading = tracing::info_span!(target: PROCESS, "read").entered();
    let backend = ffi::backend(match process.numa {
        config::Numa::Off => Numa::Off,
        config::Numa::Distribute => Numa::Distribute,
        config::Numa::Isolate => Numa::Isolate,
    })?;
    let label = weights.label();
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
    if matches!(weights, Weights::File(_)) && !settings.trusted {
        canary::try_out(&file, settings, process, loading).map_err(|source| match source {
            CanaryError::Stopped => LoadError::Stopped,
            source => LoadError::Canary {
                path: label.clone(),
                source,
            },
        })?;
    }

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
    Ok((model, summary, file))
}

/// What the engine thread needs for vectors.
type VectorWork = (vectors::Plan, mpsc::Receiver<vectors::Job>);

/// The two ends of a model's way to its vectors.
fn embedder(
    plan: Result<vectors::Plan, &'static str>,
    rank_template: Option<String>,
) -> (Result<Embedder, &'static str>, Option<VectorWork>) {
    match plan {
        Ok(plan) => {
            let (inbox, work) = mpsc::sync_channel(Embedder::CAPACITY);
            let context = plan.params.context;
            let embedder = Embedder::new(plan.pool, context, rank_template, inbox);
            (Ok(embedder), Some((plan, work)))
        }
        Err(reason) => (Err(reason), None),
    }
}

/// A started engine thread and the ends that its handle keeps.
struct Running {
    inbox: mpsc::SyncSender<Vec<Job>>,
    join: JoinHandle<()>,
    counters: Arc<Counters>,
    places: Places,
    threads: Arc<Threads>,
    stopping: Arc<AtomicBool>,
    abort: Arc<AtomicBool>,
    cancelled: Arc<AtomicBool>,
}

/// Starts the engine thread, which makes the context and owns it; returns when it is ready.
#[expect(
    clippy::too_many_arguments,
    clippy::too_many_lines,
    reason = "one list of what the thread takes with it, gathered in one place"
)]
fn start(
    name: &str,
    settings: &Settings,
    process: &Process,
    params: &ContextParams,
    model: &Arc<LlamaModel>,
    model_id: &[u8],
    vocabulary: &Vocabulary,
    draft: Option<Arc<LlamaModel>>,
    metrics: &Arc<ModelMetrics>,
    vectors: Option<VectorWork>,
) -> Result<Running, LoadError> {
    let _starting = tracing::info_span!(target: PROCESS, "start engine").entered();
    let counters = Arc::new(Counters::default());
    let threads = Arc::new(Threads::default());
    let stopping = Arc::new(AtomicBool::new(false));
    let abort = Arc::new(AtomicBool::new(false));
    let cancelled = Arc::new(AtomicBool::new(false));
    let places = settings.parallel.saturating_add(settings.waiting);
    // A job for every place that can be taken at one time.
    let most = Places::most(settings.parallel, settings.waiting);
    let (inbox, work) = mpsc::sync_channel(most as usize);
    let (ready, started) = mpsc::sync_channel(1);
    let mut eog = vec![false; vocabulary.len()];
    for &token in &vocabulary.eog {
        if let Some(flag) = eog.get_mut(token as usize) {
            *flag = true;
        }
    }
    let maker = Maker {
        params: params.clone(),
        model: model.clone(),
        abort: abort.clone(),
        max_step_us: u64::try_from(process.max_step.as_micros()).unwrap_or(u64::MAX),
        on_cpu: gpu_layers(settings) == 0,
        deterministic: settings.deterministic,
    };
    let keeping = Keeping {
        memory: settings.prefix_cache.as_u64(),
        disk: settings.prefix_cache_dir.clone().map(|directory| {
            let bytes = settings.prefix_cache_disk;
            (directory, bytes.map_or(DEFAULT_DISK, |size| size.as_u64()))
        }),
        model: model_id.into(),
    };
    let (kv_layout, deterministic, shifts) = (
        settings.kv_layout,
        settings.deterministic,
        settings.context_shift,
    );
    let (park_memory, pause_spill) = (settings.park_memory.as_u64(), settings.pause_spill);
    let idle_cells = IdleCells::new(heads(model));
    let samplers = (settings.sampler_threads).unwrap_or_else(pool::automatic);
    let pool = Pool::start(name, samplers, vocabulary.len());
    let speculates = settings.speculation == Speculation::Lookup && !deterministic;
    let draft = draft.zip(settings.draft_model.clone());
    let tokens = vocabulary.len();
    let mut crew = Crew::new(params.threads, params.threads_prefill, threads.clone());
    let shared = (counters.clone(), stopping.clone(), cancelled.clone());
    let metrics = metrics.clone();
    let join = std::thread::Builder::new()
        .name(format!("engine-{name}"))
        .spawn(move || {
            let (counters, stopping, cancelled) = shared;
            let made = maker.make(maker.params.unified).and_then(|mut made| {
                crew.calibrate(&mut made.context)?;
                Ok((keeping.open(&made.kind)?, made))
            });
            let (store, mut made) = match made {
                Ok(made) => made,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let vectors = vectors.map(|(plan, work)| {
                let (model, abort) = (maker.model.clone(), maker.abort.clone());
                Vectors::new(plan, model, abort, metrics, work, VECTOR_ROWS)
            });
            let vectors = match vectors.transpose() {
                Ok(vectors) => vectors,
                Err(error) => {
                    let _ = ready.send(Err(error.into()));
                    return;
                }
            };
            let stays_split = if deterministic {
                Some("deterministic")
            } else if shifts {
                Some("context_shift")
            } else if matches!(made.kind, Kept::Checkpoints) {
                Some("the model's state cannot be shared in part")
            } else {
                None
            };
            let draft_model = draft.map(|(model, path)| {
                let params = &maker.params;
                let crew = Crew::new(params.threads, params.threads_prefill, Arc::default());
                let (abort, max_step_us) = (maker.abort.clone(), maker.max_step_us);
                let made = if matches!(made.kind, Kept::Blocks(_)) {
                    DraftModel::new(model, params, crew, abort, tokens, max_step_us)
                        .map_err(DraftError::from)
                } else {
                    Err(DraftError::Whole)
                };
                made.map_err(|source| no_draft(&path, source))
            });
            let draft_model = match draft_model.transpose() {
                Ok(model) => model,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let mut setup = Setup {
                vectors,
                crew,
                inbox: work,
                counters,
                stopping,
                cancelled,
                pool,
                eog: eog.into(),
                cache: Cache::new(store, made.kind),
                layout: Chooser::new(kv_layout, stays_split),
                places,
                park_memory,
                pause_spill,
                idle_cells,
                speculates,
                draft_model,
            };
            let _ = ready.send(Ok(()));
            while let Some(back) = worker::run(setup, made.context, made.limits) {
                setup = back;
                let shown = setup.layout.shown();
                tracing::info!(
                    layout = shown.name,
                    reason = shown.reason,
                    "the KV cache is laid out anew"
                );
                let pooled = setup.layout.is_pooled();
                made = match maker.make(pooled) {
                    Ok(new) => new,
                    Err(error) => {
                        tracing::error!(error = chain(&error), "the engine ends");
                        return;
                    }
                };
                setup.cache.relearn(made.kind);
            }
        })
        .map_err(|error| LoadError::Engine(error.to_string()))?;
    started
        .recv()
        .map_err(|_| LoadError::Engine("its thread ended".into()))??;
    Ok(Running {
        places: Places::new(counters.clone(), settings.parallel, settings.waiting),
        inbox,
        join,
        counters,
        threads,
        stopping,
        abort,
        cancelled,
    })
}

/// Where prefixes are kept.
struct Keeping {
    memory: u64,
    disk: Option<(PathBuf, u64)>,
    model: Box<[u8]>,
}

impl Keeping {
    /// The store, unless nothing is to be kept. States that are kept whole stay in memory.
    fn open(self, kind: &Kept) -> Result<Option<Store>, LoadError> {
        if self.memory == 0 {
            return Ok(None);
        }
        let directory = self
            .disk
            .as_ref()
            .map(|(directory, _)| directory.display().to_string());
        let disk = match (self.disk, kind) {
            (Some((directory, bytes)), Kept::Blocks(format)) => Some(DiskLimits {
                directory,
                bytes,
                // Blocks of another layout are not ours, whoever's weights they are of.
                model: Root::new(&[&*self.model, format.name().as_bytes()]),
                block: format.bytes_per_block(),
            }),
            _ => None,
        };
        let memory = self.memory;
        let engine = std::thread::current();
        let store = Store::new(&prefix::Limits { memory, disk }, move || engine.unpark());
        store.map(Some).map_err(|source| LoadError::Read {
            path: directory.unwrap_or_default(),
            source,
        })
    }
}

/// Attention heads of all layers.
fn heads(model: &LlamaModel) -> u32 {
    model.n_head().saturating_mul(model.n_layer())
}

fn model_params(settings: &Settings, loading: Arc<Loading>) -> LlamaModelParams {
    LlamaModelParams::default()
        .with_use_mmap(settings.mmap)
        .with_use_mlock(settings.mlock)
        .with_n_gpu_layers(gpu_layers(settings))
        .with_main_gpu(i32::try_from(settings.main_gpu).unwrap_or(0))
        .with_progress_callback(move |done| loading.goes_on(done))
}
