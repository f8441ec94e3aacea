//! The format, through the dialect that speaks it.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::json;

use super::super::openai::{parse_chat, parse_completion};
use super::super::testing::{Step, encode, head};
use super::super::{Call, Refusal};
use super::FRAMES;
use super::fault::Fault;
use super::frames::{Decoder, Frame, Kind};
use crate::generation::{Burst, Failure, Finish, Kind as FailureKind};

fn chat(more: &str) -> Call {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"a"}}]{more}}}"#);
    parse_chat(body.as_bytes(), &head(FRAMES)).unwrap()
}

fn text(choice: u32, text: &str) -> Step {
    Step::Text(choice, text.to_owned())
}

/// One line for each frame.
fn lines(bytes: &[u8]) -> Vec<String> {
    let mut decoder = Decoder::new();
    let mut input = bytes;
    let mut lines = Vec::new();
    while let Some(frame) = decoder.next(&mut input).unwrap() {
        lines.push(match frame {
            Frame::Tokens {
                choice,
                count,
                text,
            } => format!("tokens {choice} {count} {text:?}"),
            Frame::Logprobs { choice, tokens } => {
                let tokens: Vec<_> = tokens
                    .iter()
                    .map(|(one, top)| (one.bytes.to_vec(), one.logprob, top.count()))
                    .collect();
                format!("logprobs {choice} {tokens:?}")
            }
            Frame::Progress {
                prompt_tokens,
                cached_tokens,
            } => format!("progress {prompt_tokens} {cached_tokens}"),
            Frame::Usage {
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            } => format!("usage {prompt_tokens} {cached_tokens} {completion_tokens}"),
            Frame::End(reasons) => format!("end {:?}", reasons.iter().collect::<Vec<_>>()),
            Frame::Error(json) => {
                let fault: Fault = serde_json::from_slice(json).unwrap();
                format!("error {} {}", fault.kind, fault.message)
            }
            other => format!("{other:?}"),
        });
    }
    decoder.finish().unwrap();
    lines
}

#[test]
fn a_generation_is_progress_tokens_usage_end() {
    let call = chat("");
    assert!(call.answer.streamed(), "unless the body says otherwise");
    let steps = vec![
        text(0, "Hel"),
        text(0, "lo"),
        Step::Flush,
        text(0, " ä"),
        Step::Finish(0, Finish::Length),
    ];
    let bursts = encode(&*call.answer, 1, steps);
    assert_eq!(bursts.len(), 2, "each is written as it comes");
    let expected = [
        "progress 11 3",
        "tokens 0 2 \"Hello\"",
        "tokens 0 1 \" ä\"",
        "usage 11 3 3",
        "end [2]",
    ];
    assert_eq!(lines(&bursts.concat()), expected);
}

#[test]
fn choices_keep_their_own_counts_and_reasons() {
    let call = chat(r#","n":2"#);
    let steps = vec![
        text(0, "a"),
        text(1, "b"),
        text(0, "c"),
        text(1, ""),
        Step::Finish(1, Finish::Length),
        Step::Finish(0, Finish::Stop),
    ];
    let written = lines(&encode(&*call.answer, 2, steps).concat());
    let expected = [
        "progress 11 3",
        "tokens 0 2 \"ac\"",
        "tokens 1 2 \"b\"",
        "usage 11 3 4",
        "end [1, 2]",
    ];
    assert_eq!(written, expected);
}

#[test]
fn tokens_that_never_became_text_are_counted() {
    let call = chat("");
    let steps = vec![
        text(0, "a"),
        Step::Flush,
        text(0, ""),
        Step::Finish(0, Finish::Stop),
    ];
    let written = lines(&encode(&*call.answer, 1, steps).concat());
    assert_eq!(written[1..3], ["tokens 0 1 \"a\"", "tokens 0 1 \"\""]);
}

#[test]
fn log_probabilities_follow_their_text() {
    let call = chat(r#","logprobs":true,"top_logprobs":2"#);
    let scored = |text: &str| Step::Scored(0, text.to_owned(), b"\xff".to_vec());
    let steps = vec![scored("a"), scored("b"), Step::Finish(0, Finish::Stop)];
    let written = lines(&encode(&*call.answer, 1, steps).concat());
    let expected = "logprobs 0 [([97], -0.5, 2), ([98], -0.5, 2)]";
    assert_eq!(written[1..3], ["tokens 0 2 \"ab\"", expected]);
}

#[test]
fn a_stream_that_breaks_ends_in_an_error() {
    let call = chat("");
    let failure = Failure::new(FailureKind::Internal, "It broke.");
    let steps = vec![text(0, "a"), Step::Flush, Step::Fail(failure)];
    let written = lines(&encode(&*call.answer, 1, steps).concat());
    let expected = [
        "progress 11 3",
        "tokens 0 1 \"a\"",
        "error internal It broke.",
    ];
    assert_eq!(written, expected);
}

#[test]
fn a_refusal_is_an_error_frame_under_its_status() {
    let call = chat("");
    let failure = Failure::new(FailureKind::Overloaded, "Full.");
    let mut out = BytesMut::new();
    let refusal = call.answer.refuse(&failure, &mut out);
    let expected = Refusal {
        status: 503,
        content_type: FRAMES,
    };
    assert_eq!(refusal, expected);
    assert_eq!(lines(&out), ["error overloaded Full."]);
}

#[test]
fn a_body_that_says_so_gets_the_same_frames_at_once() {
    let call = chat(r#","stream":false"#);
    assert!(!call.answer.streamed());
    let steps = vec![text(0, "a"), Step::Finish(0, Finish::Stop)];
    let written = lines(&encode(&*call.answer, 1, steps).concat());
    assert_eq!(written.last().unwrap(), "end [1]");
}

#[test]
fn a_keep_alive_is_a_ping() {
    let mut out = BytesMut::new();
    chat("").answer.encoder("demo", false).keep_alive(&mut out);
    assert_eq!(&out[..], [Kind::Ping as u8, 0]);
}

#[test]
fn tokens_cost_no_allocation_once_buffers_have_grown() {
    let mut encoder = chat("").answer.encoder("demo", false);
    let mut burst = Burst::new();
    for _ in 0..8 {
        let from = burst.buffer().len();
        burst.token(0, 1, 5);
        burst.buffer().push_str("token");
        burst.text(0, from, 0);
    }
    let mut out = BytesMut::with_capacity(1024);
    encoder.encode(&burst, &mut out);
    out.clear();
    let made = allocation_counter::measure(|| encoder.encode(&burst, &mut out));
    assert_eq!((made.count_total, out.len()), (0, 4 + 8 * 5));
}

#[test]
fn an_echoed_prompt_is_cut_into_frames_of_whole_characters() {
    let prompt = "ä".repeat(40_000);
    let body = json!({"prompt": prompt, "echo": true}).to_string();
    let call = parse_completion(body.as_bytes(), &head(FRAMES)).unwrap();
    let steps = vec![text(0, "!"), Step::Finish(0, Finish::Stop)];
    let bytes = encode(&*call.answer, 1, steps).concat();
    let mut decoder = Decoder::new();
    let (mut input, mut read) = (&bytes[..], String::new());
    while let Some(frame) = decoder.next(&mut input).unwrap() {
        if let Frame::Tokens { text, .. } = frame {
            assert!(text.len() <= 16 * 1024);
            read.push_str(text);
        }
    }
    assert_eq!(read, prompt + "!");
}

proptest! {
    #[test]
    fn counts_add_up_to_the_usage_however_tokens_are_gathered(
        pieces in proptest::collection::vec((0..3_u32, "[a-zä]{0,3}", any::<bool>()), 0..40),
    ) {
        let call = chat(r#","n":3"#);
        let mut steps = Vec::new();
        for (choice, piece, flush) in &pieces {
            steps.push(text(*choice, piece));
            if *flush {
                steps.push(Step::Flush);
            }
        }
        steps.extend((0..3).map(|choice| Step::Finish(choice, Finish::Stop)));
        let bytes = encode(&*call.answer, 3, steps).concat();
        let mut decoder = Decoder::new();
        let (mut input, mut counted, mut total) = (&bytes[..], 0, None);
        let mut texts = vec![String::new(); 3];
        while let Some(frame) = decoder.next(&mut input).unwrap() {
            match frame {
                Frame::Tokens { choice, count, text } => {
                    counted += count;
                    texts[choice as usize].push_str(text);
                }
                Frame::Usage { completion_tokens, .. } => total = Some(completion_tokens),
                _ => {}
            }
        }
        prop_assert_eq!(Some(counted), total);
        prop_assert_eq!(counted as usize, pieces.len());
        for (choice, read) in (0..).zip(texts) {
            let expected: String = pieces.iter().filter(|p| p.0 == choice).map(|p| p.1.as_str()).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
