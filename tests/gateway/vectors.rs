//! Embeddings and rankings: OpenAI's shape, the same numbers in every form, streams undisturbed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::{TestGateway, gateway};

/// The answer to a good request.
async fn embed(gateway: &TestGateway, body: Value) -> Value {
    let reply = gateway
        .post("/v1/embeddings", body.to_string())
        .send()
        .await;
    assert_eq!(reply.status, 200);
    reply.json().await
}

async fn refusal(gateway: &TestGateway, path: &str, body: Value) -> (u16, String, Value) {
    let reply = gateway.post(path, body.to_string()).send().await;
    let status = reply.status;
    let error = reply.json().await["error"].clone();
    let code = error["code"].as_str().unwrap_or_default().to_owned();
    (status, code, error["param"].clone())
}

fn numbers(embedding: &Value) -> Vec<f32> {
    serde_json::from_value(embedding.clone()).unwrap_or_else(|_| panic!("{embedding}"))
}

#[tokio::test]
async fn an_answer_has_openais_shape_and_vectors_of_length_one() {
    let gateway = gateway().demo("context = 512\nparallel = 2").start().await;
    let answer = embed(
        &gateway,
        json!({"model": "demo", "input": ["Hello there.", "Another text."], "user": "u"}),
    )
    .await;
    let mut members: Vec<_> = answer.as_object().unwrap().keys().collect();
    members.sort();
    assert_eq!(members, ["data", "model", "object", "usage"]);
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("demo"))
    );
    for (index, entry) in answer["data"].as_array().unwrap().iter().enumerate() {
        assert_eq!(
            (&entry["object"], &entry["index"]),
            (&json!("embedding"), &json!(index))
        );
        let vector = numbers(&entry["embedding"]);
        let length: f32 = vector.iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    let usage = &answer["usage"];
    assert!(usage["prompt_tokens"].as_u64() > Some(2), "{usage}");
    assert_eq!(usage["prompt_tokens"], usage["total_tokens"]);

    let metrics = gateway.metrics().await;
    let labels = ["route=\"embeddings\"", "outcome=\"ok\""];
    assert_eq!(metrics.sum("requests_total", &labels), 1);
    assert_eq!(
        Some(metrics.sum("tokens_total", &["kind=\"input\""])),
        usage["prompt_tokens"].as_u64()
    );
}

#[tokio::test]
async fn every_form_of_a_request_gives_the_same_bits() {
    let gateway = gateway().demo("context = 512\nparallel = 2").start().await;
    let text = "The water runs, and word by word the stream goes on.";
    let whole = embed(&gateway, json!({"input": text})).await;
    let expected = numbers(&whole["data"][0]["embedding"]);

    let base64 = json!({"input": text, "encoding_format": "base64"});
    let base64 = embed(&gateway, base64).await;
    let bytes = base64["data"][0]["embedding"].as_str().unwrap();
    let bytes = STANDARD.decode(bytes).unwrap();
    let read: Vec<_> = bytes
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect();
    assert_eq!(read, expected, "base64");

    let tokens = json!({"content": text, "parse_special": false, "add_special": true}).to_string();
    let tokens = gateway.post("/v1/tokenize", tokens).send().await;
    let tokens = tokens.json().await["tokens"].clone();
    let same = embed(&gateway, json!({"input": tokens})).await;
    assert_eq!(numbers(&same["data"][0]["embedding"]), expected, "tokens");

    let batch = json!({"input": ["Something else.", text, "x".repeat(300), text]});
    let batch = embed(&gateway, batch).await;
    for index in [1, 3] {
        let vector = numbers(&batch["data"][index]["embedding"]);
        assert_eq!(vector, expected, "in a batch, at {index}");
    }

    let call =
        json!({"jsonrpc": "2.0", "id": 1, "method": "embeddings", "params": {"input": text}});
    let reply = gateway.post("/rpc", call.to_string()).send().await;
    assert_eq!(reply.json().await["result"], whole, "JSON-RPC");
}

#[tokio::test]
async fn fewer_dimensions_are_the_first_ones_scaled_anew() {
    let gateway = gateway().demo("context = 512\nparallel = 2").start().await;
    let whole = embed(&gateway, json!({"input": "Hello"})).await;
    let whole = numbers(&whole["data"][0]["embedding"]);
    let short = embed(&gateway, json!({"input": "Hello", "dimensions": 8})).await;
    let short = numbers(&short["data"][0]["embedding"]);
    let length = whole[..8].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert_eq!(short.len(), 8);
    for (short, whole) in short.iter().zip(&whole) {
        assert!((short - whole / length).abs() < 1e-5);
    }
    let more = json!({"input": "Hello", "dimensions": whole.len() + 1});
    let (status, _, param) = refusal(&gateway, "/v1/embeddings", more).await;
    assert_eq!((status, param), (400, json!("dimensions")));
}

#[tokio::test]
async fn what_cannot_be_embedded_is_a_400_that_names_its_place() {
    let gateway = gateway().demo("context = 512\nparallel = 2").start().await;
    let path = "/v1/embeddings";
    for (body, code, place) in [
        (
            json!({"input": ["a", vec!["word"; 600].join(" ")]}),
            "context_length_exceeded",
            "input[1]",
        ),
        (json!({"input": ["a", ""]}), "", "input[1]"),
        (json!({"input": vec!["a"; 2049]}), "", "input"),
        (json!({"input": [[1], [u32::MAX]]}), "", "input[1]"),
        (json!({"input": {"text": "a"}}), "", "input"),
        (
            json!({"input": "a", "encoding_format": "x"}),
            "",
            "encoding_format",
        ),
    ] {
        let refused = refusal(&gateway, path, body).await;
        assert_eq!(refused, (400, code.into(), json!(place)));
    }
    let unknown = json!({"model": "no", "input": "a"});
    let (status, code, _) = refusal(&gateway, path, unknown).await;
    assert_eq!((status, code.as_str()), (404, "model_not_found"));
    assert_eq!(gateway.get(path).send().await.status, 405);
    // Nothing of that keeps the next one from being served.
    embed(&gateway, json!({"input": vec!["a"; 40]})).await;
    assert_eq!(gateway.metrics().await.ended("invalid"), 7);
}

#[tokio::test]
async fn documents_come_back_by_how_well_they_answer() {
    let gateway = gateway().scripted().demo("context = 512").start().await;
    let body = json!({
        "query": "the water runs",
        "documents": ["QQQQ", "the water runs", {"text": "water ran"}],
        "top_n": 2,
        "return_documents": true,
    });
    for path in ["/v1/rerank", "/v1/reranking", "/rerank", "/reranking"] {
        let answer = gateway.post(path, body.to_string()).send().await;
        let answer = answer.json().await;
        let results = answer["results"].as_array().unwrap();
        let order: Vec<_> = results.iter().map(|one| one["index"].clone()).collect();
        assert_eq!(order, [1, 2], "{path}");
        assert_eq!(results[1]["document"], json!({"text": "water ran"}));
        assert!(results[0]["relevance_score"].as_f64() > results[1]["relevance_score"].as_f64());
    }
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "rerank", "params": body});
    let reply = gateway.post("/rpc", call.to_string()).send().await;
    assert_eq!(reply.json().await["result"]["results"][0]["index"], 1);

    let demo = json!({"model": "demo", "query": "q", "documents": ["a"]});
    let (status, code, param) = refusal(&gateway, "/v1/rerank", demo).await;
    assert_eq!(
        (status, code.as_str(), param),
        (400, "unsupported_by_model", json!("model"))
    );
    let metrics = gateway.metrics().await;
    let rerank = |outcome| metrics.sum("requests_total", &["route=\"rerank\"", outcome]);
    assert_eq!(
        (rerank("outcome=\"ok\""), rerank("outcome=\"invalid\"")),
        (4, 1)
    );
}

#[tokio::test]
async fn deadlines_and_failures_end_as_such_and_who_leaves_is_counted_once() {
    let gateway = gateway().scripted().start().await;
    let ask = |model: &str| json!({"model": model, "input": "a"}).to_string();
    let late = gateway
        .post("/v1/embeddings", ask("scripted?first=1h"))
        .header("x-request-timeout", "20ms")
        .send()
        .await;
    assert_eq!(late.refusal().await, (504, "deadline_exceeded".into()));
    let failed = gateway
        .post(
            "/v1/embeddings",
            ask("scripted?fail_at=0&fail_kind=upstream"),
        )
        .send()
        .await;
    assert_eq!(failed.refusal().await.0, 502);
    let mut leaves = gateway.connect().await;
    leaves
        .post("/v1/embeddings", &ask("scripted?first=1h"))
        .await;
    drop(leaves);
    let metrics = gateway
        .until("it is counted", |m| m.ended("client_gone") == 1)
        .await;
    assert_eq!(
        (metrics.ended("deadline"), metrics.ended("upstream")),
        (1, 1)
    );
    assert_eq!(metrics.ended_in_all(), 3);
}

#[tokio::test]
async fn a_stream_runs_on_beside_many_texts_and_says_the_same() {
    let gateway = gateway()
        .demo("context = 512\nparallel = 2\nembeddings = true")
        .start()
        .await;
    let more = r#""stream":true,"seed":3,"max_tokens":20,"ignore_eos":true"#;
    let chat = || gateway.chat("demo", "Tell me a story.", more).send();
    let alone = chat().await.answer().await;
    let tokens: Vec<_> = (0..400).map(|at| 300 + at % 1000).collect();
    let body = json!({"input": vec![tokens; 600]}).to_string();
    let asked = tokio::spawn(gateway.post("/v1/embeddings", body).send());
    let beside = chat().await.answer().await;
    // 600 texts are 2,000 chunks, and the stream took part in each step.
    assert!(!asked.is_finished(), "the stream waited for the texts");
    assert_eq!(beside.text(), alone.text());
    asked.abort();
    let metrics = gateway
        .until("it is counted", |m| m.ended("client_gone") == 1)
        .await;
    assert_eq!((metrics.ended("ok"), metrics.ended_in_all()), (2, 3));
}

#[tokio::test]
async fn a_drain_that_runs_out_of_time_ends_what_is_computed() {
    let mut gateway = gateway()
        .scripted()
        .with("[drain]\nlag = '0s'\ntimeout = '10ms'")
        .start()
        .await;
    let call = |id: u32, method: &str, params: Value| json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
    let batch = json!([
        call(
            1,
            "complete",
            json!({"model": "scripted?tokens=1", "prompt": "a", "stream": true})
        ),
        call(
            2,
            "embeddings",
            json!({"model": "scripted?first=1h", "input": "a"})
        ),
    ]);
    let mut reply = gateway.post("/rpc", batch.to_string()).send().await;
    // The first line tells that both calls are under way.
    let mut text = String::from_utf8(reply.next().await.unwrap().to_vec()).unwrap();
    let drained = gateway.drain();
    text += &reply.text().await;
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["id"], 2);
    assert_eq!(last["error"]["data"]["code"], "server_draining");
    drained.await.unwrap();
}
