//! Real handshakes of rustls, in memory.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, RootCertStore, ServerConfig,
    ServerConnection,
};

use super::*;
use crate::auth::binding::Signed;
use crate::auth::tickets::Limits;

const REQUEST: Signed<'static> = Signed {
    id: "1",
    method: "POST",
    path: "/",
    token: "",
    body: b"",
};

fn configs(versions: &[&'static rustls::SupportedProtocolVersion]) -> (ServerConfig, ClientConfig) {
    let names = ["localhost".to_owned(), "other.test".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    server.max_early_data_size = 1024;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_early_data = true;
    (server, client)
}

struct Pair {
    server: ServerConnection,
    session: Arc<Session>,
    client: ClientConnection,
    secrets: Arc<ConnectionSecrets>,
}

struct World {
    server: ServerConfig,
    client: ClientConfig,
    tickets: Arc<Tickets>,
    connections: u8,
}

impl World {
    fn new() -> Self {
        Self::with(&[&rustls::version::TLS13], Duration::from_secs(1000))
    }

    fn with(versions: &[&'static rustls::SupportedProtocolVersion], lineage: Duration) -> Self {
        let (server, client) = configs(versions);
        let limits = Limits {
            capacity: 100,
            lifetime: Duration::from_secs(1000),
            lineage,
        };
        Self {
            server,
            client,
            tickets: Arc::new(Tickets::new(limits)),
            connections: 0,
        }
    }

    /// A server's side of one more connection.
    fn accept(&mut self) -> (ServerConnection, Arc<Session>) {
        self.connections += 1;
        let lineage = Lineage([self.connections; 16]);
        let session = Session::new(Arc::clone(&self.tickets), lineage);
        let config = Arc::new(session.apply(&self.server));
        (ServerConnection::new(config).unwrap(), session)
    }

    /// Both sides, before the first byte.
    fn connect(&mut self, name: &'static str) -> Pair {
        let (server, session) = self.accept();
        let secrets = Arc::new(ConnectionSecrets::default());
        let mut config = self.client.clone();
        config.key_log = Arc::clone(&secrets) as Arc<dyn KeyLog>;
        let name = ServerName::try_from(name).unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        Pair {
            server,
            session,
            client,
            secrets,
        }
    }

    /// A whole connection.
    fn visit(&mut self) -> Pair {
        let mut pair = self.connect("localhost");
        pair.complete();
        pair
    }
}

impl Pair {
    fn client_speaks(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        feed(&mut self.server, &bytes);
        bytes
    }

    fn complete(&mut self) {
        while self.client.wants_write() || self.server.wants_write() {
            self.client_speaks();
            let mut bytes = Vec::new();
            while self.server.wants_write() {
                self.server.write_tls(&mut bytes).unwrap();
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).unwrap();
                self.client.process_new_packets().unwrap();
            }
        }
        assert!(!self.server.is_handshaking() && !self.client.is_handshaking());
    }

    fn finish(&self) {
        let (server, client) = (&self.server, &self.client);
        let made = self.session.secrets().finish(&|out, label, context| {
            server
                .export_keying_material(out, label, Some(context))
                .is_ok()
        });
        assert!(made.is_some());
        let made = self.secrets.finish(&|out, label, context| {
            client
                .export_keying_material(out, label, Some(context))
                .is_ok()
        });
        assert!(made.is_some());
    }

    fn checked(&self, key: &Key) -> Option<MadeWith> {
        let message = REQUEST.message();
        self.session.secrets().check(&message, &key.prove(&message))
    }
}

fn feed(server: &mut ServerConnection, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        server.process_new_packets().unwrap();
    }
}

fn early_bytes(server: &mut ServerConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut early) = server.early_data() {
        early.read_to_end(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn a_full_handshake_gives_both_sides_the_full_key_and_no_early_one() {
    let pair = World::new().visit();
    assert!(pair.secrets.full().is_none());
    pair.finish();
    let key = pair.secrets.full().unwrap();
    assert_eq!(pair.checked(key), Some(MadeWith::Full));
    assert!(pair.secrets.early().is_none() && pair.session.secrets().early().is_none());
}

#[test]
fn the_full_key_does_not_exist_before_the_handshake_has_ended() {
    let mut world = World::new();
    let mut pair = world.connect("localhost");
    pair.client_speaks();
    let server = &pair.server;
    let made = pair.session.secrets().finish(&|out, label, context| {
        server
            .export_keying_material(out, label, Some(context))
            .is_ok()
    });
    assert!(made.is_none());
    pair.complete();
    pair.finish();
}

#[test]
fn a_resumed_connection_has_the_early_key_with_the_first_flight() {
    let mut world = World::new();
    world.visit();
    let mut pair = world.connect("localhost");
    pair.client
        .early_data()
        .unwrap()
        .write_all(b"hello")
        .unwrap();
    let key = pair.secrets.early().expect("known before a byte is sent");
    let proof = key.prove(&REQUEST.message());
    pair.client_speaks();
    assert!(pair.server.is_handshaking());
    assert_eq!(early_bytes(&mut pair.server), b"hello");
    let made = pair.session.secrets().check(&REQUEST.message(), &proof);
    assert_eq!(made, Some(MadeWith::Early));
    pair.complete();
    pair.finish();
    assert!(pair.client.is_early_data_accepted());
    let full = pair.checked(pair.secrets.full().unwrap());
    let early = pair.checked(pair.secrets.early().unwrap());
    assert_eq!((full, early), (Some(MadeWith::Full), Some(MadeWith::Early)));
}

#[test]
fn no_connection_believes_the_proofs_of_another() {
    let mut world = World::new();
    let first = world.visit();
    let (second, third) = (world.visit(), world.visit());
    first.finish();
    second.finish();
    third.finish();
    let keys = [
        first.secrets.full(),
        second.secrets.full(),
        second.secrets.early(),
    ];
    for key in keys {
        assert_eq!(third.checked(key.unwrap()), None);
    }
}

#[test]
fn a_lineage_lives_through_resumptions_and_a_full_handshake_begins_another() {
    let mut world = World::new();
    let first = world.visit();
    assert_eq!(first.session.lineage(), Lineage([1; 16]));
    for _ in 0..3 {
        let next = world.visit();
        assert_eq!(next.server.handshake_kind(), Some(HandshakeKind::Resumed));
        assert_eq!(next.session.lineage(), first.session.lineage());
    }
    world.client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    assert_eq!(world.visit().session.lineage(), Lineage([5; 16]));
}

#[test]
fn an_exact_copy_of_the_first_flight_gets_no_early_data_and_is_noticed() {
    let mut world = World::new();
    world.visit();
    let mut pair = world.connect("localhost");
    pair.client
        .early_data()
        .unwrap()
        .write_all(b"hello")
        .unwrap();
    let flight = pair.client_speaks();
    assert_eq!(early_bytes(&mut pair.server), b"hello");
    for _ in 0..3 {
        let (mut server, session) = world.accept();
        feed(&mut server, &flight);
        assert_eq!(early_bytes(&mut server), b"");
        assert!(session.replayed() && session.secrets().early().is_none());
        assert_ne!(session.lineage(), pair.session.lineage());
    }
    assert!(!pair.session.replayed());
    assert_eq!(world.tickets.counts().spent, 3);
}

/// Gives the same tickets for every name, as who saw one on the wire could show it.
#[derive(Debug, Default)]
struct AnyName(Mutex<Vec<Tls13ClientSessionValue>>);

impl ClientSessionStore for AnyName {
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
        self.0.lock().unwrap().push(ticket);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.lock().unwrap().pop()
    }
}

#[test]
fn showing_a_ticket_that_is_then_not_used_inherits_nothing() {
    let mut world = World::new();
    let store = Arc::new(AnyName::default());
    world.client.resumption = rustls::client::Resumption::store(store);
    let victim = world.visit();
    // rustls takes the ticket, sees that it was issued for another name, and shakes hands in full.
    let mut thief = world.connect("other.test");
    thief.complete();
    assert_eq!(world.tickets.counts().redeemed, 1);
    assert_eq!(thief.server.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(thief.session.lineage(), Lineage([2; 16]));
    assert_ne!(thief.session.lineage(), victim.session.lineage());
}

#[test]
fn an_old_lineage_ends_in_a_full_handshake_and_a_new_one() {
    let mut world = World::with(&[&rustls::version::TLS13], Duration::ZERO);
    world.visit();
    let next = world.visit();
    assert_eq!(next.server.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(next.session.lineage(), Lineage([2; 16]));
    assert!(!next.session.replayed());
    assert_eq!(world.tickets.counts().too_old, 1);
}

#[test]
fn tls_1_2_is_neither_resumed_nor_bound() {
    let mut world = World::with(&[&rustls::version::TLS12], Duration::from_secs(1000));
    for connection in 1..=2 {
        let pair = world.visit();
        assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(pair.session.lineage(), Lineage([connection; 16]));
        let server = &pair.server;
        let made = pair.session.secrets().finish(&|out, label, context| {
            server
                .export_keying_material(out, label, Some(context))
                .is_ok()
        });
        assert!(made.is_none());
    }
    assert_eq!(world.tickets.counts().issued, 0);
}

#[test]
fn only_two_labels_are_listened_to() {
    let secrets = ConnectionSecrets::default();
    for label in [
        "CLIENT_RANDOM",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
        "EXPORTER_SECRET",
    ] {
        assert!(!secrets.will_log(label));
        secrets.log(label, &[1; 32], &[2; 32]);
    }
    secrets.log(EARLY, &[1; 31], &[2; 32]);
    assert!(secrets.client_random.get().is_none() && secrets.early().is_none());
    secrets.log(EARLY, &[1; 32], &[2; 32]);
    assert!(secrets.early().is_some());
}

#[test]
fn nothing_secret_is_printed() {
    let mut world = World::new();
    world.visit();
    let pair = world.visit();
    pair.finish();
    assert_eq!(
        format!("{:?}", pair.session),
        "Session { lineage: Lineage(01010101..), resumed: true, replayed: false, \
         secrets: ConnectionSecrets { early: true, full: true, .. }, .. }"
    );
}
