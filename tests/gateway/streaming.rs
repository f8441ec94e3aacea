//! The shape of an answer: chunks, usage, choices, log-probabilities, limits of length.

use serde_json::Value;

use crate::support::{Event, TestGateway, gateway};

async fn demo() -> TestGateway {
    gateway().demo("context = 512\nparallel = 4").start().await
}

#[tokio::test]
async fn the_built_in_model_serves_when_none_is_configured() {
    let gateway = gateway().start().await;
    let answer = gateway
        .chat("", "Hello!", r#""stream":true,"seed":1"#)
        .send()
        .await
        .answer()
        .await;
    assert!(answer.text().contains("Sluicegate"));
    let models = gateway.get("/v1/models").send().await.json().await;
    assert_eq!(models["data"][0]["id"], "demo");
}

#[tokio::test]
async fn a_chat_stream_is_role_text_finish_done() {
    let gateway = demo().await;
    let ask = gateway.chat("demo", "Hello!", r#""stream":true,"seed":7"#);
    let mut reply = ask.header("x-request-id", "mine-1").send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/event-stream");
    assert_eq!(reply.header("cache-control"), "no-cache");
    assert_eq!(reply.header("x-accel-buffering"), "no");
    assert_eq!(reply.header("x-request-id"), "mine-1");
    let events = reply.events().await;
    let chunks: Vec<&Value> = events
        .iter()
        .filter_map(|event| match event {
            Event::Data(data) => Some(data),
            Event::Comment | Event::Done => None,
        })
        .collect();
    let delta = |chunk: &Value| chunk["choices"][0]["delta"].clone();
    let (first, last) = (chunks[0], chunks[chunks.len() - 1]);
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["model"], "demo");
    assert!(
        first["id"].as_str().unwrap().starts_with("chatcmpl-"),
        "{first}"
    );
    assert_eq!(
        delta(first),
        serde_json::json!({"role": "assistant", "content": ""})
    );
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(delta(last), serde_json::json!({}));
    for chunk in &chunks[1..chunks.len() - 1] {
        assert!(!delta(chunk)["content"].as_str().unwrap().is_empty());
        assert!(delta(chunk).get("role").is_none(), "the role comes once");
        assert!(chunk.get("usage").is_none(), "nobody asked for usage");
    }
}

#[tokio::test]
async fn tokens_come_as_they_are_made_and_not_at_the_end() {
    let gateway = gateway().scripted().start().await;
    // The second token comes in an hour.
    let ask = gateway.chat("scripted?text=abcd&pace=1h", "x", r#""stream":true"#);
    let mut reply = ask.send().await;
    reply.next_event().await.expect("the role");
    let first = reply.next_event().await.expect("the first token");
    assert!(
        matches!(&first, Event::Data(chunk) if chunk["choices"][0]["delta"]["content"] == "abcd")
    );
}

#[tokio::test]
async fn usage_comes_once_at_the_end_and_only_when_asked_for() {
    let gateway = demo().await;
    let more = r#""stream":true,"max_tokens":5,"stream_options":{"include_usage":true}"#;
    let answer = gateway
        .chat("demo", "Tell me a story.", more)
        .send()
        .await
        .answer()
        .await;
    let usage = answer.usage.expect("it was asked for");
    assert_eq!(usage["completion_tokens"], 5);
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert!(prompt > 5, "{usage}");
    assert_eq!(usage["total_tokens"], prompt + 5);
    let more = r#""stream":true,"max_tokens":5"#;
    let answer = gateway
        .chat("demo", "Tell me a story.", more)
        .send()
        .await
        .answer()
        .await;
    assert_eq!(answer.usage, None);
}

#[tokio::test]
async fn max_tokens_ends_the_answer_with_length() {
    let gateway = demo().await;
    for name in ["max_tokens", "max_completion_tokens"] {
        let more = format!(r#""{name}":3,"seed":1"#);
        let whole = gateway
            .chat("demo", "Tell me a story.", &more)
            .send()
            .await
            .json()
            .await;
        assert_eq!(whole["choices"][0]["finish_reason"], "length", "{name}");
        assert_eq!(whole["usage"]["completion_tokens"], 3, "{name}");
    }
}

#[tokio::test]
async fn each_of_n_choices_is_whole_and_the_first_is_what_one_would_be() {
    let gateway = demo().await;
    let seeded = r#""stream":true,"seed":5,"temperature":1.0,"max_tokens":30"#;
    let one = gateway
        .chat("demo", "Tell me a story.", seeded)
        .send()
        .await
        .answer()
        .await
        .text();
    let more = format!(r#"{seeded},"n":3"#);
    let answer = gateway
        .chat("demo", "Tell me a story.", &more)
        .send()
        .await
        .answer()
        .await;
    assert_eq!(answer.texts.len(), 3);
    assert!(answer.finishes.iter().all(Option::is_some), "{answer:?}");
    assert_eq!(answer.texts[0], one);
    assert_ne!(answer.texts[0], answer.texts[1]);
    assert_ne!(answer.texts[1], answer.texts[2]);
}

#[tokio::test]
async fn logprobs_account_for_every_byte_of_the_text() {
    let gateway = demo().await;
    // Each Chinese character is several tokens, which only their bytes can tell.
    let more = r#""stream":true,"seed":1,"logprobs":true,"top_logprobs":2"#;
    let answer = gateway
        .chat("demo", "你好", more)
        .send()
        .await
        .answer()
        .await;
    let mut bytes = Vec::new();
    for token in &answer.logprobs {
        for byte in token["bytes"].as_array().expect("bytes are always there") {
            bytes.push(u8::try_from(byte.as_u64().unwrap()).unwrap());
        }
        assert!(token["logprob"].as_f64().unwrap() <= 0.0, "{token}");
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2, "{token}");
        assert!(
            top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64(),
            "likeliest first"
        );
    }
    let text = answer.text();
    assert!(text.contains("你好"), "{text}");
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
}

#[tokio::test]
async fn completions_continue_raw_text() {
    let gateway = demo().await;
    let body = r#"{"model":"demo","prompt":"Once upon a time","max_tokens":8,"seed":2"#;
    let whole = gateway
        .post("/v1/completions", format!("{body}}}"))
        .send()
        .await
        .json()
        .await;
    let streamed = gateway
        .post("/v1/completions", format!(r#"{body},"stream":true}}"#))
        .send()
        .await;
    assert_eq!(whole["object"], "text_completion");
    assert_eq!(whole["choices"][0]["text"], streamed.answer().await.text());
}
