//! The process: signals, and what its log says.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::sluicegate;
use crate::support::{Ask, Metrics, within};

/// Models that need no file.
const SCRIPTED: &str = "[[models]]\nname = 'scripted'\nengine = 'scripted'\n";

/// Between two looks at what another process does.
const LOOK: Duration = Duration::from_millis(5);

/// `sluicegate serve` with a file for its configuration and one for its log.
struct Process {
    child: Child,
    public: SocketAddr,
    ops: SocketAddr,
    folder: TempDir,
}

impl Process {
    async fn start(sections: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = format!("server.state_dir='{}'", folder.path().display());
        let (config, log) = (folder.path().join("c.toml"), folder.path().join("log"));
        write(&config, sections);
        let mut command = sluicegate();
        command.arg("serve").arg("--config").arg(config);
        let ports = [
            "server.listen=127.0.0.1:0",
            "ops.listen=127.0.0.1:0",
            "tls.self_signed=false",
            "drain.lag=0s",
            "telemetry.format=json",
            &state,
        ];
        command.args(ports.iter().flat_map(|setting| ["--set", setting]));
        command.stderr(std::fs::File::create(log).unwrap());
        let started = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut addresses = lines.take(2).map(|line| {
                let line = line.unwrap();
                let rest = line.split("http://").nth(1).unwrap();
                rest.split('/').next().unwrap().parse().unwrap()
            });
            let (public, ops) = (addresses.next().unwrap(), addresses.next().unwrap());
            (child, public, ops)
        });
        let (child, public, ops) = within(started).await.unwrap();
        Self {
            child,
            public,
            ops,
            folder,
        }
    }

    fn rewrite(&self, sections: &str) {
        write(&self.folder.path().join("c.toml"), sections);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Ask {
        Ask::new(self.ops, method, path, body.into())
    }

    async fn metrics(&self) -> Metrics {
        let reply = self.ask("GET", "/metrics", "").send().await;
        Metrics::parse(&reply.text().await)
    }

    /// Looks until the metric has this value.
    async fn until(&self, name: &str, labels: &[&str], value: u64) {
        within(async {
            while self.metrics().await.sum(name, labels) != value {
                tokio::time::sleep(LOOK).await;
            }
        })
        .await;
    }

    /// The log's lines, once one of them says `message`.
    async fn logged(&self, message: &str) -> Vec<Value> {
        let path = self.folder.path().join("log");
        within(async {
            loop {
                let text = std::fs::read_to_string(&path).unwrap();
                let lines: Vec<Value> = text
                    .lines()
                    .filter_map(|line| serde_json::from_str(line).ok())
                    .collect();
                if lines.iter().any(|line| line["message"] == message) {
                    return lines;
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await
    }

    /// Its exit status after SIGTERM.
    async fn end(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        within(async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(LOOK).await;
            }
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write(path: &Path, sections: &str) {
    std::fs::write(path, format!("{sections}\n{SCRIPTED}")).unwrap();
}

#[tokio::test]
async fn sighup_reads_the_file_again_and_the_log_tells_each_key() {
    let mut process = Process::start("[limits.anonymous]\nrequests_per_minute = 100").await;
    process.rewrite("[limits.anonymous]\nrequests_per_minute = 1\n[quic]\nenabled = false");
    process.signal(Signal::HUP);
    let reloads = "config_reloads_total";
    process.until(reloads, &["result=\"applied\""], 1).await;
    let log = process.logged("the configuration was reloaded").await;
    let line = |message: &str| log.iter().find(|line| line["message"] == message).unwrap();
    let changed = line("a setting was changed");
    assert_eq!(changed["key"], "limits.anonymous.requests_per_minute");
    assert_eq!(
        (&changed["from"], &changed["to"]),
        (&"100".into(), &"1".into())
    );
    assert_eq!(
        line("a setting is different and needs a restart")["key"],
        "quic.enabled"
    );
    let body = crate::support::chat_body("scripted", "x", "");
    for expected in [200, 429] {
        let path = "/v1/chat/completions";
        let ask = Ask::new(process.public, "POST", path, body.clone().into());
        assert_eq!(ask.send().await.status, expected);
    }

    process.rewrite("nonsense");
    process.signal(Signal::HUP);
    process.until(reloads, &["result=\"refused\""], 1).await;
    process
        .logged("the configuration was not reloaded; nothing has changed")
        .await;
    assert_eq!(process.end().await, Some(0));
}

#[tokio::test]
async fn the_log_is_as_detailed_as_an_operator_wants_for_a_while() {
    let process = Process::start("").await;
    let log = async |method: &str, body: &str| {
        let reply = process.ask(method, "/ops/v1/log", body).send().await;
        (reply.status, reply.json().await)
    };
    let (status, shown) = log("GET", "").await;
    assert_eq!((status, &shown["filter"]), (200, &"info".into()));
    assert!(shown["until"].is_null());
    let (status, error) = log("PUT", r#"{"filter":"sluicegate=loud"}"#).await;
    assert_eq!(status, 400);
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("no log filter"), "{message}");

    let (status, shown) = log("PUT", r#"{"filter":"debug","for":"1h"}"#).await;
    assert_eq!((status, &shown["filter"]), (200, &"debug".into()));
    assert_eq!(shown["configured"], "info");
    assert!(shown["until"].is_string());
    // What is configured anew takes its place.
    process.rewrite("[telemetry]\nlog = 'warn'");
    process.signal(Signal::HUP);
    let reloads = "config_reloads_total";
    process.until(reloads, &["result=\"applied\""], 1).await;
    let (_, shown) = log("GET", "").await;
    assert_eq!(
        (&shown["filter"], &shown["until"]),
        (&"warn".into(), &Value::Null)
    );

    let (_, shown) = log("PUT", r#"{"filter":"error","for":"20ms"}"#).await;
    assert_eq!(shown["filter"], "error");
    within(async {
        while log("GET", "").await.1["filter"] != "warn" {
            tokio::time::sleep(LOOK).await;
        }
    })
    .await;
}

#[tokio::test]
async fn two_signals_turn_the_detail_up_and_down_within_bounds() {
    let collector = "[telemetry]\notlp_endpoint = 'http://127.0.0.1:9'\ntraces.ratio = 0.01";
    let sections = format!("{collector}\n[profile]\nenabled = true");
    let mut process = Process::start(&sections).await;
    let turn = async |signal: Signal, factor: f64| {
        process.signal(signal);
        within(async {
            while (process.metrics().await.value("detail_factor") - factor).abs() > f64::EPSILON {
                tokio::time::sleep(LOOK).await;
            }
        })
        .await;
    };
    for factor in [2.0, 4.0, 8.0, 16.0, 16.0] {
        turn(Signal::USR1, factor).await;
    }
    within(async {
        while (process.metrics().await.value("trace_ratio") - 0.16).abs() > 1e-9 {
            tokio::time::sleep(LOOK).await;
        }
    })
    .await;
    for factor in [8.0, 4.0, 2.0, 1.0, 0.5] {
        turn(Signal::USR2, factor).await;
    }
    let recent = process.ask("GET", "/debug/pprof/recent?format=folded", "");
    assert_eq!(recent.send().await.status, 200);
    process.rewrite("[profile]\nenabled = false");
    process.signal(Signal::HUP);
    let applied = ["result=\"applied\""];
    process.until("config_reloads_total", &applied, 1).await;
    let recent = process.ask("GET", "/debug/pprof/recent", "");
    assert_eq!(recent.send().await.status, 404);
    assert_eq!(process.end().await, Some(0));
}
