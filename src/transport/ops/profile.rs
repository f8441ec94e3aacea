//! `/debug/pprof/`: where the time goes, as a flame graph or for `go tool pprof`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::{number, query, unknown};
use crate::control::profile::{self, Wanted};
use crate::generation::Failure;
use crate::telemetry::profile::{Profile, Recent};
use crate::transport::http::{fail, refuse_foreign_pages};

/// How a profile is told.
#[derive(Clone, Copy, Default)]
enum Format {
    #[default]
    Pprof,
    Svg,
    Folded,
}

/// Ends a profile whose reader has left.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// The paths.
pub(super) fn router(recent: Arc<Recent>) -> Router {
    Router::new()
        .route("/debug/pprof/profile", get(capture))
        .route("/debug/pprof/recent", get(last_minutes))
        .with_state(recent)
}

/// `?seconds=` (5; 1 to 60), `?frequency=` (99; 1 to 1000) and `?format=` (pprof, svg, folded).
async fn capture(State(recent): State<Arc<Recent>>, headers: HeaderMap, uri: Uri) -> Response {
    let asked = || {
        refuse_foreign_pages(&headers)?;
        let (mut seconds, mut frequency, mut format) = (5, 99, Format::default());
        for (name, value) in query(&uri) {
            match &*name {
                "seconds" => seconds = number(&name, &value, 1..=60)?,
                "frequency" => frequency = number(&name, &value, 1..=1000)?,
                "format" => format = Format::parse(&value)?,
                _ => return Err(unknown(&name, "seconds, frequency, format")),
            }
        }
        let time = Duration::from_secs(seconds);
        Ok((Wanted { time, frequency }, format))
    };
    let (wanted, format) = match asked() {
        Ok(asked) => asked,
        Err(failure) => return fail(&failure),
    };
    let stop = Stop(Arc::default());
    match profile::capture(recent, wanted, stop.0.clone()).await {
        Ok(profile) => format.answer(&profile),
        Err(failure) => {
            let mut response = fail(&failure);
            if failure.code == Some("profile_busy") {
                *response.status_mut() = StatusCode::CONFLICT;
            }
            response
        }
    }
}

/// `?format=`, as above.
async fn last_minutes(State(recent): State<Arc<Recent>>, headers: HeaderMap, uri: Uri) -> Response {
    let asked = || {
        refuse_foreign_pages(&headers)?;
        let mut format = Format::default();
        for (name, value) in query(&uri) {
            match &*name {
                "format" => format = Format::parse(&value)?,
                _ => return Err(unknown(&name, "format")),
            }
        }
        Ok(format)
    };
    let format = match asked() {
        Ok(format) => format,
        Err(failure) => return fail(&failure),
    };
    match profile::last_minutes(recent).await {
        Ok(profile) => format.answer(&profile),
        Err(failure) => fail(&failure),
    }
}

impl Format {
    fn parse(text: &str) -> Result<Self, Failure> {
        match text {
            "pprof" => Ok(Self::Pprof),
            "svg" => Ok(Self::Svg),
            "folded" => Ok(Self::Folded),
            _ => Err(Failure::invalid(
                "format",
                "format is pprof, svg or folded.",
            )),
        }
    }

    fn answer(self, profile: &Profile) -> Response {
        let (kind, bytes) = match self {
            Self::Pprof => ("application/octet-stream", Ok(profile.pprof())),
            Self::Svg => ("image/svg+xml", profile.svg()),
            Self::Folded => (
                "text/plain; charset=utf-8",
                Ok(profile.folded().into_bytes()),
            ),
        };
        match bytes {
            Ok(bytes) => ([(header::CONTENT_TYPE, kind)], bytes).into_response(),
            Err(error) => fail(&Failure::internal(error)),
        }
    }
}
