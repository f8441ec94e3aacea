//! Processes of our own that run a model which nobody trusts: what one does first, and how its end is
//! told.

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, sync_channel};

/// How much of a process's last words is kept, in bytes.
const LAST_WORDS: usize = 2048;

/// Ends with its parent, writes no core dump of a model's size, and gains no rights by what it executes.
/// Each of these is a precaution: where the system does not have it, the process runs without.
#[cfg(target_os = "linux")]
pub(super) fn settle() {
    use rustix::process::{Resource, Rlimit, Signal};
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    let _ = rustix::thread::set_no_new_privs(true);
}

/// Elsewhere there is nothing as simple.
#[cfg(not(target_os = "linux"))]
pub(super) fn settle() {}

/// The end of what the child writes to its standard error; comes when it closes that, at its end.
pub(super) fn last_words(child: &mut Child) -> io::Result<Receiver<String>> {
    let mut errors = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (said, words) = sync_channel(1);
    std::thread::Builder::new()
        .name("last-words".to_owned())
        .spawn(move || {
            let mut tail = Vec::new();
            let mut chunk = [0; LAST_WORDS];
            while let Ok(read @ 1..) = errors.read(&mut chunk) {
                tail.extend_from_slice(&chunk[..read]);
                tail.drain(..tail.len().saturating_sub(LAST_WORDS));
            }
            let _ = said.send(one_line(&tail));
        })?;
    Ok(words)
}

/// Lines as one, without what would move a terminal's cursor.
pub(super) fn one_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.collect::<Vec<_>>().join("; ");
    line.chars().filter(|c| !c.is_control()).collect()
}

/// What ended a process, in words.
pub(super) fn how_it_ended(status: ExitStatus) -> String {
    match status.signal() {
        Some(6) => "an abort (signal 6)".to_owned(),
        Some(9) => "a kill (signal 9), as when memory runs out".to_owned(),
        Some(4) => "an illegal instruction (signal 4)".to_owned(),
        Some(7) => {
            "a bus error (signal 7), as when a file is cut short while it is read".to_owned()
        }
        Some(8) => "an arithmetic error (signal 8)".to_owned(),
        Some(11) => "a segmentation fault (signal 11)".to_owned(),
        Some(signal) => format!("signal {signal}"),
        None => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_one_plain_line() {
        assert_eq!(one_line(b"a\n\n b\x1b[2J\xff\n"), "a; b[2J\u{fffd}");
    }
}
