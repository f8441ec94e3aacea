//! Adapters for the built-in model, with random numbers: a GGUF written by hand.

use std::path::{Path, PathBuf};

/// A file that is gone when this is.
pub(crate) struct Lora(PathBuf);

impl Lora {
    /// An adapter of rank 2 for the values and the feed-forward of every block.
    pub(crate) fn new(seed: u64) -> Self {
        Self::for_architecture("llama", seed)
    }

    pub(crate) fn for_architecture(architecture: &str, seed: u64) -> Self {
        let mut tensors = Vec::new();
        for block in 0..6 {
            for (name, inputs, outputs) in [("attn_v", 224_u32, 224), ("ffn_down", 608, 224)] {
                let name = format!("blk.{block}.{name}.weight");
                tensors.push((format!("{name}.lora_a"), [inputs, 2]));
                tensors.push((format!("{name}.lora_b"), [2, outputs]));
            }
        }
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(4_u64.to_le_bytes());
        for (key, value) in [
            ("general.type", "adapter"),
            ("general.architecture", architecture),
            ("adapter.type", "lora"),
        ] {
            text(&mut out, key);
            out.extend(8_u32.to_le_bytes());
            text(&mut out, value);
        }
        text(&mut out, "adapter.lora.alpha");
        out.extend(6_u32.to_le_bytes());
        out.extend(4_f32.to_le_bytes());
        let mut data = Vec::new();
        let mut random = seed;
        for (name, [row, rows]) in tensors {
            text(&mut out, &name);
            out.extend(2_u32.to_le_bytes());
            for dimension in [row, rows] {
                out.extend(u64::from(dimension).to_le_bytes());
            }
            out.extend(0_u32.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            for _ in 0..row * rows {
                // A linear congruential generator; its upper bits become -0.2 to 0.2.
                random = u64::wrapping_mul(random, 6_364_136_223_846_793_005).wrapping_add(1);
                let bits = u16::try_from(random >> 48).unwrap();
                data.extend(((f32::from(bits) / 65_535.0 - 0.5) * 0.4).to_le_bytes());
            }
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        let name = format!("lora-{}.gguf", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, out).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Lora {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
