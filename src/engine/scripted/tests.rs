//! Scripts, and through them the promises of `TokenStream` and `Watch`, on a paused clock.

mod charged;
mod times;

use super::*;
use crate::generation::{
    Deadlines, Event, Opening, Outcome, Record, Recorder, RequestId, Timeline, TokenStream, Watch,
};
use std::sync::Mutex;
use std::task::Waker;

#[derive(Default)]
struct Ledger(Mutex<Vec<Outcome>>);

impl Recorder for Ledger {
    fn gaps(&self, _: &[u32]) {}
    fn first_token(&self, _: Duration) {}
    fn ended(&self, record: &Record, _: Option<&Failure>, _: Timeline) {
        self.0.lock().unwrap().push(record.outcome);
    }
}

fn request(model: &str, n: u32) -> Request {
    Request {
        model: model.into(),
        n,
        ..Request::new(Input::Text("hello".into()))
    }
}

async fn open(
    engine: &ScriptedEngine,
    request: &Request,
    ledger: &Arc<Ledger>,
) -> (TokenStream, Arc<Watch>) {
    let started = engine.start(request).await.expect("it starts");
    let watch = Watch::new();
    let opening = Opening {
        id: request.id.clone(),
        owner: None,
        model: "m".into(),
        route: "chat",
        accepted_at: clock::task_micros(),
        usage: started.usage,
        deterministic: false,
        deadlines: request.deadlines,
        stall_timeout: Duration::from_secs(30),
        recorder: ledger.clone(),
        permits: Vec::new(),
        meter: None,
    };
    (TokenStream::open(&watch, opening, started.sources), watch)
}

async fn text_of(stream: &mut TokenStream) -> (String, Option<Failure>) {
    let (mut burst, mut text, mut failure) = (Burst::new(), String::new(), None);
    while stream.burst(&mut burst).await {
        for event in burst.events() {
            match event {
                Event::Text { text: more, .. } => text.push_str(more),
                Event::Failed(what) => failure = Some(what.clone()),
                _ => {}
            }
        }
    }
    (text, failure)
}

fn engine() -> ScriptedEngine {
    ScriptedEngine::new("scripted", Script::default(), 8)
}

#[tokio::test(start_paused = true)]
async fn tokens_come_at_their_times() {
    let ledger = Arc::default();
    let asked = request(
        "scripted?tokens=3&first=500ms&pace=20ms&size=2&text=abcdef",
        1,
    );
    let start = Instant::now();
    let (mut stream, _watch) = open(&engine(), &asked, &ledger).await;
    let mut burst = Burst::new();
    let mut times = Vec::new();
    while stream.burst(&mut burst).await {
        times.push(start.elapsed().as_millis());
    }
    assert_eq!(times, [500, 520, 540]);
    assert_eq!(*ledger.0.lock().unwrap(), [Outcome::Ok]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_stays_away_finds_a_paused_script() {
    let ledger = Arc::default();
    let engine = engine();
    let asked = request("scripted?tokens=100&pace=10ms", 1);
    let (mut stream, _watch) = open(&engine, &asked, &ledger).await;
    let mut burst = Burst::new();
    stream.burst(&mut burst).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    stream.burst(&mut burst).await;
    assert!(
        burst.tokens() <= 9,
        "one ring and the one that is due, not 100: {}",
        burst.tokens()
    );
    assert_eq!(engine.gauges().load.pauses, 1);
    let before = Instant::now();
    text_of(&mut stream).await;
    assert!(
        before.elapsed() > Duration::from_millis(800),
        "the rest keeps its pace"
    );
}

#[tokio::test(start_paused = true)]
async fn a_failure_comes_at_its_token_and_is_the_outcome() {
    let ledger = Arc::default();
    let asked = request(
        "scripted?tokens=9&size=1&text=abc&fail_at=5&fail_kind=upstream",
        1,
    );
    let (mut stream, _watch) = open(&engine(), &asked, &ledger).await;
    let (text, failure) = text_of(&mut stream).await;
    assert_eq!(text, "abcab");
    assert_eq!(failure.map(|f| f.kind), Some(Kind::Upstream));
    assert_eq!(*ledger.0.lock().unwrap(), [Outcome::Upstream]);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_stream_frees_it_and_counts_a_client_gone() {
    let ledger = Arc::default();
    let engine = engine();
    let (stream, watch) = open(&engine, &request("scripted?pace=1s", 3), &ledger).await;
    assert_eq!((engine.gauges().load.running, watch.open_streams()), (3, 1));
    drop(stream);
    assert_eq!((engine.gauges().load.running, watch.open_streams()), (0, 0));
    assert_eq!(*ledger.0.lock().unwrap(), [Outcome::ClientGone]);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_reader_is_cut_off_without_being_polled() {
    let ledger: Arc<Ledger> = Arc::default();
    let engine = engine();
    let (mut stream, watch) = open(
        &engine,
        &request("scripted?tokens=10000&pace=1ms", 1),
        &ledger,
    )
    .await;
    let sweeper = tokio::spawn({
        let watch = watch.clone();
        async move { watch.run().await }
    });
    let mut burst = Burst::new();
    stream.burst(&mut burst).await;
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(
        *ledger.0.lock().unwrap(),
        [Outcome::Stalled],
        "counted while nobody reads"
    );
    assert_eq!(engine.gauges().load.running, 0, "and freed");
    let (_, failure) = text_of(&mut stream).await;
    assert_eq!(
        failure.map(|f| f.kind),
        Some(Kind::Stalled),
        "told when it comes back"
    );
    drop(stream);
    assert_eq!(ledger.0.lock().unwrap().len(), 1);
    sweeper.abort();
}

#[tokio::test(start_paused = true)]
async fn deadlines_for_first_token_gap_and_total_are_kept() {
    for (model, bound, said) in [
        (
            "scripted?first=10s",
            Deadlines {
                first_token: Some(Duration::from_secs(2)),
                ..Deadlines::default()
            },
            "first token",
        ),
        (
            "scripted?stall_at=3&stall=10s",
            Deadlines {
                gap: Some(Duration::from_secs(2)),
                ..Deadlines::default()
            },
            "next token",
        ),
        (
            "scripted?pace=100ms",
            Deadlines {
                total: Some(Duration::from_secs(2)),
                ..Deadlines::default()
            },
            "whole request",
        ),
    ] {
        let ledger = Arc::default();
        let mut asked = request(model, 1);
        asked.deadlines = bound;
        let (mut stream, watch) = open(&engine(), &asked, &ledger).await;
        let sweeper = tokio::spawn(async move { watch.run().await });
        let start = Instant::now();
        let (_, failure) = text_of(&mut stream).await;
        let took = start.elapsed();
        assert!(failure.expect("it fails").message.contains(said), "{said}");
        assert!((2000..2100).contains(&took.as_millis()), "{said}: {took:?}");
        assert_eq!(*ledger.0.lock().unwrap(), [Outcome::Deadline]);
        sweeper.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn bad_scripts_are_refused() {
    for model in [
        "scripted?tokens=0",
        "scripted?pace=fast",
        "scripted?what=1",
        "scripted?fail_kind=x",
    ] {
        let asked = request(model, 1);
        let error = engine().start(&asked).await.err().expect(model);
        assert_eq!(error.param.as_deref(), Some("model"), "{model}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cancel_by_id_reaches_the_reader() {
    let ledger: Arc<Ledger> = Arc::default();
    let asked = request("scripted?pace=1s", 1);
    let (mut stream, watch) = open(&engine(), &asked, &ledger).await;
    let failure = Failure::new(Kind::Cancelled, "Cancelled.");
    let stranger = Some("cert:cn:somebody");
    assert_eq!(watch.cancel(&asked.id, stranger, &failure), 0);
    assert_eq!(watch.cancel(&asked.id, None, &failure), 1);
    let (_, failure) = text_of(&mut stream).await;
    assert_eq!(failure.map(|f| f.kind), Some(Kind::Cancelled));
    assert_eq!(*ledger.0.lock().unwrap(), [Outcome::ClientGone]);
}

/// A token now, one that was made long before it is fetched, and the end a second later.
struct Paused {
    step: u32,
    made_at: u64,
    sleep: Pin<Box<Sleep>>,
}

impl Source for Paused {
    fn poll_fill(&mut self, cx: &mut Context<'_>, burst: &mut Burst) -> Poll<()> {
        self.step += 1;
        if self.step > 2 {
            if self.step == 3 {
                self.sleep
                    .as_mut()
                    .reset(Instant::now() + Duration::from_secs(1));
            }
            ready!(self.sleep.as_mut().poll(cx));
            burst.finish(0, Finish::Stop);
            return Poll::Ready(());
        }
        burst.token(0, self.made_at, 1);
        let from = burst.buffer().len();
        burst.buffer().push('x');
        burst.text(0, from, burst.scored_mark());
        Poll::Ready(())
    }

    fn end_here(&mut self, burst: &mut Burst) {
        burst.finish(0, Finish::Length);
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        Running::new(&Arc::default(), None)
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_was_away_has_not_waited_for_the_next_token() {
    let ledger: Arc<Ledger> = Arc::default();
    let watch = Watch::new();
    let source = Paused {
        step: 0,
        made_at: clock::task_micros(),
        sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
    };
    let opening = Opening {
        id: RequestId::random(),
        owner: None,
        model: "m".into(),
        route: "chat",
        accepted_at: clock::task_micros(),
        usage: Usage::default(),
        deterministic: false,
        deadlines: Deadlines {
            gap: Some(Duration::from_secs(2)),
            ..Deadlines::default()
        },
        stall_timeout: Duration::from_secs(30),
        recorder: ledger.clone(),
        permits: Vec::new(),
        meter: None,
    };
    let mut stream = TokenStream::open(&watch, opening, vec![Box::new(source)]);
    let sweeper = tokio::spawn(async move { watch.run().await });
    let mut burst = Burst::new();
    stream.burst(&mut burst).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let (text, failure) = text_of(&mut stream).await;
    assert!(failure.is_none(), "{failure:?}");
    assert_eq!(text, "x");
    assert_eq!(*ledger.0.lock().unwrap(), [Outcome::Ok]);
    sweeper.abort();
}

#[tokio::test(start_paused = true)]
async fn no_change_of_a_script_is_too_large_for_clocks_and_buffers() {
    for large in [
        "first=2days",
        "pace=25h",
        "stall=100y",
        "size=4097",
        "tokens=100000001",
    ] {
        let refused = engine().start(&request(&format!("m?{large}"), 1)).await;
        let failure = refused.err().expect("it is too large");
        assert_eq!(failure.param.as_deref(), Some("model"), "{large}");
    }
    let slow = "m?tokens=100000000&first=1day&pace=1day&stall_at=1&stall=1day";
    let mut started = engine().start(&request(slow, 1)).await.expect("it starts");
    let mut burst = Burst::new();
    let first = started.sources[0].poll_fill(&mut Context::from_waker(Waker::noop()), &mut burst);
    assert!(first.is_pending());
}

#[tokio::test(start_paused = true)]
async fn a_death_ends_every_stream_of_the_engine_and_refuses_the_next() {
    let (ledger, engine) = (Arc::default(), engine());
    let (mut other, _watch) = open(&engine, &request("scripted?pace=1h", 1), &ledger).await;
    let mut burst = Burst::new();
    other.burst(&mut burst).await;
    let waiting = tokio::spawn(async move { text_of(&mut other).await });
    tokio::task::yield_now().await;
    assert!(engine.is_alive());
    let dying = request("scripted?die_at=2&size=3&text=abc", 1);
    let (mut dying, _watch) = open(&engine, &dying, &ledger).await;
    let start = Instant::now();
    let (text, failure) = text_of(&mut dying).await;
    assert_eq!(text, "abcabc");
    assert_eq!(failure.unwrap().kind, Kind::Internal);
    let (_, failure) = waiting.await.unwrap();
    assert_eq!(failure.unwrap().kind, Kind::Internal);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(!engine.is_alive());
    assert!(engine.start(&request("scripted", 1)).await.is_err());
}

fn with_slots(slots: u32, waiting: u32) -> ScriptedEngine {
    let script = Script {
        slots: std::num::NonZeroU32::new(slots),
        waiting,
        ..Script::default()
    };
    ScriptedEngine::new("scripted", script, 8)
}

#[tokio::test(start_paused = true)]
async fn a_script_with_slots_plays_for_so_many_at_a_time_in_order() {
    let engine = with_slots(2, 8);
    let asked = request("scripted?tokens=2&pace=100ms", 1);
    let start = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(open(&engine, &asked, &Arc::default()).await);
    }
    let load = engine.gauges().load;
    assert_eq!((load.running, load.waiting), (2, 4));
    let positions: Vec<_> = streams
        .iter()
        .map(|(stream, _)| stream.queued().map(|queued| queued.position))
        .collect();
    assert_eq!(positions, [None, None, Some(1), Some(2), Some(3), Some(4)]);
    let readers = streams.into_iter().map(|(mut stream, watch)| {
        tokio::spawn(async move {
            let (text, failure) = text_of(&mut stream).await;
            drop(watch);
            assert!(failure.is_none() && text.len() == 8);
            start.elapsed().as_millis()
        })
    });
    let mut times = Vec::new();
    for reader in readers.collect::<Vec<_>>() {
        times.push(reader.await.unwrap());
    }
    assert_eq!(times, [100, 100, 200, 200, 300, 300]);
    let load = engine.gauges().load;
    assert_eq!((load.running, load.waiting), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_for_a_slot_or_leaves_makes_way() {
    let engine = with_slots(1, 3);
    let long = request("scripted?tokens=2&pace=1h", 1);
    let ledger = Arc::default();
    let (held, _watch) = open(&engine, &long, &ledger).await;
    let mut hasty = request("scripted", 1);
    hasty.deadlines.queue = Some(Duration::from_secs(3));
    let (mut hasty, _) = open(&engine, &hasty, &ledger).await;
    let (left, _) = open(&engine, &long, &ledger).await;
    let (patient, _) = open(&engine, &long, &ledger).await;
    assert_eq!(patient.queued().unwrap().position, 3);
    let refused = engine.start(&long).await.err().unwrap();
    assert_eq!(refused.code, Some("queue_full"));
    drop(left);
    assert_eq!(patient.queued().unwrap().position, 2);
    let start = Instant::now();
    let (_, failure) = text_of(&mut hasty).await;
    assert_eq!(failure.unwrap().code, Some("queue_timeout"));
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    assert_eq!(patient.queued().unwrap().position, 1);
    drop(held);
    assert_eq!(patient.queued(), None, "its turn has come");
    assert_eq!(engine.gauges().load.running, 1);
    assert!(engine.start(&request("scripted", 5)).await.is_err());
}
