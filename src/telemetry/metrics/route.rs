//! The label that says what was asked for.

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Chat completions.
    Chat,
    /// Text completions.
    Completions,
    /// JSON-RPC.
    Rpc,
    /// Tokenizing and detokenizing.
    Tokenize,
    /// Embeddings.
    Embeddings,
    /// Reranking.
    Rerank,
    /// Binding tokens.
    Bind,
}

impl Route {
    pub(super) const ALL: [Self; 7] = [
        Self::Chat,
        Self::Completions,
        Self::Rpc,
        Self::Tokenize,
        Self::Embeddings,
        Self::Rerank,
        Self::Bind,
    ];

    /// The label value in metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Rpc => "rpc",
            Self::Tokenize => "tokenize",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
            Self::Bind => "bind",
        }
    }

    /// Whether an answer is tokens: only those have an objective.
    pub(in crate::telemetry) fn generates(self) -> bool {
        matches!(self, Self::Chat | Self::Completions | Self::Rpc)
    }
}
