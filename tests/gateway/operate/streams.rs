//! The open streams, as operators see and end them.

use crate::keys::{entry, key};
use crate::support::{gateway, within};

/// One token now, the next in an hour: holds its stream open.
const HELD: &str = "scripted?pace=1h";

#[tokio::test]
async fn every_open_stream_is_listed_oldest_first() {
    let gateway = gateway().scripted().start().await;
    let mut open = Vec::new();
    for id in ["first", "second", "third"] {
        let ask = gateway.chat(HELD, "x", r#""stream":true"#);
        let mut reply = ask.header("x-request-id", id).send().await;
        reply.next_event().await;
        open.push(reply);
    }
    let list = async |query: &str| {
        let path = format!("/ops/v1/streams{query}");
        gateway.ops_get(&path).send().await.json().await
    };
    let all = list("").await;
    assert_eq!(all["total"], 3);
    let ids = all["streams"].as_array().unwrap().iter();
    let ids: Vec<_> = ids.map(|stream| stream["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["first", "second", "third"]);
    let stream = &all["streams"][0];
    assert_eq!(stream["model"], "scripted");
    assert_eq!(stream["tokens"], 1);
    assert!(stream["caller"].is_null() && stream["age_seconds"].as_f64().unwrap() > 0.0);
    let one = list("?limit=1&model=scripted").await;
    assert_eq!(one["total"], 3);
    assert_eq!(one["streams"].as_array().unwrap().len(), 1);
    assert_eq!(list("?model=other").await["total"], 0);
    assert_eq!(list("?caller=key:a").await["total"], 0);
    for wrong in ["?limit=0", "?limit=many", "?modle=scripted"] {
        let path = format!("/ops/v1/streams{wrong}");
        assert_eq!(gateway.ops_get(&path).send().await.status, 400, "{wrong}");
    }

    let cancel = |id: &str| gateway.ops("DELETE", &format!("/ops/v1/streams/{id}"), "");
    assert_eq!(cancel("second").send().await.status, 204);
    let ended = within(open.remove(1).answer()).await;
    assert_eq!(ended.error.as_deref(), Some("cancelled"));
    assert_eq!(cancel("second").send().await.status, 404);
    assert_eq!(list("").await["total"], 2);
}

#[tokio::test]
async fn engines_show_what_each_sequence_does() {
    let setup = gateway().demo("context = 512\nparallel = 2").scripted();
    let gateway = setup.start().await;
    let ask = gateway.chat("demo", "x", r#""stream":true,"ignore_eos":true"#);
    let mut held = ask.header("x-request-id", "held").send().await;
    held.next_event().await;
    let look = async |query: &str| {
        let path = format!("/ops/v1/engine{query}");
        gateway.ops_get(&path).send().await
    };
    let all = look("").await.json().await;
    let names: Vec<_> = all["models"].as_array().unwrap().iter().collect();
    let names: Vec<_> = names.iter().map(|model| model["name"].as_str()).collect();
    assert_eq!(names, [Some("demo"), Some("scripted")]);
    let demo = &look("?model=demo").await.json().await["models"][0]["engine"];
    assert!(demo["kv"]["capacity"].as_u64() > Some(0), "{demo}");
    let sequence = &demo["sequences"][0];
    assert_eq!(sequence["request"], "held", "{demo}");
    assert_eq!(look("?model=nobody").await.status, 404);
}

#[tokio::test]
async fn callers_are_named_and_only_who_may_look_does() {
    let keys = entry("auth.keys", "a", "") + &entry("auth.keys", "looks", "scopes = ['ops:read']");
    let guarded = format!("[ops]\nrequire_key = true\n{keys}");
    let gateway = gateway().scripted().with(&guarded).start().await;
    let bearer = |id: &str| format!("Bearer {}", key(id));
    let ask = gateway.chat(HELD, "x", r#""stream":true"#);
    let mut reply = ask.header("authorization", &bearer("a")).send().await;
    reply.next_event().await;
    let look = |method: &str, path: &str, id: &str| {
        let ask = gateway.ops(method, path, "");
        ask.header("authorization", &bearer(id))
    };
    let path = "/ops/v1/streams?caller=key%3Aa";
    assert_eq!(look("GET", path, "a").send().await.status, 403);
    let list = look("GET", path, "looks").send().await.json().await;
    assert_eq!(list["streams"][0]["caller"], "key:a");
    for (method, path) in [
        ("DELETE", "/ops/v1/streams/x"),
        ("GET", "/debug/pprof/profile?seconds=1"),
        ("GET", "/debug/pprof/recent"),
        ("PUT", "/ops/v1/log"),
    ] {
        let status = look(method, path, "looks").send().await.status;
        assert_eq!(status, 403, "{path}");
    }
}
