//! What was computed once is not computed again, and nobody can tell by the text.

use super::*;

/// An engine of each layout. The bits of a pooled one depend on who else is in it, so that only the
/// split one promises equal texts.
fn both(change: impl Fn(&mut Settings)) -> [Arc<LlamaEngine>; 2] {
    [KvLayout::Split, KvLayout::Unified].map(|layout| {
        engine(|settings| {
            settings.kv_layout = layout;
            settings.context = NonZeroU32::new(512);
            settings.parallel = 4;
            settings.waiting = 16;
            change(settings);
        })
    })
}

#[tokio::test]
async fn a_prompt_seen_before_is_cached_to_the_last_whole_block_and_gives_the_same_text() {
    for engine in both(|_| {}) {
        let request = seeded(prompt(1, 200), 40);
        let first = run(&engine, &request).await;
        assert_eq!(first.cached, 0);
        let second = run(&engine, &request).await;
        assert_eq!(second.cached, 192);
        if !engine.is_pooled() {
            assert_eq!(second.text, first.text);
        }
        // The token whose logits are needed is computed again, even at the end of a block.
        let exact = seeded(prompt(1, 192), 2);
        assert_eq!(run(&engine, &exact).await.cached, 128);
        let short = seeded(prompt(1, 64), 2);
        assert_eq!(run(&engine, &short).await.cached, 0);
        engine.stop().await;
    }
}

#[tokio::test]
async fn the_next_turn_finds_what_was_generated() {
    for engine in both(|_| {}) {
        let mut turn = prompt(2, 100);
        let mut request = seeded(turn.clone(), 100);
        request.logprobs = Some(0);
        let source = engine.start(&request).await.unwrap().sources.remove(0);
        let (generated, _) = tokens(source).await;
        assert_eq!(generated.len(), 100);
        turn.extend(&generated);
        turn.extend(prompt(3, 30));
        // 199 of the 200 are computed: the last token never was. Three blocks of 64.
        assert_eq!(run(&engine, &seeded(turn, 4)).await.cached, 192);
        engine.stop().await;
    }
}

#[tokio::test]
async fn beside_a_stream_prefixes_are_copied_one_after_the_other() {
    // No time at all for copies in a step: each waits for the next one.
    let process = Process {
        max_step: Duration::from_micros(1),
        ..Process::default()
    };
    let engine = engine_of(&process, |settings| {
        settings.kv_layout = KvLayout::Split;
        settings.context = NonZeroU32::new(512);
        settings.parallel = 5;
        settings.waiting = 16;
    });
    let request = seeded(prompt(1, 300), 20);
    let alone = run(&engine, &request).await.text;
    let mut stream = engine.start(&seeded(prompt(2, 20), 400)).await.unwrap();
    let mut sources = Vec::new();
    for _ in 0..4 {
        sources.extend(engine.start(&request).await.unwrap().sources);
    }
    for source in sources {
        let given = given(source).await;
        assert_eq!((given.text, given.cached), (alone.clone(), 256));
    }
    end_of(stream.sources.remove(0)).await.unwrap();
    engine.stop().await;
}

#[tokio::test]
async fn those_who_come_together_compute_a_common_prefix_once() {
    for engine in both(|_| {}) {
        let requests: Vec<_> = (0..4)
            .map(|kind| {
                let mut tokens = prompt(4, 256);
                tokens.extend(prompt(10 + kind, 40));
                seeded(tokens, 8)
            })
            .collect();
        let mut sources = Vec::new();
        for request in &requests {
            sources.push(engine.start(request).await.unwrap().sources.remove(0));
        }
        let mut cached = Vec::new();
        for source in sources {
            cached.push(given(source).await.cached);
        }
        assert_eq!(cached, [0, 256, 256, 256]);
        assert_eq!(engine.counters.prefix_hits.load(Relaxed), 3 * 256);
        engine.stop().await;
    }
}

#[tokio::test]
async fn choices_of_one_prompt_share_it_and_count_it_once() {
    for engine in both(|_| {}) {
        let mut request = seeded(prompt(5, 200), 4);
        request.n = 3;
        let started = engine.start(&request).await.unwrap();
        let mut cached = Vec::new();
        for source in started.sources {
            cached.push(given(source).await.cached);
        }
        assert_eq!(cached, [0, 0, 0], "the first computed it all");
        assert_eq!(engine.counters.prefix_hits.load(Relaxed), 2 * 192);
        engine.stop().await;
    }
}

#[tokio::test]
async fn who_leads_may_leave_and_the_rest_goes_on() {
    for engine in both(|settings| settings.batch = 64) {
        let requests: Vec<_> = (0..3).map(|_| seeded(prompt(6, 400), 8)).collect();
        let alone = run(&engine, &seeded(prompt(6, 400), 8)).await.text;
        let mut sources = Vec::new();
        for request in &requests {
            sources.push(engine.start(request).await.unwrap().sources.remove(0));
        }
        // The first is dropped wherever it is; the others still end with the same text.
        drop(sources.remove(0));
        for source in sources {
            let text = given(source).await.text;
            assert!(engine.is_pooled() || text == alone);
        }
        engine.stop().await;
    }
}

#[tokio::test]
async fn callers_who_have_proved_who_they_are_share_with_themselves_only() {
    for engine in both(|_| {}) {
        let mut mine = seeded(prompt(7, 200), 4);
        mine.caller.identity = Some("a".into());
        let mut theirs = mine.clone();
        theirs.caller.identity = Some("b".into());
        let nobodys = seeded(prompt(7, 200), 4);
        assert_eq!(run(&engine, &mine).await.cached, 0);
        assert_eq!(run(&engine, &theirs).await.cached, 0);
        assert_eq!(run(&engine, &nobodys).await.cached, 0);
        for again in [mine, theirs, nobodys] {
            assert_eq!(run(&engine, &again).await.cached, 192);
        }
        engine.stop().await;
    }
}

#[tokio::test]
async fn a_cache_that_is_too_small_or_off_changes_no_text() {
    let request = |kind| seeded(prompt(kind, 300), 16);
    let expected = engine(|settings| settings.context = NonZeroU32::new(512));
    let mut texts = Vec::new();
    for kind in 0..4 {
        texts.push(run(&expected, &request(kind)).await.text);
    }
    expected.stop().await;
    for bytes in [0, 1, 200_000] {
        let engine = engine(|settings| {
            settings.context = NonZeroU32::new(512);
            settings.prefix_cache = bytesize::ByteSize(bytes);
        });
        for _ in 0..2 {
            for kind in 0..4 {
                let given = run(&engine, &request(kind)).await;
                assert_eq!(given.text, texts[kind as usize]);
                assert!(bytes > 1 || given.cached == 0);
            }
        }
        let kept = engine.counters.prefix_bytes.load(Relaxed);
        assert!(kept <= bytes, "{kept} of {bytes}");
        engine.stop().await;
    }
}

#[tokio::test]
async fn prefixes_on_disk_survive_the_engine() {
    let directory = tempfile::tempdir().unwrap();
    let start = || {
        engine(|settings| {
            settings.context = NonZeroU32::new(512);
            settings.prefix_cache_dir = Some(directory.path().into());
        })
    };
    let request = seeded(prompt(8, 300), 16);
    let engine = start();
    let first = run(&engine, &request).await;
    engine.stop().await;
    let engine = start();
    let second = run(&engine, &request).await;
    assert_eq!(
        second,
        Given {
            cached: 256,
            ..first
        }
    );
    engine.stop().await;
}

/// Without flash attention V is transposed, and states cannot be cut.
#[tokio::test]
async fn states_that_cannot_be_cut_are_kept_whole_at_the_last_grid_line_of_a_prompt() {
    let engine = engine(|settings| {
        settings.context = NonZeroU32::new(512);
        settings.flash_attention = crate::engine::config::FlashAttention::Off;
    });
    let request = seeded(prompt(9, 200), 16);
    let first = run(&engine, &request).await;
    let second = run(&engine, &request).await;
    assert_eq!(
        second,
        Given {
            cached: 192,
            ..first
        }
    );
    let longer = seeded(prompt(9, 250), 4);
    assert_eq!(run(&engine, &longer).await.cached, 192);
    let shorter = seeded(prompt(9, 150), 4);
    assert_eq!(
        run(&engine, &shorter).await.cached,
        0,
        "no state ends there"
    );
    engine.stop().await;
}

#[tokio::test]
async fn a_prefix_that_most_share_makes_the_cache_a_pool_and_what_was_kept_stays() {
    let engine = engine(|settings| {
        settings.kv_layout = KvLayout::Auto;
        settings.context = NonZeroU32::new(512);
        settings.parallel = 8;
        settings.waiting = 32;
    });
    until(|| engine.gauges().layout.name == "split").await;
    let with_prefix = |kind: u32| {
        let mut tokens = prompt(30, 384);
        tokens.extend(prompt(31 + kind, 20));
        seeded(tokens, 8)
    };
    let mut sources = Vec::new();
    for kind in 0..40 {
        let request = with_prefix(kind);
        sources.extend(engine.start(&request).await.unwrap().sources);
    }
    for source in sources {
        end_of(source).await.unwrap();
    }
    until(|| engine.gauges().layout.name == "unified").await;
    assert_eq!(engine.gauges().layout.reason, "most live tokens are shared");
    // Out of host memory first, then cell by cell.
    for kind in [50, 51] {
        assert_eq!(run(&engine, &with_prefix(kind)).await.cached, 384);
    }
    engine.stop().await;
}
