//! Whether the time of looking a wrong key up tells how nearly it is right: two classes of wrong keys in random
//! order, and Welch's t-test over their times (Reparaz and others, "Dude, is my code constant time?", 2017).
//!
//! A third pair, strangers and strangers, shows how far t goes where there is nothing to find.
//!
//! It reports and judges nothing: a shared machine makes differences of its own. Beyond 4.5 (a chance of one in a
//! hundred thousand where there is no difference) the paper sees a leak; a look again is due then, not an alarm.
#![expect(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "it prints figures, of counts far below 2^53"
)]

use std::fmt::Display;
use std::hint::black_box;
use std::time::Instant;

use sluicegate::auth::keys::{KeyEntry, KeyHash, Keys, mint};

/// Measured times of each class; far fewer when run as a test.
const SAMPLES: usize = 200_000;
const SAMPLES_AS_TEST: usize = 200;

/// Look-ups in one measured time, so that the clock's own steps are small beside it.
const LOOKUPS: usize = 4;

/// Wrong keys of each class: so many that it does not matter which of them meet others in the table's buckets.
const KEYS: usize = 1024;
const KEYS_AS_TEST: usize = 4;

/// How much of a near key's hash, or of its text, is that of a right one.
const SAME_DIGITS: usize = 4;

fn main() {
    let is_bench = std::env::args().any(|arg| arg == "--bench");
    let (samples, keys) = if is_bench {
        (SAMPLES, KEYS)
    } else {
        (SAMPLES_AS_TEST, KEYS_AS_TEST)
    };
    let strangers = || (0..keys).map(|_| random_key()).collect::<Option<Vec<_>>>();
    let (Some((right, table)), Some(far), Some(others)) = (table(), strangers(), strangers())
    else {
        return;
    };
    report("strangers and strangers", &table, &others, &far, samples);

    // Of each right key, all but the last letters.
    let near: Vec<String> = (0..keys)
        .filter_map(|at| {
            let key = right.get(at % right.len())?;
            let (same, _) = key.split_at_checked(key.len() - 4)?;
            Some(format!("{same}{at:04}"))
        })
        .collect();
    report("text begins like a key's", &table, &near, &far, samples);

    // Which hash a text has can only be tried.
    let wanted: Vec<String> = right.iter().map(|key| digits(key)).collect();
    let mut near = Vec::new();
    while near.len() < keys {
        let Some(key) = random_key() else {
            return;
        };
        if wanted.contains(&digits(&key)) {
            near.push(key);
        }
    }
    report("hash begins like a key's", &table, &near, &far, samples);
}

/// As many keys as a small installation has, and a table of them.
fn table() -> Option<(Vec<String>, Keys)> {
    let right = (0..16).map(|_| random_key()).collect::<Option<Vec<_>>>()?;
    let entries: Vec<_> = right
        .iter()
        .enumerate()
        .map(|(at, key)| KeyEntry {
            id: at.to_string().into(),
            hash: KeyHash::of(key),
            owner: None,
            scopes: sluicegate::generation::Scopes::ALL,
            models: None,
            expires: None,
            class: None,
        })
        .collect();
    let table = Keys::new(&entries, |_| true).ok()?;
    Some((right, table))
}

fn random_key() -> Option<String> {
    Some(mint().ok()?.to_string())
}

/// The beginning of a key's hash.
fn digits(key: &str) -> String {
    let hash = KeyHash::of(key).to_string();
    let digits = hash.split_once(':').map_or("", |(_, digits)| digits);
    digits.chars().take(SAME_DIGITS).collect()
}

fn report(what: impl Display, table: &Keys, near: &[String], far: &[String], samples: usize) {
    let mut times = [Vec::with_capacity(samples), Vec::with_capacity(samples)];
    let classes = [near, far];
    // xorshift64: which class comes next must not follow a pattern that a processor learns.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut places: [String; LOOKUPS] = std::array::from_fn(|_| String::with_capacity(64));
    while times.iter().any(|times| times.len() < samples) {
        let random = next();
        let class = usize::from(random & 1 == 1);
        let keys = classes[class];
        let at = usize::try_from(random >> 32).unwrap_or_default();
        // Into the same place for both classes: where they lie is no part of what is asked.
        for (add, place) in places.iter_mut().enumerate() {
            place.clear();
            place.push_str(&keys[(at + add) % keys.len()]);
        }
        let before = Instant::now();
        for key in &places {
            black_box(table.shown(black_box(key)).is_some());
        }
        let nanos = before.elapsed().as_nanos();
        if times[class].len() < samples {
            times[class].push(u32::try_from(nanos).unwrap_or(u32::MAX));
        }
    }
    let [near, far] = times;
    // Interrupts make a few times very long and hide everything else; the paper crops them, too.
    let mut all: Vec<u32> = near.iter().chain(&far).copied().collect();
    all.sort_unstable();
    for (share, name) in [
        (100, "all times"),
        (95, "fastest 95 %"),
        (50, "fastest half"),
    ] {
        let most = all[all.len() * share / 100 - 1];
        let of = |times: &[u32]| Moments::of(times.iter().copied().filter(|time| *time <= most));
        let (near, far) = (of(&near), of(&far));
        println!(
            "{what}: {name}: near {:.1} ns, far {:.1} ns a look-up; t = {:+.2} over {} + {} times",
            near.mean / LOOKUPS as f64,
            far.mean / LOOKUPS as f64,
            near.welch(&far),
            near.count,
            far.count,
        );
    }
}

/// Count, mean and variance, gathered as Welford does.
struct Moments {
    count: usize,
    mean: f64,
    variance: f64,
}

impl Moments {
    fn of(times: impl Iterator<Item = u32>) -> Self {
        let (mut count, mut mean, mut squares) = (0_usize, 0.0, 0.0);
        for time in times.map(f64::from) {
            count += 1;
            let before = time - mean;
            mean += before / count as f64;
            squares += before * (time - mean);
        }
        let variance = squares / count.saturating_sub(1).max(1) as f64;
        Self {
            count,
            mean,
            variance,
        }
    }

    fn welch(&self, other: &Self) -> f64 {
        let error = |moments: &Self| moments.variance / moments.count.max(1) as f64;
        let spread = (error(self) + error(other)).sqrt();
        if spread == 0.0 {
            return 0.0;
        }
        (self.mean - other.mean) / spread
    }
}
