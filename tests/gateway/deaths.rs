//! Engines that die: their streams end with an error, the model comes back, and not for ever.

use crate::support::{TestGateway, gateway};

const OTHER: &str = "[[models]]\nname = 'other'\nengine = 'scripted'";

/// Two streams, one of which lets the engine die: both end with an error.
async fn die(gateway: &TestGateway) {
    let stream = r#""stream":true"#;
    let long = gateway.chat("scripted?pace=1h", "x", stream).send().await;
    let dying = gateway.chat("scripted?die_at=3", "x", stream).send().await;
    for reply in [dying, long] {
        let text = reply.text().await;
        assert!(text.contains(r#""type":"server_error""#), "{text}");
    }
}

async fn ready(gateway: &TestGateway) -> (u16, String) {
    let reply = gateway.get("/readyz").send().await;
    (reply.status, reply.text().await)
}

#[tokio::test]
async fn an_engine_that_dies_is_replaced_twice_and_then_its_model_is_quarantined() {
    let gateway = gateway().scripted().with(OTHER).start().await;
    for deaths in 1..=2 {
        die(&gateway).await;
        let model = [r#"model="scripted""#];
        let metrics = gateway
            .until("the model is loaded again", |metrics| {
                metrics.sum("engine_reloads_total", &model) == deaths
            })
            .await;
        assert_eq!(metrics.sum("engine_deaths_total", &model), deaths);
        assert_eq!(ready(&gateway).await.0, 200);
        assert_eq!(gateway.chat("scripted", "x", "").send().await.status, 200);
    }
    die(&gateway).await;
    gateway
        .until("the third death is counted", |metrics| {
            metrics.sum("engine_deaths_total", &[r#"model="scripted""#]) == 3
        })
        .await;
    let refused = gateway.chat("scripted", "x", "").send().await;
    assert_eq!(
        refused.refusal().await,
        (503, "model_quarantined".to_owned())
    );
    let (status, reasons) = ready(&gateway).await;
    assert_eq!(status, 503);
    assert!(
        reasons.contains("scripted: quarantined: its engine stopped 3 times"),
        "{reasons}"
    );
    let list = gateway.get("/v1/models").send().await.json().await;
    assert_eq!(list["data"][1]["id"], "scripted");
    let why = list["data"][1]["unavailable"].as_str().unwrap();
    assert!(why.starts_with("quarantined"), "{why}");
    assert!(list["data"][0].get("unavailable").is_none());
    assert_eq!(gateway.chat("other", "x", "").send().await.status, 200);
}

#[tokio::test]
async fn a_drain_does_not_wait_for_a_model_that_is_to_come_back() {
    let mut gateway = gateway().scripted().with(OTHER).start().await;
    die(&gateway).await;
    crate::support::within(gateway.drain()).await.unwrap();
}
