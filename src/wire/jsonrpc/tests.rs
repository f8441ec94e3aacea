//! JSON-RPC, from a body to its replies.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::openai;
use super::super::testing::{Step, encode_text, head};
use super::*;
use crate::generation::{Finish, Kind, Scores, Usage, Vectors};

/// Carries out a body with canned results and puts the replies together as a transport does.
fn answer(body: &str) -> Option<String> {
    let incoming = parse(body.as_bytes(), &head(""));
    let (open, between, close) = incoming.framing.around();
    let replies: Vec<String> = incoming
        .items
        .into_iter()
        .map(|item| {
            let mut out = BytesMut::new();
            match item.work {
                Err(fault) => item.reply.fault(&fault, &mut out),
                Ok(Method::Chat(call) | Method::Complete(call)) => {
                    return encode_text(&*call.answer, 1, hello());
                }
                Ok(Method::Models) => item.reply.result(&mut out, |out| {
                    super::super::models::write_list(&[], out);
                }),
                Ok(Method::Tokenize(_)) => item.reply.result(&mut out, |out| {
                    super::super::tokenize::write_tokens(&[1], None, out);
                }),
                Ok(Method::Detokenize(_)) => item.reply.result(&mut out, |out| {
                    super::super::tokenize::write_content(&[], out);
                }),
                Ok(Method::Embeddings(asked)) => {
                    let vectors = Vectors {
                        numbers: vec![1.0],
                        width: 1,
                        usage: Usage::default(),
                    };
                    item.reply.result(&mut out, |out| {
                        openai::write_embeddings(&vectors, "m", asked.base64, out);
                    });
                }
                Ok(Method::Rerank(asked)) => {
                    let scores = Scores {
                        scores: vec![0.5; asked.request.documents.len()],
                        usage: Usage::default(),
                    };
                    item.reply.result(&mut out, |out| {
                        openai::write_ranking(&asked, &scores, "m", out);
                    });
                }
                Ok(Method::Cancel(_)) => {
                    item.reply.result(&mut out, |out| write_cancelled(2, out));
                }
                Ok(Method::Resume(asked)) => {
                    item.reply
                        .result(&mut out, |out| write_resumed(&asked.stream, out));
                }
                Ok(Method::Bind) => item.reply.result(&mut out, |out| {
                    super::super::bind::write("sgb1.x", 7, out);
                }),
                Ok(Method::Ping) => item.reply.result(&mut out, write_pong),
            }
            String::from_utf8(out.to_vec()).unwrap()
        })
        .filter(|reply| !reply.is_empty())
        .collect();
    (!replies.is_empty()).then(|| format!("{open}{}{close}", replies.join(between)))
}

fn hello() -> Vec<Step> {
    vec![
        Step::Text(0, "He\"".into()),
        Step::Flush,
        Step::Text(0, "y".into()),
        Step::Finish(0, Finish::Stop),
    ]
}

fn value(body: &str) -> Value {
    let text = answer(body).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn code_of(body: &str) -> (Value, i64) {
    let reply = value(body);
    assert_eq!(reply["jsonrpc"], "2.0");
    assert!(reply.get("result").is_none());
    (
        reply["id"].clone(),
        reply["error"]["code"].as_i64().unwrap(),
    )
}

// The examples of section 7 of the specification, with our methods in place of theirs.

#[test]
fn named_parameters_in_any_order() {
    let a = value(
        r#"{"jsonrpc":"2.0","method":"tokenize","params":{"content":"a","model":"m"},"id":3}"#,
    );
    let b = value(
        r#"{"id":4,"params":{"model":"m","content":"a"},"method":"tokenize","jsonrpc":"2.0"}"#,
    );
    assert_eq!(
        a,
        json!({"jsonrpc": "2.0", "id": 3, "result": {"tokens": [1]}})
    );
    assert_eq!(b["id"], 4);
    assert_eq!(a["result"], b["result"]);
}

#[test]
fn a_notification_gets_no_answer_even_when_it_is_wrong() {
    for body in [
        r#"{"jsonrpc":"2.0","method":"ping"}"#,
        r#"{"jsonrpc":"2.0","method":"foobar"}"#,
        r#"{"jsonrpc":"2.0","method":"chat","params":{"stream":true}}"#,
        r#"{"jsonrpc":"2.0","method":"cancel","params":{"id":"r1"}}"#,
        r#"[{"jsonrpc":"2.0","method":"ping"},{"jsonrpc":"2.0","method":"cancel","params":{"id":"r1"}}]"#,
    ] {
        assert_eq!(answer(body), None, "{body}");
    }
}

#[test]
fn a_cancel_notification_is_carried_out() {
    let body = br#"{"jsonrpc":"2.0","method":"cancel","params":{"id":"r1"}}"#;
    let incoming = parse(body, &head(""));
    let [item] = &incoming.items[..] else {
        panic!()
    };
    assert!(item.reply.is_notification());
    assert!(
        matches!(&item.work, Ok(Method::Cancel(Target::Request(id, _))) if id.as_str() == "r1")
    );
}

#[test]
fn a_cancel_names_a_request_or_a_stream() {
    let target = |params: &str| {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"cancel","params":{params}}}"#);
        let item = parse(body.as_bytes(), &head("")).items.remove(0);
        match item.work {
            Ok(Method::Cancel(Target::Request(id, _))) => Ok(format!("request {id}")),
            Ok(Method::Cancel(Target::Stream(stream, _))) => Ok(format!("stream {stream}")),
            Ok(_) => panic!("another method"),
            Err(fault) => Err(fault.failure().param.clone()),
        }
    };
    assert_eq!(target(r#"{"stream":"s"}"#), Ok("stream s".to_owned()));
    assert_eq!(
        target(r#"{"stream":"s","id":null}"#),
        Ok("stream s".to_owned())
    );
    assert_eq!(
        target(r#"{"id":"r","stream":"s"}"#),
        Ok("request r".to_owned())
    );
    assert_eq!(target("{}"), Err(Some("id".into())));
}

#[test]
fn only_a_streamed_call_that_asks_for_it_can_be_resumed() {
    for (params, expected) in [
        (r#""stream":true,"resume":true"#, true),
        (r#""stream":true,"resume":null"#, false),
        (r#""stream":true"#, false),
        (r#""resume":true"#, false),
    ] {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":"a\"b","method":"complete","params":{{"prompt":"x",{params}}}}}"#
        );
        let incoming = parse(body.as_bytes(), &head(""));
        let [item] = &incoming.items[..] else {
            panic!()
        };
        assert_eq!(item.resumable, expected, "{params}");
        let mut out = BytesMut::new();
        item.reply.stream("s-1", &mut out);
        let line = std::str::from_utf8(&out).unwrap();
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        assert_eq!(
            serde_json::from_str::<Value>(line).unwrap(),
            json!({"jsonrpc": "2.0", "method": "stream", "params": {"id": "a\"b", "stream": "s-1"}})
        );
    }
}

#[test]
fn a_resume_is_answered_in_lines_and_a_notification_of_it_is_nothing() {
    let params = r#"{"stream":"s","after":7}"#;
    let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"resume","params":{params}}}"#);
    let incoming = parse(body.as_bytes(), &head(""));
    assert_eq!(incoming.framing, Framing::Lines);
    let Ok(Method::Resume(asked)) = &incoming.items[0].work else {
        panic!()
    };
    assert_eq!((&*asked.stream, asked.after), ("s", 7));
    assert_eq!(value(&body)["result"], json!({"stream": "s"}));
    let body = format!(r#"{{"jsonrpc":"2.0","method":"resume","params":{params}}}"#);
    assert_eq!(answer(&body), None);
    for bad in [r#"{"after":1}"#, r#"{"stream":"s","after":-1}"#] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"resume","params":{bad}}}"#);
        assert_eq!(code_of(&body), (json!(1), -32602), "{bad}");
    }
}

#[test]
fn an_unknown_method() {
    assert_eq!(
        code_of(r#"{"jsonrpc":"2.0","method":"foobar","id":"1"}"#),
        (json!("1"), -32601)
    );
}

#[test]
fn bad_json() {
    for body in [
        r#"{"jsonrpc":"2.0","method":"foobar,"params":"bar","baz]"#,
        r#"[{"jsonrpc":"2.0","method":"ping","id":"1"},{"jsonrpc":"2.0","method"]"#,
        "",
        "\u{feff}",
    ] {
        assert_eq!(code_of(body), (Value::Null, -32700), "{body}");
    }
    assert_eq!(code_of(&"[".repeat(200)).1, -32700);
}

#[test]
fn requests_that_are_none() {
    let table = [
        (
            r#"{"jsonrpc":"2.0","method":1,"params":"bar"}"#,
            Value::Null,
        ),
        (r#"{"foo":"boo"}"#, Value::Null),
        ("[]", Value::Null),
        ("1", Value::Null),
        (r#"{"jsonrpc":"1.0","method":"ping","id":5}"#, json!(5)),
        (r#"{"method":"ping","id":5}"#, json!(5)),
        (
            r#"{"jsonrpc":"2.0","method":"ping","params":7,"id":5}"#,
            json!(5),
        ),
        (
            r#"{"jsonrpc":"2.0","method":"ping","params":null,"id":5}"#,
            json!(5),
        ),
        (r#"{"jsonrpc":"2.0","method":"ping","id":{}}"#, Value::Null),
        (
            r#"{"jsonrpc":"2.0","method":"ping","id":true}"#,
            Value::Null,
        ),
        (
            r#"{"jsonrpc":"2.0","method":"ping","method":"ping","id":1}"#,
            Value::Null,
        ),
    ];
    for (body, id) in table {
        assert_eq!(code_of(body), (id, -32600), "{body}");
    }
    let long = format!(
        r#"{{"jsonrpc":"2.0","method":"ping","id":"{}"}}"#,
        "x".repeat(300)
    );
    assert_eq!(code_of(&long), (Value::Null, -32600));
    let many = format!("[{}1]", "1,".repeat(32));
    assert_eq!(code_of(&many), (Value::Null, -32600));
}

#[test]
fn a_batch_of_nonsense_gets_an_error_for_each() {
    let reply = value("[1,2,3]");
    let errors = reply.as_array().unwrap();
    assert_eq!(errors.len(), 3);
    for error in errors {
        assert_eq!(
            (&error["id"], &error["error"]["code"]),
            (&Value::Null, &json!(-32600))
        );
    }
}

#[test]
fn a_mixed_batch() {
    let reply = value(
        r#"[
            {"jsonrpc":"2.0","method":"ping","id":"1"},
            {"jsonrpc":"2.0","method":"ping"},
            {"foo":"boo"},
            {"jsonrpc":"2.0","method":"foo.get","params":{"name":"myself"},"id":"5"},
            {"jsonrpc":"2.0","method":"models","id":"9"}
        ]"#,
    );
    let seen: Vec<_> = reply
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["id"].clone(), one["error"]["code"].clone()))
        .collect();
    assert_eq!(
        seen,
        [
            (json!("1"), Value::Null),
            (Value::Null, json!(-32600)),
            (json!("5"), json!(-32601)),
            (json!("9"), Value::Null),
        ]
    );
}

#[test]
fn ids_come_back_as_they_were_written() {
    for id in [
        "null",
        "0",
        "-1.50",
        "1e3",
        "12345678901234567890123",
        r#""a\u00e9\n""#,
        r#""""#,
    ] {
        let reply = answer(&format!(r#"{{"jsonrpc":"2.0","method":"ping","id":{id}}}"#)).unwrap();
        assert_eq!(
            reply,
            format!(r#"{{"jsonrpc":"2.0","id":{id},"result":"pong"}}"#)
        );
    }
}

#[test]
fn parameters_by_position_are_refused() {
    assert_eq!(
        code_of(r#"{"jsonrpc":"2.0","method":"tokenize","params":["a"],"id":1}"#).1,
        -32602
    );
    assert!(answer(r#"{"jsonrpc":"2.0","method":"ping","params":[ ],"id":1}"#).is_some());
}

#[test]
fn a_bad_parameter_is_named_in_the_data() {
    let reply = value(
        r#"{"jsonrpc":"2.0","method":"chat","params":{"messages":[{"role":"user","content":"a"}],"n":"x"},"id":1}"#,
    );
    assert_eq!(reply["error"]["code"], -32602);
    assert_eq!(
        reply["error"]["data"],
        json!({"kind": "invalid", "param": "n", "code": null, "retry_after_ms": null})
    );
}

fn chat(more: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","method":"chat","params":{{"messages":[{{"role":"user","content":"a"}}]{more}}},"id":7}}"#
    )
}

fn usage() -> Value {
    json!({
        "prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

#[test]
fn a_whole_result_has_choices_and_the_first_text() {
    let incoming = parse(chat("").as_bytes(), &head(""));
    assert_eq!(incoming.framing, Framing::Single);
    assert_eq!(
        value(&chat("")),
        json!({"jsonrpc": "2.0", "id": 7, "result": {
            "request_id": "r\"1", "model": "demo",
            "choices": [{"index": 0, "text": "He\"y", "finish_reason": "stop"}],
            "text": "He\"y", "finish_reason": "stop", "usage": usage(),
        }})
    );
}

#[test]
fn a_streamed_result_is_token_notifications_and_then_the_response() {
    let body = chat(r#","stream":true"#);
    assert_eq!(parse(body.as_bytes(), &head("")).framing, Framing::Lines);
    let text = answer(&body).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let token = |text: &str| json!({"jsonrpc": "2.0", "method": "token", "params": {"id": 7, "index": 0, "text": text}});
    assert_eq!(
        lines,
        [
            token("He\""),
            token("y"),
            json!({"jsonrpc": "2.0", "id": 7, "result": {
                "request_id": "r\"1", "model": "demo",
                "choices": [{"index": 0, "finish_reason": "stop"}],
                "finish_reason": "stop", "usage": usage(),
            }}),
        ]
    );
}

#[test]
fn log_probabilities_come_with_tokens_or_in_the_result() {
    let steps = || {
        vec![
            Step::Scored(0, "a".into(), vec![b'b']),
            Step::Finish(0, Finish::Stop),
        ]
    };
    let run = |more: &str| {
        let mut incoming = parse(chat(more).as_bytes(), &head(""));
        let Ok(Method::Chat(call)) = incoming.items.remove(0).work else {
            panic!()
        };
        let text = encode_text(&*call.answer, 1, steps());
        serde_json::from_str::<Value>(text.lines().next().unwrap()).unwrap()
    };
    let streamed = run(r#","stream":true,"logprobs":true"#);
    let whole = run(r#","logprobs":true"#);
    let logprobs = &streamed["params"]["logprobs"];
    assert_eq!(logprobs[0]["bytes"], json!([97]));
    assert_eq!(logprobs, &whole["result"]["choices"][0]["logprobs"]);
}

#[test]
fn a_batch_with_one_stream_is_lines_throughout() {
    let body = format!(
        r#"[{},{{"jsonrpc":"2.0","method":"ping","id":8}},5,{}]"#,
        chat(r#","stream":true"#),
        chat("")
    );
    let text = answer(&body).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 6);
    assert!(lines.iter().all(|line| line["jsonrpc"] == "2.0"));
}

#[test]
fn failures_become_error_replies_with_what_helps_to_retry() {
    let failure = Failure::new(Kind::Overloaded, "Full.")
        .with_retry_after(std::time::Duration::from_millis(1500));
    for more in ["", r#","stream":true"#] {
        let mut incoming = parse(chat(more).as_bytes(), &head(""));
        let Ok(Method::Chat(call)) = incoming.items.remove(0).work else {
            panic!()
        };
        let mut out = BytesMut::new();
        let refusal = call.answer.refuse(&failure, &mut out);
        assert_eq!(refusal.status, 200);
        let steps = vec![
            Step::Text(0, "a".into()),
            Step::Flush,
            Step::Fail(failure.clone()),
        ];
        let broken = encode_text(&*call.answer, 1, steps);
        let error = json!({"jsonrpc": "2.0", "id": 7, "error": {
            "code": -32020, "message": "Full.",
            "data": {"kind": "overloaded", "param": null, "code": "overloaded", "retry_after_ms": 1500},
        }});
        for written in [
            std::str::from_utf8(&out).unwrap(),
            broken.lines().last().unwrap(),
        ] {
            assert_eq!(serde_json::from_str::<Value>(written).unwrap(), error);
        }
    }
}

#[test]
fn embeddings_and_rankings_are_those_of_the_other_paths() {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"embeddings","params":{"input":["a"],"encoding_format":"base64"}}"#;
    let reply = value(body);
    assert_eq!(reply["result"]["data"][0]["embedding"], "AACAPw==");
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"rerank","params":{"query":"q","documents":["a","b"],"top_n":1}}"#;
    let reply = value(body);
    assert_eq!(
        reply["result"]["results"],
        json!([{"index": 0, "relevance_score": 0.5}])
    );
    let bad = r#"{"jsonrpc":"2.0","id":1,"method":"embeddings","params":{"input":""}}"#;
    assert_eq!(value(bad)["error"]["data"]["param"], "input[0]");
}

#[test]
fn the_openrpc_document_lists_exactly_the_methods() {
    let document: Value = serde_json::from_str(OPENRPC).unwrap();
    assert_eq!(document["openrpc"], "1.3.2");
    let methods = document["methods"].as_array().unwrap();
    let names: Vec<_> = methods
        .iter()
        .map(|m| m["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, METHODS);
    for name in METHODS {
        let body = format!(r#"{{"jsonrpc":"2.0","method":"{name}","id":1}}"#);
        assert!(
            value(&body)["error"]["code"] != -32601,
            "{name} is dispatched"
        );
    }
    for method in methods {
        assert_eq!(method["paramStructure"], "by-name", "{method}");
        assert!(method["params"].is_array() && method["result"]["schema"].is_object());
    }
}

#[test]
fn every_reference_in_the_openrpc_document_leads_somewhere() {
    fn check(value: &Value, root: &Value) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(root.pointer(pointer).is_some(), "{reference}");
                }
                map.values().for_each(|value| check(value, root));
            }
            Value::Array(list) => list.iter().for_each(|value| check(value, root)),
            _ => {}
        }
    }
    let document: Value = serde_json::from_str(OPENRPC).unwrap();
    check(&document, &document);
}

#[test]
fn the_openrpc_document_lists_the_code_of_every_error() {
    let document: Value = serde_json::from_str(OPENRPC).unwrap();
    let listed: Vec<i64> = document["components"]["errors"]
        .as_object()
        .unwrap()
        .values()
        .map(|error| error["code"].as_i64().unwrap())
        .collect();
    let kinds = [
        Kind::Invalid,
        Kind::ContextExceeded,
        Kind::TooLarge,
        Kind::NotFound,
        Kind::Gone,
        Kind::Unauthorized,
        Kind::Forbidden,
        Kind::Replayed,
        Kind::TooEarly,
        Kind::Limited,
        Kind::Overloaded,
        Kind::Draining,
        Kind::NotReady,
        Kind::Deadline,
        Kind::Stalled,
        Kind::Cancelled,
        Kind::Upstream,
        Kind::Internal,
    ];
    for kind in kinds {
        assert!(
            listed.contains(&i64::from(failure::codes(kind).rpc)),
            "{kind:?}"
        );
    }
    for code in [code::PARSE, code::INVALID_REQUEST, code::METHOD_NOT_FOUND] {
        assert!(listed.contains(&i64::from(code)), "{code}");
    }
}

proptest! {
    #[test]
    fn any_body_gets_well_formed_replies_or_none(
        parts in proptest::collection::vec(
            prop_oneof![
                Just("{"), Just("}"), Just("["), Just("]"), Just(","), Just(":"), Just("\"jsonrpc\":\"2.0\""),
                Just("\"method\":\"ping\""), Just("\"method\":\"chat\""), Just("\"id\":"), Just("1"), Just("null"),
                Just("\"params\":{}"), Just("\"x\""), Just("\u{feff}"), Just(" "),
            ],
            0..12,
        ),
        bytes in proptest::collection::vec(any::<u8>(), 0..32),
    ) {
        if let Some(reply) = answer(&parts.concat()) {
            prop_assert!(serde_json::from_str::<Value>(&reply).is_ok(), "{}", reply);
        }
        let _ = parse(&bytes, &head(""));
    }
}

#[test]
fn a_place_in_line_is_a_notification_of_a_streamed_call() {
    let queued = Queued {
        position: 3,
        estimate: Some(std::time::Duration::from_millis(1200)),
    };
    for (stream, expected) in [
        (
            "true",
            r#"{"jsonrpc":"2.0","method":"queued","params":{"id":7,"position":3,"estimate_ms":1200}}"#,
        ),
        ("false", ""),
    ] {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":7,"method":"complete","params":{{"prompt":"x","stream":{stream}}}}}"#
        );
        let mut incoming = parse(body.as_bytes(), &head(""));
        let Ok(Method::Complete(call)) = incoming.items.remove(0).work else {
            panic!("a call");
        };
        let mut out = BytesMut::new();
        call.answer.encoder("m", false).queued(queued, &mut out);
        let written = std::str::from_utf8(&out).unwrap();
        assert_eq!(written.trim_end_matches('\n'), expected);
    }
    let document: Value = serde_json::from_str(OPENRPC).unwrap();
    let described = &document["components"]["schemas"]["QueuedNotification"]["properties"];
    for key in ["id", "position", "estimate_ms"] {
        assert!(described[key].is_object(), "{key}");
    }
}
