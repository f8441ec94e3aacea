//! Engines that die, on a paused clock.

use super::*;
use crate::engine::config::{Model, Process};

fn registry(names: &[&str]) -> (Arc<Registry>, Arc<Metrics>) {
    let plans = names.iter().map(|name| {
        let model: Model =
            toml::from_str(&format!("name = '{name}'\nengine = 'scripted'")).unwrap();
        Plan::configured(&model, &Process::default(), 8)
    });
    let registry = Registry::new(plans.collect());
    let metrics = Arc::new(Metrics::new(registry.names()).unwrap());
    (registry, metrics)
}

/// Lets the model's engine die, as a request does.
async fn kill(registry: &Registry, name: &str) {
    let engine = registry.engine(name).expect("it is ready");
    let request = Request {
        model: format!("{name}?die_at=0"),
        ..one_token()
    };
    let mut started = engine.start(&request).await.unwrap();
    let mut burst = Burst::new();
    std::future::poll_fn(|cx| started.sources[0].poll_fill(cx, &mut burst)).await;
    assert!(!engine.is_alive());
}

fn code(registry: &Registry, name: &str) -> Option<&'static str> {
    registry.engine(name).err().and_then(|failure| failure.code)
}

/// Waits until the model can be used again.
async fn back(registry: &Registry, name: &str) {
    while registry.engine(name).is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_engine_is_replaced_and_the_third_death_in_a_minute_quarantines_the_model() {
    let (registry, metrics) = registry(&["a", "b"]);
    registry.load(&metrics).await.unwrap();
    let keeper = tokio::spawn({
        let (registry, metrics) = (registry.clone(), metrics.clone());
        async move { registry.keep(&metrics).await }
    });
    for _ in 0..2 {
        kill(&registry, "a").await;
        assert_eq!(code(&registry, "a"), Some("model_restarting"));
        assert_eq!(registry.not_ready().len(), 1);
        assert_eq!(code(&registry, "b"), None);
        back(&registry, "a").await;
    }
    kill(&registry, "a").await;
    while code(&registry, "a") != Some("model_quarantined") {
        assert_eq!(code(&registry, "a"), Some("model_restarting"));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_hours(1)).await;
    assert_eq!(code(&registry, "a"), Some("model_quarantined"));
    let (name, reason) = registry.not_ready().remove(0);
    assert_eq!(name, "a");
    assert!(
        reason.starts_with("quarantined: ") && reason.contains('3'),
        "{reason}"
    );
    let listed = registry.cards();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0].1.as_ref(), Some(&reason));
    assert_eq!(listed[1].1, None);
    // The other one lives on, and has its own count.
    kill(&registry, "b").await;
    back(&registry, "b").await;
    keeper.abort();
    registry.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deaths_far_apart_are_forgiven() {
    let (registry, metrics) = registry(&["a"]);
    registry.load(&metrics).await.unwrap();
    let keeper = tokio::spawn({
        let registry = registry.clone();
        async move { registry.keep(&metrics).await }
    });
    for _ in 0..5 {
        kill(&registry, "a").await;
        back(&registry, "a").await;
        tokio::time::sleep(Duration::from_secs(40)).await;
    }
    keeper.abort();
}

#[tokio::test(start_paused = true)]
async fn a_death_that_no_request_meets_is_noticed_too() {
    let (registry, metrics) = registry(&["a"]);
    registry.load(&metrics).await.unwrap();
    let keeper = tokio::spawn({
        let registry = registry.clone();
        async move { registry.keep(&metrics).await }
    });
    kill(&registry, "a").await;
    tokio::time::sleep(LOOK * 2 + Duration::from_secs(1)).await;
    assert_eq!(code(&registry, "a"), None);
    keeper.abort();
}
