//! Tokens, proofs and early data, against the policy that a gateway applies.

use super::*;
use crate::auth::Decision;
use crate::client::testing::{self, Asked, Server};
use crate::client::{Transport, tls};

struct World {
    server: Server,
    endpoint: Endpoint,
    tls: rustls::ClientConfig,
    shared: Arc<Shared>,
    key: Option<HeaderValue>,
}

impl World {
    fn new() -> Self {
        let server = Server::start();
        let endpoint = Endpoint::parse(&format!("https://{}", server.address)).unwrap();
        let options = testing::options();
        Self {
            server,
            endpoint,
            tls: tls::Configs::new(&options).unwrap().quic,
            shared: Arc::new(Shared::default()),
            key: None,
        }
    }

    /// Sends a request, in a task of its own.
    fn ask(&self) -> tokio::task::JoinHandle<StatusCode> {
        let (shared, tls) = (Arc::clone(&self.shared), self.tls.clone());
        let (endpoint, key) = (self.endpoint.clone(), self.key.clone());
        tokio::spawn(async move {
            let to = To {
                server: &endpoint,
                transport: Transport::Quic,
                tls: &tls,
                patience: testing::options().quic_patience,
                key: key.as_ref(),
            };
            let request = Request::post("/v1/x?y=z".to_owned(), "*/*", b"{}".to_vec());
            match shared.send(to, &request).await {
                Ok(answer) => answer.status,
                Err(Fault::Blocked | Fault::Unanswered) => panic!("loopback is not blocked"),
                Err(Fault::Failed(error)) => panic!("{error:?}"),
            }
        })
    }

    /// The next request that is not for a token; those are answered.
    async fn next(&mut self) -> Asked {
        loop {
            let asked = self.server.asked().await;
            if asked.head.path != "/v1/bind" {
                return asked;
            }
            asked.bind().await;
        }
    }

    /// Makes the first connection and waits until the client has its token.
    async fn bound(&mut self) {
        let asked = self.ask();
        self.next().await.answer(200, "{}").await;
        asked.await.unwrap();
        if !self.is_bound() {
            let request = self.server.asked().await;
            request.bind().await;
        }
        while !self.is_bound() {
            tokio::task::yield_now().await;
        }
    }

    fn is_bound(&self) -> bool {
        lock(&self.shared.known).token.is_some()
    }

    /// Closes the connection from the server's side and waits until the client knows.
    async fn hang_up(&self) {
        let connection = self.shared.current().await.unwrap();
        self.server.hang_up();
        while connection.is_open() {
            tokio::task::yield_now().await;
        }
    }

    async fn state(&self) -> Handshake {
        self.shared.current().await.unwrap().established().await
    }
}

fn is_bound(asked: &Asked) -> bool {
    let is_bound = asked.header("authorization").starts_with("Bearer sgb1.");
    assert_eq!(is_bound, !asked.header("x-sluice-proof").is_empty());
    is_bound
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_every_request_after_it_is_proven() {
    let mut world = World::new();
    world.bound().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answered = world.ask();
        // Nothing else comes: the token was asked for once.
        let asked = world.server.asked().await;
        assert!(is_bound(&asked) && !asked.is_early);
        let verdict = asked.judge();
        assert_eq!(verdict.decision, Decision::Serve);
        assert!(verdict.grant.is_some());
        ids.push(asked.header("x-request-id").to_owned());
        asked.answer(200, "{}").await;
        assert_eq!(answered.await.unwrap(), 200);
    }
    ids.dedup();
    assert_eq!(ids.len(), 3, "each has its own id");
}

#[tokio::test]
async fn the_next_connection_begins_with_a_request() {
    let mut world = World::new();
    world.bound().await;
    for _ in 0..3 {
        world.hang_up().await;
        let answered = world.ask();
        let asked = world.server.asked().await;
        assert!(
            is_bound(&asked),
            "the token holds on what resumes its session"
        );
        assert_eq!(asked.judge().decision, Decision::Serve);
        asked.answer(200, "{}").await;
        assert_eq!(answered.await.unwrap(), 200);
        assert_eq!(world.state().await, Handshake::Early);
    }
}

#[tokio::test]
async fn early_data_that_is_refused_is_sent_again_without_the_token_and_a_new_one_is_had() {
    let mut world = World::new();
    world.bound().await;
    let connection = world.shared.current().await.unwrap();
    world.server.restart();
    while connection.is_open() {
        tokio::task::yield_now().await;
    }
    let answered = world.ask();
    let asked = world.next().await;
    assert!(!asked.is_early);
    assert_eq!(asked.judge().decision, Decision::Serve);
    asked.answer(200, "{}").await;
    assert_eq!(answered.await.unwrap(), 200);
    while !world.is_bound() {
        tokio::select! {
            asked = world.server.asked() => asked.bind().await,
            () = tokio::task::yield_now() => {}
        }
    }
    let answered = world.ask();
    let asked = world.next().await;
    assert!(is_bound(&asked));
    assert_eq!(asked.judge().decision, Decision::Serve);
    asked.answer(200, "{}").await;
    assert_eq!(answered.await.unwrap(), 200);
}

#[tokio::test]
async fn who_is_told_to_come_back_does_so_when_the_handshake_has_ended() {
    let mut world = World::new();
    world.bound().await;
    world.hang_up().await;
    let answered = world.ask();
    let first = world.server.asked().await;
    let id = first.header("x-request-id").to_owned();
    let was_early = first.is_early;
    first.answer(425, "{}").await;
    if was_early {
        let second = world.server.asked().await;
        assert_eq!(second.header("x-request-id"), id, "it is the same request");
        assert!(is_bound(&second) && !second.is_early);
        second.answer(200, "{}").await;
    }
    let expected = if was_early { 200 } else { 425 };
    assert_eq!(answered.await.unwrap(), expected);
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced() {
    let mut world = World::new();
    world.bound().await;
    let answered = world.ask();
    let first = world.server.asked().await;
    let old = first.header("authorization").to_owned();
    first.answer(401, "{}").await;
    world.server.asked().await.bind().await;
    let second = world.server.asked().await;
    assert!(is_bound(&second));
    assert_ne!(second.header("authorization"), old);
    assert_eq!(second.judge().decision, Decision::Serve);
    // It is not tried for ever.
    second.answer(401, "{}").await;
    assert_eq!(answered.await.unwrap(), 401);
}

#[tokio::test]
async fn a_server_that_knows_no_tokens_is_not_asked_again() {
    let mut world = World::new();
    let answered = world.ask();
    let mut paths = Vec::new();
    for _ in 0..2 {
        let asked = world.server.asked().await;
        assert!(!is_bound(&asked));
        paths.push(asked.head.path.clone());
        asked.answer(404, "{}").await;
    }
    paths.sort();
    assert_eq!(paths, ["/v1/bind", "/v1/x?y=z"]);
    assert_eq!(answered.await.unwrap(), 404);
    while !lock(&world.shared.known).is_unbindable {
        tokio::task::yield_now().await;
    }
    world.hang_up().await;
    for _ in 0..3 {
        let answered = world.ask();
        let asked = world.server.asked().await;
        assert_eq!(asked.head.path, "/v1/x?y=z");
        assert!(!is_bound(&asked) && !asked.is_early);
        asked.answer(200, "{}").await;
        assert_eq!(answered.await.unwrap(), 200);
    }
    assert_eq!(world.state().await, Handshake::Full);
}

#[tokio::test]
async fn a_key_is_shown_for_the_token_and_the_token_from_then_on() {
    let mut world = World::new();
    world.key = Some(HeaderValue::from_static("Bearer sgk_1"));
    let answered = world.ask();
    for _ in 0..2 {
        // The request and the one for the token, in any order.
        let asked = world.server.asked().await;
        assert_eq!(asked.header("authorization"), "Bearer sgk_1");
        if asked.head.path == "/v1/bind" {
            asked.bind().await;
        } else {
            asked.answer(200, "{}").await;
        }
    }
    assert_eq!(answered.await.unwrap(), 200);
    while !world.is_bound() {
        tokio::task::yield_now().await;
    }
    let answered = world.ask();
    let asked = world.server.asked().await;
    assert!(is_bound(&asked));
    assert_eq!(asked.judge().decision, Decision::Serve);
    // Its time may have come: then the key is shown again, for the next one.
    asked.answer(401, "{}").await;
    let asked = world.server.asked().await;
    assert_eq!(asked.head.path, "/v1/bind");
    assert_eq!(asked.header("authorization"), "Bearer sgk_1");
    asked.answer(401, "{}").await;
    let asked = world.server.asked().await;
    assert_eq!(asked.header("authorization"), "Bearer sgk_1");
    asked.answer(200, "{}").await;
    assert_eq!(answered.await.unwrap(), 200);
}

#[tokio::test]
async fn who_gets_no_token_shows_the_key_with_each_request() {
    for status in [401, 403] {
        let mut world = World::new();
        world.key = Some(HeaderValue::from_static("Bearer sgk_1"));
        let answered = world.ask();
        for _ in 0..2 {
            let asked = world.server.asked().await;
            let is_bind = asked.head.path == "/v1/bind";
            asked.answer(if is_bind { status } else { 200 }, "{}").await;
        }
        assert_eq!(answered.await.unwrap(), 200);
        while !lock(&world.shared.known).is_unbindable {
            tokio::task::yield_now().await;
        }
        world.hang_up().await;
        let answered = world.ask();
        let asked = world.server.asked().await;
        assert_eq!(asked.head.path, "/v1/x?y=z");
        assert_eq!(asked.header("authorization"), "Bearer sgk_1");
        assert!(!is_bound(&asked) && !asked.is_early);
        asked.answer(200, "{}").await;
        assert_eq!(answered.await.unwrap(), 200);
    }
}
