//! What one token event costs to encode, in each format and at several burst sizes.
//!
//! Criterion's `time` is nanoseconds per event (a burst's time divided by its events). Bytes and
//! allocations per event are printed first; after the first burst no format may allocate at all.
#![expect(
    clippy::print_stdout,
    reason = "allocations are counted beside the times"
)]

use std::hint::black_box;
use std::time::Instant;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sluicegate::generation::{Burst, Caller, Deadlines, RequestId};
use sluicegate::wire::{Call, Encoder, Head, Limits, jsonrpc, openai};

const BURSTS: [u16; 3] = [1, 8, 64];

/// Pieces as a model makes them: mostly short words, now and then something to escape.
const PIECES: [&str; 12] = [
    " the", " stream", " of", " tokens", ",", " \"", "gate", "\n", " naïve", " und", " 流", ".",
];

const CHAT: &str = r#"{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hi"}]}"#;
const COMPLETION: &str = r#"{"model":"demo","stream":true,"prompt":"Hi"}"#;
const RPC: &str =
    r#"{"jsonrpc":"2.0","id":1,"method":"complete","params":{"stream":true,"prompt":"Hi"}}"#;

fn head(accept: &str) -> Head<'_> {
    Head {
        id: RequestId::random(),
        caller: Caller::default(),
        accept,
        deadlines: Deadlines::default(),
        created: 1_700_000_000,
        limits: Limits::default(),
    }
}

fn rpc_call() -> Call {
    let mut incoming = jsonrpc::parse(RPC.as_bytes(), &head(""));
    match incoming.items.pop().map(|item| item.work) {
        Some(Ok(jsonrpc::Method::Complete(call))) => call,
        _ => unreachable!("the body is one good call"),
    }
}

/// An encoder of each format, past its first event.
fn encoders() -> Vec<(&'static str, Box<dyn Encoder>)> {
    let chat = |accept| openai::parse_chat(CHAT.as_bytes(), &head(accept));
    let completion = openai::parse_completion(COMPLETION.as_bytes(), &head(""));
    let calls = [
        ("sse_chat", chat("")),
        ("sse_completion", completion),
        ("ndjson_chat", chat("application/x-ndjson")),
        ("text", chat("text/plain")),
        ("frames", chat("application/vnd.sluice.frames")),
        ("jsonrpc", Ok(rpc_call())),
    ];
    calls
        .into_iter()
        .filter_map(|(name, call)| Some((name, call.ok()?.answer.encoder("demo", false))))
        .collect()
}

fn burst_of(tokens: usize) -> Burst {
    let mut burst = Burst::with_limit(tokens);
    for (at, piece) in (1..).zip(PIECES.iter().cycle().take(tokens)) {
        let from = burst.buffer().len();
        burst.token(0, at, piece.len());
        burst.buffer().push_str(piece);
        burst.text(0, from, burst.scored_mark());
    }
    burst
}

fn encode(criterion: &mut Criterion) {
    for (name, mut encoder) in encoders() {
        let mut group = criterion.benchmark_group(name);
        for tokens in BURSTS {
            let events = f64::from(tokens);
            let tokens = usize::from(tokens);
            let burst = burst_of(tokens);
            let mut out = BytesMut::with_capacity(64 * 1024);
            encoder.encode(&burst, &mut out);
            out.clear();
            let counted = allocation_counter::measure(|| encoder.encode(&burst, &mut out));
            println!(
                "{name}/{tokens}: {} bytes/event, {} allocations/burst",
                out.len() / tokens,
                counted.count_total,
            );
            assert_eq!(counted.count_total, 0, "{name} allocates while encoding");
            group.bench_function(BenchmarkId::from_parameter(tokens), |bencher| {
                bencher.iter_custom(|rounds| {
                    let started = Instant::now();
                    for _ in 0..rounds {
                        out.clear();
                        encoder.encode(black_box(&burst), &mut out);
                        black_box(&out);
                    }
                    started.elapsed().div_f64(events)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);
