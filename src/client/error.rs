//! What can go wrong on the client's side, and the words in which servers say what went wrong on theirs.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::Value;

use super::sse;
use crate::wire::sluice::frames::FrameError;

/// Why a request or a stream failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection came about.
    #[error("could not connect to {authority}")]
    Connect {
        /// Host and port.
        authority: String,
        /// What the system says.
        source: io::Error,
    },
    /// The server's certificate is not trusted.
    #[error("the certificate of {authority} is not trusted{}", advice(*.is_local))]
    Certificate {
        /// Host and port.
        authority: String,
        /// The server is on this machine, where certificates are made for development.
        is_local: bool,
        /// What TLS says.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// TLS cannot be set up here.
    #[error("TLS cannot be used")]
    Tls(#[source] Box<dyn StdError + Send + Sync>),
    /// QUIC was asked for with a URL that is not `https`.
    #[error("QUIC is always encrypted: the URL must begin with https")]
    NotSecure,
    /// Nobody speaks this protocol there.
    #[error("{authority} does not speak {protocol}")]
    NotSpoken {
        /// Host and port.
        authority: String,
        /// The protocol.
        protocol: &'static str,
    },
    /// A request went out as early data, and then nothing came back over UDP. It may have been executed, so
    /// it is not sent again by itself; further requests go over TCP.
    #[error("{authority} does not answer over UDP any more; the request may have been executed")]
    Unanswered {
        /// Host and port.
        authority: String,
    },
    /// The server answered with a status other than success.
    #[error("the server answered {status}: {message}{}{}", wait(*.retry_after), ask_for_key(*.status))]
    Refused {
        /// The status.
        status: StatusCode,
        /// The server's words, or those of the status.
        message: String,
        /// When the server asks to be tried again.
        retry_after: Option<Duration>,
    },
    /// The server reported a failure in the stream, after its 200.
    #[error("the server ended the stream: {message}")]
    Reported {
        /// The server's words.
        message: String,
    },
    /// The body ended without the event that ends a good stream.
    #[error("the stream ended without [DONE]")]
    Truncated,
    /// The connection broke, or what came over it is not HTTP.
    #[error("the connection to the server failed")]
    Http(#[from] hyper::Error),
    /// The same on QUIC.
    #[error("the connection to the server failed")]
    Quic(#[source] Box<dyn StdError + Send + Sync>),
    /// What came is not `sluice/1`.
    #[error("the server sent something that is not sluice/1")]
    Frames(#[from] FrameError),
    /// A successful answer that is no event stream.
    #[error("the server answered with {content_type}, not with an event stream")]
    NotAStream {
        /// Its `content-type`.
        content_type: String,
    },
    /// An event or a document that is not what the API says.
    #[error("the server sent something that is not the OpenAI format: {excerpt}")]
    Malformed {
        /// The head of what was sent.
        excerpt: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A whole answer larger than the client reads.
    #[error("the server's answer is larger than {limit} bytes")]
    AnswerTooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// One event of the stream is larger than the client reads.
    #[error(transparent)]
    EventTooLarge(#[from] sse::TooLarge),
    /// The API key is empty, or holds what no header may hold.
    #[error("the API key is not one: keys are visible ASCII characters without spaces")]
    Key,
    /// The request cannot be put into HTTP.
    #[error("the request cannot be sent")]
    Request(#[from] hyper::http::Error),
}

impl Error {
    /// A malformed document, with its head for the reader.
    pub(super) fn malformed(bytes: &[u8], source: serde_json::Error) -> Self {
        Self::Malformed {
            excerpt: excerpt(bytes),
            source,
        }
    }

    /// What went wrong on a QUIC connection.
    pub(super) fn quic(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::Quic(error.into())
    }

    /// An answer that is no stream.
    pub(super) fn not_a_stream(content_type: &str) -> Self {
        Self::NotAStream {
            content_type: if content_type.is_empty() {
                "no content-type".to_owned()
            } else {
                excerpt(content_type.as_bytes())
            },
        }
    }

    /// Whether the connection is what failed, so that another one may do.
    pub(super) fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::Http(_) | Self::Quic(_) | Self::Truncated
        )
    }

    /// An answer with a status other than success.
    pub(super) fn refused(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        // A page of HTML, as proxies send it, tells a terminal nothing that its status does not.
        let message = message_in(body).or_else(|| {
            let text = excerpt(body);
            (!text.is_empty() && !text.starts_with('<')).then_some(text)
        });
        Self::Refused {
            status,
            message: message.unwrap_or_else(|| "no reason given".to_owned()),
            retry_after,
        }
    }
}

/// The server's words in an error document: `{"error": {"message": …}}` (`OpenAI` and most),
/// `{"error": "…"}`, `{"message": "…"}` or `{"detail": "…"}`.
pub(super) fn message_in(document: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let text = |pointer| document.pointer(pointer).and_then(Value::as_str);
    ["/error/message", "/error", "/message", "/detail"]
        .into_iter()
        .find_map(text)
        .map(ToOwned::to_owned)
}

/// The head of a document, fit for one line.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let text = String::from_utf8_lossy(bytes);
    let mut chars = text.trim().chars();
    let mut line: String = chars
        .by_ref()
        .take(MOST)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

fn advice(is_local: bool) -> &'static str {
    if is_local {
        " (a gateway on this machine may have made it for itself: SSL_CERT_FILE=dev-cert.pem of its state \
         directory trusts that one, --insecure any)"
    } else {
        ""
    }
}

fn ask_for_key(status: StatusCode) -> &'static str {
    if status == StatusCode::UNAUTHORIZED {
        " (a key goes into SLUICEGATE_API_KEY, or into a file that --key-file names)"
    } else {
        ""
    }
}

fn wait(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| {
        format!(" (try again in {} s)", after.as_secs_f64().ceil())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_every_known_error_document_are_found() {
        for document in [
            r#"{"error":{"message":"no","type":"t","param":null,"code":null}}"#,
            r#"{"error":"no"}"#,
            r#"{"object":"error","message":"no"}"#,
            r#"{"detail":"no"}"#,
        ] {
            assert_eq!(message_in(document.as_bytes()).as_deref(), Some("no"));
        }
        assert_eq!(message_in(b"{}"), None);
        assert_eq!(message_in(b"no"), None);
    }

    #[test]
    fn a_refusal_reads_as_one_line() {
        let error = |body: &str, after| {
            Error::refused(StatusCode::TOO_MANY_REQUESTS, after, body.as_bytes()).to_string()
        };
        assert_eq!(
            error(
                r#"{"error":{"message":"Slow down."}}"#,
                Some(Duration::from_millis(1500))
            ),
            "the server answered 429 Too Many Requests: Slow down. (try again in 2 s)"
        );
        assert_eq!(
            error("<html>\n</html>", None),
            "the server answered 429 Too Many Requests: no reason given"
        );
        assert!(error("two\nlines", None).ends_with(": two lines"));
        let error = Error::refused(StatusCode::UNAUTHORIZED, None, b"Who are you?").to_string();
        assert!(
            error.starts_with("the server answered 401 Unauthorized: Who are you? (a key goes")
        );
    }

    #[test]
    fn an_excerpt_is_short_and_holds_no_control_characters() {
        let text = excerpt("\u{1b}[2Jé".repeat(500).as_bytes());
        assert_eq!(text.chars().count(), 201);
        assert!(!text.contains('\u{1b}'));
    }
}
