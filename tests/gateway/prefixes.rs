//! Prefixes through the whole server: who may see them, what is told of them.

use serde_json::Value;

use crate::support::{TestGateway, gateway};

async fn ask(gateway: &TestGateway, model: &str) -> Value {
    let ids: Vec<_> = (0..200).map(|at| (300 + at).to_string()).collect();
    let prompt = ids.join(",");
    let body = format!(
        r#"{{"model":"{model}","prompt":[{prompt}],"max_tokens":4,"seed":1,"ignore_eos":true}}"#
    );
    let reply = gateway.post("/v1/completions", body).send().await;
    assert_eq!(reply.status, 200);
    reply.json().await
}

#[tokio::test]
async fn usage_and_operators_are_told_what_was_cached() {
    let settings = "context = 512\nparallel = 2\ndeterministic = true";
    let gateway = gateway().demo(settings).start().await;
    let first = ask(&gateway, "demo").await;
    let second = ask(&gateway, "demo").await;
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    assert_eq!((cached(&first), cached(&second)), (0.into(), 192.into()));
    assert_eq!(first["choices"], second["choices"]);
    let fingerprint = first["system_fingerprint"].as_str().unwrap();
    assert!(fingerprint.ends_with("-deterministic"), "{fingerprint}");

    let report = gateway.ops_get("/ops/v1/models").send().await.json().await;
    let engine = &report["models"][0]["engine"];
    assert_eq!(report["models"][0]["name"], "demo");
    assert_eq!(engine["kv"]["layout"], "split");
    assert_eq!(engine["kv"]["reason"], "deterministic");
    assert_eq!(engine["prefix_cache"]["hit_tokens"], 192);
    let metrics = gateway.metrics().await;
    assert!(metrics.sum("prefix_cache_bytes", &[]) > 0, "{metrics}");
    assert_eq!(metrics.sum("tokens_total", &["kind=\"cached\""]), 192);
}
