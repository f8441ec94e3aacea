//! Log lines to standard error, without ever waiting for whoever reads it.
//!
//! A blocked pipe or a full disk must not stall a stream. So lines go through a bounded queue to a
//! thread of their own; when the queue is full a line is dropped and counted.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::Subscriber;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{Registry, fmt, reload};

use super::PROCESS;
use super::config::{Config, Filter, Format};
use super::trace::process_layer;

/// Lines that may wait to be written: about two megabytes, or a second of heavy logging.
const QUEUE: usize = 4096;

/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The log of this process. Dropping it writes what is queued, for at most a second.
pub struct Logs {
    writer: LineWriter,
    control: LogControl,
}

/// The thread that writes lines. Dropping it writes what is queued, for at most a second.
struct LineWriter {
    queue: Arc<Queue>,
    finished: Receiver<()>,
}

/// Changes which events are logged, while the process runs.
#[derive(Clone)]
pub struct LogControl {
    filter: Arc<Mutex<Filter>>,
    handle: reload::Handle<EnvFilter, Registry>,
}

impl LogControl {
    /// Logs what this filter lets through from now on.
    pub fn set(&self, filter: &Filter) {
        // Held over both, so that two callers at once leave what they say they leave.
        let mut current = self.filter.lock().unwrap_or_else(PoisonError::into_inner);
        // It fails only where the log is gone, and then nothing is logged anyway.
        if self.handle.reload(filter.env_filter()).is_ok() {
            current.clone_from(filter);
        }
    }

    /// The filter of now.
    #[must_use]
    pub fn current(&self) -> Filter {
        let current = self.filter.lock();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No thread to write with.
    #[error("cannot start the log thread")]
    Thread(#[from] io::Error),
    /// A log was set up before.
    #[error("a log is already set up in this process")]
    Second(#[from] tracing::subscriber::SetGlobalDefaultError),
}

impl Logs {
    /// Makes `config` the log of this process, on standard error.
    ///
    /// # Errors
    /// The thread cannot be started, or a log is already set up.
    pub fn install(config: &Config) -> Result<Self, LogError> {
        let terminal = io::stderr().is_terminal();
        let (writer, lines) = LineWriter::start(io::stderr())?;
        let (subscriber, control) = subscriber(config, terminal, lines);
        tracing::subscriber::set_global_default(subscriber)?;
        Ok(Self { writer, control })
    }

    /// What changes the filter.
    #[must_use]
    pub fn handle(&self) -> LogControl {
        self.control.clone()
    }

    /// A reader of the number of lines dropped so far, for whoever exports it.
    pub fn dropped(&self) -> impl Fn() -> u64 + Clone + Send + Sync + 'static {
        let queue = self.writer.queue.clone();
        move || queue.dropped.load(Ordering::Relaxed)
    }
}

impl LineWriter {
    fn start(out: impl Write + Send + 'static) -> io::Result<(Self, Lines)> {
        let (sender, receiver) = sync_channel(QUEUE);
        let (finish, finished) = sync_channel(1);
        let queue = Arc::new(Queue {
            sender,
            closing: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        });
        let lines = Lines(queue.clone());
        let shared = queue.clone();
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                write_lines(&receiver, &shared, out);
                // Nobody waits for it any more if this fails.
                let _ = finish.try_send(());
            })?;
        Ok((Self { queue, finished }, lines))
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.queue.closing.store(true, Ordering::Release);
        // Wakes the thread if it sleeps. If the queue is full it is awake, and sees the flag.
        let _ = self.queue.sender.try_send(Vec::new());
        // The thread may hang in a write for ever; the process must not.
        let _ = self.finished.recv_timeout(LAST_LINES);
    }
}

struct Queue {
    sender: SyncSender<Vec<u8>>,
    closing: AtomicBool,
    dropped: AtomicU64,
}

fn write_lines(lines: &Receiver<Vec<u8>>, queue: &Queue, mut out: impl Write) {
    loop {
        let line = if queue.closing.load(Ordering::Acquire) {
            lines.try_recv().ok()
        } else {
            lines.recv().ok()
        };
        let Some(line) = line else { break };
        if out.write_all(&line).is_err() {
            queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
    // Where that fails there is nobody left to tell.
    let _ = out.flush();
}

/// Hands each line to the log's thread.
#[derive(Clone)]
struct Lines(Arc<Queue>);

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Write for Lines {
    // The formatter writes a line whole, in one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.sender.try_send(line.to_vec()).is_err() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The formatter and filter of `config`, writing to `writer`, and what changes the filter.
pub(super) fn subscriber<W>(
    config: &Config,
    terminal: bool,
    writer: W,
) -> (Box<dyn Subscriber + Send + Sync>, LogControl)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(config.log.env_filter());
    // A line says what it has to say by itself: it is not within a span.
    let no_spans = filter_fn(|metadata| !metadata.is_span() || metadata.target() != PROCESS);
    let lines = lines(config, terminal, writer).with_filter(filter.and(no_spans));
    let control = LogControl {
        filter: Arc::new(Mutex::new(config.log.clone())),
        handle,
    };
    let spans = config.otlp_endpoint.is_some().then(process_layer);
    // Beside the filter, never inside of it: it must be found by the spans that are made (and the
    // filter is for lines only).
    let subscriber = Registry::default().with(lines).with(spans);
    (Box::new(subscriber), control)
}

fn lines<W>(config: &Config, terminal: bool, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let json = match config.format {
        Format::Json => true,
        Format::Text => false,
        Format::Auto => !terminal,
    };
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let layer = fmt::layer()
        .with_writer(writer)
        .with_ansi(terminal && !plain);
    if json {
        let layer = layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false);
        Box::new(layer)
    } else {
        Box::new(layer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// A pipe whose reader can be stopped.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<State>, Condvar)>);

    #[derive(Default)]
    struct State {
        blocked: bool,
        text: Vec<u8>,
    }

    impl Pipe {
        fn block(&self, blocked: bool) {
            self.0.0.lock().unwrap().blocked = blocked;
            self.0.1.notify_all();
        }

        fn lines(&self) -> usize {
            let state = self.0.0.lock().unwrap();
            String::from_utf8_lossy(&state.text).lines().count()
        }
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (lock, changed) = &*self.0;
            let mut state = changed
                .wait_while(lock.lock().unwrap(), |state| state.blocked)
                .unwrap();
            state.text.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_lines_are_written_before_the_end() {
        let pipe = Pipe::default();
        let (logs, lines) = LineWriter::start(pipe.clone()).unwrap();
        let (subscriber, _) = subscriber(&Config::default(), false, lines);
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..1000 {
                tracing::info!(number, "line");
            }
        });
        drop(logs);
        assert_eq!(pipe.lines(), 1000);
    }

    #[test]
    fn a_blocked_pipe_costs_lines_and_never_a_wait() {
        let pipe = Pipe::default();
        pipe.block(true);
        let (logs, mut lines) = LineWriter::start(pipe.clone()).unwrap();
        let sent = QUEUE + 100;
        for _ in 0..sent {
            lines.write_all(b"line\n").unwrap();
        }
        // One line may be in the thread's hands, beside those in the queue.
        let dropped = logs.queue.dropped.load(Ordering::Relaxed);
        assert!((99..=100).contains(&dropped), "{dropped}");
        pipe.block(false);
        drop(logs);
        assert_eq!(pipe.lines() as u64 + dropped, sent as u64);
    }

    #[test]
    fn the_end_does_not_wait_for_ever() {
        let pipe = Pipe::default();
        pipe.block(true);
        let (logs, mut lines) = LineWriter::start(pipe.clone()).unwrap();
        lines.write_all(b"line\n").unwrap();
        drop(logs);
        pipe.block(false);
    }

    #[test]
    fn the_filter_decides() {
        let pipe = Pipe::default();
        let (logs, lines) = LineWriter::start(pipe.clone()).unwrap();
        let config = Config {
            log: "warn".to_owned().try_into().unwrap(),
            ..Config::default()
        };
        let (subscriber, _) = subscriber(&config, true, lines);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("hidden");
            tracing::warn!("shown");
        });
        drop(logs);
        assert_eq!(pipe.lines(), 1);
    }

    #[test]
    fn the_filter_can_be_changed_while_it_runs() {
        let pipe = Pipe::default();
        let (logs, lines) = LineWriter::start(pipe.clone()).unwrap();
        let (subscriber, control) = subscriber(&Config::default(), false, lines);
        let say = || tracing::debug!("detail");
        tracing::subscriber::with_default(subscriber, || {
            say();
            let detailed = Filter::try_from("debug".to_owned()).unwrap();
            control.set(&detailed);
            assert_eq!(control.current(), detailed);
            say();
            control.set(&Filter::default());
            say();
        });
        drop(logs);
        assert_eq!(pipe.lines(), 1);
        // Nobody logs here any more: it stays as it was.
        control.set(&Filter::try_from("off".to_owned()).unwrap());
        assert_eq!(control.current(), Filter::default());
    }
}
