//! One fact that went wrong, in a form that any dialect can dress.
//!
//! Each folder has its own error types and turns them into a `Failure` at its edge. The message is
//! public: a client may read it. The source is private: it goes to the log, once, where the failure
//! is recorded.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Outcome;

/// What kind of thing went wrong. `wire/failure.rs` holds the only table from kind to status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The request is malformed or asks for something that cannot be.
    Invalid,
    /// The prompt does not fit the model's context.
    ContextExceeded,
    /// The body is larger than the configured cap.
    TooLarge,
    /// No such model, path or method.
    NotFound,
    /// What was asked for has been there and is kept no longer.
    Gone,
    /// The path exists, this HTTP method does not.
    MethodNotAllowed,
    /// The body is in a format that this endpoint does not read.
    UnsupportedMedia,
    /// The request's body did not arrive in time.
    SlowRequest,
    /// The caller did not say who they are, or it was not believed.
    Unauthorized,
    /// The caller is known and may not do this.
    Forbidden,
    /// A request with this id was served before; it does not run twice.
    Replayed,
    /// It came as early data of a TLS handshake and could not wait for the handshake's end.
    TooEarly,
    /// A rate or quota of the caller is used up.
    Limited,
    /// The waiting queue is full or no slot came free; nothing was started.
    Overloaded,
    /// The process is shutting down.
    Draining,
    /// The model is still loading, or failed to.
    NotReady,
    /// A deadline of the server or of the request passed.
    Deadline,
    /// The reader did not read for longer than `stream.stall_timeout`.
    Stalled,
    /// The caller cancelled this request by its id.
    Cancelled,
    /// A remote server failed.
    Upstream,
    /// A defect or an exhausted resource on our side.
    Internal,
}

impl Kind {
    /// The outcome that a request with this failure is counted under.
    #[must_use]
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Invalid
            | Self::ContextExceeded
            | Self::TooLarge
            | Self::NotFound
            | Self::Gone
            | Self::MethodNotAllowed
            | Self::UnsupportedMedia
            | Self::SlowRequest => Outcome::Invalid,
            Self::Unauthorized | Self::Forbidden | Self::Replayed | Self::Limited => {
                Outcome::Limited
            }
            Self::TooEarly | Self::Overloaded | Self::Draining | Self::NotReady => Outcome::Shed,
            Self::Deadline => Outcome::Deadline,
            Self::Stalled => Outcome::Stalled,
            Self::Cancelled => Outcome::ClientGone,
            Self::Upstream => Outcome::Upstream,
            Self::Internal => Outcome::Internal,
        }
    }
}

/// A failure: kind and public message, with what helps the caller and what helps the operator.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What kind of failure this is; decides every status code.
    pub kind: Kind,
    /// What the caller is told. Complete sentence, no secrets, no paths of this machine.
    pub message: Cow<'static, str>,
    /// The request field at fault, where there is one (`"temperature"`, `"messages[2].content"`).
    pub param: Option<Cow<'static, str>>,
    /// A stable machine-readable code where the kind's own is too coarse (`"model_not_found"`).
    pub code: Option<&'static str>,
    /// When it makes sense to try again.
    pub retry_after: Option<Duration>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A failure with a public message.
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            source: None,
        }
    }

    /// A malformed request; `param` names the field at fault.
    pub fn invalid(
        param: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::new(Kind::Invalid, message).with_param(param)
    }

    /// Something broke on our side. The caller learns only that; the source goes to the log.
    pub fn internal(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(
            Kind::Internal,
            "The server failed while handling the request.",
        )
        .with_source(source)
    }

    /// Names the request field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Sets a machine-readable code finer than the kind's own.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Attaches the private cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors already say what their cause says.
        if !text.contains(&more) {
            text.truncate(text.trim_end_matches('.').len());
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
