//! What a stream owes to its meter: every token that is told is charged, and it is settled once.

use std::sync::atomic::AtomicU32;

use super::*;
use crate::generation::{Ending, Meter, UsedUp};

/// Has so many tokens, and counts.
struct Purse {
    most: u32,
    charged: AtomicU32,
    forgiven: AtomicU32,
    settled: AtomicU32,
}

impl Purse {
    fn of(most: u32) -> Arc<Self> {
        Arc::new(Self {
            most,
            charged: AtomicU32::new(0),
            forgiven: AtomicU32::new(0),
            settled: AtomicU32::new(0),
        })
    }
}

impl Meter for Purse {
    fn charge(&self, tokens: u32) -> Result<(), UsedUp> {
        let charged = self.charged.fetch_add(tokens, Relaxed) + tokens;
        if charged < self.most {
            return Ok(());
        }
        Err(UsedUp {
            limit: "purse",
            end: Ending::Length,
        })
    }

    fn forgive(&self) {
        assert_eq!(self.settled.load(Relaxed), 0, "before it is settled");
        self.forgiven.fetch_add(1, Relaxed);
    }

    fn settle(&self) {
        self.settled.fetch_add(1, Relaxed);
    }
}

/// One token for each time it is asked; where it is ended, one more was on its way.
struct Endless;

fn token(burst: &mut Burst) {
    burst.token(0, 1, 1);
    let from = burst.buffer().len();
    burst.buffer().push('x');
    burst.text(0, from, burst.scored_mark());
}

impl Source for Endless {
    fn poll_fill(&mut self, _: &mut Context<'_>, burst: &mut Burst) -> Poll<()> {
        token(burst);
        Poll::Ready(())
    }

    fn end_here(&mut self, burst: &mut Burst) {
        token(burst);
        burst.finish(0, Finish::Length);
    }

    fn canceller(&self) -> Arc<dyn Cancel> {
        Running::new(&Arc::default(), None)
    }
}

fn endless(watch: &Arc<Watch>, id: RequestId, purse: Arc<Purse>) -> TokenStream {
    let opening = Opening {
        id,
        owner: None,
        model: "m".into(),
        route: "chat",
        accepted_at: clock::task_micros(),
        usage: Usage::default(),
        deterministic: false,
        deadlines: Deadlines::default(),
        stall_timeout: Duration::from_secs(30),
        recorder: Arc::<Ledger>::default(),
        permits: Vec::new(),
        meter: Some(purse),
    };
    TokenStream::open(watch, opening, vec![Box::new(Endless)])
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_is_settled_at_once_though_nobody_asks_it_for_more() {
    let (watch, id, purse) = (Watch::new(), RequestId::random(), Purse::of(100));
    let stream = endless(&watch, id.clone(), purse.clone());
    let failure = Failure::new(Kind::Cancelled, "Cancelled.");
    assert_eq!(watch.cancel(&id, None, &failure), 1);
    assert_eq!(purse.settled.load(Relaxed), 1);
    drop(stream);
    assert_eq!(purse.settled.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_told_after_the_last_paid_token_is_charged_too() {
    let (watch, purse) = (Watch::new(), Purse::of(3));
    let mut stream = endless(&watch, RequestId::random(), purse.clone());
    let (text, failure) = text_of(&mut stream).await;
    assert!(failure.is_none(), "{failure:?}");
    assert_eq!(text, "xxxx");
    assert_eq!(stream.usage().completion_tokens, 4);
    assert_eq!(purse.charged.load(Relaxed), 4);
    assert_eq!(purse.settled.load(Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn nobody_pays_for_the_prompt_of_a_request_that_the_server_gave_up_before_its_first_token() {
    for (kind, tokens, forgiven) in [
        (Kind::Overloaded, 0, 1),
        (Kind::Deadline, 0, 1),
        (Kind::Cancelled, 0, 0),
        (Kind::Stalled, 0, 0),
        (Kind::Draining, 1, 0),
    ] {
        let (watch, purse) = (Watch::new(), Purse::of(100));
        let mut stream = endless(&watch, RequestId::random(), purse.clone());
        let mut burst = Burst::with_limit(1);
        for _ in 0..tokens {
            assert!(stream.burst(&mut burst).await);
        }
        stream.cut(Failure::new(kind, "It ends here."));
        assert_eq!(purse.forgiven.load(Relaxed), forgiven, "{kind:?}");
        assert_eq!(purse.settled.load(Relaxed), 1);
    }
}
