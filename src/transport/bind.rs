//! `POST /v1/bind`: a credential becomes a token that is good on one TLS lineage only.
//!
//! Whoever comes with a good credential may bind as often as they like: nothing is stored for a token.

use axum::extract::{Request, State};
use axum::http::Extensions;
use axum::response::Response;
use bytes::BytesMut;
use std::sync::Arc;

use super::early::Secure;
use super::http::{Context, caller, document, fail, read_counted};
use crate::auth::Refusal;
use crate::auth::token::{Grant, MintError};
use crate::generation::{Caller, Failure, Kind, clock};
use crate::telemetry::Route;
use crate::wire::{self, bind};

/// Who asks for a token, and on what connection.
#[derive(Clone)]
pub(super) struct Asker {
    secure: Option<Secure>,
    caller: Caller,
    is_bound: bool,
}

impl Asker {
    pub(super) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(super) fn of(extensions: &Extensions) -> Self {
        Self {
            secure: extensions.get().cloned(),
            caller: caller(extensions),
            is_bound: extensions.get::<Arc<Grant>>().is_some(),
        }
    }
}

/// `POST /v1/bind`.
pub(super) async fn post(State(context): State<Context>, request: Request) -> Response {
    let asker = Asker::of(request.extensions());
    let trace = asker.caller.trace.clone();
    let (id, bound) = match read_counted(&context, request, Route::Bind, bind::parse).await {
        Ok(((), id)) => (id, bind(&context, asker)),
        Err(failure) => return fail(&failure),
    };
    let recorder = context.gateway.recorder("", Route::Bind, &id, &trace);
    match bound {
        Ok(out) => {
            recorder.answered();
            document(wire::JSON, out.freeze())
        }
        Err(failure) => {
            recorder.refused(&failure);
            fail(&failure)
        }
    }
}

/// Binds and writes the answer; shared with JSON-RPC.
pub(super) fn bind(context: &Context, asker: Asker) -> Result<BytesMut, Failure> {
    let refused =
        |message: &'static str, code| Err(Failure::new(Kind::Forbidden, message).with_code(code));
    let Some(secure) = asker.secure else {
        return refused(
            "A token is bound to a TLS connection; ask on one of this server's own.",
            "tls_required",
        );
    };
    if secure.is_early() {
        return Err(Refusal::TooEarly.failure());
    }
    let session = secure.session();
    if session.secrets().full().is_none() {
        return refused("A token is bound with TLS 1.3 only.", "tls_required");
    }
    if asker.is_bound {
        return refused(
            "A bound token cannot be exchanged for another; bind with the credential that it was made from.",
            "already_bound",
        );
    }
    let gate = context.early.gate();
    let caller = context.gateway.to_be_bound(&asker.caller);
    let (token, grant) = gate
        .bind(session, &caller, clock::unix_seconds())
        .map_err(|error| match error {
            MintError::TooLong => Failure::new(
                Kind::Forbidden,
                "The caller's names and models are too long for a token.",
            )
            .with_code("name_too_long"),
            error @ MintError::Random(_) => Failure::internal(error),
        })?;
    let mut out = BytesMut::new();
    bind::write(&token, grant.expires, &mut out);
    Ok(out)
}
