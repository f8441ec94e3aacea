//! What a process uses, as Linux tells in `/proc`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Linux reports CPU time to programs in hundredths of a second, whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// A reading of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// CPU time so far, user and system, all threads.
    pub(crate) cpu: Duration,
    /// Resident memory, in KiB.
    pub(crate) rss_kib: u64,
}

impl Reading {
    /// Reads a process; `"self"` is this one.
    pub(crate) fn of(pid: &str) -> Result<Self> {
        let read = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            fs::read_to_string(&path).with_context(|| format!("could not read {path}"))
        };
        Ok(Self {
            cpu: cpu(&read("stat")?).context("/proc/PID/stat is not as expected")?,
            rss_kib: rss(&read("status")?).context("/proc/PID/status is not as expected")?,
        })
    }
}

/// The CPU time of each thread of a process, with its id and name.
pub(crate) fn threads(pid: u32) -> Result<Vec<(u32, String, Duration)>> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).with_context(|| format!("could not read {folder}"))?;
    let thread = |id: u32| {
        // A thread may end between being listed and being read.
        let read = |name| fs::read_to_string(format!("{folder}/{id}/{name}")).ok();
        // Its first number is nanoseconds on a core: finer than the hundredths of `stat`.
        let cpu = read("schedstat")?.split_whitespace().next()?.parse().ok()?;
        Some((
            id,
            read("comm")?.trim().to_owned(),
            Duration::from_nanos(cpu),
        ))
    };
    Ok(entries
        .filter_map(|entry| thread(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .collect())
}

fn cpu(stat: &str) -> Option<Duration> {
    // The second field is the program's name in brackets and may hold anything, brackets too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (user + system))
}

fn rss(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 3 0 99 1 1";
        assert_eq!(cpu(stat), Some(Duration::from_secs(2)));
        assert_eq!(cpu(""), None);
    }

    #[test]
    fn resident_memory_is_found() {
        assert_eq!(
            rss("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t  1234 kB\n"),
            Some(1234)
        );
    }

    #[test]
    fn this_process_can_be_read() {
        assert!(Reading::of("self").unwrap().rss_kib > 0);
        let pid = std::process::id();
        let threads = threads(pid).unwrap();
        assert!(
            threads
                .iter()
                .any(|(id, name, _)| *id == pid && !name.is_empty())
        );
    }
}
