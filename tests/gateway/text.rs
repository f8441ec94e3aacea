//! Text is exact: whole characters, no marks, no injected lines, nothing of a stop string, and the
//! same in every dialect and however busy the server is.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::support::{Ask, TestGateway, chat_body, gateway};

/// The answer to one chat in every format there is, each put together from its parts.
async fn in_every_format(
    gateway: &TestGateway,
    model: &str,
    more: &str,
) -> Vec<(&'static str, String)> {
    let chat = |stream: bool| {
        let comma = if more.is_empty() { "" } else { "," };
        gateway.chat(
            model,
            "Tell me a story.",
            &format!(r#""stream":{stream}{comma}{more}"#),
        )
    };
    let rpc = |stream: bool| {
        let comma = if more.is_empty() { "" } else { "," };
        let params = chat_body(
            model,
            "Tell me a story.",
            &format!(r#""stream":{stream}{comma}{more}"#),
        );
        let call = format!(r#"{{"jsonrpc":"2.0","id":"a","method":"chat","params":{params}}}"#);
        gateway.post("/rpc", call)
    };
    let as_text = |ask: Ask| ask.header("accept", "text/plain");
    let as_lines = |ask: Ask| ask.header("accept", "application/x-ndjson");
    let message = |whole: &Value| {
        whole["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };

    let lines = as_lines(chat(true)).send().await;
    assert_eq!(lines.header("content-type"), "application/x-ndjson");
    let lines = lines.lines().await;
    let deltas = lines
        .iter()
        .filter_map(|line| line["choices"][0]["delta"]["content"].as_str());
    let notices = rpc(true).send().await.lines().await;
    let (last, notices) = notices.split_last().unwrap();
    assert_eq!(
        (&last["id"], &last["result"]["finish_reason"]),
        (&json!("a"), &json!("stop"))
    );
    let tokens = notices.iter().map(|notice| {
        assert_eq!(
            (&notice["method"], &notice["params"]["id"]),
            (&json!("token"), &json!("a"))
        );
        notice["params"]["text"].as_str().unwrap()
    });
    let bare = as_text(chat(true)).send().await;
    assert_eq!(bare.header("content-type"), "text/plain; charset=utf-8");

    vec![
        ("sse", chat(true).send().await.answer().await.text()),
        ("document", message(&chat(false).send().await.json().await)),
        ("text", bare.text().await),
        ("whole text", as_text(chat(false)).send().await.text().await),
        ("ndjson", deltas.collect()),
        ("rpc stream", tokens.collect()),
        (
            "rpc",
            rpc(false).send().await.json().await["result"]["text"]
                .as_str()
                .unwrap()
                .to_owned(),
        ),
    ]
}

#[tokio::test]
async fn every_dialect_gives_the_same_text_for_the_same_seed() {
    let gateway = gateway().demo("context = 512\nparallel = 4").start().await;
    let more = r#""seed":11,"temperature":1.2,"max_tokens":40,"stop":["\n\n"]"#;
    let body = format!(r#""stream":false,{more}"#);
    let whole = gateway
        .chat("demo", "Tell me a story.", &body)
        .send()
        .await
        .json()
        .await;
    // Cut where it would have been cut anyway, so that every format ends with "stop".
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    let cut: String = text.chars().skip(60).take(4).collect();
    assert_eq!(cut.chars().count(), 4, "{text}");
    let more = format!(
        r#""seed":11,"temperature":1.2,"max_tokens":40,"stop":[{}]"#,
        json!(cut)
    );
    let texts = in_every_format(&gateway, "demo", &more).await;
    let expected = text.split(&cut).next().unwrap();
    for (format, text) in texts {
        assert_eq!(text, expected, "{format}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_at_the_head_is_stripped_in_every_dialect() {
    let gateway = gateway().scripted().start().await;
    // One byte a token: the mark comes in three tokens. The second mark is text.
    let model = "scripted?text=%EF%BB%BFa%EF%BB%BFbc&token_bytes=1&tokens=9";
    for (format, text) in in_every_format(&gateway, model, "").await {
        assert_eq!(text, "a\u{feff}bc", "{format}");
    }
}

#[tokio::test]
async fn text_cannot_inject_an_event_a_line_or_a_frame() {
    let gateway = gateway().scripted().start().await;
    // Line ends of all kinds, with what an attacker would write behind them. The readers of the
    // tests refuse any event that is not one `data:` line, and any line that is not JSON.
    let text =
        "\n\ndata: {\"x\":1}\r\n\r\ndata: [DONE]\n\nevent: x\rid: 1\u{2028}\u{85}\0\u{1b}[2J\\\"";
    let mut encoded = String::new();
    for byte in text.bytes() {
        write!(encoded, "%{byte:02X}").unwrap();
    }
    // Sizes that fit, or the last token would begin the text again.
    for size in (1..=text.len()).filter(|size| text.len().is_multiple_of(*size)) {
        let tokens = text.len() / size;
        let model = format!("scripted?text={encoded}&token_bytes={size}&tokens={tokens}");
        for (format, found) in in_every_format(&gateway, &model, "").await {
            assert_eq!(found, text, "{format}, {size} bytes a token");
        }
    }
}

#[tokio::test]
async fn characters_that_are_split_over_tokens_arrive_whole() {
    let gateway = gateway()
        .demo("context = 512\nparallel = 4")
        .scripted()
        .start()
        .await;
    let more = r#""stream":true,"seed":1"#;
    let answer = gateway
        .chat("demo", "你好", more)
        .send()
        .await
        .answer()
        .await;
    assert!(
        answer.pieces.iter().any(|piece| piece.contains('你')),
        "{:?}",
        answer.pieces
    );
    assert!(
        !answer.pieces.concat().contains('\u{fffd}'),
        "{:?}",
        answer.pieces
    );
    // And when the end cuts one in two, what is left of it shows once.
    let model = "scripted?text=%E4%BD%A0%E5%A5%BD&token_bytes=1&tokens=5";
    let answer = gateway
        .chat(model, "x", r#""stream":true"#)
        .send()
        .await
        .answer()
        .await;
    assert_eq!(answer.pieces, ["你", "\u{fffd}"]);
}

#[tokio::test]
async fn a_stop_string_across_tokens_is_never_shown() {
    let gateway = gateway().scripted().start().await;
    let text = "one sto sto stop two";
    for size in 1..=text.len() {
        let model = format!(
            "scripted?text={}&token_bytes={size}&tokens=60",
            text.replace(' ', "%20")
        );
        let more = r#""stream":true,"stop":["never","stop"]"#;
        let answer = gateway.chat(&model, "x", more).send().await.answer().await;
        assert_eq!(answer.finishes, [Some("stop".to_owned())], "{size}");
        assert_eq!(answer.pieces.concat(), "one sto sto ", "{size}");
    }
    // The sequence is freed with it: nothing of 100 million tokens is left running.
    let model = "scripted?text=abcdefgh&tokens=100000000";
    let more = r#""stream":true,"stop":"ef""#;
    assert_eq!(
        gateway
            .chat(model, "x", more)
            .send()
            .await
            .answer()
            .await
            .text(),
        "abcd"
    );
    gateway.until("nothing runs", |m| m.running() == 0).await;
}

#[tokio::test]
async fn the_same_seed_gives_the_same_text_alone_and_in_company() {
    let gateway = gateway().demo("context = 512\nparallel = 12").start().await;
    let more = r#""stream":true,"seed":3,"temperature":1.5,"max_tokens":60,"ignore_eos":true"#;
    let ask = || gateway.chat("demo", "Tell me a story.", more);
    let alone = ask().send().await.answer().await.text();
    let again = ask().send().await.answer().await.text();
    assert_eq!(alone, again);

    let mut company = Vec::new();
    for seed in 0..8 {
        let prompt = "Tell me about the sea. ".repeat(1 + seed);
        let more = format!(
            r#""stream":true,"seed":{seed},"temperature":1.5,"ignore_eos":true,"max_tokens":200"#
        );
        company.push(gateway.chat("demo", &prompt, &more).send().await);
    }
    gateway.until("all others run", |m| m.running() == 8).await;
    assert_eq!(ask().send().await.answer().await.text(), alone);
    for (seed, reply) in company.into_iter().enumerate() {
        let text = reply.answer().await.text();
        assert_ne!(text, alone, "seed {seed}");
    }
    let other = more.replace("\"seed\":3", "\"seed\":4");
    let other = gateway
        .chat("demo", "Tell me a story.", &other)
        .send()
        .await
        .answer()
        .await
        .text();
    assert_ne!(other, alone, "another seed, another text");
}
