//! The model's settings: whether llama.cpp would build a graph from them or stop the process.
//!
//! The rules follow its generic loader (`load_hparams`) and the assertions of its graphs; whatever it
//! reports as an error by itself (a missing tensor of some architecture, a wrong shape) is left to it.

use super::architecture;
use super::error::{GgufError, shown};
use super::metadata::{Items, Metadata, Value, bad, missing};
use super::tensors::{Role, Tensors};

/// `LLAMA_MAX_LAYERS`.
const MOST_BLOCKS: u32 = 512;
/// `LLAMA_MAX_EXPERTS`.
const MOST_EXPERTS: u32 = 1024;
/// Far above any model (the longest contexts are 10 million), far below where sums overflow.
const MOST_CONTEXT: u32 = 1 << 27;
/// Bounds each of the widths so that their products fit 64 bits many times over.
const MOST_WIDTH: u32 = 1 << 24;
const MOST_HEADS: u32 = 1 << 14;

/// The settings that the engine wants to know.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) architecture: String,
    pub(super) blocks: u32,
    pub(super) context: u32,
    pub(super) width: u32,
    pub(super) heads: u32,
    pub(super) kv_heads: u32,
    pub(super) causal: bool,
}

/// Keys of one architecture: `llama.block_count` and so on.
struct Settings<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Settings<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn u32(&self, name: &str) -> Result<Option<u32>, GgufError> {
        self.metadata.u32(&self.key(name))
    }

    fn f32(&self, name: &str) -> Result<Option<f64>, GgufError> {
        self.metadata.f32(&self.key(name))
    }

    fn required(&self, name: &str, most: u32) -> Result<u32, GgufError> {
        let key = self.key(name);
        let found = self.metadata.required_u32(&key)?;
        within(&key, found, 1, most)
    }

    fn optional(&self, name: &str, least: u32, most: u32) -> Result<Option<u32>, GgufError> {
        let key = self.key(name);
        self.metadata
            .u32(&key)?
            .map(|found| within(&key, found, least, most))
            .transpose()
    }

    fn per_block(&self, name: &str, blocks: u32, most: u32) -> Result<Option<Vec<u32>>, GgufError> {
        let key = self.key(name);
        let found = self.metadata.per_block(&key, blocks)?;
        for &number in found.iter().flatten() {
            within(&key, number, 0, most)?;
        }
        Ok(found)
    }

    fn refuse(&self, name: &str, found: impl std::fmt::Display, expected: &str) -> GgufError {
        bad(&self.key(name), found, expected)
    }
}

fn within(key: &str, found: u32, least: u32, most: u32) -> Result<u32, GgufError> {
    if (least..=most).contains(&found) {
        Ok(found)
    } else {
        Err(bad(key, found, format!("{least} to {most}")))
    }
}

/// What stands in `general.` and says which rules apply.
pub(super) fn architecture(metadata: &Metadata) -> Result<&str, GgufError> {
    let key = "split.count";
    if let Some(Value::Integer(count, _)) = metadata.find(key) {
        if *count > 1 {
            return Err(GgufError::Split {
                count: u64::try_from(*count).unwrap_or(u64::MAX),
            });
        }
    } else if metadata.find(key).is_some() {
        return Err(bad(key, "not an integer", "the number of files"));
    }
    if let Some(kind) = metadata.text("general.type")?
        && kind != "model"
    {
        return Err(bad("general.type", shown(kind), "\"model\""));
    }
    let key = "general.architecture";
    let name = metadata.text(key)?.ok_or_else(|| missing(key))?;
    if !architecture::is_known(name) {
        return Err(GgufError::Architecture { name: shown(name) });
    }
    Ok(name)
}

/// Checks the settings of the architecture, and the tensors that every model has.
pub(super) fn check(
    metadata: &Metadata,
    tensors: &Tensors,
    architecture: &str,
    tokens: u32,
) -> Result<Model, GgufError> {
    let settings = Settings {
        metadata,
        architecture,
    };
    let context = settings.required("context_length", MOST_CONTEXT)?;
    let width = settings.required("embedding_length", MOST_WIDTH)?;
    let blocks = settings.required("block_count", MOST_BLOCKS)?;
    settings.optional("nextn_predict_layers", 0, blocks - 1)?;
    settings.optional("leading_dense_block_count", 0, blocks)?;
    settings.optional("attention.shared_kv_layers", 0, blocks)?;
    settings.optional("pooling_type", 0, 4)?;
    settings.per_block("feed_forward_length", blocks, MOST_WIDTH)?;
    settings.per_block("expert_feed_forward_length", blocks, MOST_WIDTH)?;
    check_floats(&settings)?;
    check_divisors(&settings)?;
    check_experts(&settings, blocks)?;
    let (heads, kv_heads) = check_heads(&settings, blocks)?;
    check_head_widths(&settings, width, heads)?;
    check_rope(&settings)?;
    check_tensors(tensors, tokens, width)?;
    let causal = metadata
        .bool(&settings.key("attention.causal"))?
        .unwrap_or(true);
    Ok(Model {
        architecture: architecture.into(),
        blocks,
        context,
        width,
        heads,
        kv_heads,
        causal: causal && architecture::generates(architecture),
    })
}

/// Every fraction among the settings is a number, and those that are added under a root are not
/// negative, which ggml asserts while computing.
fn check_floats(settings: &Settings<'_>) -> Result<(), GgufError> {
    let prefix = settings.key("");
    for (key, value) in settings.metadata.iter() {
        let Some(name) = key.strip_prefix(&prefix) else {
            continue;
        };
        let finite = match value {
            Value::Float(number, _) => number.is_finite(),
            Value::Array(_, _, Items::Floats(numbers)) => {
                // Infinity stands for "no limit" in lists of limits.
                !numbers.iter().any(|number| number.is_nan())
            }
            _ => true,
        };
        if !finite {
            return Err(bad(key, "not finite", "a finite number"));
        }
        if name.ends_with("epsilon")
            && let Value::Float(number, _) = value
            && !(0.0..=1.0).contains(number)
        {
            return Err(bad(key, number, "a number from 0 to 1"));
        }
    }
    Ok(())
}

/// Numbers that something is divided by; zero would be a hardware fault.
fn check_divisors(settings: &Settings<'_>) -> Result<(), GgufError> {
    for name in [
        "ssm.conv_kernel",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.time_step_rank",
        "wkv.head_size",
        "kda.head_dim",
        "full_attention_interval",
        "token_shift_count",
        "num_loops",
        "attention.group_norm_groups",
        "shortconv.l_cache",
        "shortconv.l_cache",
    ] {
        settings.optional(name, 1, MOST_WIDTH)?;
    }
    Ok(())
}

fn check_experts(settings: &Settings<'_>, blocks: u32) -> Result<(), GgufError> {
    let experts = settings
        .optional("expert_count", 0, MOST_EXPERTS)?
        .unwrap_or(0);
    let used = settings
        .per_block("expert_used_count", blocks, MOST_EXPERTS)?
        .and_then(|used| used.into_iter().max())
        .unwrap_or(0);
    // Two architectures write one expert where they mean none.
    let lax = experts <= 1 && ["hunyuan_vl", "hunyuan-dense"].contains(&settings.architecture);
    if !lax && (used > experts || (used == 0) != (experts == 0)) {
        let expected = if experts == 0 {
            "0, as there are no experts".into()
        } else {
            format!("1 to the {experts} of expert_count")
        };
        return Err(settings.refuse("expert_used_count", used, &expected));
    }
    let groups = settings.u32("expert_group_count")?.unwrap_or(0);
    let groups_used = settings.u32("expert_group_used_count")?.unwrap_or(0);
    if groups > 0 && (groups >= experts || !experts.is_multiple_of(groups)) {
        return Err(settings.refuse(
            "expert_group_count",
            groups,
            &format!("fewer than the {experts} of expert_count, and a divisor of it"),
        ));
    }
    if groups > 1 && !(1..groups).contains(&groups_used) {
        return Err(settings.refuse(
            "expert_group_used_count",
            groups_used,
            &format!("1 to {}", groups - 1),
        ));
    }
    Ok(())
}

/// Heads of the widest block. Recurrent models have none.
fn check_heads(settings: &Settings<'_>, blocks: u32) -> Result<(u32, u32), GgufError> {
    let heads = settings
        .per_block("attention.head_count", blocks, MOST_HEADS)?
        .unwrap_or_default();
    let kv_heads = settings
        .per_block("attention.head_count_kv", blocks, MOST_HEADS)?
        .unwrap_or_else(|| heads.clone());
    for (&heads, &kv) in heads.iter().zip(&kv_heads) {
        // A block without attention has zero of either or both.
        if kv > 0 && !heads.is_multiple_of(kv) {
            return Err(settings.refuse(
                "attention.head_count_kv",
                kv,
                &format!("a divisor of the {heads} of head_count"),
            ));
        }
    }
    let most = |counts: &[u32]| counts.iter().copied().max().unwrap_or(0);
    Ok((most(&heads), most(&kv_heads)))
}

fn check_head_widths(settings: &Settings<'_>, width: u32, heads: u32) -> Result<(), GgufError> {
    let key = settings.optional("attention.key_length", 1, MOST_WIDTH)?;
    let value = settings.optional("attention.value_length", 1, MOST_WIDTH)?;
    let rotated = settings.optional("rope.dimension_count", 0, MOST_WIDTH)?;
    let key_swa = settings.optional("attention.key_length_swa", 1, MOST_WIDTH)?;
    settings.optional("attention.value_length_swa", 1, MOST_WIDTH)?;
    let rotated_swa = settings.optional("rope.dimension_count_swa", 0, MOST_WIDTH)?;
    // llama.cpp looks at the first block's heads here.
    let Some(default) = width.checked_div(heads) else {
        return Ok(());
    };
    if key.is_none() && default == 0 {
        return Err(settings.refuse(
            "attention.head_count",
            heads,
            &format!("at most the {width} of embedding_length"),
        ));
    }
    let key = key.unwrap_or(default);
    let value = value.unwrap_or(default);
    check_rotated(
        settings,
        "rope.dimension_count",
        rotated.unwrap_or(key),
        key,
    )?;
    if let Some(rotated) = rotated_swa {
        check_rotated(
            settings,
            "rope.dimension_count_swa",
            rotated,
            key_swa.unwrap_or(key),
        )?;
    }
    if architecture::has_one_head_width(settings.architecture) && value != key {
        return Err(settings.refuse(
            "attention.value_length",
            value,
            &format!("the {key} of key_length"),
        ));
    }
    if architecture::rotates_whole_heads(settings.architecture)
        && rotated.is_some_and(|rotated| rotated != key)
    {
        return Err(settings.refuse(
            "rope.dimension_count",
            rotated.unwrap_or(0),
            &format!("the {key} of a whole head"),
        ));
    }
    Ok(())
}

/// Rotation works on pairs within a head.
fn check_rotated(
    settings: &Settings<'_>,
    name: &str,
    rotated: u32,
    head: u32,
) -> Result<(), GgufError> {
    if settings.u32(name)?.is_some() && (rotated > head || !rotated.is_multiple_of(2)) {
        return Err(settings.refuse(name, rotated, &format!("an even number up to {head}")));
    }
    Ok(())
}

fn check_rope(settings: &Settings<'_>) -> Result<(), GgufError> {
    for name in ["rope.freq_base", "rope.freq_base_swa"] {
        if let Some(base) = settings.f32(name)?
            && base <= 0.0
        {
            return Err(settings.refuse(name, base, "more than 0"));
        }
    }
    for name in ["rope.scaling.factor", "rope.scale_linear"] {
        if let Some(factor) = settings.f32(name)?
            && factor < 0.0
        {
            return Err(settings.refuse(name, factor, "at least 0"));
        }
    }
    let name = "rope.scaling.type";
    if let Some(kind) = settings.metadata.text(&settings.key(name))?
        && !["none", "linear", "yarn", "longrope"].contains(&kind)
    {
        return Err(settings.refuse(name, shown(kind), "none, linear, yarn or longrope"));
    }
    settings.optional("rope.scaling.original_context_length", 0, MOST_CONTEXT)?;
    let name = "rope.dimension_sections";
    if let Some(Value::Array(_, len, Items::Integers(sections))) =
        settings.metadata.find(&settings.key(name))
    {
        let fits = sections
            .iter()
            .all(|&section| (0..=i64::from(MOST_WIDTH)).contains(&section))
            && sections.iter().take(3).any(|&section| section > 0)
            && *len <= 4;
        if !fits {
            return Err(settings.refuse(
                name,
                format!("{sections:?}"),
                "up to 4 numbers of at least 0, one of the first three above 0",
            ));
        }
    }
    Ok(())
}

/// The table of embeddings and, where there is one, the output head.
fn check_tensors(tensors: &Tensors, tokens: u32, width: u32) -> Result<(), GgufError> {
    let name = "token_embd.weight";
    if tensors.find(name).is_none() {
        return Err(GgufError::MissingTensor { name: name.into() });
    }
    for name in [name, "output.weight"] {
        let Some(tensor) = tensors.find(name) else {
            continue;
        };
        let [row, rows, rest @ ..] = tensor.shape;
        if row != u64::from(width) || rows != u64::from(tokens) || rest != [1, 1] {
            return Err(GgufError::Dimensions {
                name: shown(name),
                found: format!("{:?}", tensor.shape),
                expected: format!("{width} (embedding_length) by {tokens} (tokens)"),
            });
        }
        if tensor.format.role == Role::Index {
            return Err(GgufError::TensorType {
                name: shown(name),
                found: tensor.format.name.into(),
                expected: "f32, f16, bf16 or a quantised type",
            });
        }
    }
    Ok(())
}
