//! QUIC and HTTP/3 spoken badly or in bad faith: bounds on everything, and nobody else notices.

use std::time::Duration;

use crate::support::{
    Exchange, Http3, Metrics, Quic, Served, Tap, chat_body, close_code, gateway,
    quic_request as request, within,
};

#[tokio::test]
async fn bodies_that_differ_from_their_length_or_end_within_a_frame_are_no_requests() {
    let served = Served::by(gateway().scripted()).await;
    let http = served.http3().await;
    let body = chat_body("scripted?tokens=1", "x", "");
    for length in [body.len() - 1, body.len() + 1] {
        let mut request = request("POST", "/v1/chat/completions");
        request
            .headers_mut()
            .insert("content-length", length.into());
        let mut exchange = http.begin(request).await;
        exchange.send(body.clone().into()).await.unwrap();
        exchange.finish().await;
        let head = exchange.try_head().await;
        assert!(!head.is_ok_and(|(status, _)| status.is_success()));
    }
    // HEADERS, and a DATA frame of ten bytes of which three come.
    let (mut send, mut recv) = http.connection.open_bi().await.unwrap();
    send.write_all(&post_head()).await.unwrap();
    send.write_all(b"\x00\x0aabc").await.unwrap();
    send.finish().unwrap();
    let answered = within(recv.read_to_end(100_000)).await;
    assert!(!answered.is_ok_and(|answer| answer.windows(3).any(|w| w == b"200")));
    assert_eq!(http.get("/healthz").await.head().await.0, 200);
    assert_eq!(served.gateway.metrics().await.ended("ok"), 0);
}

#[tokio::test]
async fn a_stream_without_headers_is_reset_in_time_and_leaves_nothing() {
    let setup = gateway()
        .scripted()
        .with("[server]\nheader_timeout = '200ms'");
    let served = Served::by(setup).await;
    let http = served.http3().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        let (mut send, recv) = http.connection.open_bi().await.unwrap();
        // The beginning of a HEADERS frame.
        send.write_all(b"\x01\x20").await.unwrap();
        silent.push((send, recv));
    }
    for (_send, mut recv) in silent {
        let error = within(recv.read_to_end(10)).await.unwrap_err();
        let quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) = error else {
            panic!("it is reset: {error}");
        };
        assert_eq!(code.into_inner(), 0x10c, "H3_REQUEST_CANCELLED");
    }
    assert_eq!(http.get("/healthz").await.head().await.0, 200);
}

#[tokio::test]
async fn headers_that_are_too_large_are_answered_and_huge_ones_reset() {
    let setup = gateway()
        .scripted()
        .with("[server]\nmax_header_bytes = '8KiB'");
    let served = Served::by(setup).await;
    let http = served.http3().await;
    // The client keeps to what it was told, so the frames are our own.
    for (length, answered) in [(10_000, true), (100_000, false)] {
        let (mut send, mut recv) = http.connection.open_bi().await.unwrap();
        let _ = send.write_all(&head_with(length)).await;
        let _ = send.finish();
        let answer = within(recv.read_to_end(10_000)).await;
        assert_eq!(answer.is_ok(), answered, "{length}: {answer:?}");
    }
    assert_eq!(
        http.get("/healthz").await.head().await.0,
        200,
        "the connection goes on"
    );
}

#[tokio::test]
async fn more_streams_than_allowed_wait_with_the_client() {
    let setup = gateway().scripted().with("[quic]\nmax_streams = 3");
    let served = Served::by(setup).await;
    let http = served.http3().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(http.chat("scripted?pace=1h", "").await);
    }
    let waiting = http.get("/healthz");
    let mut waiting = std::pin::pin!(waiting);
    let came = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(came.is_err(), "there is no room for a fourth");
    open.pop();
    let mut fourth: Exchange = within(waiting).await;
    assert_eq!(fourth.head().await.0, 200);
}

#[tokio::test]
async fn nonsense_ends_its_connection_only() {
    let served = Served::by(gateway().scripted()).await;
    let http = served.http3().await;
    let quic = served.quic();
    for (nonsense, code) in [
        // The control stream: DATA instead of SETTINGS; SETTINGS twice; a SETTINGS frame without end.
        (&b"\x00\x00\x01x"[..], 0x10a),
        (b"\x00\x04\x00\x04\x00", 0x105),
        (b"\x00\x04\xbf\xff\xff\xff", 0x104),
    ] {
        let connection = quic.raw(served.gateway.secure()).await;
        let mut control = connection.open_uni().await.unwrap();
        let _ = control.write_all(nonsense).await;
        let error = within(connection.closed()).await;
        assert_eq!(close_code(&error), Some(code), "{nonsense:?}: {error}");
    }
    // A second control stream; DATA before HEADERS.
    let mut second = http.connection.open_uni().await.unwrap();
    second.write_all(b"\x00\x04\x00").await.unwrap();
    let error = within(http.connection.closed()).await;
    assert_eq!(close_code(&error), Some(0x103), "{error}");
    let http = served.http3().await;
    let (mut send, _recv) = http.connection.open_bi().await.unwrap();
    send.write_all(b"\x00\x01x").await.unwrap();
    let error = within(http.connection.closed()).await;
    assert_eq!(close_code(&error), Some(0x105), "{error}");
    assert_eq!(
        served.http3().await.get("/healthz").await.head().await.0,
        200
    );
}

#[tokio::test]
async fn another_protocol_gets_no_connection() {
    let served = Served::by(gateway().scripted()).await;
    let quic = served.quic().protocol("hq-29");
    let connecting = quic.connecting(served.gateway.secure());
    assert!(within(connecting).await.is_err());
    let closed = |m: &Metrics| m.sum("connections_open", &[]) == 0;
    let metrics = served.gateway.until("nothing is left of it", closed).await;
    assert_eq!(
        metrics.sum("tls_handshakes_total", &["result=\"failed\""]),
        1
    );
}

#[tokio::test]
async fn a_flood_of_nonsense_datagrams_costs_nobody_a_connection() {
    let served = Served::by(gateway().scripted()).await;
    let http = served.http3().await;
    let running = http.chat("scripted?text=abcd&tokens=50&pace=2ms", "").await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut state = 7_u32;
    for number in 0..2000_u32 {
        let mut datagram = [0; 1200];
        for byte in &mut datagram {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = state.to_be_bytes()[0];
        }
        if number % 2 == 0 {
            // An Initial of version 1 from its outside.
            datagram[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        let _ = socket.send_to(&datagram, served.gateway.secure()).await;
    }
    assert_eq!(running.answer().await.text(), "abcd".repeat(50));
    assert_eq!(
        served.http3().await.get("/healthz").await.head().await.0,
        200
    );
    let alone = |m: &Metrics| m.sum("connections_open", &[]) <= 2;
    served
        .gateway
        .until("none of it is a connection", alone)
        .await;
}

#[tokio::test]
async fn clients_are_asked_to_prove_their_address_where_that_is_wanted() {
    let setup = gateway().scripted().with("[quic]\nretry_above = 0");
    let served = Served::by(setup).await;
    let http = served.http3().await;
    assert_eq!(http.get("/healthz").await.head().await.0, 200);
    assert!(http.connection.stats().udp_rx.datagrams > 0);
}

/// Connects until there is something to resume, and leaves.
async fn visit(served: &Served, quic: &Quic) {
    let mut visits = 0;
    loop {
        let Err(connecting) = quic.connecting(served.gateway.secure()).into_0rtt() else {
            // The attempt itself goes nowhere.
            return;
        };
        let http = Http3::on(within(connecting).await.unwrap()).await;
        assert_eq!(http.get("/healthz").await.head().await.0, 200);
        visits += 1;
        assert!(visits < 100, "tickets come with the first answers");
    }
}

#[tokio::test]
async fn an_early_request_whose_handshake_never_ends_is_never_executed() {
    let setup = gateway()
        .scripted()
        .with("[tls]\nhandshake_timeout = '500ms'");
    let served = Served::by(setup).await;
    let quic = served.quic();
    visit(&served, &quic).await;
    let tap = Tap::before(served.gateway.secure()).await;
    let Ok((connection, _)) = quic.connecting(tap.address).into_0rtt() else {
        panic!("there is something to resume");
    };
    let http = Http3::on(connection).await;
    let body = chat_body("scripted?text=abcd&tokens=3", "x", r#""stream":true"#);
    let _exchange = http.post("/v1/chat/completions", body).await;
    let given_up = |m: &Metrics| m.sum("tls_handshakes_total", &["result=\"timed_out\""]) == 1;
    let metrics = served.gateway.until("it is given up", given_up).await;
    assert_eq!((metrics.ended_in_all(), metrics.running()), (0, 0));
    let closed = |m: &Metrics| m.sum("connections_open", &[]) == 0;
    let metrics = served.gateway.until("nothing is left of it", closed).await;
    assert_eq!(metrics.ended_in_all(), 0);
}

#[tokio::test]
async fn a_goodbye_names_a_stream_beyond_all_that_are_served() {
    let setup = gateway().scripted();
    let setup = setup.with("[drain]\nlag = '0s'\ntimeout = '20s'");
    let mut served = Served::by(setup).await;
    let connection = served.quic().raw(served.gateway.secure()).await;
    let mut control = connection.open_uni().await.unwrap();
    control.write_all(b"\x00\x04\x00").await.unwrap();
    // Two requests, of which the second, stream 4, is still running.
    let mut asked = Vec::new();
    for (model, more) in [
        ("scripted?tokens=1", ""),
        ("scripted?tokens=20&pace=20ms", ""),
    ] {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        let body = chat_body(model, "x", &format!(r#""stream":true{more}"#));
        send.write_all(&post_head()).await.unwrap();
        send.write_all(&data_frame(body.as_bytes())).await.unwrap();
        send.finish().unwrap();
        let mut first = [0; 1];
        within(recv.read_exact(&mut first)).await.unwrap();
        asked.push(recv);
    }
    let drained = served.gateway.drain();
    let mut goodbye = None;
    // The control stream is the one that says so (RFC 9114, section 6.2.1).
    for _ in 0..3 {
        let mut stream = within(connection.accept_uni()).await.unwrap();
        let mut kind = [0; 1];
        within(stream.read_exact(&mut kind)).await.unwrap();
        if kind == [0] {
            let mut all = Vec::new();
            while goodbye.is_none() {
                let Ok(Some(chunk)) = within(stream.read_chunk(1000, true)).await else {
                    break;
                };
                all.extend_from_slice(&chunk.bytes);
                goodbye = frames(&all).into_iter().find(|(kind, _)| *kind == 7);
            }
        }
    }
    let (_, id) = goodbye.expect("a GOAWAY");
    assert_eq!(id, [8], "the first stream that is not served");
    for mut recv in asked {
        within(recv.read_to_end(100_000))
            .await
            .expect("a whole answer");
    }
    within(drained).await.unwrap();
}

/// Type and payload of each whole frame, where both numbers are of one byte or two.
fn frames(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut rest = bytes;
    let number = |rest: &mut &[u8]| -> Option<u64> {
        let size = 1 << (rest.first()? >> 6);
        let (head, tail) = rest.split_at_checked(size)?;
        *rest = tail;
        let first = u64::from(head[0] & 0x3f);
        Some(
            head[1..]
                .iter()
                .fold(first, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let mut found = Vec::new();
    while let (Some(kind), Some(length)) = (number(&mut rest), number(&mut rest)) {
        let Some((payload, tail)) = rest.split_at_checked(usize::try_from(length).unwrap()) else {
            break;
        };
        found.push((kind, payload.to_vec()));
        rest = tail;
    }
    found
}

fn data_frame(body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend((0x8000_0000 | u32::try_from(body.len()).unwrap()).to_be_bytes());
    frame.extend(body);
    frame
}

/// A HEADERS frame of QPACK's static table and literals: `POST https://localhost/v1/chat/completions`.
fn post_head() -> Vec<u8> {
    head(&[])
}

/// One with a field of so many bytes.
fn head_with(length: usize) -> Vec<u8> {
    head(&vec![b'a'; length])
}

fn head(value: &[u8]) -> Vec<u8> {
    // No dynamic table; :method POST; :scheme https; :authority and :path by name.
    let mut block = vec![0, 0, 0xd4, 0xd7];
    literal(&mut block, b":authority", b"localhost");
    literal(&mut block, b":path", b"/v1/chat/completions");
    if !value.is_empty() {
        literal(&mut block, b"x-more", value);
    }
    let mut frame = vec![1];
    frame.extend((0x8000_0000 | u32::try_from(block.len()).unwrap()).to_be_bytes());
    frame.extend(block);
    frame
}

/// A literal field line with a literal name (RFC 9204, section 4.5.6).
fn literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    prefixed(out, 0x20, 3, name.len());
    out.extend_from_slice(name);
    prefixed(out, 0, 7, value.len());
    out.extend_from_slice(value);
}

/// An integer behind a prefix (RFC 7541, section 5.1).
fn prefixed(out: &mut Vec<u8>, flags: u8, bits: u32, value: usize) {
    let most = (1_usize << bits) - 1;
    if value < most {
        out.push(flags | u8::try_from(value).unwrap());
        return;
    }
    out.push(flags | u8::try_from(most).unwrap());
    let mut rest = value - most;
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).unwrap() | 0x80);
        rest /= 128;
    }
    out.push(u8::try_from(rest).unwrap());
}
