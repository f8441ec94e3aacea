//! The process as its system sees it, under the names that all clients of Prometheus have for it.

use std::fs;
use std::path::Path;

use super::names::{
    MEMORY_LIMIT, PROCESS_CPU, PROCESS_FDS, PROCESS_MAX_FDS, PROCESS_RESIDENT, PROCESS_START,
    PROCESS_THREADS, PROCESS_VIRTUAL,
};
use super::text::Text;

/// In which /proc counts time, on every architecture that this runs on (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Writes what the system tells; a series that it does not is left out.
pub(super) fn write(text: &mut Text) {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    if let Ok(cpu) = std::time::Duration::try_from(cpu) {
        text.single(&PROCESS_CPU, cpu.as_secs_f64());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (family, key, unit) in [
        (&PROCESS_RESIDENT, "VmRSS:", 1024),
        (&PROCESS_VIRTUAL, "VmSize:", 1024),
        (&PROCESS_THREADS, "Threads:", 1),
    ] {
        if let Some(figure) = figure(&status, key) {
            text.single(family, figure.saturating_mul(unit));
        }
    }
    if let Some(limit) = memory_limit() {
        text.single(&MEMORY_LIMIT, limit);
    }
    if let Some(open) = open_files() {
        text.single(&PROCESS_FDS, open);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if let Some(most) = limit.current {
        text.single(&PROCESS_MAX_FDS, most);
    }
    if let Some(start) = started() {
        text.single(&PROCESS_START, start);
    }
}

/// The first number behind `key` at the beginning of a line.
fn figure(lines: &str, key: &str) -> Option<u64> {
    let line = lines.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The least of what the machine has and what each control group may have that the process is in.
fn memory_limit() -> Option<u64> {
    let machine = figure(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    let machine = machine.saturating_mul(1024);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // cgroups(7): the line of version 2, with the group's path.
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = Path::new("/sys/fs/cgroup").join(own.unwrap_or_default());
    let limits = own.ancestors().filter_map(|group| {
        let limit = fs::read_to_string(group.join("memory.max")).ok()?;
        // "max" is no limit.
        limit.trim().parse().ok()
    });
    limits.chain([machine]).min()
}

fn open_files() -> Option<u64> {
    // Since Linux 6.2 the size of this folder says how many there are; before, it is 0.
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => {
            let open = fs::read_dir("/proc/self/fd").ok()?.count();
            // Without the one that reads the folder.
            u64::try_from(open).ok()?.checked_sub(1)
        }
        open => Some(open),
    }
}

/// When the process started, in seconds since 1970.
fn started() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // proc(5): field 22, and the second one, a name in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let after_boot: f64 = fields.split_whitespace().nth(19)?.parse().ok()?;
    let boot = figure(&fs::read_to_string("/proc/stat").ok()?, "btime")?;
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970")]
    Some(boot as f64 + after_boot / TICKS_PER_SECOND)
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "small figures, and exact ones")]
mod tests {
    use super::*;
    use crate::generation::clock;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_figures_are_those_of_this_process() {
        let figures = || {
            let mut text = Text::default();
            write(&mut text);
            text.into_string()
        };
        let value = |text: &str, name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {text}"))
                .trim()
                .parse()
                .unwrap()
        };
        let before = figures();
        assert!(value(&before, "process_cpu_seconds_total") > 0.0);
        assert!(value(&before, "process_threads") >= 1.0);
        let resident = value(&before, "process_resident_memory_bytes");
        assert!(resident > 1e6 && resident < value(&before, "process_virtual_memory_bytes"));
        assert!(value(&before, "sluicegate_memory_limit_bytes") > resident);
        let open = value(&before, "process_open_fds");
        assert!(open >= 3.0 && open < value(&before, "process_max_fds"));
        let age = clock::unix_seconds() as f64 - value(&before, "process_start_time_seconds");
        assert!((-2.0..86_400.0).contains(&age), "{age}");
    }
}
