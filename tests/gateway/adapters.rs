//! Adapters through the whole server: chosen per request, added and removed by the operator.

use serde_json::{Value, json};

use crate::support::{Lora, TestGateway, gateway};

const SETTINGS: &str = "context = 512\nparallel = 4";

/// The configuration of an adapter of the model before it.
fn configured(name: &str, lora: &Lora, more: &str) -> String {
    let path = lora.path().display();
    format!("{SETTINGS}\n[[models.adapters]]\nname = '{name}'\npath = '{path}'\n{more}")
}

async fn story(gateway: &TestGateway, model: &str, more: &str) -> Value {
    let comma = if more.is_empty() { "" } else { "," };
    let body = format!(
        r#"{{"model":"{model}","prompt":"Once upon a time","temperature":0,"max_tokens":40,"ignore_eos":true{comma}{more}}}"#
    );
    let reply = gateway.post("/v1/completions", body).send().await;
    assert_eq!(reply.status, 200, "{model} {more}");
    reply.json().await
}

async fn text(gateway: &TestGateway, model: &str, more: &str) -> String {
    let whole = story(gateway, model, more).await;
    whole["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_chooses_adapters_by_the_models_name_or_in_lora() {
    let lora = Lora::new(1);
    let setup = gateway().demo(&configured("tuned", &lora, ""));
    let gateway = setup.start().await;
    let whole = story(&gateway, "demo:tuned", "").await;
    assert_eq!(whole["model"], "demo:tuned");
    let tuned = whole["choices"][0]["text"].as_str().unwrap();
    let base = text(&gateway, "demo", "").await;
    assert_ne!(tuned, base);
    for (more, expected) in [
        (r#""lora":[{"name":"tuned"}]"#, tuned),
        (r#""lora":[{"id":0,"scale":1.0}]"#, tuned),
        (r#""lora":[{"id":0,"scale":0}]"#, &base),
        (r#""lora":[]"#, &base),
        (r#""lora":null"#, &base),
    ] {
        assert_eq!(text(&gateway, "demo", more).await, expected, "{more}");
    }
    let half = text(&gateway, "demo", r#""lora":[{"name":"tuned","scale":-1}]"#).await;
    assert!(half != tuned && half != base);

    let list = gateway.get("/v1/models").send().await.json().await;
    let models = list["data"].as_array().unwrap();
    let ids: Vec<_> = models.iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["demo", "demo:tuned"]);
    assert_eq!(models[0].get("parent"), None);
    assert_eq!(models[1]["parent"], "demo");
    let one = gateway.get("/v1/models/demo:tuned").send().await;
    assert_eq!(one.json().await["parent"], "demo");
    // A model is counted under its own name, whatever adapter it wears.
    let metrics = gateway.metrics().await;
    let labels = [r#"model="demo""#, r#"outcome="ok""#];
    assert_eq!(metrics.sum("requests_total", &labels), 8);
}

#[tokio::test]
async fn what_is_wrong_with_a_choice_is_said() {
    let lora = Lora::new(1);
    let setup = gateway()
        .scripted()
        .demo(&configured("tuned", &lora, "scale = 0.5"));
    let gateway = setup.start().await;
    for (model, more, expected) in [
        ("demo:other", "", (404, "model_not_found")),
        ("demo:", "", (404, "model_not_found")),
        (":tuned", "", (404, "model_not_found")),
        ("scripted:tuned", "", (404, "model_not_found")),
        (
            "demo",
            r#""lora":[{"name":"other"}]"#,
            (404, "adapter_not_found"),
        ),
        ("demo", r#""lora":[{"id":7}]"#, (404, "adapter_not_found")),
        ("demo", r#""lora":[{}]"#, (400, "")),
        ("demo", r#""lora":[{"id":0,"name":"tuned"}]"#, (400, "")),
        ("demo", r#""lora":[{"id":-1}]"#, (400, "")),
        ("demo", r#""lora":[{"id":0,"scale":101}]"#, (400, "")),
        ("demo", r#""lora":[{"id":0},{"name":"tuned"}]"#, (400, "")),
        ("demo", r#""lora":[{},{},{},{},{}]"#, (400, "")),
        ("demo", r#""lora":{"id":0}"#, (400, "")),
        ("scripted", r#""lora":[{"id":0}]"#, (400, "")),
    ] {
        let (status, code) = gateway.chat(model, "x", more).send().await.refusal().await;
        assert_eq!(status, expected.0, "{model} {more}");
        if !expected.1.is_empty() {
            assert_eq!(code, expected.1, "{model} {more}");
        }
    }
    let reply = gateway.chat("demo:other", "x", "").send().await;
    let message = reply.json().await["error"]["message"].to_string();
    assert!(message.contains("there is tuned"), "{message}");
}

#[tokio::test]
async fn an_operator_adds_and_removes_adapters_while_streams_run() {
    let (first, second) = (Lora::new(1), Lora::new(2));
    let foreign = Lora::for_architecture("qwen2", 1);
    let gateway = gateway().demo(SETTINGS).start().await;
    let base = text(&gateway, "demo", "").await;
    let adapters = "/ops/v1/models/demo/adapters";
    let add = |name: &str, lora: &Lora| {
        let body = json!({"name": name, "path": lora.path()});
        gateway.ops("POST", adapters, &body.to_string())
    };
    let added = add("tuned", &first).send().await;
    assert_eq!(added.status, 201);
    let added = added.json().await;
    assert_eq!((&added["id"], &added["rank"]), (&json!(0), &json!(2)));
    assert_eq!(added["blake3"].as_str().unwrap().len(), 64);
    let tuned = text(&gateway, "demo:tuned", "").await;
    assert_ne!(tuned, base);
    assert_eq!(
        add("tuned", &second).send().await.refusal().await,
        (400, "adapter_exists".into())
    );
    assert_eq!(
        add("bad", &foreign).send().await.refusal().await,
        (400, "adapter_unusable".into())
    );
    for body in [
        "",
        "[]",
        "{}",
        r#"{"name":"a b","path":"x"}"#,
        r#"{"name":"a","path":"x","scale":1000}"#,
    ] {
        assert_eq!(
            gateway.ops("POST", adapters, body).send().await.status,
            400,
            "{body}"
        );
    }
    let foreign_page = add("evil", &second).header("sec-fetch-site", "cross-site");
    assert_eq!(foreign_page.send().await.status, 403);

    // A stream that has begun keeps what it began with.
    let ask = r#""stream":true,"temperature":0,"max_tokens":300,"ignore_eos":true"#;
    let alone = gateway.chat("demo:tuned", "Hello!", ask).send().await;
    let alone = alone.answer().await.text();
    let begun = gateway.chat("demo:tuned", "Hello!", ask).send().await;
    let removed = gateway.ops("DELETE", &format!("{adapters}/tuned"), "");
    assert_eq!(removed.send().await.status, 204);
    let gone = gateway.chat("demo:tuned", "x", "").send().await;
    assert_eq!(gone.refusal().await, (404, "model_not_found".to_owned()));
    assert_eq!(add("tuned", &second).send().await.status, 201);
    assert_eq!(begun.answer().await.text(), alone);
    assert_ne!(text(&gateway, "demo:tuned", "").await, tuned);
    assert_eq!(text(&gateway, "demo", "").await, base);

    let list = gateway.ops_get(adapters).send().await.json().await;
    assert_eq!(list["model"], "demo");
    assert_eq!(list["adapters"][0]["id"], 1);
    assert_eq!(list["adapters"].as_array().unwrap().len(), 1);
    let unknown = gateway.ops("DELETE", &format!("{adapters}/other"), "");
    assert_eq!(
        unknown.send().await.refusal().await,
        (404, "adapter_not_found".into())
    );
    let elsewhere = gateway.ops_get("/ops/v1/models/none/adapters").send().await;
    assert_eq!(elsewhere.refusal().await, (404, "model_not_found".into()));
    // Not on the public port.
    assert_eq!(gateway.get(adapters).send().await.status, 404);
}

#[tokio::test]
async fn requests_with_and_without_adapters_run_side_by_side() {
    let lora = Lora::new(3);
    let setup = gateway().demo(&configured("tuned", &lora, ""));
    let gateway = setup.start().await;
    let alone = [
        text(&gateway, "demo", "").await,
        text(&gateway, "demo:tuned", "").await,
    ];
    let together = tokio::join!(
        text(&gateway, "demo", ""),
        text(&gateway, "demo:tuned", ""),
        text(&gateway, "demo", ""),
        text(&gateway, "demo:tuned", ""),
    );
    assert_eq!([together.0, together.1], alone);
    assert_eq!([together.2, together.3], alone);
}
