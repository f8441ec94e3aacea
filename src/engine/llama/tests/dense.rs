//! Sequences that take lower ids while they run: nobody can tell from what they say.

use super::*;
use crate::engine::config::KvLayout;

const STREAMS: u32 = 6;

fn moving(change: impl FnOnce(&mut Settings)) -> Arc<LlamaEngine> {
    let engine = engine(|settings| {
        settings.context = NonZeroU32::new(512);
        settings.parallel = STREAMS;
        settings.waiting = 32;
        settings.kv_layout = KvLayout::Split;
        change(settings);
    });
    engine.counters.moves_always.store(true, Relaxed);
    engine
}

/// One that is greedy or not, by its kind.
fn stream(kind: u32, most: u32) -> Request {
    let mut request = seeded(prompt(kind, 30 + kind * 20), most);
    if kind.is_multiple_of(2) {
        request.sampling.temperature = Some(0.0);
    } else {
        request.sampling.repeat_penalty = Some(1.2);
    }
    request
}

async fn start(engine: &LlamaEngine, request: &Request) -> Box<dyn Source> {
    engine.start(request).await.unwrap().sources.remove(0)
}

#[tokio::test]
async fn who_closes_ranks_goes_on_with_the_same_text() {
    for (deterministic, shares_rows) in [(false, false), (false, true), (true, false)] {
        let engine = moving(|settings| {
            settings.deterministic = deterministic;
            settings.sampler_threads = Some(u32::from(shares_rows));
        });
        engine.counters.shares_rows.store(shares_rows, Relaxed);
        // Every other one is soon over, so that ids 0, 2 and 4 become holes.
        let lengths = |kind: u32| if kind.is_multiple_of(2) { 12 } else { 200 };
        let requests: Vec<_> = (0..STREAMS)
            .map(|kind| stream(kind + 1, lengths(kind)))
            .collect();
        let mut alone = Vec::new();
        for request in &requests {
            alone.push(run(&engine, request).await.text);
        }
        assert_eq!(engine.gauges().load.moves, 0);
        let mut together = Vec::new();
        for request in &requests {
            let source = start(&engine, request).await;
            together.push(tokio::spawn(given(source)));
        }
        for (expected, task) in alone.iter().zip(together) {
            assert_eq!(&task.await.unwrap().text, expected);
        }
        // One move makes three runs one: 5 goes between 1 and 3.
        assert!(engine.gauges().load.moves >= 1, "{:?}", engine.gauges());
        engine.stop().await;
    }
}

#[tokio::test]
async fn who_takes_over_from_those_who_left_can_leave_too() {
    let engine = moving(|settings| settings.prefix_cache = bytesize::ByteSize(0));
    let stays = stream(4, 300);
    let alone = run(&engine, &stays).await.text;
    let mut moved = 0;
    for _ in 0..10 {
        let leaving: Vec<_> = [1, 2, 3].map(|kind| stream(kind, 300)).into();
        let mut left = Vec::new();
        for request in &leaving {
            left.push(tokio::spawn(given(start(&engine, request).await)));
        }
        let going_on = tokio::spawn(given(start(&engine, &stays).await));
        let last = tokio::spawn(given(start(&engine, &stream(6, 300)).await));
        until(|| engine.gauges().load.running == 5).await;
        // A hole in the middle; then whoever is there now.
        left.remove(1).abort();
        until(|| engine.gauges().load.moves > moved || engine.gauges().load.running < 4).await;
        last.abort();
        left.remove(0).abort();
        until(|| engine.gauges().load.running <= 2).await;
        assert_eq!(going_on.await.unwrap().text, alone);
        left.remove(0).abort();
        until(|| engine.gauges().load.running == 0).await;
        moved = engine.gauges().load.moves;
    }
    assert!(moved >= 5, "{moved}");
    engine.stop().await;
}

#[tokio::test]
async fn a_stalled_reader_makes_way_and_gets_its_text_unchanged() {
    let engine = moving(|_| {});
    let slow = stream(1, 200);
    let alone = run(&engine, &slow).await.text;
    let first = start(&engine, &stream(2, 400)).await;
    let stalled = start(&engine, &slow).await;
    let last = start(&engine, &stream(4, 400)).await;
    let reading = [first, last].map(|source| tokio::spawn(given(source)));
    until(|| engine.gauges().load.moves >= 1).await;
    assert_eq!(given(stalled).await.text, alone);
    for task in reading {
        task.await.unwrap();
    }
    until(|| engine.gauges().load.running == 0).await;
    assert_eq!(engine.gauges().load.paused, 0);
    engine.stop().await;
}

#[tokio::test]
async fn who_is_set_aside_between_moves_comes_back_as_it_was() {
    let engine = moving(|settings| settings.pause_spill = Duration::from_millis(1));
    let slow = [1, 3].map(|kind| stream(kind, 200));
    let mut alone = Vec::new();
    for request in &slow {
        alone.push(run(&engine, request).await.text);
    }
    for _ in 0..5 {
        let mut stalled = Vec::new();
        let mut reading = Vec::new();
        for (at, request) in slow.iter().enumerate() {
            let kind = 2 + 2 * u32::try_from(at).unwrap();
            stalled.push(start(&engine, request).await);
            let source = start(&engine, &stream(kind, 150)).await;
            reading.push(tokio::spawn(given(source)));
        }
        reading.push(tokio::spawn(given(start(&engine, &stream(6, 300)).await)));
        let parks = engine.counters.parks.load(Relaxed);
        until(|| engine.counters.parks.load(Relaxed) > parks).await;
        // One of those who run leaves, and those who were set aside come back in its place.
        reading.remove(0).abort();
        for (expected, source) in alone.iter().zip(stalled) {
            assert_eq!(&given(source).await.text, expected);
        }
        for task in reading {
            task.await.unwrap();
        }
        until(|| engine.gauges().load.running == 0).await;
    }
    assert_eq!(engine.counters.parked.load(Relaxed), 0);
    engine.stop().await;
}

#[tokio::test]
async fn in_a_pool_nobody_moves() {
    let engine = moving(|settings| settings.kv_layout = KvLayout::Unified);
    let mut together = Vec::new();
    for kind in 0..STREAMS {
        let request = stream(kind, if kind.is_multiple_of(2) { 12 } else { 100 });
        together.push(tokio::spawn(given(start(&engine, &request).await)));
    }
    for task in together {
        task.await.unwrap();
    }
    assert_eq!(engine.gauges().load.moves, 0);
    engine.stop().await;
}
