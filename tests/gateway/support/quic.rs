//! A client of HTTP/3 that is none of ours below `h3`'s own API, and its QUIC connection in the raw.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use h3::client::{RequestStream, SendRequest};
use h3_quinn::{BidiStream, OpenStreams};
use http_body_util::Empty;
use hyper::{HeaderMap, Request, StatusCode};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::ResolvesClientCert;
use tempfile::TempDir;
use tokio_util::task::AbortOnDropHandle;

use super::sse::{self, Answer, Event};
use super::visitor::Tickets;
use super::{Setup, TestGateway, chat_body, read_certificate, within};

/// A gateway with a certificate, and the folder that it is kept in.
pub(crate) struct Served {
    pub(crate) gateway: TestGateway,
    pub(crate) state: TempDir,
}

impl Served {
    pub(crate) async fn by(setup: Setup) -> Self {
        let state = tempfile::tempdir().unwrap();
        let gateway = setup.self_signed(state.path()).start().await;
        Self { gateway, state }
    }

    pub(crate) fn quic(&self) -> Quic {
        Quic::new(self.state.path())
    }

    pub(crate) async fn http3(&self) -> Http3 {
        self.quic().http3(self.gateway.secure()).await
    }
}

/// A host that speaks QUIC: what it was given to resume stays with it.
pub(crate) struct Quic {
    endpoint: quinn::Endpoint,
    tls: rustls::ClientConfig,
    stream_window: Option<u32>,
}

impl Quic {
    /// Trusts the certificate that a gateway keeps in `state`.
    pub(crate) fn new(state: &Path) -> Self {
        let certificate = read_certificate(&state.join("dev-cert.pem"));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        tls.enable_early_data = true;
        Self {
            endpoint: quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap(),
            tls,
            stream_window: None,
        }
    }

    /// What one stream may send this client unread.
    pub(crate) fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = Some(bytes);
        self
    }

    /// Shows this certificate when it is asked for one.
    pub(crate) fn showing(mut self, certificate: Arc<dyn ResolvesClientCert>) -> Self {
        self.tls.client_auth_cert_resolver = certificate;
        self
    }

    pub(crate) fn protocol(mut self, name: &str) -> Self {
        self.tls.alpn_protocols = vec![name.as_bytes().to_vec()];
        self
    }

    /// Keeps what it is given to resume there.
    pub(crate) fn tickets(mut self, tickets: Arc<Tickets>) -> Self {
        self.tls.resumption = tickets.resumption();
        self
    }

    pub(crate) fn connecting(&self, address: SocketAddr) -> quinn::Connecting {
        self.connecting_with(address, Arc::new(rustls::NoKeyLog))
    }

    pub(crate) fn connecting_with(
        &self,
        address: SocketAddr,
        secrets: Arc<dyn rustls::KeyLog>,
    ) -> quinn::Connecting {
        let mut tls = self.tls.clone();
        tls.key_log = secrets;
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        if let Some(bytes) = self.stream_window {
            transport.stream_receive_window(bytes.into());
        }
        config.transport_config(Arc::new(transport));
        let connecting = self.endpoint.connect_with(config, address, "localhost");
        connecting.expect("an address to connect to")
    }

    /// A connection with nothing on it.
    pub(crate) async fn raw(&self, address: SocketAddr) -> quinn::Connection {
        within(self.connecting(address)).await.expect("a handshake")
    }

    pub(crate) async fn http3(&self, address: SocketAddr) -> Http3 {
        Http3::on(self.raw(address).await).await
    }
}

/// One connection of HTTP/3.
pub(crate) struct Http3 {
    pub(crate) connection: quinn::Connection,
    sender: SendRequest<OpenStreams, Bytes>,
    _driver: AbortOnDropHandle<()>,
}

impl Http3 {
    pub(crate) async fn on(connection: quinn::Connection) -> Self {
        let backend = h3_quinn::Connection::new(connection.clone());
        let (mut driver, sender) = within(h3::client::new(backend)).await.unwrap();
        let driver = tokio::spawn(async move {
            driver.wait_idle().await;
        });
        Self {
            connection,
            sender,
            _driver: AbortOnDropHandle::new(driver),
        }
    }

    /// Sends a head; the body is still open.
    pub(crate) async fn begin(&self, request: Request<Empty<Bytes>>) -> Exchange {
        let (head, _) = request.into_parts();
        let request = Request::from_parts(head, ());
        let stream = within(self.sender.clone().send_request(request)).await;
        Exchange {
            stream: stream.expect("the stream opens"),
            read: String::new(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Exchange {
        let mut exchange = self.begin(request("GET", path)).await;
        exchange.finish().await;
        exchange
    }

    pub(crate) async fn post(&self, path: &str, body: impl Into<Bytes>) -> Exchange {
        let mut exchange = self.begin(request("POST", path)).await;
        exchange.send(body.into()).await.expect("the body is taken");
        exchange.finish().await;
        exchange
    }

    /// A streamed chat, up to the head of its answer.
    pub(crate) async fn chat(&self, model: &str, more: &str) -> Exchange {
        let body = chat_body(model, "x", &format!(r#""stream":true{more}"#));
        let mut exchange = self.post("/v1/chat/completions", body).await;
        assert_eq!(exchange.head().await.0, 200);
        exchange
    }
}

/// A request to the gateway, whose body is sent apart.
pub(crate) fn request(method: &str, path: &str) -> Request<Empty<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("https://localhost{path}"))
        .header("content-type", "application/json")
        .body(Empty::new())
        .unwrap()
}

/// One request and its answer.
pub(crate) struct Exchange {
    pub(crate) stream: RequestStream<BidiStream<Bytes>, Bytes>,
    read: String,
}

impl Exchange {
    pub(crate) async fn send(&mut self, data: Bytes) -> Result<(), h3::error::StreamError> {
        within(self.stream.send_data(data)).await
    }

    pub(crate) async fn finish(&mut self) {
        // The gateway may have answered already and want no more.
        let _ = within(self.stream.finish()).await;
    }

    pub(crate) async fn try_head(
        &mut self,
    ) -> Result<(StatusCode, HeaderMap), h3::error::StreamError> {
        let head = within(self.stream.recv_response()).await?;
        Ok((head.status(), head.headers().clone()))
    }

    pub(crate) async fn head(&mut self) -> (u16, HeaderMap) {
        let (status, headers) = self.try_head().await.expect("an answer");
        (status.as_u16(), headers)
    }

    /// The next piece of the body, or how it broke off.
    pub(crate) async fn try_next(&mut self) -> Result<Option<Bytes>, h3::error::StreamError> {
        let data = within(self.stream.recv_data()).await?;
        Ok(data.map(|mut data| data.copy_to_bytes(data.remaining())))
    }

    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.try_next().await.expect("the body is whole")
    }

    pub(crate) async fn text(&mut self) -> String {
        let mut all = Vec::new();
        while let Some(data) = self.next().await {
            all.extend_from_slice(&data);
        }
        String::from_utf8(all).expect("it is UTF-8")
    }

    pub(crate) async fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.read.find("\n\n") {
                let event = sse::event(&self.read[..end]);
                self.read.drain(..end + 2);
                return Some(event);
            }
            let more = self.next().await?;
            self.read += std::str::from_utf8(&more).expect("pieces end with whole characters");
        }
    }

    /// What is still to come of a stream of events, put together.
    pub(crate) async fn answer(mut self) -> Answer {
        let mut events = Vec::new();
        while let Some(event) = self.next_event().await {
            events.push(event);
        }
        Answer::of(&events)
    }
}

/// The code with which the other side closed.
pub(crate) fn close_code(error: &quinn::ConnectionError) -> Option<u64> {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
        _ => None,
    }
}
