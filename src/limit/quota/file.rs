//! The file in which quotas outlive the process: JSON that a person can read, replaced as a whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The one layout there is.
const VERSION: u32 = 1;

/// Longest file that is read, in bytes: several times what the most entries take.
const LONGEST: u64 = 64 << 20;

/// Everything in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layout {
    version: u32,
    entries: Vec<Line>,
}

/// What one caller, organization or model has used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    /// What kind of thing the name names.
    pub(super) scope: String,
    /// Whose use it is.
    pub(super) name: String,
    /// Of the day and of the month, as far as anything was used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) used: Vec<Used>,
}

/// Use in one day or month.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Used {
    /// `2026-11-21` or `2026-11`, UTC.
    pub(super) period: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) requests: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) tokens: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A place for the file, and the lock that keeps a second process from writing there, too.
pub(super) struct Place {
    path: PathBuf,
    lock: Option<File>,
}

impl Place {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, lock: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock if this process does not have it yet, and then tells what the file holds. What
    /// cannot be understood is moved aside, so that nothing is written over it.
    ///
    /// # Errors
    /// Another process has the lock, or the file cannot be read, or moved.
    pub(super) fn open(&mut self) -> io::Result<Option<Vec<Line>>> {
        if self.lock.is_some() {
            return Ok(None);
        }
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let lock = private().truncate(false).open(self.beside("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::other("another process writes to it"),
            TryLockError::Error(error) => error,
        })?;
        let lines = match self.read() {
            Ok(lines) => lines,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let aside = self.beside(&format!("unreadable-{}", unix_seconds()));
                fs::rename(&self.path, &aside)?;
                tracing::warn!(
                    file = %self.path.display(), kept = %aside.display(), %error,
                    "quotas cannot be read; what was used before is not counted"
                );
                Vec::new()
            }
            Err(error) => return Err(error),
        };
        self.lock = Some(lock);
        Ok(Some(lines))
    }

    /// Replaces the file: a reader, and the next start after a crash, finds the old or the new one.
    ///
    /// # Errors
    /// The disk is full, the folder is gone, and the like. The old file is as it was.
    pub(super) fn write(&self, lines: Vec<Line>) -> io::Result<()> {
        let layout = Layout {
            version: VERSION,
            entries: lines,
        };
        let mut text = serde_json::to_vec_pretty(&layout)?;
        text.push(b'\n');
        let fresh = self.beside("new");
        let mut file = private().truncate(true).open(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        // The new name is on the disk when the folder is.
        let folder = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn read(&self) -> io::Result<Vec<Line>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut text)?;
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        if text.len() as u64 > LONGEST {
            return Err(wrong(format!("longer than {LONGEST} bytes")));
        }
        let layout: Layout =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if layout.version != VERSION {
            return Err(wrong(format!("version {} is not known", layout.version)));
        }
        Ok(layout.entries)
    }

    /// `quotas.json.new` beside `quotas.json`.
    fn beside(&self, end: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".");
        name.push(end);
        name.into()
    }
}

/// Who called how much concerns nobody else on the machine.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

fn unix_seconds() -> u64 {
    crate::generation::clock::unix_seconds()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        vec![Line {
            scope: "caller".to_owned(),
            name: "key:a\"\n\u{feff}".to_owned(),
            used: vec![Used {
                period: "2026-11-21".to_owned(),
                requests: 3,
                tokens: 0,
            }],
        }]
    }

    fn place(folder: &Path) -> Place {
        Place::new(folder.join("state/quotas.json"))
    }

    #[test]
    fn what_is_written_is_read_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = place(folder.path());
        assert_eq!(first.open().unwrap(), Some(vec![]));
        first.write(lines()).unwrap();
        let mut second = place(folder.path());
        let refused = second.open().unwrap_err();
        assert!(refused.to_string().contains("another process"), "{refused}");
        drop(first);
        assert_eq!(second.open().unwrap(), Some(lines()));
        assert_eq!(second.open().unwrap(), None);
    }

    #[test]
    fn what_cannot_be_understood_is_kept_beside() {
        for text in [
            "",
            "{",
            "{\"version\":1}",
            "{\"version\":2,\"entries\":[]}",
            "{\"version\":1,\"entries\":[{\"scope\":\"caller\",\"name\":\"a\",\"used\":[{\"period\":\"x\",\"requests\":-1}]}]}",
            "\u{0}\u{0}\u{0}",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut place = Place::new(folder.path().join("quotas.json"));
            fs::write(place.path(), text).unwrap();
            assert_eq!(place.open().unwrap(), Some(vec![]));
            place.write(lines()).unwrap();
            let names = fs::read_dir(folder.path()).unwrap();
            let aside = names
                .map(|entry| entry.unwrap().path())
                .find(|path| path.to_string_lossy().contains(".unreadable-"))
                .unwrap();
            assert_eq!(fs::read_to_string(aside).unwrap(), text);
        }
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut place = place(folder.path());
        place.open().unwrap();
        place.write(lines()).unwrap();
        // Every write to this device fails for want of space.
        std::os::unix::fs::symlink("/dev/full", place.beside("new")).unwrap();
        let error = place.write(Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(place.read().unwrap(), lines());
    }

    #[test]
    fn a_folder_in_its_place_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let mut place = place(folder.path());
        fs::create_dir_all(place.path().join("inside")).unwrap();
        assert!(place.open().is_err());
        assert!(place.path().join("inside").is_dir());
    }
}
