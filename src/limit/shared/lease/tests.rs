//! Tests of the lease on a clock that a test turns, with answers that a test makes up.

use super::*;

/// Noon of 2025-11-21.
const NOON: u64 = 1_763_726_400;
const DAY: Duration = Duration::from_hours(24);

fn rate(per_minute: u64, burst: u64) -> (Lease, Clock) {
    lease(Budget::Rate { per_minute, burst })
}

fn quota(most: u64) -> (Lease, Clock) {
    let period = Period::Day;
    lease(Budget::Quota { period, most })
}

fn lease(budget: Budget) -> (Lease, Clock) {
    let clock = Clock::fake(NOON);
    (Lease::new("x".to_owned(), budget, &clock), clock)
}

/// One round with a server that grants all that is wanted and then has `free` left.
fn round(lease: &Lease, clock: &Clock, free: i64) -> Wish {
    let wish = lease.wish(false, 1, 0, clock.at());
    let granted = i64::try_from(wish.want).unwrap();
    lease.granted(&wish, [granted, free, 0], clock.at());
    wish
}

#[test]
fn a_caller_whose_class_has_changed_has_the_new_limit() {
    use super::super::super::{Key, Limit, Scope};
    let redis = toml::from_str("url = 'redis://127.0.0.1:1'").unwrap();
    let (shared, clock) = (super::super::Shared::new(&redis), Clock::fake(0));
    let of = |per_minute| {
        let key = Key {
            scope: Scope::Caller,
            name: "key:a",
            model: None,
            limit: Limit::TokensPerMinute,
        };
        let burst = per_minute;
        let bound = Bound::Rate { per_minute, burst };
        shared.cell(key, bound, None, &clock).unwrap()
    };
    let (old, new) = (of(100), of(900));
    assert_eq!(old.left(clock.at()).limit, 100);
    assert_eq!(new.left(clock.at()).limit, 900);
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_silent_server_once_and_not_for_each_of_its_limits() {
    use super::super::super::{Key, Limit, Scope};
    use super::super::config::Redis;
    let redis: Redis = toml::from_str("url = 'redis://127.0.0.1:1'").unwrap();
    // Nobody speaks with the server, so nobody learns that it is away.
    let (shared, clock) = (super::super::Shared::new(&redis), Clock::fake(0));
    let began = tokio::time::Instant::now();
    for scope in [Scope::Organization, Scope::Caller, Scope::Model] {
        let key = Key {
            scope,
            name: "a",
            model: None,
            limit: Limit::TokensPerMinute,
        };
        let (per_minute, burst) = (100, 100);
        let cell = (shared.cell(key, Bound::Rate { per_minute, burst }, None, &clock)).unwrap();
        assert!(cell.take(10, clock.at()).is_err());
        cell.refill(10).expect("it may have more").await;
        assert!(cell.take(10, clock.at()).is_ok(), "of its own share");
    }
    // Timers go by whole milliseconds.
    let most = redis.timeout + Duration::from_millis(2);
    assert!(began.elapsed() <= most, "{:?}", began.elapsed());
}

#[test]
fn a_slice_is_a_seconds_worth_a_tenth_at_most_and_one_at_least() {
    for ((per_minute, burst), slice) in [
        ((6000, 6000), 100),
        ((6000, 100), 10),
        ((60_000, 5), 1),
        ((1, 1_000_000), 1),
    ] {
        assert_eq!(Budget::Rate { per_minute, burst }.slice(), slice);
    }
}

#[test]
fn what_requests_wait_for_is_fetched_with_a_slice_on_top() {
    let (lease, clock) = rate(6000, 6000);
    assert_eq!(lease.draw(3, clock.at()), None);
    lease.wait_for(3);
    lease.wait_for(5);
    let wish = round(&lease, &clock, 0);
    assert_eq!((wish.settle, wish.need, wish.want), (0, 3, 108));
    assert_eq!(lease.draw(8, clock.at()), Some(false));
    // Half a slice is left: time for more.
    assert_eq!(lease.draw(51, clock.at()), Some(true));
    let wish = round(&lease, &clock, 0);
    assert_eq!((wish.settle, wish.need, wish.want), (0, 0, 51));
}

#[test]
fn a_debt_is_settled_and_too_much_goes_back() {
    let (lease, clock) = rate(6000, 6000);
    assert!(lease.charge(30, clock.at()));
    let wish = round(&lease, &clock, 1000);
    assert_eq!((wish.settle, wish.want), (30, 100));
    assert!(!lease.put(100));
    assert!(lease.put(1));
    assert_eq!(round(&lease, &clock, 1000).settle, -101);
    clock.advance(Duration::from_secs(2));
    assert!(lease.is_unsettled(clock.at()));
    let wish = round(&lease, &clock, 1000);
    assert_eq!((wish.settle, wish.want), (-100, 0));
    assert!(lease.is_settled());
}

#[test]
fn what_was_not_confirmed_is_sent_again_as_it_was_and_the_rest_after_it() {
    for (lease, clock) in [rate(6000, 6000), quota(100_000)] {
        lease.charge(30, clock.at());
        let wish = lease.wish(false, 1, 0, clock.at());
        assert_eq!((wish.number, wish.settle), (1, 30));
        lease.unanswered(&wish);
        lease.charge(5, clock.at());
        assert!(lease.is_unsettled(clock.at()) && !lease.is_settled());
        let again = lease.wish(false, 2, 0, clock.at());
        assert_eq!((again.number, again.settle), (1, 30));
        lease.granted(&again, [0, 0, 0], clock.at());
        assert!(lease.is_unsettled(clock.at()) && !lease.is_settled());
        let rest = lease.wish(false, 3, 0, clock.at());
        assert_eq!((rest.number, rest.settle), (3, 5));
        lease.granted(&rest, [0, 0, 0], clock.at());
        assert!(lease.is_settled());
        assert_eq!(lease.wish(false, 4, 0, clock.at()).settle, 0);
    }
}

#[test]
fn of_what_was_not_confirmed_nothing_is_left_tomorrow() {
    let (lease, clock) = quota(1000);
    lease.charge(30, clock.at());
    let wish = lease.wish(false, 1, 0, clock.at());
    lease.unanswered(&wish);
    clock.advance(DAY);
    assert_eq!(lease.wish(false, 2, 0, clock.at()).settle, 0);
}

#[test]
fn an_empty_limit_is_not_asked_for_again_before_something_has_come_back() {
    let (lease, clock) = rate(600, 600);
    let wish = lease.wish(false, 1, 0, clock.at());
    assert!(!lease.is_known_to_lack(1, clock.at()));
    lease.granted(&wish, [0, 0, 0], clock.at());
    assert!(lease.is_known_to_lack(1, clock.at()));
    assert_eq!(lease.until(1, None, clock.at()), Duration::from_millis(100));
    clock.advance(Duration::from_millis(100));
    assert!(!lease.is_known_to_lack(1, clock.at()));
    // Others may have given back what nobody here knows of.
    assert!(lease.is_known_to_lack(600, clock.at()));
    clock.advance(Duration::from_millis(150));
    assert!(!lease.is_known_to_lack(600, clock.at()));
}

#[test]
fn alone_each_of_the_nodes_has_its_part() {
    let (lease, clock) = rate(600, 600);
    let granted = (0..600).filter(|_| lease.take_alone(1, 3, None, clock.at()).is_ok());
    assert_eq!(granted.count(), 200);
    clock.advance(Duration::from_secs(3));
    let granted = (0..600).filter(|_| lease.take_alone(1, 3, None, clock.at()).is_ok());
    assert_eq!(granted.count(), 10);
}

#[test]
fn alone_a_node_starts_from_what_the_server_had_left() {
    let (lease, clock) = rate(600, 600);
    let wish = lease.wish(false, 1, 0, clock.at());
    lease.granted(&wish, [0, 60, 0], clock.at());
    let granted = (0..600).filter(|_| lease.take_alone(1, 2, None, clock.at()).is_ok());
    assert_eq!(granted.count(), 30);
}

#[test]
fn a_rate_that_was_used_alone_is_used_when_the_server_is_back() {
    let (lease, clock) = rate(600, 600);
    while lease.take_alone(1, 2, None, clock.at()).is_ok() {}
    clock.advance(Duration::from_secs(6));
    lease.resume();
    // In six seconds, sixty of six hundred have come back.
    let wish = lease.wish(false, 1, 0, clock.at());
    assert_eq!(wish.known, 540);
    lease.unanswered(&wish);
    assert_eq!(lease.wish(false, 1, 0, clock.at()).known, 540, "told again");
    assert_eq!(lease.wish(false, 1, 0, clock.at()).known, 0);
}

#[test]
fn what_is_taken_alone_of_a_quota_is_told_to_the_server() {
    let (lease, clock) = quota(1000);
    let wish = lease.wish(false, 1, 0, clock.at());
    lease.granted(&wish, [0, 500, 0], clock.at());
    assert!(lease.take_alone(251, 2, None, clock.at()).is_err());
    lease.take_alone(250, 2, None, clock.at()).unwrap();
    assert!(lease.take_alone(1, 2, None, clock.at()).is_err());
    lease.resume();
    assert_eq!(lease.wish(false, 1, 0, clock.at()).settle, 250);
}

#[test]
fn at_midnight_a_quota_begins_anew_and_yesterdays_answer_is_worth_nothing() {
    let (lease, clock) = quota(10_000);
    let yesterday = lease.wish(false, 1, 0, clock.at());
    lease.put(7);
    clock.advance(DAY);
    assert_eq!(lease.draw(1, clock.at()), None);
    lease.granted(&yesterday, [10, 10, 0], clock.at());
    assert_eq!(lease.draw(1, clock.at()), None);
    let today = lease.wish(false, 1, 0, clock.at());
    assert_eq!((today.index, today.settle), (yesterday.index + 1, 0));
    // A clock that is set back a little does not go back to yesterday.
    clock.set_calendar(NOON + DAY.as_secs() / 2 - 1);
    assert_eq!(lease.wish(false, 1, 0, clock.at()).index, today.index);
}

#[test]
fn a_server_without_memory_is_told_what_was_used() {
    let (lease, clock) = quota(1000);
    assert_eq!(lease.wish(false, 1, 70, clock.at()).known, 70);
    let wish = lease.wish(false, 1, 70, clock.at());
    lease.granted(&wish, [1, 200, 800], clock.at());
    assert_eq!(lease.wish(false, 1, 70, clock.at()).known, 800);
}
