//! Before and between the protocols: what a handshake must not be made to do.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::peer::{END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame, get};
use crate::support::{Certified, Metrics, connect, gateway, within};

#[tokio::test]
async fn a_protocol_that_was_not_agreed_on_is_not_spoken() {
    let certified = Certified::new();
    let gateway = gateway()
        .scripted()
        .with(&certified.section())
        .start()
        .await;
    let http2 = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &[]),
        &frame(HEADERS, END_STREAM | END_HEADERS, 1, &get("/healthz")),
    ]
    .concat();
    let http1 = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    let none: &[&str] = &[];
    for (agreed, spoken) in [(none, &http2), (&["http/1.1"], &http2), (&["h2"], &http1)] {
        let mut stream = connect(gateway.secure(), certified.client(), agreed)
            .await
            .unwrap();
        stream.write_all(spoken).await.unwrap();
        let mut answer = Vec::new();
        let _ = within(stream.read_to_end(&mut answer)).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.contains("ok\n"), "{agreed:?}: {text}");
    }
}

#[tokio::test]
async fn a_client_hello_without_end_is_cut_off() {
    let certified = Certified::new();
    let gateway = gateway()
        .scripted()
        .with(&certified.section())
        .start()
        .await;
    let mut stream = TcpStream::connect(gateway.secure()).await.unwrap();
    // A handshake message of sixteen megabytes, in records of sixteen kilobytes.
    let mut record = vec![0x16, 3, 1, 0x40, 0];
    record.extend([1, 0xff, 0xff, 0xff]);
    record.resize(5 + 0x4000, 3);
    let mut sent = 0;
    while within(stream.write_all(&record)).await.is_ok() {
        record.truncate(5);
        record.resize(5 + 0x4000, 3);
        sent += 1;
        assert!(sent < 1024, "all of it is taken");
    }
    let failed = |m: &Metrics| m.sum("tls_handshakes_total", &["result=\"failed\""]) == 1;
    gateway.until("it is counted", failed).await;
    let stream = connect(gateway.secure(), certified.client(), &["h2"]).await;
    assert!(stream.is_ok(), "others are served");
}
