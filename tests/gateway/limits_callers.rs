//! How much each caller may use, over real sockets: exact counts, clear refusals, and nothing lost.
//!
//! A minute's worth comes back in a minute, so the limits here are of a few a minute: no test takes so
//! long that one more comes back.

use serde_json::{Value, json};
use sluicegate::wire::sluice::FRAMES;
use sluicegate::wire::sluice::frames::{Decoder, Frame, Reasons};

use crate::keys::{entry, key};
use crate::support::{Answer, Came, Metrics, Reply, Served, TestGateway, demo_file, gateway};

/// One token now, the next in an hour: holds its stream open.
const HELD: &str = "scripted?pace=1h";
const STREAM: &str = r#""stream":true"#;

async fn limited(limits: &str) -> TestGateway {
    gateway().scripted().with(limits).start().await
}

/// A refusal: its code, and a message that names this limit.
async fn refused_by(reply: Reply, limit: &str, code: &str) {
    assert_eq!(reply.status, 429);
    let after: u64 = reply.header("retry-after").parse().unwrap();
    let millis: u64 = reply.header("retry-after-ms").parse().unwrap();
    assert_eq!(after, millis.div_ceil(1000));
    let is_soon = if millis <= 120_000 { "true" } else { "false" };
    assert_eq!(reply.header("x-should-retry"), is_soon);
    let body = reply.json().await;
    assert_eq!(body["error"]["type"], "rate_limit_error");
    assert_eq!(body["error"]["code"], code);
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("({limit})")), "{message}");
}

fn number(reply: &Reply, header: &str) -> u64 {
    let value = reply.header(header);
    value
        .parse()
        .unwrap_or_else(|_| panic!("{header}: {value:?}"))
}

/// What the caller has left, asked for in a way that costs nothing.
async fn left(gateway: &TestGateway, header: &str) -> u64 {
    number(&gateway.get("/v1/models").send().await, header)
}

#[tokio::test]
async fn so_many_requests_a_minute_and_not_one_more() {
    let gateway = limited("[limits.anonymous]\nrequests_per_minute = 3\nrequest_burst = 3").await;
    // On streams, too.
    for (left, more) in [(2, ""), (1, STREAM), (0, STREAM)] {
        let reply = gateway.chat("scripted", "x", more).send().await;
        assert_eq!(reply.status, 200);
        assert_eq!(number(&reply, "x-ratelimit-limit-requests"), 3);
        assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), left);
        assert_eq!(reply.header("x-ratelimit-remaining-tokens"), "");
        assert_eq!(
            reply.header("ratelimit-policy"),
            r#""caller.requests_per_minute";q=3;w=60"#
        );
        let (name, rest) = reply.header("ratelimit").split_once(";r=").unwrap();
        assert_eq!(name, r#""caller.requests_per_minute""#);
        let (remaining, seconds) = rest.split_once(";t=").unwrap();
        assert_eq!(remaining, left.to_string());
        assert!((1..=60).contains(&seconds.parse::<u32>().unwrap()));
    }
    let reply = gateway.chat("scripted", "x", "").send().await;
    assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), 0);
    assert!(reply.header("x-ratelimit-reset-requests").ends_with('s'));
    refused_by(reply, "caller.requests_per_minute", "rate_limit_exceeded").await;
    let metrics = gateway.metrics().await;
    let labels = [r#"scope="caller""#, r#"limit="requests_per_minute""#];
    assert_eq!(metrics.sum("limit_refusals_total", &labels), 1);
    assert_eq!(metrics.sum("limit_refusals_total", &[]), 1);
    assert_eq!(metrics.ended("limited"), 1);
}

#[tokio::test]
async fn every_dialect_has_its_own_refusal() {
    let gateway = limited("[limits.anonymous]\nrequests_per_day = 1").await;
    assert_eq!(gateway.chat("scripted", "x", "").send().await.status, 200);
    let quota = ("caller.requests_per_day", "insufficient_quota");
    for more in ["", STREAM] {
        let reply = gateway.chat("scripted", "x", more).send().await;
        assert_eq!(number(&reply, "x-ratelimit-limit-requests"), 1);
        refused_by(reply, quota.0, quota.1).await;
    }
    let completion = r#"{"model":"scripted","prompt":"x"}"#;
    let reply = gateway.post("/v1/completions", completion).send().await;
    refused_by(reply, quota.0, quota.1).await;

    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "complete",
        "params": {"model": "scripted", "prompt": "x"}});
    let reply = gateway.post("/rpc", call.to_string()).send().await;
    assert_eq!(reply.status, 200, "JSON-RPC has its own errors");
    assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), 0);
    let error = reply.json().await["error"].clone();
    assert_eq!(error["code"], -32012);
    assert_eq!(error["data"]["kind"], "limited");
    assert_eq!(error["data"]["code"], "insufficient_quota");
    assert!(error["data"]["retry_after_ms"].as_u64().unwrap() > 0);
    assert!(error["message"].as_str().unwrap().contains(quota.0));

    let ask = gateway.chat("scripted", "x", "").header("accept", FRAMES);
    let reply = ask.send().await;
    assert_eq!((reply.status, reply.header("content-type")), (429, FRAMES));
    let bytes = reply.bytes().await;
    let mut decoder = Decoder::new();
    let Ok(Some(Frame::Error(error))) = decoder.next(&mut &bytes[..]) else {
        panic!("not one ERROR: {bytes:?}");
    };
    let error: Value = serde_json::from_slice(error).unwrap();
    assert!(error.to_string().contains(quota.0), "{error}");
}

#[tokio::test]
async fn a_stream_takes_its_place_until_its_body_has_ended() {
    let gateway = limited("[limits.anonymous]\nstreams = 2").await;
    let first = gateway.chat(HELD, "x", STREAM).send().await;
    // Nobody reads this one: its head is there, and its place is taken.
    let _unread = gateway
        .chat("scripted?tokens=1000000", "x", STREAM)
        .receive_buffer(4096)
        .send()
        .await;
    let third = gateway.chat("scripted", "x", "").send().await;
    refused_by(third, "caller.streams", "rate_limit_exceeded").await;
    drop(first);
    gateway
        .until("the first has ended", |m| m.sum("streams_open", &[]) == 1)
        .await;
    let whole = gateway.chat("scripted", "x", STREAM).send().await;
    assert_eq!(whole.status, 200);
    whole.answer().await.text();
    let next = gateway.chat("scripted", "x", "").send().await;
    assert_eq!(
        next.status, 200,
        "who has seen the end finds the place free"
    );
}

#[tokio::test]
async fn a_request_waits_in_line_until_its_first_token() {
    let gateway = limited("[limits.anonymous]\nqueued = 1").await;
    let waits = "scripted?first=1h";
    let ask = gateway.chat(waits, "x", STREAM);
    let waiting = tokio::spawn(ask.send());
    gateway
        .until("it waits", |m| m.sum("streams_open", &[]) == 1)
        .await;
    let second = gateway.chat(waits, "x", STREAM).send().await;
    refused_by(second, "caller.queued", "rate_limit_exceeded").await;
    waiting.abort();
    gateway
        .until("it has left", |m| m.sum("streams_open", &[]) == 0)
        .await;
    let mut held = gateway.chat(HELD, "x", STREAM).send().await;
    held.next_event().await.unwrap();
    let another = gateway.chat(HELD, "x", STREAM).send().await;
    assert_eq!(another.status, 200, "the first waits no more");
}

#[tokio::test]
async fn what_a_cancelled_stream_did_not_deliver_is_given_back() {
    let gateway = limited("[limits.anonymous]\ntokens_per_minute = 1\ntoken_burst = 1000").await;
    let mut held = gateway
        .chat(HELD, "x", r#""stream":true,"max_tokens":500"#)
        .send()
        .await;
    let reserved = number(&held, "x-ratelimit-remaining-tokens");
    assert!((400..500).contains(&reserved), "{reserved}");
    assert_eq!(
        left(&gateway, "x-ratelimit-remaining-tokens").await,
        reserved
    );
    held.next_event().await.unwrap();
    drop(held);
    gateway
        .until("it has ended", |m| m.sum("streams_open", &[]) == 0)
        .await;
    let back = left(&gateway, "x-ratelimit-remaining-tokens").await;
    assert_eq!(back, reserved + 499, "all but the one that was delivered");
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("limit_tokens_total", &[r#"kind="output""#]), 1);
}

#[tokio::test]
async fn a_whole_answer_costs_its_prompt_and_its_tokens() {
    let gateway = limited("[limits.anonymous]\ntokens_per_minute = 1\ntoken_burst = 1000").await;
    let more = r#""max_tokens":100,"n":2"#;
    let reply = gateway
        .chat("scripted?tokens=30", &"x".repeat(50), more)
        .send()
        .await;
    let usage = reply.json().await["usage"].clone();
    assert_eq!(usage["completion_tokens"], 60);
    let total = usage["total_tokens"].as_u64().unwrap();
    assert_eq!(
        left(&gateway, "x-ratelimit-remaining-tokens").await,
        1000 - total
    );
}

#[tokio::test]
async fn too_many_tokens_for_what_is_left_are_refused_and_fewer_are_not() {
    let gateway = limited("[limits.anonymous]\ntokens_per_minute = 1\ntoken_burst = 400").await;
    let ask = |max: u32| gateway.chat("scripted?tokens=10", "x", &format!("\"max_tokens\":{max}"));
    assert_eq!(ask(300).send().await.status, 200);
    let reply = ask(399).send().await;
    refused_by(reply, "caller.tokens_per_minute", "rate_limit_exceeded").await;
    assert_eq!(ask(300).send().await.status, 200);
    let refused = gateway
        .metrics()
        .await
        .sum("limit_refusals_total", &[r#"scope="caller""#]);
    assert_eq!(refused, 1);
}

/// Enough for what is reserved for an answer whose length nobody bounded, and little more.
const DRY: &str = "[limits.anonymous]\ntokens_per_minute = 1\ntoken_burst = 300";

#[tokio::test]
async fn no_more_is_reserved_for_an_answer_than_the_model_can_hold() {
    let limits = "[limits.models.demo]\ntokens_per_minute = 1_000_000";
    let gateway = gateway().with(limits).start().await;
    let endless = format!(r#"{STREAM},"max_tokens":4294967295"#);
    let reply = gateway.chat("demo", "x", &endless).send().await;
    assert_eq!(reply.status, 200);
    // Whoever asks for four billion does not hold up all others on this model meanwhile.
    assert!(number(&reply, "x-ratelimit-remaining-tokens") > 900_000);
}

#[tokio::test]
async fn a_stream_that_runs_its_caller_dry_ends_as_if_it_were_long_enough() {
    let gateway = limited(DRY).await;
    let more = r#""stream":true,"stream_options":{"include_usage":true},"stop":["abcdX"]"#;
    let ask = gateway.chat("scripted?tokens=100000&text=abcd", "x", more);
    let text = ask.send().await.text().await;
    let answer = Answer::of_text(&text);
    assert_eq!(answer.error, None);
    assert_eq!(answer.finishes, [Some("length".to_owned())]);
    assert!(text.contains(r#""finish_reason":"length"}],"ended_by":"caller.tokens_per_minute""#));
    let usage = answer.usage.unwrap();
    let tokens = usage["completion_tokens"].as_u64().unwrap();
    let total = usage["total_tokens"].as_u64().unwrap();
    assert!((300..300 + 64).contains(&total), "{total}");
    let all = "abcd".repeat(usize::try_from(tokens).unwrap());
    assert_eq!(
        answer.texts[0], all,
        "what could still have become a stop string, too"
    );
    assert_eq!(left(&gateway, "x-ratelimit-remaining-tokens").await, 0);
    let metrics = gateway.metrics().await;
    let labels = [r#"scope="caller""#, r#"limit="tokens_per_minute""#];
    assert_eq!(metrics.sum("limit_dry_total", &labels), 1);
    assert_eq!(metrics.ended("ok"), 1);
    assert_eq!(
        (metrics.running(), metrics.sum("streams_open", &[])),
        (0, 0)
    );
}

#[tokio::test]
async fn the_other_dialects_say_which_limit_ended_them_too() {
    let endless = "scripted?tokens=100000&text=abcd";
    let ended_by = "caller.tokens_per_minute";

    let document = limited(DRY)
        .await
        .chat(endless, "x", r#""n":2"#)
        .send()
        .await;
    let document = document.json().await;
    assert_eq!(document["ended_by"], ended_by);
    for choice in document["choices"].as_array().unwrap() {
        assert_eq!(choice["finish_reason"], "length");
    }

    let gateway = limited(DRY).await;
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "complete",
        "params": {"model": endless, "prompt": "x"}});
    let result = gateway.post("/rpc", call.to_string()).send().await;
    let result = result.json().await["result"].clone();
    assert_eq!(result["ended_by"], ended_by);
    assert_eq!(result["finish_reason"], "length");

    let served = Served::by(gateway_with(DRY)).await;
    let sluice = served.sluice().await;
    let rest = sluice.chat(endless, "").await.rest().await;
    let Some(Came::End(reasons)) = rest.last() else {
        panic!("END is last: {rest:?}");
    };
    assert_eq!(Reasons::limit(reasons[0]), Some(ended_by));
}

fn gateway_with(limits: &str) -> crate::support::Setup {
    gateway().scripted().with(limits)
}

#[tokio::test]
async fn or_it_ends_with_an_error_that_names_the_limit() {
    let limits = format!("[limits]\nwhen_dry = 'error'\n{DRY}");
    let gateway = limited(&limits).await;
    let endless = "scripted?tokens=100000";
    let text = gateway.chat(endless, "x", STREAM).send().await.text().await;
    assert!(text.contains("(caller.tokens_per_minute)"));
    let answer = Answer::of_text(&text);
    assert_eq!(answer.error.as_deref(), Some("rate_limit_exceeded"));
    assert_eq!(gateway.metrics().await.ended("limited"), 1);

    let gateway = limited(&limits).await;
    let whole = gateway.chat(endless, "x", "").send().await;
    refused_by(whole, "caller.tokens_per_minute", "rate_limit_exceeded").await;
}

#[tokio::test]
async fn a_model_has_limits_for_all_its_callers_and_others_have_none() {
    let gateway = gateway()
        .scripted()
        .demo("context = 256\nparallel = 1")
        .with("[limits.models.scripted]\nrequests_per_minute = 1")
        .start()
        .await;
    let reply = gateway.chat("scripted?tokens=3", "x", "").send().await;
    assert_eq!(reply.status, 200);
    assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), 0);
    let reply = gateway.chat("scripted", "x", "").send().await;
    refused_by(reply, "model.requests_per_minute", "rate_limit_exceeded").await;
    let other = gateway.chat("demo", "x", r#""max_tokens":1"#).send().await;
    assert_eq!((other.status, other.header("ratelimit")), (200, ""));
}

#[tokio::test]
async fn whoever_is_not_believed_and_whatever_is_not_understood_makes_no_account() {
    let gateway = limited("[limits.anonymous]\nrequests_per_minute = 1000").await;
    for number in 0..50 {
        let ask = gateway.post("/v1/chat/completions", "{");
        let key = format!("Bearer sk-{number}");
        assert_eq!(ask.header("authorization", &key).send().await.status, 400);
        let unknown = gateway
            .chat(&format!("model-{number}"), "x", "")
            .send()
            .await;
        assert_eq!(unknown.status, 404);
        assert_eq!(number_of_accounts(&gateway).await, 0);
    }
    for number in 0..50 {
        let ask = gateway.chat("scripted?tokens=1", "x", "");
        let key = format!("Bearer sk-{number}");
        assert_eq!(ask.header("authorization", &key).send().await.status, 200);
    }
    assert_eq!(number_of_accounts(&gateway).await, 1, "it is one address");
}

async fn number_of_accounts(gateway: &TestGateway) -> u64 {
    gateway.metrics().await.sum("limit_accounts", &[])
}

#[tokio::test]
async fn embeddings_and_rankings_are_charged_for_what_is_read() {
    let gateway = limited("[limits.anonymous]\ntokens_per_minute = 1\ntoken_burst = 1000").await;
    let body = json!({"model": "scripted", "input": ["x".repeat(100), "y".repeat(60)]});
    let reply = gateway
        .post("/v1/embeddings", body.to_string())
        .send()
        .await;
    let remaining = number(&reply, "x-ratelimit-remaining-tokens");
    let read = reply.json().await["usage"]["total_tokens"]
        .as_u64()
        .unwrap();
    assert_eq!(remaining, 1000 - read);
    let body = json!({"model": "scripted", "query": "q", "documents": ["a", "b"]});
    let reply = gateway.post("/v1/rerank", body.to_string()).send().await;
    assert_eq!(reply.status, 200);
    let after = number(&reply, "x-ratelimit-remaining-tokens");
    let read = reply.json().await["usage"]["total_tokens"]
        .as_u64()
        .unwrap();
    assert_eq!(after, remaining - read);
    let body = json!({"model": "scripted", "input": "x".repeat(8000)});
    let reply = gateway
        .post("/v1/embeddings", body.to_string())
        .send()
        .await;
    refused_by(reply, "caller.tokens_per_minute", "rate_limit_exceeded").await;
}

#[tokio::test]
async fn who_leaves_before_vectors_are_there_or_gives_too_little_time_pays_for_them() {
    let gateway = limited("[limits.anonymous]\ntokens_per_minute = 1\ntoken_burst = 1000").await;
    let left = || left(&gateway, "x-ratelimit-remaining-tokens");
    let ask = |model: &str| json!({"model": model, "input": vec![7; 100]}).to_string();
    let refused = ask("scripted?fail_at=0&fail_kind=overloaded");
    let refused = gateway.post("/v1/embeddings", refused).send().await;
    assert_eq!((refused.status, left().await), (503, 1000));
    let late = gateway.post("/v1/embeddings", ask("scripted?first=1h"));
    let late = late.header("x-request-timeout", "20ms").send().await;
    assert_eq!((late.status, left().await), (504, 900));
    let documents = json!({"model": "scripted?first=1h", "query": "q", "documents": ["ab", "cd"]});
    for (body, path) in [
        (ask("scripted?first=1h"), "/v1/embeddings"),
        (documents.to_string(), "/v1/rerank"),
    ] {
        let before = left().await;
        let gone = gateway.metrics().await.ended("client_gone");
        let mut leaves = gateway.connect().await;
        leaves.post(path, &body).await;
        drop(leaves);
        let is_counted = |m: &Metrics| m.ended("client_gone") == gone + 1;
        gateway.until("it is counted", is_counted).await;
        assert!(left().await < before, "{path}");
    }
}

#[tokio::test]
async fn counting_tokens_is_a_request() {
    let gateway = limited("[limits.anonymous]\nrequests_per_minute = 4").await;
    let tokenize = json!({"model": "scripted", "content": "xyz", "with_pieces": true});
    let detokenize = json!({"model": "scripted", "tokens": [120, 121]});
    let chat = json!({"model": "scripted", "messages": [{"role": "user", "content": "x"}]});
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "detokenize", "params": detokenize});
    for (path, body) in [
        ("/v1/tokenize", &tokenize),
        ("/v1/detokenize", &detokenize),
        ("/v1/chat/completions/input_tokens", &chat),
        ("/rpc", &call),
    ] {
        let before = left(&gateway, "x-ratelimit-remaining-requests").await;
        let reply = gateway.post(path, body.to_string()).send().await;
        assert_eq!(reply.status, 200, "{path}");
        let after = number(&reply, "x-ratelimit-remaining-requests");
        assert_eq!(after, before - 1, "{path}");
        assert!(reply.json().await.get("error").is_none(), "{path}");
    }
    for (path, body) in [("/v1/tokenize", tokenize), ("/v1/detokenize", detokenize)] {
        let reply = gateway.post(path, body.to_string()).send().await;
        refused_by(reply, "caller.requests_per_minute", "rate_limit_exceeded").await;
    }
}

#[tokio::test]
async fn each_key_has_the_limits_of_its_class_and_all_of_an_owner_share_theirs() {
    let keys = [
        ("a", "owner = 'acme'"),
        ("b", "owner = 'acme'\nclass = 'big'"),
        ("c", "class = 'big'"),
    ];
    let keys = keys.map(|(id, more)| entry("auth.keys", id, more)).concat();
    let limits = "[limits.organizations.acme]\nrequests_per_minute = 4\n\
                  [limits.classes.default]\nrequests_per_minute = 1\n\
                  [limits.classes.big]\nrequests_per_minute = 5\n";
    let gateway = limited(&format!("{limits}{keys}")).await;
    let ask = async |id: &str| {
        let ask = gateway.chat("scripted?tokens=1", "x", "");
        ask.header("x-api-key", &key(id)).send().await
    };
    let refused = ask("nobody").await;
    assert_eq!((refused.status, refused.header("ratelimit")), (401, ""));
    assert_eq!(ask("a").await.status, 200);
    let reply = ask("a").await;
    refused_by(reply, "caller.requests_per_minute", "rate_limit_exceeded").await;
    for left in [2, 1, 0] {
        let reply = ask("b").await;
        assert_eq!(reply.status, 200);
        let told = number(&reply, "x-ratelimit-remaining-requests");
        assert_eq!(told, left, "the organization's, which are fewer");
    }
    let reply = ask("b").await;
    assert!(
        reply
            .header("ratelimit")
            .starts_with(r#""organization.requests_per_minute";r=0"#)
    );
    refused_by(
        reply,
        "organization.requests_per_minute",
        "rate_limit_exceeded",
    )
    .await;
    let reply = ask("c").await;
    assert_eq!(number(&reply, "x-ratelimit-remaining-requests"), 4);
    let accounts = number_of_accounts(&gateway).await;
    assert_eq!(accounts, 3, "one for each key that was believed");
}

#[tokio::test]
async fn a_models_answer_ends_early_too_here_and_in_a_process_of_its_own() {
    let limits = "tokens_per_minute = 1\ntoken_burst = 300";
    let settings = "context = 2048\nparallel = 2\ntrusted = true";
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_sluicegate"));
    let apart = format!("{settings}\nisolation = 'process'");
    let gateway = gateway()
        .program(program)
        .demo(settings)
        .model("apart", demo_file(), &apart)
        .with(&format!(
            "[limits.models.demo]\n{limits}\n[limits.models.apart]\n{limits}"
        ))
        .start()
        .await;
    for model in ["demo", "apart"] {
        let more = r#""stream":true,"ignore_eos":true,"stream_options":{"include_usage":true}"#;
        let text = gateway.chat(model, "x", more).send().await.text().await;
        assert!(
            text.contains(r#""ended_by":"model.tokens_per_minute""#),
            "{text}"
        );
        let answer = Answer::of_text(&text);
        assert_eq!(answer.error, None);
        assert_eq!(answer.finishes, [Some("length".to_owned())]);
        let total = answer.usage.unwrap()["total_tokens"].as_u64().unwrap();
        assert!((300..300 + 64).contains(&total), "{model}: {total}");
    }
    gateway.until("both are free", |m| m.running() == 0).await;
}
