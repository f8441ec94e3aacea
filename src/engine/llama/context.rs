//! Contexts as the settings and the machine want them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use super::cache::{Cache, Kind};
use super::ffi::{Context, ContextParams};
use super::load::LoadError;
use super::pin;
use super::plan::Limits;
use super::threads::Limit;
use crate::engine::config::{FlashAttention, KvLayout, KvType, Settings};

/// Tokens per sequence when the configuration names none: enough for a chat, and 16 of them of a
/// 0.5B model are 0.8 GB of K/V.
const DEFAULT_CONTEXT: u32 = 4096;

/// Rows per decode call on a unified layout without a GPU. From 64 rows on, llama.cpp's CPU flash
/// attention works in 64x64 tiles, which cannot skip the cells of other sequences.
const UNIFIED_CPU_ROWS: u32 = 63;

/// How much more cells than a pool has may be promised in the end: most sequences end before their
/// budget does, and those that are short of cells then can be parked.
const OVERCOMMIT_PERCENT: u32 = 150;

/// Most threads that are tried unasked. Memory is the limit long before.
const MOST_GOVERNED: u32 = 128;

/// What llama.cpp rounds the cells of a cache up to.
const CELL_PAD: u64 = 256;

/// What contexts of one model are made from: one when it is loaded, and one for each change of layout.
pub(super) struct Maker {
    pub(super) params: ContextParams,
    pub(super) model: Arc<LlamaModel>,
    pub(super) abort: Arc<AtomicBool>,
    pub(super) max_step_us: u64,
    pub(super) on_cpu: bool,
    pub(super) deterministic: bool,
}

/// A context, what it can take, and how its states can be kept.
pub(super) struct Made {
    pub(super) context: Context,
    pub(super) limits: Limits,
    pub(super) kind: Kind,
}

impl Maker {
    pub(super) fn make(&self, pooled: bool) -> Result<Made, LoadError> {
        let params = ContextParams {
            unified: pooled,
            ..self.params.clone()
        };
        let mut context = Context::new(self.model.clone(), &params, self.abort.clone())?;
        let kind = Cache::learn(&mut context)?;
        let most = context.max_rows();
        let decode_rows = if pooled && self.on_cpu {
            UNIFIED_CPU_ROWS.min(most)
        } else {
            most
        };
        let limits = Limits {
            ids: params.sequences,
            // llama.cpp rounds a pool up to whole pads, and so must the account of it.
            cells: if pooled {
                params.cells.next_multiple_of(CELL_PAD)
            } else {
                params.cells
            },
            decode_rows,
            batch: params.batch.min(most),
            max_step_us: self.max_step_us,
            one_prompt_per_call: pooled || self.deterministic,
            cut_last: true,
            pooled,
            overcommit_percent: OVERCOMMIT_PERCENT,
        };
        Ok(Made {
            context,
            limits,
            kind,
        })
    }
}

/// All layers in a build that can use a GPU, none otherwise, unless the configuration says.
pub(super) fn gpu_layers(settings: &Settings) -> u32 {
    let has_gpu = cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan"));
    settings.gpu_layers.unwrap_or(if has_gpu { 999 } else { 0 })
}

pub(super) fn context_params(settings: &Settings, model: &LlamaModel) -> ContextParams {
    let (threads, threads_prefill) = thread_limits(settings);
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
        threads,
        threads_prefill,
        poll: settings.poll,
        flash_attention: match settings.flash_attention {
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        },
        type_k: kv_type(settings.stored_keys()),
        type_v: kv_type(settings.stored_values()),
        offload_kv: gpu_layers(settings) > 0,
        vectors: None,
    }
}

/// What the configuration fixes is fixed; otherwise as many threads as pay, up to all cores.
pub(super) fn thread_limits(settings: &Settings) -> (Limit, Limit) {
    let fixed = |threads: std::num::NonZeroU16| Limit::Fixed(threads.get().into());
    let cores = pin::cores().min(MOST_GOVERNED);
    let free = if gpu_layers(settings) == 0 {
        Limit::UpTo(cores)
    } else {
        // The time of a call is then mostly the GPU's and says little about threads.
        Limit::Fixed(cores.saturating_sub(1).max(1))
    };
    let decode = settings.threads.map_or(free, fixed);
    let prefill = settings.threads_prefill.map_or(decode, fixed);
    (decode, prefill)
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
