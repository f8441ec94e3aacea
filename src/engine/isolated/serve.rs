//! The child's side: one engine, whose sources are read out over connections.

use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::frame::{self, Inbox, Kind};
use super::messages::{Call, Hello, Loaded, Moving, Told, whole};
use super::{answers, burst, clock_zero, door, read_some};
use crate::engine::llama::{LlamaEngine, LoadError, Weights};
use crate::engine::{Engine, Loading, TokenizeOptions};
use crate::generation::{Burst, Cancel, Failure, Source, Usage, chain};
use crate::telemetry::{Metrics, MetricsConfig, Scrape, Upkeep};

/// Longest frame from the parent, which is believed: a body of the largest size that a server takes,
/// with every byte of it escaped.
const MOST: usize = u32::MAX as usize;

/// Between two words about how far the loading is.
const PROGRESS: Duration = Duration::from_millis(250);

/// Between two looks at a place in line.
const LOOK: Duration = Duration::from_millis(250);

/// How long streams have for their last words.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Open files at once: two connections for each of many streams, and the model's own. A child that was
/// taken over gets no more.
const OPEN_FILES: u64 = 8192;

/// Is the child: serves one model to the parent on standard input and output, until that ends.
///
/// # Errors
/// The connections to the parent cannot be used.
pub fn serve() -> io::Result<ExitCode> {
    crate::engine::child::settle();
    limit_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(run());
    // A load that nobody waits for is not waited for here either.
    runtime.shutdown_background();
    result
}

fn limit_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum;
    let files = Some(hard.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES)));
    let limit = Rlimit {
        current: files,
        maximum: files,
    };
    // A precaution: without it the parent's limit holds.
    let _ = setrlimit(Resource::Nofile, limit);
}

async fn run() -> io::Result<ExitCode> {
    // A signal to all processes is for the parent: it lets streams finish and then ends this one, or reads
    // its configuration again, or turns its detail.
    let _ignored = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ]
    .map(signal);
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let control = std::os::unix::net::UnixStream::from(control);
    control.set_nonblocking(true)?;
    let mut control = UnixStream::from_std(control)?;
    let door = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let door = std::os::unix::net::UnixStream::from(door);
    door.set_nonblocking(true)?;
    let door = UnixStream::from_std(door)?;

    let mut inbox = Inbox::new(MOST);
    let hello: Hello = loop {
        match inbox.peek().map_err(io::Error::other)? {
            Some((Kind::Hello, body)) => break serde_json::from_slice(body)?,
            Some(_) => return Err(io::Error::other("the parent did not say hello")),
            None => read_some(&control, &mut inbox).await?,
        }
    };
    inbox.skip();
    // Added to a time of this process's clock, it makes one of the parent's.
    let shift = clock_zero().saturating_sub(hello.clock_zero);

    let metrics = Metrics::new([hello.name.as_str()]).map_err(io::Error::other)?;
    let metrics = Arc::new(metrics);
    // Nobody asks for pages here; samples have to be folded into buckets all the same.
    let (_upkeep, _) = Upkeep::start(metrics.clone(), &MetricsConfig::default(), Scrape::default)?;
    let Some(loaded) = load(&mut control, &mut inbox, hello, &metrics).await? else {
        return Ok(ExitCode::SUCCESS);
    };
    let engine = match loaded {
        Ok(engine) => engine,
        Err(error) => {
            let refused = frame::frame(Kind::Refused, chain(&error).as_bytes())?;
            control.write_all(&refused).await?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let ready = Loaded::of(engine.card(), engine.adapters());
    control
        .write_all(&frame::json(Kind::Loaded, &ready)?)
        .await?;

    let tasks = TaskTracker::new();
    let result = answer(&mut control, &mut inbox, &door, &engine, &tasks, shift).await;
    engine.stop().await;
    tasks.close();
    let _ = tokio::time::timeout(LAST_WORDS, tasks.wait()).await;
    result
}

/// Loads the model, telling the parent how far it is; `None` if it is not wanted any more.
async fn load(
    control: &mut UnixStream,
    inbox: &mut Inbox,
    hello: Hello,
    metrics: &Metrics,
) -> io::Result<Option<Result<Arc<LlamaEngine>, LoadError>>> {
    let loading = Arc::new(Loading::default());
    let metrics = metrics.model(&hello.name).clone();
    let noted = loading.clone();
    let mut work = tokio::task::spawn_blocking(move || {
        let weights = Weights::File(hello.path.clone());
        let (settings, process) = (hello.settings(), hello.process());
        let (name, ring) = (&hello.name, hello.ring);
        LlamaEngine::load(name, &weights, &settings, &process, ring, &metrics, &noted)
    });
    loop {
        tokio::select! {
            loaded = &mut work => return Ok(Some(loaded.map_err(io::Error::other)?)),
            read = read_some(control, inbox) => {
                // Whether it says stop or has gone: there is nothing else to say now.
                loading.stop();
                return read.map(|()| None);
            }
            () = tokio::time::sleep(PROGRESS) => {
                let progress = frame::frame(Kind::Progress, &[loading.percent()])?;
                control.write_all(&progress).await?;
            }
        }
    }
}

/// Answers until the parent ends it, or the engine ends.
async fn answer(
    control: &mut UnixStream,
    inbox: &mut Inbox,
    door: &UnixStream,
    engine: &Arc<LlamaEngine>,
    tasks: &TaskTracker,
    shift: i64,
) -> io::Result<ExitCode> {
    loop {
        while let Some((kind, _)) = inbox.peek().map_err(io::Error::other)? {
            inbox.skip();
            match kind {
                Kind::Ask if !engine.is_alive() => return Ok(ExitCode::FAILURE),
                Kind::Ask => {
                    let gauges = frame::json(Kind::Gauges, &Moving::of(&engine.gauges()))?;
                    control.write_all(&gauges).await?;
                }
                Kind::Stop => return Ok(ExitCode::SUCCESS),
                _ => return Err(io::Error::other("the parent asks for what there is not")),
            }
        }
        tokio::select! {
            read = read_some(control, inbox) => read?,
            connections = next(door) => {
                let mut streams = Vec::new();
                for connection in connections? {
                    let connection = std::os::unix::net::UnixStream::from(connection);
                    streams.push(UnixStream::from_std(connection)?);
                }
                if streams.is_empty() {
                    // The parent has gone.
                    return Ok(ExitCode::SUCCESS);
                }
                let (engine, more) = (engine.clone(), tasks.clone());
                tasks.spawn(async move {
                    // What goes wrong with a connection is the parent's having gone from it.
                    let _ = call(&engine, streams, &more, shift).await;
                });
            }
        }
    }
}

/// The connections of the next call.
async fn next(door: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    door.async_io(Interest::READABLE, || door::take(door)).await
}

/// Answers one call.
async fn call(
    engine: &LlamaEngine,
    mut streams: Vec<UnixStream>,
    tasks: &TaskTracker,
    shift: i64,
) -> io::Result<()> {
    let mut inbox = Inbox::new(MOST);
    let first = streams.first_mut().ok_or(io::ErrorKind::InvalidInput)?;
    let call: Call = loop {
        match inbox.peek().map_err(io::Error::other)? {
            Some((Kind::Call, body)) => break serde_json::from_slice(body)?,
            Some(_) => return Err(io::Error::other("a connection that does not call")),
            None => read_some(first, &mut inbox).await?,
        }
    };
    drop(inbox);
    let Some(answer) = while_open(first, perform(engine, call)).await else {
        return Ok(());
    };
    match answer {
        Err(failure) => {
            let failed = frame::frame(Kind::Failed, &Told::of(&failure).to_json())?;
            first.write_all(&failed).await
        }
        Ok(Answer::Frame(frame)) => first.write_all(&frame).await,
        Ok(Answer::Started(usage, sources)) => {
            first
                .write_all(&frame::json(Kind::Started, &usage)?)
                .await?;
            for (source, stream) in sources.into_iter().zip(streams) {
                tasks.spawn(async move {
                    let _ = pump(source, stream, shift).await;
                });
            }
            Ok(())
        }
    }
}

enum Answer {
    Frame(Vec<u8>),
    Started(Usage, Vec<Box<dyn Source>>),
}

async fn perform(engine: &LlamaEngine, call: Call) -> Result<Answer, Failure> {
    let mut frame = Vec::new();
    let written = match call {
        Call::Generate {
            request,
            constraint,
        } => {
            let started = engine.start(&whole(*request, constraint)).await?;
            return Ok(Answer::Started(started.usage, started.sources));
        }
        Call::Tokenize {
            input,
            add_special,
            parse_special,
        } => {
            let options = TokenizeOptions {
                add_special,
                parse_special,
            };
            let tokens = engine.tokenize(&input, options).await?;
            frame::put(&mut frame, Kind::Tokens, |out| {
                answers::put_tokens(out, &tokens);
            })
        }
        Call::Pieces(tokens) => {
            let pieces = engine.pieces(&tokens).await?;
            frame::put(&mut frame, Kind::Pieces, |out| {
                answers::put_pieces(out, &pieces);
            })
        }
        Call::Embed(request) => {
            let vectors = engine.embed(&request).await?;
            frame::put(&mut frame, Kind::Numbers, |out| {
                answers::put_numbers(out, vectors.usage, vectors.width, &vectors.numbers);
            })
        }
        Call::Rerank(request) => {
            let scores = engine.rerank(&request).await?;
            frame::put(&mut frame, Kind::Numbers, |out| {
                answers::put_numbers(out, scores.usage, 1, &scores.scores);
            })
        }
        Call::Inspect => {
            let view = engine.inspect().await?;
            let view = serde_json::to_vec(&view).map_err(Failure::internal)?;
            frame::put(&mut frame, Kind::View, |out| out.extend_from_slice(&view))
        }
    };
    written.map_err(Failure::internal)?;
    Ok(Answer::Frame(frame))
}

/// Writes out one choice, as fast as its connection takes it.
async fn pump(mut source: Box<dyn Source>, mut stream: UnixStream, shift: i64) -> io::Result<()> {
    let mut burst = Burst::with_limit(burst::TOKENS);
    let mut out = Vec::new();
    let mut moments = Moments::of(&*source, shift);
    if !wait(&mut source, &mut burst, &mut stream, &mut moments).await? {
        return Ok(());
    }
    loop {
        out.clear();
        moments.tell(&mut out)?;
        if burst.tokens() > 0 || !burst.is_empty() {
            frame::put(&mut out, Kind::Burst, |out| {
                burst::encode(&burst, shift, out);
            })?;
        }
        if !out.is_empty() {
            // A connection that ends breaks the write off, too.
            stream.write_all(&out).await?;
        }
        if has_ended(&burst) {
            return Ok(());
        }
        burst.clear();
        let filled = std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst));
        if while_open(&stream, filled).await.is_none() {
            return Ok(());
        }
    }
}

/// What happens to a choice beside its tokens, as far as the parent was told.
struct Moments {
    handle: Arc<dyn Cancel>,
    seen: u32,
    shift: i64,
}

impl Moments {
    fn of(source: &dyn Source, shift: i64) -> Self {
        Self {
            handle: source.canceller(),
            seen: 0,
            shift,
        }
    }

    /// Appends a frame of what is new, if anything is.
    fn tell(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let from = out.len();
        frame::put(out, Kind::Moments, |out| {
            let happened = self.handle.moments(self.seen, &mut |at, moment| {
                answers::put_moment(out, at, moment, self.shift);
            });
            self.seen = happened.moments;
        })?;
        if out.len() == from + frame::HEADER {
            out.truncate(from);
        }
        Ok(())
    }
}

/// Waits for the first burst, and tells meanwhile where in line the choice stands; false if the parent
/// has gone.
async fn wait(
    source: &mut Box<dyn Source>,
    burst: &mut Burst,
    stream: &mut UnixStream,
    moments: &mut Moments,
) -> io::Result<bool> {
    let mut told = None;
    loop {
        let filled = std::future::poll_fn(|cx| source.poll_fill(cx, burst));
        match while_open(stream, tokio::time::timeout(LOOK, filled)).await {
            None => return Ok(false),
            Some(Ok(())) => return Ok(true),
            Some(Err(_)) => {}
        }
        let queued = source.queued();
        let mut out = Vec::new();
        moments.tell(&mut out)?;
        if queued != told {
            frame::put(&mut out, Kind::Queued, |out| {
                answers::put_queued(out, queued);
            })?;
            told = queued;
        }
        stream.write_all(&out).await?;
    }
}

fn has_ended(burst: &Burst) -> bool {
    use crate::generation::Event;
    let ends = |event| matches!(event, Event::Finish { .. } | Event::Failed(_));
    burst.events().any(ends)
}

/// Works for as long as the parent keeps the connection; it writes nothing more on it.
async fn while_open<T>(stream: &UnixStream, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = closed(stream) => None,
    }
}

/// Waits for the parent's end of a connection. It has nothing more to say on it, so that whatever comes
/// is that.
async fn closed(stream: &UnixStream) {
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keeper::Link;
    use super::super::source::IsolatedSource;
    use super::*;
    use crate::engine::config::Script;
    use crate::engine::scripted::ScriptedEngine;
    use crate::generation::{Input, Moment, Request, clock};

    fn moments(handle: &dyn Cancel) -> Vec<(u64, Moment)> {
        let mut told = Vec::new();
        handle.moments(0, &mut |at, moment| told.push((at, moment)));
        told
    }

    /// What both sides have of one choice: tokens' times and lengths, and moments.
    #[tokio::test]
    async fn tokens_and_moments_arrive_with_their_times_and_lengths() {
        let engine = ScriptedEngine::new("scripted", Script::default(), 8);
        let asked = Request {
            model: "scripted?tokens=20&pace=100us&size=300".into(),
            ..Request::new(Input::Text("x".into()))
        };
        let source = engine.start(&asked).await.unwrap().sources.remove(0);
        let there = source.canceller();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pumped = tokio::spawn(pump(source, theirs, 0));
        let inbox = Inbox::new(burst::MOST);
        let mut source = IsolatedSource::new(Link::to_nobody(), ours, inbox, 5, 1);
        let here = source.canceller();
        let (mut burst, mut times) = (Burst::new(), Vec::new());
        while !has_ended(&burst) {
            burst.clear();
            std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
            times.extend_from_slice(burst.times());
        }
        pumped.await.unwrap().unwrap();
        assert_eq!(times.len(), 20);
        assert!(
            times
                .iter()
                .all(|token| (token.choice, token.bytes) == (5, 255))
        );
        assert!(times.is_sorted_by_key(|token| token.at));
        let told = moments(&*here);
        assert_eq!(told, moments(&*there));
        assert_eq!(
            (told[0].1, told[1].1),
            (Moment::Admitted, Moment::Prefilled)
        );
        assert!(told[1].0 <= times[0].at && times[19].at <= clock::micros());
    }

    #[tokio::test]
    async fn nothing_is_told_twice() {
        let engine = ScriptedEngine::new("scripted", Script::default(), 8);
        let asked = Request::new(Input::Text("x".into()));
        let source = engine.start(&asked).await.unwrap().sources.remove(0);
        let mut moments = Moments::of(&*source, 0);
        let mut out = Vec::new();
        moments.tell(&mut out).unwrap();
        assert_eq!(out.len(), frame::HEADER + 9, "it was admitted");
        moments.tell(&mut out).unwrap();
        assert_eq!(out.len(), frame::HEADER + 9);
    }
}
