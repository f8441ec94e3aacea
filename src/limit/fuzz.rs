//! What a fuzzer drives: any schedule of requests against one limiter, and an account of what each was
//! charged.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::config::{Limits, Rates};
use super::{Admission, Ask, Clock, Kept, Limiter, Work};
use crate::generation::{Caller, Meter};
use crate::telemetry::Metrics;

const MODEL: &str = "m";

/// Beyond what any schedule here uses, so that everything that is charged can be seen.
const PLENTY: u64 = 1 << 40;

/// One caller, and what it has used.
struct One {
    caller: Caller,
    tokens: u64,
    requests: u64,
    waiting: Vec<Admission>,
    open: Vec<Arc<dyn Meter>>,
}

/// Reads bytes as requests of three callers, two of them of one organization: admitted, begun, delivered,
/// dropped and settled in any order, while time passes.
///
/// # Panics
/// If somebody has more streams than allowed, if anything but what was delivered is charged in the end, or
/// if a place is lost.
pub fn operations(bytes: &[u8]) {
    let Some((&most, mut rest)) = bytes.split_first() else {
        return;
    };
    let most = usize::from(most % 8) + 1;
    let clock = Clock::fake(1_700_000_000);
    let Some(limiter) = limiter(most, &clock) else {
        return;
    };
    let mut callers: Vec<_> = [("a", Some("acme")), ("b", Some("acme")), ("c", None)]
        .into_iter()
        .map(|(name, organization)| One {
            caller: Caller {
                identity: Some(name.into()),
                organization: organization.map(Into::into),
                ..Caller::default()
            },
            tokens: 0,
            requests: 0,
            waiting: Vec::new(),
            open: Vec::new(),
        })
        .collect();
    while let Some((&[what, who, number, amount], after)) = rest.split_first_chunk::<4>() {
        rest = after;
        let one = &mut callers[usize::from(who % 3)];
        step(&limiter, &clock, one, [what, number, amount]);
        let streams = one.waiting.len() + one.open.len();
        assert!(streams <= most, "{streams} streams of {most}");
    }
    for one in &mut callers {
        one.waiting.clear();
        one.open.clear();
    }
    // So that no rate refuses any more; the month is far from over.
    clock.advance(Duration::from_hours(5));
    let used = |caller: &Caller, name: &str| {
        let standing = limiter.standing(caller, Some(MODEL));
        let limits = standing.into_iter().flat_map(|standing| standing.limits);
        let mut found = limits.filter(|(limit, _)| *limit == name);
        found.next().map_or(0, |(_, left)| PLENTY - left.remaining)
    };
    for one in &callers {
        assert_eq!(used(&one.caller, "caller.tokens_per_month"), one.tokens);
        assert_eq!(used(&one.caller, "caller.requests_per_month"), one.requests);
        let places = (0..=most)
            .map_while(|_| admit(&limiter, one, 1, 1))
            .collect::<Vec<_>>();
        assert_eq!(places.len(), most, "a place was lost, or one was made");
    }
    let all: u64 = callers.iter().map(|one| one.tokens).sum();
    assert_eq!(used(&callers[0].caller, "model.tokens_per_month"), all);
    let [a, b, _] = &callers[..] else { return };
    let of_both = used(&a.caller, "organization.tokens_per_month");
    assert_eq!(of_both, a.tokens + b.tokens);
}

fn limiter(streams: usize, clock: &Clock) -> Option<Limiter> {
    let most = std::num::NonZeroU64::new(PLENTY);
    let rates = Rates {
        tokens_per_month: most,
        ..Rates::default()
    };
    let mut limits = Limits::default();
    let named = |name: &str| (name.to_owned(), rates.clone());
    limits.organizations.extend([named("acme")]);
    limits.models.extend([named(MODEL)]);
    let class = limits.classes.entry("default".to_owned()).or_default();
    class.tokens_per_month = most;
    class.requests_per_month = most;
    // A rate that refuses now and then, after the organization was charged.
    class.tokens_per_minute = std::num::NonZeroU32::new(6000);
    class.streams = u32::try_from(streams).ok()?.try_into().ok();
    let metrics = Arc::new(Metrics::new([MODEL]).ok()?);
    let store = Arc::new(Kept::open(&limits, None, clock));
    Some(Limiter::new(
        &limits,
        [MODEL],
        store,
        clock.clone(),
        metrics,
    ))
}

fn step(limiter: &Limiter, clock: &Clock, one: &mut One, [what, number, amount]: [u8; 3]) {
    let pick = |length: usize| usize::from(number).checked_rem(length);
    match what % 6 {
        0 | 1 => {
            let admitted = admit(limiter, one, number.into(), amount.into());
            one.requests += u64::from(admitted.is_some());
            one.waiting.extend(admitted);
        }
        2 => {
            if let Some(place) = pick(one.waiting.len()) {
                let admission = one.waiting.swap_remove(place);
                admission.began(amount.into());
                one.tokens += u64::from(amount);
                one.open.push(admission.into_meter());
            }
        }
        3 => {
            if let Some(place) = pick(one.open.len()) {
                one.tokens += u64::from(amount);
                // One that runs dry ends after these.
                if one.open[place].charge(amount.into()).is_err() {
                    one.open.swap_remove(place).settle();
                }
            }
        }
        4 => {
            if let Some(place) = pick(one.open.len()) {
                let meter = one.open.swap_remove(place);
                if amount % 2 == 0 {
                    meter.settle();
                    meter.settle();
                }
            } else if let Some(place) = pick(one.waiting.len()) {
                drop(one.waiting.swap_remove(place));
            }
        }
        _ => {
            clock.advance(Duration::from_millis(u64::from(amount) * 100));
            limiter.sweep();
        }
    }
}

/// Asks once: nothing here waits for anybody else.
fn admit(limiter: &Limiter, one: &One, tokens: u64, most: u32) -> Option<Admission> {
    let ask = Ask {
        caller: &one.caller,
        model: MODEL,
        text_bytes: 0,
        tokens,
        work: Work::Generate {
            choices: 1,
            max_tokens: Some(most),
        },
    };
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(limiter.admit(&ask)).poll(&mut cx) {
        Poll::Ready(admitted) => admitted.ok(),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_schedule_charges_what_was_not_delivered(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            super::operations(&bytes);
        }
    }
}
