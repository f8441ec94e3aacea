//! TLS: what is offered, whose certificate is shown and swapped, and who is turned away.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    Answer, Certified, Metrics, TestGateway, chat_body, connect, gateway, read_certificate,
    replace, trusting, within,
};

const STREAMED: &str = "scripted?text=abcdefgh&token_bytes=8&tokens=40";

fn ask(body: String) -> hyper::Request<Full<Bytes>> {
    hyper::Request::post("https://localhost/v1/chat/completions")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap()
}

/// Sends a chat over whichever protocol was agreed on, and reads the whole answer.
async fn chat(stream: TlsStream<TcpStream>) -> String {
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let request = ask(chat_body(STREAMED, "x", r#""stream":true"#));
    let io = TokioIo::new(stream);
    let body = if is_http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await.unwrap();
        within(response.into_body().collect()).await.unwrap()
    } else {
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let response = sender.send_request(request).await.unwrap();
        within(response.into_body().collect()).await.unwrap()
    };
    let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    Answer::of_text(&text).text()
}

async fn on_files(certified: &Certified) -> TestGateway {
    gateway()
        .scripted()
        .with(&certified.section())
        .start()
        .await
}

#[tokio::test]
async fn http_1_and_2_are_agreed_on_and_stream_the_same_text() {
    let certified = Certified::new();
    let gateway = on_files(&certified).await;
    let expected = gateway
        .chat(STREAMED, "x", r#""stream":true"#)
        .send()
        .await
        .answer()
        .await
        .text();
    assert_eq!(expected.len(), 40 * 8);
    for (protocols, agreed) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        // A client that knows nothing of ALPN speaks HTTP/1.1.
        (&[], None),
    ] {
        let client = certified.client();
        let stream = connect(gateway.secure(), client, protocols).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        assert_eq!(chat(stream).await, expected);
    }
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("tls_handshakes_total", &["result=\"done\""]), 3);
}

#[tokio::test]
async fn a_protocol_that_is_not_offered_is_refused() {
    let certified = Certified::new();
    let gateway = on_files(&certified).await;
    let client = certified.client();
    assert!(
        connect(gateway.secure(), client, &["spdy/3"])
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_self_signed_certificate_is_kept_and_good_for_loopback() {
    let state = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let gateway = gateway().scripted().self_signed(state.path()).start().await;
        let kept = read_certificate(&state.path().join("dev-cert.pem"));
        let client = trusting(kept.clone()).with_no_client_auth();
        let stream = connect(gateway.secure(), client, &["h2"]).await.unwrap();
        assert_eq!(stream.get_ref().1.peer_certificates().unwrap(), [kept]);
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_while_old_connections_go_on_and_a_bad_one_is_refused() {
    let certified = Certified::new();
    let gateway = on_files(&certified).await;
    let old = certified.certificate();
    let client = |certificate| trusting(certificate).with_no_client_auth();
    let before = connect(gateway.secure(), client(old.clone()), &["h2"])
        .await
        .unwrap();

    // The key alone does not fit: the old pair stays.
    replace(
        &certified.path("key.pem"),
        &KeyPair::generate().unwrap().serialize_pem(),
    );
    let refused = |m: &Metrics| m.sum("tls_certificate_reloads_total", &["result=\"refused\""]) > 0;
    gateway.until("it is refused", refused).await;
    let still = connect(gateway.secure(), client(old), &["h2"])
        .await
        .unwrap();
    assert_eq!(chat(still).await.len(), 40 * 8);

    let new = certified.renew();
    let taken = |m: &Metrics| m.sum("tls_certificate_reloads_total", &["result=\"taken\""]) > 0;
    gateway.until("the new one is taken", taken).await;
    let after = connect(gateway.secure(), client(new), &["h2"])
        .await
        .unwrap();
    assert_eq!(chat(after).await.len(), 40 * 8);
    assert_eq!(chat(before).await.len(), 40 * 8);
}

#[tokio::test]
async fn what_is_no_tls_or_never_ends_its_handshake_is_turned_away() {
    let certified = Certified::new();
    let gateway = gateway()
        .scripted()
        .with(&certified.section())
        .with("handshake_timeout = '200ms'\nmax_handshakes = 1")
        .start()
        .await;
    // One that says nothing takes nobody's place, and is sent away when its time is over.
    let silent = TcpStream::connect(gateway.secure()).await.unwrap();
    let mut plain = TcpStream::connect(gateway.secure()).await.unwrap();
    let _ = plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = within(plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let ended = |m: &Metrics| {
        m.sum("tls_handshakes_total", &["result=\"done\""]) == 0
            && m.sum("tls_handshakes_total", &[]) == 2
    };
    gateway.until("both are counted", ended).await;
    drop(silent);
    let client = certified.client();
    let stream = connect(gateway.secure(), client, &["h2"]).await.unwrap();
    assert_eq!(chat(stream).await.len(), 40 * 8);
}

/// An authority for clients, with its certificate as `ca.pem`.
fn authority(certified: &Certified) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(certified.path("ca.pem"), issuer.pem()).unwrap();
    issuer
}

#[tokio::test]
async fn a_clients_certificate_is_asked_for_and_judged() {
    let certified = Certified::new();
    let issuer = authority(&certified);
    let more = format!(
        "client_ca = '{}'\nclient_auth = 'required'",
        certified.path("ca.pem").display()
    );
    let gateway = gateway()
        .scripted()
        .with(&certified.section())
        .with(&more)
        .start()
        .await;
    let server = || trusting(certified.certificate());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "chat");
    let private = || PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let signed = params.signed_by(&key, &issuer).unwrap();
    let good = server()
        .with_client_auth_cert(vec![signed.der().clone()], private())
        .unwrap();
    let stream = connect(gateway.secure(), good, &["h2"]).await.unwrap();
    assert_eq!(chat(stream).await.len(), 40 * 8);

    // The client's side of a handshake ends before the server has judged: the first read fails.
    let own = params.self_signed(&key).unwrap();
    let foreign = server()
        .with_client_auth_cert(vec![own.der().clone()], private())
        .unwrap();
    for bad in [foreign, server().with_no_client_auth()] {
        if let Ok(mut stream) = connect(gateway.secure(), bad, &["http/1.1"]).await {
            assert!(within(stream.read_u8()).await.is_err());
        }
    }
    let failed = |m: &Metrics| m.sum("tls_handshakes_total", &["result=\"failed\""]) == 2;
    gateway.until("they are counted", failed).await;
}

#[tokio::test]
async fn the_plain_port_does_not_speak_tls() {
    let gateway = gateway().scripted().start().await;
    let mut raw = gateway.connect().await;
    assert!(raw.send(b"\x16\x03\x01\x00\x05hello\r\n\r\n").await);
    let answer = raw.read_to_end().await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"));
}
