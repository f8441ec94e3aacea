//! The end of the server: not ready at once, closed after a lag, and no stream cut without a word.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Answer, gateway, within};

#[tokio::test]
async fn a_drain_is_unready_at_once_then_closed_and_lets_streams_finish() {
    let mut gateway = gateway()
        .scripted()
        .with("[drain]\nlag = '1s'\ntimeout = '20s'")
        .start()
        .await;
    let model = "scripted?text=abcd&tokens=60&pace=40ms";
    let mut running = gateway.chat(model, "x", r#""stream":true"#).send().await;
    let mut events = vec![running.next_event().await.expect("it began")];
    let started = Instant::now();
    let drained = gateway.drain();
    tokio::task::yield_now().await;
    for ready in [gateway.get("/readyz"), gateway.ops_get("/readyz")] {
        let reply = ready.send().await;
        assert_eq!((reply.status, &*reply.text().await), (503, "draining\n"));
    }
    // Balancers have not noticed yet, and nobody is turned away.
    let reply = gateway.chat("scripted", "x", "").send().await;
    if started.elapsed() < Duration::from_secs(1) {
        assert_eq!(reply.status, 200);
    }
    let refused = within(async {
        loop {
            let reply = gateway.chat("scripted", "x", "").send().await;
            if reply.status != 200 {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "not before the lag has passed"
    );
    assert_eq!(refused.header("connection"), "close");
    assert_eq!(refused.header("x-should-retry"), "true");
    assert_eq!(refused.header("retry-after"), "5");
    assert_eq!(refused.refusal().await, (503, "server_draining".to_owned()));
    assert_eq!(
        gateway.get("/healthz").send().await.status,
        200,
        "alive until the end"
    );

    events.extend(running.events().await);
    assert_eq!(Answer::of(&events).text(), "abcd".repeat(60));
    within(drained).await.expect("it ends");
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "as soon as the last stream is done"
    );
    assert!(
        tokio::net::TcpStream::connect(gateway.public)
            .await
            .is_err(),
        "nobody listens"
    );
    assert!(
        tokio::net::TcpStream::connect(gateway.ops).await.is_err(),
        "nobody listens"
    );
}

#[tokio::test]
async fn a_stream_that_outlives_the_drain_ends_with_an_error() {
    let setup = gateway().scripted().demo("context = 2048\nparallel = 2");
    let mut gateway = setup
        .with("[drain]\nlag = '50ms'\ntimeout = '300ms'")
        .start()
        .await;
    let scripted = gateway
        .chat("scripted?pace=20ms&tokens=100000", "x", r#""stream":true"#)
        .send()
        .await;
    let silent = gateway
        .chat("scripted?pace=1h", "x", r#""stream":true"#)
        .send()
        .await;
    let whole = tokio::spawn(gateway.chat("scripted?first=1h", "x", "").send());
    let endless = r#""stream":true,"ignore_eos":true"#;
    // Its reader takes nothing until the drain is over.
    let stalled = gateway
        .chat("demo", "x", endless)
        .receive_buffer(4096)
        .send()
        .await;
    gateway
        .until("all are open", |m| m.sum("streams_open", &[]) == 4)
        .await;
    let started = Instant::now();
    let drained = gateway.drain();
    for (name, reply) in [
        ("running", scripted),
        ("silent", silent),
        ("stalled", stalled),
    ] {
        let answer = reply.answer().await;
        assert_eq!(answer.error.as_deref(), Some("server_draining"), "{name}");
    }
    assert_eq!(
        whole.await.unwrap().refusal().await,
        (503, "server_draining".to_owned())
    );
    within(drained).await.expect("it ends");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn an_idle_server_drains_in_its_lag() {
    let mut gateway = gateway()
        .scripted()
        .with("[drain]\nlag = '50ms'")
        .start()
        .await;
    let mut idle = gateway.connect().await;
    idle.send("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    idle.read_until("ok\n").await;
    let started = Instant::now();
    within(gateway.drain()).await.expect("it ends");
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "a kept connection holds nothing up"
    );
    assert_eq!(idle.read_to_end().await, "");
}

#[tokio::test]
async fn a_reader_who_was_cut_off_long_ago_does_not_hold_up_a_drain() {
    let mut gateway = gateway()
        .scripted()
        .with("[stream]\nstall_timeout = '10s'\n[drain]\nlag = '0s'\ntimeout = '20s'")
        .start()
        .await;
    let ask = gateway
        .chat("scripted?tokens=100000000", "x", r#""stream":true"#)
        .header("x-request-timeout", "300ms");
    let _unread = ask.receive_buffer(4096).send().await;
    let cut = gateway
        .until("it is cut off", |m| m.ended("deadline") == 1)
        .await;
    assert_eq!(
        cut.sum("streams_open", &[]),
        0,
        "what has ended is not open"
    );
    let started = Instant::now();
    let drained = gateway.drain();
    within(drained).await.expect("it ends");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "its connection gets a few seconds to take the reason, not all of drain.timeout"
    );
}
