//! Writes small GGUF files for tests, sound unless asked otherwise.

/// A value with the type it is to be stored in.
#[derive(Clone, Debug)]
pub(in crate::engine::llama) enum Put {
    U8(u8),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(u8),
    Text(Vec<u8>),
    Texts(Vec<String>),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    U8s(Vec<u8>),
    /// Any type number and any bytes.
    Raw(u32, Vec<u8>),
}

impl From<&str> for Put {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// One tensor; its data is zeros unless given.
#[derive(Clone, Debug)]
pub(in crate::engine::llama) struct Weights {
    pub(in crate::engine::llama) name: String,
    pub(in crate::engine::llama) dimensions: Vec<u64>,
    pub(in crate::engine::llama) format: u32,
    pub(in crate::engine::llama) data: Vec<u8>,
    /// Instead of the place where it is written.
    pub(in crate::engine::llama) offset: Option<u64>,
}

/// A file to be written.
#[derive(Clone, Debug)]
pub(in crate::engine::llama) struct Gguf {
    pub(in crate::engine::llama) magic: [u8; 4],
    pub(in crate::engine::llama) version: u32,
    pub(in crate::engine::llama) keys: Vec<(Vec<u8>, Put)>,
    pub(in crate::engine::llama) tensors: Vec<Weights>,
    pub(in crate::engine::llama) alignment: usize,
    /// Instead of the true counts.
    pub(in crate::engine::llama) counts: (Option<u64>, Option<u64>),
}

/// Tokens of the sound file.
pub(in crate::engine::llama) const TOKENS: u32 = 16;
pub(in crate::engine::llama) const WIDTH: u32 = 32;

/// A llama of two blocks with a byte-pair vocabulary, without most of its matrices (llama.cpp
/// reports missing ones by itself).
pub(in crate::engine::llama) fn sound() -> Gguf {
    let mut file = Gguf {
        magic: *b"GGUF",
        version: 3,
        keys: Vec::new(),
        tensors: Vec::new(),
        alignment: 32,
        counts: (None, None),
    };
    for (key, value) in [
        ("general.architecture", Put::from("llama")),
        ("general.type", "model".into()),
        ("general.name", "Tiny".into()),
        ("general.file_type", Put::U32(7)),
        ("llama.context_length", Put::U32(128)),
        ("llama.embedding_length", Put::U32(WIDTH)),
        ("llama.block_count", Put::U32(2)),
        ("llama.feed_forward_length", Put::U32(64)),
        ("llama.attention.head_count", Put::U32(4)),
        ("llama.attention.head_count_kv", Put::U32(2)),
        ("llama.attention.layer_norm_rms_epsilon", Put::F32(1e-5)),
        ("llama.rope.dimension_count", Put::U32(8)),
        ("llama.rope.freq_base", Put::F32(10_000.0)),
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", "gpt-2".into()),
        ("tokenizer.ggml.tokens", Put::Texts(tokens())),
        (
            "tokenizer.ggml.token_type",
            Put::I32s(vec![1; TOKENS as usize]),
        ),
        ("tokenizer.ggml.merges", Put::Texts(vec!["t 1".into()])),
        ("tokenizer.ggml.bos_token_id", Put::U32(1)),
        ("tokenizer.ggml.eos_token_id", Put::U32(2)),
        ("tokenizer.ggml.eot_token_id", Put::U32(3)),
        ("tokenizer.ggml.add_bos_token", Put::Bool(0)),
        ("tokenizer.chat_template", "{{ messages }}".into()),
    ] {
        file.keys.push((key.into(), value));
    }
    file.add("token_embd.weight", &[WIDTH.into(), TOKENS.into()], 8);
    for block in 0..2 {
        file.add(&format!("blk.{block}.attn_norm.weight"), &[WIDTH.into()], 0);
    }
    file.add("output_norm.weight", &[WIDTH.into()], 0);
    file
}

/// Distinct texts, one per token.
pub(in crate::engine::llama) fn tokens() -> Vec<String> {
    (0..TOKENS).map(|id| format!("t{id}")).collect()
}

impl Gguf {
    /// Sets or adds a key.
    pub(in crate::engine::llama) fn set(&mut self, key: &str, value: impl Into<Put>) -> &mut Self {
        let value = value.into();
        match self
            .keys
            .iter_mut()
            .find(|(name, _)| name == key.as_bytes())
        {
            Some((_, old)) => *old = value,
            None => self.keys.push((key.into(), value)),
        }
        self
    }

    pub(in crate::engine::llama) fn remove(&mut self, key: &str) -> &mut Self {
        self.keys.retain(|(name, _)| name != key.as_bytes());
        self
    }

    /// Adds a tensor of zeros in f32 (0), f16 (1) or `q8_0` (8), or without data in any other format.
    pub(in crate::engine::llama) fn add(
        &mut self,
        name: &str,
        dimensions: &[u64],
        format: u32,
    ) -> &mut Self {
        let elements = dimensions.iter().product::<u64>();
        let bytes = match format {
            0 | 26 => elements * 4,
            1 => elements * 2,
            8 => elements / 32 * 34,
            _ => 0,
        };
        self.tensors.push(Weights {
            name: name.into(),
            dimensions: dimensions.into(),
            format,
            data: vec![0; usize::try_from(bytes).unwrap()],
            offset: None,
        });
        self
    }

    pub(in crate::engine::llama) fn tensor(&mut self, name: &str) -> &mut Weights {
        self.tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .unwrap()
    }

    pub(in crate::engine::llama) fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        let (tensors, keys) = self.counts;
        out.extend(self.version.to_le_bytes());
        out.extend(tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            put(&mut out, value);
        }
        let mut place = 0;
        for tensor in &self.tensors {
            text(&mut out, tensor.name.as_bytes());
            out.extend(
                u32::try_from(tensor.dimensions.len())
                    .unwrap()
                    .to_le_bytes(),
            );
            for dimension in &tensor.dimensions {
                out.extend(dimension.to_le_bytes());
            }
            out.extend(tensor.format.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(place as u64).to_le_bytes());
            place = (place + tensor.data.len()).next_multiple_of(self.alignment);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        for tensor in &self.tensors {
            out.extend(&tensor.data);
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        out
    }
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn put(out: &mut Vec<u8>, value: &Put) {
    let mut one = |code: u32, bytes: &[u8]| {
        out.extend(code.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Put::U8(number) => one(0, &[*number]),
        Put::U32(number) => one(4, &number.to_le_bytes()),
        Put::I32(number) => one(5, &number.to_le_bytes()),
        Put::F32(number) => one(6, &number.to_le_bytes()),
        Put::Bool(flag) => one(7, &[*flag]),
        Put::Text(bytes) => {
            one(8, &[]);
            text(out, bytes);
        }
        Put::Texts(texts) => {
            array(out, 8, texts.len());
            for item in texts {
                text(out, item.as_bytes());
            }
        }
        Put::U32s(items) => {
            array(out, 4, items.len());
            out.extend(items.iter().flat_map(|item| item.to_le_bytes()));
        }
        Put::I32s(items) => {
            array(out, 5, items.len());
            out.extend(items.iter().flat_map(|item| item.to_le_bytes()));
        }
        Put::F32s(items) => {
            array(out, 6, items.len());
            out.extend(items.iter().flat_map(|item| item.to_le_bytes()));
        }
        Put::U8s(items) => {
            array(out, 0, items.len());
            out.extend(items);
        }
        Put::Raw(code, bytes) => one(*code, bytes),
    }
}

fn array(out: &mut Vec<u8>, code: u32, len: usize) {
    out.extend(9_u32.to_le_bytes());
    out.extend(code.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}
