//! Promises between tenants, as figures, in the simulated world.
#![expect(clippy::print_stdout, reason = "the figures are what one wants to see")]

use std::collections::BTreeMap;

use super::simulator::{Place, Sequence, World};
use super::{Class, Limits, TenantId};

const SECOND: u64 = 1_000_000;

const LIMITS: Limits = Limits {
    ids: 16,
    cells: 1 << 20,
    decode_rows: 63,
    batch: 512,
    max_step_us: 50_000,
    one_prompt_per_call: false,
    cut_last: false,
    pooled: false,
    overcommit_percent: 100,
};

/// A caller who keeps so many requests under way: for each that ends, the next one comes at once.
#[derive(Clone, Copy)]
struct Caller {
    at_once: usize,
    weight: u16,
    class: Class,
    /// Tokens of a prompt and of an answer, on average: from half as many to half as many again.
    prompt: u32,
    budget: u32,
}

impl Caller {
    const USUAL: Self = Self {
        at_once: 4,
        weight: 1,
        class: Class::Normal,
        prompt: 100,
        budget: 60,
    };
}

/// What a caller got.
#[derive(Debug, Default)]
struct Got {
    /// From arrival to the first token, of those who came in the second half of the time.
    waits_us: Vec<u64>,
    /// Tokens computed in the second half, prompts included.
    tokens: u64,
}

impl Got {
    fn p99(&mut self) -> u64 {
        self.waits_us.sort_unstable();
        self.waits_us[self.waits_us.len() * 99 / 100]
    }
}

/// Lets the callers, tenants of these numbers, have their way for a while.
fn watch(callers: &[Caller], limits: Limits, time_us: u64) -> Vec<Got> {
    let mut world = World::new(limits, Vec::new());
    let mut dice = 88_172_645_463_325_252u64;
    let mut vary = |mean: u32| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        mean / 2 + u32::try_from(dice % u64::from(mean + 1)).unwrap()
    };
    let mut before = BTreeMap::new();
    while world.now_us < time_us {
        for (tenant, caller) in (0..).zip(callers) {
            let id = TenantId(tenant.into());
            let here = world.sequences.iter().rev();
            let here = here.filter(|s| s.tenant == id && s.place != Place::Ended);
            for _ in here.count()..caller.at_once {
                let (prompt, budget) = (vary(caller.prompt), vary(caller.budget));
                let now_us = world.now_us;
                let mut new = Sequence::new(tenant, caller.class, prompt, budget, now_us);
                new.weight = caller.weight;
                world.sequences.push(new);
            }
        }
        assert!(world.step(), "there is always something to do");
        if before.is_empty() && world.now_us >= time_us / 2 {
            before = world.served_tokens.clone();
        }
    }
    let half_us = time_us / 2;
    let of = |tenant: u32| {
        let id = TenantId(tenant.into());
        let came = |s: &&Sequence| s.tenant == id && s.arrived_us >= half_us;
        let wait = |s: &Sequence| s.first_us.unwrap_or(time_us) - s.arrived_us;
        let tokens = |at: &BTreeMap<TenantId, u64>| at.get(&id).copied().unwrap_or(0);
        Got {
            waits_us: world.sequences.iter().filter(came).map(wait).collect(),
            tokens: tokens(&world.served_tokens) - tokens(&before),
        }
    };
    (0..u32::try_from(callers.len()).unwrap()).map(of).collect()
}

/// Jain's index: 1 when all have the same, 1/n when one has all.
fn jain(shares: &[u64]) -> f64 {
    let shares = shares
        .iter()
        .map(|&share| f64::from(u32::try_from(share).unwrap()));
    let (count, sum, squares) = shares.fold((0.0, 0.0, 0.0), |(count, sum, squares), share| {
        (count + 1.0, sum + share, squares + share * share)
    });
    sum * sum / (count * squares)
}

fn tokens(got: &[Got]) -> Vec<u64> {
    got.iter().map(|got| got.tokens).collect()
}

/// Short prompts with long answers, and the reverse.
const SHAPES: [(u32, u32); 3] = [(100, 60), (1000, 20), (50, 200)];

#[test]
fn a_caller_who_floods_with_ten_times_its_share_delays_the_others_by_less_than_a_tenth() {
    // Five callers who together ask for a little more than the engine can do at once, so that each has
    // its share; then the first one asks for ten times as much.
    for (prompt, budget) in SHAPES {
        let usual = Caller {
            prompt,
            budget,
            ..Caller::USUAL
        };
        let p99_of_others = |at_once: usize| {
            let mut callers = [usual; 5];
            callers[0].at_once = at_once;
            let got = watch(&callers, LIMITS, 60 * SECOND);
            let shares = tokens(&got);
            assert!(jain(&shares) >= 0.95, "{shares:?}");
            let mut others = Got::default();
            for other in &got[1..] {
                others.waits_us.extend(&other.waits_us);
            }
            assert!(others.waits_us.len() > 100, "enough for a 99th percentile");
            others.p99()
        };
        let (alike, flooded) = (p99_of_others(4), p99_of_others(40));
        println!("{prompt} + {budget} tokens: p99 {alike} us, with a flood {flooded} us");
        assert!(flooded * 100 < alike * 110, "{alike} us, then {flooded} us");
    }
}

#[test]
fn equal_callers_get_equal_tokens_whatever_their_requests_look_like() {
    // By what they cost: a row of a prompt is cheaper than one of an answer, so callers are compared who
    // differ in how many and how long, not in the mix.
    let callers = [(20, 1), (10, 2), (5, 4), (40, 1), (4, 8)].map(|(at_once, times)| Caller {
        at_once,
        prompt: 50 * times,
        budget: 30 * times,
        ..Caller::USUAL
    });
    let shares = tokens(&watch(&callers, LIMITS, 60 * SECOND));
    println!("index {:.4} of {shares:?}", jain(&shares));
    assert!(jain(&shares) >= 0.95, "{} of {shares:?}", jain(&shares));
}

#[test]
fn shares_follow_weights_within_a_tenth() {
    for (prompt, budget) in SHAPES {
        let callers = [1, 2, 4].map(|weight| Caller {
            at_once: 20,
            weight,
            prompt,
            budget,
            ..Caller::USUAL
        });
        let shares = tokens(&watch(&callers, LIMITS, 60 * SECOND));
        println!("{prompt} + {budget} tokens: {shares:?}");
        let all: u64 = shares.iter().sum();
        for (share, weight) in shares.iter().zip([1, 2, 4]) {
            let fair = all * weight / 7;
            assert!(share.abs_diff(fair) * 10 < fair, "{share} of {shares:?}");
        }
    }
}

#[test]
fn no_class_starves_under_a_flood_of_a_higher_one() {
    let mut callers = [Class::Interactive, Class::Normal, Class::Background].map(|class| Caller {
        at_once: 1,
        class,
        ..Caller::USUAL
    });
    callers[0].at_once = 100;
    let mut got = watch(&callers, LIMITS, 60 * SECOND);
    // A class rises by one for every two seconds without service; then it is its turn.
    for (got, most_us) in got[1..].iter_mut().zip([3 * SECOND, 5 * SECOND]) {
        let p99 = got.p99();
        println!("{} waits, p99 {p99} us", got.waits_us.len());
        assert!(got.waits_us.len() >= 2 && p99 < most_us, "{p99} us");
    }
}
