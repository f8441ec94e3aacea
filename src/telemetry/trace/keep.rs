//! Which traces are kept: decided when a request is over and everything about it is known.

use crate::generation::{Outcome, Told};
use crate::telemetry::slo::{Slo, Verdict};

/// Why a trace is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A failure of ours.
    Error,
    /// It missed the objective.
    Slo,
    /// Its caller wants every detail of it.
    Debug,
    /// Its caller keeps their part.
    Caller,
    /// One of the part of ordinary ones that is kept.
    Ratio,
}

impl Reason {
    /// Every reason, for registering metrics.
    pub const ALL: [Self; 5] = [
        Self::Error,
        Self::Slo,
        Self::Debug,
        Self::Caller,
        Self::Ratio,
    ];

    /// The label value in metrics and spans.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Slo => "slo",
            Self::Debug => "debug",
            Self::Caller => "caller",
            Self::Ratio => "ratio",
        }
    }

    /// Whether anybody can have as many of them as they like, by asking for them. Those leave some
    /// room for what goes wrong.
    pub(super) fn is_ordinary(self) -> bool {
        matches!(self, Self::Caller | Self::Ratio)
    }
}

/// Whether this trace is kept, where `ratio` of the ordinary ones are.
pub(super) fn decide(told: &Told, slo: &Slo, ratio: f64) -> Option<Reason> {
    if told.context.is_debug {
        return Some(Reason::Debug);
    }
    let works = || told.works.iter();
    if told.exchange.status >= 500 || works().any(|work| is_ours(work.record.outcome)) {
        return Some(Reason::Error);
    }
    if works().any(|work| slo.judge(&work.record) == Verdict::Bad) {
        return Some(Reason::Slo);
    }
    if told.context.is_sampled {
        return Some(Reason::Caller);
    }
    is_chosen(told.context.trace_id, ratio).then_some(Reason::Ratio)
}

/// What callers do to themselves (leaving, asking wrongly, being over a limit) is no reason: they
/// could make any number of it.
pub(super) fn is_ours(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Ok | Outcome::ClientGone | Outcome::Invalid | Outcome::Limited => false,
        Outcome::Stalled
        | Outcome::Deadline
        | Outcome::Shed
        | Outcome::Upstream
        | Outcome::Internal => true,
    }
}

/// By the trace's id, as the SDKs' `TraceIdRatioBased` does it, so that every node of a trace comes to
/// the same end.
fn is_chosen(trace_id: u128, ratio: f64) -> bool {
    if ratio >= 1.0 {
        return true;
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "below 2^63, and a bit more or less is no matter"
    )]
    let (id, bound) = (trace_id as u64 >> 1, (ratio * (1u64 << 63) as f64) as u64);
    id < bound
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::tests::{told, work};
    use super::*;

    #[test]
    fn what_went_wrong_is_always_kept_and_what_callers_do_is_not() {
        let slo = Slo::default();
        for outcome in Outcome::ALL {
            let is_kept = !matches!(
                outcome,
                Outcome::Ok | Outcome::ClientGone | Outcome::Invalid | Outcome::Limited
            );
            let expected = is_kept.then_some(Reason::Error);
            let told = told(vec![work("m", outcome)]);
            assert_eq!(decide(&told, &slo, 0.0), expected, "{outcome:?}");
        }
        let mut refused = told(Vec::new());
        refused.exchange.status = 503;
        assert_eq!(decide(&refused, &slo, 0.0), Some(Reason::Error));
        refused.exchange.status = 404;
        assert_eq!(decide(&refused, &slo, 0.0), None);
    }

    #[test]
    fn a_miss_of_the_objective_a_mark_and_the_caller_keep_it() {
        let slo = Slo::default();
        let mut late = work("m", Outcome::Ok);
        late.record.time_to_first_token = Some(Duration::from_secs(3));
        let mut told = told(vec![work("m", Outcome::Ok), late]);
        assert_eq!(decide(&told, &slo, 0.0), Some(Reason::Slo));
        told.context.is_debug = true;
        assert_eq!(decide(&told, &slo, 0.0), Some(Reason::Debug));
        told.works.truncate(1);
        told.context.is_debug = false;
        assert_eq!(decide(&told, &slo, 0.0), None);
        told.context.is_sampled = true;
        assert_eq!(decide(&told, &slo, 0.0), Some(Reason::Caller));
    }

    #[test]
    fn of_the_rest_the_ratio_is_kept_by_the_traces_id() {
        use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
        let slo = Arc::new(Slo::default());
        let ids = RandomIdGenerator::default();
        let (mut few, mut half, all) = (0, 0, 20_000);
        for _ in 0..all {
            let mut told = told(vec![work("m", Outcome::Ok)]);
            told.context.trace_id = u128::from_be_bytes(ids.new_trace_id().to_bytes());
            let kept = |ratio| decide(&told, &slo, ratio).is_some();
            assert!(kept(1.0) && !kept(0.0));
            // Who keeps few keeps nothing that those who keep more do not.
            assert!(!kept(0.01) || kept(0.5));
            few += u32::from(kept(0.01));
            half += u32::from(kept(0.5));
        }
        // Ten standard deviations.
        assert!((100..=300).contains(&few), "{few}");
        assert!((9_300..=10_700).contains(&half), "{half}");
    }
}
