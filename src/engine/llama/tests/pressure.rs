//! When readers stall and ids or cells are short: sequences are set aside and come back as they were.

use super::*;
use crate::generation::Class;

fn narrow(change: impl FnOnce(&mut Settings)) -> Arc<LlamaEngine> {
    engine(|settings| {
        settings.context = NonZeroU32::new(512);
        settings.parallel = 1;
        settings.waiting = 16;
        change(settings);
    })
}

#[tokio::test]
async fn a_stalled_reader_gives_its_place_to_who_waits_and_gets_its_text_unchanged() {
    let engine = narrow(|_| {});
    let slow = seeded(prompt(1, 100), 200);
    let alone = run(&engine, &slow).await.text;
    let stalled = engine.start(&slow).await.unwrap().sources.remove(0);
    until(|| engine.gauges().load.paused == 1).await;
    // Somebody waits: no need to wait for the spill.
    let other = run(&engine, &seeded(prompt(2, 100), 50)).await;
    assert!(!other.text.is_empty());
    assert_eq!(engine.counters.parks.load(Relaxed), 1);
    assert_eq!(given(stalled).await.text, alone);
    assert_eq!(engine.counters.parked.load(Relaxed), 0);
    engine.stop().await;
}

#[tokio::test]
async fn who_is_paused_for_long_is_set_aside_though_nobody_waits() {
    let engine = narrow(|settings| settings.pause_spill = Duration::from_millis(1));
    let slow = seeded(prompt(1, 100), 200);
    let alone = run(&engine, &slow).await.text;
    let stalled = engine.start(&slow).await.unwrap().sources.remove(0);
    until(|| engine.counters.parked.load(Relaxed) == 1 && engine.gauges().load.running == 0).await;
    assert_eq!(given(stalled).await.text, alone);
    engine.stop().await;
}

#[tokio::test]
async fn a_parked_sequence_that_is_cancelled_leaves_nothing_behind() {
    let engine = narrow(|settings| settings.pause_spill = Duration::from_millis(1));
    let stalled = engine.start(&seeded(prompt(1, 100), 200)).await.unwrap();
    until(|| engine.counters.parked.load(Relaxed) == 1).await;
    drop(stalled);
    until(|| engine.counters.accepted.load(Relaxed) == 0).await;
    assert_eq!(engine.counters.parked.load(Relaxed), 0);
    engine.stop().await;
}

#[tokio::test]
async fn without_memory_to_park_in_everybody_still_ends() {
    let engine = narrow(|settings| {
        settings.park_memory = bytesize::ByteSize(0);
        settings.pause_spill = Duration::from_millis(1);
    });
    let first = engine.start(&seeded(prompt(1, 100), 200)).await.unwrap();
    let second = engine.start(&seeded(prompt(2, 100), 20)).await.unwrap();
    for started in [first, second] {
        for source in started.sources {
            end_of(source).await.unwrap();
        }
    }
    engine.stop().await;
}

#[tokio::test]
async fn an_interactive_request_does_not_wait_for_a_background_one() {
    let engine = narrow(|_| {});
    let mut long = seeded(prompt(1, 100), 400);
    let alone = run(&engine, &long).await.text;
    long.class = Class::Background;
    let mut background = tokio::spawn(given(engine.start(&long).await.unwrap().sources.remove(0)));
    until(|| engine.gauges().load.kv_used > 100).await;
    let mut urgent = seeded(prompt(2, 10), 4);
    urgent.class = Class::Interactive;
    let urgent = run(&engine, &urgent);
    tokio::select! {
        biased;
        _ = urgent => {}
        _ = &mut background => panic!("the background request ended first"),
    }
    assert_eq!(background.await.unwrap().text, alone);
    engine.stop().await;
}

#[tokio::test]
async fn a_pool_that_is_nearly_full_of_long_prompts_ends_them_all() {
    let engine = engine(|settings| {
        settings.kv_layout = KvLayout::Unified;
        settings.context = NonZeroU32::new(512);
        settings.kv_cells = NonZeroU32::new(1024);
        settings.parallel = 8;
        settings.waiting = 56;
    });
    let mut sources = Vec::new();
    for kind in 0..64 {
        let request = seeded(prompt(kind, 230), 40);
        sources.extend(engine.start(&request).await.unwrap().sources);
    }
    let all = sources
        .into_iter()
        .map(|source| tokio::spawn(end_of(source)));
    for one in all.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_seed_gives_the_same_text_alone_in_a_crowd_after_pauses_and_from_the_cache() {
    let engine = engine(|settings| {
        settings.context = NonZeroU32::new(512);
        settings.parallel = 8;
        settings.waiting = 64;
        settings.deterministic = true;
    });
    let request = seeded(prompt(1, 230), 100);
    let alone = run(&engine, &request).await;
    let noise: Vec<_> = (0..64)
        .map(|kind| seeded(prompt(20 + kind, 20 + kind * 3), 60))
        .collect();
    let mut crowd = Vec::new();
    for (at, noise) in noise.iter().enumerate() {
        if at % 13 == 5 {
            let source = engine.start(&request).await.unwrap().sources.remove(0);
            crowd.push((true, tokio::spawn(given(source))));
        }
        let source = engine.start(noise).await.unwrap().sources.remove(0);
        crowd.push((false, tokio::spawn(given(source))));
    }
    for (same, task) in crowd {
        let given = task.await.unwrap();
        if same {
            assert_eq!(given.text, alone.text);
        }
    }
    engine.stop().await;
}
