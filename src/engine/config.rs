//! `[[models]]` and `[engine]`: which models there are, where their tokens come from, and how a
//! GGUF model is run.

use std::fmt;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::generation::{Kind, Sampling};

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

/// A model's name: 1 to 64 of `a-z A-Z 0-9 . _ -`, with `/` allowed inside.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct ModelName(String);

/// Why a text is no model name.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0:?} is no model name; write 1 to 64 letters, digits, '.', '_' or '-', with '/' only inside"
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
    /// Threads for decode steps; absent takes one less than the cores, at least one.
    pub threads: Option<NonZeroU16>,
    /// Threads for prefill; absent takes `threads`.
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
    /// A sampling setting out of range.
    #[error("sampling.{key} = {value} is out of range; must be {range}")]
    Sampling {
        /// Which.
        key: &'static str,
        /// What was written.
        value: f32,
        /// What may be written.
        range: &'static str,
    },
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
        check_sampling(&self.sampling)
    }
}

impl Script {
    fn check(&self) -> Result<(), ModelError> {
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

/// The ranges that [`Sampling`] names beside its fields.
fn check_sampling(sampling: &Sampling) -> Result<(), ModelError> {
    let ranges = [
        ("temperature", sampling.temperature, 0.0..=256.0, "0 to 256"),
        ("top_p", sampling.top_p, 0.0..=1.0, "0 to 1"),
        ("min_p", sampling.min_p, 0.0..=1.0, "0 to 1"),
        ("typical_p", sampling.typical_p, 0.0..=1.0, "0 to 1"),
        (
            "repeat_penalty",
            sampling.repeat_penalty,
            f32::MIN_POSITIVE..=f32::MAX,
            "above 0",
        ),
        (
            "presence_penalty",
            sampling.presence_penalty,
            -2.0..=2.0,
            "-2 to 2",
        ),
        (
            "frequency_penalty",
            sampling.frequency_penalty,
            -2.0..=2.0,
            "-2 to 2",
        ),
        (
            "xtc.probability",
            sampling.xtc.map(|x| x.probability),
            0.0..=1.0,
            "0 to 1",
        ),
        (
            "xtc.threshold",
            sampling.xtc.map(|x| x.threshold),
            0.0..=1.0,
            "0 to 1",
        ),
    ];
    for (key, value, range, words) in ranges {
        if let Some(value) = value.filter(|value| !range.contains(value)) {
            return Err(ModelError::Sampling {
                key,
                value,
                range: words,
            });
        }
    }
    Ok(())
}

/// How sequences share the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvLayout {
    /// Each sequence has `context` cells of its own.
    Split,
    /// All sequences share one pool of cells.
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
    /// Repeated as often as needed; absent plays numbered words.
    pub text: Option<String>,
    /// Tokens per choice, unless the request asks for fewer.
    pub tokens: NonZeroU32,
    /// Bytes of text per token.
    pub token_bytes: NonZeroU32,
    /// From the start to the first token.
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
        assert!(read(&format!("{scripted}[script]\nstall_at = 3")).is_err());
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
        ] {
            assert!(read(&format!("{gguf}{bad}")).is_err(), "{bad}");
        }
        assert!(
            read(&format!(
                "{gguf}kv_type_v = 'q8_0'\n[sampling]\ntemperature = 1"
            ))
            .is_ok()
        );
    }
}
