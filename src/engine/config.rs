//! `[[models]]` and `[engine]`: which models there are, where their tokens come from, and how a
//! GGUF model is run.

mod script;
mod vectors;

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::generation::Sampling;
use crate::generation::ranges::{ADAPTER_SCALE, OutOfRange};

pub use script::{FailKind, Script};
pub use vectors::{Embeddings, Pooling};

/// Most threads that ggml takes (its `GGML_MAX_N_THREADS`).
const MAX_THREADS: u16 = 512;

/// One entry of `[[models]]`: a name, and where its tokens come from.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Settings")]
pub struct Model {
    /// Its name in requests.
    pub name: ModelName,
    /// Where its tokens come from.
    pub backing: Backing,
}

/// Where a model's tokens come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Backing {
    /// A GGUF file, run in this process.
    Gguf {
        /// The file, as written: relative to the working directory.
        path: PathBuf,
        /// How to run it.
        settings: Box<Settings>,
    },
    /// Exact tokens at exact times; needs no model.
    Scripted(Box<Script>),
}

/// The name of a model or an adapter: 1 to 64 of `a-z A-Z 0-9 . _ -`, with `/` allowed inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct ModelName(String);

/// Why a text is no name.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no name for a model or an adapter; write 1 to 64 letters, digits, '.', '_' or '-', with '/' only inside"
)]
pub struct ModelNameError(String);

impl ModelName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ModelName {
    type Error = ModelNameError;

    fn try_from(text: String) -> Result<Self, ModelNameError> {
        let fit = (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
            && !text.starts_with('/')
            && !text.ends_with('/');
        if fit {
            Ok(Self(text))
        } else {
            Err(ModelNameError(text))
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The engines that need no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EngineName {
    Scripted,
}

/// How a GGUF model is run.
///
/// An entry of `[[models]]` is read into this struct whole, so that no setting is written down
/// twice; [`Model`] then takes out what says which model it is.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own, read from a file by its name"
)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    #[serde(skip_serializing)]
    name: Option<ModelName>,
    #[serde(skip_serializing)]
    path: Option<PathBuf>,
    #[serde(skip_serializing)]
    engine: Option<EngineName>,
    #[serde(skip_serializing)]
    script: Option<Box<Script>>,
    /// Tokens a sequence may hold; absent takes the model's own, at most 4096.
    pub context: Option<NonZeroU32>,
    /// Sequences at once, 1..=256.
    #[serde(deserialize_with = "within::<_, 1, 256>")]
    pub parallel: u32,
    /// Places in the waiting line; 0 refuses whatever cannot run at once.
    #[serde(deserialize_with = "within::<_, 0, 65_536>")]
    pub waiting: u32,
    /// How sequences share the KV cache.
    pub kv_layout: KvLayout,
    /// Cells of a unified KV cache, in all, at least `context`; absent takes `context` for each of
    /// `parallel`, with which no sequence ever waits for cells. Goes with the unified layout only.
    pub kv_cells: Option<NonZeroU32>,
    /// Type of the cached keys.
    pub kv_type_k: KvType,
    /// Type of the cached values. A quantized one needs flash attention.
    pub kv_type_v: KvType,
    /// Rows that one call computes at most (llama.cpp's ubatch), 64..=8192.
    #[serde(deserialize_with = "within::<_, 64, 8_192>")]
    pub batch: u32,
    /// Host memory for prefixes that were computed once; 0 keeps none.
    pub prefix_cache: ByteSize,
    /// Where prefixes are kept across restarts; absent keeps them in memory only.
    pub prefix_cache_dir: Option<PathBuf>,
    /// Most disk space for them, 8 GiB unless said otherwise; goes with `prefix_cache_dir`.
    pub prefix_cache_disk: Option<ByteSize>,
    /// Host memory for the K/V of sequences that were set aside.
    pub park_memory: ByteSize,
    /// How long a sequence whose reader is behind keeps its cells though nobody waits for them.
    #[serde(with = "humantime_serde")]
    pub pause_spill: Duration,
    /// Where tokens come from that are computed on a guess beside the next one.
    pub speculation: Speculation,
    /// A small GGUF of the same vocabulary that guesses where nothing was found; absent goes without.
    pub draft_model: Option<PathBuf>,
    /// The same text for the same seed, whoever else is served and whatever is cached: split layout, K/V
    /// in bf16, one prompt per call, no drafts.
    pub deterministic: bool,
    /// Whether an answer that was asked to be longer than its context goes on when that is full, without
    /// the older half of what can be left out; split layout.
    pub context_shift: bool,
    #[serde(rename = "prefill_chunk", skip_serializing)]
    _prefill_chunk: Option<Gone>,
    /// Threads for decode steps, at most 512; absent lets measured times decide, up to all cores.
    pub threads: Option<NonZeroU16>,
    /// Threads for prefill, at most 512; absent takes `threads`, and measured times without it.
    pub threads_prefill: Option<NonZeroU16>,
    /// Threads that help sampling where many rows of a large vocabulary pay for it, 0..=64; absent
    /// takes one for each core beyond two, at most 4.
    #[serde(
        deserialize_with = "sampler_threads",
        skip_serializing_if = "Option::is_none"
    )]
    pub sampler_threads: Option<u32>,
    /// How eagerly idle threads spin, 0..=100; 0 waits without spinning.
    #[serde(deserialize_with = "within::<_, 0, 100>")]
    pub poll: u32,
    /// Whether to use flash attention.
    pub flash_attention: FlashAttention,
    /// Map the file instead of reading it.
    pub mmap: bool,
    /// Keep the weights from being swapped out.
    pub mlock: bool,
    /// Layers on the GPU; absent puts all there in a build with a GPU feature, and none otherwise.
    pub gpu_layers: Option<u32>,
    /// Which GPU, counted from 0.
    pub main_gpu: u32,
    /// Load the file at once. Otherwise a process of its own tries it first.
    pub trusted: bool,
    /// Where the model runs.
    pub isolation: Isolation,
    /// Whether the model answers requests for embeddings, and ranks documents where it can.
    pub embeddings: Embeddings,
    /// How the vectors of a text's tokens become one.
    pub pooling: Pooling,
    /// Tokens that one text to embed may have; absent takes `context`.
    pub embeddings_context: Option<NonZeroU32>,
    /// Texts computed together, 1..=64, each with room for `embeddings_context` tokens.
    #[serde(deserialize_with = "within::<_, 1, 64>")]
    pub embeddings_parallel: u32,
    /// A Jinja file to use instead of the model's chat template.
    pub chat_template: Option<PathBuf>,
    /// What a request does not say about sampling.
    pub sampling: Sampling,
    /// `LoRA` adapters that requests may choose; more are added while serving.
    pub adapters: Vec<Adapter>,
}

/// One entry of `[[models.adapters]]`: a `LoRA` adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// Its name in requests, behind the model's and a colon.
    pub name: ModelName,
    /// A GGUF file made for this model; a relative path starts in the working directory.
    pub path: PathBuf,
    /// How many times what it was trained to add is added, unless a request says; -100..=100.
    #[serde(default = "once", deserialize_with = "adapter_scale")]
    pub scale: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: None,
            path: None,
            engine: None,
            script: None,
            context: None,
            parallel: 16,
            waiting: 64,
            kv_layout: KvLayout::Auto,
            kv_cells: None,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            batch: 512,
            prefix_cache: ByteSize::mib(512),
            prefix_cache_dir: None,
            prefix_cache_disk: None,
            park_memory: ByteSize::gib(1),
            pause_spill: Duration::from_secs(5),
            speculation: Speculation::default(),
            draft_model: None,
            deterministic: false,
            context_shift: false,
            _prefill_chunk: None,
            threads: None,
            threads_prefill: None,
            sampler_threads: None,
            poll: 0,
            flash_attention: FlashAttention::Auto,
            mmap: true,
            mlock: false,
            gpu_layers: None,
            main_gpu: 0,
            trusted: false,
            isolation: Isolation::None,
            embeddings: Embeddings::Auto,
            pooling: Pooling::Auto,
            embeddings_context: None,
            embeddings_parallel: 4,
            chat_template: None,
            sampling: Sampling::default(),
            adapters: Vec::new(),
        }
    }
}

impl TryFrom<Settings> for Model {
    type Error = ModelError;

    fn try_from(mut settings: Settings) -> Result<Self, ModelError> {
        let name = settings.name.take().ok_or(ModelError::NoName)?;
        let script = settings.script.take();
        let backing = match (settings.path.take(), settings.engine.take()) {
            (Some(_), Some(EngineName::Scripted)) => return Err(ModelError::TwoBackings),
            (None, None) => return Err(ModelError::NoBacking),
            (None, Some(EngineName::Scripted)) if settings == Settings::default() => {
                Backing::Scripted(script.unwrap_or_default())
            }
            (None, Some(EngineName::Scripted)) => return Err(ModelError::SettingsOfScripted),
            (Some(_), None) if script.is_some() => return Err(ModelError::ScriptOfGguf),
            (Some(path), None) => {
                settings.check()?;
                Backing::Gguf {
                    path,
                    settings: Box::new(settings),
                }
            }
        };
        if let Backing::Scripted(script) = &backing {
            script.check()?;
        }
        Ok(Self { name, backing })
    }
}

/// What is wrong with an entry of `[[models]]` although each of its keys is right.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// No name.
    #[error("a model needs a name")]
    NoName,
    /// Nothing to take tokens from.
    #[error("a model needs either `path` (a GGUF file) or `engine = \"scripted\"`")]
    NoBacking,
    /// Two things to take tokens from.
    #[error("`path` and `engine = \"scripted\"` exclude each other")]
    TwoBackings,
    /// The scripted engine has no such settings.
    #[error(
        "a scripted model takes only `name`, `engine` and `script`; the other settings are for GGUF files"
    )]
    SettingsOfScripted,
    /// A GGUF model has no script.
    #[error("`script` goes with `engine = \"scripted\"` only")]
    ScriptOfGguf,
    /// A call must hold what is put into it.
    #[error("batch = {batch} must be at least {key} = {value}: one call computes that many rows")]
    BatchTooSmall {
        /// The batch.
        batch: u32,
        /// Which setting asks for more.
        key: &'static str,
        /// How much it asks for.
        value: u32,
    },
    /// Half of a pair.
    #[error("`prefix_cache_disk` needs `prefix_cache_dir`")]
    DiskAlone,
    /// What is on disk is fetched through memory.
    #[error("`prefix_cache_dir` needs a `prefix_cache` in memory, which is 0")]
    DiskWithoutMemory,
    /// Bits of other types depend on the call.
    #[error(
        "deterministic = true keeps keys and values as bf16; leave kv_type_k and kv_type_v out"
    )]
    DeterministicTypes,
    /// The bits of a pooled cache depend on who else is in it.
    #[error("deterministic = true goes with kv_layout = \"split\" or \"auto\" only")]
    DeterministicPool,
    /// Cells that others use are nobody's to leave out.
    #[error("context_shift = true goes with kv_layout = \"split\" or \"auto\" only")]
    ShiftInPool,
    /// The setting would do nothing.
    #[error("draft_model makes guesses, and {0} allows none")]
    DraftForNothing(&'static str),
    /// llama.cpp refuses such a context.
    #[error("a quantized kv_type_v needs flash attention, which is off")]
    QuantizedWithoutFlash,
    /// The setting would do nothing.
    #[error(
        "gpu_layers needs a build with one of the features cuda, metal, vulkan; this one has none"
    )]
    NoGpu,
    /// Half of a pair.
    #[error("`stall_at` and `stall` go together")]
    HalfStall,
    /// Half of a pair.
    #[error("`fail_kind` needs `fail_at`")]
    FailKindAlone,
    /// Text of nothing never ends.
    #[error("the script's `text` must not be empty")]
    EmptyText,
    /// Cells of a pool that there is not.
    #[error(
        "kv_cells goes with kv_layout = \"unified\" only; a split cache has context x parallel"
    )]
    CellsOfSplit,
    /// A sequence could never run.
    #[error("kv_cells = {cells} must be at least context = {context}")]
    TooFewCells {
        /// The pool.
        cells: u32,
        /// What one sequence may take of it.
        context: u32,
    },
    /// More threads than ggml takes.
    #[error("{key} = {value} is out of range; must be between 1 and 512")]
    TooManyThreads {
        /// Which setting.
        key: &'static str,
        /// What was written.
        value: u16,
    },
    /// Names are told apart.
    #[error("there are two adapters named {0}")]
    TwoAdapters(ModelName),
    /// A part of a script that is larger than anybody needs and than clocks and buffers bear.
    #[error("the script's `{key}` is too large; at most {most}")]
    ScriptBound {
        /// Which setting.
        key: &'static str,
        /// What may be written.
        most: &'static str,
    },
    /// A sampling setting out of range.
    #[error("sampling.{0}")]
    Sampling(#[from] OutOfRange),
}

impl Settings {
    /// The type of cached keys as they are stored. On a CPU, llama.cpp computes attention over halves in
    /// three ways, by the rows and cells of a call, whose bits differ; over bfloat16 in one.
    pub(super) fn stored_keys(&self) -> KvType {
        if self.deterministic {
            KvType::Bf16
        } else {
            self.kv_type_k
        }
    }

    /// The type of cached values as they are stored; see [`Settings::stored_keys`].
    pub(super) fn stored_values(&self) -> KvType {
        if self.deterministic {
            KvType::Bf16
        } else {
            self.kv_type_v
        }
    }

    fn check(&self) -> Result<(), ModelError> {
        for (key, value) in [
            ("parallel", self.parallel),
            ("embeddings_parallel", self.embeddings_parallel),
        ] {
            if self.batch < value {
                return Err(ModelError::BatchTooSmall {
                    batch: self.batch,
                    key,
                    value,
                });
            }
        }
        if self.prefix_cache_disk.is_some() && self.prefix_cache_dir.is_none() {
            return Err(ModelError::DiskAlone);
        }
        if self.prefix_cache_dir.is_some() && self.prefix_cache.as_u64() == 0 {
            return Err(ModelError::DiskWithoutMemory);
        }
        if self.deterministic && self.kv_layout == KvLayout::Unified {
            return Err(ModelError::DeterministicPool);
        }
        if self.context_shift && self.kv_layout == KvLayout::Unified {
            return Err(ModelError::ShiftInPool);
        }
        let stable = |kind| matches!(kind, KvType::F16 | KvType::Bf16);
        if self.deterministic && !(stable(self.kv_type_k) && stable(self.kv_type_v)) {
            return Err(ModelError::DeterministicTypes);
        }
        if self.draft_model.is_some() {
            if self.deterministic {
                return Err(ModelError::DraftForNothing("deterministic = true"));
            }
            if self.speculation == Speculation::Off {
                return Err(ModelError::DraftForNothing("speculation = \"off\""));
            }
        }
        let quantized = matches!(self.kv_type_v, KvType::Q8_0 | KvType::Q4_0);
        if quantized && self.flash_attention == FlashAttention::Off {
            return Err(ModelError::QuantizedWithoutFlash);
        }
        let gpu = cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan"));
        if !gpu && self.gpu_layers.is_some_and(|layers| layers > 0) {
            return Err(ModelError::NoGpu);
        }
        match (self.kv_layout, self.kv_cells, self.context) {
            (KvLayout::Split | KvLayout::Auto, Some(_), _) => return Err(ModelError::CellsOfSplit),
            (KvLayout::Unified, Some(cells), Some(context)) if cells < context => {
                return Err(ModelError::TooFewCells {
                    cells: cells.get(),
                    context: context.get(),
                });
            }
            _ => {}
        }
        for (key, threads) in [
            ("threads", self.threads),
            ("threads_prefill", self.threads_prefill),
        ] {
            if let Some(value) = threads.map(NonZeroU16::get)
                && value > MAX_THREADS
            {
                return Err(ModelError::TooManyThreads { key, value });
            }
        }
        for (at, adapter) in self.adapters.iter().enumerate() {
            if self.adapters[..at].iter().any(|a| a.name == adapter.name) {
                return Err(ModelError::TwoAdapters(adapter.name.clone()));
            }
        }
        Ok(self.sampling.check()?)
    }
}

/// How sequences share the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvLayout {
    /// Split, until most of what is live is shared by several sequences.
    Auto,
    /// Each sequence has `context` cells of its own.
    Split,
    /// All sequences share one pool of `kv_cells` cells.
    Unified,
}

/// The type of cached keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// 32-bit floating point.
    F32,
    /// 16-bit floating point.
    F16,
    /// 16-bit "brain" floating point.
    Bf16,
    /// 8-bit blocks.
    Q8_0,
    /// 4-bit blocks.
    Q4_0,
}

/// Where a GGUF model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// In this process.
    None,
    /// In a process of its own, which can fail or be taken over alone.
    Process,
}

/// Where tokens come from that are computed on a guess.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speculation {
    /// Nothing is guessed.
    Off,
    /// What followed the same words earlier in the prompt or the answer, while that pays. Never in
    /// deterministic mode.
    #[default]
    Lookup,
}

/// Whether to use flash attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlashAttention {
    /// Where the backend supports it.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// `[engine]`: what concerns the whole process, set once when llama.cpp starts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// Placement on machines with several memory nodes.
    pub numa: Numa,
    /// How long one step may take while streams run: prompts are cut so that they fit into what decoding
    /// leaves of it, at least 64 tokens at a time.
    #[serde(with = "humantime_serde")]
    pub max_step: Duration,
    /// How long trying a model in a process of its own may take, or loading it there; not zero.
    #[serde(deserialize_with = "some_time")]
    pub canary_timeout: Duration,
    /// The file of this program, to start such a process from; not a setting. Without it, none is
    /// started.
    #[serde(skip)]
    pub program: Option<PathBuf>,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            numa: Numa::default(),
            max_step: Duration::from_millis(50),
            canary_timeout: Duration::from_mins(5),
            program: None,
        }
    }
}

/// Placement on machines with several memory nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Numa {
    /// Leave threads where the kernel puts them.
    #[default]
    Off,
    /// Spread threads evenly over all nodes.
    Distribute,
    /// Keep threads on the node where the process started.
    Isolate,
}

/// A setting that there was once. Nobody can make one: using it fails with what took its place.
#[derive(Clone, Debug, PartialEq)]
enum Gone {}

impl<'de> Deserialize<'de> for Gone {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(D::Error::custom(
            "`prefill_chunk` is gone: prompts are cut to fit `engine.max_step`",
        ))
    }
}

/// A duration above zero.
fn some_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let time: Duration = humantime_serde::deserialize(deserializer)?;
    if time.is_zero() {
        return Err(D::Error::custom("0s is out of range; must be longer"));
    }
    Ok(time)
}

fn once() -> f32 {
    1.0
}

fn adapter_scale<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    let scale = f32::deserialize(deserializer)?;
    if !ADAPTER_SCALE.contains(&scale) {
        let (least, most) = ADAPTER_SCALE.into_inner();
        return Err(D::Error::custom(format_args!(
            "{scale} is out of range; must be between {least} and {most}"
        )));
    }
    Ok(scale)
}

fn sampler_threads<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    within::<_, 0, 64>(deserializer).map(Some)
}

/// A number between two bounds, both included.
fn within<'de, D, const MIN: u32, const MAX: u32>(deserializer: D) -> Result<u32, D::Error>
where
    D: Deserializer<'de>,
{
    let value = u32::deserialize(deserializer)?;
    if !(MIN..=MAX).contains(&value) {
        return Err(D::Error::custom(format_args!(
            "{value} is out of range; must be between {MIN} and {MAX}"
        )));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Model, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn a_model_has_a_name_and_exactly_one_backing() {
        assert!(matches!(
            read("name = 'org/m-1.5_q8'\npath = 'm.gguf'").unwrap().backing,
            Backing::Gguf { settings, .. } if *settings == Settings::default()
        ));
        assert!(matches!(
            read("name = 'm'\nengine = 'scripted'").unwrap().backing,
            Backing::Scripted(script) if *script == Script::default()
        ));
        assert!(read("path = 'm.gguf'").unwrap_err().contains("name"));
        assert!(read("name = 'm'").unwrap_err().contains("either"));
        assert!(
            read("name = 'm'\npath = 'm'\nengine = 'scripted'")
                .unwrap_err()
                .contains("exclude")
        );
        assert!(
            read("name = 'm'\nupstream = 'http://x'")
                .unwrap_err()
                .contains("unknown field")
        );
    }

    #[test]
    fn names_are_short_and_plain() {
        for bad in ["", "/a", "a/", "a b", "é", "a\nb", &"x".repeat(65)] {
            assert!(ModelName::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn settings_that_do_nothing_are_refused() {
        let scripted = "name = 'm'\nengine = 'scripted'\n";
        assert!(
            read(&format!("{scripted}batch = 64"))
                .unwrap_err()
                .contains("only")
        );
        assert!(read("name = 'm'\npath = 'm'\n[script]\ntokens = 1").is_err());
        assert!(read(&format!("{scripted}[[adapters]]\nname = 'a'\npath = 'a'")).is_err());
        assert!(read(&format!("{scripted}[script]\nstall_at = 3")).is_err());
        for large in [
            "first = '2days'",
            "pace = '25h'",
            "stall = '1y'\nstall_at = 1",
            "tokens = 100000001",
            "token_bytes = 4097",
        ] {
            let text = read(&format!("{scripted}[script]\n{large}")).unwrap_err();
            assert!(text.contains("at most"), "{large}: {text}");
        }
        assert!(read(&format!("{scripted}[script]\nfail_kind = 'upstream'")).is_err());
        assert!(
            read(&format!(
                "{scripted}[script]\nfail_at = 3\nfail_kind = 'upstream'"
            ))
            .is_ok()
        );
    }

    #[test]
    fn a_trial_takes_some_time() {
        let read = |text: &str| toml::from_str::<Process>(text);
        assert!(read("canary_timeout = '0s'").is_err());
        let process = read("canary_timeout = '2s'").unwrap();
        assert_eq!(process.canary_timeout, Duration::from_secs(2));
        assert_eq!(read("").unwrap(), Process::default());
    }

    #[test]
    fn settings_must_fit_each_other() {
        let gguf = "name = 'm'\npath = 'm'\n";
        for bad in [
            "prefill_chunk = 128",
            "batch = 63",
            "prefix_cache_disk = '1GiB'",
            "prefix_cache_dir = 'x'\nprefix_cache = 0",
            "kv_layout = 'unified'\ndeterministic = true",
            "batch = 128\nparallel = 200",
            "kv_type_v = 'q8_0'\nflash_attention = 'off'",
            "parallel = 0",
            "poll = 101",
            "[sampling]\ntemperature = -1",
            "[sampling]\ntop_p = nan",
            "[sampling]\nrepeat_penalty = 0.0",
            "[sampling]\nrepeat_last_n = 5000",
            "[sampling]\nlogit_bias = [[1, 101.0]]",
            "[sampling.mirostat]\ntau = -1\neta = 0.1",
            "[sampling.dry]\nmultiplier = 1\nbase = 0.5",
            "kv_cells = 4096",
            "draft_model = 'small.gguf'\nspeculation = 'off'",
            "draft_model = 'small.gguf'\ndeterministic = true",
            "kv_layout = 'unified'\ncontext = 4096\nkv_cells = 2048",
            "threads = 513",
            "threads_prefill = 513",
            "sampler_threads = 65",
            "[[adapters]]\nname = 'a'",
            "[[adapters]]\nname = 'a:b'\npath = 'a'",
            "[[adapters]]\nname = 'a'\npath = 'a'\nscale = nan",
            "[[adapters]]\nname = 'a'\npath = 'a'\nscale = -101.0",
            "[[adapters]]\nname = 'a'\npath = 'a'\n[[adapters]]\nname = 'a'\npath = 'b'",
        ] {
            assert!(read(&format!("{gguf}{bad}")).is_err(), "{bad}");
        }
        assert!(
            read(&format!(
                "{gguf}kv_type_v = 'q8_0'\n[sampling]\ntemperature = 1"
            ))
            .is_ok()
        );
        assert!(
            read(&format!(
                "{gguf}kv_layout = 'unified'\ncontext = 2048\nkv_cells = 2048"
            ))
            .is_ok()
        );
        let Backing::Gguf { settings, .. } =
            read(&format!("{gguf}[[adapters]]\nname = 'a'\npath = 'b'"))
                .unwrap()
                .backing
        else {
            panic!("not a GGUF");
        };
        assert!((settings.adapters[0].scale - 1.0).abs() < f32::EPSILON);
    }
}
