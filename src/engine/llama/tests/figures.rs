//! What the engine tells of itself: moments of its sequences, figures of its steps, and a look inside.

use super::*;
use crate::engine::{EngineView, SequenceState};
use crate::generation::{Cancel, Moment};
use crate::telemetry::Steps;

fn moments(handle: &dyn Cancel) -> Vec<Moment> {
    let mut told: Vec<Moment> = Vec::new();
    let mut last = 0;
    handle.moments(0, &mut |at, moment| {
        assert!(at >= last && at > 0, "in order");
        last = at;
        told.push(moment);
    });
    told
}

/// Reads a source to its good end: the bytes of its tokens, and of its text.
async fn bytes(mut source: Box<dyn Source>) -> (usize, usize) {
    let (mut burst, mut of_tokens, mut of_text) = (Burst::new(), 0, 0);
    loop {
        burst.clear();
        std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
        let times = burst.times().iter();
        of_tokens += times.map(|token| usize::from(token.bytes)).sum::<usize>();
        for event in burst.events() {
            match event {
                Event::Text { text, .. } => of_text += text.len(),
                Event::Finish { .. } => return (of_tokens, of_text),
                event => panic!("{event:?}"),
            }
        }
    }
}

#[tokio::test]
async fn steps_and_moments_account_for_a_request() {
    let engine = engine(|_| {});
    let source = engine.start(&seeded(prompt(1, 100), 40)).await;
    let source = source.unwrap().sources.remove(0);
    let handle = source.canceller();
    let (of_tokens, of_text) = bytes(source).await;
    assert_eq!(of_tokens, of_text);
    let told = moments(&*handle);
    assert_eq!(told[..2], [Moment::Admitted, Moment::Prefilled]);
    engine.stop().await;

    let load = engine.gauges().load;
    let steps = load.steps;
    // The prompt's last row gives the first token.
    assert_eq!(steps.prefill_rows, 100);
    let tokens = steps.decode_rows - (load.drafted - load.accepted_drafts);
    assert_eq!(tokens, 39);
    assert_eq!(steps.decode_by_rows.iter().sum::<u64>(), steps.decode_calls);
    assert_eq!(
        steps.prefill_by_rows.iter().sum::<u64>(),
        steps.prefill_calls
    );
    assert_eq!(steps.by_time.iter().sum::<u64>(), steps.count);
    assert!(steps.count >= steps.decode_calls.max(steps.prefill_calls));
    let parts = steps.decode_us + steps.prefill_us + steps.sample_us + steps.emit_us;
    assert!(steps.decode_us > 0 && steps.prefill_us > 0);
    assert!(parts <= steps.step_us, "{parts} of {}", steps.step_us);
    assert_ne!(steps, Steps::default());
}

#[tokio::test]
async fn a_sequence_that_is_paused_and_set_aside_tells_both_and_its_return() {
    let engine = engine(|settings| {
        settings.context = NonZeroU32::new(512);
        settings.parallel = 1;
        settings.waiting = 16;
    });
    let source = engine.start(&seeded(prompt(1, 100), 200)).await;
    let source = source.unwrap().sources.remove(0);
    let handle = source.canceller();
    until(|| engine.gauges().load.paused == 1).await;
    run(&engine, &seeded(prompt(2, 100), 50)).await;
    given(source).await;
    let told = moments(&*handle);
    let expected = [
        Moment::Admitted,
        Moment::Prefilled,
        Moment::Paused,
        Moment::Preempted,
        Moment::Resumed,
    ];
    assert_eq!(told[..5], expected);
    let happened = handle.moments(u32::MAX, &mut |_, _| panic!("all of it was seen"));
    assert_eq!(happened.preemptions, 1);
    // The other one's reader may have been behind too.
    let pauses = u64::from(happened.pauses);
    assert!((1..=engine.gauges().load.pauses).contains(&pauses));
    engine.stop().await;
}

#[tokio::test]
async fn prompts_are_looked_up_and_what_is_found_of_them_is_no_more_than_that() {
    let engine = engine(|settings| settings.prefix_cache = bytesize::ByteSize::mib(16));
    for _ in 0..3 {
        run(&engine, &seeded(prompt(1, 150), 2)).await;
    }
    let load = engine.gauges().load;
    assert_eq!(load.prefix_queries, 450);
    assert_eq!(load.prefix_hits, 2 * 128);
    engine.stop().await;
}

fn check_cells(view: &EngineView) {
    let kv = view.kv.as_ref().unwrap();
    assert_eq!(kv.running + kv.kept + kv.free, kv.capacity, "{kv:?}");
    let held: u64 = view.sequences.iter().map(|s| u64::from(s.cells)).sum();
    assert!(held >= kv.running, "{view:?}");
    for sequence in &view.sequences {
        assert!(sequence.computed <= sequence.cells, "{sequence:?}");
    }
}

#[tokio::test]
async fn a_look_shows_who_runs_who_waits_and_who_holds_which_cells() {
    for layout in [KvLayout::Split, KvLayout::Unified] {
        let engine = engine(|settings| {
            settings.kv_layout = layout;
            settings.context = NonZeroU32::new(512);
            settings.parallel = 1;
            settings.waiting = 4;
            settings.pause_spill = Duration::from_hours(1);
            settings.park_memory = bytesize::ByteSize(0);
        });
        let idle = engine.inspect().await.unwrap();
        assert!(idle.sequences.is_empty() && idle.line.is_empty());
        check_cells(&idle);

        // With nobody to read it, it stops at a full ring.
        let first = seeded(prompt(1, 100), 200);
        let mut sources = engine.start(&first).await.unwrap().sources;
        until(|| engine.gauges().load.paused == 1).await;
        let view = engine.inspect().await.unwrap();
        let [running] = &view.sequences[..] else {
            panic!("{view:?}");
        };
        assert_eq!((&running.request, running.choice), (&first.id, 0));
        assert_eq!(running.state, SequenceState::Paused);
        assert_eq!((running.prompt_tokens, running.generated), (100, 16));
        assert_eq!((running.computed, running.shared_cells), (115, 0));
        assert_eq!(
            view.kv.as_ref().unwrap().layout.as_str(),
            match layout {
                KvLayout::Split => "split",
                _ => "unified",
            }
        );
        assert!(view.recent.decode_us > 0 && view.recent.prefill_token_ns > 0);
        assert_eq!(view.load.paused, 1);
        check_cells(&view);

        sources.clear();
        until(|| engine.gauges().load.running == 0).await;
        let view = engine.inspect().await.unwrap();
        assert!(view.sequences.is_empty(), "{view:?}");
        check_cells(&view);
        engine.stop().await;
        let error = engine.inspect().await.unwrap_err();
        assert_eq!(error.kind, Kind::NotReady);
    }
}

#[tokio::test]
async fn a_look_shows_everybody_once_and_the_line_in_its_order() {
    let engine = engine(|settings| {
        settings.context = NonZeroU32::new(512);
        settings.parallel = 1;
        settings.waiting = 8;
    });
    let mut asked = seeded(prompt(1, 30), 400);
    asked.n = 4;
    let unread = engine.start(&asked).await.unwrap();
    // A step may be under way that had begun before they came.
    let view = loop {
        let view = engine.inspect().await.unwrap();
        if view.sequences.len() + view.line.len() == 4 {
            break view;
        }
    };
    let running = view.sequences.iter().map(|one| (one.choice, &one.request));
    let in_line = view.line.iter().map(|one| (one.choice, &one.request));
    let mut shown: Vec<_> = running.chain(in_line).collect();
    shown.sort_unstable_by_key(|(choice, _)| *choice);
    let expected: Vec<_> = (0..4).map(|choice| (choice, &asked.id)).collect();
    assert_eq!(shown, expected);
    // Who was set aside behind a reader that is behind has no place.
    let places = view.line.iter().map(|waiting| waiting.place);
    let places: Vec<_> = places.map(|place| place.wrapping_sub(1)).collect();
    assert!(places.is_sorted(), "{places:?}");
    assert_eq!((view.more_sequences, view.more_in_line), (0, 0));
    drop(unread);
    engine.stop().await;
}
