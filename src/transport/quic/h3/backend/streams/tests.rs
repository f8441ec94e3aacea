//! The backend over a real connection: what quinn is told, and what a read hands on.

use std::future::poll_fn;
use std::time::Duration;

use h3::quic::{Connection as _, OpenStreams, RecvStream as _, SendStream as _};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig};
use rustls::pki_types::PrivateKeyDer;

use super::super::{Connection, Control, Slot};
use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

async fn within<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.expect("it takes no time")
}

/// Two ends of a connection, and the endpoints that carry them.
async fn pair() -> (quinn::Connection, quinn::Connection, [Endpoint; 2]) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server).unwrap()));
    let client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client).unwrap()));
    let any = "127.0.0.1:0".parse().unwrap();
    let ours = Endpoint::server(server, any).unwrap();
    let theirs = Endpoint::client(any).unwrap();
    let to = ours.local_addr().unwrap();
    let connecting = theirs.connect_with(client, to, "localhost").unwrap();
    let accepting = async { ours.accept().await.unwrap().await };
    let (near, far) = within(async { tokio::join!(accepting, connecting) }).await;
    (near.unwrap(), far.unwrap(), [ours, theirs])
}

/// The next stream that the peer opens, with what its request's task would find.
async fn accept(backend: &mut Connection, slot: &Slot) -> (Both<Bytes>, Control) {
    let both = within(poll_fn(|cx| backend.poll_accept_bidi(cx))).await;
    let control = slot.lock().unwrap().take();
    (both.unwrap(), control.expect("it is left with the stream"))
}

async fn write(writer: &mut Writer<Bytes>, length: usize) {
    writer.pending = vec![0; length].into();
    within(poll_fn(|cx| writer.poll_ready(cx))).await.unwrap();
}

#[tokio::test]
async fn quinn_is_told_how_urgent_an_answer_is_and_when_it_has_begun() {
    let (near, far, _endpoints) = pair().await;
    let (mut backend, slot) = Connection::new(near, 100);
    for urgency in [0, 3, 7] {
        let (mut send, _recv) = far.open_bi().await.unwrap();
        send.write_all(b"\x01\x01x").await.unwrap();
        let (mut both, control) = accept(&mut backend, &slot).await;
        assert!(!control.early);
        control.shared.prioritize(urgency);
        write(&mut both.send, 4000).await;
        let first = both.send.stream.priority().unwrap();
        assert_eq!(first, 2 * (7 - i32::from(urgency)) + 1, "it begins");
        write(&mut both.send, 1000).await;
        write(&mut both.send, 1).await;
        let then = both.send.stream.priority().unwrap();
        assert_eq!(then, 2 * (7 - i32::from(urgency)));
    }
    let opened = poll_fn(|cx| OpenStreams::<Bytes>::poll_open_send(&mut backend, cx));
    let mut control: Writer<Bytes> = within(opened).await.unwrap();
    write(&mut control, 1).await;
    assert_eq!(control.stream.priority().unwrap(), i32::MAX);
}

#[tokio::test]
async fn a_stop_is_noticed_though_nothing_is_written_and_an_end_is_no_stop() {
    let (near, far, _endpoints) = pair().await;
    let (mut backend, slot) = Connection::new(near, 100);
    let (mut send, mut recv) = far.open_bi().await.unwrap();
    send.write_all(b"x").await.unwrap();
    let (_both, control) = accept(&mut backend, &slot).await;
    recv.stop(7_u32.into()).unwrap();
    let code = within(control.stopped).await.unwrap();
    assert_eq!(code.map(VarInt::into_inner), Some(7));

    let (mut send, mut recv) = far.open_bi().await.unwrap();
    send.write_all(b"x").await.unwrap();
    let (mut both, control) = accept(&mut backend, &slot).await;
    write(&mut both.send, 10).await;
    within(poll_fn(|cx| both.send.poll_finish(cx)))
        .await
        .unwrap();
    within(recv.read_to_end(10)).await.unwrap();
    assert_eq!(within(control.stopped).await.unwrap(), None);
}

#[tokio::test]
async fn a_refused_stream_is_reset_and_a_dropped_one_ends() {
    let (near, far, _endpoints) = pair().await;
    let (mut backend, slot) = Connection::new(near, 100);
    for refused in [true, false] {
        let (mut send, mut recv) = far.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        let (mut both, control) = accept(&mut backend, &slot).await;
        write(&mut both.send, 3).await;
        if refused {
            control.shared.refuse(Code::H3_REQUEST_REJECTED);
        }
        drop(both);
        let read = within(recv.read_to_end(10)).await;
        assert_eq!(read.is_err(), refused, "{read:?}");
    }
}

#[tokio::test]
async fn reads_hand_on_whole_frames_and_stop_at_broken_ones() {
    let (near, far, _endpoints) = pair().await;
    let (mut backend, slot) = Connection::new(near, 100);
    let (mut send, mut recv) = far.open_bi().await.unwrap();
    // A frame that means nothing, a head, data, and a frame that is larger than its bound.
    send.write_all(b"\x21\x02??\x01\x02hi\x00\x01x\x01\x40\x65")
        .await
        .unwrap();
    let (mut both, _) = accept(&mut backend, &slot).await;
    let mut pieces = Vec::new();
    let error = loop {
        match within(poll_fn(|cx| both.recv.poll_data(cx))).await {
            Ok(piece) => pieces.extend(piece.expect("no end yet")),
            Err(error) => break error,
        }
    };
    assert_eq!(pieces, b"\x01\x02hi\x00\x01x");
    assert!(matches!(error, StreamError::Unknown(_)), "{error}");
    assert_eq!(
        within(send.stopped())
            .await
            .unwrap()
            .map(VarInt::into_inner),
        Some(Code::H3_EXCESSIVE_LOAD.value())
    );
    drop(both);
    assert!(within(recv.read_to_end(10)).await.is_err(), "it is reset");
}
