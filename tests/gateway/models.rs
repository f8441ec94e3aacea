//! Several models at once, each by its name.

use serde_json::json;

use crate::support::{demo_file, gateway};

#[tokio::test]
async fn each_request_gets_the_model_that_it_names() {
    let setup = gateway().scripted().demo("context = 512\nparallel = 2");
    let gateway = setup.start().await;
    let list = gateway.get("/v1/models").send().await.json().await;
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["id"].clone())
        .collect();
    assert_eq!(ids, ["scripted", "demo"]);
    let one = gateway.get("/v1/models/demo").send().await.json().await;
    assert_eq!(
        (&one["id"], &one["object"]),
        (&json!("demo"), &json!("model"))
    );

    for (name, served, said) in [
        ("demo", "demo", "Sluicegate"),
        ("scripted", "scripted", "gate opens"),
        ("", "scripted", "gate opens"),
    ] {
        let whole = gateway
            .chat(name, "Hello!", r#""seed":1"#)
            .send()
            .await
            .json()
            .await;
        assert_eq!(whole["model"], served);
        let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(text.contains(said), "{name:?}: {text}");
    }
    let metrics = gateway.metrics().await;
    for (name, count) in [("demo", 1), ("scripted", 2)] {
        let labels = [format!("model=\"{name}\""), "outcome=\"ok\"".to_owned()];
        let labels = labels.each_ref().map(String::as_str);
        assert_eq!(metrics.sum("requests_total", &labels), count, "{name}");
    }
}

#[tokio::test]
async fn two_models_decode_at_the_same_time() {
    let settings = "context = 512\nparallel = 2";
    let gateway = gateway()
        .demo(settings)
        .model("twin", demo_file(), settings)
        .start()
        .await;
    let more = r#""stream":true,"seed":2,"max_tokens":60,"ignore_eos":true"#;
    let (a, b) = tokio::join!(
        gateway.chat("demo", "Tell me a story.", more).send(),
        gateway.chat("twin", "Tell me a story.", more).send(),
    );
    assert_eq!(a.answer().await.text(), b.answer().await.text());
}

#[tokio::test]
async fn only_a_scripted_model_takes_settings_in_its_name() {
    let setup = gateway().scripted().demo("context = 512\nparallel = 2");
    let gateway = setup.start().await;
    for name in ["demo?tokens=3", "scripted2", "scripted ?tokens=3"] {
        let refusal = gateway.chat(name, "x", "").send().await.refusal().await;
        assert_eq!(refusal, (404, "model_not_found".to_owned()), "{name}");
    }
    let wrong = gateway.chat("scripted?speed=9", "x", "").send().await;
    assert_eq!(wrong.refusal().await.0, 400);
}

#[tokio::test]
async fn before_its_models_are_loaded_the_server_says_so() {
    let mut setup = gateway().scripted();
    // They load one after the other: the last is not ready for a good while.
    for name in ["a", "b", "c", "d", "e", "last"] {
        setup = setup.model(name, demo_file(), "context = 512\nparallel = 2");
    }
    let gateway = setup.start_loading();
    let ready = gateway.get("/readyz").send().await;
    assert_eq!(ready.status, 503);
    let reasons = ready.text().await;
    assert!(reasons.contains("model last: loading"), "{reasons}");
    let refused = gateway.chat("last", "x", "").send().await;
    assert_eq!(refused.header("x-should-retry"), "true");
    assert_eq!(refused.refusal().await, (503, "model_loading".to_owned()));
    assert_eq!(gateway.get("/healthz").send().await.status, 200);
    gateway.loaded().await.unwrap();
    assert_eq!(gateway.get("/readyz").send().await.status, 200);
    assert_eq!(gateway.chat("last", "x", "").send().await.status, 200);
}
