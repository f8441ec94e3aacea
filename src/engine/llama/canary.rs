//! The canary: a process that tries a model before this one does.
//!
//! What makes llama.cpp abort ends the canary, and is reported in plain words. The canary is this same
//! program with the file as its standard input, so that what was tried is what is loaded afterwards,
//! whatever happens to the path meanwhile.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ffi::{Batch, Context};
use super::load::{self, LoadError, Weights};
use super::shim;
use super::vocab::Vocabulary;
use crate::engine::Loading;
use crate::engine::child::{how_it_ended, last_words};
use crate::engine::config::{KvLayout, Process, Settings};

/// The arguments that make the program a canary; the settings follow as JSON.
pub const ARGUMENTS: [&str; 2] = ["check-model", "--canary"];

/// How the canary ends when it has something to say against the model.
pub const REFUSED: u8 = 3;

/// How often a parent who waits looks whether it is still to wait.
const LOOK: Duration = Duration::from_millis(100);

/// Context of the canary: enough for its two tokens, in whole pages of cells.
const CONTEXT: NonZeroU32 = NonZeroU32::new(256).unwrap();

/// Why the canary did not come back well.
#[derive(Debug, thiserror::Error)]
pub enum CanaryError {
    /// It could not be started.
    #[error("the process that tries it could not be started (a trusted model needs none)")]
    Start(#[source] io::Error),
    /// It found something.
    #[error("{0}")]
    Refused(String),
    /// It ended in another way.
    #[error("loading it in a process of its own ended with {how}{}", after_colon(.last_words))]
    Ended {
        /// A signal or an exit status, in words.
        how: String,
        /// The end of what it wrote.
        last_words: String,
    },
    /// It took too long.
    #[error("loading it in a process of its own took longer than {}{}", humantime::format_duration(*.0), after_colon(.1))]
    TimedOut(Duration, String),
    /// Nobody wants to know any more.
    #[error("loading was stopped")]
    Stopped,
}

fn after_colon(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}

/// Which file, in the state in which it was tried.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Tried {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// What has been tried and found good since this process started: a model that is loaded again need
/// not be tried again.
static GOOD: LazyLock<Mutex<HashSet<Tried>>> = LazyLock::new(Mutex::default);

/// Tries a file in a process of its own. Does nothing where the program is not known, or when the
/// file has been found good before.
pub(super) fn try_out(
    file: &File,
    settings: &Settings,
    process: &Process,
    loading: &Loading,
) -> Result<(), CanaryError> {
    let Some(program) = &process.program else {
        return Ok(());
    };
    let state = file.metadata().map_err(CanaryError::Start)?;
    let tried = Tried {
        device: state.dev(),
        inode: state.ino(),
        length: state.len(),
        modified: (state.mtime(), state.mtime_nsec()),
    };
    let good = || GOOD.lock().unwrap_or_else(PoisonError::into_inner);
    if good().contains(&tried) {
        return Ok(());
    }
    let started = Instant::now();
    let command = command(program, file, settings)?;
    run(command, process.canary_timeout, loading)?;
    tracing::debug!(elapsed = ?started.elapsed(), "the model was tried in a process of its own");
    good().insert(tried);
    Ok(())
}

/// How the canary is started on an open file.
fn command(program: &Path, file: &File, settings: &Settings) -> Result<Command, CanaryError> {
    let settings = serde_json::to_string(settings).map_err(io::Error::other);
    let mut command = Command::new(program);
    command
        .args(ARGUMENTS)
        .arg(settings.map_err(CanaryError::Start)?)
        // ggml would start a debugger for its last words.
        .env("GGML_NO_BACKTRACE", "1")
        .stdin(file.try_clone().map_err(CanaryError::Start)?);
    Ok(command)
}

/// Runs the canary to its end, or for as long as it may take.
fn run(mut command: Command, timeout: Duration, loading: &Loading) -> Result<(), CanaryError> {
    let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(CanaryError::Start)?;
    let words = last_words(&mut child).map_err(CanaryError::Start)?;
    let deadline = Instant::now() + timeout;
    let end = |child: &mut Child| {
        let _ = child.kill();
        let _ = child.wait();
        words.recv().unwrap_or_default()
    };
    loop {
        if loading.is_stopped() {
            end(&mut child);
            return Err(CanaryError::Stopped);
        }
        match words.recv_timeout(LOOK.min(timeout)) {
            Ok(words) => {
                let status = child.wait().map_err(CanaryError::Start)?;
                return verdict(status, words);
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => return Err(CanaryError::TimedOut(timeout, end(&mut child))),
        }
    }
}

fn verdict(status: ExitStatus, last_words: String) -> Result<(), CanaryError> {
    if status.success() {
        return Ok(());
    }
    if status.code() == Some(REFUSED.into()) {
        return Err(CanaryError::Refused(last_words));
    }
    let how = how_it_ended(status);
    Err(CanaryError::Ended { how, last_words })
}

/// `check-model` by hand: our own check of the file, then the canary with the default settings.
///
/// # Errors
/// What is wrong with the file.
pub fn check(path: &Path, program: &Path, timeout: Duration) -> Result<(), LoadError> {
    load::inspect(path, &Settings::default())?;
    let label = path.display().to_string();
    let file = File::open(path).map_err(|source| LoadError::Read {
        path: label.clone(),
        source,
    })?;
    let loading = Loading::default();
    command(program, &file, &Settings::default())
        .and_then(|command| run(command, timeout, &loading))
        .map_err(|source| LoadError::Canary {
            path: label,
            source,
        })
}

/// What the canary does: loads the model on standard input, tokenizes every byte, computes two tokens.
///
/// # Errors
/// What is wrong with the model, where llama.cpp gave it the time to say so.
pub fn examine(settings: &str) -> Result<(), LoadError> {
    crate::engine::child::settle();
    let settings = serde_json::from_str(settings)
        .map_err(|error| LoadError::Engine(format!("the settings cannot be read: {error}")))?;
    let settings = modest(settings);
    let path = super::weights::descriptor_path(&io::stdin());
    let (process, loading) = (Process::default(), Arc::default());
    let (model, summary, _) = load::map(&Weights::File(path), &settings, &process, &loading)?;
    let model = Arc::new(model);
    for byte in 0..=u8::MAX {
        shim::tokenize(&model, &[byte], false)?;
    }
    let vocabulary = Vocabulary::new(model.clone(), &summary.tokenizer);
    vocabulary.tokenize("Once upon a time, 1 2 3.", true, true)?;
    let params = super::context::context_params(&settings, &model);
    let mut context = Context::new(model, &params, Arc::default())?;
    for position in 0..2 {
        let mut batch = Batch::with_capacity(1);
        let row = batch.push(position, position, 0, true);
        context.decode(&mut batch)?;
        let logits = context.logits(row);
        let logits = logits.ok_or_else(|| LoadError::Engine("it computes no logits".into()))?;
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            let found = logits[token];
            return Err(LoadError::Engine(format!(
                "the logit of token {token} is {found}; its weights are damaged"
            )));
        }
    }
    Ok(())
}

/// The settings, as far as they change what is computed, with the least memory.
fn modest(mut settings: Settings) -> Settings {
    settings.context = Some(settings.context.map_or(CONTEXT, |own| own.min(CONTEXT)));
    settings.parallel = 1;
    settings.kv_layout = KvLayout::Split;
    settings.kv_cells = None;
    settings.batch = 64;
    settings.mlock = false;
    settings.trusted = true;
    settings
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::engine::llama::demo_settings;

    #[test]
    fn settings_reach_the_canary_as_they_are() {
        let mut settings = demo_settings();
        settings.threads = std::num::NonZeroU16::new(3);
        let sent = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&sent).unwrap(), settings);
    }

    #[test]
    fn every_end_is_said_in_words() {
        let ended = |raw| verdict(ExitStatus::from_raw(raw), "GGML_ASSERT".into());
        assert!(ended(0).is_ok());
        let said = |raw| ended(raw).unwrap_err().to_string();
        assert_eq!(said(3 << 8), "GGML_ASSERT");
        assert!(said(6).contains("an abort (signal 6): GGML_ASSERT"));
        assert!(said(11).contains("segmentation fault"));
        assert!(said(1 << 8).contains("exit status: 1"));
        assert!(said(7).contains("bus error"));
    }

    fn shell(script: &str, timeout: Duration, loading: &Loading) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let ended = run(command, timeout, loading);
        ended.expect_err("it does not end well").to_string()
    }

    #[test]
    fn a_canary_that_aborts_hangs_or_is_not_wanted_any_more_is_reported_and_gone() {
        let loading = Loading::default();
        let minute = Duration::from_mins(1);
        let said = shell(
            "echo 'GGML_ASSERT(x) failed' >&2; kill -ABRT $$",
            minute,
            &loading,
        );
        assert!(
            said.ends_with("an abort (signal 6): GGML_ASSERT(x) failed"),
            "{said}"
        );
        // The shell becomes what sleeps: a kill ends it and closes its standard error.
        let said = shell("echo here >&2; exec sleep 60", LOOK, &loading);
        assert!(said.contains("took longer than 100ms"), "{said}");
        loading.stop();
        let said = shell("exec sleep 60", minute, &loading);
        assert_eq!(said, "loading was stopped");
    }
}
