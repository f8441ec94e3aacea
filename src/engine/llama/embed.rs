//! Requests for vectors and ranks, up to the engine thread: check, tokenize, hand over, wait.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use super::vectors::{Job, Pool};
use super::vocab::Guards;
use super::{LlamaEngine, RETRY_AFTER, Shared, TOKENIZE_INLINE, heavy};
use crate::generation::vectors::{MAX_INPUTS, kept};
use crate::generation::{
    EmbedRequest, Failure, Input, Kind, RerankRequest, Scores, Usage, Vectors,
};

/// Inputs of all requests of one model that may be computed or wait for it: four of the largest
/// requests, or thousands of small ones.
const MOST_INPUTS: usize = 4 * MAX_INPUTS;

/// The way to the vectors of a model.
pub(super) struct Embedder {
    pool: Pool,
    inbox: SyncSender<Job>,
    places: Arc<Semaphore>,
    shared: Arc<Limits>,
}

/// What the inputs are checked against, shared with the blocking pool.
struct Limits {
    /// Tokens that an input may have.
    context: u32,
    /// How a query and a document become one text, where the model says.
    rank_template: Option<String>,
}

impl Embedder {
    /// Work goes to `inbox`, which must have room for [`Embedder::CAPACITY`] jobs.
    pub(super) fn new(
        pool: Pool,
        context: u32,
        rank_template: Option<String>,
        inbox: SyncSender<Job>,
    ) -> Self {
        Self {
            pool,
            inbox,
            places: Arc::new(Semaphore::new(MOST_INPUTS)),
            shared: Arc::new(Limits {
                context,
                rank_template,
            }),
        }
    }

    /// Inputs that may still come.
    #[cfg(test)]
    pub(super) fn free_places(&self) -> usize {
        self.places.available_permits()
    }

    /// Each job has at least one input.
    pub(super) const CAPACITY: usize = MOST_INPUTS;
}

impl LlamaEngine {
    pub(super) async fn embed_inputs(&self, request: &EmbedRequest) -> Result<Vectors, Failure> {
        let embedder = self.embedder()?;
        if embedder.pool == Pool::Rank {
            return Err(cannot("This model ranks documents; it has no embeddings."));
        }
        let width = usize::try_from(self.vector_width).unwrap_or(0).max(1);
        kept(width, request.dimensions)?;
        let shared = (self.shared.clone(), embedder.shared.clone());
        let inputs = request.inputs.clone();
        let bytes = inputs.iter().map(size).sum::<usize>();
        let queue = request.deadlines.queue;
        let work = move || -> Result<Vec<Vec<u32>>, Failure> {
            let (shared, limits) = shared;
            let numbered = inputs.iter().enumerate();
            numbered
                .map(|(at, input)| shared.embeddable(input, &format!("input[{at}]"), &limits))
                .collect()
        };
        let (numbers, usage) = self
            .compute(embedder, request.inputs.len(), bytes, queue, work)
            .await?;
        Vectors::finish(numbers, width, usage, request)
    }

    pub(super) async fn rank(&self, request: &RerankRequest) -> Result<Scores, Failure> {
        let embedder = self.embedder()?;
        if embedder.pool != Pool::Rank {
            return Err(cannot("This model has no head that ranks documents."));
        }
        let shared = (self.shared.clone(), embedder.shared.clone());
        let (query, documents) = (request.query.clone(), request.documents.clone());
        let bytes = documents.iter().map(|d| d.len() + query.len()).sum();
        let queue = request.deadlines.queue;
        let work = move || -> Result<Vec<Vec<u32>>, Failure> {
            let (shared, limits) = shared;
            let numbered = documents.iter().enumerate();
            numbered
                .map(|(at, document)| {
                    let place = format!("documents[{at}]");
                    shared.fits(query.len() + document.len(), &place, &limits)?;
                    let tokens = shared.pair(&query, document, &limits)?;
                    limits.takes(tokens, &place)
                })
                .collect()
        };
        let (scores, usage) = self
            .compute(embedder, request.documents.len(), bytes, queue, work)
            .await?;
        Scores::finish(scores, usage)
    }

    fn embedder(&self) -> Result<&Embedder, Failure> {
        self.embedder.as_ref().map_err(|&reason| cannot(reason))
    }

    /// Takes a place, tokenizes, hands the job to the engine thread and waits for it. Whoever drops
    /// this future cancels the job.
    async fn compute(
        &self,
        embedder: &Embedder,
        inputs: usize,
        bytes: usize,
        queue: Option<Duration>,
        tokenize: impl FnOnce() -> Result<Vec<Vec<u32>>, Failure> + Send + 'static,
    ) -> Result<(Vec<f32>, Usage), Failure> {
        let accepted = Instant::now();
        let full = || {
            Failure::new(
                Kind::Overloaded,
                "Too many inputs wait for this model's vectors.",
            )
            .with_code("queue_full")
            .with_retry_after(RETRY_AFTER)
        };
        let places = u32::try_from(inputs).unwrap_or(u32::MAX);
        let place = embedder.places.clone().try_acquire_many_owned(places);
        let place = place.map_err(|_| full())?;
        let inputs = if bytes <= TOKENIZE_INLINE {
            tokenize()?
        } else {
            heavy(tokenize).await??
        };
        let tokens = inputs.iter().map(Vec::len).sum::<usize>();
        let (reply, answer) = oneshot::channel();
        let job = Job {
            inputs,
            reply,
            accepted,
            queue_deadline: queue.and_then(|bound| Some((accepted.checked_add(bound)?, bound))),
            place,
        };
        let stopped = || Failure::new(Kind::Draining, "The model was stopped.");
        if self.stopping.load(Relaxed) {
            return Err(stopped());
        }
        embedder.inbox.try_send(job).map_err(|_| stopped())?;
        self.thread.unpark();
        let numbers = answer.await.unwrap_or_else(|_| {
            Err(if self.stopping.load(Relaxed) {
                stopped()
            } else {
                Failure::internal("the engine thread ended")
            })
        })?;
        let usage = Usage {
            prompt_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            ..Usage::default()
        };
        Ok((numbers, usage))
    }
}

impl Shared {
    /// The tokens of an input as an embedding model was trained on them.
    fn embeddable(&self, input: &Input, place: &str, limits: &Limits) -> Result<Vec<u32>, Failure> {
        let tokens = match input {
            Input::Tokens(tokens) => self
                .checked(tokens)
                .map_err(|failure| failure.with_param(place.to_owned()))?,
            Input::Text(text) => {
                self.fits(text.len(), place, limits)?;
                let tokens = self.vocabulary.tokenize_whole(text);
                tokens.map_err(Failure::internal)?
            }
            Input::Chat(_) => {
                return Err(Failure::invalid(
                    place.to_owned(),
                    "A conversation has no embedding.",
                ));
            }
        };
        limits.takes(tokens, place)
    }

    /// Refuses a text that is too long whatever its tokens turn out to be.
    fn fits(&self, bytes: usize, place: &str, limits: &Limits) -> Result<(), Failure> {
        let context = limits.context;
        match self.vocabulary.most_bytes(context) {
            Some(most) if bytes > most => Err(Failure::new(
                Kind::ContextExceeded,
                format!(
                    "{place} has {bytes} bytes; the {context} tokens that this model takes hold at most {most}."
                ),
            )
            .with_param(place.to_owned())),
            _ => Ok(()),
        }
    }

    /// A query and a document as the model was trained to see them together.
    fn pair(&self, query: &str, document: &str, limits: &Limits) -> Result<Vec<u32>, Failure> {
        let Some(template) = &limits.rank_template else {
            let tokens = self.vocabulary.tokenize_pair(query, document);
            return tokens.map_err(Failure::internal);
        };
        let guards = Guards::absent_from(&[query, document]).ok_or_else(|| {
            Failure::invalid(
                "query",
                "The texts contain nearly all Unicode noncharacters.",
            )
        })?;
        let query = self.vocabulary.guard(query, guards);
        let document = self.vocabulary.guard(document, guards);
        let text = filled(template, &query, &document);
        let segments = guards.segments(&text);
        let tokens = self.vocabulary.tokenize_segments(&segments, false);
        tokens.map_err(Failure::internal)
    }
}

impl Limits {
    fn takes(&self, tokens: Vec<u32>, place: &str) -> Result<Vec<u32>, Failure> {
        let (len, context) = (tokens.len(), self.context);
        if tokens.is_empty() {
            return Err(Failure::invalid(
                place.to_owned(),
                format!("{place} has no tokens."),
            ));
        }
        if len > context as usize {
            return Err(Failure::new(
                Kind::ContextExceeded,
                format!("{place} has {len} tokens; this model takes {context}."),
            )
            .with_param(place.to_owned()));
        }
        Ok(tokens)
    }
}

/// The template with both texts in their places. What they contain is not looked at again.
fn filled(template: &str, query: &str, document: &str) -> String {
    let mut text = String::with_capacity(template.len() + query.len() + document.len());
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        let (before, behind) = rest.split_at(at);
        text.push_str(before);
        rest = if let Some(behind) = behind.strip_prefix("{query}") {
            text.push_str(query);
            behind
        } else if let Some(behind) = behind.strip_prefix("{document}") {
            text.push_str(document);
            behind
        } else {
            text.push('{');
            &behind[1..]
        };
    }
    text.push_str(rest);
    text
}

fn size(input: &Input) -> usize {
    match input {
        Input::Text(text) => text.len(),
        Input::Tokens(_) => 0,
        Input::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
    }
}

/// The refusal of what a model does not do.
fn cannot(reason: &'static str) -> Failure {
    Failure::invalid("model", reason).with_code("unsupported_by_model")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_in_a_template_are_not_read_as_one() {
        let text = filled("<{query}|{document}> {x}", "{document}", "{query}");
        assert_eq!(text, "<{document}|{query}> {x}");
    }
}
