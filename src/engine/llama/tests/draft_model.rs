//! The demo drafts for itself: it is nearly always right, and nobody can tell.

use super::speculation::{Seen, babble, seen, spelled};
use super::*;
use crate::engine::config::Speculation;
use crate::generation::{Finish, chain};

/// The demo as a file.
fn small() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), DEMO).unwrap();
    file
}

/// An engine that lets the demo draft whatever it costs, and one that never drafts.
fn pair(change: impl Fn(&mut Settings)) -> [Arc<LlamaEngine>; 2] {
    let small = small();
    [true, false].map(|drafts| {
        let engine = engine(|settings| {
            settings.parallel = 4;
            settings.waiting = 16;
            settings.speculation = Speculation::Off;
            if drafts {
                settings.speculation = Speculation::Lookup;
                settings.draft_model = Some(small.path().into());
            }
            change(settings);
        });
        engine.counters.drafts_always.store(true, Relaxed);
        engine
    })
}

/// A request without words that come again.
fn prose(kind: u32, temperature: f32) -> Request {
    let mut request = seeded(prompt(kind, 50 + kind * 40), 80);
    request.sampling.temperature = Some(temperature);
    request
}

async fn all(engine: &LlamaEngine, requests: &[Request]) -> Vec<Seen> {
    let mut tasks = Vec::new();
    for request in requests {
        let source = engine.start(request).await.unwrap().sources.remove(0);
        tasks.push(tokio::spawn(seen(source)));
    }
    let mut found = Vec::new();
    for task in tasks {
        found.push(task.await.unwrap());
    }
    found
}

async fn stop(engines: [Arc<LlamaEngine>; 2]) {
    for engine in engines {
        engine.stop().await;
    }
}

#[tokio::test]
async fn a_model_that_drafts_for_itself_is_right_and_changes_nothing() {
    let [drafting, plain] = pair(|_| {});
    for (temperature, part) in [(0.0, 50), (0.7, 10)] {
        let counters = &drafting.counters;
        let [drafted, right] = [&counters.drafted, &counters.accepted_drafts];
        let before = (drafted.load(Relaxed), right.load(Relaxed));
        let requests = [prose(1, temperature)];
        assert_eq!(
            all(&drafting, &requests).await,
            all(&plain, &requests).await
        );
        let drafted = drafted.load(Relaxed) - before.0;
        let right = right.load(Relaxed) - before.1;
        assert!(
            right > 10 && right * 100 > drafted * part,
            "{right} of {drafted} at {temperature}"
        );
    }
    stop([drafting, plain]).await;
}

#[tokio::test]
async fn many_sequences_are_drafted_for_at_once_and_ids_are_used_again() {
    let [drafting, plain] = pair(|_| {});
    let mut requests: Vec<_> = (0..8).map(|kind| prose(kind % 5, 0.0)).collect();
    requests.extend((0..3).map(babble));
    requests.push(spelled(r#"{"type":"object","properties":{"name":{"type":"string","maxLength":9}},"required":["name"]}"#, 1.0));
    for _ in 0..2 {
        assert_eq!(
            all(&drafting, &requests).await,
            all(&plain, &requests).await
        );
    }
    assert!(drafting.counters.accepted_drafts.load(Relaxed) > 200);
    stop([drafting, plain]).await;
}

#[tokio::test]
async fn who_is_cancelled_or_set_aside_is_drafted_for_as_before() {
    let [drafting, plain] = pair(|settings| {
        settings.parallel = 2;
        settings.pause_spill = Duration::from_millis(1);
    });
    let mut found = Vec::new();
    for engine in [&drafting, &plain] {
        let source = engine
            .start(&prose(1, 0.0))
            .await
            .unwrap()
            .sources
            .remove(0);
        until(|| engine.counters.parked.load(Relaxed) == 1).await;
        for kind in 0..6 {
            let started = engine.start(&prose(kind, 1.0)).await.unwrap();
            until(|| engine.gauges().load.running > 0).await;
            drop(started);
        }
        found.push((seen(source).await, all(engine, &[prose(2, 0.0)]).await));
    }
    assert_eq!(found[0], found[1]);
    stop([drafting, plain]).await;
}

#[tokio::test]
async fn a_pool_of_cells_and_its_drafts_go_together() {
    let [drafting, plain] = pair(|settings| settings.kv_layout = KvLayout::Unified);
    let requests: Vec<_> = (0..6).map(|kind| prose(kind % 4, 0.0)).collect();
    for seen in all(&drafting, &requests).await {
        assert_eq!(seen.reason, Finish::Length);
    }
    assert!(drafting.counters.accepted_drafts.load(Relaxed) > 100);
    stop([drafting, plain]).await;
}

#[tokio::test]
async fn a_sequence_that_leaves_out_its_middle_is_drafted_for_still() {
    let [drafting, plain] = pair(|settings| {
        settings.context = NonZeroU32::new(256);
        settings.context_shift = true;
    });
    let mut request = prose(2, 0.0);
    request.max_tokens = Some(600);
    let requests = [request];
    assert_eq!(
        all(&drafting, &requests).await,
        all(&plain, &requests).await
    );
    assert!(drafting.counters.accepted_drafts.load(Relaxed) > 200);
    stop([drafting, plain]).await;
}

#[tokio::test]
async fn streams_go_on_when_the_draft_model_fails() {
    let [drafting, plain] = pair(|_| {});
    let requests: Vec<_> = (0..4).map(|kind| prose(kind, 0.0)).collect();
    let expected = all(&plain, &requests).await;
    assert_eq!(all(&drafting, &requests).await, expected);
    drafting.counters.draft_model_fails.store(true, Relaxed);
    for _ in 0..2 {
        assert_eq!(all(&drafting, &requests).await, expected);
    }
    stop([drafting, plain]).await;
}

/// The demo costs itself as much as it saves.
#[tokio::test]
async fn drafts_that_do_not_pay_are_few() {
    let small = small();
    let engine = engine(|settings| settings.draft_model = Some(small.path().into()));
    let request = prose(1, 1.5);
    all(&engine, &[request]).await;
    let drafted = engine.counters.drafted.load(Relaxed);
    assert!(drafted < 10, "{drafted}");
    engine.stop().await;
}

fn refused(change: impl FnOnce(&mut Settings)) -> String {
    let mut settings = demo_settings();
    settings.context = NonZeroU32::new(256);
    settings.parallel = 2;
    change(&mut settings);
    let metrics = Metrics::new(["demo"]).unwrap();
    let (process, loading) = (Process::default(), Arc::default());
    let weights = Weights::Embedded(DEMO);
    let metrics = metrics.model("demo");
    let loaded = LlamaEngine::load("demo", &weights, &settings, &process, 16, metrics, &loading);
    chain(&loaded.err().expect("it is refused"))
}

#[test]
fn a_draft_model_that_does_not_fit_is_refused_in_words() {
    let missing = refused(|settings| settings.draft_model = Some("nowhere.gguf".into()));
    assert!(
        missing.contains("draft_model nowhere.gguf cannot be used"),
        "{missing}"
    );
    let small = small();
    let whole = refused(|settings| {
        settings.draft_model = Some(small.path().into());
        settings.flash_attention = crate::engine::config::FlashAttention::Off;
    });
    assert!(whole.contains("cannot be cut"), "{whole}");
    // The same model, but for one word.
    let word = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let (before, after) = (word("\u{120}there"), word("\u{120}thxre"));
    let at = DEMO
        .windows(before.len())
        .position(|window| window == before);
    let mut other = DEMO.to_vec();
    other[at.unwrap()..][..after.len()].copy_from_slice(&after);
    std::fs::write(small.path(), other).unwrap();
    let other = refused(|settings| settings.draft_model = Some(small.path().into()));
    assert!(
        other.contains("thxre") && other.contains("there"),
        "{other}"
    );
}
