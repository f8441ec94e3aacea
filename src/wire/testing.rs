//! What the tests of this folder share: heads, and bursts made by a real [`TokenStream`].

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use serde_json::Value;

use super::{Answer, Head, Limits};
use crate::generation::{
    Burst, Caller, Cancel, Deadlines, Failure, Finish, Opening, Record, Recorder, RequestId,
    Source, Timeline, TokenStream, Usage, Watch,
};

/// A head with this `Accept` header.
pub(super) fn head(accept: &str) -> Head<'_> {
    Head {
        id: RequestId::parse("r\"1").unwrap(),
        caller: Caller {
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            ..Caller::default()
        },
        accept,
        deadlines: Deadlines::default(),
        created: 1_700_000_000,
        limits: Limits::default(),
    }
}

/// One thing that a source does.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A token of this text.
    Text(u32, String),
    /// A token of this text, with its log-probability and one alternative of these bytes.
    Scored(u32, String, Vec<u8>),
    /// The burst is handed on.
    Flush,
    /// A choice ends.
    Finish(u32, Finish),
    /// The stream breaks.
    Fail(Failure),
}

/// Usage of every test stream, but for the tokens generated.
pub(super) const USAGE: Usage = Usage {
    prompt_tokens: 11,
    cached_tokens: 3,
    completion_tokens: 0,
};

/// Everything an encoder writes for `steps`, one entry for each burst.
pub(super) fn encode(answer: &dyn Answer, choices: usize, steps: Vec<Step>) -> Vec<Vec<u8>> {
    let mut encoder = answer.encoder("demo", false);
    let mut stream = stream(choices, steps);
    let mut burst = Burst::with_limit(1 << 20);
    let mut cx = Context::from_waker(Waker::noop());
    let mut written = Vec::new();
    loop {
        match stream.poll_burst(&mut cx, &mut burst) {
            Poll::Ready(true) => {
                let mut out = BytesMut::new();
                encoder.encode(&burst, &mut out);
                written.push(out.to_vec());
            }
            Poll::Ready(false) => return written,
            Poll::Pending => {}
        }
    }
}

/// As [`encode`], put together.
pub(super) fn encode_text(answer: &dyn Answer, choices: usize, steps: Vec<Step>) -> String {
    String::from_utf8(encode(answer, choices, steps).concat()).unwrap()
}

/// The data of every SSE frame, as a strict reader sees them; `[DONE]` must be the last and is left out.
pub(super) fn frames(stream: &str) -> Vec<Value> {
    let mut blocks: Vec<&str> = stream.split("\n\n").collect();
    assert_eq!(blocks.pop(), Some(""), "ends with an empty line");
    assert_eq!(blocks.pop(), Some("data: [DONE]"));
    blocks
        .into_iter()
        .map(|block| {
            assert!(!block.contains(['\n', '\r']), "one line a frame: {block:?}");
            serde_json::from_str(block.strip_prefix("data: ").unwrap()).unwrap()
        })
        .collect()
}

/// The objects of an NDJSON stream.
pub(super) fn lines(stream: &str) -> Vec<Value> {
    assert!(stream.ends_with('\n') && !stream.contains('\r'));
    stream
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn stream(choices: usize, steps: Vec<Step>) -> TokenStream {
    let mut queues: Vec<VecDeque<Step>> = vec![VecDeque::new(); choices];
    for step in steps {
        match &step {
            Step::Text(choice, _) | Step::Scored(choice, ..) | Step::Finish(choice, _) => {
                queues[*choice as usize].push_back(step);
            }
            Step::Flush => queues
                .iter_mut()
                .for_each(|queue| queue.push_back(Step::Flush)),
            Step::Fail(_) => queues[0].push_back(step),
        }
    }
    let sources = queues
        .into_iter()
        .map(|queue| Box::new(Script(queue)) as Box<dyn Source>)
        .collect();
    let opening = Opening {
        id: RequestId::random(),
        owner: None,
        model: "m".into(),
        route: "chat",
        accepted_at: 1,
        usage: USAGE,
        deterministic: false,
        deadlines: Deadlines::default(),
        stall_timeout: Duration::from_mins(1),
        recorder: Arc::new(Ignore),
        permits: Vec::new(),
        meter: None,
    };
    TokenStream::open(&Watch::new(), opening, sources)
}

struct Script(VecDeque<Step>);

impl Source for Script {
    fn poll_fill(&mut self, _: &mut Context<'_>, burst: &mut Burst) -> Poll<()> {
        let mut any = false;
        while let Some(step) = self.0.pop_front() {
            let (from, mark) = (burst.buffer().len(), burst.scored_mark());
            match step {
                Step::Flush if any => return Poll::Ready(()),
                Step::Flush => return Poll::Pending,
                Step::Text(choice, text) => {
                    burst.token(choice, 1, text.len());
                    burst.buffer().push_str(&text);
                    burst.text(choice, from, mark);
                }
                Step::Scored(choice, text, other) => {
                    burst.token(choice, 1, text.len());
                    burst.buffer().push_str(&text);
                    let table = [text.into_bytes(), other];
                    burst.logprob(0, -0.5, &[(0, -0.5), (1, f32::NEG_INFINITY)], |t| {
                        &table[t as usize]
                    });
                    burst.text(choice, from, mark);
                }
                Step::Finish(choice, reason) => burst.finish(choice, reason),
                Step::Fail(failure) => burst.failed(failure),
            }
            any = true;
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
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

impl Recorder for Ignore {
    fn gaps(&self, _: &[u32]) {}
    fn first_token(&self, _: Duration) {}
    fn ended(&self, _: &Record, _: Option<&Failure>, _: Timeline) {}
}
