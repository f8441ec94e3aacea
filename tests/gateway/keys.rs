//! API keys over HTTP: who is let in, for what, and for how long.

mod revoked;
mod secrets;

use serde_json::Value;
use sluicegate::auth::keys::KeyHash;

use crate::support::{
    Ask, Asked, Metrics, Protocol, Reply, Served, Tap, TestGateway, Visitor, chat_body, gateway,
};

/// The entry of a key whose text is `key-of-{id}`.
pub(crate) fn entry(section: &str, id: &str, more: &str) -> String {
    let hash = KeyHash::of(&key(id));
    format!("[[{section}]]\nid = '{id}'\nhash = '{hash}'\n{more}\n")
}

pub(crate) fn key(id: &str) -> String {
    format!("key-of-{id}")
}

trait With {
    fn bearer(self, key: &str) -> Self;
}

impl With for Ask {
    fn bearer(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }
}

/// With keys for `a`, `embed`, `other` (which may use another model), `old` (which has expired), and an
/// operator's two.
async fn asking(more: &str) -> TestGateway {
    let keys = [
        ("a", "owner = 'acme'"),
        ("embed", "scopes = ['embed']"),
        ("other", "models = ['other']"),
        ("scripted", "models = ['scripted']"),
        ("old", "expires = '2020-01-01'"),
        ("looks", "scopes = ['ops:read']"),
        ("changes", "scopes = ['ops:read', 'ops:write']"),
    ];
    let keys = keys.map(|(id, more)| entry("auth.keys", id, more));
    gateway()
        .scripted()
        .with(more)
        .with(&keys.concat())
        .start()
        .await
}

/// Status, challenge and code.
async fn refusal(reply: Reply) -> (u16, String, String) {
    let (status, challenge) = (reply.status, reply.header("www-authenticate").to_owned());
    let body: Value = serde_json::from_str(&reply.text().await).expect("an error body");
    let error = &body["error"];
    let code = if error["data"].is_object() {
        &error["data"]["code"]
    } else {
        &error["code"]
    };
    (
        status,
        challenge,
        code.as_str().unwrap_or_default().to_owned(),
    )
}

fn says(status: u16, challenge: &str, code: &str) -> (u16, String, String) {
    (status, challenge.to_owned(), code.to_owned())
}

const WRONG: &str = "Bearer error=\"invalid_token\"";

#[tokio::test]
async fn a_key_is_good_in_either_header_and_nothing_else_is() {
    let gateway = asking("").await;
    let chat = || gateway.chat("scripted?tokens=2", "Hi", "");
    let good = [
        chat().bearer("key-of-a"),
        chat().header("x-api-key", "key-of-a"),
        chat().bearer("key-of-a").header("x-api-key", "key-of-a"),
        chat()
            .header("authorization", "Basic eA==")
            .header("x-api-key", "key-of-a"),
    ];
    for ask in good {
        assert_eq!(ask.send().await.status, 200);
    }
    let wrong = |code| says(401, WRONG, code);
    let table = [
        (chat(), says(401, "Bearer", "missing_api_key")),
        (
            chat().header("authorization", "Basic eA=="),
            says(401, "Bearer", "missing_api_key"),
        ),
        (chat().bearer("key-of-b"), wrong("invalid_api_key")),
        (
            chat().header("x-api-key", "Key-of-a"),
            wrong("invalid_api_key"),
        ),
        (
            chat().bearer("key-of-a").header("x-api-key", "key-of-b"),
            wrong("invalid_api_key"),
        ),
        (
            chat().bearer("key-of-a").bearer("key-of-a"),
            wrong("invalid_api_key"),
        ),
        (chat().bearer("key-of-old"), wrong("key_expired")),
        (chat().bearer("sgb1.AAAA"), wrong("bind_again")),
        (
            chat().bearer(&KeyHash::of("key-of-a").to_string()),
            wrong("invalid_api_key"),
        ),
    ];
    for (number, (ask, expected)) in table.into_iter().enumerate() {
        assert_eq!(refusal(ask.send().await).await, expected, "{number}");
    }
    let metrics = gateway.metrics().await;
    for (reason, times) in [
        ("missing_api_key", 2),
        ("invalid_api_key", 5),
        ("key_expired", 1),
    ] {
        let label = format!("reason=\"{reason}\"");
        assert_eq!(
            metrics.sum("auth_refusals_total", &[&label]),
            times,
            "{reason}"
        );
    }
    let label = ["route=\"chat\"", "outcome=\"limited\""];
    assert_eq!(metrics.sum("requests_total", &label), 9);
}

#[tokio::test]
async fn what_everybody_may_see_is_open_and_nothing_else() {
    let gateway = asking("").await;
    for path in ["/healthz", "/readyz", "/", "/app.js", "/rpc/openrpc.json"] {
        assert_eq!(gateway.get(path).send().await.status, 200, "{path}");
        assert_eq!(
            gateway.get(path).bearer("wrong").send().await.status,
            200,
            "{path}"
        );
    }
    for path in [
        "/v1/models",
        "/v1/models/scripted",
        "/v1/streams/x",
        "/healthz/",
        "//healthz",
        "/rpc",
        "/metrics",
        "/no/such/path",
    ] {
        let reply = gateway.get(path).send().await;
        assert_eq!(
            refusal(reply).await,
            says(401, "Bearer", "missing_api_key"),
            "{path}"
        );
    }
    for path in [
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/tokenize",
        "/v1/bind",
        "/rpc",
    ] {
        let reply = gateway.post(path, "no JSON").send().await;
        assert_eq!(
            refusal(reply).await,
            says(401, "Bearer", "missing_api_key"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say() {
    let gateway = asking("").await;
    let lacks = says(
        403,
        "Bearer error=\"insufficient_scope\"",
        "insufficient_scope",
    );
    let chat = gateway.chat("scripted", "Hi", "").bearer("key-of-embed");
    assert_eq!(refusal(chat.send().await).await, lacks);
    for (path, body) in [
        ("/v1/completions", r#"{"model":"scripted","prompt":"x"}"#),
        ("/v1/tokenize", r#"{"content":"x"}"#),
        ("/v1/detokenize", r#"{"tokens":[1]}"#),
        (
            "/v1/chat/completions/input_tokens",
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
        ),
    ] {
        let ask = gateway.post(path, body).bearer("key-of-embed");
        assert_eq!(refusal(ask.send().await).await, lacks, "{path}");
    }
    for method in ["GET", "DELETE"] {
        let stream = gateway.ask(method, "/v1/streams/none");
        let reply = stream.bearer("key-of-embed").send().await;
        assert_eq!(refusal(reply).await, lacks, "{method}");
    }
    let embed = |key| {
        let body = r#"{"model":"scripted","input":"x"}"#;
        gateway.post("/v1/embeddings", body).bearer(key).send()
    };
    assert_ne!(embed("key-of-embed").await.status, 403);
    assert_eq!(refusal(embed("key-of-looks").await).await, lacks);
    let rank = gateway.post("/v1/rerank", r#"{"query":"x","documents":["y"]}"#);
    assert_eq!(
        refusal(rank.bearer("key-of-looks").send().await).await,
        lacks
    );
    let refused = gateway.metrics().await;
    let label = ["reason=\"insufficient_scope\""];
    assert_eq!(refused.sum("auth_refusals_total", &label), 9);
}

#[tokio::test]
async fn calls_of_one_body_are_judged_one_by_one() {
    let gateway = asking("").await;
    let call = |id: u32, method: &str, params: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
    };
    let body = [
        call(1, "models", "{}"),
        call(2, "chat", &chat_body("scripted", "Hi", "")),
        call(3, "tokenize", r#"{"content":"x"}"#),
        call(4, "detokenize", r#"{"tokens":[1]}"#),
        call(5, "embeddings", r#"{"model":"scripted","input":"x"}"#),
        call(6, "cancel", r#"{"id":"x"}"#),
    ];
    let body = format!("[{}]", body.join(","));
    let ask = gateway
        .post("/rpc", &*body)
        .header("x-api-key", "key-of-embed");
    let text = ask.send().await.text().await;
    let replies: Vec<Value> = serde_json::from_str(&text).expect("replies");
    let mut codes: Vec<_> = replies
        .iter()
        .map(|reply| {
            let code = reply["error"]["data"]["code"].as_str();
            (reply["id"].as_u64(), code.unwrap_or_default().to_owned())
        })
        .collect();
    codes.sort();
    let lacks = "insufficient_scope".to_owned();
    assert_eq!(codes[0], (Some(1), String::new()), "{text}");
    for id in [2, 3, 4, 6] {
        assert!(codes.contains(&(Some(id), lacks.clone())), "{id}: {text}");
    }
    assert!(!codes.contains(&(Some(5), lacks)), "{text}");
}

#[tokio::test]
async fn a_key_sees_and_uses_its_models_only() {
    let gateway = asking("").await;
    let ids = async |key: &str| {
        let reply = gateway.get("/v1/models").bearer(key).send().await;
        let list: Value = serde_json::from_str(&reply.text().await).expect("a list");
        list["data"].as_array().expect("a list").len()
    };
    assert_eq!(
        (ids("key-of-a").await, ids("key-of-scripted").await),
        (1, 1)
    );
    assert_eq!(ids("key-of-other").await, 0);
    let one = gateway.get("/v1/models/scripted").bearer("key-of-other");
    assert_eq!(one.send().await.status, 404);
    let not_allowed = says(403, "", "model_not_allowed");
    for model in ["scripted", "scripted?tokens=1", "none", ""] {
        let chat = gateway.chat(model, "Hi", "").bearer("key-of-other");
        assert_eq!(refusal(chat.send().await).await, not_allowed, "{model}");
    }
    let chat = gateway
        .chat("scripted?tokens=1", "Hi", "")
        .bearer("key-of-scripted");
    assert_eq!(chat.send().await.status, 200);
}

#[tokio::test]
async fn without_a_key_one_is_served_where_that_is_allowed_and_a_wrong_one_never() {
    let gateway = asking("[auth]\nallow_anonymous = true").await;
    let chat = || gateway.chat("scripted?tokens=1", "Hi", "");
    assert_eq!(chat().send().await.status, 200);
    assert_eq!(chat().bearer("").send().await.status, 200);
    let wrong = refusal(chat().bearer("wrong").send().await).await;
    assert_eq!(wrong, says(401, WRONG, "invalid_api_key"));
}

#[tokio::test]
async fn where_no_key_is_asked_for_any_is_ignored() {
    let gateway = gateway().scripted().start().await;
    let chat = || gateway.chat("scripted?tokens=1", "Hi", "");
    let two = chat().bearer("sk-x").header("x-api-key", "y");
    for ask in [chat(), chat().bearer("sk-none"), two] {
        assert_eq!(ask.send().await.status, 200);
    }
}

#[tokio::test]
async fn a_stranger_is_answered_before_the_body_is_there() {
    let gateway = asking("").await;
    let mut raw = gateway.connect().await;
    raw.send(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: 1000000\r\n\r\n",
    )
    .await;
    let head = raw.read_until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 401 "), "{head}");
}

#[tokio::test]
async fn what_is_open_gathers_no_body() {
    let gateway = asking("").await;
    let mut raw = gateway.connect().await;
    raw.send(
        "GET /healthz HTTP/1.1\r\nhost: x\r\nx-sluice-proof: x\r\ncontent-length: 1000000\r\n\r\n",
    )
    .await;
    let head = raw.read_until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
}

#[tokio::test]
async fn the_operators_port_asks_where_it_is_told_to() {
    let gateway = asking("[ops]\nrequire_key = true").await;
    let path = "/ops/v1/models/scripted/adapters";
    for probe in ["/healthz", "/readyz"] {
        assert_eq!(gateway.ops_get(probe).send().await.status, 200, "{probe}");
    }
    let missing = says(401, "Bearer", "missing_api_key");
    for path in ["/metrics", "/ops/v1/models", "/none"] {
        let reply = gateway.ops_get(path).send().await;
        assert_eq!(refusal(reply).await, missing, "{path}");
        let looks = gateway.ops_get(path).bearer("key-of-looks").send().await;
        assert!(![401, 403].contains(&looks.status), "{path}");
    }
    let lacks = says(
        403,
        "Bearer error=\"insufficient_scope\"",
        "insufficient_scope",
    );
    let reply = gateway.ops_get("/metrics").bearer("key-of-a").send().await;
    assert_eq!(refusal(reply).await, lacks);
    let add = |key| gateway.ops("POST", path, "{}").bearer(key).send();
    assert_eq!(refusal(add("key-of-looks").await).await, lacks);
    assert_eq!(add("key-of-changes").await.status, 400);
    let wrong = gateway.ops_get("/metrics").bearer("wrong").send().await;
    assert_eq!(refusal(wrong).await, says(401, WRONG, "invalid_api_key"));
}

#[tokio::test]
async fn nobody_operates_where_strangers_are_served() {
    let gateway = asking("[auth]\nallow_anonymous = true\n[ops]\nrequire_key = true").await;
    let reply = gateway.ops_get("/metrics").send().await;
    assert_eq!(refusal(reply).await, says(401, "Bearer", "missing_api_key"));
}

/// Who comes before the handshake has ended may still show a certificate; who shows nothing then is nobody.
#[tokio::test]
async fn who_comes_early_is_asked_all_the_same() {
    for protocol in Protocol::ALL {
        let served = Served::by(gateway().scripted().with(&entry("auth.keys", "a", ""))).await;
        let address = served.gateway.secure();
        let visitor = Visitor::new(&served, protocol);
        let _first = visitor.visit(address).await;
        let tap = Tap::before(address).await;
        let (visit, _) = visitor.early_visit(tap.address).await;
        let chat = |token: &str| Asked::chat("", token);
        let wrong = visit.send(&chat("wrong")).await;
        let nobody = visit.send(&chat("")).await;
        let good = visit.send(&chat("key-of-a")).await;
        // The wrong one takes no place to wait.
        let told = |m: &Metrics| {
            let held = m.sum("early_requests_total", &["decision=\"held\""]);
            let refused = m.sum("auth_refusals_total", &["reason=\"invalid_api_key\""]);
            (held, refused) == (2, 1)
        };
        served.gateway.until("two wait, one is refused", told).await;
        tap.release();
        let wrong = wrong.answer().await.outcome();
        assert_eq!(wrong, (401, "invalid_api_key".into()));
        let nobody = nobody.answer().await.outcome();
        assert_eq!(nobody, (401, "missing_api_key".into()));
        assert_eq!(good.answer().await.outcome(), (200, "ok".into()));
    }
}
