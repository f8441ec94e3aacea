//! Who reads: somebody who takes everything at once, and somebody who does not keep up.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};

use crate::net::{Connection, Dialer};
use crate::stats::Stats;

/// Streams that are being opened at once, so that the listener's queue holds.
const OPENING: usize = 64;

/// How long opening may take before the run goes on with what is open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// All that there is.
const ALL: usize = usize::MAX;

/// What the streams of a run share.
pub(super) struct Shared {
    /// The figures of those that count.
    pub(super) stats: RefCell<Stats>,
    gap: Option<Duration>,
    /// When tokens came, and how many, if that is wanted.
    pub(super) arrivals: RefCell<Option<Vec<(Instant, u64)>>>,
    /// Streams whose answer has begun.
    pub(super) open: Cell<usize>,
    /// Streams that count and had a token while measuring.
    pub(super) heard: Cell<usize>,
    failed: Cell<usize>,
    changed: Notify,
    /// Streams and connections that may be opened at once.
    pub(super) opening: Semaphore,
}

/// A reader who takes everything at once.
pub(super) async fn keep_up(
    shared: &Shared,
    dialer: &Dialer,
    connection: &Connection,
    body: &[u8],
) {
    let (mut has_begun, mut is_heard) = (false, false);
    let end = async {
        let mut permit = shared.opening.acquire().await.ok();
        let mut timeline = shared.stats.borrow().sent();
        let mut stream = dialer.open(connection, body).await?;
        while let Some(read) = stream.read(ALL).await.map_err(|fault| fault.to_string())? {
            let now = Instant::now();
            {
                let mut stats = shared.stats.borrow_mut();
                stats.bytes += read.bytes as u64;
                stats.read(&mut timeline, now, read.tokens, shared.gap);
                if stats.measuring && read.tokens > 0 && !is_heard {
                    is_heard = true;
                    shared.heard.set(shared.heard.get() + 1);
                }
                if stats.measuring
                    && let Some(arrivals) = shared.arrivals.borrow_mut().as_mut()
                {
                    arrivals.push((now, read.tokens));
                }
            }
            if !has_begun && read.tokens > 0 {
                has_begun = true;
                permit = None;
                shared.opened();
            }
            if read.bytes >= 16 * 1024 {
                // More may be waiting; the other streams come first, or one full pipe would hide them.
                tokio::task::yield_now().await;
            }
        }
        drop(permit);
        Err("the script ended".to_owned())
    };
    let end: Result<(), String> = end.await;
    shared.ended(end, has_begun);
}

/// A reader who does not keep up.
pub(super) async fn lag(
    shared: &Shared,
    dialer: &Dialer,
    connection: &Connection,
    body: &[u8],
    rate: usize,
) {
    let mut has_begun = false;
    let end = async {
        let mut permit = shared.opening.acquire().await.ok();
        let mut stream = dialer.open(connection, body).await?;
        let most = rate.max(1024);
        while let Some(read) = stream.read(most).await.map_err(|fault| fault.to_string())? {
            if !has_begun && read.tokens > 0 {
                has_begun = true;
                permit = None;
                shared.opened();
            }
            match rate {
                0 if has_begun => std::future::pending().await,
                0 => {}
                rate => {
                    #[expect(clippy::cast_precision_loss, reason = "a read is small")]
                    let seconds = read.bytes as f64 / rate as f64;
                    sleep(Duration::from_secs_f64(seconds)).await;
                }
            }
        }
        drop(permit);
        Err("the script ended".to_owned())
    };
    let end: Result<(), String> = end.await;
    shared.ended(end, has_begun);
}

impl Shared {
    /// Nothing has begun yet.
    pub(super) fn new(gap: Option<Duration>, tells_arrivals: bool) -> Self {
        Self {
            stats: RefCell::default(),
            gap,
            arrivals: RefCell::new(tells_arrivals.then(Vec::new)),
            open: Cell::new(0),
            heard: Cell::new(0),
            failed: Cell::new(0),
            changed: Notify::new(),
            opening: Semaphore::new(OPENING),
        }
    }

    /// Waits until so many streams have begun or failed, or too long.
    pub(super) async fn settled(&self, wanted: usize) {
        let all = async {
            while self.open.get() + self.failed.get() < wanted {
                self.changed.notified().await;
            }
        };
        // What has not opened by then is seen in the count of open streams.
        let _ = timeout(OPEN_TIMEOUT, all).await;
    }

    fn opened(&self) {
        self.open.set(self.open.get() + 1);
        self.changed.notify_one();
    }

    fn ended(&self, end: Result<(), String>, had_begun: bool) {
        if let Err(error) = end {
            self.error(error);
        }
        if !had_begun {
            self.failed.set(self.failed.get() + 1);
            self.changed.notify_one();
        }
    }

    /// Counted also before measuring begins: what does not open is not opened again.
    pub(super) fn error(&self, error: String) {
        *self.stats.borrow_mut().errors.entry(error).or_default() += 1;
    }
}
