//! The binary itself: exit codes, signals, and the chat command against a gateway.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::{Ask, Collector, Metrics, Mood, Served, gateway, said, within};

pub(crate) fn sluicegate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // Nothing of the machine's own settings.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SLUICEGATE_")) {
        command.env_remove(name);
    }
    command
}

async fn run(args: &[&str]) -> Output {
    let mut command = sluicegate();
    command.args(args);
    within(tokio::task::spawn_blocking(move || command.output()))
        .await
        .unwrap()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A configuration file for the tests' own folder.
fn config(name: &str, toml: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, toml).unwrap();
    path
}

#[tokio::test]
async fn check_and_serve_say_the_same_of_a_bad_file_with_the_same_status() {
    let bad = config(
        "bad.toml",
        "[server]\nlisten = '127.0.0.1:0'\nmax_body_byte = '1MiB'\n",
    );
    let bad = bad.to_str().unwrap();
    let checked = run(&["check", "--config", bad]).await;
    assert_eq!(checked.status.code(), Some(2));
    let said = text(&checked.stderr);
    assert!(
        said.contains("bad.toml:3") && said.contains("max_body_bytes"),
        "{said}"
    );
    let served = run(&["serve", "--config", bad]).await;
    assert_eq!(served.status.code(), Some(2));
    assert_eq!(text(&served.stderr), said);

    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sluicegate.toml");
    let checked = run(&["check", "--config", reference.to_str().unwrap()]).await;
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    assert!(text(&checked.stdout).starts_with("ok\n"));
    assert_eq!(
        run(&["check", "--config", "/nonexistent.toml"])
            .await
            .status
            .code(),
        Some(2)
    );
}

#[tokio::test]
async fn serve_ends_with_an_error_when_its_model_cannot_be_used() {
    let broken = config("no-model.gguf", "This is no model.");
    let model = format!("m={}", broken.display());
    let listen = [
        "--listen",
        "127.0.0.1:0",
        "--set",
        "ops.listen=127.0.0.1:0",
        "--set",
        "tls.self_signed=false",
    ];
    let served = run(&[&["serve", "--model", &model], &listen[..]].concat()).await;
    assert_eq!(served.status.code(), Some(1));
    assert!(
        text(&served.stderr).contains("no-model.gguf"),
        "{}",
        text(&served.stderr)
    );
}

/// A running `sluicegate serve`, ended with this.
struct Serving {
    child: Child,
    address: SocketAddr,
}

impl Serving {
    async fn start(settings: &[&str]) -> Self {
        let mut command = sluicegate();
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--set",
            "ops.listen=127.0.0.1:0",
            "--set",
            "tls.self_signed=false",
        ]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        command.stderr(Stdio::null());
        let started = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            let url = line
                .split("http://")
                .nth(1)
                .unwrap_or_else(|| panic!("no address: {line:?}"));
            let address = url.trim().trim_end_matches('/').parse().unwrap();
            Self { child, address }
        });
        within(started).await.unwrap()
    }

    fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.child.id());
        assert!(
            Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
    }

    /// The exit status.
    async fn ended(mut self) -> Option<i32> {
        let ended = tokio::task::spawn_blocking(move || self.child.wait().unwrap().code());
        within(ended).await.unwrap()
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Ask {
        Ask::new(self.address, method, path, body.into())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn sigterm_drains_and_ends_with_status_zero() {
    let serving = Serving::start(&["drain.lag=50ms", "drain.timeout=20s"]).await;
    let body = crate::support::chat_body("demo", "Hello!", r#""stream":true,"seed":1"#);
    let reply = serving
        .ask("POST", "/v1/chat/completions", &body)
        .send()
        .await;
    serving.terminate();
    assert!(
        reply.answer().await.text().contains("Sluicegate"),
        "the running stream finishes"
    );
    assert_eq!(serving.ended().await, Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let serving = Serving::start(&["drain.lag=1h", "drain.timeout=1h"]).await;
    serving.terminate();
    within(async {
        while serving.ask("GET", "/readyz", "").send().await.status == 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    serving.terminate();
    assert_eq!(
        serving.ended().await,
        Some(0),
        "long before the drain would"
    );
}

#[tokio::test]
async fn the_process_tells_a_collector_of_its_own_work() {
    let collector = Collector::start(Mood::Takes).await;
    let endpoint = format!("telemetry.otlp_endpoint={}", collector.url());
    let serving = Serving::start(&[&endpoint, "drain.lag=0s"]).await;
    let spans = collector.spans("start", 1).await;
    let one = |name: &str| {
        let span = spans.iter().find(|span| span.name == name);
        span.unwrap_or_else(|| panic!("no {name} in {spans:#?}"))
    };
    let (start, load) = (one("start"), one("load model"));
    assert!(start.parent_span_id.is_empty());
    assert_eq!(said(&load.attributes)["model"], "demo");
    for (span, parent) in [
        (load, start),
        (one("read"), load),
        (one("start engine"), load),
        (one("warm up"), load),
    ] {
        assert_eq!(span.trace_id, start.trace_id, "{}", span.name);
        assert_eq!(span.parent_span_id, parent.span_id, "{}", span.name);
    }
    serving.terminate();
    assert_eq!(serving.ended().await, Some(0));
    let spans = collector.spans("drain", 1).await;
    let drain = spans.iter().find(|span| span.name == "drain").unwrap();
    assert_ne!(drain.trace_id, start.trace_id);
}

#[tokio::test]
async fn chat_prints_bare_text_to_a_pipe_and_events_when_asked() {
    let gateway = gateway().demo("context = 512\nparallel = 2").start().await;
    let url = gateway.url();
    let seeded = ["chat", "--url", &url, "--seed", "6", "Hello!"];
    let plain = run(&seeded).await;
    assert!(plain.status.success(), "{}", text(&plain.stderr));
    let more = r#""seed":6"#;
    let whole = gateway
        .chat("demo", "Hello!", more)
        .send()
        .await
        .json()
        .await;
    let expected = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text(&plain.stdout).trim_end_matches('\n'), expected);

    let http2 = run(&[&seeded[..], &["--http2", "--model", "demo"]].concat()).await;
    assert_eq!(text(&http2.stdout), text(&plain.stdout));

    let json = run(&[&seeded[..], &["--json"]].concat()).await;
    let mut found = String::new();
    for line in text(&json.stdout).lines() {
        let chunk: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        found += chunk["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or_default();
    }
    assert_eq!(found, expected);

    let stdin = tokio::task::spawn_blocking(move || {
        let mut command = sluicegate();
        let mut child = command
            .args(["chat", "--url", &url, "--seed", "6"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"\xef\xbb\xbfHello!\n")
            .unwrap();
        let mut out = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut out)
            .unwrap();
        assert!(child.wait().unwrap().success());
        out
    });
    assert_eq!(within(stdin).await.unwrap(), text(&plain.stdout));
}

#[tokio::test]
async fn chat_says_the_same_over_every_transport() {
    let served = Served::by(gateway().scripted()).await;
    let url = format!("https://{}", served.gateway.secure());
    let model = "scripted?text=abcd&tokens=50";
    let chat = ["chat", "--url", &url, "--model", model, "x"];
    let expected = "abcd".repeat(50);
    for flags in [
        &["--insecure"][..],
        &["--insecure", "--http2"],
        &["--insecure", "--http3"],
        &["--insecure", "--quic"],
    ] {
        let said = run(&[&chat, flags].concat()).await;
        assert_eq!(text(&said.stdout).trim_end(), expected, "{flags:?}");
        assert_eq!(text(&said.stderr), "", "{flags:?}");
        let events = run(&[&chat, flags, &["--json"]].concat()).await;
        let is_usage = |line: &str| line.contains(r#""completion_tokens":50"#);
        assert!(text(&events.stdout).lines().any(is_usage), "{flags:?}");
    }
    // QUIC is left in good order, not by silence.
    let left = |m: &Metrics| m.sum("connections_open", &[]) == 0;
    served.gateway.until("nobody is there", left).await;

    let stranger = run(&[&chat[..], &["--quic"]].concat()).await;
    assert_eq!(stranger.status.code(), Some(1));
    let advice = text(&stranger.stderr);
    assert!(
        advice.contains("--insecure") && advice.contains("dev-cert.pem"),
        "{advice}"
    );
    let plain = run(&["chat", "--quic", "--url", &served.gateway.url(), "x"]).await;
    assert_eq!(plain.status.code(), Some(2), "{}", text(&plain.stderr));

    let mut command = sluicegate();
    command.args(chat).arg("--quic");
    command.env("SSL_CERT_FILE", served.state.path().join("dev-cert.pem"));
    let trusting = tokio::task::spawn_blocking(move || command.output());
    let said = within(trusting).await.unwrap().unwrap();
    assert_eq!(
        text(&said.stdout).trim_end(),
        expected,
        "{}",
        text(&said.stderr)
    );
}

#[tokio::test]
async fn chat_fails_with_a_reason() {
    let gateway = gateway().scripted().start().await;
    let url = gateway.url();
    for (model, reason) in [("nobody", "nobody"), ("scripted?fail_at=3", "fails here")] {
        let failed = run(&["chat", "--url", &url, "--model", model, "x"]).await;
        assert_eq!(failed.status.code(), Some(1), "{model}");
        assert!(
            text(&failed.stderr).contains(reason),
            "{model}: {}",
            text(&failed.stderr)
        );
    }
    let nowhere = run(&["chat", "--url", "http://127.0.0.1:1", "x"]).await;
    assert_eq!(nowhere.status.code(), Some(1));
    assert_eq!(
        run(&["chat", "--url", &url, ""]).await.status.code(),
        Some(2)
    );
}

#[tokio::test]
async fn a_key_that_is_made_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    let file = file.to_str().unwrap();
    let made = run(&["key", "--id", "laptop", "--expires", "1d", "--append", file]).await;
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    assert!(text(&made.stderr).contains("the only time"));
    let key = text(&made.stdout).trim_end();
    assert_eq!((key.len(), &key[..4]), (47, "sgk_"));
    assert!(!std::fs::read_to_string(file).unwrap().contains(key));
    let again = run(&["key", "--id", "laptop", "--append", file]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("two keys laptop") && again.stdout.is_empty());

    let inline = run(&["key", "--id", "inline"]).await;
    let (other, entry) = text(&inline.stdout).split_once("\n\n").unwrap();
    let setup = gateway().scripted().with(entry);
    let gateway = setup
        .with(&format!("[auth]\nkeys_file = '{file}'"))
        .start()
        .await;
    for key in [key, other] {
        let chat = gateway.chat("scripted?tokens=1", "Hi", "");
        let reply = chat.header("x-api-key", key).send().await;
        assert_eq!(reply.status, 200);
    }
}
