//! Contexts that are full: answers end there, or go on with a part of what came before.

use super::*;

fn shifting(change: impl FnOnce(&mut Settings)) -> Arc<LlamaEngine> {
    engine(|settings| {
        settings.context = NonZeroU32::new(128);
        settings.waiting = 16;
        settings.context_shift = true;
        change(settings);
    })
}

/// A request whose answer tells its tokens.
fn long(prompt: Vec<u32>, most: u32) -> Request {
    Request {
        logprobs: Some(0),
        ..seeded(prompt, most)
    }
}

async fn answer(engine: &LlamaEngine, request: &Request) -> (Vec<u32>, Finish) {
    let mut started = engine.start(request).await.expect("it starts");
    tokens(started.sources.remove(0)).await
}

#[tokio::test]
async fn an_answer_longer_than_its_context_ends_or_goes_on_as_configured() {
    let request = long(prompt(1, 30), 400);
    let ends = engine(|settings| settings.context = NonZeroU32::new(128));
    let (short, reason) = answer(&ends, &request).await;
    assert_eq!((short.len(), reason), (98, Finish::Length));
    let shifts = shifting(|_| {});
    let (whole, reason) = answer(&shifts, &request).await;
    assert_eq!((whole.len(), reason), (400, Finish::Length));
    assert_eq!(whole[..98], short, "nothing changes before it is full");
    // Who does not say how much they want get what there is room for.
    let open = Request {
        max_tokens: None,
        ..request
    };
    assert_eq!(answer(&shifts, &open).await.0.len(), 98);
    ends.stop().await;
    shifts.stop().await;
}

#[tokio::test]
async fn it_goes_on_as_if_what_is_left_had_been_its_prompt() {
    let engine = shifting(|settings| settings.deterministic = true);
    let greedy = |prompt: Vec<u32>, most| {
        let mut request = long(prompt, most);
        request.sampling.temperature = Some(0.0);
        request
    };
    let mut all = prompt(1, 30);
    let (answered, _) = answer(&engine, &greedy(all.clone(), 200)).await;
    // The context is full with the prompt and 98 of these, when the 99th is chosen: the older 49 go.
    // It is full again 49 tokens later.
    all.extend(&answered[..99]);
    for begin in [99, 148] {
        all.drain(30..79);
        let (then, _) = answer(&engine, &greedy(all.clone(), 49)).await;
        assert_eq!(then[..], answered[begin..begin + 49], "from {begin} on");
        all.extend(&then);
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_shifted_sequence_is_the_same_in_company_after_a_pause_and_leaves_no_prefix() {
    let engine = shifting(|settings| {
        settings.parallel = 3;
        settings.pause_spill = Duration::from_millis(1);
    });
    let request = long(prompt(1, 30), 300);
    let (alone, _) = answer(&engine, &request).await;
    let stalled = engine.start(&request).await.unwrap().sources.remove(0);
    until(|| engine.counters.parked.load(Relaxed) == 1).await;
    let others = [2, 3].map(|kind| long(prompt(kind, 60), 200));
    let mut started = Vec::new();
    for other in &others {
        started.extend(engine.start(other).await.unwrap().sources);
    }
    assert_eq!(tokens(stalled).await.0, alone);
    for source in started {
        assert_eq!(tokens(source).await.0.len(), 200);
    }
    // What it holds at its end is no beginning of anything.
    let mut next = prompt(1, 30);
    next.extend(&alone[..60]);
    assert_eq!(run(&engine, &seeded(next, 4)).await.cached, 0);
    engine.stop().await;
}

#[tokio::test]
async fn of_a_prompt_that_takes_most_of_the_context_the_first_tokens_stay() {
    let engine = shifting(|_| {});
    let (tokens, reason) = answer(&engine, &long(prompt(1, 120), 300)).await;
    assert_eq!((tokens.len(), reason), (300, Finish::Length));
    engine.stop().await;
}

#[test]
fn a_pool_is_never_shifted() {
    let config = |layout| {
        format!("name = 'm'\npath = 'm.gguf'\ncontext_shift = true\nkv_layout = '{layout}'")
    };
    let parse = |layout| toml::from_str::<crate::engine::config::Model>(&config(layout));
    assert!(parse("split").is_ok() && parse("auto").is_ok());
    let refused = parse("unified").unwrap_err().to_string();
    assert!(refused.contains("context_shift"), "{refused}");
}
