//! A GGUF model in a process of its own, for files that one does not trust.
//!
//! The child is this same program. It runs the ordinary `LlamaEngine` and hands out what its sources
//! tell, over one connection for each choice:
//!
//! ```text
//!  IsolatedEngine (parent)                                      serve (child)
//!  start: socket pairs, passed through the door  ----------->   LlamaEngine::start
//!  IsolatedSource <-- burst frames, a short send buffer <----   one task per choice
//!  drop or cancel: the connection ends           ----------->   its source is dropped
//!  keeper thread  --- ask, stop; gauges --- control -------->   its end ends the child
//! ```
//!
//! A connection that is full stops its task, its ring fills, and the sequence leaves the batch. The
//! child's death ends its connections, and with them its streams. What the child writes is checked
//! before it is believed; one that breaks the protocol is killed.

mod answers;
mod burst;
mod door;
mod frame;
mod keeper;
mod messages;
mod serve;
mod source;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use self::frame::{Body, Inbox, Malformed};
use self::keeper::{Link, Start};
use self::messages::{CallRef, Hello, Told};
use self::source::IsolatedSource;
use super::config::{Adapter, Process, Settings};
use super::llama::LoadError;
use super::{AdapterCard, Card, Engine, EngineView, Gauges, Loading, Started, TokenizeOptions};
use crate::generation::{
    BoxFuture, EmbedRequest, Failure, Input, Kind, Request, RerankRequest, Scores, Source, Usage,
    Vectors, clock,
};
use crate::telemetry::ModelMetrics;

pub use self::serve::serve;

/// The arguments that make the program such a child; the model's name follows, for people to read.
pub const ARGUMENTS: [&str; 2] = ["check-model", "--serve"];

/// Longest frame of an answer that is no stream: 2,048 vectors of 16,384 numbers.
const ANSWER: usize = 128 << 20;

/// How long a call may wait for a child that is behind with taking calls.
const BEHIND: Duration = Duration::from_secs(1);

/// Why the process in which a model was to run did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// Nobody has said which program to start.
    #[error(
        "isolation = \"process\" needs to know the program to start, which this process does not"
    )]
    NoProgram,
    /// It could not be started.
    #[error("the model's own process could not be started")]
    Start(#[source] io::Error),
    /// It could not load the model, and said why.
    #[error("{0}")]
    Refused(String),
    /// It ended.
    #[error("the model's own process ended with {how}{}{last_words}", if .last_words.is_empty() { "" } else { ": " })]
    Ended {
        /// A signal or an exit status, in words.
        how: String,
        /// The end of what it wrote.
        last_words: String,
    },
    /// It took too long.
    #[error("loading it in its own process took longer than {}", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// Nobody wants to know any more.
    #[error("loading was stopped")]
    Stopped,
}

/// When this process's clock (`generation::clock`) was zero, in microseconds of the system's monotonic
/// clock, which all processes share.
fn clock_zero() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    micros.saturating_sub_unsigned(clock::micros())
}

/// A model that runs in a process of its own.
pub struct IsolatedEngine {
    card: Card,
    adapters: Vec<AdapterCard>,
    link: Arc<Link>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl IsolatedEngine {
    /// Starts the process and waits until the model is loaded there. Blocks for as long as that takes.
    ///
    /// # Errors
    /// What the child says is wrong with the file, or how it ended.
    pub fn load(
        name: &str,
        path: &Path,
        settings: &Settings,
        process: &Process,
        ring: usize,
        _metrics: &Arc<ModelMetrics>,
        loading: &Arc<Loading>,
    ) -> Result<Arc<Self>, LoadError> {
        let program = process.program.as_deref().ok_or(ChildError::NoProgram)?;
        let (link, loaded, keeper) = keeper::start(Start {
            program,
            hello: Hello::new(name, path.to_owned(), settings, process, ring),
            timeout: process.canary_timeout,
            loading: loading.clone(),
        })
        .map_err(|error| match error {
            ChildError::Stopped => LoadError::Stopped,
            error => error.into(),
        })?;
        let card = loaded.card(name);
        tracing::info!(
            model = name,
            context = card.context,
            "model loaded in its own process"
        );
        Ok(Arc::new(Self {
            card,
            adapters: loaded.adapters,
            link,
            keeper: Mutex::new(Some(keeper)),
        }))
    }

    async fn generate(&self, request: &Request) -> Result<Started, Failure> {
        let choices = request.choices();
        if choices > door::MOST {
            let message = format!(
                "A model in its own process serves at most {} choices at once; this request is for \
                 {choices}.",
                door::MOST
            );
            return Err(Failure::invalid("n", message));
        }
        let mut streams = self.call(&CallRef::generate(request), choices).await?;
        let mut inbox = Inbox::new(burst::MOST);
        let first = streams.first_mut().ok_or_else(no_choice)?;
        let kind = self.answer(first, &mut inbox, frame::Kind::Started);
        let usage: Usage = kind.await.and_then(|body| {
            serde_json::from_slice(body)
                .map_err(|_| self.link.condemn(Malformed("a start that cannot be read")))
        })?;
        inbox.skip();
        let mut sources: Vec<Box<dyn Source>> = Vec::with_capacity(streams.len());
        for (choice, stream) in (0..).zip(streams) {
            // The first connection may have brought more than the start.
            let inbox = std::mem::replace(&mut inbox, Inbox::new(burst::MOST));
            let tokens = usage.prompt_tokens;
            let link = self.link.clone();
            sources.push(Box::new(IsolatedSource::new(
                link, stream, inbox, choice, tokens,
            )));
        }
        Ok(Started {
            usage: Usage {
                prompt_tokens: usage.prompt_tokens,
                ..Usage::default()
            },
            sources,
        })
    }

    /// Asks something and reads the one frame that answers it.
    async fn ask<T>(
        &self,
        call: &CallRef<'_>,
        kind: frame::Kind,
        read: impl FnOnce(Body<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Failure> {
        let mut streams = self.call(call, 1).await?;
        let mut inbox = Inbox::new(ANSWER);
        let stream = streams.first_mut().ok_or_else(no_choice)?;
        let body = self.answer(stream, &mut inbox, kind).await?;
        read(Body(body)).map_err(|malformed| self.link.condemn(malformed))
    }

    /// Opens `connections` and writes the call to the first of them.
    async fn call(
        &self,
        call: &CallRef<'_>,
        connections: usize,
    ) -> Result<Vec<UnixStream>, Failure> {
        let call = frame::json(frame::Kind::Call, call).map_err(Failure::internal)?;
        let mut streams = Vec::with_capacity(connections);
        let mut theirs = Vec::with_capacity(connections);
        for _ in 0..connections {
            let (ours, their) = door::connection().map_err(Failure::internal)?;
            streams.push(UnixStream::from_std(ours).map_err(Failure::internal)?);
            theirs.push(their);
        }
        let begun = Instant::now();
        while let Err(error) = self.link.pass(&theirs) {
            match error.kind() {
                io::ErrorKind::WouldBlock if begun.elapsed() < BEHIND => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                io::ErrorKind::WouldBlock => {
                    return Err(Failure::new(
                        Kind::Overloaded,
                        "The model's process is behind with taking requests.",
                    )
                    .with_code("queue_full")
                    .with_retry_after(BEHIND));
                }
                _ => return Err(self.link.gone(&error)),
            }
        }
        drop(theirs);
        let first = streams.first_mut().ok_or_else(no_choice)?;
        let written = tokio::io::AsyncWriteExt::write_all(first, &call).await;
        written.map_err(|error| self.link.gone(&error))?;
        Ok(streams)
    }

    /// Waits for a frame of this kind, or the failure that comes instead. The frame stays in the inbox.
    async fn answer<'a>(
        &self,
        stream: &mut UnixStream,
        inbox: &'a mut Inbox,
        wanted: frame::Kind,
    ) -> Result<&'a [u8], Failure> {
        let condemn = |malformed| self.link.condemn(malformed);
        while inbox.peek().map_err(condemn)?.is_none() {
            read_some(stream, inbox)
                .await
                .map_err(|error| self.link.gone(&error))?;
        }
        match inbox.peek().map_err(condemn)? {
            Some((kind, body)) if kind == wanted => Ok(body),
            Some((frame::Kind::Failed, body)) => {
                Err(Told::from_json(body).map_err(condemn)?.into_failure())
            }
            _ => Err(condemn(Malformed("another answer than was asked for"))),
        }
    }
}

/// Waits for more bytes.
async fn read_some(stream: &UnixStream, inbox: &mut Inbox) -> io::Result<()> {
    loop {
        stream.readable().await?;
        match inbox.fill(|space| stream.try_read(space)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn no_choice() -> Failure {
    Failure::internal("a request without a choice")
}

impl Engine for IsolatedEngine {
    fn card(&self) -> &Card {
        &self.card
    }

    fn start<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Result<Started, Failure>> {
        Box::pin(self.generate(request))
    }

    fn tokenize<'a>(
        &'a self,
        input: &'a Input,
        options: TokenizeOptions,
    ) -> BoxFuture<'a, Result<Vec<u32>, Failure>> {
        Box::pin(async move {
            let call = CallRef::tokenize(input, options);
            self.ask(&call, frame::Kind::Tokens, answers::tokens).await
        })
    }

    fn pieces<'a>(&'a self, tokens: &'a [u32]) -> BoxFuture<'a, Result<Vec<Vec<u8>>, Failure>> {
        Box::pin(async move {
            let call = CallRef::Pieces(tokens);
            let read = |body: Body<'_>| answers::pieces(body, tokens.len());
            self.ask(&call, frame::Kind::Pieces, read).await
        })
    }

    fn adapters(&self) -> Vec<AdapterCard> {
        self.adapters.clone()
    }

    fn add_adapter(&self, _: Adapter) -> BoxFuture<'_, Result<AdapterCard, Failure>> {
        Box::pin(std::future::ready(Err(fixed_adapters())))
    }

    fn remove_adapter(&self, _: &str) -> Result<AdapterCard, Failure> {
        Err(fixed_adapters())
    }

    fn embed<'a>(&'a self, request: &'a EmbedRequest) -> BoxFuture<'a, Result<Vectors, Failure>> {
        Box::pin(async move {
            let call = CallRef::Embed(request);
            let read = |body: Body<'_>| answers::numbers(body, request.inputs.len());
            let (usage, width, numbers) = self.ask(&call, frame::Kind::Numbers, read).await?;
            // What the child has cut and scaled is neither cut nor scaled again, but it is looked at.
            if numbers.iter().any(|number| !number.is_finite()) {
                return Err(Failure::internal("the model computed no finite vector"));
            }
            Ok(Vectors {
                numbers,
                width,
                usage,
            })
        })
    }

    fn rerank<'a>(&'a self, request: &'a RerankRequest) -> BoxFuture<'a, Result<Scores, Failure>> {
        Box::pin(async move {
            let call = CallRef::Rerank(request);
            let read = |body: Body<'_>| answers::numbers(body, request.documents.len());
            let (usage, width, scores) = self.ask(&call, frame::Kind::Numbers, read).await?;
            if width != 1 {
                return Err(self
                    .link
                    .condemn(Malformed("more than one score of a document")));
            }
            Scores::finish(scores, usage)
        })
    }

    fn is_alive(&self) -> bool {
        self.link.is_alive()
    }

    fn gauges(&self) -> Gauges {
        self.link.gauges()
    }

    fn inspect(&self) -> BoxFuture<'_, Result<EngineView, Failure>> {
        Box::pin(async move {
            self.ask(&CallRef::Inspect, frame::Kind::View, answers::view)
                .await
        })
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.link.stop();
        let keeper = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        Box::pin(async move {
            if let Some(keeper) = keeper {
                // It ends soon after the child, which is killed if it does not end.
                let _ = tokio::task::spawn_blocking(move || keeper.join()).await;
            }
        })
    }
}

impl Drop for IsolatedEngine {
    /// The keeper sees the child to its end.
    fn drop(&mut self) {
        self.link.stop();
    }
}

fn fixed_adapters() -> Failure {
    Failure::invalid(
        "name",
        "This model runs in its own process; its adapters are those of the configuration.",
    )
    .with_code("unsupported_by_model")
}
