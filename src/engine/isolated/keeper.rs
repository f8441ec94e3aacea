//! The thread that starts the child, listens to it, and sees it to its end.
//!
//! It starts the child itself, because on Linux a child that is to end with its parent ends with the
//! thread that started it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::frame::{self, Inbox, Kind, Malformed};
use super::messages::{Hello, Loaded, Moving, plain};
use super::{ARGUMENTS, ChildError, door};
use crate::engine::child::{how_it_ended, last_words};
use crate::engine::{Gauges, Loading};
use crate::generation::{Failure, Kind as FailureKind};

/// Between two looks at the gauges.
const LOOK: Duration = Duration::from_millis(250);

/// How long a child may be silent when it is asked for its gauges. Its runtime computes nothing: only
/// a machine in great need, or a child that is not ours any more, keeps it so long.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a child that was told to stop may take before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Longest frame on the control connection: gauges, or a model's card with its adapters.
const CONTROL: usize = 1 << 20;

/// What of the environment reaches the child: where libraries and devices are.
const ENVIRONMENT: [&str; 9] = [
    "CUDA_VISIBLE_DEVICES",
    "DYLD_LIBRARY_PATH",
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    "GGML_VK_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "XDG_DATA_DIRS",
];

/// The way to a child, shared by all who have business with it.
pub(super) struct Link {
    name: Arc<str>,
    control: UnixStream,
    door: UnixStream,
    stopping: AtomicBool,
    /// Nobody is there any more.
    dead: AtomicBool,
    /// Why the child is not to be believed any more.
    condemned: OnceLock<Malformed>,
    gauges: Mutex<Gauges>,
}

impl Link {
    /// A way to nobody.
    #[cfg(test)]
    pub(super) fn to_nobody() -> Arc<Self> {
        let (control, door) = UnixStream::pair().unwrap();
        Arc::new(Self {
            name: "nobody".into(),
            control,
            door,
            stopping: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            condemned: OnceLock::new(),
            gauges: Mutex::default(),
        })
    }

    /// Asks the child to end. The keeper kills it when it takes too long.
    pub(super) fn stop(&self) {
        if !self.stopping.swap(true, SeqCst)
            && let Ok(stop) = frame::frame(Kind::Stop, &[])
        {
            let _ = (&self.control).write_all(&stop);
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.stopping.load(SeqCst) || !self.dead.load(SeqCst)
    }

    pub(super) fn gauges(&self) -> Gauges {
        *self.gauges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes connections to the child.
    pub(super) fn pass(&self, connections: &[OwnedFd]) -> io::Result<()> {
        door::pass(&self.door, connections)
    }

    /// Has a child ended that does not keep to the protocol; what its streams are told.
    pub(super) fn condemn(&self, malformed: Malformed) -> Failure {
        let _ = self.condemned.set(malformed);
        self.dead.store(true, SeqCst);
        // The keeper reads the end of the control connection, and kills.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        Failure::internal(malformed)
    }

    /// What a stream is told whose connection ended early.
    pub(super) fn gone(&self, error: &io::Error) -> Failure {
        if self.stopping.load(SeqCst) {
            return Failure::new(FailureKind::Draining, "The model has been stopped.");
        }
        Failure::internal(format!(
            "the process of model {} is gone: {error}",
            self.name
        ))
    }
}

/// A child to be started.
pub(super) struct Start<'a> {
    pub(super) program: &'a Path,
    pub(super) hello: Hello,
    pub(super) timeout: Duration,
    pub(super) loading: Arc<Loading>,
}

/// Starts a child and its keeper, and waits until the model is loaded. The keeper ends after the child.
pub(super) fn start(
    start: Start<'_>,
) -> Result<(Arc<Link>, Loaded, std::thread::JoinHandle<()>), ChildError> {
    let (control, childs_control) = UnixStream::pair().map_err(ChildError::Start)?;
    let (door, childs_door) = UnixStream::pair().map_err(ChildError::Start)?;
    let mut command = Command::new(start.program);
    command
        .args(ARGUMENTS)
        // For who looks at a list of processes.
        .arg(&start.hello.name)
        .env_clear()
        .envs(
            ENVIRONMENT
                .iter()
                .filter_map(|&key| Some((key, std::env::var_os(key)?))),
        )
        // ggml would start a debugger for its last words.
        .env("GGML_NO_BACKTRACE", "1")
        // Ctrl-C in a terminal is for the parent, which lets streams finish first.
        .process_group(0)
        .stdin(OwnedFd::from(childs_control))
        .stdout(OwnedFd::from(childs_door))
        .stderr(Stdio::piped());
    let link = Arc::new(Link {
        name: start.hello.name.as_str().into(),
        control: control.try_clone().map_err(ChildError::Start)?,
        door,
        stopping: AtomicBool::new(false),
        dead: AtomicBool::new(false),
        condemned: OnceLock::new(),
        gauges: Mutex::default(),
    });
    let hello = frame::json(Kind::Hello, &start.hello).map_err(ChildError::Start)?;
    let (told, loaded) = std::sync::mpsc::sync_channel(1);
    let keeper = Keeper {
        link: link.clone(),
        control,
        inbox: Inbox::new(CONTROL),
        deadline: Instant::now() + start.timeout,
        timeout: start.timeout,
        loading: start.loading,
    };
    let join = std::thread::Builder::new()
        .name(format!("keeper-{}", link.name))
        .spawn(move || keeper.run(command, &hello, &told))
        .map_err(ChildError::Start)?;
    let loaded = loaded.recv().unwrap_or(Err(ChildError::Stopped))?;
    Ok((link, loaded, join))
}

struct Keeper {
    link: Arc<Link>,
    control: UnixStream,
    inbox: Inbox,
    deadline: Instant,
    timeout: Duration,
    loading: Arc<Loading>,
}

/// Why a child is not listened to any more.
enum Over {
    /// It closed its end, or was condemned.
    Ended,
    /// Nobody waits for it.
    Stopped,
    /// It was not loaded in time.
    TimedOut,
    /// It said why it cannot load the model.
    Refused(String),
    /// It writes what it must not.
    Malformed(Malformed),
    /// It does not answer.
    Silent,
}

impl From<Malformed> for Over {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl Keeper {
    fn run(
        mut self,
        mut command: Command,
        hello: &[u8],
        told: &SyncSender<Result<Loaded, ChildError>>,
    ) {
        let spawned = command.spawn();
        // The command holds the child's ends: with them open here, its end would never be read.
        drop(command);
        let spawned = spawned.and_then(|mut child| Ok((last_words(&mut child)?, child)));
        let (words, child) = match spawned {
            Ok(spawned) => spawned,
            Err(error) => {
                let _ = told.send(Err(ChildError::Start(error)));
                return;
            }
        };
        let over = match self.load(hello) {
            Ok(loaded) => {
                let _ = told.send(Ok(loaded));
                let over = self.listen();
                self.link.dead.store(true, SeqCst);
                self.report(&over, &end(child, &words));
                return;
            }
            Err(over) => over,
        };
        let Ended { how, last_words } = end(child, &words);
        let _ = told.send(Err(match over {
            Over::Stopped => ChildError::Stopped,
            Over::TimedOut => ChildError::TimedOut(self.timeout),
            Over::Refused(reason) => ChildError::Refused(reason),
            Over::Malformed(malformed) => ChildError::Refused(malformed.to_string()),
            Over::Ended | Over::Silent => ChildError::Ended { how, last_words },
        }));
    }

    /// Sends the child what it is to be and waits until it is.
    fn load(&mut self, hello: &[u8]) -> Result<Loaded, Over> {
        let _ = self.control.set_write_timeout(Some(self.timeout));
        self.control.write_all(hello).map_err(|_| Over::Ended)?;
        loop {
            match self.inbox.peek()? {
                Some((Kind::Progress, &[percent])) => {
                    self.loading.goes_on(f32::from(percent.min(100)) / 100.0);
                }
                Some((Kind::Loaded, body)) => {
                    let loaded = serde_json::from_slice(body);
                    let loaded = loaded.map_err(|_| Malformed("a card that cannot be read"))?;
                    self.inbox.skip();
                    return Ok(loaded);
                }
                Some((Kind::Refused, body)) => return Err(Over::Refused(plain(body))),
                Some(_) => return Err(Malformed("a frame that was not asked for").into()),
                None => {
                    self.read(LOOK)?;
                    if self.loading.is_stopped() {
                        return Err(Over::Stopped);
                    }
                    if Instant::now() > self.deadline {
                        return Err(Over::TimedOut);
                    }
                    continue;
                }
            }
            self.inbox.skip();
        }
    }

    /// Asks for gauges now and then, until the child's end.
    fn listen(&mut self) -> Over {
        let mut asked: Option<Instant> = None;
        let mut next = Instant::now();
        let mut stopping: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if self.link.stopping.load(SeqCst) && now > *stopping.get_or_insert(now) + GRACE {
                return Over::Stopped;
            }
            match self.inbox.peek() {
                Err(malformed) => return malformed.into(),
                Ok(Some((Kind::Gauges, body))) if asked.take().is_some() => {
                    let Ok(moving) = serde_json::from_slice::<Moving>(body) else {
                        return Malformed("gauges that cannot be read").into();
                    };
                    let current = &self.link.gauges;
                    *current.lock().unwrap_or_else(PoisonError::into_inner) = moving.into_gauges();
                    self.inbox.skip();
                    continue;
                }
                Ok(Some(_)) => return Malformed("a frame that was not asked for").into(),
                Ok(None) => {}
            }
            match asked {
                Some(since) if now > since + SILENCE => return Over::Silent,
                None if now >= next => {
                    let ask = frame::frame(Kind::Ask, &[]);
                    if ask.and_then(|ask| self.control.write_all(&ask)).is_err() {
                        return Over::Ended;
                    }
                    asked = Some(now);
                    next = now + LOOK;
                }
                _ => {}
            }
            let pause = if asked.is_some() { LOOK } else { next - now };
            if let Err(over) = self.read(pause.max(Duration::from_millis(1))) {
                return over;
            }
        }
    }

    /// Reads what comes within a while.
    fn read(&mut self, patience: Duration) -> Result<(), Over> {
        let _ = self.control.set_read_timeout(Some(patience));
        let control = &mut self.control;
        match self.inbox.fill(|space| control.read(space)) {
            Ok(1..) => Ok(()),
            Err(error) if is_nothing_yet(&error) => Ok(()),
            Ok(0) | Err(_) => Err(Over::Ended),
        }
    }

    /// Tells of an end that nobody has asked for.
    fn report(&self, over: &Over, ended: &Ended) {
        let model = &*self.link.name;
        let condemned = self.link.condemned.get().copied();
        let condemned = condemned.or(match over {
            Over::Malformed(malformed) => Some(*malformed),
            _ => None,
        });
        let Ended { how, last_words } = ended;
        if self.link.stopping.load(SeqCst) {
            if matches!(over, Over::Stopped) {
                tracing::warn!(model, "the model's process did not stop and was killed");
            }
        } else if let Some(why) = condemned {
            tracing::error!(model, %why, "the model's process was killed: it is not to be trusted");
        } else if matches!(over, Over::Silent) {
            tracing::error!(model, "the model's process was killed: it did not answer");
        } else {
            tracing::error!(model, how, last_words, "the model's process ended");
        }
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// What became of a child.
struct Ended {
    how: String,
    last_words: String,
}

/// Sees a child to its end: one that closed its connection gets a moment to end as it will, so that how
/// it ended can be told, and then none.
fn end(mut child: Child, words: &Receiver<String>) -> Ended {
    let patience = Instant::now() + Duration::from_millis(500);
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Ok(status),
            Ok(None) if Instant::now() < patience => {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            Ok(None) | Err(_) => {
                let _ = child.kill();
                break child.wait();
            }
        }
    };
    Ended {
        how: status.map_or_else(|error| error.to_string(), how_it_ended),
        // A grandchild could hold its standard error open; it has none, but it is not believed either.
        last_words: words.recv_timeout(LOOK).unwrap_or_default(),
    }
}
