//! The pages that scrapers read, and the one thread that writes them.
//!
//! Writing a page walks every series. It happens on a thread of its own, of low priority, so that it
//! takes nothing from the threads that carry streams; whoever asks waits without blocking. The same
//! thread does what metrics need every second while nobody asks.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::config::Config;
use super::load::Scrape;
use super::{Metrics, aliases};
use crate::generation::{Failure, Kind};

/// How often [`Metrics::tick`] is due.
const TICK: Duration = Duration::from_secs(1);

/// Who waits for a page at once. Prometheus gives up after 10 s and asks again, so more are no scrapers.
const MOST_WAITING: usize = 64;

/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Of 19, the step by which the thread stands back when others want to run.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Everything, under our names.
    Own,
    /// What llama-server tells, under its names.
    LlamaServer,
    /// What vLLM tells, under its names.
    Vllm,
}

impl Page {
    const ALL: [Self; 3] = [Self::Own, Self::LlamaServer, Self::Vllm];
}

enum Ask {
    Page(Page, oneshot::Sender<Bytes>),
    Stop,
}

/// Where pages are asked for.
#[derive(Clone)]
pub struct Pages {
    asks: SyncSender<Ask>,
    kept: Arc<Kept>,
    has_aliases: bool,
}

/// The last page of each kind, and when it was written.
struct Kept {
    pages: [Mutex<Option<(Instant, Bytes)>>; Page::ALL.len()],
    cache: Duration,
}

impl Kept {
    fn lock(&self, page: Page) -> MutexGuard<'_, Option<(Instant, Bytes)>> {
        let page = self.pages[page as usize].lock();
        page.unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self, page: Page) -> Option<Bytes> {
        let kept = self.lock(page);
        let (at, bytes) = kept.as_ref()?;
        (at.elapsed() < self.cache).then(|| bytes.clone())
    }
}

impl Pages {
    /// A page in Prometheus' text format, no older than the configuration allows.
    ///
    /// # Errors
    /// `NotFound` for another system's names where these are not wanted; `Overloaded` if it takes too
    /// long to write, or too many wait for it.
    pub async fn page(&self, page: Page) -> Result<Bytes, Failure> {
        if page != Page::Own && !self.has_aliases {
            return Err(Failure::new(
                Kind::NotFound,
                "Names of other systems are not served; telemetry.metrics.aliases switches them on.",
            ));
        }
        if let Some(bytes) = self.kept.fresh(page) {
            return Ok(bytes);
        }
        let (answer, answered) = oneshot::channel();
        let asked = self.asks.try_send(Ask::Page(page, answer));
        asked.map_err(|_| behind())?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(bytes)) => Ok(bytes),
            _ => Err(behind()),
        }
    }
}

fn behind() -> Failure {
    Failure::new(Kind::Overloaded, "The metrics are not written in time.")
        .with_code("metrics_late")
        .with_retry_after(TICK)
}

/// The thread; dropping this ends it and waits for it.
pub struct Upkeep {
    asks: SyncSender<Ask>,
    thread: Option<JoinHandle<()>>,
}

impl Upkeep {
    /// Starts the thread. `read` is called on it for every page, and must not wait for an engine.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        metrics: Arc<Metrics>,
        config: &Config,
        read: impl Fn() -> Scrape + Send + 'static,
    ) -> io::Result<(Self, Pages)> {
        if let Ok(runtime) = Handle::try_current() {
            // The first one stays: there is one runtime.
            let _ = metrics.runs_on.set(runtime);
        }
        let (asks, asked) = sync_channel(MOST_WAITING);
        let kept = Arc::new(Kept {
            pages: Default::default(),
            cache: config.cache,
        });
        let writer = Writer {
            metrics,
            kept: kept.clone(),
            read,
        };
        let thread = thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || writer.run(&asked))?;
        let pages = Pages {
            asks: asks.clone(),
            kept,
            has_aliases: config.aliases,
        };
        let upkeep = Self {
            asks,
            thread: Some(thread),
        };
        Ok((upkeep, pages))
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        // It fails only if the thread has ended.
        let _ = self.asks.send(Ask::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics thread panicked");
        }
    }
}

struct Writer<R> {
    metrics: Arc<Metrics>,
    kept: Arc<Kept>,
    read: R,
}

impl<R: Fn() -> Scrape> Writer<R> {
    fn run(&self, asked: &Receiver<Ask>) {
        stand_back();
        let mut due = Instant::now() + TICK;
        loop {
            match asked.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Ask::Page(page, answer)) => {
                    if !self.answer(page, answer, asked) {
                        return;
                    }
                }
                Ok(Ask::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if now >= due {
                self.metrics.tick();
                due = now + TICK;
            }
        }
    }

    /// Answers this one and all who wait by now: a page that is begun later has what they want to see.
    /// Returns whether there is to be another.
    fn answer(&self, page: Page, answer: oneshot::Sender<Bytes>, asked: &Receiver<Ask>) -> bool {
        let mut waiting: [Vec<oneshot::Sender<Bytes>>; Page::ALL.len()] = Default::default();
        waiting[page as usize].push(answer);
        let mut goes_on = true;
        // As many as there can be; whoever comes while these are taken out has time.
        for ask in asked.try_iter().take(MOST_WAITING) {
            match ask {
                Ask::Page(page, answer) => waiting[page as usize].push(answer),
                Ask::Stop => goes_on = false,
            }
        }
        let began = Instant::now();
        let own = self.metrics.render(&(self.read)());
        self.metrics.moving().render_seconds = began.elapsed().as_secs_f64();
        for page in Page::ALL {
            let answers = std::mem::take(&mut waiting[page as usize]);
            if answers.is_empty() {
                continue;
            }
            let bytes = Bytes::from(match page {
                Page::Own => own.clone(),
                Page::LlamaServer => aliases::llama_server(&own),
                Page::Vllm => aliases::vllm(&own),
            });
            *self.kept.lock(page) = Some((began, bytes.clone()));
            for answer in answers {
                // Who has left needs none.
                let _ = answer.send(bytes.clone());
            }
        }
        goes_on
    }
}

/// Lets every other thread go first.
fn stand_back() {
    // Linux has a priority for each thread; elsewhere this would slow down the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "the metrics thread runs at normal priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cache: Duration) -> Config {
        Config {
            cache,
            ..Config::default()
        }
    }

    fn start(
        config: &Config,
        read: impl Fn() -> Scrape + Send + 'static,
    ) -> (Arc<Metrics>, Upkeep, Pages) {
        let metrics = Arc::new(Metrics::new(["m"]).unwrap());
        let (upkeep, pages) = Upkeep::start(metrics.clone(), config, read).unwrap();
        (metrics, upkeep, pages)
    }

    #[test]
    fn the_thread_ends_with_its_handle_and_pages_with_it() {
        let (_, upkeep, pages) = start(&config(Duration::ZERO), Scrape::default);
        drop(upkeep);
        let late = futures(pages.page(Page::Own)).unwrap_err();
        assert_eq!(late.code, Some("metrics_late"));
    }

    #[test]
    fn a_page_is_kept_for_a_while_and_one_without_a_cache_is_always_new() {
        for (cache, expected) in [(Duration::from_mins(1), 1), (Duration::ZERO, 3)] {
            let (written, count) = sync_channel(64);
            let (_, _upkeep, pages) = start(&config(cache), move || {
                written.send(()).unwrap();
                Scrape::default()
            });
            for _ in 0..3 {
                futures(pages.page(Page::Own)).unwrap();
            }
            assert_eq!(count.try_iter().count(), expected);
        }
    }

    #[tokio::test]
    async fn who_asks_while_a_page_is_written_shares_the_next_one() {
        let (written, count) = sync_channel(64);
        let (go, wait) = sync_channel(64);
        let (_, upkeep, pages) = start(&config(Duration::ZERO), move || {
            written.send(()).unwrap();
            wait.recv().unwrap();
            Scrape::default()
        });
        let first = tokio::spawn({
            let pages = pages.clone();
            async move { pages.page(Page::Own).await }
        });
        let begun = tokio::task::spawn_blocking(move || {
            count.recv().unwrap();
            count
        });
        let count = begun.await.unwrap();
        // The first is being written. These come too late for it, and all of them together next.
        let mut others: Vec<_> = (0..20).map(|_| Box::pin(pages.page(Page::Own))).collect();
        for other in &mut others {
            assert!(poll(other).await.is_none());
        }
        go.send(()).unwrap();
        go.send(()).unwrap();
        for other in others {
            other.await.unwrap();
        }
        first.await.unwrap().unwrap();
        assert_eq!(count.try_iter().count(), 1);
        drop(upkeep);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_page_for_ever_and_only_so_many_wait() {
        let (go, wait) = sync_channel::<()>(1);
        let (_, upkeep, pages) = start(&config(Duration::ZERO), move || {
            let _ = wait.recv();
            Scrape::default()
        });
        let mut asking: Vec<_> = (0..4 * MOST_WAITING)
            .map(|_| Box::pin(pages.page(Page::Own)))
            .collect();
        let mut refused = 0;
        for ask in &mut asking {
            match poll(ask).await {
                Some(Err(failure)) => {
                    assert_eq!(failure.kind, Kind::Overloaded);
                    refused += 1;
                }
                Some(Ok(_)) => panic!("nothing was written"),
                None => {}
            }
        }
        // The thread may have emptied the queue once before it began to write.
        assert!(
            (MOST_WAITING..=3 * MOST_WAITING).contains(&refused),
            "{refused}"
        );
        let first = asking.into_iter().next().unwrap();
        assert_eq!(first.await.unwrap_err().kind, Kind::Overloaded);
        drop(go);
        drop(upkeep);
    }

    #[test]
    fn other_systems_names_are_there_where_they_are_wanted() {
        let (_, _upkeep, pages) = start(&Config::default(), Scrape::default);
        let none = futures(pages.page(Page::Vllm)).unwrap_err();
        assert_eq!(none.kind, Kind::NotFound);
        let wanted = Config {
            aliases: true,
            ..Config::default()
        };
        let (_, _upkeep, pages) = start(&wanted, Scrape::default);
        for (page, name) in [
            (Page::Own, "sluicegate_"),
            (Page::LlamaServer, "llamacpp:"),
            (Page::Vllm, "vllm:"),
        ] {
            let text = futures(pages.page(page)).unwrap();
            let text = std::str::from_utf8(&text).unwrap();
            assert!(text.contains(name), "{text}");
            assert!(page == Page::Own || !text.contains("sluicegate_"));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_writer_stands_back() {
        let (told, priority) = sync_channel(64);
        let read = move || {
            told.send(rustix::process::nice(0).unwrap()).unwrap();
            Scrape::default()
        };
        let before = rustix::process::nice(0).unwrap();
        let (_, _upkeep, pages) = start(&Config::default(), read);
        futures(pages.page(Page::Own)).unwrap();
        assert!(priority.recv().unwrap() > before);
        assert_eq!(rustix::process::nice(0).unwrap(), before);
    }

    fn futures<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_time().build().unwrap();
        runtime.block_on(future)
    }

    /// What it has come to by now.
    async fn poll<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        std::future::poll_fn(|cx| match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(value) => std::task::Poll::Ready(Some(value)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
