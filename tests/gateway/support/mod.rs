//! A gateway on free ports, set up in a sentence:
//!
//! ```ignore
//! let gateway = gateway().scripted().with("[stream]\nring = 8").start().await;
//! ```

mod collector;
mod http;
mod lora;
mod metrics;
mod quic;
mod raw;
mod redis;
mod sluice;
mod sse;
mod tap;
mod tls;
mod traces;
mod visitor;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sluicegate::app::{App, Host};
use sluicegate::config::{Flags, Loaded, Sources};
use sluicegate::telemetry::Tracer;
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub(crate) use self::collector::{Collector, Mood, Span, said};
pub(crate) use self::http::{Ask, Reply};
pub(crate) use self::lora::Lora;
pub(crate) use self::metrics::Metrics;
pub(crate) use self::quic::{Exchange, Http3, Quic, Served, close_code, request as quic_request};
pub(crate) use self::raw::Raw;
pub(crate) use self::redis::{Redis, Slow};
pub(crate) use self::sluice::{Came, Sluice, frame as sluice_frame, head as sluice_head};
pub(crate) use self::sse::{Answer, Event};
pub(crate) use self::tap::Tap;
pub(crate) use self::tls::{Certified, connect, read_certificate, replace, secure, trusting};
pub(crate) use self::traces::Traces;
pub(crate) use self::visitor::{Answered, Asked, BIND, CHAT, Protocol, Visit, Visitor, finish};

/// The longest that anything here may take. Nothing waits for it unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at the metrics.
const LOOK: Duration = Duration::from_millis(5);

/// A gateway to be started. Without a model it serves the built-in `demo`.
pub(crate) fn gateway() -> Setup {
    Setup {
        sections: String::new(),
        flags: [
            "server.listen=127.0.0.1:0",
            "ops.listen=127.0.0.1:0",
            "tls.listen=127.0.0.1:0",
            // Most tests have no use for TLS.
            "tls.self_signed=false",
            // What a test has done must show in the next look at the metrics.
            "telemetry.metrics.cache=0s",
        ]
        .map(String::from)
        .to_vec(),
        models: String::new(),
        program: None,
        traces: None,
    }
}

/// The demo model as a file.
pub(crate) fn demo_file() -> &'static Path {
    let path = "src/engine/llama/demo/sluicegate-demo-q8_0.gguf";
    Box::leak(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).into())
}

pub(crate) struct Setup {
    sections: String,
    flags: Vec<String>,
    models: String,
    program: Option<PathBuf>,
    traces: Option<Arc<Traces>>,
}

impl Setup {
    /// Lets the gateway start processes of its own, from this file.
    pub(crate) fn program(mut self, file: &Path) -> Self {
        self.program = Some(file.to_owned());
        self
    }

    /// Tells of the traces there.
    pub(crate) fn traced(mut self, traces: &Arc<Traces>) -> Self {
        self.traces = Some(traces.clone());
        self
    }

    /// Listens with a self-signed certificate that is kept in `state`, too.
    pub(crate) fn self_signed(mut self, state: &Path) -> Self {
        let kept = format!("server.state_dir='{}'", state.display());
        self.flags.extend(["tls.self_signed=true".to_owned(), kept]);
        self
    }

    /// Adds sections of the configuration file.
    pub(crate) fn with(mut self, sections: &str) -> Self {
        self.sections += sections;
        self.sections += "\n";
        self
    }

    /// Adds the demo model from its file, as `demo`, small and with these settings.
    pub(crate) fn demo(self, settings: &str) -> Self {
        self.model("demo", demo_file(), settings)
    }

    /// Adds a GGUF file.
    pub(crate) fn model(mut self, name: &str, path: &Path, settings: &str) -> Self {
        let path = path.display();
        let entry = format!("[[models]]\nname = '{name}'\npath = '{path}'\n{settings}\n");
        self.models += &entry;
        self
    }

    /// Adds the scripted engine, as `scripted`. Requests change its script by their model's name.
    pub(crate) fn scripted(mut self) -> Self {
        self.models += "[[models]]\nname = 'scripted'\nengine = 'scripted'\n";
        self
    }

    /// The gateway, with every model ready.
    pub(crate) async fn start(self) -> TestGateway {
        let gateway = self.start_loading();
        gateway.loaded().await.expect("every model loads");
        gateway
    }

    /// The gateway, with its models still on their way.
    pub(crate) fn start_loading(mut self) -> TestGateway {
        // What one test leaves in the state directory is no other's business.
        let state = tempfile::tempdir().expect("there is a temporary directory");
        let kept = format!("server.state_dir='{}'", state.path().display());
        let is_set = self
            .flags
            .iter()
            .any(|flag| flag.starts_with("server.state_dir="));
        if !is_set && !self.sections.contains("state_dir") {
            self.flags.push(kept);
        }
        let (models, flags) = (self.models, self.flags);
        let sources = move |sections: &str| Sources {
            file: Some(("test.toml".into(), format!("{sections}{models}"))),
            environment: Vec::new(),
            flags: Flags {
                set: flags.clone(),
                ..Flags::default()
            },
        };
        let loaded = Loaded::load(&sources(&self.sections));
        let mut loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        loaded.config.engine.program = self.program;
        let sections = Arc::new(Mutex::new(self.sections));
        let written = sections.clone();
        let host = Host {
            log_lines_dropped: Arc::new(|| 0),
            log: None,
            tracer: self.traces.map(|traces| Tracer::to(traces)),
            reread: Box::new(move || Ok(sources(&written.lock().unwrap()))),
        };
        let app = App::start(loaded, host).expect("the gateway starts");
        TestGateway {
            public: app.public_addresses()[0],
            ops: app.ops_addresses()[0],
            secure: app.secure_addresses().first().copied(),
            app: Some(app),
            sections,
            _state: state,
        }
    }
}

/// A running gateway; it ends when this is dropped, or in good order by [`TestGateway::drain`].
pub(crate) struct TestGateway {
    app: Option<App>,
    pub(crate) public: SocketAddr,
    pub(crate) ops: SocketAddr,
    secure: Option<SocketAddr>,
    sections: Arc<Mutex<String>>,
    _state: TempDir,
}

impl TestGateway {
    pub(crate) async fn loaded(&self) -> Result<(), String> {
        let app = self.app.as_ref().expect("it runs");
        within(app.loaded()).await
    }

    /// Where it takes TLS and QUIC.
    pub(crate) fn secure(&self) -> SocketAddr {
        self.secure.expect("it was given a certificate")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.public)
    }

    /// A request without a body.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Ask {
        Ask::new(self.public, method, path, Vec::new())
    }

    pub(crate) fn get(&self, path: &str) -> Ask {
        self.ask("GET", path)
    }

    /// A request with a JSON body.
    pub(crate) fn post(&self, path: &str, body: impl Into<String>) -> Ask {
        Ask::new(self.public, "POST", path, body.into().into_bytes())
            .header("content-type", "application/json")
    }

    /// A chat with one user message; `more` are further members of the body, such as `"n":2`.
    pub(crate) fn chat(&self, model: &str, message: &str, more: &str) -> Ask {
        self.post("/v1/chat/completions", chat_body(model, message, more))
    }

    /// Writes other sections into the configuration file, for the next reload.
    pub(crate) fn rewrite(&self, sections: &str) {
        *self.sections.lock().unwrap() = format!("{sections}\n");
    }

    pub(crate) fn ops_get(&self, path: &str) -> Ask {
        Ask::new(self.ops, "GET", path, Vec::new())
    }

    /// A request to the operator's port.
    pub(crate) fn ops(&self, method: &str, path: &str, body: &str) -> Ask {
        Ask::new(self.ops, method, path, body.as_bytes().to_vec())
    }

    /// A connection, to be written to byte by byte.
    pub(crate) async fn connect(&self) -> Raw {
        Raw::connect(self.public).await
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.ops_get("/metrics").send().await.text().await)
    }

    /// Looks at the metrics until they are as they should be. They are the only place where a test,
    /// like an operator, sees what the engine does with a sequence: there is no event to wait for.
    pub(crate) async fn until(&self, what: &str, reached: impl Fn(&Metrics) -> bool) -> Metrics {
        let start = tokio::time::Instant::now();
        loop {
            let metrics = self.metrics().await;
            if reached(&metrics) {
                return metrics;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{what} is never true:\n{metrics}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Begins the drain; the handle ends with it. Addresses stay as they are.
    pub(crate) fn drain(&mut self) -> JoinHandle<()> {
        let app = self.app.take().expect("it runs");
        tokio::spawn(async move { app.drain().await })
    }
}

/// The body of a chat.
pub(crate) fn chat_body(model: &str, message: &str, more: &str) -> String {
    let (model, message) = (serde_json::json!(model), serde_json::json!(message));
    let comma = if more.is_empty() { "" } else { "," };
    format!(
        r#"{{"model":{model},"messages":[{{"role":"user","content":{message}}}]{comma}{more}}}"#
    )
}

/// Fails rather than waits for ever.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.unwrap_or_else(|_| panic!("nothing happened for {PATIENCE:?}"))
}
