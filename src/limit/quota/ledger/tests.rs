//! Tests of the ledger: over restarts, and with a file that fails.

use std::fs;

use super::super::super::Scope;
use super::*;

/// Noon of 2025-11-21.
const NOON: u64 = 1_763_726_400;
const DAY: u64 = 86_400;

/// A clock that stands still.
fn at(unix: u64) -> Clock {
    Clock::fake(unix)
}

fn noon() -> Clock {
    at(NOON)
}

const MONTH: u64 = 30 * DAY;

/// A hundred tokens of somebody.
struct Tokens(Quota, Clock);

fn tokens(ledger: &Ledger, name: &str, period: Period) -> Tokens {
    let limit = match period {
        Period::Day => Limit::TokensPerDay,
        Period::Month => Limit::TokensPerMonth,
    };
    let quota = ledger.quota(key(name, limit), period, 100);
    Tokens(quota, ledger.clock.clone())
}

fn requests(ledger: &Ledger, name: &str) -> Tokens {
    let quota = ledger.quota(key(name, Limit::RequestsPerDay), Period::Day, 5);
    Tokens(quota, ledger.clock.clone())
}

fn key(name: &str, limit: Limit) -> Key<'_> {
    Key {
        scope: Scope::Caller,
        name,
        model: None,
        limit,
    }
}

impl Tokens {
    fn take(&self, n: u64) -> Result<(), Duration> {
        self.0.take(n, self.1.at())
    }

    fn add(&self, n: u64) {
        let _ = self.0.charge(n, self.1.at());
    }

    fn left(&self) -> u64 {
        self.0.left(self.1.at()).remaining
    }
}

#[test]
fn what_was_used_is_known_after_a_restart_until_the_period_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = || Some(folder.path().join("quotas.json"));
    {
        let ledger = Ledger::with(path(), MOST, &noon());
        tokens(&ledger, "a", Period::Day).take(60).unwrap();
        tokens(&ledger, "a", Period::Month).take(70).unwrap();
        requests(&ledger, "a").take(2).unwrap();
        ledger.save_now();
        // Not written any more: a crash forgets it.
        tokens(&ledger, "a", Period::Day).take(1).unwrap();
    }
    let left = |unix| {
        let ledger = Ledger::with(path(), MOST, &at(unix));
        [
            tokens(&ledger, "a", Period::Day).left(),
            tokens(&ledger, "a", Period::Month).left(),
            requests(&ledger, "a").left(),
            tokens(&ledger, "b", Period::Day).left(),
        ]
    };
    assert_eq!(left(NOON), [40, 30, 3, 100]);
    assert_eq!(left(NOON + DAY), [100, 30, 5, 100]);
    assert_eq!(left(NOON + MONTH), [100, 100, 5, 100]);
}

#[test]
fn the_file_can_be_read_by_a_person() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quotas.json");
    let ledger = Ledger::with(Some(path.clone()), MOST, &noon());
    tokens(&ledger, "key:a", Period::Day).take(60).unwrap();
    ledger.save_now();
    let text = fs::read_to_string(path).unwrap();
    for part in [
        "\"caller\"",
        "\"key:a\"",
        "\"2025-11-21\"",
        "\"tokens\": 60",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn entries_are_bounded_and_the_rest_share_one() {
    let ledger = Ledger::with(None, 3, &noon());
    for name in ["a", "b", "c", "d", "e"] {
        tokens(&ledger, name, Period::Day).add(40);
    }
    assert_eq!(tokens(&ledger, "a", Period::Day).left(), 60);
    assert_eq!(tokens(&ledger, "f", Period::Day).left(), 20);
    assert_eq!(ledger.lock().all().count(), 4);
}

#[test]
fn organizations_and_models_have_their_own_entries_however_many_callers_there_are() {
    let ledger = Ledger::with(None, 2, &noon());
    for name in ["a", "b", "c", "d"] {
        tokens(&ledger, name, Period::Day).add(40);
    }
    let left = |scope, name| {
        let key = Key {
            scope,
            ..key(name, Limit::TokensPerDay)
        };
        let quota = ledger.quota(key, Period::Day, 100);
        quota.charge(1, ledger.clock.at());
        quota.left(ledger.clock.at()).remaining
    };
    assert_eq!(left(Scope::Organization, "acme"), 99);
    assert_eq!(left(Scope::Model, "m"), 99);
    assert_eq!(left(Scope::Model, "n"), 99);
    assert_eq!(left(Scope::Caller, "e"), 19, "of the rest");
    // And they take no caller's room away.
    let ledger = Ledger::with(None, 1, &noon());
    let model = Key {
        scope: Scope::Model,
        ..key("m", Limit::TokensPerDay)
    };
    let _model = ledger.quota(model, Period::Day, 100);
    tokens(&ledger, "a", Period::Day).add(40);
    tokens(&ledger, "b", Period::Day).add(1);
    assert_eq!(tokens(&ledger, "a", Period::Day).left(), 60);
}

#[test]
fn who_looks_sees_what_was_used_and_makes_no_entry() {
    let ledger = Ledger::with(None, 2, &noon());
    let look = |name| {
        let quota = ledger.peek(key(name, Limit::TokensPerDay), Period::Day, 100);
        quota.left(ledger.clock.at()).remaining
    };
    tokens(&ledger, "a", Period::Day).add(40);
    assert_eq!((look("a"), look("b")), (60, 100));
    assert_eq!(ledger.lock().all().count(), 1);
    for name in ["b", "c"] {
        tokens(&ledger, name, Period::Day).add(30);
    }
    assert_eq!(look("d"), 70, "what the rest have");
}

#[test]
fn who_has_used_nothing_this_month_is_forgotten() {
    let clock = noon();
    let ledger = Ledger::with(None, 3, &clock);
    tokens(&ledger, "a", Period::Month).add(1);
    tokens(&ledger, "looked", Period::Month).left();
    let held = tokens(&ledger, "b", Period::Month);
    held.add(1);
    ledger.save_now();
    assert_eq!(ledger.lock().all().count(), 2);
    clock.set_calendar(NOON + MONTH);
    ledger.save_now();
    assert_eq!(ledger.lock().all().count(), 1);
    held.take(100).unwrap();
}

#[test]
fn counting_goes_on_when_the_file_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    // A folder where the file belongs.
    let path = folder.path().join("quotas.json");
    fs::create_dir(&path).unwrap();
    let ledger = Ledger::with(Some(path.clone()), MOST, &noon());
    assert_eq!(ledger.failures(), 1);
    let quota = tokens(&ledger, "a", Period::Day);
    quota.take(60).unwrap();
    ledger.save_now();
    assert_eq!(ledger.failures(), 2);
    assert!(quota.take(41).is_err());
    // And it is written as soon as it can be.
    fs::remove_dir(&path).unwrap();
    ledger.save_now();
    assert_eq!(ledger.failures(), 2);
    assert!(fs::read_to_string(&path).unwrap().contains("60"));
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_nothing_but_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quotas.json");
    let ledger = Ledger::with(Some(path.clone()), MOST, &noon());
    let quota = tokens(&ledger, "a", Period::Day);
    quota.take(10).unwrap();
    ledger.save_now();
    let fresh = folder.path().join("quotas.json.new");
    std::os::unix::fs::symlink("/dev/full", &fresh).unwrap();
    quota.take(20).unwrap();
    ledger.save_now();
    assert_eq!(ledger.failures(), 1);
    assert!(fs::read_to_string(&path).unwrap().contains("10"));
    fs::remove_file(fresh).unwrap();
    ledger.save_now();
    assert_eq!(ledger.failures(), 1);
    assert!(fs::read_to_string(&path).unwrap().contains("30"));
}

#[test]
fn a_second_process_takes_over_when_the_first_ends_and_forgets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = || Some(folder.path().join("quotas.json"));
    let old = Ledger::with(path(), MOST, &noon());
    tokens(&old, "a", Period::Day).take(50).unwrap();
    let new = Ledger::with(path(), MOST, &noon());
    assert_eq!(new.failures(), 1);
    let quota = tokens(&new, "a", Period::Day);
    quota.take(10).unwrap();
    old.save_now();
    drop(old);
    new.save_now();
    new.save_now();
    assert_eq!((new.failures(), quota.left()), (1, 50));
    assert!(fs::read_to_string(path().unwrap()).unwrap().contains("50"));
}

#[tokio::test(start_paused = true)]
async fn what_changes_is_written_within_a_second_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quotas.json");
    let ledger = Arc::new(Ledger::with(Some(path.clone()), MOST, &noon()));
    let stop = CancellationToken::new();
    let keeping = tokio::spawn(ledger.clone().keep(stop.clone()));
    let quota = tokens(&ledger, "a", Period::Day);
    quota.take(11).unwrap();
    // The writer waits a second between two writes, not before the first.
    while !fs::read_to_string(&path).is_ok_and(|text| text.contains("11")) {
        time::sleep(Duration::from_millis(1)).await;
    }
    quota.take(11).unwrap();
    stop.cancel();
    keeping.await.unwrap();
    assert!(fs::read_to_string(&path).unwrap().contains("22"));
}
