//! What is wrong with a configuration, and where it was written.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::auth::keys;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Line of the file, from 1, with the line's text.
    File {
        /// The file, as named.
        path: Arc<str>,
        /// The line, from 1.
        line: usize,
        /// What stands there.
        text: Arc<str>,
    },
    /// An environment variable.
    Environment(Arc<str>),
    /// A flag, as given.
    Flag(Arc<str>),
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where; absent when a whole source is at fault.
    pub origin: Option<Origin>,
    /// What, with the key's full name.
    pub message: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file, as named.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is written is wrong: every problem that was found, in the order of the file.
    #[error("{}", Lines(.0))]
    Wrong(Vec<Problem>),
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, message } = self;
        let message = keys::masked(message);
        match origin {
            None => f.write_str(&message),
            Some(Origin::File { path, line, text }) => {
                let text = masked(text);
                write!(f, "{path}:{line}: {message}\n    {line} | {text}")
            }
            Some(Origin::Environment(name)) => write!(f, "environment {name}: {message}"),
            Some(Origin::Flag(flag)) => write!(f, "{}: {message}", masked(flag)),
        }
    }
}

/// What somebody wrote, without the secrets in it: it ends up in logs.
pub(super) fn masked(text: &str) -> String {
    without_passwords(&keys::masked(text))
}

/// Without who logs in to a URL.
fn without_passwords(text: &str) -> String {
    let (mut shown, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("://") {
        let end = after.find(['"', '\'', ' ']).unwrap_or(after.len());
        let (url, behind) = after.split_at(end);
        shown += before;
        shown += "://";
        shown += &url
            .rfind('@')
            .map_or(url.to_owned(), |at| format!("..{}", &url[at..]));
        rest = behind;
    }
    shown + rest
}
