//! While the server is away: nobody waits for it, each node goes on with its share, and says so.

use std::time::{Duration, Instant};

use sluicegate::limit::Bound;
use sluicegate::limit::quota::Period;

use super::{Node, config, nodes, once, until};
use crate::support::{Redis, Slow};

/// Plenty, so that every refusal would be the server's fault.
const PLENTY: Bound = Bound::Rate {
    per_minute: 60_000_000,
    burst: 1_000_000,
};

/// Takes from a limit with plenty until `is_so`; nothing may be refused. How long that took.
async fn take_until(node: &Node, what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let cell = node.cell("plenty", PLENTY);
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < super::PATIENCE, "{what} takes too long");
        for n in [1, 100] {
            let taken = cell.take(n).await;
            assert!(
                taken.is_ok(),
                "refused for {taken:?} while waiting for {what}"
            );
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_fails_no_request_and_is_found_again() {
    let mut redis = Redis::start();
    let node = Node::hasty(&redis.url());
    node.cell("plenty", PLENTY).take(1).await.unwrap();
    redis.kill();
    take_until(&node, "noticing", || !node.health().is_up).await;
    let alone = node.health().alone;
    take_until(&node, "being alone", || node.health().alone > alone + 50).await;
    redis.restart();
    take_until(&node, "coming back", || node.health().is_up).await;
    until("sharing again", || !redis.keys("test:nodes").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_fails_no_request_and_is_found_again() {
    let redis = Redis::start();
    let node = Node::hasty(&redis.url());
    node.cell("plenty", PLENTY).take(1).await.unwrap();
    redis.freeze();
    take_until(&node, "noticing", || !node.health().is_up).await;
    redis.thaw();
    take_until(&node, "coming back", || node.health().is_up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_fails_no_request() {
    let redis = Redis::start();
    for millis in [10, 200] {
        let slow = Slow::start(redis.address(), Duration::from_millis(millis)).await;
        let node = Node::hasty(&slow.url);
        let (start, cell) = (Instant::now(), node.cell("plenty", PLENTY));
        for _ in 0..200 {
            cell.take(1000).await.unwrap();
        }
        // Not one of them waited for an answer; that would have been seconds.
        let took = start.elapsed();
        assert!(millis < 100 || took < Duration::from_secs(10), "{took:?}");
        if millis > 100 {
            until("noticing", || !node.health().is_up).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_each_of_the_nodes_has_its_share() {
    let mut redis = Redis::start();
    redis.kill();
    let quota = Bound::Quota {
        period: Period::Month,
        most: 100,
    };
    let mut config = config(&redis.url(), Duration::from_millis(5));
    config.nodes = nodes(4);
    let node = Node::new(&config);
    until("noticing", || !node.health().is_up).await;
    for (name, bound) in [("rate", once(100)), ("quota", quota)] {
        let cell = node.cell(name, bound);
        assert_eq!(cell.drain(1).await, 25, "{name}");
        // Tokens of a stream that is under way are charged all the same.
        assert!(!cell.cell.charge(5, node.clock.at()), "{name}");
    }
    assert!(node.health().alone > 0 && node.health().failures >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_used_of_a_quota_alone_counts_when_the_server_is_back() {
    let mut redis = Redis::start();
    let (a, b) = (Node::hasty(&redis.url()), Node::hasty(&redis.url()));
    let quota = Bound::Quota {
        period: Period::Month,
        most: 1000,
    };
    until("both", || a.health().nodes == 2 && b.health().nodes == 2).await;
    let (on_a, on_b) = (a.cell("back", quota), b.cell("back", quota));
    redis.kill();
    until("noticing", || !a.health().is_up && !b.health().is_up).await;
    assert_eq!(on_a.drain(1).await, 500);
    assert_eq!(on_b.drain(1).await, 500);
    redis.restart();
    until("coming back", || a.health().is_up && b.health().is_up).await;
    let settled = || {
        let keys = redis.keys("test:20*");
        keys.first().is_some_and(|key| redis.text(key) == "1000")
    };
    until("settling", settled).await;
    assert_eq!(on_a.drain(1).await + on_b.drain(1).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_finds_no_server_when_it_starts_goes_on_all_the_same() {
    let mut redis = Redis::start();
    redis.kill();
    let node = Node::hasty(&redis.url());
    take_until(&node, "noticing", || !node.health().is_up).await;
    redis.restart();
    take_until(&node, "finding it", || node.health().is_up).await;
    node.leave().await;
    // What it settled is remembered for a while, and nothing else.
    let others = |key: &String| !key.starts_with("test:settled:");
    until("the farewell", || !redis.keys("test:*").iter().any(others)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_to_a_frozen_server_is_given_back_once() {
    let redis = Redis::start();
    let (node, other) = (Node::hasty(&redis.url()), Node::patient(&redis));
    let quota = Bound::Quota {
        period: Period::Day,
        most: 10_000,
    };
    let cell = node.cell("a", quota);
    cell.take(9000).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    redis.freeze();
    cell.cell.give(5000, node.clock.at());
    until("noticing", || !node.health().is_up).await;
    redis.thaw();
    until("coming back", || node.health().is_up).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let taken = other.cell("a", quota).drain(100).await;
    assert!(taken <= 60, "{taken}00 of 6000");
}
