//! Whichever byte of an answer is the last to arrive, the rest can be had, once.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::bare::{Bare, timeless};
use super::{call, completion, resuming, stream_of};

/// Events end where the lengths of frames say.
const FRAMES: &str = "frames";

/// Cuts that are tried side by side.
const AT_ONCE: usize = 16;

/// Whole events at the head of `body`, and how many bytes they take.
fn whole_events(body: &[u8], end: &str) -> (usize, usize) {
    if end.is_empty() {
        return (body.len(), body.len());
    }
    if end == FRAMES {
        let (mut count, mut at) = (0, 0);
        while let Some(&length) = body.get(at + 1)
            && let next = at + 2 + usize::from(length)
            && next <= body.len()
        {
            assert!(body[at] < 64 && length < 64, "both numbers have one byte");
            (count, at) = (count + 1, next);
        }
        return (count, at);
    }
    let text = std::str::from_utf8(body).unwrap();
    let ends: Vec<_> = text.match_indices(end).collect();
    let length = ends.last().map_or(0, |(at, end)| at + end.len());
    (ends.len(), length)
}

/// Loses the connection behind every byte of an answer, and resumes it.
async fn cut_everywhere(accept: &str, end: &'static str) {
    let gateway = resuming().await;
    let address = gateway.public;
    let ask = format!("accept: {accept}\r\n");
    // Frames hold the text that is ready: one token is one frame however fast the machine is.
    let tokens = if end == FRAMES { 1 } else { 4 };
    let body = format!(
        r#"{{"model":"scripted?text=ab%22d&tokens={tokens}&pace=1ms","prompt":"x","stream":true}}"#
    );
    let path = "/v1/completions";
    let expected = timeless(
        &Bare::send(address, "POST", path, &ask, &body)
            .await
            .rest()
            .await,
    );
    let length = expected.len() + expected.matches("\"created\":").count() * 10;
    let (events, _) = whole_events(expected.as_bytes(), end);
    assert!(events >= 4, "{expected}");

    let mut cuts = JoinSet::new();
    for cut in 0..=length {
        if cuts.len() == AT_ONCE {
            cuts.join_next().await.unwrap().unwrap();
        }
        let (ask, body, expected) = (ask.clone(), body.clone(), expected.clone());
        cuts.spawn(async move {
            let answer = Bare::send(address, "POST", path, &ask, &body).await;
            let id = answer.header("x-stream-id").unwrap().to_owned();
            let content_type = answer.header("content-type").unwrap().to_owned();
            let mut read = answer.cut_after(cut).await;
            let (count, length) = whole_events(&read, end);
            read.truncate(length);
            let path = format!("/v1/streams/{id}?after={count}");
            let resumed = Bare::send(address, "GET", &path, "", "").await;
            if resumed.status() == "200" {
                assert_eq!(resumed.header("content-type"), Some(&*content_type));
                assert_eq!(resumed.header("x-stream-id"), Some(&*id));
                read.extend(resumed.rest().await);
            } else {
                assert_eq!(
                    (resumed.status(), count),
                    ("204", events),
                    "nothing is left"
                );
            }
            assert_eq!(timeless(&read), expected, "cut after {cut} bytes");
        });
    }
    while let Some(cut) = cuts.join_next().await {
        cut.unwrap();
    }
    let metrics = gateway
        .until("all have ended", |m| m.sum("streams_open", &[]) == 0)
        .await;
    let count = length as u64 + 2;
    assert_eq!(
        (metrics.ended("ok"), metrics.ended_in_all()),
        (count, count)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_sent_events_that_are_cut_at_any_byte_come_once_each() {
    cut_everywhere("text/event-stream", "\n\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_are_cut_at_any_byte_come_once_each() {
    cut_everywhere("application/x-ndjson", "\n").await;
}

#[tokio::test]
async fn frames_that_are_cut_at_any_byte_come_once_each() {
    cut_everywhere("application/vnd.sluice.frames", FRAMES).await;
}

#[tokio::test]
async fn bare_text_that_is_cut_at_any_byte_goes_on_with_the_next() {
    cut_everywhere("text/plain", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_rpc_that_is_cut_at_any_byte_comes_once_each() {
    let gateway = resuming().await;
    let address = gateway.public;
    let model = json!({"model": "scripted?text=ab%22d&tokens=4&pace=1ms"});
    let body = call("complete", &completion(&model));
    let whole = Bare::send(address, "POST", "/rpc", "", &body).await;
    assert_eq!(whole.header("x-stream-id"), None, "it is in the lines");
    let whole = String::from_utf8(whole.rest().await).unwrap();
    let known_from = whole.find('\n').unwrap() + 1;
    let expected = whole[known_from..].to_owned();
    assert!(expected.lines().count() >= 4, "{whole}");

    let mut cuts = JoinSet::new();
    for cut in known_from..=whole.len() {
        if cuts.len() == AT_ONCE {
            cuts.join_next().await.unwrap().unwrap();
        }
        let (body, expected) = (body.clone(), expected.clone());
        cuts.spawn(async move {
            let answer = Bare::send(address, "POST", "/rpc", "", &body).await;
            let mut read = answer.cut_after(cut).await;
            let (count, length) = whole_events(&read, "\n");
            read.truncate(length);
            let stream = stream_of(std::str::from_utf8(&read).unwrap().lines().next().unwrap());
            let resume = json!({"jsonrpc": "2.0", "id": "r", "method": "resume",
                "params": {"stream": stream, "after": count}});
            let resumed = Bare::send(address, "POST", "/rpc", "", &resume.to_string()).await;
            assert_eq!(resumed.header("content-type"), Some("application/x-ndjson"));
            read.extend(resumed.rest().await);
            let reply = json!({"jsonrpc": "2.0", "id": "r", "result": {"stream": stream}});
            let read = std::str::from_utf8(&read[known_from..]).unwrap();
            let (lines, last) = read.trim_end().rsplit_once('\n').unwrap();
            assert_eq!(serde_json::from_str::<Value>(last).unwrap(), reply);
            assert_eq!(lines, expected.trim_end(), "cut after {cut} bytes");
        });
    }
    while let Some(cut) = cuts.join_next().await {
        cut.unwrap();
    }
}
