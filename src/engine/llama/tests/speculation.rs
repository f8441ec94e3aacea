//! Drafts save calls and change nothing that a reader can see.

use super::*;
use crate::engine::config::Speculation;
use crate::generation::{Constraint, Dry, Finish, Grammar, Mirostat, Xtc};

/// An engine that drafts wherever there is a match, and one that never does.
fn pair(change: impl Fn(&mut Settings)) -> [Arc<LlamaEngine>; 2] {
    [Speculation::Lookup, Speculation::Off].map(|speculation| {
        let engine = engine(|settings| {
            settings.parallel = 4;
            settings.waiting = 16;
            settings.speculation = speculation;
            change(settings);
        });
        engine.counters.drafts_always.store(true, Relaxed);
        engine
    })
}

/// A token, its log-probability, and the likeliest beside it.
type Bits = (u32, u32, Vec<(u32, u32)>);

/// All that a reader sees of one choice.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    text: String,
    /// Tokens with their log-probability and the likeliest beside them, as bits.
    scored: Vec<Bits>,
    pub(super) reason: Finish,
}

pub(super) async fn seen(mut source: Box<dyn Source>) -> Seen {
    let (mut burst, mut text, mut scored) = (Burst::new(), String::new(), Vec::new());
    loop {
        burst.clear();
        std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
        for event in burst.events() {
            match event {
                Event::Text {
                    text: more,
                    logprobs,
                    ..
                } => {
                    text.push_str(more);
                    scored.extend(logprobs.iter().map(|token| {
                        let top = token.top().map(|top| (top.token, top.logprob.to_bits()));
                        (token.token, token.logprob.to_bits(), top.collect())
                    }));
                }
                Event::Finish { reason, .. } => {
                    return Seen {
                        text,
                        scored,
                        reason,
                    };
                }
                Event::Failed(failure) => panic!("{failure:?}"),
                Event::End(_) => {}
            }
        }
    }
}

/// A request whose answer is made of a handful of tokens, so that it comes across the same three ones
/// again and again, mostly followed by something else.
pub(super) fn babble(seed: u64) -> Request {
    let mut request = seeded(prompt(1, 60), 150);
    request.sampling.seed = Some(seed);
    request.sampling.logit_bias = (0..4).map(|at| (400 + at * 9, 60.0)).collect();
    request.sampling.top_k = Some(0);
    request.sampling.min_p = Some(0.0);
    request.sampling.top_p = Some(1.0);
    request
}

/// A request that is answered by going on with what the prompt repeats.
fn copying() -> Request {
    let mut request = request(Input::Text("one two three four five. ".repeat(8)));
    request.max_tokens = Some(100);
    request.sampling.temperature = Some(0.0);
    request
}

/// A request under a name.
type Case = (&'static str, Request);

fn cases() -> Vec<Case> {
    let with = |change: fn(&mut Request)| {
        let mut request = babble(3);
        change(&mut request);
        request
    };
    vec![
        ("greedy", copying()),
        ("sampled", babble(1)),
        ("another seed", babble(2)),
        ("hot", with(|r| r.sampling.temperature = Some(4.0))),
        (
            "penalties",
            with(|r| {
                r.sampling.repeat_penalty = Some(1.3);
                r.sampling.presence_penalty = Some(0.5);
                r.sampling.frequency_penalty = Some(0.2);
            }),
        ),
        (
            "DRY",
            with(|r| {
                r.sampling.dry = Some(Dry {
                    multiplier: 0.8,
                    ..Dry::default()
                });
            }),
        ),
        (
            "XTC",
            with(|r| {
                r.sampling.xtc = Some(Xtc {
                    probability: 0.5,
                    threshold: 0.1,
                });
            }),
        ),
        (
            "Mirostat",
            with(|r| r.sampling.mirostat = Some(Mirostat { tau: 3.0, eta: 0.1 })),
        ),
        ("log-probabilities", with(|r| r.logprobs = Some(3))),
        ("a stop string", {
            let mut request = copying();
            request.stop = vec!["four five. one two".into()];
            request
        }),
        ("few tokens", with(|r| r.max_tokens = Some(9))),
        ("an end of its own", {
            let mut request = copying();
            request.sampling.ignore_eos = Some(false);
            request
        }),
        ("a schema", {
            let mut request = copying();
            request.sampling.temperature = Some(1.0);
            request.sampling.seed = Some(5);
            request.sampling.ignore_eos = Some(false);
            let schema = r#"{"type":"array","items":{"enum":["one two three","four five six"]},"minItems":8,"maxItems":8}"#;
            request.constraint = Some(Constraint {
                field: "response_format",
                grammar: Grammar::JsonSchema {
                    schema: schema.into(),
                    strict: true,
                },
            });
            request
        }),
    ]
}

#[tokio::test]
async fn every_way_of_sampling_gives_the_same_with_drafts_and_without() {
    for layout in [KvLayout::Split, KvLayout::Unified] {
        let [drafting, plain] = pair(|settings| settings.kv_layout = layout);
        for (name, request) in cases() {
            let before = drafting.counters.drafted.load(Relaxed);
            let mut found = Vec::new();
            for engine in [&drafting, &plain] {
                let source = engine.start(&request).await.unwrap().sources.remove(0);
                found.push(seen(source).await);
            }
            match layout {
                // The bits of a pooled cache depend on where in it a sequence lies.
                KvLayout::Unified => assert_eq!(found[0].reason, found[1].reason, "{name}"),
                _ => assert_eq!(found[0], found[1], "{name}"),
            }
            let drafted = drafting.counters.drafted.load(Relaxed) - before;
            assert!(drafted > 0 || name == "few tokens", "{name} had no drafts");
        }
        let (drafted, right) = (
            drafting.counters.drafted.load(Relaxed),
            drafting.counters.accepted_drafts.load(Relaxed),
        );
        assert!(0 < right && right < drafted, "{right} of {drafted}");
        assert_eq!(drafting.gauges().load.drafted, drafted);
        assert_eq!(drafting.gauges().load.accepted_drafts, right);
        assert_eq!(plain.counters.drafted.load(Relaxed), 0);
        for engine in [drafting, plain] {
            engine.stop().await;
        }
    }
}

const PERSON: &str = r#"{"type":"object","properties":{
    "identifier":{"type":"integer","minimum":0,"maximum":99},
    "description":{"type":"string","maxLength":12},
    "availability":{"enum":["sometimes available","never available"]},
    "coordinates":{"type":"array","items":{"type":"boolean"},"minItems":2,"maxItems":2}},
    "required":["identifier","description","availability","coordinates"],"additionalProperties":false}"#;

/// A request whose answer a schema spells out for the most part.
pub(super) fn spelled(schema: &str, temperature: f32) -> Request {
    let mut request = seeded(prompt(2, 40), 150);
    request.sampling.temperature = Some(temperature);
    request.sampling.ignore_eos = Some(false);
    request.constraint = Some(Constraint {
        field: "response_format",
        grammar: Grammar::JsonSchema {
            schema: schema.into(),
            strict: true,
        },
    });
    request
}

#[tokio::test]
async fn what_a_schema_forces_is_drafted_and_mostly_right() {
    let [drafting, plain] = pair(|_| {});
    let (two, three) = (
        format!(r#"{{"type":"array","items":{PERSON},"minItems":1,"maxItems":1}}"#),
        r#"{"anyOf":[{"const":"an only choice"},{"type":"object","properties":{"quantity":{"type":"null"}},"required":["quantity"]}]}"#,
    );
    for schema in [PERSON, &two, three] {
        for temperature in [0.0, 1.0, 3.0] {
            let request = spelled(schema, temperature);
            let mut found = Vec::new();
            for engine in [&drafting, &plain] {
                let source = engine.start(&request).await.unwrap().sources.remove(0);
                found.push(seen(source).await);
            }
            assert_eq!(found[0], found[1], "{schema} at {temperature}");
        }
    }
    // A model that writes words in whole tokens, as they mostly do, and never the same again.
    let schema = r#"{"type":"object","properties":{
        "name":{"const":"one two three"},"story":{"const":"there was a little girl"}},
        "required":["name","story"],"additionalProperties":false}"#;
    let answer = r#"{"name":"one two three","story":"there was a little girl"}"#;
    let counters = &drafting.counters;
    let count = || {
        let [drafted, right] = [&counters.drafted, &counters.accepted_drafts];
        (drafted.load(Relaxed), right.load(Relaxed))
    };
    for temperature in [0.0, 1.0] {
        let mut request = spelled(schema, temperature);
        let vocabulary = &drafting.shared.vocabulary;
        let tokens = vocabulary.tokenize(answer, false, false).unwrap();
        let blank = |&token: &u32| vocabulary.piece(token).trim_ascii().is_empty();
        let blanks = (0..u32::try_from(vocabulary.len()).unwrap()).filter(blank);
        let bias = blanks.map(|token| (token, -100.0));
        let bias = bias.chain(tokens.iter().map(|&token| (token, 60.0)));
        request.sampling.logit_bias = bias.collect();
        let before = count();
        let mut found = Vec::new();
        for engine in [&drafting, &plain] {
            let source = engine.start(&request).await.unwrap().sources.remove(0);
            found.push(seen(source).await);
        }
        assert_eq!(found[0], found[1]);
        assert_eq!(found[0].text, answer);
        let (drafted, right) = (count().0 - before.0, count().1 - before.1);
        assert!(right >= 10 && right * 3 > drafted, "{right} of {drafted}");
    }
    for engine in [drafting, plain] {
        engine.stop().await;
    }
}

#[tokio::test]
async fn neighbours_with_drafts_of_different_lengths_do_not_disturb_each_other() {
    let [drafting, plain] = pair(|_| {});
    let mut requests: Vec<_> = (0..6).map(babble).collect();
    requests.push(copying());
    let mut found = Vec::new();
    for engine in [&drafting, &plain] {
        let mut tasks = Vec::new();
        for request in &requests {
            let source = engine.start(request).await.unwrap().sources.remove(0);
            tasks.push(tokio::spawn(seen(source)));
        }
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.unwrap());
        }
        found.push(all);
    }
    assert_eq!(found[0], found[1]);
    assert!(drafting.counters.drafted.load(Relaxed) > 0);
    for engine in [drafting, plain] {
        engine.stop().await;
    }
}

#[tokio::test]
async fn a_reader_that_stalls_and_a_sequence_that_is_set_aside_lose_nothing() {
    let [drafting, plain] = pair(|settings| {
        settings.parallel = 1;
        settings.pause_spill = Duration::from_millis(1);
    });
    let mut found = Vec::new();
    for engine in [&drafting, &plain] {
        let source = engine.start(&babble(4)).await.unwrap().sources.remove(0);
        until(|| engine.counters.parked.load(Relaxed) == 1).await;
        found.push(seen(source).await);
    }
    assert_eq!(found[0], found[1]);
    for engine in [drafting, plain] {
        engine.stop().await;
    }
}

/// Whatever a draft wrote beyond what was accepted is gone when the prefix is found again.
#[tokio::test]
async fn what_was_drafted_in_vain_is_not_cached() {
    let [drafting, plain] = pair(|_| {});
    let mut found = Vec::new();
    for engine in [&drafting, &plain] {
        let mut first = babble(5);
        first.logprobs = Some(0);
        let source = engine.start(&first).await.unwrap().sources.remove(0);
        let tokens: Vec<u32> = seen(source).await.scored.iter().map(|s| s.0).collect();
        let mut next = prompt(1, 60);
        next.extend(tokens);
        let again = run(engine, &seeded(next, 20)).await;
        assert_eq!(again.cached, 192);
        found.push(again);
    }
    assert_eq!(found[0], found[1]);
    for engine in [drafting, plain] {
        engine.stop().await;
    }
}

#[tokio::test]
async fn where_rows_cannot_be_taken_back_or_bits_must_not_move_nothing_is_drafted() {
    let deterministic = |settings: &mut Settings| settings.deterministic = true;
    let whole = |settings: &mut Settings| {
        settings.flash_attention = crate::engine::config::FlashAttention::Off;
    };
    for change in [deterministic as fn(&mut Settings), whole] {
        let [engine, other] = pair(change);
        run(&engine, &copying()).await;
        assert_eq!(engine.counters.drafted.load(Relaxed), 0);
        for engine in [engine, other] {
            engine.stop().await;
        }
    }
}
