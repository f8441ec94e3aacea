//! Adapters on the built-in model: what they change, what they leave alone, and how they come and go.

use std::path::PathBuf;

use super::super::tests::{end_of, engine, until};
use super::super::*;
use super::*;
use crate::engine::llama::gguf::build::{Gguf, Put};
use crate::generation::{Burst, Event, Request, Sampling};

/// The matrices of the built-in model that the adapters here change: name, inputs, outputs.
const MATRICES: [(&str, u64, u64); 4] = [
    ("attn_q", 224, 224),
    ("attn_v", 224, 224),
    ("ffn_up", 224, 608),
    ("ffn_down", 608, 224),
];

/// An adapter of rank 2 with random numbers.
pub(super) fn adapter_file(seed: u64) -> Gguf {
    let mut file = Gguf {
        magic: *b"GGUF",
        version: 3,
        keys: Vec::new(),
        tensors: Vec::new(),
        alignment: 32,
        counts: (None, None),
    };
    file.set("general.architecture", "llama")
        .set("general.type", "adapter")
        .set("adapter.type", "lora")
        .set("adapter.lora.alpha", Put::F32(4.0));
    let mut random = seed;
    let mut numbers = |count: u64| {
        let number = move |_| {
            // A linear congruential generator; its upper bits become -0.15 to 0.15.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let bits = u16::try_from(random >> 48).unwrap();
            (f32::from(bits) / 65_535.0 - 0.5) * 0.3
        };
        let bytes = (0..count).map(number).flat_map(f32::to_le_bytes).collect();
        random = random.wrapping_add(count);
        bytes
    };
    for block in 0..6 {
        for (name, inputs, outputs) in MATRICES {
            for (end, shape) in [("lora_a", [inputs, 2]), ("lora_b", [2, outputs])] {
                let name = format!("blk.{block}.{name}.weight.{end}");
                file.add(&name, &shape, 0);
                file.tensor(&name).data = numbers(shape[0] * shape[1]);
            }
        }
    }
    file
}

/// A file that is gone when this is.
struct Written(PathBuf);

impl Written {
    fn new(file: &Gguf) -> Self {
        Self::of(&file.bytes())
    }

    fn of(bytes: &[u8]) -> Self {
        let name = format!("{}.gguf", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }

    fn named(&self, name: &str) -> config::Adapter {
        config::Adapter {
            name: name.to_owned().try_into().unwrap(),
            path: self.0.clone(),
            scale: 1.0,
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn ask(model: &str, lora: &[(&str, f32)]) -> Request {
    let adapters = lora.iter().map(|&(name, scale)| UseAdapter {
        adapter: AdapterRef::Name(name.into()),
        scale: Some(scale),
    });
    Request {
        model: model.into(),
        adapters: adapters.collect(),
        max_tokens: Some(40),
        sampling: Sampling {
            temperature: Some(0.0),
            ignore_eos: Some(true),
            ..Sampling::default()
        },
        ..Request::new(Input::Text("Once upon a time".into()))
    }
}

/// The whole text of a request's only choice.
async fn text(engine: &LlamaEngine, request: &Request) -> String {
    let mut started = engine.start(request).await.unwrap();
    rest(started.sources.remove(0)).await
}

async fn rest(mut source: Box<dyn Source>) -> String {
    let (mut burst, mut text) = (Burst::new(), Vec::new());
    loop {
        burst.clear();
        std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
        for event in burst.events() {
            match event {
                Event::Text { text: part, .. } => text.extend_from_slice(part.as_bytes()),
                Event::Finish { .. } => return String::from_utf8(text).unwrap(),
                Event::Failed(failure) => panic!("{failure}"),
                Event::End(_) => {}
            }
        }
    }
}

async fn failure(engine: &LlamaEngine, request: &Request) -> Failure {
    engine.start(request).await.err().expect("it is refused")
}

#[tokio::test]
async fn an_adapter_changes_the_text_by_its_scale_and_the_bare_model_stays_as_it_is() {
    let (a, b) = (
        Written::new(&adapter_file(1)),
        Written::new(&adapter_file(2)),
    );
    let plain = engine(|_| {});
    let engine = engine(|settings| settings.adapters = vec![a.named("a"), b.named("b")]);
    let base = text(&plain, &ask("", &[])).await;
    assert_eq!(text(&engine, &ask("demo", &[])).await, base);
    assert_eq!(text(&engine, &ask("", &[("a", 0.0)])).await, base);
    let tuned = text(&engine, &ask("demo:a", &[])).await;
    assert_ne!(tuned, base);
    assert_eq!(text(&engine, &ask("", &[("a", 1.0)])).await, tuned);
    // The list's scale stands.
    assert_eq!(text(&engine, &ask("demo:a", &[("a", 0.0)])).await, base);
    let others = [
        text(&engine, &ask("", &[("a", -1.0)])).await,
        text(&engine, &ask("demo:b", &[])).await,
        text(&engine, &ask("demo:b", &[("a", 1.0)])).await,
    ];
    for (at, other) in others.iter().enumerate() {
        assert!(*other != base && *other != tuned, "{at}");
        assert!(!others[..at].contains(other), "{at}");
    }
    // In whatever order, and after all that.
    let both = text(&engine, &ask("", &[("b", 1.0), ("a", 1.0)])).await;
    assert_eq!(both, others[2]);
    assert_eq!(text(&engine, &ask("", &[])).await, base);
    engine.stop().await;
    plain.stop().await;
}

#[tokio::test]
async fn groups_run_side_by_side_and_each_says_what_it_says_alone() {
    let (a, b) = (
        Written::new(&adapter_file(1)),
        Written::new(&adapter_file(2)),
    );
    let engine = engine(|settings| {
        settings.adapters = vec![a.named("a"), b.named("b")];
        settings.parallel = 6;
    });
    let asks = [
        ask("", &[]),
        ask("demo:a", &[]),
        ask("demo:b", &[]),
        ask("demo:a", &[("b", 0.5)]),
        ask("demo:b", &[]),
        ask("", &[]),
    ];
    let mut alone = Vec::new();
    for ask in &asks {
        alone.push(text(&engine, ask).await);
    }
    // Rings of 16 tokens and nobody reads: all of them pause, so all of them were computed.
    let mut sources = Vec::new();
    for ask in &asks {
        sources.push(engine.start(ask).await.unwrap().sources.remove(0));
    }
    for (source, alone) in sources.into_iter().zip(&alone) {
        assert_eq!(rest(source).await, *alone);
    }
    let together = asks.iter().map(|ask| text(&engine, ask));
    let mut together: Vec<_> = together.map(Box::pin).collect();
    let mut texts = Vec::new();
    for one in &mut together {
        texts.push(one.await);
    }
    assert_eq!(texts, alone);
    engine.stop().await;
}

#[tokio::test]
async fn adapters_come_and_go_while_streams_run() {
    let (a, b) = (
        Written::new(&adapter_file(1)),
        Written::new(&adapter_file(2)),
    );
    let engine = engine(|_| {});
    let unknown = failure(&engine, &ask("demo:a", &[])).await;
    assert_eq!(
        (unknown.kind, unknown.code),
        (Kind::NotFound, Some("model_not_found"))
    );
    assert!(
        unknown.message.contains("it has none"),
        "{}",
        unknown.message
    );
    let card = engine.add_adapter(a.named("a")).await.unwrap();
    assert_eq!((card.id, card.rank, card.matrices), (0, 2, 24));
    let alone = text(&engine, &ask("demo:a", &[])).await;

    // One is in the middle of its text when its adapter goes.
    let mut begun = engine.start(&ask("demo:a", &[])).await.unwrap();
    until(|| engine.gauges().load.paused == 1).await;
    let weights = Arc::downgrade(&engine.adapters.known().loaded[0].weights);
    engine.remove_adapter("a").unwrap();
    let gone = failure(&engine, &ask("", &[("a", 1.0)])).await;
    assert_eq!(
        (gone.kind, gone.code),
        (Kind::NotFound, Some("adapter_not_found"))
    );
    engine.add_adapter(b.named("a")).await.unwrap();
    let other = text(&engine, &ask("demo:a", &[])).await;
    assert_ne!(other, alone);
    assert!(weights.strong_count() > 0);
    assert_eq!(rest(begun.sources.remove(0)).await, alone);

    // Its memory comes back when the next call computes something else.
    text(&engine, &ask("", &[])).await;
    until(|| weights.strong_count() == 0).await;
    let cards = engine.adapters();
    assert_eq!(cards.len(), 1);
    assert_eq!(cards[0].id, 1, "numbers are not given twice");
    let by_id = Request {
        adapters: vec![UseAdapter {
            adapter: AdapterRef::Id(1),
            scale: None,
        }],
        ..ask("", &[])
    };
    assert_eq!(text(&engine, &by_id).await, other);
    engine.stop().await;
}

#[tokio::test]
async fn an_adapter_is_loaded_while_others_decode() {
    let files: Vec<_> = (0..4)
        .map(|seed| Written::new(&adapter_file(seed)))
        .collect();
    let engine = engine(|settings| settings.parallel = 4);
    engine.add_adapter(files[0].named("a")).await.unwrap();
    let asks = [ask("", &[]), ask("demo:a", &[])];
    let alone = [text(&engine, &asks[0]).await, text(&engine, &asks[1]).await];
    let running = {
        let engine = engine.clone();
        tokio::spawn(async move {
            for _ in 0..4 {
                let both = tokio::join!(text(&engine, &asks[0]), text(&engine, &asks[1]));
                assert_eq!([both.0, both.1], alone);
            }
        })
    };
    for round in 0..8 {
        for (number, file) in files[1..].iter().enumerate() {
            let name = format!("{round}-{number}");
            engine.add_adapter(file.named(&name)).await.unwrap();
            if round % 2 == 1 {
                engine.remove_adapter(&name).unwrap();
            }
        }
    }
    running.await.unwrap();
    engine.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_engine_goes_on() {
    let sound = Written::new(&adapter_file(1));
    let engine = engine(|settings| settings.adapters = vec![sound.named("a")]);
    let base = text(&engine, &ask("", &[])).await;
    let refused = async |file: &Gguf| {
        let written = Written::new(file);
        let failure = engine.add_adapter(written.named("bad")).await.unwrap_err();
        assert_eq!(
            (failure.kind, failure.code),
            (Kind::Invalid, Some("adapter_unusable"))
        );
        failure.message.into_owned()
    };
    let mut foreign = adapter_file(1);
    foreign.set("general.architecture", "qwen2");
    assert!(refused(&foreign).await.contains("qwen2"));
    let mut tied = adapter_file(1);
    tied.add("token_embd.weight.lora_a", &[8, 3072], 0).add(
        "token_embd.weight.lora_b",
        &[8, 224],
        0,
    );
    assert!(refused(&tied).await.contains("also the head"));
    let mut model = adapter_file(1);
    model.set("general.type", "model");
    assert!(refused(&model).await.contains("general.type"));

    let taken = engine.add_adapter(sound.named("a")).await.unwrap_err();
    assert_eq!(taken.code, Some("adapter_exists"));
    for path in ["/no/such/file", "/dev/zero", "."] {
        let mut adapter = sound.named("b");
        adapter.path = path.into();
        let failure = engine.add_adapter(adapter).await.unwrap_err();
        assert!(
            failure.message.contains("cannot read"),
            "{}",
            failure.message
        );
    }
    let twice = failure(&engine, &ask("", &[("a", 1.0), ("a", 2.0)])).await;
    assert_eq!(
        (twice.kind, twice.param.as_deref()),
        (Kind::Invalid, Some("lora"))
    );
    assert_eq!(text(&engine, &ask("", &[])).await, base);
    engine.stop().await;
}

/// Whatever of a broken file gets past the check, llama.cpp reads and computes with.
#[tokio::test]
async fn broken_files_never_end_the_process() {
    let engine = engine(|_| {});
    let mut file = adapter_file(1);
    file.tensors.truncate(8);
    let sound = file.bytes();
    // The keys and the table of tensors, which come before the numbers.
    let head = sound.len() - file.tensors.iter().map(|t| t.data.len()).sum::<usize>();
    let mut state = 7_u64;
    let mut below = |bound: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % bound
    };
    for round in 0..200 {
        let mut bytes = sound.clone();
        for _ in 0..=below(3) {
            let at = below(head);
            bytes[at] = match below(3) {
                0 => bytes[at] ^ (1 << below(8)),
                1 => bytes[at].wrapping_add(1),
                _ => u8::try_from(below(256)).unwrap(),
            };
        }
        let written = Written::of(&bytes);
        if engine.add_adapter(written.named("broken")).await.is_ok() {
            let mut ask = ask("demo:broken", &[]);
            ask.max_tokens = Some(1);
            let mut started = engine.start(&ask).await.unwrap();
            // An alpha beyond all measure makes numbers that are none: that request fails.
            let _ = end_of(started.sources.remove(0)).await;
            engine.remove_adapter("broken").unwrap();
        }
        assert!(engine.is_alive(), "round {round}");
    }
    engine.stop().await;
}

#[test]
fn a_model_is_inspected_with_its_adapters() {
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src/engine/llama/demo/sluicegate-demo-q8_0.gguf"
    );
    let (sound, other) = (
        adapter_file(1),
        Gguf::clone(adapter_file(1).remove("adapter.type")),
    );
    let (sound, other) = (Written::new(&sound), Written::new(&other));
    let mut settings = Settings::default();
    settings.adapters.push(sound.named("a"));
    inspect(model.as_ref(), &settings).unwrap();
    settings.adapters.push(other.named("b"));
    let error = inspect(model.as_ref(), &settings).unwrap_err();
    let text = crate::generation::chain(&error);
    assert!(
        text.contains("adapter b") && text.contains("adapter.type"),
        "{text}"
    );
}

#[tokio::test]
async fn equal_sets_are_one_group_and_caches_tell_different_ones_apart() {
    let (a, b) = (
        Written::new(&adapter_file(1)),
        Written::new(&adapter_file(2)),
    );
    let all = vec![a.named("a"), a.named("same"), b.named("b")];
    let engine = engine(|settings| settings.adapters = all);
    let choose = |lora: &[(&str, f32)]| {
        let ask = ask("", lora);
        engine.adapters.choose(&ask.model, &ask.adapters).unwrap()
    };
    let bare = choose(&[("a", 0.0)]);
    assert_eq!(AdapterSet::group_of(bare.as_ref()), 0);
    assert_eq!(AdapterSet::cache_key_of(bare.as_ref()), [0; 32]);
    let first = choose(&[("a", 1.0), ("b", 2.0)]).unwrap();
    let swapped = choose(&[("b", 2.0), ("a", 1.0)]).unwrap();
    assert!(Arc::ptr_eq(&first, &swapped));
    let renamed = choose(&[("same", 1.0)]).unwrap();
    assert!(Arc::ptr_eq(&renamed, &choose(&[("a", 1.0)]).unwrap()));
    let others = [
        choose(&[("a", 2.0), ("b", 1.0)]),
        choose(&[("a", 1.0)]),
        choose(&[("b", 1.0)]),
        Some(first),
        None,
    ];
    for (at, set) in others.iter().enumerate() {
        for other in &others[..at] {
            let (set, other) = (set.as_ref(), other.as_ref());
            assert_ne!(AdapterSet::group_of(set), AdapterSet::group_of(other));
            assert_ne!(
                AdapterSet::cache_key_of(set),
                AdapterSet::cache_key_of(other)
            );
        }
    }
    drop((others, swapped));
    // More than the bound refuses, and what is let go of makes room.
    let scales = (1..MOST_SETS).map(|scale| 1.0 + f32::from(u8::try_from(scale).unwrap()));
    let mut held: Vec<_> = scales
        .map(|scale| choose(&[("b", scale)]).unwrap())
        .collect();
    let refused = engine.adapters.choose("demo:a", &[]).err();
    assert!(refused.is_none(), "\"a\" is held under its other name");
    let refused = engine.adapters.choose("demo:b", &[]).err().unwrap();
    assert_eq!(refused.kind, Kind::Overloaded);
    drop(held.pop());
    assert!(engine.adapters.choose("demo:b", &[]).is_ok());
    engine.stop().await;
}
