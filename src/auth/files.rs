//! Follows small files: what is replaced or edited on disk is read again, by whoever knows what it means.
//!
//! The files are looked at instead of watched: that sees every way of replacing them (rename, symbolic
//! links that move, bind mounts, network file systems), and half a second is soon enough.

use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::telemetry::PROCESS;

/// Between two looks. A key that was taken out of its file works no longer than this.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A file system's clock may tick no faster than this. What was changed less than a tick ago may change
/// again and look the same, or is being written: the next look will tell.
const TICK: Duration = Duration::from_millis(20);

/// Files that belong together, and how they were at the last look.
#[derive(Clone, Debug)]
pub struct Files {
    paths: Vec<PathBuf>,
    seen: Vec<Stamp>,
}

/// What changes when a file is replaced or written: device, inode, size, and both of its times. `None` where
/// there is no file.
type Stamp = Option<(u64, u64, u64, [i64; 4])>;

impl Files {
    /// Call this before the files are read for the first time, so that no change is missed in between.
    pub fn new<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Self {
        let paths: Vec<_> = paths.into_iter().map(Into::into).collect();
        let seen = paths.iter().map(|path| {
            // Of what is so new, the first look will think again.
            look(path).unwrap_or(None)
        });
        Self {
            seen: seen.collect(),
            paths,
        }
    }

    /// Calls `reread` whenever one of the files has changed, for as long as it is polled. What it refuses is
    /// logged, once for each version of the files, and so must hold nothing of what is secret in them.
    pub async fn follow(mut self, mut reread: impl FnMut() -> Result<(), String> + Send + 'static) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // A file system may hang; the runtime must not.
            let looked = tokio::task::spawn_blocking(move || {
                if self.have_changed() {
                    let files = &self.paths;
                    let _reload =
                        tracing::info_span!(target: PROCESS, "reload files", ?files).entered();
                    if let Err(error) = reread() {
                        tracing::error!(?files, error, "refused; what was read before stays");
                    }
                }
                (self, reread)
            });
            match looked.await {
                Ok(again) => (self, reread) = again,
                Err(error) => {
                    if error.is_panic() {
                        tracing::error!("a file that changed broke its reader and is not followed");
                    }
                    return;
                }
            }
        }
    }

    fn have_changed(&mut self) -> bool {
        let mut have_changed = false;
        for (path, seen) in self.paths.iter().zip(&mut self.seen) {
            // Several files are not replaced at once: those that do not match yet are read again when the
            // last one has changed.
            if let Ok(now) = look(path)
                && now != *seen
            {
                *seen = now;
                have_changed = true;
            }
        }
        have_changed
    }
}

/// Reads a text file of at most `most` bytes.
///
/// # Errors
/// It cannot be read, is larger, or is no UTF-8; in words that name the file and hold nothing of it.
pub fn read(path: &Path, most: usize) -> Result<Zeroizing<String>, String> {
    let bytes = read_bytes(path, most)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| unreadable(path, &"it is not UTF-8"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Reads a file of at most `most` bytes.
///
/// # Errors
/// It cannot be read or is larger; in words that name the file and hold nothing of it.
pub fn read_bytes(path: &Path, most: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let wrong = |error: &dyn fmt::Display| unreadable(path, error);
    let file = File::open(path).map_err(|error| wrong(&error))?;
    let length = file.metadata().map_err(|error| wrong(&error))?.len();
    let too_large = || wrong(&format_args!("it is larger than {most} bytes"));
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > most {
        return Err(too_large());
    }
    // With room for all of it, so that no copy of a secret is left behind by growing.
    let mut bytes = Zeroizing::new(Vec::with_capacity(most.min(length) + 1));
    // A pipe, or a file that grows, has no length to believe.
    let bound = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let taken = file.take(bound).read_to_end(&mut bytes);
    if taken.map_err(|error| wrong(&error))? > most {
        return Err(too_large());
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: &dyn fmt::Display) -> String {
    format!("cannot read {}: {error}", path.display())
}

/// How the file is; an error if it changed too lately to say.
fn look(path: &Path) -> Result<Stamp, ()> {
    let Ok(meta) = fs::metadata(path) else {
        return Ok(None);
    };
    let age = meta.modified().ok().map(|at| {
        // A time to come, by the clock of a file server, is no sign of a change just now.
        SystemTime::now().duration_since(at).unwrap_or(TICK)
    });
    if age.is_some_and(|age| age < TICK) {
        return Err(());
    }
    let times = [
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    ];
    Ok(Some((meta.dev(), meta.ino(), meta.len(), times)))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::sync::mpsc;

    use super::*;

    /// Follows the file of this name in a new directory; each reading is sent, and refused if it says "bad".
    fn followed(name: &str) -> (TempDir, PathBuf, mpsc::Receiver<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, "first").unwrap();
        let files = Files::new([&path]);
        let (send, read_again) = mpsc::channel(8);
        let file = path.clone();
        let reread = move || {
            let text = read(&file, 100)?;
            let _ = send.try_send(text.to_string());
            if *text == "bad" {
                Err("bad".to_owned())
            } else {
                Ok(())
            }
        };
        tokio::spawn(files.follow(reread));
        (dir, path, read_again)
    }

    /// What is read next that is not what `first` put there, which may be told once.
    async fn after_first(read_again: &mut mpsc::Receiver<String>) -> String {
        loop {
            let text = read_again.recv().await.unwrap();
            if text != "first" {
                return text;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_or_moved_there_is_read() {
        let (dir, path, mut read_again) = followed("keys");
        fs::write(&path, "second").unwrap();
        assert_eq!(after_first(&mut read_again).await, "second");
        let other = dir.path().join("other");
        fs::write(&other, "third!").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(read_again.recv().await.unwrap(), "third!");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_read_once_and_followed_still() {
        let (_dir, path, mut read_again) = followed("keys");
        fs::write(&path, "bad").unwrap();
        assert_eq!(after_first(&mut read_again).await, "bad");
        tokio::time::sleep(LOOK_EVERY * 20).await;
        assert!(read_again.try_recv().is_err());
        fs::remove_file(&path).unwrap();
        tokio::time::sleep(LOOK_EVERY * 20).await;
        fs::write(&path, "good").unwrap();
        assert_eq!(read_again.recv().await.unwrap(), "good");
    }

    #[test]
    fn a_change_is_told_once_and_nothing_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let mut files = Files::new([path.clone(), dir.path().join("none")]);
        assert!(!files.have_changed());
        fs::write(&path, "x").unwrap();
        while !files.have_changed() {
            std::thread::yield_now();
        }
        assert!(!files.have_changed());
        fs::remove_file(&path).unwrap();
        assert!(files.have_changed() && !files.have_changed());
    }

    #[test]
    fn a_file_is_read_whole_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, "12345").unwrap();
        assert_eq!(*read(&path, 5).unwrap(), "12345");
        assert!(read(&path, 4).unwrap_err().contains("larger than 4 bytes"));
        assert!(
            read(Path::new("/dev/zero"), 4)
                .unwrap_err()
                .contains("larger")
        );
        fs::write(&path, b"\xff").unwrap();
        assert!(read(&path, 5).unwrap_err().contains("UTF-8"));
        assert!(read(dir.path(), 5).is_err());
        assert!(
            read(&dir.path().join("none"), 5)
                .unwrap_err()
                .contains("none")
        );
    }
}
