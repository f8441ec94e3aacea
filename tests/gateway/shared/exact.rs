//! While the server answers: all nodes together admit what one would.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use sluicegate::limit::Bound;
use sluicegate::limit::quota::Period;

use super::{Node, once, until};
use crate::support::Redis;

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_take_all_of_one_limit_and_no_more() {
    let redis = Redis::start();
    let (a, b) = (Node::patient(&redis), Node::patient(&redis));
    let quota = Bound::Quota {
        period: Period::Month,
        most: 1000,
    };
    for (name, bound) in [("rate", once(1000)), ("quota", quota)] {
        let (on_a, on_b) = (a.cell(name, bound), b.cell(name, bound));
        let (by_a, by_b) = tokio::join!(on_a.drain(1), on_b.drain(1));
        // One a minute comes back.
        assert!(
            (1000..=1001).contains(&(by_a + by_b)),
            "{name}: {by_a} and {by_b}"
        );
        assert!(by_a > 0 && by_b > 0);
        assert_eq!(on_a.left(), 0);
    }
    assert_eq!((a.health().alone, b.health().alone), (0, 0));
    until("counting nodes", || a.health().nodes == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_the_rate_is_kept_to_the_unit() {
    let redis = Redis::start();
    let nodes = [Node::patient(&redis), Node::patient(&redis)];
    let (per_minute, burst) = (60_000, 200);
    let bound = Bound::Rate { per_minute, burst };
    let taken = AtomicU64::new(0);
    let start = Instant::now();
    let work = async |node: &Node| {
        let cell = node.cell("busy", bound);
        while start.elapsed().as_millis() < 1500 {
            match cell.take(1).await {
                Ok(()) => _ = taken.fetch_add(1, Ordering::Relaxed),
                // At once would be a busy loop.
                Err(wait) => tokio::time::sleep(wait).await,
            }
        }
    };
    tokio::join!(work(&nodes[0]), work(&nodes[1]));
    let taken = u128::from(taken.into_inner());
    // What came back in the time that it took, and one for the begun unit.
    let most = 200 + start.elapsed().as_millis() + 1;
    assert!(taken <= most, "{taken} of {most}");
    assert!(taken > 200, "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_slice_goes_back_to_the_others() {
    let redis = Redis::start();
    let (a, b) = (Node::patient(&redis), Node::patient(&redis));
    let bound = Bound::Rate {
        per_minute: 600,
        burst: 1000,
    };
    let (on_a, on_b) = (a.cell("idle", bound), b.cell("idle", bound));
    on_a.take(1).await.unwrap();
    // More than is left while the other holds its slice of ten.
    until("the slice's way back", || {
        redis.keys("test:rate:*").is_empty()
    })
    .await;
    on_b.take(1000).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_gives_everything_back() {
    let redis = Redis::start();
    let (a, b) = (Node::patient(&redis), Node::patient(&redis));
    let on_a = a.cell("leave", once(1000));
    for _ in 0..10 {
        on_a.take(1).await.unwrap();
    }
    drop(on_a);
    a.leave().await;
    assert!((990..=991).contains(&b.cell("leave", once(1000)).drain(1).await));
    until("being alone", || b.health().nodes == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_is_there_for_the_other_node() {
    let redis = Redis::start();
    let (a, b) = (Node::patient(&redis), Node::patient(&redis));
    let bound = once(1000);
    let (on_a, on_b) = (a.cell("refund", bound), b.cell("refund", bound));
    on_a.take(900).await.unwrap();
    assert!(on_b.take(900).await.is_err());
    // A stream that reserved 900 and was charged 100.
    on_a.cell.give(800, a.clock.at());
    until("the refund", || {
        on_b.cell.take(700, b.clock.at()).is_ok() || {
            let refill = on_b.cell.refill(700);
            tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    if let Some(refill) = refill {
                        refill.await;
                    }
                });
            });
            false
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_larger_than_the_limit_is_granted_to_a_full_one() {
    let redis = Redis::start();
    let node = Node::patient(&redis);
    let cell = node.cell("huge", once(10));
    cell.take(25).await.unwrap();
    assert!(cell.take(1).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgets_its_scripts_is_told_again() {
    let redis = Redis::start();
    let node = Node::patient(&redis);
    let cell = node.cell("scripts", once(100));
    let mut taken = 0;
    for _ in 0..5 {
        redis.run(&["SCRIPT", "FLUSH"]);
        for _ in 0..10 {
            cell.take(1).await.unwrap();
            taken += 1;
        }
    }
    assert_eq!(cell.drain(1).await + taken, 100);
    assert_eq!(node.health().failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_forgets_everything_is_told_of_quotas() {
    let redis = Redis::start();
    let node = Node::patient(&redis);
    let quota = Bound::Quota {
        period: Period::Day,
        most: 1000,
    };
    let cell = node.cell("flush", quota);
    for _ in 0..400 {
        cell.take(1).await.unwrap();
    }
    redis.run(&["FLUSHALL"]);
    let after = cell.drain(1).await;
    assert!((599..=600).contains(&after), "{after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_values_under_our_keys_cost_no_request() {
    let redis = Redis::start();
    let node = Node::patient(&redis);
    let cell = node.cell("types", once(100));
    cell.take(1).await.unwrap();
    for key in redis.keys("test:*") {
        redis.run(&["DEL", &key]);
        redis.run(&["LPUSH", &key, "x"]);
    }
    for _ in 0..90 {
        cell.take(1).await.unwrap();
    }
    assert_eq!(node.health().failures, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_of_a_caller_is_seen_at_the_server() {
    let redis = Redis::start();
    let node = Node::patient(&redis);
    node.cell("key:alice@example.org", once(100))
        .take(1)
        .await
        .unwrap();
    let keys = redis.keys("*");
    assert!(
        keys.iter().any(|key| key.starts_with("test:rate:")),
        "{keys:?}"
    );
    assert!(!keys.iter().any(|key| key.contains("alice")), "{keys:?}");
}
