//! Where the time goes, over HTTP.

use crate::support::{Reply, TestGateway, gateway, within};

/// Tokens as fast as they can be sent: something uses CPU time.
const ENDLESS: &str = "scripted?tokens=100000000";

/// Other tests of this process may have its one timer.
async fn profile(gateway: &TestGateway, query: &str) -> Reply {
    within(async {
        loop {
            let path = format!("/debug/pprof/profile{query}");
            let reply = gateway.ops_get(&path).send().await;
            if reply.status != 409 {
                return reply;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_profile_of_the_seconds_to_come_is_drawn_folded_or_for_pprof() {
    let gateway = gateway().scripted().start().await;
    let mut busy = gateway.chat(ENDLESS, "x", r#""stream":true"#).send().await;
    let reading = tokio::spawn(async move { while busy.next().await.is_some() {} });
    let folded = profile(&gateway, "?seconds=1&frequency=250&format=folded").await;
    assert_eq!(folded.status, 200);
    let folded = folded.text().await;
    assert!(folded.contains("sluicegate"), "{folded}");
    let svg = profile(&gateway, "?seconds=1&format=svg").await;
    assert_eq!(svg.header("content-type"), "image/svg+xml");
    assert!(svg.text().await.contains("<svg"));
    let proto = profile(&gateway, "?seconds=1").await;
    assert_eq!(proto.header("content-type"), "application/octet-stream");
    assert!(!proto.bytes().await.is_empty());
    reading.abort();
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let gateway = gateway().scripted().start().await;
    for wrong in [
        "profile?seconds=0",
        "profile?seconds=61",
        "profile?frequency=2000",
        "profile?format=png",
        "profile?second=1",
        "recent?seconds=1",
    ] {
        let path = format!("/debug/pprof/{wrong}");
        assert_eq!(gateway.ops_get(&path).send().await.status, 400, "{wrong}");
    }
    let recent = gateway.ops_get("/debug/pprof/recent").send().await;
    assert_eq!(recent.status, 404, "it is not enabled");
    for path in ["profile?seconds=1", "recent"] {
        let ask = gateway.ops_get(&format!("/debug/pprof/{path}"));
        let foreign = ask.header("sec-fetch-site", "cross-site").send().await;
        assert_eq!(foreign.status, 403, "{path}");
    }
}

#[tokio::test]
async fn a_profile_ends_when_its_reader_leaves() {
    let gateway = gateway().scripted().start().await;
    let ask = |query: &str| {
        let path = format!("/debug/pprof/profile{query}");
        gateway.ops_get(&path).send()
    };
    // Longer than anybody here waits.
    let taken = loop {
        let first = tokio::spawn(ask("?seconds=60"));
        // Most likely it has come by then; if not, once more.
        gateway.metrics().await;
        let second = within(ask("?seconds=1")).await.status;
        if second == 409 && !first.is_finished() {
            break first;
        }
    };
    taken.abort();
    assert!(taken.await.is_err(), "it had not ended");
    assert_eq!(profile(&gateway, "?seconds=1").await.status, 200);
}
