//! The scripts against models, at the server's own times.

use std::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::Redis;

const RATE: &str = include_str!("../../../src/limit/shared/scripts/rate.lua");
const QUOTA: &str = include_str!("../../../src/limit/shared/scripts/quota.lua");
const NODES: &str = include_str!("../../../src/limit/shared/scripts/nodes.lua");

fn run(connection: &mut redis::Connection, script: &str, key: &str, arguments: &[i64]) -> [i64; 3] {
    let mut command = redis::cmd("EVAL");
    command.arg(script).arg(2).arg(key).arg(settled(key));
    command.arg(arguments);
    command.query(connection).unwrap()
}

fn settled(key: &str) -> String {
    format!("{key}-settled")
}

/// A bucket that fills with time: another way to say what the script computes.
struct Bucket {
    per_micro: f64,
    burst: f64,
    level: f64,
    at: i64,
}

impl Bucket {
    fn at(&mut self, now: i64) {
        #[expect(clippy::cast_precision_loss, reason = "less than an hour")]
        let since = (now - self.at).max(0) as f64;
        self.level = (self.level + since * self.per_micro).min(self.burst);
        self.at = now;
    }
}

#[test]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "small numbers"
)]
fn the_rate_script_decides_as_a_bucket_that_fills_with_time() {
    let redis = Redis::start();
    let connection = RefCell::new(redis.connect());
    let steps = proptest::collection::vec((-20_i64..20, 0_i64..40, 0_i64..60, 0_i64..3), 1..60);
    // A unit takes between 60 and 600 microseconds: time counts, though nobody waits.
    let limits = (100_000_i64..1_000_000, 1_i64..200);
    let mut runner = TestRunner::new(Config::with_cases(100));
    runner
        .run(&(limits, steps), |((per_minute, burst), steps)| {
            let mut connection = connection.borrow_mut();
            let mut delete = redis::cmd("DEL");
            let _: () = delete
                .arg("k")
                .arg(settled("k"))
                .query(&mut connection)
                .unwrap();
            let mut number = 0;
            let mut bucket = Bucket {
                per_micro: per_minute as f64 / 60e6,
                burst: burst as f64,
                level: burst as f64,
                at: 0,
            };
            for (settle, need, want, known) in steps {
                number += 1;
                let arguments = [per_minute, burst, settle, need, want, known, number, 60_000];
                let [granted, free, now] = run(&mut connection, RATE, "k", &arguments);
                bucket.at(now);
                bucket.level = bucket.level.min((burst - known) as f64);
                bucket.level =
                    (bucket.level - settle as f64).clamp(-9.0 * bucket.burst, bucket.burst);
                // The server's numbers are exact to a quarter of a microsecond, each time. Within that of a
                // whole unit, either answer is right.
                let near = |level: f64| (level - 0.1).floor() as i64..=(level + 0.1).floor() as i64;
                let expected = |level: i64| {
                    let is_huge = need > burst && level as f64 >= 0.8 * burst as f64;
                    if (level >= need && level > 0) || is_huge {
                        need.max(level.min(want))
                    } else {
                        0
                    }
                };
                let levels = near(bucket.level);
                let mut all = levels.clone().map(expected);
                prop_assert!(
                    all.any(|one| one == granted),
                    "{granted} of {levels:?}, {arguments:?}"
                );
                bucket.level -= granted as f64;
                let mut left = near(bucket.level).map(|level| level.max(0));
                prop_assert!(
                    left.any(|one| one == free),
                    "{free} left of {}",
                    bucket.level
                );
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_quota_script_counts_like_a_number() {
    let redis = Redis::start();
    let connection = RefCell::new(redis.connect());
    let steps = proptest::collection::vec((-20_i64..20, 0_i64..140, 0_i64..60), 1..60);
    let mut runner = TestRunner::new(Config::with_cases(100));
    runner
        .run(&(1_i64..500, 0_i64..50, steps), |(most, known, steps)| {
            let mut connection = connection.borrow_mut();
            let mut delete = redis::cmd("DEL");
            let _: () = delete
                .arg("k")
                .arg(settled("k"))
                .query(&mut connection)
                .unwrap();
            let (mut number, mut used) = (0, known);
            for (settle, need, want) in steps {
                number += 1;
                let arguments = [most, settle, need, want, known, number, 60_000];
                let [granted, free, now] = run(&mut connection, QUOTA, "k", &arguments);
                used = (used + settle).max(0);
                let left = (most - used).max(0);
                let is_huge = need > most && used <= most / 100;
                let fits = (left >= need && left > 0) || is_huge;
                let expected = if fits { need.max(left.min(want)) } else { 0 };
                prop_assert_eq!(granted, expected);
                used += granted;
                prop_assert_eq!((free, now), ((most - used).max(0), used));
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_else_lies_under_a_key_is_as_good_as_nothing() {
    let redis = Redis::start();
    let mut connection = redis.connect();
    let spoil: [&[&str]; 6] = [
        &["LPUSH", "k", "x"],
        &["HSET", "k", "a", "b"],
        &["SET", "k", "no number"],
        &["SET", "k", "nan"],
        &["SET", "k", "inf"],
        &["SET", "k", "-1e300"],
    ];
    for words in spoil {
        for (script, arguments, expected) in [
            (RATE, &[60, 100, 0, 5, 10, 0, 1, 60_000][..], [10, 90]),
            (QUOTA, &[100, 0, 5, 10, 30, 1, 60_000][..], [10, 60]),
        ] {
            redis.run(&["DEL", "k"]);
            redis.run(words);
            let [granted, free, _] = run(&mut connection, script, "k", arguments);
            // Endless debt counts as ten bursts of it.
            let is_debt = words.contains(&"inf") && script == RATE;
            let expected = if is_debt { [0, 0] } else { expected };
            assert_eq!([granted, free], expected, "{words:?}");
        }
    }
    // A set where it should be, of members that nobody knows.
    redis.run(&["DEL", "k"]);
    redis.run(&["SET", "k", "x"]);
    assert_eq!(run(&mut connection, NODES, "k", &[1, 60_000, 0]), [1, 0, 0]);
    assert_eq!(run(&mut connection, NODES, "k", &[2, 60_000, 0]), [2, 0, 0]);
    redis.run(&["ZADD", "k", "1", "long-gone", "9e15", "not-yet"]);
    assert_eq!(run(&mut connection, NODES, "k", &[1, 60_000, 1]), [1, 0, 0]);
}

#[test]
fn what_comes_twice_or_late_is_settled_once_and_units_are_granted_all_the_same() {
    let redis = Redis::start();
    let mut connection = redis.connect();
    // As they are sent, each with its number; and what is left after it, of ten thousand.
    let sent = [
        (1, 3000, 6999),
        (1, 3000, 6998),
        (3, -1000, 7997),
        (2, 500, 7996),
        (3, -1000, 7995),
        (4, 0, 7994),
        (4, 5, 7988),
    ];
    for (script, is_rate) in [(RATE, true), (QUOTA, false)] {
        let key = if is_rate { "rate" } else { "quota" };
        for (number, settle, left) in sent {
            // One a minute comes back.
            let rate = [1, 10_000, settle, 1, 1, 0, number, 60_000];
            let quota = [10_000, settle, 1, 1, 0, number, 60_000];
            let arguments = if is_rate { &rate[..] } else { &quota[..] };
            let [granted, free, _] = run(&mut connection, script, key, arguments);
            assert_eq!(granted, 1);
            assert!(
                (left..=left + i64::from(is_rate)).contains(&free),
                "{key}: {free}"
            );
        }
    }
}

#[test]
fn every_key_expires() {
    let redis = Redis::start();
    let mut connection = redis.connect();
    run(
        &mut connection,
        RATE,
        "rate",
        &[60, 100, 9, 50, 50, 0, 1, 70_000],
    );
    run(
        &mut connection,
        QUOTA,
        "quota",
        &[100, 9, 50, 50, 0, 1, 60_000],
    );
    run(&mut connection, NODES, "nodes", &[1, 5000, 0]);
    for (key, most) in [
        ("rate", 60_000),
        ("rate-settled", 70_000),
        ("quota", 60_000),
        ("quota-settled", 60_000),
        ("nodes", 5000),
    ] {
        let left: i64 = redis::cmd("PTTL").arg(key).query(&mut connection).unwrap();
        assert!((1..=most).contains(&left), "{key}: {left}");
    }
    // Everything given back leaves nothing behind.
    run(
        &mut connection,
        RATE,
        "rate",
        &[60, 100, -59, 0, 0, 0, 2, 70_000],
    );
    assert!(redis.keys("rate").is_empty());
}
