//! Profiles of this very process, and what is made of them.

use super::*;

/// Uses CPU until it is told to stop.
#[inline(never)]
fn a_busy_function(stop: &AtomicBool) -> u64 {
    let mut number = 1_u64;
    while !stop.load(Relaxed) {
        for step in 0..1000 {
            number = std::hint::black_box(number.wrapping_mul(31) ^ step);
        }
    }
    number
}

/// Allocates, throws and formats until it is told to stop: what a handler must not meet half way.
fn a_rough_function(stop: &AtomicBool) {
    while !stop.load(Relaxed) {
        let texts: Vec<String> = (0..100).map(|number| format!("{number}")).collect();
        let broken = std::panic::catch_unwind(|| std::panic::resume_unwind(Box::new(texts)));
        assert!(broken.is_err());
    }
}

/// A profile as soon as it has enough samples, whatever else the machine does.
fn enough(frequency: u32, samples: u64) -> Profile {
    let mut all = Vec::new();
    for _ in 0..600 {
        match capture(
            Duration::from_millis(100),
            frequency,
            STACKS,
            &AtomicBool::new(false),
        ) {
            Ok(part) => all.push(Arc::new(part)),
            // Another test may have the timer.
            Err(ProfileError::Busy) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
        let seen: u64 = all
            .iter()
            .flat_map(|part: &Arc<Samples>| part.stacks.values())
            .sum();
        if seen >= samples {
            break;
        }
    }
    resolve(&all)
}

#[test]
fn the_function_that_takes_the_time_is_found_with_those_who_called_it() {
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let busy = thread::Builder::new().name("busy-bee".to_owned());
    let busy = busy.spawn(move || a_busy_function(&stopping)).unwrap();
    let profile = enough(250, 10);
    stop.store(true, Relaxed);
    busy.join().unwrap();
    let folded = profile.folded();
    let lines = folded.lines().filter(|line| line.starts_with("busy-bee;"));
    let found = lines
        .filter(|line| line.contains("a_busy_function"))
        .count();
    assert!(found > 0, "{folded}");
    let svg = String::from_utf8(profile.svg().unwrap()).unwrap();
    assert!(svg.contains("<svg") && svg.contains("a_busy_function"));
    assert!(!profile.pprof().is_empty());
}

#[test]
fn threads_that_allocate_and_unwind_are_sampled_unharmed() {
    let stop = Arc::new(AtomicBool::new(false));
    let rough: Vec<_> = (0..3)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || a_rough_function(&stop))
        })
        .collect();
    let profile = enough(1000, 100);
    stop.store(true, Relaxed);
    for thread in rough {
        thread.join().unwrap();
    }
    assert!(profile.samples() >= 100);
}

#[test]
fn there_is_one_at_a_time() {
    let stop = Arc::new(AtomicBool::new(false));
    let (began, begins) = std::sync::mpsc::sync_channel(1);
    let stopping = stop.clone();
    let first = thread::spawn(move || {
        loop {
            match Sampling::start(10).unwrap() {
                None => thread::yield_now(),
                Some(sampling) => {
                    began.send(()).unwrap();
                    while !stopping.load(Relaxed) {
                        thread::yield_now();
                    }
                    drop(sampling);
                    return;
                }
            }
        }
    });
    begins.recv().unwrap();
    let second = capture(
        Duration::from_millis(1),
        10,
        STACKS,
        &AtomicBool::new(false),
    );
    stop.store(true, Relaxed);
    first.join().unwrap();
    assert!(matches!(second, Err(ProfileError::Busy)));
}

#[test]
fn a_profile_folds_into_lines() {
    let profile = Profile {
        began: SystemTime::now(),
        time: Duration::from_secs(1),
        frequency: 10,
        lost: 1,
        stacks: [([0, 1].into(), 2), ([2, 1].into(), 3)].into(),
        names: ["a", "f;g", "b"].map(str::to_owned).to_vec(),
    };
    assert_eq!(profile.folded(), "a;f:g 2\nb;f:g 3\n");
    assert_eq!(profile.samples(), 5);
}

#[test]
fn different_stacks_are_kept_apart_as_long_as_there_is_room() {
    let mut samples = Samples {
        began: SystemTime::now(),
        time: Duration::ZERO,
        frequency: 10,
        lost: 0,
        stacks: HashMap::new(),
        threads: HashMap::new(),
        most: 2,
        unkept: 0,
    };
    for address in [1, 2, 3, 4, 1, 2, 5] {
        samples.add(Sample {
            thread: 0,
            addresses: vec![address],
        });
    }
    assert_eq!((samples.stacks.len(), samples.unkept), (2, 3));
    assert_eq!(resolve(&[Arc::new(samples)]).samples(), 7);
}
