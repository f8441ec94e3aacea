//! A server of `sluice/1` that hands every request to the test.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, SendStream};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Options, Transport};
use crate::auth::config::Auth;
use crate::auth::{Arrival, Gate, Session, Signed, Verdict};
use crate::generation::Caller;
use crate::wire::sluice::ALPN;
use crate::wire::sluice::frames::{Decoder, Frame, Reasons};
use crate::wire::sluice::head::{Headers, RequestHead, ResponseHead};

/// A day, in seconds since 1970.
const TODAY: u64 = 1_800_000_000;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    asked: mpsc::Receiver<Asked>,
    gate: Arc<Mutex<Arc<Gate>>>,
    connections: Connections,
    _task: JoinSet<()>,
}

/// What a client of it needs.
pub(super) fn options() -> Options {
    Options {
        insecure: true,
        // A machine may be busy with other things.
        quic_patience: Duration::from_secs(30),
        ..Transport::Quic.into()
    }
}

type Connections = Arc<Mutex<Vec<quinn::Connection>>>;

/// A request, and the stream for its answer.
pub(super) struct Asked {
    pub(super) head: RequestHead,
    pub(super) body: Vec<u8>,
    /// It came before the end of the handshake.
    pub(super) is_early: bool,
    session: Arc<Session>,
    gate: Arc<Gate>,
    send: SendStream,
}

fn new_gate() -> Arc<Gate> {
    Arc::new(Gate::new(&Auth::default(), TODAY).unwrap())
}

impl Server {
    pub(super) fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        tls.max_early_data_size = u32::MAX;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let gate = Arc::new(Mutex::new(new_gate()));
        let base = config(tls.clone());
        let endpoint = Endpoint::server(base, "127.0.0.1:0".parse().unwrap()).unwrap();
        let (sender, asked) = mpsc::channel(8);
        let mut task = JoinSet::new();
        let address = endpoint.local_addr().unwrap();
        let (gates, opened) = (gate.clone(), Connections::default());
        let connections = opened.clone();
        task.spawn(async move {
            let mut tasks = JoinSet::new();
            while let Some(incoming) = endpoint.accept().await {
                let gate = gates.lock().unwrap().clone();
                let session = gate.session().unwrap();
                let config = config(session.apply(&tls));
                let connecting = incoming.accept_with(Arc::new(config)).unwrap();
                let (sender, opened) = (sender.clone(), opened.clone());
                tasks.spawn(serve(connecting, session, gate, sender, opened));
            }
        });
        Self {
            address,
            asked,
            gate,
            connections,
            _task: task,
        }
    }

    /// The next request.
    pub(super) async fn asked(&mut self) -> Asked {
        self.asked.recv().await.unwrap()
    }

    /// Forgets tickets and tokens, as a restart does, and closes every connection.
    pub(super) fn restart(&self) {
        *self.gate.lock().unwrap() = new_gate();
        self.hang_up();
    }

    /// Closes every connection.
    pub(super) fn hang_up(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.close(0_u32.into(), b"");
        }
    }
}

fn config(tls: ServerConfig) -> quinn::ServerConfig {
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    quinn::ServerConfig::with_crypto(Arc::new(crypto))
}

async fn serve(
    mut connecting: quinn::Connecting,
    session: Arc<Session>,
    gate: Arc<Gate>,
    sender: mpsc::Sender<Asked>,
    opened: Connections,
) {
    if connecting.handshake_data().await.is_err() {
        return;
    }
    let Ok((connection, _)) = connecting.into_0rtt() else {
        return;
    };
    opened.lock().unwrap().push(connection.clone());
    while let Ok((send, mut recv)) = connection.accept_bi().await {
        let is_early = recv.is_0rtt();
        let Ok(bytes) = recv.read_to_end(1 << 20).await else {
            continue;
        };
        let (mut decoder, mut input) = (Decoder::new(), &bytes[..]);
        let (mut head, mut body) = (None, Vec::new());
        while let Some(frame) = decoder.next(&mut input).unwrap() {
            match frame {
                Frame::Request(json) => head = Some(serde_json::from_slice(json).unwrap()),
                Frame::Data(bytes) => body.extend_from_slice(bytes),
                other => panic!("not of a request: {other:?}"),
            }
        }
        let _ = session.secrets().finish(&|out, label, context| {
            connection
                .export_keying_material(out, label, context)
                .is_ok()
        });
        let asked = Asked {
            head: head.expect("a REQUEST"),
            body,
            is_early,
            session: session.clone(),
            gate: gate.clone(),
            send,
        };
        let _ = sender.send(asked).await;
    }
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> &str {
        self.head.headers.first(name).unwrap_or_default()
    }

    /// What the policy says of it.
    pub(super) fn judge(&self) -> Verdict {
        let proof = Some(self.header("x-sluice-proof")).filter(|proof| !proof.is_empty());
        let arrival = Arrival {
            session: Some(&self.session),
            early: self.is_early,
            forwarded: false,
            live_only: false,
            room: true,
            proof,
            now: Instant::now(),
            today: TODAY,
        };
        let signed = Signed {
            id: self.header("x-request-id"),
            method: &self.head.method,
            path: &self.head.path,
            token: self.header("authorization").trim_start_matches("Bearer "),
            body: &self.body,
        };
        self.gate.judge(&arrival, &signed, None)
    }

    /// Answers `POST /v1/bind`.
    pub(super) async fn bind(self) {
        assert_eq!((&*self.head.method, &*self.head.path), ("POST", "/v1/bind"));
        assert!(!self.is_early);
        let made = self.gate.bind(&self.session, &Caller::default(), TODAY);
        let (token, grant) = made.unwrap();
        let expires = grant.expires;
        let json = format!(r#"{{"token":"{token}","expires_at":{expires}}}"#);
        self.answer(200, &json).await;
    }

    /// Answers with a whole JSON document.
    pub(super) async fn answer(self, status: u16, json: &str) {
        let body = [Frame::Data(json.as_bytes()), Frame::End(Reasons::default())];
        let mut send = self.frames(status, "application/json", &body).await;
        let _ = send.finish();
    }

    /// Begins an answer; what is sent on is the test's.
    pub(super) async fn frames(
        mut self,
        status: u16,
        content_type: &str,
        frames: &[Frame<'_>],
    ) -> SendStream {
        let head = ResponseHead {
            status,
            headers: Headers(vec![("content-type".to_owned(), content_type.to_owned())]),
        };
        let mut out = BytesMut::new();
        Frame::Response(&serde_json::to_vec(&head).unwrap()).encode(&mut out);
        for frame in frames {
            frame.encode(&mut out);
        }
        // Who asked may have left.
        let _ = self.send.write_all(&out).await;
        self.send
    }
}
