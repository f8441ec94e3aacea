//! Answers have the form that was asked for: JSON Schema, regular expressions, grammars.

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Reply, TestGateway, gateway};

async fn demo() -> TestGateway {
    gateway().demo("context = 1024\nparallel = 4").start().await
}

/// One whole answer: its text and why it ended.
async fn say(gateway: &TestGateway, more: &Value) -> (String, String) {
    let more = more.to_string();
    let more = &more[1..more.len() - 1];
    let reply = gateway.chat("demo", "Tell me of a fox.", more).send().await;
    assert_eq!(reply.status, 200, "{more}");
    let choice = reply.json().await["choices"][0].take();
    let text = choice["message"]["content"].as_str().unwrap().to_owned();
    (text, choice["finish_reason"].as_str().unwrap().to_owned())
}

/// The field, the code and the message of a refusal.
async fn refusal(reply: Reply) -> (String, String) {
    assert_eq!(reply.status, 400);
    let error = reply.json().await["error"].take();
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("param"), text("message"))
}

fn fox() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 16},
            "age": {"type": "integer", "minimum": 0, "maximum": 20},
            "colour": {"enum": ["red", "grey", "white"]},
            "tame": {"type": "boolean"},
            "friends": {
                "type": "array", "maxItems": 3,
                "items": {"type": "string", "pattern": "^[A-Z][a-z]{1,9}$"},
            },
        },
        "required": ["name", "age", "colour", "tame", "friends"],
        "additionalProperties": false,
    })
}

#[track_caller]
fn is_fox(text: &str) {
    let fox: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert_eq!(fox.as_object().unwrap().len(), 5, "{text}");
    let name = fox["name"].as_str().unwrap().chars().count();
    assert!((2..=16).contains(&name), "{text}");
    assert!(fox["age"].as_u64().unwrap() <= 20, "{text}");
    assert!(["red", "grey", "white"].contains(&fox["colour"].as_str().unwrap()));
    assert!(fox["tame"].is_boolean(), "{text}");
    let friends = fox["friends"].as_array().unwrap();
    assert!(friends.len() <= 3, "{text}");
    for friend in friends {
        let friend = friend.as_str().unwrap();
        assert!(
            friend.starts_with(|c: char| c.is_ascii_uppercase()),
            "{text}"
        );
        assert!((2..=10).contains(&friend.len()), "{text}");
    }
}

#[tokio::test]
async fn a_schema_is_followed_at_every_temperature() {
    let gateway = demo().await;
    for temperature in [0.0, 0.7, 1.5] {
        for seed in 0..3 {
            let (text, end) = say(
                &gateway,
                &json!({
                    "temperature": temperature, "seed": seed, "max_tokens": 700, "ignore_eos": true,
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "fox", "strict": true, "schema": fox()},
                    },
                }),
            )
            .await;
            assert_eq!(end, "stop", "{text}");
            is_fox(&text);
        }
    }
}

#[tokio::test]
async fn a_schema_is_followed_by_every_choice_and_over_rpc() {
    let gateway = demo().await;
    let params = json!({
        "prompt": "A fox: ", "n": 3, "seed": 5, "max_tokens": 700, "logprobs": 1, "json_schema": fox(),
    });
    let reply = gateway
        .post("/v1/completions", params.to_string())
        .send()
        .await;
    let choices = reply.json().await["choices"].take();
    assert_eq!(choices.as_array().unwrap().len(), 3);
    for choice in choices.as_array().unwrap() {
        is_fox(choice["text"].as_str().unwrap());
    }
    let mut params = params;
    params["n"] = json!(1);
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "complete", "params": params});
    let answer = gateway
        .post("/rpc", call.to_string())
        .send()
        .await
        .json()
        .await;
    is_fox(answer["result"]["text"].as_str().unwrap());
}

#[tokio::test]
async fn any_json_object_is_json_and_an_object() {
    let gateway = demo().await;
    let mut whole = 0;
    for seed in 0..6 {
        let (text, end) = say(
            &gateway,
            &json!({
                "seed": seed, "max_tokens": 300, "temperature": 1.0,
                "response_format": {"type": "json_object"},
            }),
        )
        .await;
        assert!(text.starts_with('{'), "{text}");
        if end == "stop" {
            whole += 1;
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(value.is_object(), "{text}");
        }
    }
    assert!(whole > 0, "no answer came to its end");
}

#[tokio::test]
async fn regular_expressions_grammars_and_choices_are_followed() {
    let gateway = demo().await;
    for seed in 0..3 {
        let ask = |field: &str, value: Value| json!({"seed": seed, "temperature": 1.5, "max_tokens": 200, field: value});
        let (text, end) = say(&gateway, &ask("guided_regex", json!("[0-9]{2}-[a-f]{1,3}"))).await;
        let (digits, letters) = text.split_once('-').unwrap();
        assert!(
            digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()),
            "{text}"
        );
        assert!(
            letters.bytes().all(|b| (b'a'..=b'f').contains(&b)),
            "{text}"
        );
        assert_eq!(end, "stop");

        let gbnf = "root ::= item{2,4} # a list\nitem ::= \"- \" [a-z]{1,8} \"\\n\"";
        let (text, end) = say(&gateway, &ask("grammar", json!(gbnf))).await;
        assert!((2..=4).contains(&text.lines().count()), "{text}");
        assert!(text.lines().all(|line| line.starts_with("- ")), "{text}");
        assert_eq!(end, "stop");

        let lark = "start: \"<\" start \">\" | DIGIT\nDIGIT: /[0-9]/";
        let (text, _) = say(&gateway, &ask("guided_grammar", json!(lark))).await;
        let opened = text.matches('<').count();
        assert!(text.matches('>').count() <= opened, "{text}");

        let choice = json!({"choice": ["yes", "no", "per haps"]});
        let (text, end) = say(&gateway, &ask("structured_outputs", choice)).await;
        assert!(["yes", "no", "per haps"].contains(&text.as_str()), "{text}");
        assert_eq!(end, "stop");
    }
}

#[tokio::test]
async fn wrong_schemas_and_grammars_are_refused_by_field_and_place() {
    let gateway = demo().await;
    let strict = json!({"type": "json_schema", "json_schema": {"strict": true, "schema": {
        "properties": {"a": {"not": {}}}}}});
    let table = [
        (
            json!({"response_format": strict}),
            "response_format.json_schema.schema",
            "#/properties/a/not",
        ),
        (
            json!({"json_schema": {"items": {"type": "list"}}}),
            "json_schema",
            "#/items/type",
        ),
        (
            json!({"guided_json": "{"}),
            "guided_json",
            "line 1 column 1",
        ),
        (
            json!({"guided_regex": "a(b"}),
            "guided_regex",
            "unclosed group",
        ),
        (
            json!({"guided_grammar": "start: \"a\"\nb: ("}),
            "guided_grammar",
            "line 2",
        ),
        (
            json!({"grammar": "root ::= \"a\"\nroot ::= [b"}),
            "grammar",
            "line 2, column 12",
        ),
    ];
    for (more, field, place) in table {
        let more = more.to_string();
        let reply = gateway
            .chat("demo", "x", &more[1..more.len() - 1])
            .send()
            .await;
        let (param, message) = refusal(reply).await;
        assert_eq!(param, field, "{message}");
        assert!(message.contains(place), "{message}");
    }
    assert_eq!(gateway.metrics().await.ended("invalid"), 6);
}

#[tokio::test]
async fn huge_and_deep_schemas_are_refused_quickly() {
    let gateway = demo().await;
    let huge = format!(r#""json_schema":{{"title":"{}"}}"#, "x".repeat(1 << 20));
    let deep = format!(
        r#""json_schema":{}{}"#,
        r#"{"items":"#.repeat(100),
        "}".repeat(100)
    );
    let text = format!("{}true{}", r#"{\"items\":"#.repeat(5000), "}".repeat(5000));
    let deep_text = format!(r#""guided_json":"{text}""#);
    for more in [huge, deep, deep_text] {
        let started = Instant::now();
        let reply = gateway.chat("demo", "x", &more).send().await;
        assert_eq!(reply.status, 400);
        assert!(started.elapsed().as_secs() < 2);
    }
    let (text, _) = say(&gateway, &json!({"guided_choice": ["fine"]})).await;
    assert_eq!(text, "fine");
}

#[tokio::test]
async fn a_scripted_model_refuses_what_it_cannot_follow() {
    let gateway = gateway().scripted().start().await;
    let more = r#""response_format":{"type":"json_object"}"#;
    let reply = gateway.chat("scripted", "x", more).send().await;
    let (param, message) = refusal(reply).await;
    assert_eq!(param, "response_format");
    assert!(message.contains("scripted model"), "{message}");
}
