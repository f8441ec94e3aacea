//! Requests: what is read, what is refused, and how.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::super::testing::head;
use super::super::{parse_chat, parse_completion};
use super::{chat_body, chat_call, completion_call, refused};
use crate::generation::{AdapterRef, Class, Constraint, Grammar, Input, Kind, UseAdapter};

#[test]
fn a_service_tier_is_a_class() {
    let class = |tier: Value| {
        let body = json!({"messages": [{"role": "user", "content": "x"}], "service_tier": tier});
        parse_chat(body.to_string().as_bytes(), &head("")).map(|call| call.request.class)
    };
    for (tier, expected) in [
        (json!(null), Class::Normal),
        (json!("auto"), Class::Normal),
        (json!("default"), Class::Normal),
        (json!("flex"), Class::Background),
        (json!("priority"), Class::Interactive),
    ] {
        assert_eq!(class(tier).unwrap(), expected);
    }
    let refused = class(json!("fast")).unwrap_err();
    assert_eq!(refused.param.as_deref(), Some("service_tier"));
}

#[test]
fn a_chat_body_becomes_a_request() {
    let body = json!({
        "model": "m", "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "hi", "name": "Ann"},
            {"role": "assistant", "content": null, "tool_calls": []},
        ],
        "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0, "top_p": 1, "top_k": -1, "n": 3,
        "best_of": 3, "stop": "END", "seed": -2, "logit_bias": {"15": -100, "7": 1.5},
        "presence_penalty": -2, "mirostat": 2, "dry_multiplier": 0.5, "xtc_probability": 0.25,
        "repeat_last_n": -1, "ignore_eos": true, "user": "u", "unknown": {"deep": [1]},
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "modalities": ["text"],
        "grammar": "", "functions": null, "stream_options": {"include_obfuscation": true},
    });
    let request = chat_call(&body, "").request;
    let Input::Chat(messages) = &request.inputs[0] else {
        panic!("{request:?}")
    };
    let seen: Vec<_> = messages
        .iter()
        .map(|m| (m.role.0.as_str(), m.content.as_str(), m.name.as_deref()))
        .collect();
    assert_eq!(
        seen,
        [
            ("system", "ab", None),
            ("user", "hi", Some("Ann")),
            ("assistant", "", None)
        ]
    );
    assert_eq!(
        (request.model.as_str(), request.n, request.max_tokens),
        ("m", 3, Some(7))
    );
    assert_eq!(request.stop, ["END"]);
    let sampling = &request.sampling;
    assert_eq!(sampling.temperature, Some(0.0));
    assert_eq!(sampling.top_k, Some(0));
    assert_eq!(sampling.seed, Some(u64::MAX - 1));
    assert_eq!(sampling.logit_bias, [(15, -100.0), (7, 1.5)]);
    assert_eq!(sampling.repeat_last_n, Some(4096));
    assert_eq!(sampling.ignore_eos, Some(true));
    assert_eq!(sampling.mirostat.map(|m| (m.tau, m.eta)), Some((5.0, 0.1)));
    assert_eq!(
        sampling.xtc.map(|x| (x.probability, x.threshold)),
        Some((0.25, 0.1))
    );
    let dry = sampling.dry.as_ref().unwrap();
    assert_eq!(
        (dry.multiplier, dry.base, dry.allowed_length),
        (0.5, 1.75, 2)
    );
}

#[test]
fn every_shape_of_prompt_is_read() {
    let table = [
        (json!("a"), vec![Input::Text("a".into())]),
        (
            json!(["a", "b"]),
            vec![Input::Text("a".into()), Input::Text("b".into())],
        ),
        (json!([1, 2]), vec![Input::Tokens(vec![1, 2])]),
        (
            json!([[1], [2, 3]]),
            vec![Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])],
        ),
    ];
    for (prompt, inputs) in table {
        assert_eq!(
            completion_call(&json!({"prompt": prompt}), "")
                .request
                .inputs,
            inputs
        );
    }
    for prompt in [
        json!([]),
        json!([[]]),
        json!([1, "a"]),
        json!(["a", 1]),
        json!(-1),
        json!({}),
        json!([-1]),
        json!(null),
    ] {
        let failure = refused(false, &json!({"prompt": prompt}));
        assert!(failure.param.unwrap().starts_with("prompt"), "{prompt}");
    }
}

#[test]
fn adapters_are_named_or_numbered() {
    let lora = json!([{"id": 2, "scale": 0.5}, {"name": "a", "extra": 1}]);
    let adapters = completion_call(&json!({"prompt": "x", "lora": lora}), "")
        .request
        .adapters;
    let expected = [
        UseAdapter {
            adapter: AdapterRef::Id(2),
            scale: Some(0.5),
        },
        UseAdapter {
            adapter: AdapterRef::Name("a".into()),
            scale: None,
        },
    ];
    assert_eq!(adapters, expected);
    for lora in [
        json!([{}]),
        json!([{"id": -1}]),
        json!([{"id": 1, "name": "a"}]),
    ] {
        let failure = refused(false, &json!({"prompt": "x", "lora": lora}));
        assert_eq!(failure.param.unwrap(), "lora");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let chat: &[(Value, &str)] = &[
        (json!({"messages": []}), "messages"),
        (json!({"messages": null}), "messages"),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
        ),
        (json!({"messages": [{"content": "a"}]}), "messages[0].role"),
        (
            json!({"messages": [{"role": "king", "content": "a"}]}),
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user", "content": 7}]}),
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0].type",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{}]}]}),
            "messages[0].tool_calls",
        ),
        (json!({"temperature": 5.1}), "temperature"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"n": 1.5}), "n"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (
            json!({"max_completion_tokens": -2}),
            "max_completion_tokens",
        ),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": ["a", ""]}), "stop"),
        (json!({"stop": "x".repeat(513)}), "stop"),
        (json!({"stop": vec!["a"; 17]}), "stop"),
        (json!({"stop": [1]}), "stop[0]"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"logit_bias": {"a": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"presence_penalty": 2.1}), "presence_penalty"),
        (json!({"mirostat": 1}), "mirostat"),
        (json!({"repeat_last_n": 4097}), "repeat_last_n"),
        (
            json!({"dry_multiplier": 0.5, "dry_penalty_last_n": 4097}),
            "dry_penalty_last_n",
        ),
        (
            json!({"dry_sequence_breakers": [""]}),
            "dry_sequence_breakers",
        ),
        (json!({"seed": 1.5}), "seed"),
        (json!({"stream": "yes"}), "stream"),
        (
            json!({"stream_options": {"include_usage": 1}}),
            "stream_options.include_usage",
        ),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"functions": [{}]}), "functions"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"audio": {"voice": "x"}}), "audio"),
        (json!({"model": 7}), "model"),
    ];
    for (more, param) in chat {
        let failure = refused(true, &chat_body(more));
        assert_eq!(failure.kind, Kind::Invalid);
        assert!(
            failure
                .param
                .as_deref()
                .is_some_and(|given| given.starts_with(param)),
            "{more}: {failure:?}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_form_of_answer_is_named() {
    let table = [
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "grammar": "root ::= \"x\""}),
            "grammar",
        ),
        (
            json!({"guided_json": {}, "structured_outputs": {"regex": "a"}}),
            "structured_outputs.regex",
        ),
        (json!({"guided_choice": ["a", ""]}), "guided_choice"),
        (json!({"grammar": 7}), "grammar"),
        (json!({"grammar_lazy": true}), "grammar_lazy"),
    ];
    for (more, param) in table {
        let failure = refused(true, &chat_body(&more));
        assert_eq!(failure.kind, Kind::Invalid);
        assert_eq!(failure.param.as_deref(), Some(param), "{more}");
    }
}

#[test]
fn every_way_to_ask_for_a_form_of_answer_is_read() {
    let schema = |schema: &str, strict| Grammar::JsonSchema {
        schema: schema.to_owned(),
        strict,
    };
    let regex = Grammar::Regex("a+".to_owned());
    let gbnf = Grammar::Gbnf("root ::= \"x\"".to_owned());
    let lark = Grammar::Lark("start: \"x\"".to_owned());
    let choice = Grammar::Lark("start: CHOICE\nCHOICE: \"a\" | \"\\\"\\u007f\"\n".to_owned());
    let table = [
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            Grammar::JsonObject,
        ),
        (
            json!({"response_format": {"type": "json_object", "schema": {"type": "null"}}}),
            "response_format.schema",
            schema(r#"{"type":"null"}"#, false),
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "description": "y", "schema": {"b": 1, "a": 2}, "strict": true,
            }}}),
            "response_format.json_schema.schema",
            schema(r#"{"b":1,"a":2}"#, true),
        ),
        (
            json!({"json_schema": {}}),
            "json_schema",
            schema("{}", false),
        ),
        (
            json!({"guided_json": "{\"a\": 1}"}),
            "guided_json",
            schema(r#"{"a": 1}"#, false),
        ),
        (json!({"guided_regex": "a+"}), "guided_regex", regex.clone()),
        (
            json!({"guided_grammar": "root ::= \"x\""}),
            "guided_grammar",
            gbnf.clone(),
        ),
        (
            json!({"guided_grammar": "start: \"x\""}),
            "guided_grammar",
            lark,
        ),
        (
            json!({"guided_choice": ["a", "\"\u{7f}"]}),
            "guided_choice",
            choice,
        ),
        (
            json!({"grammar": "root ::= \"x\"", "guided_regex": null}),
            "grammar",
            gbnf,
        ),
        (
            json!({"structured_outputs": {"regex": "a+", "json": null}}),
            "structured_outputs.regex",
            regex,
        ),
        (
            json!({"structured_outputs": {"json_object": true}}),
            "structured_outputs.json_object",
            Grammar::JsonObject,
        ),
    ];
    for (more, field, grammar) in table {
        let constraint = chat_call(&chat_body(&more), "").request.constraint;
        assert_eq!(constraint, Some(Constraint { field, grammar }), "{more}");
        let mut body = more.clone();
        body["prompt"] = json!("a");
        assert!(completion_call(&body, "").request.constraint.is_some());
    }
    for nothing in [
        json!({}),
        json!({"response_format": null, "grammar": "", "json_schema": null}),
        json!({"response_format": {"type": "text"}, "structured_outputs": {"json_object": false}}),
    ] {
        assert_eq!(chat_call(&chat_body(&nothing), "").request.constraint, None);
    }
}

#[test]
fn tools_that_may_not_be_used_are_accepted() {
    let body = chat_body(&json!({"tools": [{"type": "function"}], "tool_choice": "none"}));
    assert_eq!(chat_call(&body, "").request.n, 1);
}

#[test]
fn what_is_wrong_with_a_completion_is_named() {
    let completion = [
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": "a", "logprobs": true}), "logprobs"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        (json!({"prompt": vec!["a"; 9], "n": 2}), "prompt"),
        (json!({"prompt": vec!["a"; 257]}), "prompt"),
        (json!({}), "prompt"),
    ];
    for (body, param) in completion {
        assert_eq!(
            refused(false, &body).param.as_deref(),
            Some(param),
            "{body}"
        );
    }
}

#[test]
fn hostile_numbers_and_strings_are_failures() {
    let table = [
        r#"{"messages":[{"role":"user","content":"\ud800"}]}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"temperature":1e999}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"temperature":NaN}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"n":99999999999999999999999}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"n":1,"n":2}"#,
        r#"{"messages":[{"role":"user","content":"a"}],"logit_bias":{"1":1,"1":2}}"#,
        "[]",
        r#""text""#,
        "null",
    ];
    for body in table {
        let failure = parse_chat(body.as_bytes(), &head("")).err();
        assert_eq!(
            failure.map(|failure| failure.kind),
            Some(Kind::Invalid),
            "{body}"
        );
    }
}

proptest! {
    #[test]
    fn any_body_is_read_or_refused_without_a_panic(
        body in proptest::collection::vec(any::<u8>(), 0..64),
        more in "\\{\"(messages|prompt|stop|logit_bias|seed|n)\":[\\[\\]{}:,\"0-9a-z.-]{0,24}\\}?",
    ) {
        for body in [&body[..], more.as_bytes()] {
            let _ = parse_chat(body, &head(""));
            let _ = parse_completion(body, &head(""));
        }
    }
}
