//! `[[models]]` and `[engine]`: which models there are, where their tokens come from, and how a
//! GGUF model is run.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::generation::ranges::{ADAPTER_SCALE, OutOfRange};
use crate::generation::{Kind, Sampling};

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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
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
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    name: Option<ModelName>,
    path: Option<PathBuf>,
    engine: Option<EngineName>,
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
    /// Rows that one call computes at most (llama.cpp's ubatch), 1..=8192.
    #[serde(deserialize_with = "within::<_, 1, 8_192>")]
    pub batch: u32,
    /// Prompt rows between two decode steps: a multiple of 64, at most `batch`.
    #[serde(deserialize_with = "within::<_, 64, 8_192>")]
    pub prefill_chunk: u32,
    /// Threads for decode steps, at most 512; absent takes one less than the cores, at least one.
    pub threads: Option<NonZeroU16>,
    /// Threads for prefill, at most 512; absent takes `threads`.
    pub threads_prefill: Option<NonZeroU16>,
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
    /// A Jinja file to use instead of the model's chat template.
    pub chat_template: Option<PathBuf>,
    /// What a request does not say about sampling.
    pub sampling: Sampling,
    /// `LoRA` adapters that requests may choose; more are added while serving.
    pub adapters: Vec<Adapter>,
}

/// One entry of `[[models.adapters]]`: a `LoRA` adapter.
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
            kv_layout: KvLayout::Split,
            kv_cells: None,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            batch: 512,
            prefill_chunk: 128,
            threads: None,
            threads_prefill: None,
            poll: 0,
            flash_attention: FlashAttention::Auto,
            mmap: true,
            mlock: false,
            gpu_layers: None,
            main_gpu: 0,
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
    /// Rows that never come together.
    #[error("prefill_chunk = {0} must be a multiple of 64")]
    ChunkAlignment(u32),
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
    fn check(&self) -> Result<(), ModelError> {
        if !self.prefill_chunk.is_multiple_of(64) {
            return Err(ModelError::ChunkAlignment(self.prefill_chunk));
        }
        for (key, value) in [
            ("prefill_chunk", self.prefill_chunk),
            ("parallel", self.parallel),
        ] {
            if self.batch < value {
                return Err(ModelError::BatchTooSmall {
                    batch: self.batch,
                    key,
                    value,
                });
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
            (KvLayout::Split, Some(_), _) => return Err(ModelError::CellsOfSplit),
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

impl Script {
    /// Most tokens, and the last one that anything can be said about.
    pub(super) const MAX_TOKENS: u32 = 100_000_000;
    /// Most bytes of text per token: what a source makes at once stays small.
    pub(super) const MAX_TOKEN_BYTES: u32 = 4096;
    /// Longest time of any kind.
    pub(super) const MAX_TIME: Duration = Duration::from_hours(24);

    /// Whether the script can be played.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        let times = [
            ("first", Some(self.first)),
            ("pace", Some(self.pace)),
            ("stall", self.stall),
        ];
        for (key, time) in times {
            if time.is_some_and(|time| time > Self::MAX_TIME) {
                return Err(ModelError::ScriptBound { key, most: "1 day" });
            }
        }
        if self.tokens.get() > Self::MAX_TOKENS {
            return Err(ModelError::ScriptBound {
                key: "tokens",
                most: "100000000",
            });
        }
        if self.token_bytes.get() > Self::MAX_TOKEN_BYTES {
            return Err(ModelError::ScriptBound {
                key: "token_bytes",
                most: "4096",
            });
        }
        if self.stall_at.is_some() != self.stall.is_some() {
            return Err(ModelError::HalfStall);
        }
        if self.fail_kind.is_some() && self.fail_at.is_none() {
            return Err(ModelError::FailKindAlone);
        }
        if self.text.as_ref().is_some_and(String::is_empty) {
            return Err(ModelError::EmptyText);
        }
        Ok(())
    }
}

/// How sequences share the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvLayout {
    /// Each sequence has `context` cells of its own.
    Split,
    /// All sequences share one pool of `kv_cells` cells.
    Unified,
}

/// The type of cached keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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

/// Whether to use flash attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// Placement on machines with several memory nodes.
    pub numa: Numa,
}

/// Placement on machines with several memory nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
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

/// `[models.script]`: what the scripted engine plays.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Repeated as often as needed; absent repeats one sentence.
    pub text: Option<String>,
    /// Tokens per choice, unless the request asks for fewer; at most 100 million.
    pub tokens: NonZeroU32,
    /// Bytes of text per token, at most 4096.
    pub token_bytes: NonZeroU32,
    /// From the start to the first token; like every time here, at most a day.
    #[serde(with = "humantime_serde")]
    pub first: Duration,
    /// Between two tokens.
    #[serde(with = "humantime_serde")]
    pub pace: Duration,
    /// Pause once before this token, counted from 0; goes with `stall`.
    pub stall_at: Option<u32>,
    /// How long that pause is.
    #[serde(with = "humantime_serde")]
    pub stall: Option<Duration>,
    /// Fail instead of giving this token, counted from 0.
    pub fail_at: Option<u32>,
    /// What that failure is; absent is `internal`.
    pub fail_kind: Option<FailKind>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            text: None,
            tokens: const { NonZeroU32::new(64).unwrap() },
            token_bytes: const { NonZeroU32::new(4).unwrap() },
            first: Duration::ZERO,
            pace: Duration::ZERO,
            stall_at: None,
            stall: None,
            fail_at: None,
            fail_kind: None,
        }
    }
}

/// The failures that a script can play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailKind {
    /// A defect on our side.
    Internal,
    /// A remote server failed.
    Upstream,
    /// No capacity.
    Overloaded,
    /// A deadline passed.
    Deadline,
    /// Not loaded yet.
    NotReady,
}

impl From<FailKind> for Kind {
    fn from(kind: FailKind) -> Self {
        match kind {
            FailKind::Internal => Self::Internal,
            FailKind::Upstream => Self::Upstream,
            FailKind::Overloaded => Self::Overloaded,
            FailKind::Deadline => Self::Deadline,
            FailKind::NotReady => Self::NotReady,
        }
    }
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
    fn settings_must_fit_each_other() {
        let gguf = "name = 'm'\npath = 'm'\n";
        for bad in [
            "prefill_chunk = 100",
            "batch = 64",
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
            "kv_layout = 'unified'\ncontext = 4096\nkv_cells = 2048",
            "threads = 513",
            "threads_prefill = 513",
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
