//! The same with whole gateways, over HTTP; and quotas that a restart does not forget.

use crate::support::{Redis, TestGateway, gateway};

const PATIENT: &str = "timeout = '1s'";

async fn limited(limits: &str) -> TestGateway {
    gateway().scripted().with(limits).start().await
}

async fn status(gateway: &TestGateway) -> u16 {
    let reply = gateway.chat("scripted?tokens=2", "x", "").send().await;
    let status = reply.status;
    // To its end, so that what was reserved and not used is given back.
    reply.text().await;
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_admit_together_what_one_would() {
    let redis = Redis::start();
    let limits = format!(
        "[limits.anonymous]\nrequests_per_minute = 1\nrequest_burst = 40\n[limits.redis]\nurl = '{}'\n{PATIENT}",
        redis.url()
    );
    let gateways = [limited(&limits).await, limited(&limits).await];
    let (mut admitted, mut refused) = (0, 0);
    while refused < 6 {
        for gateway in &gateways {
            match status(gateway).await {
                200 => (admitted, refused) = (admitted + 1, 0),
                429 => refused += 1,
                other => panic!("{other}"),
            }
        }
    }
    // One comes back in a minute.
    assert!((40..=41).contains(&admitted), "{admitted}");
    for gateway in &gateways {
        let both = |metrics: &crate::support::Metrics| metrics.sum("limit_nodes", &[]) == 2;
        let metrics = gateway.until("two nodes", both).await;
        assert_eq!(metrics.sum("limit_redis_up", &[]), 1);
        assert_eq!(metrics.sum("limit_alone_total", &[]), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_server_is_killed_frozen_or_empty() {
    let mut redis = Redis::start();
    let limits = format!(
        "[limits.anonymous]\nrequests_per_minute = 1000000\ntokens_per_minute = 100000000\ntokens_per_day = 1000000000\n\
         [limits.redis]\nurl = '{}'\nnodes = 2",
        redis.url()
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("quotas.json");
    let limits = format!("[limits]\nquota_file = '{}'\n{limits}", file.display());
    let gateway = limited(&limits).await;
    let serve_until_up = async |up: u64, change: &str| {
        loop {
            for _ in 0..5 {
                assert_eq!(status(&gateway).await, 200, "{change}");
            }
            if gateway.metrics().await.sum("limit_redis_up", &[]) == up {
                return;
            }
        }
    };
    serve_until_up(1, "at first").await;
    redis.freeze();
    serve_until_up(0, "frozen").await;
    redis.thaw();
    serve_until_up(1, "thawed").await;
    redis.kill();
    serve_until_up(0, "killed").await;
    redis.restart();
    serve_until_up(1, "started again").await;
    let metrics = gateway.metrics().await;
    assert!(metrics.sum("limit_redis_failures_total", &[]) >= 6);
}

#[tokio::test]
async fn a_quota_is_not_new_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let limits = format!(
        "[limits]\nquota_file = '{}'\n[limits.anonymous]\nrequests_per_month = 3\ntokens_per_month = 1000",
        folder.path().join("quotas.json").display()
    );
    let mut first = limited(&limits).await;
    let mut used = 0;
    for _ in 0..2 {
        let reply = first.chat("scripted?tokens=5", "x", "").send().await;
        used += reply.json().await["usage"]["total_tokens"]
            .as_u64()
            .unwrap();
    }
    first.drain().await.unwrap();
    let text = std::fs::read_to_string(folder.path().join("quotas.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    let month = &kept["entries"][0]["used"][0];
    assert_eq!(
        (&month["requests"], &month["tokens"]),
        (&2.into(), &used.into())
    );
    let second = limited(&limits).await;
    assert_eq!(status(&second).await, 200);
    assert_eq!(status(&second).await, 429);
}

#[tokio::test]
async fn a_quota_file_that_cannot_be_written_stops_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("quotas.json");
    std::fs::create_dir(&file).unwrap();
    let limits = format!(
        "[limits]\nquota_file = '{}'\n[limits.anonymous]\nrequests_per_day = 2",
        file.display()
    );
    let gateway = limited(&limits).await;
    assert_eq!(status(&gateway).await, 200);
    assert_eq!(status(&gateway).await, 200);
    assert_eq!(status(&gateway).await, 429);
    let failed = |metrics: &crate::support::Metrics| {
        metrics.sum("limit_quota_write_failures_total", &[]) >= 2
    };
    gateway.until("the failure", failed).await;
}
