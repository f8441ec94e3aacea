//! A client that binds tokens and proves its requests, over HTTP/3 or `sluice/1`: what its connections
//! derive, and what it was given to resume.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use serde_json::Value;
use sluicegate::auth::{ConnectionSecrets, Key, Signed};
use tokio::sync::Notify;

use super::sluice::{self, Sluice};
use super::{Exchange, Http3, Quic, Served, chat_body, quic_request, within};

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const BIND: &str = "/v1/bind";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http3,
    Sluice,
}

impl Protocol {
    pub(crate) const ALL: [Self; 2] = [Self::Http3, Self::Sluice];
}

pub(crate) struct Visitor {
    quic: Quic,
    protocol: Protocol,
    tickets: Arc<Tickets>,
}

impl Visitor {
    pub(crate) fn new(served: &Served, protocol: Protocol) -> Self {
        Self::by(served.quic(), protocol)
    }

    /// One that trusts what `quic` does.
    pub(crate) fn by(quic: Quic, protocol: Protocol) -> Self {
        let tickets = Arc::<Tickets>::default();
        let quic = match protocol {
            Protocol::Http3 => quic,
            Protocol::Sluice => quic.protocol("sluice/1"),
        };
        Self {
            quic: quic.tickets(tickets.clone()),
            protocol,
            tickets,
        }
    }

    /// Shows this certificate when it is asked for one.
    pub(crate) fn showing(mut self, certificate: Arc<dyn ResolvesClientCert>) -> Self {
        self.quic = self.quic.showing(certificate);
        self
    }

    /// A connection whose handshake has ended.
    pub(crate) async fn visit(&self, to: SocketAddr) -> Visit {
        let (connecting, secrets) = self.connecting(to);
        let connection = within(connecting).await.expect("a handshake");
        finish(&connection, &secrets);
        self.on(connection, secrets).await
    }

    /// A connection with the ticket of an earlier one, whose handshake has not ended; and whether its early
    /// data will be taken.
    pub(crate) async fn early_visit(&self, to: SocketAddr) -> (Visit, quinn::ZeroRttAccepted) {
        let (connection, accepted, secrets) = self.early_connection(to).await;
        (self.on(connection, secrets).await, accepted)
    }

    pub(crate) async fn early_connection(
        &self,
        to: SocketAddr,
    ) -> (
        quinn::Connection,
        quinn::ZeroRttAccepted,
        Arc<ConnectionSecrets>,
    ) {
        within(self.tickets.wait()).await;
        let (connecting, secrets) = self.connecting(to);
        let Ok((connection, accepted)) = connecting.into_0rtt() else {
            panic!("there is something to resume");
        };
        (connection, accepted, secrets)
    }

    fn connecting(&self, to: SocketAddr) -> (quinn::Connecting, Arc<ConnectionSecrets>) {
        let secrets = Arc::<ConnectionSecrets>::default();
        (self.quic.connecting_with(to, secrets.clone()), secrets)
    }

    async fn on(&self, connection: quinn::Connection, secrets: Arc<ConnectionSecrets>) -> Visit {
        let wire = match self.protocol {
            Protocol::Http3 => Wire::Http3(Box::new(Http3::on(connection.clone()).await)),
            Protocol::Sluice => Wire::Sluice(Sluice(connection.clone())),
        };
        Visit {
            connection,
            secrets,
            wire,
        }
    }
}

/// Derives the full key.
pub(crate) fn finish(connection: &quinn::Connection, secrets: &ConnectionSecrets) {
    let key = secrets.finish(&|out, label, context| {
        connection
            .export_keying_material(out, label, context)
            .is_ok()
    });
    assert!(key.is_some(), "the handshake has ended");
}

/// One request. Answered as JSON, whatever the protocol, unless it accepts something else.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) id: &'static str,
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) token: String,
    pub(crate) proof: Option<String>,
    pub(crate) accept: &'static str,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn new(method: &'static str, path: &'static str, body: &str) -> Self {
        Self {
            id: "",
            method,
            path,
            token: String::new(),
            proof: None,
            accept: "application/json",
            body: body.to_owned(),
        }
    }

    /// A generation of three tokens.
    pub(crate) fn chat(id: &'static str, token: &str) -> Self {
        let body = chat_body("scripted?text=abcd&tokens=3", "x", "");
        Self {
            id,
            token: token.to_owned(),
            ..Self::new("POST", CHAT, &body)
        }
    }

    pub(crate) fn proven(mut self, key: Option<&Key>) -> Self {
        let request = Signed {
            id: self.id,
            method: self.method,
            path: self.path,
            token: &self.token,
            body: self.body.as_bytes(),
        };
        let key = key.expect("the connection has such a key");
        self.proof = Some(key.prove(&request.message()).to_string());
        self
    }

    /// Its header fields.
    pub(crate) fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("accept", self.accept.to_owned())];
        if !self.id.is_empty() {
            fields.push(("x-request-id", self.id.to_owned()));
        }
        if !self.token.is_empty() {
            fields.push(("authorization", format!("Bearer {}", self.token)));
        }
        if let Some(proof) = &self.proof {
            fields.push(("x-sluice-proof", proof.clone()));
        }
        fields
    }
}

/// One connection.
pub(crate) struct Visit {
    pub(crate) connection: quinn::Connection,
    pub(crate) secrets: Arc<ConnectionSecrets>,
    wire: Wire,
}

enum Wire {
    Http3(Box<Http3>),
    Sluice(Sluice),
}

impl Visit {
    /// Sends a whole request.
    pub(crate) async fn send(&self, asked: &Asked) -> Pending {
        let fields = asked.fields();
        match &self.wire {
            Wire::Http3(http) => {
                let mut request = quic_request(asked.method, asked.path);
                for (name, value) in &fields {
                    let value = value.parse().expect("a value of a field");
                    request.headers_mut().insert(*name, value);
                }
                let mut exchange = http.begin(request).await;
                let body = asked.body.clone().into();
                let _ = exchange.send(body).await;
                exchange.finish().await;
                Pending::Http3(Box::new(exchange))
            }
            Wire::Sluice(sluice) => {
                let fields: Vec<_> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
                let body = asked.body.as_bytes();
                let exchange = sluice.ask(asked.method, asked.path, &fields, body).await;
                Pending::Sluice(Box::new(exchange))
            }
        }
    }

    pub(crate) async fn ask(&self, asked: &Asked) -> Answered {
        self.send(asked).await.answer().await
    }

    /// A bound token of this connection's lineage.
    pub(crate) async fn bind(&self) -> String {
        let answer = self.ask(&Asked::new("POST", BIND, "{}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["token"].as_str().expect("a token").to_owned()
    }
}

/// A request whose answer is still to come.
pub(crate) enum Pending {
    Http3(Box<Exchange>),
    Sluice(Box<sluice::Exchange>),
}

impl Pending {
    pub(crate) async fn answer(self) -> Answered {
        match self {
            Self::Http3(mut exchange) => {
                let (status, headers) = exchange.head().await;
                let id = headers.get("x-stream-id");
                let stream = id.and_then(|id| Some(id.to_str().ok()?.to_owned()));
                let text = exchange.text().await;
                Answered {
                    status,
                    stream,
                    text,
                }
            }
            Self::Sluice(mut exchange) => {
                let head = exchange.head().await;
                let text = String::from_utf8(exchange.body().await).expect("it is UTF-8");
                Answered {
                    status: head.status,
                    stream: head.headers.first("x-stream-id").map(str::to_owned),
                    text,
                }
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    /// By which the stream can be resumed.
    pub(crate) stream: Option<String>,
    pub(crate) text: String,
}

impl Answered {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("JSON: {self:?}"))
    }

    /// Status and `error.code`; "ok" for a generation of [`Asked::chat`].
    pub(crate) fn outcome(&self) -> (u16, String) {
        let json = self.json();
        let code = match json["choices"][0]["message"]["content"].as_str() {
            Some(text) => {
                assert_eq!(text, "abcd".repeat(3));
                "ok"
            }
            None => json["error"]["code"].as_str().expect("a code"),
        };
        (self.status, code.to_owned())
    }
}

/// What a client was given to resume, and the news of it.
#[derive(Default)]
pub(crate) struct Tickets {
    kept: Mutex<VecDeque<Tls13ClientSessionValue>>,
    came: Notify,
}

impl Tickets {
    pub(super) fn resumption(self: Arc<Self>) -> Resumption {
        Resumption::store(self)
    }

    async fn wait(&self) {
        loop {
            let came = self.came.notified();
            if !self.kept.lock().unwrap().is_empty() {
                return;
            }
            came.await;
        }
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tickets")
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.kept.lock().unwrap().push_back(ticket);
        self.came.notify_one();
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept.lock().unwrap().pop_front()
    }
}
