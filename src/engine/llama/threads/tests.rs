//! The governor on simulated machines.
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "simulated times, of which three digits count"
)]

use proptest::prelude::*;

use super::*;

/// A machine on which a call takes a known time.
#[derive(Clone, Copy, Debug)]
struct Machine {
    /// Microseconds of one row on one thread, and of what each call takes besides.
    row: f32,
    fixed: f32,
    /// Share of the work that threads divide among them.
    parallel: f32,
    /// Microseconds that each further thread costs a call, for meeting the others.
    meeting: f32,
    /// Cores that really compute.
    cores: u32,
    /// Calls vary by up to this share of their time; one in a hundred takes four times as long.
    noise: f32,
    /// How ggml waits: a thread that spins makes everybody wait for whole time slices.
    spins: bool,
}

const DEMO: Machine = Machine {
    row: 160.0,
    fixed: 150.0,
    parallel: 0.92,
    meeting: 8.0,
    cores: 2,
    noise: 0.05,
    spins: false,
};

impl Machine {
    /// Time of a call when `busy` of the cores are taken by others.
    fn time(&self, threads: u32, rows: u32, busy: u32) -> f32 {
        let work = self.fixed + self.row * rows as f32;
        let cores = self.cores.saturating_sub(busy).max(1);
        let used = threads.min(cores) as f32;
        let alone = work * (1.0 - self.parallel + self.parallel / used)
            + self.meeting * (threads - 1) as f32;
        // One thread among as many others as there are cores has half a core.
        let crowd = if busy >= self.cores { 2.0 } else { 1.0 };
        let waiting = match threads <= cores {
            true => 0.0,
            // A hundred meetings of some time slices each, however short the work.
            false if self.spins => (alone * 24.0).min(400_000.0),
            false => alone * 0.3,
        };
        alone * crowd + waiting
    }

    /// Time with the best of these thread counts.
    fn best(&self, ladder: &[u32], rows: u32, busy: u32) -> f32 {
        let times = ladder.iter().map(|&threads| self.time(threads, rows, busy));
        times.fold(f32::MAX, f32::min)
    }
}

/// A run of calls against a machine.
struct Run {
    machine: Machine,
    governor: Governor,
    phase: Phase,
    now: u64,
    seed: u64,
    busy: u32,
    /// Time of all calls, and the time that they would have taken with the best count.
    taken: f32,
    needed: f32,
    last: u32,
}

impl Run {
    fn new(machine: Machine, most: u32) -> Self {
        Self {
            machine,
            governor: Governor::new(Limit::UpTo(most), Limit::UpTo(most)),
            phase: Phase::Decode,
            now: 0,
            seed: 7,
            busy: 0,
            taken: 0.0,
            needed: 0.0,
            last: 0,
        }
    }

    fn random(&mut self) -> f32 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.seed >> 40) as f32 / (1u64 << 24) as f32
    }

    fn call(&mut self, rows: u32) -> u32 {
        let threads = self.governor.threads(self.phase, rows);
        let mut noise = 1.0 + self.machine.noise * (self.random() - 0.5) * 2.0;
        if self.machine.noise > 0.0 && self.random() < 0.01 {
            noise *= 4.0;
        }
        let wall = self.machine.time(threads, rows, self.busy) * noise;
        self.now += wall as u64 + 30;
        self.taken += wall;
        self.needed += self
            .machine
            .best(&self.governor.decode.ladder, rows, self.busy)
            * noise;
        self.governor.observe(&Call {
            phase: self.phase,
            rows,
            at: self.now,
            wall: wall as u64,
        });
        self.last = threads;
        threads
    }

    /// Calls of `rows` for this long; the share of the time that was lost against the best count.
    fn spend(&mut self, micros: u64, rows: u32) -> f32 {
        (self.taken, self.needed) = (0.0, 0.0);
        let until = self.now + micros;
        while self.now < until {
            self.call(rows);
        }
        self.taken / self.needed - 1.0
    }

    /// The threads of most of the next calls.
    fn usual(&mut self, rows: u32) -> u32 {
        let mut threads: Vec<_> = (0..201).map(|_| self.call(rows)).collect();
        threads.sort_unstable();
        threads[100]
    }

    /// The share of the next calls that have this many threads.
    fn share(&mut self, threads: u32, rows: u32) -> f32 {
        (0..400).filter(|_| self.call(rows) == threads).count() as f32 / 400.0
    }
}

#[test]
fn the_ladder_ends_at_the_limit() {
    let ladder = |most| Tuner::new(Limit::UpTo(most)).ladder;
    assert_eq!(ladder(1), [1]);
    assert_eq!(ladder(2), [1, 2]);
    assert_eq!(ladder(5), [1, 2, 3, 4, 5]);
    assert_eq!(ladder(16), [1, 2, 3, 4, 6, 8, 12, 16]);
    assert_eq!(ladder(512).last(), Some(&512));
    assert!(ladder(512).len() <= RUNGS);
}

#[test]
fn sizes_are_half_octaves() {
    let sizes: Vec<_> = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 16]
        .map(size_of_call)
        .into();
    assert_eq!(sizes, [0, 2, 3, 4, 4, 5, 5, 6, 6, 7, 8]);
    assert_eq!(size_of_call(u32::MAX), SIZES - 1);
}

#[test]
fn a_fixed_number_stays() {
    let mut governor = Governor::new(Limit::Fixed(3), Limit::Fixed(5));
    for at in 0..1000 {
        assert_eq!(governor.threads(Phase::Decode, 4), 3);
        assert_eq!(governor.threads(Phase::Prefill, 128), 5);
        let wall = 1 + at * 977 % 5000;
        governor.observe(&Call {
            phase: Phase::Decode,
            rows: 4,
            at: at * 10_000,
            wall,
        });
    }
}

#[test]
fn two_threads_are_taken_at_once_where_they_pay() {
    for rows in [1, 8, 32] {
        let mut run = Run::new(DEMO, 2);
        run.spend(60_000, rows);
        assert!(run.share(2, rows) > 0.9, "{rows} rows");
    }
}

#[test]
fn long_calls_have_all_threads_from_the_first_and_few_looks_at_fewer() {
    // A prompt of a large model: seconds, not milliseconds.
    let machine = Machine {
        cores: 16,
        row: 20_000.0,
        noise: 0.0,
        ..DEMO
    };
    let mut run = Run::new(machine, 16);
    run.governor.calibrate(20_000);
    run.phase = Phase::Prefill;
    for _ in 0..5 {
        assert_eq!(run.call(512), 16);
    }
    let lost = run.spend(600_000_000, 512);
    assert!(lost < 0.03, "lost {lost} in ten minutes");
}

#[test]
fn a_long_call_begins_with_what_a_longer_one_found() {
    let mut run = Run::new(DEMO, 2);
    run.governor.calibrate(160);
    assert_eq!(run.call(1), 1, "a short one");
    run.busy = 1;
    run.spend(2_000_000, 32);
    assert_eq!(run.call(16), 1);
    assert_eq!(run.call(64), 2, "more rows, more to divide");
}

#[test]
fn what_fewer_threads_do_to_prompts_is_found_out_once() {
    let machine = Machine {
        row: 400.0,
        noise: 0.0,
        ..DEMO
    };
    let mut run = Run::new(machine, 2);
    run.governor.calibrate(400);
    run.phase = Phase::Prefill;
    let mut slow = 0;
    for rows in [512, 448, 384, 256, 192, 128, 64] {
        slow += (0..12).filter(|_| run.call(rows) == 1).count();
    }
    assert_eq!(slow, 1, "calls with one thread");
}

#[test]
fn a_core_is_given_back_within_a_second_and_taken_again() {
    for spins in [false, true] {
        let mut run = Run::new(Machine { spins, ..DEMO }, 2);
        run.spend(2_000_000, 8);
        run.busy = 1;
        let lost = run.spend(1_000_000, 8);
        assert!(
            lost < 0.25,
            "spins {spins}: lost {lost} of the first second"
        );
        assert!(run.share(1, 8) > 0.9, "spins {spins}");
        let lost = run.spend(30_000_000, 8);
        assert!(
            lost < 0.02,
            "spins {spins}: lost {lost} while it was shared"
        );
        run.busy = 0;
        run.spend(6_000_000, 8);
        assert!(run.share(2, 8) > 0.9, "spins {spins}: not taken back");
    }
}

#[test]
fn what_one_size_found_about_the_machine_holds_for_the_others() {
    let mut run = Run::new(
        Machine {
            spins: true,
            ..DEMO
        },
        2,
    );
    for rows in [1, 4, 8, 16, 32] {
        run.spend(500_000, rows);
    }
    run.busy = 1;
    run.spend(1_000_000, 8);
    for rows in [1, 4, 16, 32] {
        assert_eq!(run.call(rows), 1, "{rows} rows");
    }
}

#[test]
fn threads_that_gain_nothing_are_not_used() {
    // Two hyper-threads of one core; or a model so small that meeting costs what dividing gains.
    let siblings = Machine { cores: 1, ..DEMO };
    let tiny = Machine {
        row: 4.0,
        fixed: 30.0,
        meeting: 40.0,
        ..DEMO
    };
    for machine in [siblings, tiny] {
        let mut run = Run::new(machine, 2);
        run.spend(3_000_000, 1);
        assert!(run.share(1, 1) > 0.95);
        let lost = run.spend(20_000_000, 1);
        assert!(lost < 0.02, "lost {lost}");
    }
}

#[test]
fn the_best_of_many_is_found() {
    // Past six threads, meeting costs more than dividing gains.
    let machine = Machine {
        cores: 16,
        row: 2000.0,
        meeting: 300.0,
        ..DEMO
    };
    let mut run = Run::new(machine, 16);
    run.spend(3_000_000, 8);
    let lost = run.spend(20_000_000, 8);
    assert!(lost < 0.06, "lost {lost} with {} threads", run.last);
}

#[test]
fn many_cores_are_given_back_too() {
    let machine = Machine {
        cores: 16,
        row: 2000.0,
        meeting: 10.0,
        spins: true,
        ..DEMO
    };
    let mut run = Run::new(machine, 16);
    run.spend(5_000_000, 8);
    assert!(run.usual(8) >= 12);
    run.busy = 12;
    run.spend(1_000_000, 8);
    run.spend(10_000_000, 8);
    let usual = run.usual(8);
    assert!((2..=4).contains(&usual), "{usual} threads");
    run.busy = 0;
    run.spend(40_000_000, 8);
    assert!(run.usual(8) >= 12);
}

#[test]
fn a_growing_context_is_no_contention() {
    let mut run = Run::new(DEMO, 2);
    run.spend(1_000_000, 8);
    let mut twos = 0;
    for step in 0..4000 {
        run.machine.row = 160.0 * (1.0 + step as f32 / 1000.0);
        twos += u32::from(run.call(8) == 2);
    }
    assert!(twos > 3600, "{twos} of 4000");
}

#[test]
fn a_prompt_and_a_decode_step_are_judged_apart() {
    let mut run = Run::new(DEMO, 2);
    run.phase = Phase::Prefill;
    run.spend(2_000_000, 128);
    assert!(run.share(2, 128) > 0.9);
    assert_eq!(run.governor.threads(Phase::Decode, 128), 1);
}

proptest! {
    #[test]
    fn whatever_happens_little_is_lost_in_the_long_run(
        row in 5.0f32..4_000.0,
        fixed in 10.0f32..2_000.0,
        parallel in 0.0f32..1.0,
        meeting in 0.0f32..60.0,
        cores in 1u32..9,
        noise in 0.0f32..0.1,
        spins: bool,
        calibrated: bool,
        busy in 0u32..3,
        sizes in proptest::collection::vec(1u32..40, 1..4),
        seed: u64,
    ) {
        let machine = Machine { row, fixed, parallel, meeting, cores, noise, spins };
        let mut run = Run::new(machine, cores);
        if calibrated && !spins {
            run.governor.calibrate(row as u64);
        }
        run.seed = seed;
        run.busy = busy;
        let (mut taken, mut needed) = (0.0, 0.0);
        for turn in 0..60 {
            run.spend(1_000_000, sizes[turn % sizes.len()]);
            if turn >= 10 {
                taken += run.taken;
                needed += run.needed;
            }
        }
        prop_assert!(taken <= needed * 1.35, "lost {}", taken / needed - 1.0);
    }
}
