//! Where a model's weights are: a file, or this program's memory.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::engine::config::Settings;

/// Where a model's weights are.
#[derive(Clone, Debug)]
pub enum Weights {
    /// A file.
    File(PathBuf),
    /// A whole GGUF in this program's memory.
    Embedded(&'static [u8]),
}

impl Weights {
    /// What to call it in a message.
    pub(super) fn label(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Embedded(_) => "the built-in model".to_owned(),
        }
    }
}

pub(super) fn open(weights: &Weights) -> io::Result<File> {
    match weights {
        Weights::File(path) => File::open(path),
        Weights::Embedded(bytes) => anonymous_file(*bytes),
    }
}

/// A file without a name that holds what `from` gives: nothing is written to disk, and nobody can
/// change it once it is sealed.
#[cfg(target_os = "linux")]
pub(super) fn anonymous_file(mut from: impl Read) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let fd = memfd_create("gguf", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    io::copy(&mut from, &mut file)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    file.rewind()?;
    Ok(file)
}

/// Elsewhere: a temporary file whose name is gone before anybody could use it.
#[cfg(not(target_os = "linux"))]
pub(super) fn anonymous_file(mut from: impl Read) -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("{}.gguf", uuid::Uuid::new_v4().simple()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    io::copy(&mut from, &mut file)?;
    file.rewind()?;
    Ok(file)
}

pub(super) fn descriptor_path(file: &impl AsRawFd) -> PathBuf {
    let directory = if cfg!(target_os = "linux") {
        "/proc/self/fd"
    } else {
        "/dev/fd"
    };
    Path::new(directory).join(file.as_raw_fd().to_string())
}

/// Names the weights and how their K/V is kept, so that nobody takes the prefixes of another model for
/// this one's. Files are named by their size, their time and their ends: reading all of a large one
/// would take longer than loading it.
pub(super) fn model_id(file: &File, settings: &Settings) -> io::Result<Box<[u8]>> {
    use std::os::unix::fs::{FileExt, MetadataExt};
    let metadata = file.metadata()?;
    let mut hasher = blake3::Hasher::new_derive_key("sluicegate model 1");
    hasher.update(&metadata.len().to_le_bytes());
    // A file without a name was made by this process, from something that never changes.
    if metadata.nlink() > 0 {
        hasher.update(&metadata.mtime().to_le_bytes());
        hasher.update(&metadata.mtime_nsec().to_le_bytes());
    }
    let mut end = vec![0; 1 << 20];
    let most = usize::try_from(metadata.len())
        .unwrap_or(usize::MAX)
        .min(end.len());
    for from in [0, metadata.len() - most as u64] {
        file.read_exact_at(&mut end[..most], from)?;
        hasher.update(&end[..most]);
    }
    let types = format!(
        "{:?} {:?}",
        settings.stored_keys(),
        settings.stored_values()
    );
    hasher.update(types.as_bytes());
    Ok(hasher.finalize().as_bytes().as_slice().into())
}

/// Whether what a row of these weights computes does not depend on how many rows there are. (llama.cpp
/// has another kernel for a lone row of floating-point weights.)
pub(super) fn is_row_neutral(weights: &str) -> bool {
    !matches!(weights, "f32" | "f16" | "bf16")
}
