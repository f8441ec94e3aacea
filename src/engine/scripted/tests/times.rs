//! What a stream knows of its tokens' times, of its waits, and what can be told of it while it runs.

use std::num::NonZeroU32;

use super::*;
use crate::generation::{Gap, Stage, Waits};

const MS: u64 = 1000;

#[derive(Default)]
struct Told(Mutex<Option<(Record, Timeline)>>);

impl Recorder for Told {
    fn gaps(&self, _: &[u32]) {}
    fn first_token(&self, _: Duration) {}
    fn ended(&self, record: &Record, _: Option<&Failure>, timeline: Timeline) {
        *self.0.lock().unwrap() = Some((record.clone(), timeline));
    }
}

impl Told {
    fn take(&self) -> (Record, Timeline) {
        self.0.lock().unwrap().take().expect("it has ended")
    }
}

struct Opened {
    stream: TokenStream,
    told: Arc<Told>,
    began: u64,
}

impl Opened {
    /// What happened, in milliseconds since the stream was opened.
    fn moments(&self, timeline: &Timeline) -> Vec<(u64, Moment)> {
        let moments = timeline.moments().iter();
        moments
            .map(|&(at, moment)| ((at - self.began) / MS, moment))
            .collect()
    }

    async fn next(&mut self, burst: &mut Burst) -> usize {
        assert!(self.stream.burst(burst).await);
        burst.tokens()
    }
}

async fn open(engine: &ScriptedEngine, watch: &Arc<Watch>, asked: &Request) -> Opened {
    let began = clock::task_micros();
    let started = engine.start(asked).await.expect("it starts");
    let told: Arc<Told> = Arc::default();
    let opening = Opening {
        id: asked.id.clone(),
        owner: Some("key:somebody".into()),
        model: "scripted".into(),
        route: "chat",
        accepted_at: began,
        usage: started.usage,
        deterministic: false,
        deadlines: asked.deadlines,
        stall_timeout: Duration::from_secs(30),
        recorder: told.clone(),
        permits: Vec::new(),
        meter: None,
    };
    let stream = TokenStream::open(watch, opening, started.sources);
    Opened {
        stream,
        told,
        began,
    }
}

/// A script that plays for one at a time.
fn narrow() -> ScriptedEngine {
    let script = Script {
        slots: NonZeroU32::new(1),
        ..Script::default()
    };
    ScriptedEngine::new("scripted", script, 8)
}

#[tokio::test(start_paused = true)]
async fn every_token_has_its_time_and_length_and_the_waits_before_it_are_told() {
    let (engine, watch) = (narrow(), Watch::new());
    let asked = request("scripted?tokens=3&first=500ms&pace=20ms&size=2", 1);
    let mut first = open(&engine, &watch, &asked).await;
    let mut second = open(&engine, &watch, &asked).await;
    text_of(&mut first.stream).await;
    text_of(&mut second.stream).await;
    for (opened, queue) in [(first, 0), (second, 540)] {
        let (record, timeline) = opened.told.take();
        let tokens: Vec<_> = timeline.tokens().collect();
        let at = |ms: u64| opened.began + (queue + ms) * MS;
        assert_eq!(tokens, [(at(500), 0, 2), (at(520), 0, 2), (at(540), 0, 2)]);
        let expected = [(queue, Moment::Admitted), (queue + 500, Moment::Prefilled)];
        assert_eq!(opened.moments(&timeline), expected);
        let waits = Waits {
            queue: Some(Duration::from_millis(queue)),
            prefill: Some(Duration::from_millis(500)),
            ..Waits::default()
        };
        assert_eq!(record.waits, waits);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stays_away_has_stalled_and_paused_its_stream() {
    let (engine, watch) = (engine(), Watch::new());
    let asked = request("scripted?tokens=40&pace=10ms", 1);
    let mut opened = open(&engine, &watch, &asked).await;
    let mut burst = Burst::new();
    opened.next(&mut burst).await;
    // Not long enough to be told, but it counts.
    tokio::time::sleep(Duration::from_millis(50)).await;
    opened.next(&mut burst).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    opened.next(&mut burst).await;
    text_of(&mut opened.stream).await;
    let (record, timeline) = opened.told.take();
    // Six tokens were taken when the script went on into the ring of eight, which was full then.
    let expected = [
        (0, Moment::Admitted),
        (0, Moment::Prefilled),
        (50, Moment::Stalled(1_000_000)),
        (140, Moment::Paused),
        (1050, Moment::Resumed),
    ];
    assert_eq!(opened.moments(&timeline), expected);
    assert_eq!(record.waits.stalled, Duration::from_millis(1050));
    assert_eq!((record.waits.stalls, record.waits.pauses), (1, 1));
    assert_eq!(timeline.count(), 40);
    assert_eq!(u64::from(record.max_gap_us), timeline.longest_gap().micros);
}

#[tokio::test(start_paused = true)]
async fn the_stall_in_which_a_stream_is_cut_is_told() {
    let (engine, watch) = (engine(), Watch::new());
    let asked = request("scripted?tokens=40&pace=10ms", 1);
    let mut opened = open(&engine, &watch, &asked).await;
    opened.next(&mut Burst::new()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    watch.cut_all(&Failure::new(Kind::Draining, "It ends here."));
    let (record, timeline) = opened.told.take();
    let moments = opened.moments(&timeline);
    assert!(moments.contains(&(0, Moment::Stalled(2_000_000))));
    assert_eq!(record.waits.stalled, Duration::from_secs(2));
    assert!(
        opened.stream.burst(&mut Burst::new()).await,
        "it is told why"
    );
    drop(opened.stream);
    assert!(opened.told.0.lock().unwrap().is_none(), "told once");
}

#[tokio::test(start_paused = true)]
async fn a_sign_of_life_that_is_not_taken_is_a_stall_and_the_wait_for_a_token_is_none() {
    let (engine, watch) = (engine(), Watch::new());
    let asked = request("scripted?tokens=2&first=10s", 1);
    let mut opened = open(&engine, &watch, &asked).await;
    let mut burst = Burst::new();
    let waited = tokio::time::timeout(Duration::from_secs(5), opened.next(&mut burst)).await;
    assert!(waited.is_err(), "there is no token yet");
    opened.stream.handed_nothing();
    tokio::time::sleep(Duration::from_secs(1)).await;
    text_of(&mut opened.stream).await;
    let (record, timeline) = opened.told.take();
    assert_eq!(record.waits.stalled, Duration::from_secs(1));
    let expected = [
        (0, Moment::Admitted),
        (5000, Moment::Stalled(1_000_000)),
        (10_000, Moment::Prefilled),
    ];
    assert_eq!(opened.moments(&timeline), expected);
}

#[tokio::test(start_paused = true)]
async fn tokens_of_several_choices_lie_in_the_order_of_their_times() {
    let (engine, watch) = (engine(), Watch::new());
    let asked = request("scripted?tokens=6&pace=10ms&size=3", 2);
    let mut opened = open(&engine, &watch, &asked).await;
    // Both choices have several tokens by the first burst.
    tokio::time::sleep(Duration::from_millis(30)).await;
    text_of(&mut opened.stream).await;
    let (_, timeline) = opened.told.take();
    let tokens: Vec<_> = timeline
        .tokens()
        .map(|(at, choice, bytes)| ((at - opened.began) / MS, choice, bytes))
        .collect();
    let expected: Vec<_> = (0..6)
        .flat_map(|token| [(token * 10, 0, 3), (token * 10, 1, 3)])
        .collect();
    assert_eq!(tokens, expected);
    let gap = timeline.longest_gap();
    let at = opened.began + 10 * MS;
    assert_eq!(
        gap,
        Gap {
            micros: 10 * MS,
            index: 2,
            at
        }
    );
}

#[tokio::test(start_paused = true)]
async fn a_list_tells_how_far_every_stream_is() {
    let (engine, watch) = (narrow(), Watch::new());
    let asked = |model| Request {
        id: RequestId::random(),
        ..request(model, 1)
    };
    let playing = asked("scripted?tokens=9&first=1s&pace=100ms&size=1");
    let mut first = open(&engine, &watch, &playing).await;
    let mut second = open(&engine, &watch, &asked("scripted?tokens=1")).await;
    let mut burst = Burst::new();
    let stages = || {
        let mut list = watch.list();
        list.sort_by_key(|live| live.id != playing.id);
        list.iter().map(|live| live.stage).collect::<Vec<_>>()
    };
    let soon = Duration::from_millis(500);
    let _ = tokio::time::timeout(soon, first.stream.burst(&mut burst)).await;
    let _ = tokio::time::timeout(soon / 2, second.stream.burst(&mut burst)).await;
    assert_eq!(stages(), [Stage::Prefill, Stage::Waiting]);
    first.next(&mut burst).await;
    assert_eq!(stages(), [Stage::Sending, Stage::Waiting]);
    first.next(&mut burst).await;
    first.next(&mut burst).await;
    let moment = Duration::from_millis(50);
    let _ = tokio::time::timeout(moment, first.stream.burst(&mut burst)).await;
    assert_eq!(stages(), [Stage::Decode, Stage::Waiting]);

    let list = watch.list();
    let live = list.iter().find(|live| live.id == playing.id).unwrap();
    assert_eq!((&*live.model, live.route), ("scripted", "chat"));
    assert_eq!(live.owner.as_deref(), Some("key:somebody"));
    assert_eq!((live.prompt_tokens, live.tokens), (5, 3));
    assert_eq!((live.age_us, live.queue_us), (1250 * MS, 0));
    assert_eq!(live.first_token_us, Some(1000 * MS));
    assert_eq!(live.last_token_us, Some(50 * MS));
    assert_eq!(live.tokens_per_second, Some(10.0));
    assert_eq!((live.stalled_us, live.pauses), (0, 0));
    let other = list.iter().find(|live| live.id != playing.id).unwrap();
    assert_eq!((other.queue_us, other.tokens), (1250 * MS, 0));

    let cut = Failure::new(Kind::Cancelled, "Cancelled.");
    watch.cancel(&playing.id, Some("key:somebody"), &cut);
    assert_eq!(stages().len(), 1, "what is over is not listed");
    text_of(&mut second.stream).await;
    assert!(watch.list().is_empty());
}
