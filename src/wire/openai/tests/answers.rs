//! Answers: chunks, documents, lines and bare text.

use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Value, json};

use super::super::super::testing::{Step, encode, encode_text, frames, head, lines};
use super::super::super::{EVENT_STREAM, JSON, NDJSON, TEXT};
use super::super::{FINGERPRINT, parse_chat};
use super::{chat_body, chat_call, completion_call, refused};
use crate::generation::{Failure, Finish, Kind, Queued};

fn hello() -> Vec<Step> {
    vec![
        Step::Text(0, "He\"".into()),
        Step::Flush,
        Step::Text(0, "llo\n".into()),
        Step::Finish(0, Finish::Stop),
    ]
}

fn broken() -> Vec<Step> {
    vec![
        Step::Text(0, "par".into()),
        Step::Flush,
        Step::Fail(Failure::new(Kind::Stalled, "Too \"slow\".\n")),
    ]
}

#[test]
fn a_chat_stream_has_openais_chunks() {
    let call = chat_call(&chat_body(&json!({"stream": true})), "application/json");
    assert!(call.answer.streamed());
    assert_eq!(
        call.answer.encoder("demo", false).content_type(),
        EVENT_STREAM
    );
    let stream = encode_text(&*call.answer, 1, hello());
    assert!(!stream.contains("\nid:") && !stream.contains("usage"));
    let chunk = |delta: Value, finish: Value| {
        json!({
            "id": "chatcmpl-r\"1", "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": "demo", "system_fingerprint": FINGERPRINT,
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
        })
    };
    assert_eq!(
        frames(&stream),
        [
            chunk(json!({"role": "assistant", "content": ""}), Value::Null),
            chunk(json!({"content": "He\""}), Value::Null),
            chunk(json!({"content": "llo\n"}), Value::Null),
            chunk(json!({}), json!("stop")),
        ]
    );
}

#[test]
fn include_usage_adds_nulls_and_a_last_chunk_without_choices() {
    let body = chat_body(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let mut frames = frames(&encode_text(&*chat_call(&body, "").answer, 1, hello()));
    let last = frames.pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["id"], "chatcmpl-r\"1");
    assert_eq!(
        last["usage"],
        json!({
            "prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 3},
            "completion_tokens_details": {"reasoning_tokens": 0},
        })
    );
    assert_eq!(frames.len(), 4);
    for frame in frames {
        assert_eq!(frame.get("usage"), Some(&Value::Null), "{frame}");
    }
}

#[test]
fn every_choice_begins_with_a_role_and_ends_with_a_reason() {
    let call = chat_call(&chat_body(&json!({"stream": true, "n": 2})), "");
    let steps = vec![
        Step::Text(0, "a".into()),
        Step::Finish(0, Finish::Length),
        Step::Finish(1, Finish::Stop),
    ];
    let frames = frames(&encode_text(&*call.answer, 2, steps));
    for (index, reason, count) in [(0, "length", 3), (1, "stop", 2)] {
        let own: Vec<_> = frames
            .iter()
            .map(|frame| &frame["choices"][0])
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(own.len(), count);
        assert_eq!(own[0]["delta"]["role"], "assistant");
        assert_eq!(own[count - 1]["finish_reason"], reason);
        assert_eq!(own[count - 1]["delta"], json!({}));
    }
}

#[test]
fn a_completion_stream_has_text_chunks_and_no_roles() {
    let call = completion_call(&json!({"prompt": "x", "stream": true}), "");
    let frames = frames(&encode_text(&*call.answer, 1, hello()));
    let texts: Vec<_> = frames
        .iter()
        .map(|frame| {
            assert_eq!(frame["object"], "text_completion");
            assert_eq!(frame["id"], "cmpl-r\"1");
            frame["choices"][0]["text"].as_str().unwrap()
        })
        .collect();
    assert_eq!(texts, ["He\"", "llo\n", ""]);
    assert_eq!(
        frames[2]["choices"],
        json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": "stop"}])
    );
}

#[test]
fn ndjson_has_the_same_objects_and_no_done() {
    let body = chat_body(&json!({"stream_options": {"include_usage": true}}));
    let by_line = chat_call(&body, "application/x-ndjson");
    assert!(by_line.answer.streamed());
    assert_eq!(by_line.answer.encoder("demo", false).content_type(), NDJSON);
    let events = chat_call(
        &chat_body(&json!({"stream": true, "stream_options": {"include_usage": true}})),
        "",
    );
    assert_eq!(
        lines(&encode_text(&*by_line.answer, 1, hello())),
        frames(&encode_text(&*events.answer, 1, hello()))
    );
}

#[test]
fn a_whole_chat_answer_is_one_document_in_the_last_burst() {
    let call = chat_call(&chat_body(&json!({})), "");
    assert!(!call.answer.streamed());
    assert_eq!(call.answer.encoder("demo", false).content_type(), JSON);
    let bursts = encode(&*call.answer, 1, hello());
    assert!(bursts[0].is_empty());
    let document: Value = serde_json::from_slice(&bursts.concat()).unwrap();
    assert_eq!(
        document,
        json!({
            "id": "chatcmpl-r\"1", "object": "chat.completion", "created": 1_700_000_000,
            "model": "demo", "system_fingerprint": FINGERPRINT,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": "He\"llo\n", "refusal": null},
                "logprobs": null, "finish_reason": "stop",
            }],
            "usage": {
                "prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        })
    );
}

#[test]
fn a_whole_answer_over_ndjson_is_one_line() {
    let call = chat_call(
        &chat_body(&json!({"stream": false})),
        "application/x-ndjson",
    );
    assert!(!call.answer.streamed());
    let lines = lines(&encode_text(&*call.answer, 1, hello()));
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["object"], "chat.completion");
}

#[test]
fn bare_text_is_the_text_and_refuses_a_second_choice() {
    let call = chat_call(&chat_body(&json!({})), "text/plain");
    assert_eq!(call.answer.encoder("demo", false).content_type(), TEXT);
    assert_eq!(encode_text(&*call.answer, 1, hello()), "He\"llo\n");
    assert_eq!(
        encode_text(&*call.answer, 1, broken()),
        "par\n[error: Too \"slow\".\n]\n"
    );
    let body = chat_body(&json!({"n": 2})).to_string();
    let failure = parse_chat(body.as_bytes(), &head("text/plain"))
        .err()
        .unwrap();
    assert_eq!(failure.param.as_deref(), Some("n"));
}

#[test]
fn a_failure_in_mid_stream_is_an_error_frame_of_four_keys() {
    let expected = json!({"error": {
        "message": "Too \"slow\".\n", "type": "timeout_error", "param": null, "code": "reader_stalled",
    }});
    for body in [
        json!({"stream": true}),
        json!({"stream": true, "logprobs": true}),
    ] {
        let call = chat_call(&chat_body(&body), "");
        assert_eq!(
            frames(&encode_text(&*call.answer, 1, broken()))
                .pop()
                .unwrap(),
            expected
        );
    }
    let call = chat_call(&chat_body(&json!({})), "application/x-ndjson");
    assert_eq!(
        lines(&encode_text(&*call.answer, 1, broken()))
            .pop()
            .unwrap(),
        expected
    );
}

#[test]
fn a_place_in_line_is_a_comment_over_sse_and_nothing_elsewhere() {
    let place = |ms| Queued {
        position: 3,
        estimate: Duration::from_millis(ms).into(),
    };
    let nowhere = Queued {
        position: 12,
        estimate: None,
    };
    for (accept, queued, expected) in [
        ("", place(1150), ": queued position=3 estimate=1.2s\n\n"),
        ("", place(0), ": queued position=3 estimate=0.0s\n\n"),
        ("", nowhere, ": queued position=12\n\n"),
        ("text/plain", nowhere, ""),
        ("application/x-ndjson", nowhere, ""),
        ("application/vnd.sluice.frames", nowhere, ""),
    ] {
        let call = chat_call(&chat_body(&json!({"stream": true})), accept);
        let mut out = BytesMut::new();
        call.answer.encoder("demo", false).queued(queued, &mut out);
        assert_eq!(out, expected);
    }
    let events = crate::wire::events::Events::Blocks;
    assert_eq!(events.count(b": queued position=12\n\n"), 0);
}

#[test]
fn keep_alives_are_comments_over_sse_and_nothing_elsewhere() {
    for (accept, expected) in [
        ("", ": keep-alive\n\n"),
        ("text/plain", ""),
        ("application/x-ndjson", ""),
    ] {
        let call = chat_call(&chat_body(&json!({"stream": true})), accept);
        let mut out = BytesMut::new();
        call.answer.encoder("demo", false).keep_alive(&mut out);
        assert_eq!(out, expected);
    }
}

#[test]
fn chat_log_probabilities_are_token_objects() {
    let steps = || {
        vec![
            Step::Scored(0, "a\"".into(), vec![0xc3]),
            Step::Finish(0, Finish::Stop),
        ]
    };
    let expected = json!({"content": [{
        "token": "a\"", "logprob": -0.5, "bytes": [97, 34], "top_logprobs": [
            {"token": "a\"", "logprob": -0.5, "bytes": [97, 34]},
            {"token": "\u{fffd}", "logprob": -9999.0, "bytes": [195]},
        ],
    }], "refusal": null});
    let body = chat_body(&json!({"stream": true, "logprobs": true, "top_logprobs": 2}));
    let call = chat_call(&body, "");
    assert_eq!(call.request.logprobs, Some(2));
    let frames = frames(&encode_text(&*call.answer, 1, steps()));
    assert_eq!(frames[1]["choices"][0]["logprobs"], expected);
    assert_eq!(frames[2]["choices"][0]["logprobs"], Value::Null);

    let call = chat_call(&chat_body(&json!({"logprobs": true})), "");
    assert_eq!(call.request.logprobs, Some(0));
    let document: Value = serde_json::from_str(&encode_text(&*call.answer, 1, steps())).unwrap();
    assert_eq!(document["choices"][0]["logprobs"], expected);
}

#[test]
fn completion_log_probabilities_are_columns_whose_offsets_go_on() {
    let steps = || {
        vec![
            Step::Scored(0, "äb".into(), vec![b'x']),
            Step::Flush,
            Step::Scored(0, "c".into(), vec![b'y']),
            Step::Finish(0, Finish::Stop),
        ]
    };
    let body = json!({"prompt": "p", "stream": true, "logprobs": 1});
    let call = completion_call(&body, "");
    let frames = frames(&encode_text(&*call.answer, 1, steps()));
    assert_eq!(
        frames[1]["choices"][0]["logprobs"],
        json!({"tokens": ["c"], "token_logprobs": [-0.5], "top_logprobs": [{"c": -0.5, "y": -9999.0}], "text_offset": [2]})
    );
    let call = completion_call(&json!({"prompt": "p", "logprobs": 1}), "");
    let document: Value = serde_json::from_str(&encode_text(&*call.answer, 1, steps())).unwrap();
    let columns = &document["choices"][0]["logprobs"];
    assert_eq!(columns["tokens"], json!(["äb", "c"]));
    assert_eq!(columns["text_offset"], json!([0, 2]));
}

#[test]
fn echo_repeats_each_prompt_before_its_choices() {
    let body = json!({"prompt": ["\u{feff}one ", "two "], "n": 2, "echo": true});
    let call = completion_call(&body, "");
    let mut steps = vec![Step::Text(0, "\u{feff}a".into()), Step::Text(3, "b".into())];
    steps.extend((0..4).map(|choice| Step::Finish(choice, Finish::Stop)));
    let document: Value = serde_json::from_str(&encode_text(&*call.answer, 4, steps)).unwrap();
    let texts: Vec<_> = (0..4)
        .map(|i| document["choices"][i]["text"].clone())
        .collect();
    assert_eq!(texts, ["one \u{feff}a", "one ", "two ", "two b"]);
    assert_eq!(
        refused(false, &json!({"prompt": [1], "echo": true}))
            .param
            .as_deref(),
        Some("echo")
    );
}

#[test]
fn a_mark_that_comes_alone_makes_no_event() {
    let call = completion_call(&json!({"prompt": "p", "stream": true}), "");
    let steps = vec![
        Step::Text(0, "\u{feff}".into()),
        Step::Flush,
        Step::Finish(0, Finish::Stop),
    ];
    let bursts = encode(&*call.answer, 1, steps);
    assert!(bursts[0].is_empty());
}
