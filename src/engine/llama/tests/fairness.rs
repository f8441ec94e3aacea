//! Tenants in the line of a real engine: who comes in, who goes, who is next.

use super::*;
use crate::generation::Caller;

fn of(identity: &str) -> Request {
    Request {
        caller: Caller {
            identity: Some(identity.into()),
            ..Caller::default()
        },
        max_tokens: Some(4),
        ..once()
    }
}

fn at(address: &str) -> Payer {
    let mut request = once();
    request.caller.address = Some(address.parse().unwrap());
    payer(&request)
}

#[test]
fn keys_are_tenants_whoever_owns_them_and_the_unknown_are_told_apart_by_network() {
    let mut one = of("key:one");
    one.caller.organization = Some("owner".into());
    one.weight = 3;
    let mut two = of("key:two");
    two.caller.organization = Some("owner".into());
    assert_ne!(payer(&one).tenant, payer(&two).tenant);
    assert_eq!(payer(&one).weight, 3);
    one.caller.address = Some("192.0.2.1".parse().unwrap());
    assert_eq!(payer(&one).tenant, payer(&of("key:one")).tenant);
    assert_ne!(at("192.0.2.1").tenant, at("192.0.2.2").tenant);
    assert_eq!(at("192.0.2.1").tenant, at("::ffff:192.0.2.1").tenant);
    assert_eq!(at("2001:db8::1").tenant, at("2001:db8::2").tenant);
    assert_ne!(at("2001:db8::1").tenant, at("2001:db8:0:1::1").tenant);
}

#[tokio::test]
async fn a_flood_that_fills_the_line_neither_shuts_others_out_nor_goes_before_them() {
    let engine = engine(|settings| {
        settings.parallel = 1;
        settings.waiting = 4;
        settings.park_memory = bytesize::ByteSize(0);
    });
    let mut endless = of("flood");
    endless.max_tokens = None;
    let running = engine.start(&endless).await.unwrap();
    until(|| engine.gauges().load.paused == 1).await;
    let mut flood = Vec::new();
    for _ in 0..4 {
        flood.push(engine.start(&of("flood")).await.unwrap());
    }
    let refused = refusal(&engine, &of("flood")).await;
    assert_eq!(refused.code, Some("queue_full"));

    let mut endless = of("other");
    endless.max_tokens = None;
    let mut other = engine.start(&endless).await.unwrap();
    let mut newest = flood.pop().unwrap();
    let gone = end_of(newest.sources.remove(0)).await.unwrap_err();
    assert_eq!(
        (gone.kind, gone.code),
        (Kind::Overloaded, Some("queue_full"))
    );
    assert!(gone.retry_after.is_some());
    assert_eq!(engine.gauges().load.waiting, 4);

    // Who runs leaves; then the other is next, and keeps the one sequence for as long as it likes.
    drop(running);
    let mut text = Burst::new();
    std::future::poll_fn(|cx| other.sources[0].poll_fill(cx, &mut text)).await;
    let mut nothing = Burst::new();
    let mut noop = std::task::Context::from_waker(std::task::Waker::noop());
    for behind in &mut flood {
        assert!(
            behind.sources[0]
                .poll_fill(&mut noop, &mut nothing)
                .is_pending()
        );
    }
    drop(other);
    for mut behind in flood {
        end_of(behind.sources.remove(0)).await.unwrap();
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_deadline_that_the_line_cannot_meet_is_refused_at_once_with_the_time_to_wait() {
    let engine = engine(|settings| {
        settings.parallel = 1;
        settings.waiting = 8;
        settings.park_memory = bytesize::ByteSize(0);
    });
    let mut endless = of("slow");
    endless.max_tokens = None;
    let _running = engine.start(&endless).await.unwrap();
    until(|| engine.gauges().load.paused == 1).await;
    // As measured with requests of a minute each.
    engine.counters.each_us.store(60_000_000, Relaxed);
    let mut hasty = of("hasty");
    hasty.deadlines.queue = Some(Duration::from_secs(90));
    let mut held = vec![engine.start(&hasty).await.expect("the first one tries")];
    held.push(
        engine
            .start(&of("patient"))
            .await
            .expect("it named no deadline"),
    );
    for tenant in ["hasty", "another"] {
        hasty.caller.identity = Some(tenant.into());
        let failure = refusal(&engine, &hasty).await;
        assert_eq!(failure.kind, Kind::Overloaded);
        assert_eq!(failure.code, Some("deadline_unmeetable"));
        // Hasty's own and one of patient's are ahead of its next, and patient's as well as hasty's of
        // another's: three minutes each, and a quarter to spare.
        assert_eq!(failure.retry_after, Some(Duration::from_secs(225 - 90)));
    }
    assert_eq!(
        engine.gauges().load.waiting,
        2,
        "who is refused leaves nothing behind"
    );
    engine.stop().await;
}

#[tokio::test]
async fn who_waited_too_long_is_told_to_come_back_when_the_line_is_expected_to_have_moved() {
    let engine = engine(|settings| {
        settings.parallel = 1;
        settings.park_memory = bytesize::ByteSize(0);
    });
    let mut endless = of("slow");
    endless.max_tokens = None;
    let _running = engine.start(&endless).await.unwrap();
    until(|| engine.gauges().load.paused == 1).await;
    // As measured with requests of a minute each.
    engine.counters.each_us.store(60_000_000, Relaxed);
    let mut hasty = of("hasty");
    hasty.deadlines.queue = Some(Duration::from_millis(1));
    let mut hasty = engine.start(&hasty).await.expect("the first one tries");
    let failure = end_of(hasty.sources.remove(0)).await.unwrap_err();
    assert_eq!(failure.code, Some("queue_timeout"));
    assert_eq!(failure.retry_after, Some(Duration::from_mins(1)));
    engine.stop().await;
}

#[tokio::test]
async fn a_burst_that_finds_the_engine_idle_is_not_refused_for_what_was_measured_before() {
    let engine = engine(|settings| {
        settings.parallel = 4;
        settings.waiting = 8;
    });
    // As measured with requests of a minute each.
    engine.counters.each_us.store(60_000_000, Relaxed);
    let mut hasty = of("hasty");
    hasty.deadlines.queue = Some(Duration::from_secs(90));
    let payer = payer(&hasty);
    // Taken faster than the engine looks.
    let held = engine.places.take(payer, 3);
    let (deadlines, choices) = (&hasty.deadlines, 1);
    engine
        .places(payer, deadlines, choices)
        .expect("there is room for all four");
    drop(held);
    engine.stop().await;
}

#[tokio::test]
async fn the_time_between_starts_is_measured_while_somebody_waits() {
    let engine = engine(|settings| {
        settings.parallel = 1;
        settings.waiting = 16;
    });
    let requests: Vec<_> = (0..12).map(|_| of("one")).collect();
    let mut started = Vec::new();
    for request in &requests {
        started.push(engine.start(request).await.unwrap());
    }
    let began = Instant::now();
    for mut one in started {
        end_of(one.sources.remove(0)).await.unwrap();
    }
    let forecast = engine.counters.forecast();
    let each = forecast.each.expect("eleven have waited");
    assert!(each <= began.elapsed(), "{each:?}");
    assert!(forecast.lead > Duration::ZERO);
    engine.stop().await;
}

/// A caller that always has so many requests under way, for a while: how long the requests of its second
/// half waited for their first tokens, and the tokens of those that ended in it.
async fn keep_asking(
    engine: &LlamaEngine,
    name: &str,
    at_once: usize,
    time: Duration,
) -> (Vec<Duration>, u64) {
    let began = Instant::now();
    let one = async |_| {
        let (mut waits, mut tokens) = (Vec::new(), 0);
        while began.elapsed() < time {
            let mut request = of(name);
            request.max_tokens = Some(24);
            let asked = Instant::now();
            let mut source = match engine.start(&request).await {
                Ok(mut started) => started.sources.remove(0),
                Err(failure) => {
                    tokio::time::sleep(failure.retry_after.unwrap_or_default()).await;
                    continue;
                }
            };
            let counts = began.elapsed() > time / 2;
            let mut burst = Burst::new();
            std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst)).await;
            if counts {
                waits.push(asked.elapsed());
            }
            let ended_well = end_of(source).await.is_ok();
            if ended_well && (time / 2..time).contains(&began.elapsed()) {
                tokens += 24;
            }
        }
        (waits, tokens)
    };
    let mut all = (Vec::new(), 0);
    for (waits, tokens) in join_all((0..at_once).map(one)).await {
        all.0.extend(waits);
        all.1 += tokens;
    }
    all.0.sort_unstable();
    all
}

async fn join_all<T, F: Future<Output = T>>(futures: impl Iterator<Item = F>) -> Vec<T> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, done) in &mut futures {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *done = Some(value);
            }
        }
        if futures.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    futures.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
#[ignore = "a measurement"]
#[expect(clippy::print_stdout, reason = "that is what it is for")]
async fn the_cost_of_a_flood_to_others() {
    for flood in [4, 40, 4, 40] {
        let engine = engine(|settings| {
            settings.parallel = 16;
            settings.waiting = 64;
        });
        let names = ["a", "b", "c", "d", "e"];
        let callers = names.map(|name| {
            let at_once = if name == "a" { flood } else { 4 };
            keep_asking(&engine, name, at_once, Duration::from_secs(10))
        });
        let got = join_all(callers.into_iter()).await;
        let mut others: Vec<_> = got[1..].iter().flat_map(|(waits, _)| waits).collect();
        others.sort_unstable();
        let p99 = others[others.len() * 99 / 100];
        let p50 = others[others.len() / 2];
        let tokens: Vec<_> = got.iter().map(|(_, tokens)| tokens).collect();
        println!("{flood} at once: others' first tokens {p50:?}, p99 {p99:?}; tokens {tokens:?}");
        engine.stop().await;
    }
}
