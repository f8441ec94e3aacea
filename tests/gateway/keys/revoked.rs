//! The key file changes under a running gateway: what a key was good for ends with it.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{WRONG, With, entry, refusal, says};
use crate::support::{
    Asked, CHAT, Event, Protocol, Reply, Served, TestGateway, Visitor, chat_body, gateway, replace,
};

/// A directory with a key file for these keys, and the section that names it.
fn key_file(keys: &[(&str, &str)]) -> (TempDir, PathBuf, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    write(&path, keys);
    let section = format!("[auth]\nkeys_file = '{}'", path.display());
    (dir, path, section)
}

fn write(path: &Path, keys: &[(&str, &str)]) {
    let text: String = keys
        .iter()
        .map(|(id, more)| entry("keys", id, more))
        .collect();
    replace(path, &text);
}

async fn reread(gateway: &TestGateway, result: &str, times: u64) {
    let label = format!("result=\"{result}\"");
    let done = |m: &crate::support::Metrics| m.sum("key_reloads_total", &[&label]) >= times;
    gateway.until("the file is read again", done).await;
}

/// A stream that has begun and does not end by itself.
async fn endless(gateway: &TestGateway, key: &str) -> Reply {
    let more = r#""stream":true"#;
    let chat = gateway.chat("scripted?tokens=1000000&pace=5ms", "Hi", more);
    let mut reply = chat.bearer(key).send().await;
    assert_eq!(reply.status, 200);
    assert!(matches!(reply.next_event().await, Some(Event::Data(_))));
    reply
}

/// The code of the error that ends a stream.
async fn end(mut reply: Reply) -> String {
    let events = reply.events().await;
    let error = events.iter().rev().find_map(|event| match event {
        Event::Data(data) => data["error"]["code"].as_str(),
        _ => None,
    });
    error.expect("an error ends it").to_owned()
}

#[tokio::test]
async fn a_key_that_is_taken_out_ends_and_what_it_streams_with_it() {
    let (_dir, path, section) = key_file(&[("a", ""), ("b", "")]);
    let gateway = gateway().scripted().with(&section).start().await;
    let (a, mut b) = (
        endless(&gateway, "key-of-a").await,
        endless(&gateway, "key-of-b").await,
    );
    write(&path, &[("b", "")]);
    assert_eq!(end(a).await, "key_removed");
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.ended("limited"), 1);
    let chat = gateway
        .chat("scripted?tokens=1", "Hi", "")
        .bearer("key-of-a");
    assert_eq!(
        refusal(chat.send().await).await,
        says(401, WRONG, "invalid_api_key")
    );
    assert!(
        matches!(b.next_event().await, Some(Event::Data(_))),
        "the other goes on"
    );
}

#[tokio::test]
async fn what_was_begun_may_finish_if_that_is_said() {
    let (_dir, path, section) = key_file(&[("a", "")]);
    let section = section + "\non_removed = 'finish'";
    let gateway = gateway().scripted().with(&section).start().await;
    let mut a = endless(&gateway, "key-of-a").await;
    write(&path, &[]);
    reread(&gateway, "taken", 1).await;
    let chat = gateway
        .chat("scripted?tokens=1", "Hi", "")
        .bearer("key-of-a");
    assert_eq!(chat.send().await.status, 401);
    // What was sent before says nothing.
    assert_eq!(gateway.metrics().await.ended("limited"), 1, "the other one");
    for _ in 0..3 {
        assert!(matches!(a.next_event().await, Some(Event::Data(_))));
    }
}

#[tokio::test]
async fn a_key_that_expires_in_mid_stream_ends_it() {
    let (_dir, path, section) = key_file(&[("a", ""), ("b", "")]);
    let gateway = gateway().scripted().with(&section).start().await;
    let (a, b) = (
        endless(&gateway, "key-of-a").await,
        endless(&gateway, "key-of-b").await,
    );
    // One is over when the file is read, the other a little later, or so, too, on a slow machine.
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    let soon = format!("expires = '{soon}'");
    write(&path, &[("a", "expires = '2020-01-01'"), ("b", &soon)]);
    assert_eq!(end(a).await, "key_expired");
    assert_eq!(end(b).await, "key_expired");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_changes_nothing_and_is_counted() {
    let (_dir, path, section) = key_file(&[("a", "")]);
    let gateway = gateway().scripted().with(&section).start().await;
    replace(&path, "[[keys]]\nid = 'a'\nhash = 'none'");
    reread(&gateway, "refused", 1).await;
    let chat = || gateway.chat("scripted?tokens=1", "Hi", "");
    assert_eq!(chat().bearer("key-of-a").send().await.status, 200);
    // Also one that is gone: only an empty file takes all keys away.
    std::fs::remove_file(&path).unwrap();
    reread(&gateway, "refused", 2).await;
    assert_eq!(chat().bearer("key-of-a").send().await.status, 200);
    write(&path, &[("c", "")]);
    reread(&gateway, "taken", 1).await;
    assert_eq!(chat().bearer("key-of-a").send().await.status, 401);
    assert_eq!(chat().bearer("key-of-c").send().await.status, 200);
}

#[tokio::test]
async fn a_bound_token_is_as_good_as_its_key() {
    let (_dir, path, section) = key_file(&[("a", ""), ("b", "")]);
    for protocol in Protocol::ALL {
        write(&path, &[("a", ""), ("b", "")]);
        let setup = gateway().scripted().with(&section);
        let served = Served::by(setup.with("require_proof = false")).await;
        let visitor = Visitor::new(&served, protocol);
        let visit = visitor.visit(served.gateway.secure()).await;
        let stranger = visit.ask(&Asked::new("POST", "/v1/bind", "")).await;
        assert_eq!(stranger.outcome(), (401, "missing_api_key".into()));
        let bind = Asked {
            token: "key-of-a".into(),
            ..Asked::new("POST", "/v1/bind", "")
        };
        let token = visit.ask(&bind).await.json()["token"]
            .as_str()
            .unwrap()
            .to_owned();
        let body = chat_body("scripted?tokens=1", "Hi", "");
        let chat = Asked {
            token,
            ..Asked::new("POST", CHAT, &body)
        };
        assert_eq!(visit.ask(&chat).await.status, 200);
        write(&path, &[("a", "models = ['none']"), ("b", "")]);
        reread(&served.gateway, "taken", 1).await;
        let outcome = visit.ask(&chat).await.outcome();
        assert_eq!(
            outcome,
            (403, "model_not_allowed".into()),
            "rights are looked up"
        );
        write(&path, &[("b", "")]);
        reread(&served.gateway, "taken", 2).await;
        let outcome = visit.ask(&chat).await.outcome();
        assert_eq!(outcome, (401, "key_removed".into()));
    }
}

#[tokio::test]
async fn what_is_still_being_sent_when_its_key_ends_does_not_begin() {
    let chat = chat_body("scripted?tokens=1", "Hi", "");
    let embed = r#"{"model":"scripted","input":"x"}"#;
    let (chat, vectors, tokens) = (
        (CHAT, &*chat),
        ("/v1/embeddings", embed),
        r#"{"content":"x"}"#,
    );
    for on_removed in ["end", "finish"] {
        let (_dir, path, section) = key_file(&[("a", "")]);
        let section = format!("{section}\non_removed = '{on_removed}'");
        let gateway = gateway().scripted().with(&section).start().await;
        let mut begun = Vec::new();
        for (path, body) in [chat, vectors, ("/v1/tokenize", tokens)] {
            let mut raw = gateway.connect().await;
            let length = body.len();
            // Who is told to go on was believed.
            raw.send(format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-of-a\r\n\
                 expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
            ))
            .await;
            assert!(raw.read_until("\r\n\r\n").await.contains(" 100 "));
            begun.push((raw, path, body));
        }
        write(&path, &[]);
        reread(&gateway, "taken", 1).await;
        for (mut raw, path, body) in begun {
            raw.send(body).await;
            let head = raw.read_until("\r\n\r\n").await;
            assert!(
                head.starts_with("HTTP/1.1 401 "),
                "{on_removed} {path}: {head}"
            );
        }
    }
}
