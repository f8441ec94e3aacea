//! Who asks, and whether they may: asked before anything else is done for a request.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;

use super::Gateway;
use crate::auth::callers::{invalid, missing, removed};
use crate::auth::config::OnRemoved;
use crate::auth::files::LOOK_EVERY;
use crate::auth::{Callers, Shown};
use crate::generation::{Caller, Failure, Kind, Scopes, clock};

impl Gateway {
    /// Who asks. Looks at nothing but what is shown; what is not believed is counted and logged.
    ///
    /// # Errors
    /// `Unauthorized`.
    pub fn authenticate(&self, shown: Shown<'_>) -> Result<Caller, Failure> {
        let caller = self.parts.callers.load().authenticate(shown);
        caller.inspect_err(|failure| self.denied(failure))
    }

    /// Whether anybody is asked who they are.
    #[must_use]
    pub fn asks_callers(&self) -> bool {
        self.parts.callers.load().is_on()
    }

    /// The same where nobody may be nobody, whatever `auth.allow_anonymous` says.
    ///
    /// # Errors
    /// `Unauthorized`, counted and logged.
    pub fn authenticate_somebody(&self, shown: Shown<'_>) -> Result<Caller, Failure> {
        let caller = self.authenticate(shown)?;
        if caller.identity.is_some() {
            return Ok(caller);
        }
        let failure = missing();
        self.denied(&failure);
        Err(failure)
    }

    /// Whether two credentials that differ are a fault: nobody minds where none is asked for.
    ///
    /// # Errors
    /// `Unauthorized`, counted and logged.
    pub fn refuse_two_credentials(&self) -> Result<(), Failure> {
        if !self.asks_callers() {
            return Ok(());
        }
        let failure = invalid();
        self.denied(&failure);
        Err(failure)
    }

    /// What a bound token is made of for this caller.
    #[must_use]
    pub fn to_be_bound(&self, caller: &Caller) -> Caller {
        self.parts.callers.load().to_be_bound(caller)
    }

    /// Whether a caller may do this kind of work.
    ///
    /// # Errors
    /// `Forbidden`, counted and logged.
    pub fn permit_scope(&self, caller: &Caller, scope: Scopes) -> Result<(), Failure> {
        if caller.rights.scopes.contain(scope) {
            return Ok(());
        }
        let names: Vec<_> = scope.names().collect();
        let failure = Failure::new(
            Kind::Forbidden,
            format!(
                "What this request shows is not good for this; it lacks the scope {}.",
                names.join(", ")
            ),
        )
        .with_code("insufficient_scope");
        self.denied(&failure);
        Err(failure)
    }

    /// Whether a caller may do this kind of work with this model.
    pub(super) fn permit(
        &self,
        caller: &Caller,
        scope: Scopes,
        model: &str,
    ) -> Result<(), Failure> {
        // What they send may come long after who they are was asked.
        if let Some(ended) = self
            .parts
            .callers
            .load()
            .ended(caller, clock::unix_seconds())
        {
            self.denied(&ended);
            return Err(ended);
        }
        self.permit_scope(caller, scope)?;
        if self.may_use(caller, model) {
            return Ok(());
        }
        let failure = Failure::new(
            Kind::Forbidden,
            "What this request shows is not good for this model.",
        )
        .with_param("model")
        .with_code("model_not_allowed");
        self.denied(&failure);
        Err(failure)
    }

    /// Whoever is held to some models is not told which others there are.
    pub(super) fn may_use(&self, caller: &Caller, model: &str) -> bool {
        let name = self.parts.registry.configured_name(model);
        caller.rights.allow_model(name.unwrap_or(model))
    }

    /// Why a stream of this caller ends as soon as it begins, if so.
    pub(super) fn ended(&self, caller: &Caller) -> Option<Failure> {
        let callers = self.parts.callers.load();
        let ends = callers.on_removed() == OnRemoved::End;
        ends.then(|| callers.ended(caller, clock::unix_seconds()))?
    }

    fn denied(&self, failure: &Failure) {
        let reason = failure.code.unwrap_or_default();
        self.parts.metrics.transports.auth_refused(reason);
        tracing::info!(reason, "a request was refused for who asks");
    }

    /// From now on these are believed. Ends what the callers stream whose keys are no longer there, unless
    /// that may finish; returns how many streams those were.
    pub fn set_callers(&self, callers: Arc<Callers>) -> usize {
        let today = clock::unix_seconds();
        let old = self.parts.callers.swap(callers);
        let gone = old.keys().gone_in(&self.parts.callers.load().keys(), today);
        let streams = self.end_owners(&gone, today);
        self.callers_changed.notify_waiters();
        streams
    }

    /// Follows the files of keys and the calendar: ends what the callers stream whose keys are
    /// removed or expire, unless that may finish. Runs for as long as it is polled.
    pub async fn follow_callers(self: Arc<Self>) -> Infallible {
        let following = async {
            loop {
                let changed = self.callers_changed.notified();
                tokio::select! {
                    () = changed => {}
                    never = self.clone().follow_files(self.parts.callers.load_full()) => match never {},
                }
            }
        };
        let (never, _): (Infallible, Infallible) = tokio::join!(following, self.end_expired());
        never
    }

    async fn follow_files(self: Arc<Self>, callers: Arc<Callers>) -> Infallible {
        let (gateway, followed) = (self.clone(), callers.clone());
        let reread = move || {
            let today = clock::unix_seconds();
            let read = followed.reread(today);
            let read = read.map(|gone| (gateway.end_owners(&gone, today), gone));
            gateway.parts.metrics.transports.keys_read(read.is_ok());
            let (streams, gone) = read?;
            let keys = followed.keys().len();
            tracing::info!(keys, gone = gone.len(), streams, "the keys were read again");
            Ok(())
        };
        let following = async {
            if let Some(files) = callers.files() {
                files.follow(reread).await;
            }
        };
        let metrics = self.parts.metrics.clone();
        let jwt = async {
            if let Some(jwt) = callers.jwt() {
                let told = move |is_taken| metrics.transports.keys_read(is_taken);
                jwt.clone().follow(told).await;
            }
        };
        let ((), (), never) = tokio::join!(following, jwt, std::future::pending());
        never
    }

    fn end_owners(&self, gone: &HashSet<Arc<str>>, today: u64) -> usize {
        let callers = self.parts.callers.load();
        if gone.is_empty() || callers.on_removed() == OnRemoved::Finish {
            return 0;
        }
        self.parts.watch.cut_owners(|owner| {
            let why = || callers.expired(owner, today).unwrap_or_else(removed);
            gone.contains(owner).then(why)
        })
    }

    async fn end_expired(&self) -> Infallible {
        let mut seen = clock::unix_seconds();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let today = clock::unix_seconds();
            let callers = self.parts.callers.load();
            let end = callers.on_removed() == OnRemoved::End;
            if end && callers.keys().expire_between(seen, today) {
                let watch = &self.parts.watch;
                let streams = watch.cut_owners(|owner| callers.expired(owner, today));
                tracing::info!(streams, "a key has expired");
            }
            seen = today;
        }
    }
}
