//! Connections: kept, shared, pipelined, HTTP/1.1 and HTTP/2.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sluicegate::client::{ChatRequest, Client, Endpoint, Event, Transport};
use tokio::net::TcpStream;

use crate::support::{Answer, TestGateway, chat_body, gateway, within};

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let gateway = gateway().scripted().start().await;
    let mut raw = gateway.connect().await;
    let body = chat_body("scripted?text=abcd&tokens=2", "x", r#""stream":true"#);
    for _ in 0..3 {
        raw.post("/v1/chat/completions", &body).await;
        // The last chunk of the body; the connection stays.
        let answer = raw.read_until("0\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("[DONE]"),
            "{answer}"
        );
        raw.send(HEALTH).await;
        assert!(
            raw.read_until("ok\n")
                .await
                .starts_with("HTTP/1.1 200 OK\r\n")
        );
    }
    assert_eq!(gateway.metrics().await.ended("ok"), 3);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let gateway = gateway().scripted().start().await;
    let mut raw = gateway.connect().await;
    raw.send(format!(
        "{HEALTH}GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n{HEALTH}"
    ))
    .await;
    let mut answers = raw.read_until("ok\n").await;
    while answers.matches("ok\n").count() < 2 {
        answers += &raw.read_until("\n").await;
    }
    let found: Vec<_> = answers.matches("HTTP/1.1 ").collect();
    assert_eq!(found.len(), 3);
    let (first, last) = (
        answers.find("ok\n").unwrap(),
        answers.rfind("ok\n").unwrap(),
    );
    assert!(
        (first..last).contains(&answers.find(" 404 ").unwrap()),
        "{answers}"
    );
}

#[tokio::test]
async fn nonsense_on_the_wire_ends_its_connection_only() {
    let gateway = gateway().scripted().start().await;
    for nonsense in [
        "\0\0\0\0",
        "\u{16}\u{3}\u{1} a TLS greeting",
        "GET / HTTP/9.9\r\n\r\n",
        "POST /v1/models HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame, not at all",
    ] {
        let mut raw = gateway.connect().await;
        raw.send(nonsense).await;
        raw.half_close().await;
        let answer = raw.read_to_end().await;
        assert!(!answer.contains("HTTP/1.1 200"), "{nonsense:?}: {answer:?}");
    }
    assert_eq!(gateway.get("/healthz").send().await.status, 200);
}

type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

async fn http2(gateway: &TestGateway) -> Sender {
    let stream = TcpStream::connect(gateway.public).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

async fn answer_over(mut sender: Sender, url: String, body: String) -> Answer {
    let request = hyper::Request::post(url).body(Full::from(body)).unwrap();
    let response = within(sender.send_request(request)).await.unwrap();
    assert_eq!(response.version(), hyper::Version::HTTP_2);
    assert!(response.headers().contains_key("x-request-id"));
    let bytes = within(response.into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    Answer::of_text(std::str::from_utf8(&bytes).unwrap())
}

#[tokio::test]
async fn http2_streams_share_a_connection_and_do_not_wait_for_each_other() {
    let gateway = gateway().scripted().start().await;
    let sender = http2(&gateway).await;
    let url = || format!("{}/v1/chat/completions", gateway.url());
    let slow = chat_body("scripted?pace=1h", "x", r#""stream":true"#);
    let slow = tokio::spawn(answer_over(sender.clone(), url(), slow));
    gateway
        .until("the slow one runs", |m| m.running() == 1)
        .await;
    let body = chat_body("scripted?text=abcd&tokens=300", "x", r#""stream":true"#);
    let answers: Vec<_> = (0..20)
        .map(|_| tokio::spawn(answer_over(sender.clone(), url(), body.clone())))
        .collect();
    for answer in answers {
        assert_eq!(answer.await.unwrap().text(), "abcd".repeat(300));
    }
    // A reset stream is a client that left; the connection goes on.
    slow.abort();
    gateway
        .until("it is freed", |m| {
            m.ended("client_gone") == 1 && m.running() == 0
        })
        .await;
    assert_eq!(
        answer_over(sender, url(), body).await.text(),
        "abcd".repeat(300)
    );
}

#[tokio::test]
async fn an_http2_reader_that_stops_holds_up_neither_the_engine_nor_its_neighbours() {
    let setup = gateway()
        .scripted()
        .with("[stream]\nstall_timeout = '300ms'");
    let gateway = setup.start().await;
    let sender = http2(&gateway).await;
    let url = format!("{}/v1/chat/completions", gateway.url());
    let endless = chat_body("scripted?tokens=100000000", "x", r#""stream":true"#);
    let request = hyper::Request::post(&url)
        .body(Full::from(endless))
        .unwrap();
    let stalled = within(sender.clone().send_request(request)).await.unwrap();
    let body = chat_body("scripted?text=abcd&tokens=50", "x", r#""stream":true"#);
    assert_eq!(
        answer_over(sender, url, body).await.text(),
        "abcd".repeat(50)
    );
    gateway
        .until("it is cut off", |m| {
            m.ended("stalled") == 1 && m.running() == 0
        })
        .await;
    // Its window stays shut while its connection answers pings; after as long again that ends, too.
    gateway
        .until("its connection is gone", |m| {
            m.sum("connections_open", &[]) == 0
        })
        .await;
    drop(stalled);
}

#[tokio::test]
async fn an_http2_connection_with_nothing_to_ask_is_closed() {
    let setup = gateway().scripted().with(
        "[server]
idle_timeout = '300ms'",
    );
    let gateway = setup.start().await;
    let sender = http2(&gateway).await;
    let url = format!("{}/v1/chat/completions", gateway.url());
    let slow = chat_body(
        "scripted?tokens=3&pace=400ms&text=abcd",
        "x",
        r#""stream":true"#,
    );
    let answer = answer_over(sender.clone(), url, slow).await;
    assert_eq!(answer.text(), "abcd".repeat(3), "busy is not idle");
    gateway
        .until("it is closed", |m| m.sum("connections_open", &[]) == 0)
        .await;
    within(async {
        while !sender.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn our_own_client_reads_the_same_over_both_versions() {
    let gateway = gateway().demo("context = 512\nparallel = 2").start().await;
    let mut request = ChatRequest::new("demo").user("Hello!");
    request.seed = Some(4);
    let mut texts = Vec::new();
    for version in [Transport::Http1, Transport::Http2] {
        let client = Client::new(Endpoint::parse(&gateway.url()).unwrap(), version);
        assert_eq!(client.models().await.unwrap()[0].id, "demo");
        let mut stream = client.chat(&request).await.unwrap();
        let mut found = String::new();
        while let Some(event) = within(stream.next()).await {
            if let Event::Text { text, .. } = event.unwrap() {
                found += &text;
            }
        }
        texts.push(found);
    }
    assert!(!texts[0].is_empty());
    assert_eq!(texts[0], texts[1]);
}
