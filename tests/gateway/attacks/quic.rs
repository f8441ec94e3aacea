//! QUIC: what a stranger can make us send, and streams that are only opened to be reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{Metrics, Served, chat_body, gateway, sluice_head as head, within};

#[tokio::test]
async fn no_more_than_three_times_what_came_goes_to_an_address_that_is_not_proved() {
    let setup = gateway().scripted().with("[tls]\nhandshake_timeout = '1s'");
    let served = Served::by(setup).await;
    // What a client sends reaches the gateway; nothing that the gateway answers reaches the client, as if
    // the address were another's.
    let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let address = near.local_addr().unwrap();
    let (came, went) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let forth = {
        let (far, came, to) = (far.clone(), came.clone(), served.gateway.secure());
        async move {
            let mut buffer = vec![0; 65_536];
            while let Ok((count, _)) = near.recv_from(&mut buffer).await {
                // Counted first: an answer is never counted before its cause.
                came.fetch_add(count, Relaxed);
                let _ = far.send_to(&buffer[..count], to).await;
            }
        }
    };
    let back = {
        let (came, went) = (came.clone(), went.clone());
        async move {
            let mut buffer = vec![0; 65_536];
            while let Ok(count) = far.recv(&mut buffer).await {
                let sent = went.fetch_add(count, Relaxed) + count;
                let most = 3 * came.load(Relaxed);
                assert!(sent <= most, "{sent} of at most {most} bytes");
            }
        }
    };
    let _forth = AbortOnDropHandle::new(tokio::spawn(forth));
    let back = AbortOnDropHandle::new(tokio::spawn(back));
    let connecting = served.quic().connecting(address);
    let given_up = |m: &Metrics| m.sum("tls_handshakes_total", &["result=\"timed_out\""]) == 1;
    served.gateway.until("it is given up", given_up).await;
    assert!(went.load(Relaxed) > 1200, "it did answer");
    assert!(!back.is_finished(), "and never too much");
    drop(connecting);
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_leave_nothing() {
    let served = Served::by(gateway().scripted()).await;
    let model = "scripted?text=abcd&tokens=50&pace=2ms";
    let calm = served.http3().await;
    let running = calm.chat(model, "").await;
    let body = chat_body("scripted?first=1h", "x", r#""stream":true"#);
    let sluice = served.sluice().await;
    let http = served.http3().await;
    for number in 0..2000 {
        if number % 2 == 0 {
            // Its head only, and no more.
            let bytes = head("POST", "/v1/chat/completions", &[]);
            let (mut send, mut recv) = within(sluice.0.open_bi()).await.unwrap();
            let _ = send.write_all(&bytes).await;
            let _ = send.reset(0_u32.into());
            let _ = recv.stop(0_u32.into());
        } else {
            drop(http.post("/v1/chat/completions", body.clone()).await);
        }
    }
    assert_eq!(running.answer().await.text(), "abcd".repeat(50));
    let free = |m: &Metrics| m.running() == 0;
    served.gateway.until("all of it is gone", free).await;
    assert_eq!(sluice.status_of("/healthz").await, 200);
    assert_eq!(http.get("/healthz").await.head().await.0, 200);
}
