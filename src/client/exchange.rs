//! One request and its answer, whatever carries them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode};

use super::error::Error;
use super::{http1, http2, http3, quic, sluice};
use crate::wire::sluice::FRAMES;

/// The most that is read of an answer that is no stream: an error, a list of models.
const DOCUMENT_LIMIT: usize = 1024 * 1024;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// With its query.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Request {
    pub(super) fn get(path: String, accept: &'static str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("sluicegate/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        Self {
            method: Method::GET,
            path,
            headers,
            body: Bytes::new(),
        }
    }

    pub(super) fn post(path: String, accept: &'static str, body: Vec<u8>) -> Self {
        let mut request = Self::get(path, accept);
        request.method = Method::POST;
        request.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        request.body = body.into();
        request
    }

    pub(super) fn delete(path: String) -> Self {
        let mut request = Self::get(path, "*/*");
        request.method = Method::DELETE;
        request
    }

    /// The same with the key of whoever asks, if there is one.
    pub(super) fn keyed(&self, key: Option<&HeaderValue>) -> Cow<'_, Self> {
        let Some(key) = key else {
            return Cow::Borrowed(self);
        };
        let mut keyed = self.clone();
        keyed.headers.insert(header::AUTHORIZATION, key.clone());
        Cow::Owned(keyed)
    }

    /// A header of ours: its value is never outside of what a header may hold.
    pub(super) fn set(&mut self, name: &'static str, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// What is answered, with its body still to be read.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// The body of an answer. Dropping it before its end cancels the request.
pub(super) enum Body {
    Http1(http1::Body),
    Http2(http2::Body),
    Http3 {
        body: Box<http3::Body>,
        _connection: Arc<quic::Connection>,
    },
    Sluice {
        body: sluice::Body,
        _connection: Arc<quic::Connection>,
    },
}

impl Body {
    /// More of it; nothing at its end.
    pub(super) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Error>>> {
        match self {
            Self::Http1(body) => body.poll_chunk(context),
            Self::Http2(body) => body.poll_chunk(context),
            Self::Http3 { body, .. } => body.poll_chunk(context),
            Self::Sluice { body, .. } => body.poll_chunk(context),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1(_) => "Http1(..)",
            Self::Http2(_) => "Http2(..)",
            Self::Http3 { .. } => "Http3(..)",
            Self::Sluice { .. } => "Sluice(..)",
        })
    }
}

/// A frame of hyper's, as bytes; trailers are none.
pub(super) fn poll_hyper(
    body: &mut hyper::body::Incoming,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, Error>>> {
    use hyper::body::Body as _;
    loop {
        match ready!(std::pin::Pin::new(&mut *body).poll_frame(context)) {
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Poll::Ready(Some(Ok(bytes)));
                }
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        }
    }
}

impl Answer {
    /// Itself if its status is a success; else the error that its body tells.
    pub(super) async fn accepted(self) -> Result<Self, Error> {
        let status = self.status;
        if status.is_success() {
            return Ok(self);
        }
        let retry_after = self
            .header(&header::RETRY_AFTER)
            .and_then(|seconds| seconds.trim().parse().ok())
            .map(Duration::from_secs);
        let is_frames = self.content_type() == FRAMES;
        // A body that breaks off leaves the status, which says most.
        let body = self.document().await.unwrap_or_default();
        let body = if is_frames {
            sluice::error_in(&body).unwrap_or_default()
        } else {
            body
        };
        Err(Error::refused(status, retry_after, &body))
    }

    /// The whole body.
    pub(super) async fn document(mut self) -> Result<Bytes, Error> {
        let mut whole = BytesMut::new();
        while let Some(chunk) = std::future::poll_fn(|context| self.body.poll_chunk(context)).await
        {
            let chunk = chunk?;
            if whole.len() + chunk.len() > DOCUMENT_LIMIT {
                return Err(Error::AnswerTooLarge {
                    limit: DOCUMENT_LIMIT,
                });
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// What the body is; lower case, without parameters.
    pub(super) fn content_type(&self) -> String {
        let value = self.header(&header::CONTENT_TYPE).unwrap_or_default();
        let name = value.split(';').next().unwrap_or_default();
        name.trim().to_ascii_lowercase()
    }

    pub(super) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
