//! Who asks, where certificates of clients say so: in what waited for its handshake, and in bound tokens.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::PrivateKeyDer;

use super::{early, generated, setup};
use crate::support::{
    Asked, CHAT, Protocol, Served, Tap, Visitor, chat_body, read_certificate, replace, trusting,
};

/// An authority for clients, its certificate in `folder`.
fn authority(folder: &Path) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = params.self_signed(&key).unwrap();
    replace(&folder.join("ca.pem"), &certificate.pem());
    Issuer::new(params, key)
}

/// A gateway that asks for certificates, and that of one client.
async fn with_a_client() -> (Served, Arc<dyn ResolvesClientCert>, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let issuer = authority(folder.path());
    let setup = setup().with("[stream]\nresume = true").with(&format!(
        "[tls]\nclient_ca = '{}'",
        folder.path().join("ca.pem").display()
    ));
    let served = Served::by(setup).await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "alice");
    let signed = params.signed_by(&key, &issuer).unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let shown = read_certificate(&served.state.path().join("dev-cert.pem"));
    let client = trusting(shown)
        .with_client_auth_cert(vec![signed.der().clone()], private)
        .unwrap();
    (served, client.client_auth_cert_resolver, folder)
}

#[tokio::test]
async fn a_request_that_waited_for_its_handshake_is_its_callers() {
    for protocol in Protocol::ALL {
        let (served, alice, _folder) = with_a_client().await;
        let address = served.gateway.secure();
        let visitor = Visitor::new(&served, protocol).showing(alice);
        let _first = visitor.visit(address).await;
        let tap = Tap::before(address).await;
        let (visit, _) = visitor.early_visit(tap.address).await;
        let body = chat_body("scripted?tokens=3", "x", r#""stream":true"#);
        let asked = Asked {
            accept: "text/event-stream",
            ..Asked::new("POST", CHAT, &body)
        };
        let pending = visit.send(&asked).await;
        let waits = |m: &_| early(m, "held") == 1;
        served.gateway.until("it waits", waits).await;
        tap.release();
        let answer = pending.answer().await;
        let stream = answer.stream.expect("it can be resumed");
        let path = format!("/v1/streams/{stream}?after=0").leak();
        let rest = Asked {
            accept: "text/event-stream",
            ..Asked::new("GET", path, "")
        };
        let stranger = Visitor::new(&served, protocol).visit(address).await;
        assert_eq!(stranger.ask(&rest).await.status, 404, "none of theirs");
        let again = visit.ask(&rest).await;
        assert_eq!((again.status, again.text), (200, answer.text));
    }
}

#[tokio::test]
async fn a_callers_ids_run_once_early_whatever_the_lineage() {
    for protocol in Protocol::ALL {
        let (served, alice, _folder) = with_a_client().await;
        let address = served.gateway.secure();
        for (certificate, expected) in [
            (Some(&alice), (200, "ok")),
            (Some(&alice), (409, "request_replayed")),
            (None, (200, "ok")),
            (None, (200, "ok")),
        ] {
            let mut visitor = Visitor::new(&served, protocol);
            if let Some(certificate) = certificate {
                visitor = visitor.showing(certificate.clone());
            }
            let token = visitor.visit(address).await.bind().await;
            // Without the tap the handshake might end before the request is there.
            let before = early(&served.gateway.metrics().await, "served")
                + early(&served.gateway.metrics().await, "refused");
            let tap = Tap::before(address).await;
            let (visit, _) = visitor.early_visit(tap.address).await;
            let asked = Asked::chat("1", &token).proven(visit.secrets.early());
            let pending = visit.send(&asked).await;
            let judged = |m: &_| early(m, "served") + early(m, "refused") == before + 1;
            served.gateway.until("it is judged", judged).await;
            tap.release();
            let (status, code) = expected;
            assert_eq!(pending.answer().await.outcome(), (status, code.into()));
        }
        assert_eq!(generated(&served.gateway.metrics().await), (9, 3));
    }
}
