//! What a caller is told whose limit is used up: which one, whose, and when to come back.

use std::time::Duration;

use super::account::Short;
use super::{Bound, Limit, Scope};
use crate::generation::{Failure, Kind};

/// A refusal at admission.
pub(super) fn failure(short: &Short) -> Failure {
    told(short, "has too little left for this request")
}

/// The end of a stream whose caller has run dry.
pub(super) fn dry(short: &Short) -> Failure {
    told(short, "ran out while this answer was generated")
}

fn told(short: &Short, what: &str) -> Failure {
    let Short {
        scope,
        limit,
        bound,
        wait,
    } = *short;
    let whose = match scope {
        Scope::Organization => "Your organization's limit of",
        Scope::Caller => "Your limit of",
        Scope::CallerOnModel => "Your limit on this model of",
        Scope::Model => "This model's limit for all callers of",
    };
    // To the millisecond, and never at once: it is told as retry-after-ms.
    let wait = Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
        .saturating_add(Duration::from_millis(1));
    let wait = wait.min(LONGEST);
    let most = most(bound);
    let unit = unit(limit);
    let name = limit.of(scope);
    let message = if let Bound::Places(_) = bound {
        format!("{whose} {most} {unit} ({name}) is reached.")
    } else {
        // Whole seconds, rounded up.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let after = humantime::format_duration(Duration::from_secs(seconds));
        format!("{whose} {most} {unit} ({name}) {what}. Try again in {after}.")
    };
    let code = match bound {
        Bound::Quota { .. } => "insufficient_quota",
        Bound::Rate { .. } | Bound::Places(_) => "rate_limit_exceeded",
    };
    Failure::new(Kind::Limited, message)
        .with_code(code)
        .with_retry_after(wait)
}

/// No wait is longer than the longest period.
const LONGEST: Duration = Duration::from_hours(24 * 31);

fn most(bound: Bound) -> u64 {
    match bound {
        Bound::Rate { per_minute, .. } => per_minute,
        Bound::Places(most) => u64::from(most),
        Bound::Quota { most, .. } => most,
    }
}

fn unit(limit: Limit) -> &'static str {
    match limit {
        Limit::Streams => "streams at once",
        Limit::Queued => "waiting requests at once",
        Limit::RequestsPerMinute => "requests per minute",
        Limit::RequestsPerDay => "requests per day",
        Limit::RequestsPerMonth => "requests per month",
        Limit::TokensPerMinute => "tokens per minute",
        Limit::InputTokensPerMinute => "input tokens per minute",
        Limit::OutputTokensPerMinute => "output tokens per minute",
        Limit::TokensPerDay => "tokens per day",
        Limit::TokensPerMonth => "tokens per month",
    }
}
