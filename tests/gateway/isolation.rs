//! A model in a process of its own: the same answers, and what its death, its neighbours and its readers
//! see of it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Answer, Event, Metrics, Setup, TestGateway, demo_file, gateway, within};

const SMALL: &str = "context = 2048\nparallel = 4\nwaiting = 8\ndeterministic = true";

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sluicegate"))
}

/// The demo model in a process of its own, as `name`.
fn isolated(setup: Setup, name: &str) -> Setup {
    let settings = format!("{SMALL}\nisolation = 'process'");
    setup.program(program()).model(name, demo_file(), &settings)
}

/// The demo model twice: here, and in a process of its own.
async fn both() -> TestGateway {
    let setup = gateway().demo(&format!("{SMALL}\ntrusted = true"));
    isolated(setup, "apart").start().await
}

/// The processes that run a model of this name for this one. Tests run beside each other, so that those
/// who look have a name of their own.
fn children(model: &str) -> Vec<i32> {
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = process.file_name().to_string_lossy().parse() else {
            continue;
        };
        let status = fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let is_ours = status
            .lines()
            .any(|line| line.strip_prefix("PPid:").map(str::trim) == Some(&own));
        if is_ours && line.ends_with(format!("check-model\0--serve\0{model}\0").as_bytes()) {
            found.push(id);
        }
    }
    found
}

async fn stream(gateway: &TestGateway, model: &str, more: &str) -> String {
    let body = format!(r#""stream":true,"stream_options":{{"include_usage":true}},{more}"#);
    let reply = gateway.chat(model, "Tell me a story.", &body).send().await;
    assert_eq!(reply.status, 200);
    let answer = reply.answer().await;
    // Chunks depend on time; what they say does not. What is cached depends on who came before.
    let mut usage = answer.usage.expect("it was asked for");
    usage
        .as_object_mut()
        .unwrap()
        .remove("prompt_tokens_details");
    format!(
        "{:?} {:?} {usage} {}",
        answer.texts,
        answer.finishes,
        Value::from(answer.logprobs)
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_gives_the_same_answer_as_in_this_process() {
    let gateway = both().await;
    for more in [
        r#""seed":3,"max_tokens":120"#,
        r#""seed":4,"max_tokens":60,"n":2,"temperature":1.0"#,
        r#""seed":5,"max_tokens":40,"logprobs":true,"top_logprobs":5"#,
        r#""seed":6,"max_tokens":200,"stop":[" the ","."]"#,
        r#""seed":7,"max_tokens":60,"response_format":{"type":"json_object"}"#,
    ] {
        let here = stream(&gateway, "demo", more).await;
        assert_eq!(stream(&gateway, "apart", more).await, here, "{more}");
    }
    let whole = |model: &'static str| {
        gateway
            .chat(model, "x", r#""seed":1,"max_tokens":30"#)
            .send()
    };
    let (here, there) = (
        whole("demo").await.json().await,
        whole("apart").await.json().await,
    );
    assert_eq!(there["choices"], here["choices"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_stream_is_answered_alike_too() {
    let gateway = both().await;
    for (path, body) in [
        (
            "/tokenize",
            json!({"content": "Once upon a time, é 你", "with_pieces": true}),
        ),
        ("/detokenize", json!({"tokens": [300, 301, 302]})),
        (
            "/v1/embeddings",
            json!({"input": ["One day", "two"], "dimensions": 7}),
        ),
        ("/v1/rerank", json!({"query": "a", "documents": ["b", "c"]})),
        (
            "/v1/completions",
            json!({"prompt": "Once", "temperature": 0, "max_tokens": 5}),
        ),
        (
            "/v1/completions",
            json!({"prompt": [9_999_999], "max_tokens": 5}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "Once ".repeat(3000), "max_tokens": 5}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "n": 100, "max_tokens": 1}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "grammar": "root ::= ", "max_tokens": 1}),
        ),
    ] {
        let ask = async |model: &str| {
            let mut body = body.clone();
            body["model"] = model.into();
            let reply = gateway.post(path, body.to_string()).send().await;
            let status = reply.status;
            let text = reply.text().await.replace("\"apart\"", "\"demo\"");
            let mut answer: Value = serde_json::from_str(&text).expect("it is JSON");
            for key in ["id", "created"] {
                if let Some(object) = answer.as_object_mut() {
                    object.remove(key);
                }
            }
            if let Some(usage) = answer.get_mut("usage").and_then(Value::as_object_mut) {
                usage.remove("prompt_tokens_details");
            }
            (status, answer)
        };
        let here = ask("demo").await;
        assert_eq!(ask("apart").await, here, "{path} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_frees_the_sequence_and_who_stalls_pauses_alone() {
    let setup = isolated(gateway(), "apart").with("[stream]\nstall_timeout = '1h'");
    let gateway = setup.start().await;
    let endless = r#""stream":true,"ignore_eos":true"#;
    let mut reply = gateway.chat("apart", "x", endless).send().await;
    reply.next_event().await.expect("it began");
    reply.next_event().await.expect("it goes on");
    gateway.until("it runs", |m| m.running() == 1).await;
    drop(reply);
    let free = |m: &Metrics| m.running() == 0 && m.sum("kv_tokens_used", &[]) == 0;
    gateway.until("it is freed", free).await;

    let long = r#""stream":true,"seed":3,"temperature":1.0,"ignore_eos":true,"max_tokens":1500"#;
    let ask = || gateway.chat("apart", "Tell me a story.", long);
    let expected = ask().send().await.answer().await.text();
    let mut stalled = ask().receive_buffer(4096).send().await;
    let paused = |m: &Metrics| m.paused() == 1;
    gateway.until("its sequence leaves the batch", paused).await;
    let short = gateway
        .chat("apart", "x", r#""max_tokens":50"#)
        .send()
        .await;
    assert_eq!(short.status, 200);
    assert!(!short.text().await.is_empty());
    assert!(paused(&gateway.metrics().await), "nothing has moved it");
    let text = Answer::of(&stalled.events().await).text();
    assert_eq!(text, expected, "nothing lost, nothing twice");
    gateway.until("all is free", |m| m.running() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_loaded_is_refused_with_the_childs_words() {
    let name = format!("no-model-{}.gguf", std::process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, b"GGUF and then nothing").unwrap();
    let settings = "isolation = 'process'";
    let setup = gateway().program(program()).model("bad", &path, settings);
    let reason = setup.start_loading().loaded().await.unwrap_err();
    fs::remove_file(&path).unwrap();
    assert!(reason.contains("is not a usable GGUF"), "{reason}");

    let setup = gateway().model("apart", demo_file(), settings);
    let reason = setup.start_loading().loaded().await.unwrap_err();
    assert!(reason.contains("program to start"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_killed_fails_its_streams_at_once_and_comes_back() {
    let gateway = isolated(gateway().scripted(), "killed").start().await;
    let endless = r#""stream":true,"ignore_eos":true,"max_tokens":2000"#;
    let mut reply = gateway.chat("killed", "x", endless).send().await;
    reply.next_event().await.expect("it began");
    reply.next_event().await.expect("it goes on");
    let other = gateway.chat("scripted?pace=1h", "x", r#""stream":true"#);
    let _other = other.send().await;
    let [child] = children("killed")[..] else {
        panic!("one child");
    };
    let killed = Instant::now();
    let id = rustix::process::Pid::from_raw(child).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    let events = reply.events().await;
    assert!(killed.elapsed() < Duration::from_secs(1));
    let [.., Event::Data(error), Event::Done] = &events[..] else {
        panic!("an error and [DONE] end it: {:?}", events.last());
    };
    assert_eq!(error["error"]["type"], "server_error", "{error}");
    let model = [r#"model="killed""#];
    gateway
        .until("the model is loaded again", |metrics| {
            metrics.sum("engine_reloads_total", &model) == 1
        })
        .await;
    assert_eq!(
        gateway
            .chat("killed", "x", r#""max_tokens":2"#)
            .send()
            .await
            .status,
        200
    );
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.sum("engine_deaths_total", &model), 1);
    assert_eq!(metrics.sum("streams_open", &[]), 1, "the other goes on");
    let zombie = format!("/proc/{child}");
    assert!(!Path::new(&zombie).exists(), "nothing is left of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_to_all_processes_are_the_parents_business() {
    use rustix::process::{Pid, Signal, kill_process};

    let gateway = isolated(gateway(), "signalled").start().await;
    let [child] = children("signalled")[..] else {
        panic!("one child");
    };
    let id = Pid::from_raw(child).unwrap();
    for signal in [
        Signal::HUP,
        Signal::USR1,
        Signal::USR2,
        Signal::INT,
        Signal::TERM,
    ] {
        kill_process(id, signal).unwrap();
        let ask = gateway.chat("signalled", "x", r#""max_tokens":2"#);
        assert_eq!(ask.send().await.status, 200, "{signal:?}");
    }
    assert_eq!(children("signalled"), [child]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_lets_streams_finish_and_ends_the_child() {
    let setup = gateway().with("[drain]\nlag = '0s'");
    let mut gateway = isolated(setup, "drained").start().await;
    assert_eq!(children("drained").len(), 1);
    let more = r#""stream":true,"seed":1,"ignore_eos":true,"max_tokens":300"#;
    let mut reply = gateway.chat("drained", "x", more).send().await;
    reply.next_event().await.expect("it began");
    let drained = gateway.drain();
    let answer = Answer::of(&reply.events().await);
    assert_eq!(answer.finishes, [Some("length".to_owned())]);
    within(drained).await.unwrap();
    assert!(children("drained").is_empty(), "its child is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_those_of_the_configuration() {
    let lora = crate::support::Lora::new(1);
    let path = lora.path().display();
    let settings =
        format!("{SMALL}\nisolation = 'process'\n[[models.adapters]]\nname = 'a'\npath = '{path}'");
    let setup = gateway().program(program());
    let gateway = setup.model("apart", demo_file(), &settings).start().await;
    let list = gateway.get("/v1/models").send().await.json().await;
    assert_eq!(list["data"][1]["id"], "apart:a", "{list}");
    let reply = gateway
        .chat("apart:a", "x", r#""max_tokens":3"#)
        .send()
        .await;
    assert_eq!(reply.status, 200);
    let refused = gateway
        .chat("apart:b", "x", r#""max_tokens":3"#)
        .send()
        .await;
    assert_eq!(refused.refusal().await, (404, "model_not_found".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_inside_and_what_happens_to_a_sequence_come_from_the_child() {
    use sluicegate::engine::{Plan, SequenceState, config};
    use sluicegate::generation::{Burst, Input, Moment, Request};

    let settings = format!(
        "name = 'seen'\npath = '{}'\n{SMALL}\nisolation = 'process'",
        demo_file().display()
    );
    let model: config::Model = toml::from_str(&settings).unwrap();
    let process = config::Process {
        program: Some(program().to_owned()),
        ..config::Process::default()
    };
    let metrics = sluicegate::telemetry::Metrics::new(["seen"]).unwrap();
    let metrics = metrics.model("seen").clone();
    let plan = Plan::configured(&model, &process, 16);
    let load = tokio::task::spawn_blocking(move || plan.load(&metrics, &std::sync::Arc::default()));
    let engine = within(load).await.unwrap().unwrap();

    let idle = engine.inspect().await.unwrap();
    let kv = idle.kv.expect("it has cells");
    assert_eq!((kv.running, kv.kept, kv.free), (0, 0, kv.capacity));

    let mut asked = Request::new(Input::Text("Once upon a time".into()));
    asked.sampling.ignore_eos = Some(true);
    asked.max_tokens = Some(1500);
    let mut source = engine.start(&asked).await.unwrap().sources.remove(0);
    let handle = source.canceller();
    let mut burst = Burst::new();
    within(std::future::poll_fn(|cx| source.poll_fill(cx, &mut burst))).await;
    let mut told = Vec::new();
    handle.moments(0, &mut |at, moment| told.push((at, moment)));
    let kinds: Vec<_> = told.iter().map(|told| told.1).collect();
    assert_eq!(kinds[..2], [Moment::Admitted, Moment::Prefilled]);
    let first = burst.times()[0];
    assert!(told[0].0 <= told[1].0 && told[1].0 <= first.at, "{told:?}");
    assert!(first.bytes > 0);

    // Nobody reads on: what is between the processes fills up, and then its ring.
    let view = within(async {
        loop {
            let view = engine.inspect().await.unwrap();
            if view
                .sequences
                .iter()
                .any(|one| one.state == SequenceState::Paused)
            {
                break view;
            }
        }
    });
    let view = view.await;
    assert_eq!(view.sequences.len(), 1);
    assert_eq!(view.sequences[0].request, asked.id);
    assert!(view.load.steps.decode_calls > 0 && view.load.pauses > 0);
    drop(source);
    within(engine.stop()).await;
    assert!(engine.inspect().await.is_err());
}
