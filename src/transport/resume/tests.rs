//! Who may resume what, for how long, and what it costs.

use std::num::NonZeroU32;

use proptest::prelude::*;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;

use super::*;
use crate::generation::{
    Burst, Cancel, Deadlines, Finish, Opening, Outcome, Record, Recorder, RequestId, Source,
    Timeline, TokenStream, Usage, Watch,
};
use crate::wire::{Head, Limits, openai};

/// What a stream's engine and its owner's records see.
struct Engine {
    /// A token's text; empty ends the stream.
    tokens: mpsc::Sender<&'static str>,
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

impl Engine {
    fn say(&self, tokens: &[&'static str]) {
        for token in tokens {
            self.tokens.try_send(token).expect("there is room");
        }
    }

    fn outcomes(&self) -> Vec<Outcome> {
        self.outcomes.lock().unwrap().clone()
    }

    /// Tokens that nobody has taken.
    fn untaken(&self) -> bool {
        !self.tokens.is_closed()
    }
}

struct Fed(mpsc::Receiver<&'static str>);

impl Source for Fed {
    fn poll_fill(&mut self, cx: &mut Context<'_>, burst: &mut Burst) -> Poll<()> {
        let Poll::Ready(Some(text)) = self.0.poll_recv(cx) else {
            return Poll::Pending;
        };
        if text.is_empty() {
            burst.finish(0, Finish::Stop);
        } else {
            let (from, mark) = (burst.buffer().len(), burst.scored_mark());
            burst.token(0, 1, text.len());
            burst.buffer().push_str(text);
            burst.text(0, from, mark);
        }
        Poll::Ready(())
    }

    fn end_here(&mut self, burst: &mut Burst) {
        burst.finish(0, Finish::Length);
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        Arc::new(Ignore)
    }
}

struct Ignore;

impl Cancel for Ignore {
    fn cancel(&self) {}
}

struct Outcomes(Arc<Mutex<Vec<Outcome>>>);

impl Recorder for Outcomes {
    fn gaps(&self, _: &[u32]) {}
    fn first_token(&self, _: Duration) {}
    fn ended(&self, record: &Record, _: Option<&Failure>, _: Timeline) {
        self.0.lock().unwrap().push(record.outcome);
    }
}

/// A stream of bare text, or of server-sent events.
fn body(accept: &str) -> (TokenBody, Engine) {
    let (tokens, receiver) = mpsc::channel(5000);
    let outcomes = Arc::<Mutex<Vec<Outcome>>>::default();
    let opening = Opening {
        id: RequestId::random(),
        owner: None,
        model: "m".into(),
        route: "chat",
        accepted_at: 1,
        usage: Usage::default(),
        deterministic: false,
        deadlines: Deadlines::default(),
        stall_timeout: Duration::from_secs(30),
        recorder: Arc::new(Outcomes(outcomes.clone())),
        permits: Vec::new(),
        meter: None,
    };
    let watch = Watch::new();
    let stream = TokenStream::open(&watch, opening, vec![Box::new(Fed(receiver))]);
    tokio::spawn(async move { watch.run().await });
    let head = Head {
        id: RequestId::random(),
        caller: Caller::default(),
        accept,
        deadlines: Deadlines::default(),
        created: 1,
        limits: Limits::default(),
    };
    let call = openai::parse_completion(br#"{"prompt":"x","stream":true}"#, &head).unwrap();
    let encoder = call.answer.encoder("m", false);
    let keep_alive = Duration::from_secs(10);
    let body = TokenBody::new(stream, encoder, call.answer, Pace::default(), keep_alive);
    (body, Engine { tokens, outcomes })
}

fn streams() -> Arc<Streams> {
    streams_with(Stream::default())
}

fn streams_with(mut settings: Stream) -> Arc<Streams> {
    settings.resume = true;
    Streams::new(&settings).unwrap()
}

fn begin_for(streams: &Arc<Streams>, owner: Option<&str>) -> Option<(Reader, Engine)> {
    let (body, engine) = body("text/plain");
    let asked = Asked {
        owner: owner.map(Arc::from),
        ids: false,
        is_rpc: false,
    };
    let reader = streams.keep(body, asked, |_| Bytes::new()).ok()?;
    Some((reader, engine))
}

fn begin(streams: &Arc<Streams>) -> (Reader, Engine) {
    begin_for(streams, None).unwrap()
}

fn nobody() -> Caller {
    Caller::default()
}

fn someone(name: &str) -> Caller {
    Caller {
        identity: Some(name.into()),
        ..Caller::default()
    }
}

async fn next(reader: &mut Reader) -> String {
    let frame = reader
        .next()
        .await
        .expect("there is more")
        .expect("it is ours");
    String::from_utf8(frame.to_vec()).unwrap()
}

async fn rest(mut reader: Reader) -> String {
    let mut all = String::new();
    while let Some(frame) = reader.next().await {
        all += std::str::from_utf8(&frame.expect("it is ours")).unwrap();
    }
    all
}

fn refusal(result: Result<Reader, Failure>) -> (Kind, Option<&'static str>) {
    let failure = result.err().expect("it is refused");
    (failure.kind, failure.code)
}

const UNKNOWN: (Kind, Option<&str>) = (Kind::NotFound, Some("stream_not_found"));

#[tokio::test]
async fn only_its_owner_may_resume_or_cancel_a_stream_and_others_cannot_tell_that_it_exists() {
    let streams = streams();
    let (anonymous, _a) = begin(&streams);
    let (owned, _b) = begin_for(&streams, Some("ann")).unwrap();
    let (anonymous, owned) = (anonymous.id(), owned.id());
    for (id, caller) in [
        (owned, nobody()),
        (owned, someone("bob")),
        (anonymous, someone("ann")),
        ("none", someone("ann")),
    ] {
        assert_eq!(
            refusal(streams.resume(id, &caller, 99, false, Pace::default())),
            UNKNOWN
        );
        let failure = streams.cancel(id, &caller).unwrap_err();
        assert_eq!((failure.kind, failure.code), UNKNOWN);
    }
    assert!(
        streams
            .resume(anonymous, &nobody(), 0, false, Pace::default())
            .is_ok()
    );
    assert!(
        streams
            .resume(owned, &someone("ann"), 0, false, Pace::default())
            .is_ok()
    );
}

#[tokio::test]
async fn ids_are_long_and_never_the_same() {
    let streams = streams();
    let (a, _a) = begin(&streams);
    let (b, _b) = begin(&streams);
    assert_eq!((a.id().len(), b.id().len()), (32, 32));
    assert_ne!(a.id(), b.id());
}

#[tokio::test(start_paused = true)]
async fn a_stream_goes_on_without_its_reader_and_is_dropped_when_its_time_is_over() {
    let streams = streams();
    let (mut reader, engine) = begin(&streams);
    let id = reader.id().to_owned();
    engine.say(&["one "]);
    assert_eq!(next(&mut reader).await, "one ");
    drop(reader);
    engine.say(&["two "]);
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(engine.outcomes(), []);
    let mut reader = streams
        .resume(&id, &nobody(), 4, false, Pace::default())
        .unwrap();
    assert_eq!(next(&mut reader).await, "two ");
    // The reader's time does not count, and the next keeper has all of it.
    let waiting = tokio::time::timeout(Duration::from_mins(5), reader.next());
    assert!(waiting.await.is_err(), "nothing comes");
    drop(reader);
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(engine.outcomes(), []);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(engine.outcomes(), [Outcome::ClientGone], "once");
    assert!(!engine.untaken(), "the source is gone");
    assert_eq!(
        refusal(streams.resume(&id, &nobody(), 8, false, Pace::default())),
        UNKNOWN
    );
    assert!(lock(&streams.entries).is_empty() && streams.keepers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_end_is_kept_for_its_time_however_often_it_is_read() {
    let streams = streams();
    let (reader, engine) = begin(&streams);
    let id = reader.id().to_owned();
    drop(reader);
    engine.say(&["one ", "two ", ""]);
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let reader = streams
            .resume(&id, &nobody(), 0, false, Pace::default())
            .unwrap();
        assert_eq!(rest(reader).await, "one two ");
    }
    assert_eq!(engine.outcomes(), [Outcome::Ok]);
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(
        refusal(streams.resume(&id, &nobody(), 0, false, Pace::default())),
        UNKNOWN
    );
    assert!(streams.keepers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_log_is_not_polled_until_somebody_reads_it() {
    let streams = streams_with(Stream {
        resume_bytes: 16 << 10,
        ..Stream::default()
    });
    let (reader, engine) = begin(&streams);
    let id = reader.id().to_owned();
    drop(reader);
    for _ in 0..4096 {
        engine.say(&["0123456789abcdef"]);
    }
    engine.say(&[""]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let entry = lock(&streams.entries).values().next().cloned().unwrap();
    let kept = entry.lock().log.newest();
    // The place of each piece is paid for as well, and the last one may be too much.
    assert!((4 << 10..24 << 10).contains(&kept), "{kept} bytes");
    assert_eq!(engine.outcomes(), [], "it waits");
    let reader = streams
        .resume(&id, &nobody(), 0, false, Pace::default())
        .unwrap();
    assert_eq!(rest(reader).await, "0123456789abcdef".repeat(4096));
    assert_eq!(engine.outcomes(), [Outcome::Ok]);

    // What was handed out is kept to half of the bound, and the rest is gone for good.
    let oldest = entry.lock().log.oldest();
    assert_eq!(
        refusal(streams.resume(&id, &nobody(), oldest - 2, false, Pace::default())),
        (Kind::Gone, Some("events_gone"))
    );
    let reader = streams
        .resume(&id, &nobody(), oldest - 1, false, Pace::default())
        .unwrap();
    assert_eq!(rest(reader).await.len() as u64, 65_537 - oldest);
    assert_eq!(
        refusal(streams.resume(&id, &nobody(), 65_537, false, Pace::default())).0,
        Kind::Invalid
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_a_reader_is_cut_off_after_the_stall_time_out() {
    let streams = streams_with(Stream {
        resume_bytes: 16 << 10,
        ..Stream::default()
    });
    let (reader, engine) = begin(&streams);
    let id = reader.id().to_owned();
    drop(reader);
    for _ in 0..2000 {
        engine.say(&["0123456789abcdef"]);
    }
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(engine.outcomes(), []);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(engine.outcomes(), [Outcome::Stalled]);
    let reader = streams
        .resume(&id, &nobody(), 0, false, Pace::default())
        .unwrap();
    let text = rest(reader).await;
    assert!(text.starts_with("0123456789abcdef"));
    assert!(text.ends_with(" for more text within 30s.]\n"), "{text}");
    assert_eq!(engine.outcomes(), [Outcome::Stalled], "once");
}

/// Something that happens to a stream.
#[derive(Clone, Debug)]
enum Step {
    /// So many tokens come.
    Say(usize),
    /// So many frames are read, as far as there are any.
    Read(usize),
    /// Time for everybody.
    Yield,
    /// The connection is lost with so many bytes of what was read, and perhaps noticed before a new one comes.
    Lose(usize, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..20_usize).prop_map(Step::Say),
        (1..5_usize).prop_map(Step::Read),
        Just(Step::Yield),
        (0..60_usize, any::<bool>()).prop_map(|(lost, noticed)| Step::Lose(lost, noticed)),
    ];
    proptest::collection::vec(step, 0..30)
}

async fn play(steps: Vec<Step>) {
    const TOKENS: [&str; 4] = ["one ", "zwei ", "trois! ", "4"];
    let streams = streams();
    let (mut reader, engine) = begin(&streams);
    let id = reader.id().to_owned();
    let (mut said, mut read) = (String::new(), String::new());
    let mut old = Vec::new();
    let settle = || tokio::time::sleep(Duration::from_millis(1));
    for step in steps {
        match step {
            Step::Say(count) => {
                for at in 0..count {
                    engine.say(&[TOKENS[at % 4]]);
                    said += TOKENS[at % 4];
                }
            }
            Step::Read(frames) => {
                for _ in 0..frames {
                    let next = tokio::time::timeout(Duration::from_millis(1), reader.next());
                    let Ok(Some(Ok(frame))) = next.await else {
                        break;
                    };
                    read += std::str::from_utf8(&frame).unwrap();
                }
            }
            Step::Yield => settle().await,
            Step::Lose(lost, is_noticed) => {
                read.truncate(read.len().saturating_sub(lost));
                let after = read.len() as u64;
                if is_noticed {
                    drop(reader);
                    settle().await;
                    reader = streams
                        .resume(&id, &nobody(), after, false, Pace::default())
                        .unwrap();
                } else {
                    let new = streams
                        .resume(&id, &nobody(), after, false, Pace::default())
                        .unwrap();
                    old.push(std::mem::replace(&mut reader, new));
                }
            }
        }
    }
    engine.say(&[""]);
    read += &rest(reader).await;
    assert_eq!(read, said);
    for old in old {
        assert!(!rest_is_whole(old).await);
    }
    assert_eq!(engine.outcomes(), [Outcome::Ok]);
    streams.close().await;
    assert!(lock(&streams.entries).is_empty());
}

async fn rest_is_whole(mut reader: Reader) -> bool {
    while let Some(frame) = reader.next().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}

proptest! {
    #[test]
    fn whatever_happens_to_connections_the_text_comes_once(steps in steps()) {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(play(steps));
    }
}

#[tokio::test(start_paused = true)]
async fn an_older_reader_is_cut_off_and_leaves_the_stream_alone() {
    let streams = streams();
    let (mut old, engine) = begin(&streams);
    let id = old.id().to_owned();
    let reading = tokio::spawn(async move { (old.next().await, old.next().await, old) });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut new = streams
        .resume(&id, &nobody(), 0, false, Pace::default())
        .unwrap();
    let (cut, end, old) = reading.await.unwrap();
    assert!(cut.is_some_and(|cut| cut.is_err()), "it is told");
    assert!(end.is_none());
    engine.say(&["one "]);
    assert_eq!(next(&mut new).await, "one ");
    drop(old);
    assert!(streams.keepers.is_empty(), "the newer one still reads");
    engine.say(&["two ", ""]);
    assert_eq!(rest(new).await, "two ");
}

#[tokio::test(start_paused = true)]
async fn room_is_made_by_what_was_read_to_its_end_first_and_by_nothing_else() {
    let streams = streams_with(Stream {
        resume_streams: NonZeroU32::new(3).unwrap(),
        ..Stream::default()
    });
    let mut ended = Vec::new();
    for _ in 0..2 {
        let (reader, engine) = begin(&streams);
        ended.push(reader.id().to_owned());
        engine.say(&["x", ""]);
        rest(reader).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (unread, engine) = begin(&streams);
    let unread_id = unread.id().to_owned();
    engine.say(&["x", ""]);
    drop(unread);
    tokio::time::sleep(Duration::from_secs(1)).await;

    let (_third, _a) = begin(&streams);
    assert_eq!(
        refusal(streams.resume(&ended[0], &nobody(), 0, false, Pace::default())),
        UNKNOWN
    );
    let again = streams
        .resume(&ended[1], &nobody(), 0, false, Pace::default())
        .unwrap();
    assert!(begin_for(&streams, None).is_none(), "it is being read");
    assert_eq!(rest(again).await, "x");
    let (_fourth, _b) = begin(&streams);
    assert!(begin_for(&streams, None).is_none());
    let unread = streams
        .resume(&unread_id, &nobody(), 0, false, Pace::default())
        .unwrap();
    assert_eq!(rest(unread).await, "x", "nobody had been given it");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(streams.keepers.len() <= 3, "those that made room are gone");
}

#[tokio::test(start_paused = true)]
async fn keep_alives_reach_who_reads_and_are_not_kept() {
    let streams = streams();
    let (body, engine) = body("");
    let asked = Asked {
        owner: None,
        ids: true,
        is_rpc: false,
    };
    let first = streams.keep(body, asked, |_| Bytes::new());
    let mut reader = first.ok().unwrap();
    assert_eq!(next(&mut reader).await, ": keep-alive\n\n");
    let id = reader.id().to_owned();
    drop(reader);
    tokio::time::sleep(Duration::from_secs(45)).await;
    engine.say(&["x"]);
    let mut reader = streams
        .resume(&id, &nobody(), 0, false, Pace::default())
        .unwrap();
    assert!(next(&mut reader).await.starts_with("id: 1\ndata: {"));
    assert_eq!(next(&mut reader).await, ": keep-alive\n\n");
}

#[tokio::test(start_paused = true)]
async fn closing_forgets_everything_without_a_reader_at_once() {
    let streams = streams();
    let (running, a) = begin(&streams);
    let (ended, b) = begin(&streams);
    let (mut read, c) = begin(&streams);
    b.say(&["x", ""]);
    drop((running, ended));
    tokio::time::sleep(Duration::from_secs(1)).await;
    streams.close().await;
    assert_eq!(
        (a.outcomes(), b.outcomes()),
        (vec![Outcome::ClientGone], vec![Outcome::Ok])
    );
    c.say(&["x"]);
    assert_eq!(next(&mut read).await, "x");
    drop(read);
    assert_eq!(c.outcomes(), [Outcome::ClientGone], "no keeper any more");
    assert!(lock(&streams.entries).is_empty() && streams.keepers.is_empty());
}

#[tokio::test]
async fn frames_are_bounded_whatever_waits() {
    let streams = streams();
    let (reader, engine) = begin(&streams);
    let id = reader.id().to_owned();
    drop(reader);
    let token: &'static str = Box::leak("x".repeat(3000).into_boxed_str());
    engine.say(&[token; 40]);
    engine.say(&[""]);
    while engine.outcomes().is_empty() {
        tokio::task::yield_now().await;
    }
    let mut reader = streams
        .resume(&id, &nobody(), 1500, false, Pace::default())
        .unwrap();
    let mut lengths = Vec::new();
    while let Some(frame) = reader.next().await {
        lengths.push(frame.unwrap().len());
    }
    assert_eq!(lengths.iter().sum::<usize>(), 40 * 3000 - 1500);
    assert!(
        lengths.iter().all(|length| *length <= 8 * 1024),
        "{lengths:?}"
    );
    assert!(lengths.len() < 24, "small pieces go together: {lengths:?}");
}
