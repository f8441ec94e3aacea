//! A core of its own for each thread of a team.
//!
//! A team on which the kernel puts two threads on one core meets a hundred times a step, and each time one
//! of the two has to wait for the other's time slice; on a busy machine that lasts, because the
//! scheduler sees nothing wrong with it. So each worker gets a core, and the engine thread keeps off
//! the cores of the workers that it calls upon. Alone, it may run anywhere.
//!
//! Only where the cores are ours to count: with a CPU quota, as containers have, their number says
//! nothing about where there is room, and nobody is pinned.

use std::sync::LazyLock;

/// Cores that this process may use. Counted once: later on, the thread that asks may be confined itself.
static CORES: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

/// Cores that this process may use.
pub(super) fn cores() -> u32 {
    #[cfg(target_os = "linux")]
    LazyLock::force(&linux::HOME);
    u32::try_from(*CORES).unwrap_or(u32::MAX)
}

#[cfg(target_os = "linux")]
pub(super) use linux::Places;

/// Elsewhere the kernel does as it likes.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
pub(super) struct Places;

#[cfg(not(target_os = "linux"))]
impl Places {
    pub(super) fn of_new_threads<T>(_: usize, start: impl FnOnce() -> T) -> (T, Option<Self>) {
        (start(), None)
    }

    pub(super) fn use_threads(&self, _: usize) {}
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

    /// Where this process may run.
    pub(super) static HOME: LazyLock<Option<CpuSet>> =
        LazyLock::new(|| sched_getaffinity(None).ok());

    /// Where a team's threads run.
    #[derive(Debug)]
    pub(in super::super) struct Places {
        /// Where the engine thread may run when it is alone.
        home: CpuSet,
        /// The workers' cores, in the order in which they are called upon.
        cores: Vec<usize>,
    }

    impl Places {
        /// Runs `start`, which starts `workers` threads, and pins these; `None` if that cannot be.
        pub(in super::super) fn of_new_threads<T>(
            workers: usize,
            start: impl FnOnce() -> T,
        ) -> (T, Option<Self>) {
            let before = threads_of_our_name().unwrap_or_default();
            let started = start();
            let Ok(after) = threads_of_our_name() else {
                return (started, None);
            };
            let new: Vec<Pid> = after
                .into_iter()
                .filter(|thread| !before.contains(thread))
                .collect();
            let places = if new.len() == workers {
                Self::pin(&new)
            } else {
                None
            };
            (started, places)
        }

        fn pin(workers: &[Pid]) -> Option<Self> {
            let usable = super::cores() as usize;
            let home = (*HOME)?;
            let all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&c| home.is_set(c)).collect();
            if usable != all.len() || workers.len() >= all.len() {
                return None;
            }
            let first = first_core(all.len());
            let cores: Vec<usize> = (1..=workers.len())
                .map(|worker| all[(first + worker) % all.len()])
                .collect();
            for (&worker, &core) in workers.iter().zip(&cores) {
                let mut place = CpuSet::new();
                place.set(core);
                sched_setaffinity(Some(worker), &place).ok()?;
            }
            Some(Self { home, cores })
        }

        /// Moves the calling engine thread off the cores of the workers that are called upon when
        /// `threads` compute, itself among them.
        pub(in super::super) fn use_threads(&self, threads: usize) {
            let mut rest = self.home;
            for &core in self.cores.iter().take(threads.saturating_sub(1)) {
                rest.unset(core);
            }
            // Where it fails, the thread stays where it is, which is no error.
            let _ = sched_setaffinity(None, &rest);
        }
    }

    impl Drop for Places {
        fn drop(&mut self) {
            self.use_threads(1);
        }
    }

    /// Where a team begins to count cores: teams start far from each other, halves before quarters.
    fn first_core(cores: usize) -> usize {
        static TEAMS: AtomicU8 = AtomicU8::new(0);
        let turn = TEAMS.fetch_add(1, Relaxed).reverse_bits();
        usize::from(turn) * cores / 256
    }

    /// The threads of this process that are called as the calling one is, oldest first. A new thread has its
    /// creator's name; every engine thread has its own.
    fn threads_of_our_name() -> io::Result<Vec<Pid>> {
        let name = |thread: i32| std::fs::read(format!("/proc/self/task/{thread}/comm"));
        let ours = name(gettid().as_raw_nonzero().get())?;
        let mut threads = Vec::new();
        for entry in std::fs::read_dir("/proc/self/task")? {
            let number = entry?.file_name().to_string_lossy().parse();
            if let Ok(thread) = number
                // One that has ended meanwhile has no name.
                && name(thread).is_ok_and(|name| name == ours)
                && let Some(thread) = Pid::from_raw(thread)
            {
                threads.push(thread);
            }
        }
        threads.sort_unstable_by_key(|thread| thread.as_raw_nonzero());
        Ok(threads)
    }

    #[cfg(test)]
    mod tests {
        use std::sync::mpsc::sync_channel;
        use std::thread;

        use super::*;

        #[test]
        fn a_worker_gets_a_core_that_the_engine_thread_leaves_to_it() {
            let test = thread::Builder::new().name("pin-test".into());
            let join = test.spawn(|| {
                let cores = super::super::cores();
                let (stop, stopped) = sync_channel::<()>(0);
                let (join, places) = Places::of_new_threads(1, || {
                    thread::Builder::new()
                        .name("pin-test".into())
                        .spawn(move || {
                            let _ = stopped.recv();
                            sched_getaffinity(None).unwrap()
                        })
                });
                if let Some(places) = &places {
                    places.use_threads(2);
                    let ours = sched_getaffinity(None).unwrap();
                    assert_eq!(ours.count(), cores - 1);
                    places.use_threads(1);
                    assert_eq!(sched_getaffinity(None).unwrap().count(), cores);
                    drop(stop);
                    let worker = join.unwrap().join().unwrap();
                    assert_eq!(worker.count(), 1);
                    assert!((0..CpuSet::MAX_CPU).all(|c| !(worker.is_set(c) && ours.is_set(c))));
                }
            });
            join.unwrap().join().unwrap();
        }
    }
}
