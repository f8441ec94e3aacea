//! Tokens of an issuer, on a real gateway: beside keys, for as long as the issuer publishes the key.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::json;
use tempfile::TempDir;

use crate::keys::{entry, key};
use crate::support::{
    Ask, Asked, CHAT, Event, Metrics, Protocol, Served, Visitor, chat_body, gateway, replace,
};

/// An issuer, who publishes this secret.
struct Issuer {
    dir: TempDir,
    secret: [u8; 32],
}

impl Issuer {
    fn new() -> Self {
        let issuer = Self {
            dir: tempfile::tempdir().unwrap(),
            secret: [7; 32],
        };
        issuer.publish();
        issuer
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("jwks.json")
    }

    fn publish(&self) {
        let secret = encoded(&self.secret);
        let set = json!({"keys": [{"kty": "oct", "alg": "HS256", "kid": "1", "k": secret}]});
        replace(&self.file(), &set.to_string());
    }

    fn section(&self) -> String {
        section(&self.file())
    }

    /// Good for so long from now on.
    fn token(&self, seconds: u64, scope: &str) -> String {
        let header = json!({"alg": "HS256", "kid": "1"}).to_string();
        let expires = now() + seconds;
        let claims = json!({"sub": "alice", "aud": "gate", "exp": expires, "scope": scope});
        let message = format!(
            "{}.{}",
            encoded(header.as_bytes()),
            encoded(claims.to_string().as_bytes())
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let signature = hmac::sign(&key, message.as_bytes());
        format!("{message}.{}", encoded(signature.as_ref()))
    }
}

fn section(file: &Path) -> String {
    format!(
        "[auth.jwt]\naudience = 'gate'\njwks_file = '{}'\n",
        file.display()
    )
}

fn encoded(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

fn bearer(ask: Ask, credential: &str) -> Ask {
    ask.header("authorization", &format!("Bearer {credential}"))
}

#[tokio::test]
async fn tokens_are_good_beside_keys_for_what_they_say() {
    let issuer = Issuer::new();
    let section = format!("{}{}", issuer.section(), entry("auth.keys", "a", ""));
    let gateway = gateway().scripted().with(&section).start().await;
    let status = async |credential: &str| {
        let chat = gateway.chat("scripted?tokens=1", "Hi", "");
        bearer(chat, credential).send().await.status
    };
    let good = issuer.token(600, "generate");
    assert_eq!(status(&good).await, 200);
    assert_eq!(status(&key("a")).await, 200);
    assert_eq!(status(&issuer.token(600, "embed openid")).await, 403);
    let stranger = Issuer {
        secret: [8; 32],
        ..Issuer::new()
    };
    assert_eq!(status(&stranger.token(600, "generate")).await, 401);
    let unsigned = good.rsplit_once('.').unwrap().0;
    assert_eq!(status(&format!("{unsigned}.")).await, 401);
    assert_eq!(status(unsigned).await, 401);
    let metrics = gateway.metrics().await;
    let refused = metrics.sum("auth_refusals_total", &["reason=\"invalid_token\""]);
    assert_eq!(refused, 2, "{metrics}");
}

#[tokio::test]
async fn when_the_issuer_takes_a_key_back_streams_go_on_and_nothing_begins() {
    let mut issuer = Issuer::new();
    let gateway = gateway().scripted().with(&issuer.section()).start().await;
    let old = issuer.token(600, "generate");
    let chat =
        |model: &str, more: &str, token: &str| bearer(gateway.chat(model, "Hi", more), token);
    let endless = "scripted?tokens=1000000&pace=5ms";
    let mut stream = chat(endless, r#""stream":true"#, &old).send().await;
    assert!(matches!(stream.next_event().await, Some(Event::Data(_))));

    std::fs::write(issuer.file(), "{").unwrap();
    let reread = |result: &'static str| {
        move |m: &Metrics| m.sum("key_reloads_total", &[&format!("result=\"{result}\"")]) == 1
    };
    gateway.until("it is refused", reread("refused")).await;
    assert_eq!(chat("scripted?tokens=1", "", &old).send().await.status, 200);

    issuer.secret = [9; 32];
    issuer.publish();
    gateway.until("it is read", reread("taken")).await;
    assert_eq!(chat("scripted?tokens=1", "", &old).send().await.status, 401);
    let new = issuer.token(600, "generate");
    assert_eq!(chat("scripted?tokens=1", "", &new).send().await.status, 200);
    for _ in 0..20 {
        assert!(matches!(stream.next_event().await, Some(Event::Data(_))));
    }
}

#[tokio::test]
async fn a_bound_token_lives_no_longer_than_the_token_it_is_made_of() {
    let issuer = Issuer::new();
    for protocol in Protocol::ALL {
        let setup = gateway().scripted().with(&issuer.section());
        let served = Served::by(setup.with("[auth]\nrequire_proof = false")).await;
        let visitor = Visitor::new(&served, protocol);
        let visit = visitor.visit(served.gateway.secure()).await;
        let begun = now();
        let bind = Asked {
            token: issuer.token(600, "generate"),
            ..Asked::new("POST", "/v1/bind", "")
        };
        let bound = visit.ask(&bind).await.json();
        let ends = bound["expires_at"].as_u64().unwrap();
        // With the leeway, like the token itself.
        let latest = now() + 600 + 30;
        assert!((begun + 600 + 30..=latest).contains(&ends), "{bound}");
        let body = chat_body("scripted?tokens=1", "Hi", "");
        let chat = Asked {
            token: bound["token"].as_str().unwrap().to_owned(),
            ..Asked::new("POST", CHAT, &body)
        };
        assert_eq!(visit.ask(&chat).await.status, 200);
        let vectors = Asked {
            body: r#"{"model":"scripted","input":"x"}"#.to_owned(),
            path: "/v1/embeddings",
            ..chat
        };
        assert_eq!(visit.ask(&vectors).await.outcome().0, 403, "its rights");
    }
}
