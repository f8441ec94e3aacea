//! What a request is charged for, and to whom.

use super::Gateway;
use crate::generation::{Caller, EmbedRequest, Failure, Input, Request, RerankRequest};
use crate::limit::{Admission, Ask, Standing, Work};

/// How much there is to read, before it was read.
#[derive(Clone, Copy, Default)]
struct Size {
    text_bytes: usize,
    tokens: usize,
}

impl Size {
    fn of_text(text: &str) -> Self {
        Self {
            text_bytes: text.len(),
            tokens: 0,
        }
    }

    fn of(input: &Input) -> Self {
        match input {
            Input::Text(text) => Self::of_text(text),
            Input::Tokens(tokens) => Self {
                text_bytes: 0,
                tokens: tokens.len(),
            },
            Input::Chat(messages) => {
                let texts = messages
                    .iter()
                    .map(|message| Self::of_text(&message.content));
                texts.fold(Self::default(), Self::and)
            }
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            text_bytes: self.text_bytes.saturating_add(other.text_bytes),
            tokens: self.tokens.saturating_add(other.tokens),
        }
    }
}

impl Gateway {
    /// Where a caller stands with its limits, on one model or on all; `None` if it has none.
    #[must_use]
    pub fn standing(&self, caller: &Caller, model: Option<&str>) -> Option<Standing> {
        let model = model.and_then(|model| self.parts.registry.configured_name(model));
        self.parts.limiter.standing(caller, model)
    }

    /// `context`: tokens that the model can hold. No more than that is reserved for an answer, whatever
    /// bound it names; one that goes on beyond is charged as it does.
    pub(super) async fn limit(
        &self,
        request: &Request,
        context: u32,
    ) -> Result<Admission, Failure> {
        let sizes = request.inputs.iter().map(Size::of);
        let work = Work::Generate {
            choices: u32::try_from(request.choices()).unwrap_or(u32::MAX),
            max_tokens: request.max_tokens.map(|most| most.min(context)),
        };
        let size = sizes.fold(Size::default(), Size::and);
        self.ask(&request.caller, &request.model, size, work).await
    }

    pub(super) async fn limit_embed(&self, request: &EmbedRequest) -> Result<Admission, Failure> {
        let sizes = request.inputs.iter().map(Size::of);
        let size = sizes.fold(Size::default(), Size::and);
        self.ask(&request.caller, &request.model, size, Work::Embed)
            .await
    }

    pub(super) async fn limit_rerank(&self, request: &RerankRequest) -> Result<Admission, Failure> {
        let query = Size::of_text(&request.query);
        // Each document is read beside the query.
        let pairs = request
            .documents
            .iter()
            .map(|text| query.and(Size::of_text(text)));
        let size = pairs.fold(Size::default(), Size::and);
        self.ask(&request.caller, &request.model, size, Work::Embed)
            .await
    }

    /// For what is looked up and not computed: it counts as a request.
    pub(super) async fn limit_count(
        &self,
        caller: &Caller,
        model: &str,
    ) -> Result<Admission, Failure> {
        self.ask(caller, model, Size::default(), Work::Count).await
    }

    async fn ask(
        &self,
        caller: &Caller,
        model: &str,
        size: Size,
        work: Work,
    ) -> Result<Admission, Failure> {
        let model = self.parts.registry.configured_name(model);
        let ask = Ask {
            caller,
            model: model.unwrap_or_default(),
            text_bytes: size.text_bytes as u64,
            tokens: size.tokens as u64,
            work,
        };
        self.parts.limiter.admit(&ask).await
    }
}
