//! The limiter on a clock that a test turns: exact counts over all scopes.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::config::Limits;
use super::*;
use crate::generation::{Caller, Class, Ending, Failure, Kind, Meter};
use crate::telemetry::Metrics;

/// 2026-11-21 00:00:00 UTC.
const MIDNIGHT: u64 = 1_795_219_200;

const MODELS: [&str; 2] = ["m", "other"];

struct Rig {
    limiter: Limiter,
    clock: Clock,
    metrics: Arc<Metrics>,
}

fn rig(limits: &str) -> Rig {
    rig_with(limits, |limits, clock| {
        Arc::new(Kept::open(limits, None, clock))
    })
}

fn rig_with(limits: &str, store: impl FnOnce(&Limits, &Clock) -> Arc<dyn Store>) -> Rig {
    let limits: Limits = toml::from_str(limits).unwrap();
    assert_eq!(limits.conflicts(&MODELS), []);
    let clock = Clock::fake(MIDNIGHT);
    let metrics = Arc::new(Metrics::new(MODELS).unwrap());
    let store = store(&limits, &clock);
    Rig {
        limiter: Limiter::new(&limits, MODELS, store, clock.clone(), metrics.clone()),
        clock,
        metrics,
    }
}

fn caller(name: &str) -> Caller {
    Caller {
        identity: Some(name.into()),
        ..Caller::default()
    }
}

fn from(address: &str) -> Caller {
    Caller {
        address: Some(address.parse().unwrap()),
        ..Caller::default()
    }
}

fn ask(caller: &Caller) -> Ask<'_> {
    Ask {
        caller,
        model: "m",
        text_bytes: 0,
        tokens: 0,
        work: Work::Generate {
            choices: 1,
            max_tokens: Some(1),
        },
    }
}

/// So many tokens in, so many out.
fn sized(caller: &Caller, input: u64, output: u32) -> Ask<'_> {
    Ask {
        tokens: input,
        work: Work::Generate {
            choices: 1,
            max_tokens: Some(output),
        },
        ..ask(caller)
    }
}

impl Rig {
    /// Nothing here waits for anybody else, so the first poll decides.
    fn admit(&self, ask: &Ask<'_>) -> Result<Admission, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(self.limiter.admit(ask))
    }

    /// A stream of a request that has begun.
    fn begin(&self, ask: &Ask<'_>) -> Arc<dyn Meter> {
        let admission = self.admit(ask).unwrap();
        admission.began(u32::try_from(ask.tokens).unwrap());
        admission.into_meter()
    }

    fn refused(&self, ask: &Ask<'_>) -> Failure {
        let failure = self.admit(ask).err().unwrap();
        assert_eq!(failure.kind, Kind::Limited);
        failure
    }

    fn left(&self, caller: &Caller, limit: &str) -> u64 {
        let standing = self.limiter.standing(caller, Some("m")).unwrap();
        let found = standing.limits.iter().find(|(name, _)| *name == limit);
        found.unwrap().1.remaining
    }
}

fn wait(seconds: u64) -> Duration {
    // A millisecond more than needed: rounded, it is never too early.
    Duration::from_millis(seconds * 1000 + 1)
}

#[test]
fn without_limits_nothing_is_refused_and_no_state_is_made() {
    let rig = rig("");
    for caller in [caller("key:a"), from("10.0.0.1"), Caller::default()] {
        for _ in 0..1000 {
            rig.begin(&sized(&caller, 1_000_000, u32::MAX)).settle();
        }
        assert_eq!(rig.limiter.standing(&caller, Some("m")), None);
    }
    assert_eq!(rig.limiter.accounts_kept(), 0);
}

#[test]
fn a_class_holds_for_each_of_its_callers_alone() {
    let rig = rig(
        "[classes.default]\nrequests_per_minute = 2\n[classes.big]\nrequests_per_minute = 3\n\
                   [anonymous]\nrequests_per_minute = 1",
    );
    let admitted = |caller: &Caller| (0..10).filter(|_| rig.admit(&ask(caller)).is_ok()).count();
    let big = |name| Caller {
        class: Some("big".into()),
        ..caller(name)
    };
    assert_eq!(admitted(&caller("key:a")), 2);
    assert_eq!(admitted(&caller("key:b")), 2);
    assert_eq!(admitted(&big("key:c")), 3);
    assert_eq!(admitted(&from("10.0.0.1")), 1);
    assert_eq!(admitted(&from("10.0.0.2")), 1);
    let unknown = Caller {
        class: Some("nowhere".into()),
        ..caller("key:d")
    };
    assert_eq!(admitted(&unknown), 2, "as the usual class");
    for class in ["elsewhere", "default"] {
        let other = Caller {
            class: Some(class.into()),
            ..caller("key:d")
        };
        assert_eq!(admitted(&other), 0, "no new account for a new name");
    }
    assert_eq!(admitted(&caller("key:d")), 0);
    assert_eq!(admitted(&big("key:a")), 3, "who changes class begins anew");
}

#[test]
fn addresses_of_one_site_are_one_caller() {
    let rig = rig("[anonymous]\nrequests_per_minute = 1");
    assert!(rig.admit(&ask(&from("2001:db8:0:1::1"))).is_ok());
    assert!(rig.admit(&ask(&from("2001:db8:0:1:ffff::2"))).is_err());
    assert!(rig.admit(&ask(&from("2001:db8:0:2::1"))).is_ok());
    assert!(rig.admit(&ask(&from("192.0.2.1"))).is_ok());
    assert!(
        rig.admit(&ask(&from("::ffff:192.0.2.1"))).is_err(),
        "mapped"
    );
}

#[test]
fn a_scope_that_refuses_takes_nothing_from_those_before_it() {
    let rig = rig(
        "[organizations.acme]\nrequests_per_minute = 10\ntokens_per_minute = 1000\nstreams = 5\n\
                   [classes.default]\nrequests_per_minute = 10\ntokens_per_minute = 1000\nqueued = 5\n\
                   requests_per_day = 10\n[classes.default.models.m]\nrequests_per_minute = 10\n\
                   [models.m]\ntokens_per_minute = 100",
    );
    let caller = Caller {
        organization: Some("acme".into()),
        ..caller("key:a")
    };
    let _filled = rig.begin(&sized(&caller, 30, 60));
    let before = rig.limiter.standing(&caller, Some("m")).unwrap();
    let failure = rig.refused(&sized(&caller, 5, 6));
    assert!(
        failure.message.contains("(model.tokens_per_minute)"),
        "{}",
        failure.message
    );
    assert_eq!(failure.code, Some("rate_limit_exceeded"));
    assert_eq!(failure.retry_after, Some(Duration::from_millis(601)));
    assert_eq!(rig.limiter.standing(&caller, Some("m")).unwrap(), before);
    let text = rig.metrics_text();
    assert!(
        text.contains(
            r#"sluicegate_limit_refusals_total{scope="model",limit="tokens_per_minute"} 1"#
        )
    );
}

impl Rig {
    fn metrics_text(&self) -> String {
        self.metrics.render(&crate::telemetry::Scrape::default())
    }
}

#[test]
fn each_limit_refuses_in_its_own_name_and_says_when_to_come_back() {
    let table = [
        ("streams = 1", "streams", "rate_limit_exceeded", wait(1)),
        ("queued = 1", "queued", "rate_limit_exceeded", wait(1)),
        (
            "requests_per_minute = 1",
            "requests_per_minute",
            "rate_limit_exceeded",
            wait(60),
        ),
        (
            "requests_per_day = 1",
            "requests_per_day",
            "insufficient_quota",
            wait(86_400),
        ),
        (
            "requests_per_month = 1",
            "requests_per_month",
            "insufficient_quota",
            wait(864_000),
        ),
        (
            "tokens_per_minute = 30",
            "tokens_per_minute",
            "rate_limit_exceeded",
            wait(60),
        ),
        (
            "input_tokens_per_minute = 10",
            "input_tokens_per_minute",
            "rate_limit_exceeded",
            wait(60),
        ),
        (
            "output_tokens_per_minute = 20",
            "output_tokens_per_minute",
            "rate_limit_exceeded",
            wait(60),
        ),
        (
            "tokens_per_day = 30",
            "tokens_per_day",
            "insufficient_quota",
            wait(86_400),
        ),
        (
            "tokens_per_month = 30",
            "tokens_per_month",
            "insufficient_quota",
            wait(864_000),
        ),
    ];
    for (rates, limit, code, after) in table {
        let rig = rig(&format!("[classes.default]\n{rates}"));
        let caller = caller("key:a");
        let _open = rig.begin(&sized(&caller, 10, 20));
        let failure = rig.refused(&sized(&caller, 10, 20));
        assert!(
            failure.message.contains(&format!("(caller.{limit})")),
            "{}",
            failure.message
        );
        assert_eq!(failure.code, Some(code), "{limit}");
        assert_eq!(failure.retry_after, Some(after), "{limit}");
    }
}

#[test]
fn streams_and_places_in_line_are_given_back_as_soon_as_they_are_free() {
    let rig = rig("[classes.default]\nstreams = 2\nqueued = 1");
    let caller = caller("key:a");
    let first = rig.begin(&ask(&caller));
    assert!(rig.refused(&ask(&caller)).message.contains("caller.queued"));
    first.charge(1).unwrap();
    let second = rig.begin(&ask(&caller));
    second.charge(1).unwrap();
    assert!(
        rig.refused(&ask(&caller))
            .message
            .contains("caller.streams")
    );
    first.settle();
    first.settle();
    assert_eq!(rig.left_places(&caller), 1);
    let third = rig.begin(&ask(&caller));
    assert_eq!(rig.left_places(&caller), 0);
    drop((first, second, third));
    assert_eq!(rig.left_places(&caller), 2, "each is given back once");
}

impl Rig {
    /// Streams that the caller may still open; found by opening them.
    fn left_places(&self, caller: &Caller) -> usize {
        let mut open = Vec::new();
        while let Ok(admission) = self.admit(&ask(caller)) {
            admission.began(0);
            let meter = admission.into_meter();
            let _ = meter.charge(1);
            open.push(meter);
        }
        open.len()
    }
}

#[test]
fn what_is_reserved_and_not_delivered_is_given_back() {
    let rig = rig("[classes.default]\ntokens_per_minute = 1000");
    let caller = caller("key:a");
    let left = || rig.left(&caller, "caller.tokens_per_minute");
    let meter = rig.begin(&sized(&caller, 100, 400));
    assert_eq!(left(), 500);
    meter.charge(30).unwrap();
    assert_eq!(left(), 500, "it is paid for");
    meter.settle();
    assert_eq!(left(), 870);
    let never = rig.admit(&sized(&caller, 100, 400)).unwrap();
    assert_eq!(left(), 370);
    drop(never);
    assert_eq!(left(), 870, "the engine did not take it");
    let meter = rig.begin(&sized(&caller, 100, 400));
    meter.forgive();
    meter.settle();
    assert_eq!(left(), 870, "it was sent away while it waited");
}

#[test]
fn the_prompts_real_length_takes_the_place_of_its_estimate() {
    let rig = rig("[classes.default]\ntokens_per_minute = 1000\ninput_tokens_per_minute = 1000");
    let caller = caller("key:a");
    let text = Ask {
        text_bytes: 400,
        ..sized(&caller, 0, 10)
    };
    for (real, left) in [(40, 950), (240, 700)] {
        let admission = rig.admit(&text).unwrap();
        admission.began(real);
        assert_eq!(rig.left(&caller, "caller.tokens_per_minute"), left);
        let input = left + 10 * if real == 40 { 1 } else { 2 };
        assert_eq!(rig.left(&caller, "caller.input_tokens_per_minute"), input);
        let meter = admission.into_meter();
        meter.charge(10).unwrap();
        meter.settle();
    }
}

#[test]
fn a_stream_beyond_its_reservation_goes_on_while_there_is_something_left() {
    for (when_dry, is_length) in [("length", true), ("error", false)] {
        let rig = rig(&format!(
            "when_dry = '{when_dry}'\n[classes.default]\ntokens_per_minute = 600\ntoken_burst = 300\n\
             [models.m]\noutput_tokens_per_minute = 100000"
        ));
        let caller = caller("key:a");
        let unbounded = Ask {
            work: Work::Generate {
                choices: 1,
                max_tokens: None,
            },
            ..ask(&caller)
        };
        let meter = rig.begin(&unbounded);
        for _ in 0..29 {
            meter.charge(10).unwrap();
        }
        let spent = meter.charge(10).unwrap_err();
        assert_eq!(spent.limit, "caller.tokens_per_minute");
        match spent.end {
            Ending::Length => assert!(is_length),
            Ending::Failed(failure) => {
                assert!(!is_length);
                assert_eq!(failure.kind, Kind::Limited);
                assert!(failure.message.contains("caller.tokens_per_minute"));
                assert_eq!(failure.retry_after, Some(wait(30)));
            }
        }
        meter.settle();
        rig.clock.advance(Duration::from_secs(1));
        assert_eq!(rig.left(&caller, "caller.tokens_per_minute"), 10);
        let text = rig.metrics_text();
        assert!(
            text.contains(
                r#"sluicegate_limit_dry_total{scope="caller",limit="tokens_per_minute"} 1"#
            )
        );
        assert!(
            text.contains(r#"sluicegate_limit_tokens_total{kind="output"} 300"#),
            "{text}"
        );
    }
}

#[test]
fn urgency_and_weight_are_those_of_the_class() {
    let rig =
        rig("[classes.a]\nweight = 4\npriority = 'normal'\n[anonymous]\npriority = 'background'");
    let of_class = Caller {
        class: Some("a".into()),
        ..caller("key:a")
    };
    let admission = rig.admit(&ask(&of_class)).unwrap();
    assert_eq!(admission.weight(), 4);
    assert_eq!(admission.urgency(Class::Interactive), Class::Normal);
    assert_eq!(admission.urgency(Class::Background), Class::Background);
    let anonymous = rig.admit(&ask(&from("10.0.0.1"))).unwrap();
    assert_eq!(anonymous.weight(), 1);
    assert_eq!(anonymous.urgency(Class::Normal), Class::Background);
    let other = rig.admit(&ask(&caller("key:b"))).unwrap();
    assert_eq!(other.urgency(Class::Interactive), Class::Interactive);
}

#[test]
fn where_there_is_no_room_for_an_account_newcomers_share_one() {
    let rig = rig("max_accounts = 4\n[anonymous]\nrequests_per_minute = 3\n\
                   [classes.default]\nrequests_per_minute = 3");
    let admitted = (0..1000_u32)
        .filter(|&number| {
            let address = std::net::Ipv4Addr::from_bits(number).to_string();
            rig.admit(&ask(&from(&address))).is_ok()
        })
        .count();
    assert_eq!(rig.limiter.accounts_kept(), 2);
    assert_eq!(admitted, 2 + 3, "two of their own, and one for all others");
    let left = |caller: &Caller| rig.left(caller, "caller.requests_per_minute");
    assert_eq!(left(&from("0.0.0.0")), 2);
    assert_eq!(left(&from("0.0.3.1")), 0, "who has none sees the others'");
    assert_eq!(left(&caller("key:a")), 3, "there is room for known callers");
    for name in ["key:a", "key:b"] {
        assert!(rig.admit(&ask(&caller(name))).is_ok());
    }
    rig.clock.advance(Duration::from_mins(1));
    rig.limiter.sweep();
    assert_eq!(rig.limiter.accounts_kept(), 0);
}

#[test]
fn asking_where_somebody_stands_makes_no_state() {
    let rig = rig(
        "[anonymous]\nrequests_per_minute = 10\n[anonymous.models.m]\ntokens_per_minute = 7\n\
                   [models.m]\ntokens_per_day = 5\nstreams = 1",
    );
    let caller = from("10.0.0.1");
    let standing = rig.limiter.standing(&caller, Some("m")).unwrap();
    assert_eq!(standing.requests.unwrap().remaining, 10);
    assert_eq!(standing.tokens.unwrap().remaining, 5, "the tightest");
    let names: Vec<_> = standing.limits.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "caller.requests_per_minute",
            "caller_on_model.tokens_per_minute",
            "model.tokens_per_day"
        ]
    );
    assert_eq!(rig.limiter.accounts_kept(), 0);
    let elsewhere = rig.limiter.standing(&caller, None).unwrap();
    assert_eq!(elsewhere.limits.len(), 1);
}

#[test]
fn a_quota_stands_where_it_was_although_its_account_was_forgotten() {
    let rig = rig("[classes.default]\nrequests_per_day = 10\ntokens_per_month = 1000");
    let caller = caller("key:a");
    for _ in 0..3 {
        rig.begin(&sized(&caller, 20, 0)).settle();
    }
    rig.limiter.sweep();
    assert_eq!(rig.limiter.accounts_kept(), 0);
    assert_eq!(rig.left(&caller, "caller.requests_per_day"), 7);
    assert_eq!(rig.left(&caller, "caller.tokens_per_month"), 940);
    assert_eq!(rig.limiter.accounts_kept(), 0);
    assert_eq!(
        rig.left(&self::caller("key:b"), "caller.requests_per_day"),
        10
    );
}

#[test]
fn a_shared_limit_is_looked_at_without_a_lease_of_it() {
    let redis = toml::from_str("url = 'redis://127.0.0.1:1'").unwrap();
    let (shared, clock) = (shared::Shared::new(&redis), Clock::fake(MIDNIGHT));
    let key = Key {
        scope: Scope::Caller,
        name: "key:a",
        model: None,
        limit: Limit::TokensPerMinute,
    };
    let bound = Bound::Rate {
        per_minute: 60,
        burst: 60,
    };
    assert!(shared.peek(key, bound).is_none());
    assert!(shared.peek(key, bound).is_none(), "looking made none");
    let cell = shared.cell(key, bound, None, &clock).unwrap();
    cell.charge(25, clock.at());
    let looked = shared.peek(key, bound).unwrap();
    assert_eq!(looked.left(clock.at()), cell.left(clock.at()));
}

#[test]
fn who_leaves_before_the_first_token_says_nothing_about_the_length_of_answers() {
    let rig = rig("[classes.default]\ntokens_per_minute = 100000");
    let caller = caller("key:a");
    let unbounded = Ask {
        work: Work::Generate {
            choices: 1,
            max_tokens: None,
        },
        ..ask(&caller)
    };
    for _ in 0..1000 {
        rig.begin(&unbounded).settle();
    }
    let _open = rig.begin(&unbounded);
    assert_eq!(rig.left(&caller, "caller.tokens_per_minute"), 100_000 - 256);
}

#[test]
fn what_was_reserved_yesterday_is_not_given_back_to_today() {
    let rig = rig("[classes.default]\ntokens_per_day = 1000\ntokens_per_month = 5000");
    let caller = caller("key:a");
    rig.clock.advance(Duration::from_secs(86_399));
    let late = rig.begin(&sized(&caller, 0, 900));
    rig.clock.advance(Duration::from_secs(1));
    let today = rig.begin(&sized(&caller, 0, 700));
    today.charge(700).unwrap();
    today.settle();
    late.settle();
    assert_eq!(rig.left(&caller, "caller.tokens_per_day"), 300);
    assert_eq!(rig.left(&caller, "caller.tokens_per_month"), 4300);
}

#[test]
fn embeddings_take_tokens_and_counting_takes_a_request() {
    let rig =
        rig("[classes.default]\nrequests_per_minute = 3\ntokens_per_minute = 100\nqueued = 1");
    let caller = caller("key:a");
    let embed = Ask {
        work: Work::Embed,
        ..sized(&caller, 40, 0)
    };
    let admission = rig.admit(&embed).unwrap();
    admission.began(50);
    drop(admission);
    let count = Ask {
        work: Work::Count,
        ..sized(&caller, 1_000_000, 0)
    };
    drop(rig.admit(&count).unwrap());
    assert_eq!(rig.left(&caller, "caller.tokens_per_minute"), 50);
    assert_eq!(rig.left(&caller, "caller.requests_per_minute"), 1);
}

#[test]
fn who_leaves_while_vectors_are_computed_pays_the_estimate_and_a_refusal_costs_nothing() {
    let rig = rig("[classes.default]\ntokens_per_minute = 100\nstreams = 1");
    let caller = caller("key:a");
    let embed = Ask {
        work: Work::Embed,
        ..sized(&caller, 40, 0)
    };
    let refused = rig.admit(&embed).unwrap();
    refused.begins();
    refused.came_to_nothing();
    drop(refused);
    assert_eq!(rig.left(&caller, "caller.tokens_per_minute"), 100);
    let left = rig.admit(&embed).unwrap();
    left.begins();
    drop(left);
    assert_eq!(rig.left(&caller, "caller.tokens_per_minute"), 60);
    let answered = rig.admit(&embed).unwrap();
    answered.begins();
    answered.began(30);
    drop(answered);
    assert_eq!(rig.left(&caller, "caller.tokens_per_minute"), 30);
}

#[test]
fn many_threads_over_all_scopes_are_granted_exactly_what_the_tightest_has() {
    let rig = rig(
        "[organizations.acme]\nrequests_per_minute = 300\n[classes.default]\n\
                   requests_per_minute = 100\ntokens_per_minute = 100000\n[models.m]\nrequests_per_day = 250",
    );
    let granted: Vec<usize> = thread::scope(|scope| {
        let one = |name: &'static str| {
            let rig = &rig;
            move || {
                let caller = Caller {
                    organization: Some("acme".into()),
                    ..caller(name)
                };
                let all = (0..150).filter(|_| rig.admit(&sized(&caller, 10, 10)).is_ok());
                all.count()
            }
        };
        // Two threads for each of four callers.
        let names = ["key:a", "key:b", "key:c", "key:d"];
        let threads: Vec<_> = names
            .iter()
            .flat_map(|name| [scope.spawn(one(name)), scope.spawn(one(name))])
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join().unwrap());
        ended.collect()
    });
    assert_eq!(granted.iter().sum::<usize>(), 250, "{granted:?}");
    for pair in granted.chunks(2) {
        assert!(pair.iter().sum::<usize>() <= 100, "{granted:?}");
    }
    let organization = Caller {
        organization: Some("acme".into()),
        ..Caller::default()
    };
    assert_eq!(
        rig.left(&organization, "organization.requests_per_minute"),
        50
    );
    assert_eq!(
        rig.left(&caller("key:a"), "caller.tokens_per_minute"),
        100_000
    );
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Open { input: u64, output: u32 },
    Begin { real: u32 },
    Deliver { stream: usize, tokens: u32 },
    Close { stream: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..200_u64, 1..200_u32).prop_map(|(input, output)| Step::Open { input, output }),
        (0..300_u32).prop_map(|real| Step::Begin { real }),
        (any::<usize>(), 1..64_u32).prop_map(|(stream, tokens)| Step::Deliver { stream, tokens }),
        any::<usize>().prop_map(|stream| Step::Close { stream }),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// Time stands still, so nothing comes back by itself and every token can be accounted for.
    #[test]
    fn what_is_charged_is_what_was_delivered(steps in steps()) {
        let burst = 5_000_u64;
        let rig = rig("[organizations.acme]\ntokens_per_day = 100000\n[classes.default]\n\
                       tokens_per_minute = 5000\ninput_tokens_per_minute = 6000\noutput_tokens_per_minute = 7000");
        let caller = Caller { organization: Some("acme".into()), ..caller("key:a") };
        let (mut waiting, mut open) = (Vec::new(), Vec::<Arc<dyn Meter>>::new());
        let (mut read, mut delivered) = (0_u64, 0_u64);
        for step in steps {
            match step {
                Step::Open { input, output } => waiting.extend(rig.admit(&sized(&caller, input, output))),
                Step::Begin { real } => {
                    if let Some(admission) = waiting.pop() {
                        let admission: Admission = admission;
                        admission.began(real);
                        read += u64::from(real);
                        open.push(admission.into_meter());
                    }
                }
                Step::Deliver { stream, tokens } if !open.is_empty() => {
                    let stream = stream % open.len();
                    delivered += u64::from(tokens);
                    if open[stream].charge(tokens).is_err() {
                        open.swap_remove(stream).settle();
                    }
                }
                Step::Close { stream } if !open.is_empty() => {
                    let stream = stream % open.len();
                    drop(open.swap_remove(stream));
                }
                _ => {}
            }
        }
        drop((waiting, open));
        let left = |limit| rig.left(&caller, limit);
        prop_assert_eq!(left("caller.tokens_per_minute"), burst.saturating_sub(read + delivered));
        prop_assert_eq!(left("caller.input_tokens_per_minute"), 6_000_u64.saturating_sub(read));
        prop_assert_eq!(left("caller.output_tokens_per_minute"), 7_000_u64.saturating_sub(delivered));
        prop_assert_eq!(left("organization.tokens_per_day"), 100_000_u64.saturating_sub(read + delivered));
    }

    /// Whoever keeps to its `max_tokens` never gets more than the budget and what came back meanwhile,
    /// but for one request that was larger than the budget.
    #[test]
    fn nobody_gets_more_than_the_budget_and_one_reservation(requests in proptest::collection::vec((1..400_u32, 0..20_u64), 1..60)) {
        let rig = rig("[classes.default]\ntokens_per_minute = 600\ntoken_burst = 300");
        let caller = caller("key:a");
        let (mut delivered, mut elapsed, mut largest) = (0_u64, 0_u64, 0_u64);
        for (tokens, pause) in requests {
            if let Ok(admission) = rig.admit(&sized(&caller, 0, tokens)) {
                admission.began(0);
                let meter = admission.into_meter();
                prop_assert!(meter.charge(tokens).is_ok(), "it is reserved");
                delivered += u64::from(tokens);
                largest = largest.max(u64::from(tokens));
            }
            rig.clock.advance(Duration::from_secs(pause));
            elapsed += pause;
            prop_assert!(delivered <= 300 + 10 * elapsed + largest.saturating_sub(300));
        }
    }
}

fn limits(text: &str) -> Limits {
    toml::from_str(text).unwrap()
}

#[tokio::test]
async fn other_limits_hold_from_the_next_request_on_and_what_was_used_stays_used() {
    let before = "[classes.default]\nrequests_per_minute = 10\nstreams = 2\n\
                  [organizations.acme]\nrequests_per_minute = 3\n";
    let rig = rig(before);
    let (a, b) = (
        caller("a"),
        Caller {
            organization: Some("acme".into()),
            ..caller("b")
        },
    );
    let held = rig.limiter.admit(&ask(&a)).await.ok().unwrap();
    let other = rig.limiter.admit(&ask(&a)).await.ok().unwrap();
    assert!(rig.limiter.admit(&ask(&a)).await.is_err(), "two streams");
    drop(rig.limiter.admit(&ask(&b)).await.ok().unwrap());

    let after = "[classes.default]\nrequests_per_minute = 4\nstreams = 3\n\
                 [organizations.acme]\nrequests_per_minute = 3\ntokens_per_day = 1000\n";
    rig.limiter.set(&limits(after));
    let third = rig.limiter.admit(&ask(&a)).await.ok().unwrap();
    assert!(
        rig.limiter.admit(&ask(&a)).await.is_err(),
        "three streams, of which two began before"
    );
    drop((held, other, third));
    drop(rig.limiter.admit(&ask(&a)).await.ok().unwrap());
    assert!(
        rig.limiter.admit(&ask(&a)).await.is_err(),
        "four requests, of which two were before"
    );
    for _ in 0..2 {
        drop(rig.limiter.admit(&ask(&b)).await.ok().unwrap());
    }
    assert!(
        rig.limiter.admit(&ask(&b)).await.is_err(),
        "the organization's third was the last"
    );

    rig.limiter.set(&limits(""));
    for _ in 0..50 {
        drop(rig.limiter.admit(&ask(&a)).await.ok().unwrap());
    }
    rig.limiter
        .set(&limits("[anonymous]\nrequests_per_minute = 1\n"));
    drop(
        rig.limiter
            .admit(&ask(&from("192.0.2.1")))
            .await
            .ok()
            .unwrap(),
    );
    assert!(rig.limiter.admit(&ask(&from("192.0.2.1"))).await.is_err());
}

#[tokio::test]
async fn the_same_limits_again_change_nothing() {
    let text = "[classes.default]\ntokens_per_minute = 100\n[models.m]\nrequests_per_minute = 2\n";
    let rig = rig(text);
    let caller = caller("a");
    drop(rig.limiter.admit(&ask(&caller)).await.ok().unwrap());
    let standing = rig.limiter.standing(&caller, Some("m"));
    rig.limiter.set(&limits(text));
    assert_eq!(rig.limiter.standing(&caller, Some("m")), standing);
    assert_eq!(rig.limiter.accounts_kept(), 1);
}
