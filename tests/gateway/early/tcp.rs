//! Bound tokens on TLS over TCP, where nothing comes early, and where there is no TLS 1.3 to bind to.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use sluicegate::auth::ConnectionSecrets;
use tokio_util::task::AbortOnDropHandle;

use super::{generated, refused, setup};
use crate::support::{Answered, Asked, BIND, Served, connect, read_certificate, trusting, within};

/// One connection of HTTP/1.1 or 2.
struct Visit {
    secrets: Arc<ConnectionSecrets>,
    sender: Sender,
    _connection: AbortOnDropHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Full<bytes::Bytes>>),
    Http2(http2::SendRequest<Full<bytes::Bytes>>),
}

impl Visit {
    async fn to(served: &Served, client: &ClientConfig, protocol: &str) -> Self {
        let secrets = Arc::<ConnectionSecrets>::default();
        let mut client = client.clone();
        client.key_log = secrets.clone();
        let address = served.gateway.secure();
        let stream = connect(address, client, &[protocol]).await.unwrap();
        let (_, tls) = stream.get_ref();
        // TLS 1.2 has an exporter, too, and no key is made of it.
        let _ = secrets.finish(&|out, label, context| {
            tls.export_keying_material(out, label, Some(context))
                .is_ok()
        });
        let io = TokioIo::new(stream);
        let (sender, connection) = if protocol == "h2" {
            let handshake = http2::handshake(TokioExecutor::new(), io);
            let (sender, connection) = within(handshake).await.unwrap();
            let connection = tokio::spawn(async move { drop(connection.await) });
            (Sender::Http2(sender), connection)
        } else {
            let (sender, connection) = within(http1::handshake(io)).await.unwrap();
            let connection = tokio::spawn(async move { drop(connection.await) });
            (Sender::Http1(sender), connection)
        };
        Self {
            secrets,
            sender,
            _connection: AbortOnDropHandle::new(connection),
        }
    }

    async fn ask(&mut self, asked: &Asked) -> Answered {
        let uri = match self.sender {
            Sender::Http1(_) => asked.path.to_owned(),
            Sender::Http2(_) => format!("https://localhost{}", asked.path),
        };
        let mut request = Request::builder().method(asked.method).uri(uri);
        if let Sender::Http1(_) = self.sender {
            request = request.header("host", "localhost");
        }
        for (name, value) in asked.fields() {
            request = request.header(name, value);
        }
        let request = request.body(Full::from(asked.body.clone())).unwrap();
        let response = match &mut self.sender {
            Sender::Http1(sender) => within(sender.send_request(request)).await,
            Sender::Http2(sender) => within(sender.send_request(request)).await,
        };
        let response = response.expect("an answer");
        let status = response.status().as_u16();
        let body = within(response.into_body().collect()).await.unwrap();
        let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        Answered {
            status,
            stream: None,
            text,
        }
    }

    async fn bind(&mut self) -> Answered {
        self.ask(&Asked::new("POST", BIND, "")).await
    }
}

fn client(served: &Served) -> ClientConfig {
    let certificate = read_certificate(&served.state.path().join("dev-cert.pem"));
    trusting(certificate).with_no_client_auth()
}

#[tokio::test]
async fn a_token_bound_over_tcp_is_good_with_the_key_of_the_connection_and_without_it_not() {
    for protocol in ["http/1.1", "h2"] {
        let served = Served::by(setup()).await;
        let client = client(&served);
        let mut visit = Visit::to(&served, &client, protocol).await;
        let bound = visit.bind().await;
        let token = bound.json()["token"].as_str().unwrap().to_owned();
        let good = Asked::chat("1", &token).proven(visit.secrets.full());
        assert_eq!(visit.ask(&good).await.outcome(), (200, "ok".into()));
        let mut wrong = good.clone();
        wrong.body += " ";
        let outcome = visit.ask(&wrong).await.outcome();
        assert_eq!(outcome, (401, "proof_wrong".into()));
        let outcome = visit.ask(&Asked::chat("1", &token)).await.outcome();
        assert_eq!(outcome, (401, "proof_missing".into()));
        // A connection that was resumed from the first one is of its lineage, and has keys of its own.
        let mut next = Visit::to(&served, &client, protocol).await;
        let outcome = next.ask(&good).await.outcome();
        assert_eq!(outcome, (401, "proof_wrong".into()));
        let proven = Asked::chat("2", &token).proven(next.secrets.full());
        assert_eq!(next.ask(&proven).await.outcome(), (200, "ok".into()));
        // A full handshake begins another.
        let mut other = Visit::to(&served, &self::client(&served), protocol).await;
        let proven = Asked::chat("3", &token).proven(other.secrets.full());
        let outcome = other.ask(&proven).await.outcome();
        assert_eq!(outcome, (401, "bind_again".into()));
        // So does no TLS at all.
        let plain = served.gateway.chat("scripted?tokens=1", "x", "");
        let plain = plain.header("authorization", &format!("Bearer {token}"));
        let plain = plain.send().await;
        assert_eq!(
            plain.header("www-authenticate"),
            "Bearer error=\"invalid_token\""
        );
        assert_eq!(plain.refusal().await, (401, "bind_again".into()));
        let metrics = served.gateway.metrics().await;
        assert_eq!(generated(&metrics), (6, 2));
        assert_eq!(refused(&metrics, "token_foreign"), 2);
        assert_eq!(refused(&metrics, "proof_wrong"), 2);
        assert_eq!(refused(&metrics, "proof_missing"), 1);
    }
}

#[tokio::test]
async fn where_proofs_are_optional_a_token_is_good_by_its_lineage() {
    let served = Served::by(setup().with("[auth]\nrequire_proof = false")).await;
    let mut visit = Visit::to(&served, &client(&served), "h2").await;
    let token = visit.bind().await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let bare = Asked::chat("1", &token);
    assert_eq!(visit.ask(&bare).await.outcome(), (200, "ok".into()));
    let mut other = Visit::to(&served, &client(&served), "h2").await;
    let outcome = other.ask(&bare).await.outcome();
    assert_eq!(outcome, (401, "bind_again".into()));
}

#[tokio::test]
async fn nothing_is_bound_without_tls_1_3() {
    let served = Served::by(setup()).await;
    let plain = served.gateway.post(BIND, "{}").send().await;
    assert_eq!(plain.refusal().await, (403, "tls_required".into()));
    let certificate = read_certificate(&served.state.path().join("dev-cert.pem"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let old = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut visit = Visit::to(&served, &old, "h2").await;
    let outcome = visit.bind().await.outcome();
    assert_eq!(outcome, (403, "tls_required".into()));
    // What asks for no token goes on as ever.
    let outcome = visit.ask(&Asked::chat("1", "")).await.outcome();
    assert_eq!(outcome, (200, "ok".into()));
}
