//! A load generator for streaming LLM servers that costs little beside the server it measures.
//!
//! Where server and generator share a machine, what the generator spends is taken from the server. So
//! it parses no JSON, allocates nothing per token and reads a clock once per read. One request is told
//! in `exchange`, which feeds `response` (HTTP) and `count` (tokens) and notes times in `stats`;
//! `load` runs many of them and `report` prints what came of it. `loadtests engine` is another program in
//! the same binary: it compares servers, and is told in `engine`. So are `loadtests transports`, in
//! `transports`, `loadtests limits`, in `limits`, and `loadtests run`, in `run`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report is the program's output"
)]

mod count;
mod engine;
mod exchange;
mod folder;
mod gateway;
mod histogram;
mod keys;
mod limits;
mod load;
mod metrics;
mod net;
mod numbers;
mod process;
mod program;
mod random;
mod report;
mod response;
mod run;
mod session;
mod stats;
mod table;
mod target;
mod transports;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use count::{Dialect, Method};
use load::{Plan, Until};
use target::Target;

/// Measure a streaming LLM server
///
/// Opens streams, counts their tokens and prints percentiles of the time to the first token, between
/// tokens and in total. The exit code is 1 when more requests fail than --max-errors allows.
#[derive(Clone, Debug, Parser)]
#[command(name = "loadtests", version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,

    /// Where the server is
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,

    /// Streams at once; each place is filled again when its answer ends
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 1,
        conflicts_with = "open"
    )]
    concurrency: usize,

    /// Open N streams, wait until all have begun, and hold them for the duration
    #[arg(long, value_name = "N")]
    open: Option<usize>,

    /// End after N requests, all of which count: there is no warm-up
    #[arg(long, value_name = "N", conflicts_with_all = ["duration", "warm_up", "open"])]
    requests: Option<u64>,

    /// Measure for so long; streams under way at the end are hung up on and are no errors
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10s")]
    duration: Duration,

    /// Let so much time pass before anything counts; with --open, from when all have begun
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "1s")]
    warm_up: Duration,

    /// Model to ask for; given several times, requests take them in turn
    #[arg(short, long, value_name = "NAME")]
    model: Vec<String>,

    /// Form of the answers
    #[arg(long, value_enum, default_value_t = Dialect::Sse)]
    dialect: Dialect,

    /// Method to call
    #[arg(long, value_enum, default_value_t = Method::Chat)]
    endpoint: Method,

    /// Most tokens per answer
    #[arg(long, value_name = "N")]
    max_tokens: Option<u32>,

    /// Ask the model to go on past its end of text, so that all answers have --max-tokens
    #[arg(long, requires = "max_tokens")]
    ignore_eos: bool,

    /// What to say
    #[arg(long, value_name = "TEXT", default_value = "Tell me a story.")]
    prompt: String,

    /// Say N short words instead, which are about N tokens
    #[arg(long, value_name = "N", conflicts_with = "prompt")]
    prompt_tokens: Option<usize>,

    /// Besides, so many streams that are read slowly and not counted
    #[arg(long, value_name = "N", default_value_t = 0)]
    slow_readers: usize,

    /// Bytes a second that a slow reader reads; 0 stops reading at the first token
    #[arg(long, value_name = "BYTES", default_value_t = 1000)]
    slow_rate: u64,

    /// Report how far the time between tokens is from this
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expect_gap: Option<Duration>,

    /// Threads of the generator
    #[arg(long, value_name = "N", default_value = "1")]
    threads: NonZeroUsize,

    /// The server's process, to report its CPU time per token and its memory (Linux)
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,

    /// Write the figures as JSON to a file, or to stdout with "-"
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Failed requests that are no failure of the run
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_errors: u64,
}

/// What else this program does.
#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Compare two programs, configurations or phases over several rounds; fails where the second is worse
    Compare(Box<run::compare::Options>),
    /// Measure Sluicegate beside llama-server and a bare decode loop; see loadtests/engine/README.md
    Engine(Box<engine::Options>),
    /// Keep one core busy
    #[command(hide = true)]
    EngineNeighbour {
        #[arg(long)]
        core: usize,
    },
    /// Measure what identity, limits and fairness promise, against loadtests/limits/slo.toml
    Limits(Box<limits::Options>),
    /// Run scenarios from files against the gateway or any OpenAI-compatible server, with a verdict
    Run(Box<run::Options>),
    /// Measure Sluicegate over HTTP/1.1, HTTP/2, HTTP/3 and sluice/1, side by side
    Transports(Box<transports::Options>),
}

fn main() -> Result<ExitCode> {
    let mut options = Options::parse();
    match options.command.take() {
        None => load(&options),
        Some(Command::Compare(options)) => run::compare::run(&options),
        Some(Command::Engine(options)) => engine::run(&options).map(|()| ExitCode::SUCCESS),
        Some(Command::EngineNeighbour { core }) => {
            engine::neighbour::run(core).map(|()| ExitCode::SUCCESS)
        }
        Some(Command::Limits(options)) => limits::run(&options),
        Some(Command::Run(options)) => run::run(&options),
        Some(Command::Transports(options)) => transports::run(&options).map(|()| ExitCode::SUCCESS),
    }
}

fn load(options: &Options) -> Result<ExitCode> {
    let plan = plan(options)?;
    let wanted = u64::try_from(plan.streams + plan.slow_streams)?;
    let files = raise_file_limit(wanted + 64);
    if files < wanted {
        bail!(
            "{wanted} streams need as many open files, and the system allows {files} (ulimit -n)"
        );
    }
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?
        .block_on(load::run(plan.clone()))?;
    let text = report::text(&plan, &outcome);
    match options.json.as_deref() {
        None => print!("{text}"),
        Some(path) => {
            let command: Vec<String> = std::env::args().collect();
            let json = report::json(&plan, &outcome, &command);
            write_json(path, &json, &text)?;
        }
    }
    Ok(if report::errors(&outcome) > options.max_errors {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn write_json(path: &Path, json: &Value, text: &str) -> Result<()> {
    if path == Path::new("-") {
        eprint!("{text}");
        println!("{json:#}");
        return Ok(());
    }
    print!("{text}");
    session::write(path, &format!("{json:#}\n"))
}

fn plan(options: &Options) -> Result<Plan> {
    let target = Target::parse(&options.url)?;
    if target.is_secure {
        bail!("{:?}: https is not supported here", options.url);
    }
    let models: Vec<Option<&str>> = if options.model.is_empty() {
        vec![None]
    } else {
        options
            .model
            .iter()
            .map(|model| Some(model.as_str()))
            .collect()
    };
    Ok(Plan {
        address: target.address,
        requests: models
            .iter()
            .map(|model| request(options, &target, *model))
            .collect(),
        dialect: options.dialect,
        method: options.endpoint,
        streams: options.open.unwrap_or(options.concurrency),
        slow_streams: options.slow_readers,
        slow_rate: options.slow_rate,
        threads: options.threads.get(),
        until: match (options.open, options.requests) {
            (Some(_), _) => Until::Held(options.duration),
            (None, Some(count)) => Until::Requests(count),
            (None, None) => Until::Elapsed(options.duration),
        },
        warm_up: match options.requests {
            Some(_) => Duration::ZERO,
            None => options.warm_up,
        },
        expected_gap: options.expect_gap,
        pid: options.pid,
    })
}

/// A whole request, head and body.
fn request(options: &Options, target: &Target, model: Option<&str>) -> Vec<u8> {
    let prompt = options.prompt_tokens.map_or_else(
        || options.prompt.clone(),
        |count| vec!["word"; count].join(" "),
    );
    let mut params = json!({"stream": true});
    match options.endpoint {
        Method::Chat => params["messages"] = json!([{"role": "user", "content": prompt}]),
        Method::Completions => params["prompt"] = json!(prompt),
    }
    if let Some(model) = model {
        params["model"] = json!(model);
    }
    if let Some(most) = options.max_tokens {
        params["max_tokens"] = json!(most);
    }
    if options.ignore_eos {
        params["ignore_eos"] = json!(true);
    }
    let (method, path) = match options.endpoint {
        Method::Chat => ("chat", "/v1/chat/completions"),
        Method::Completions => ("complete", "/v1/completions"),
    };
    let (path, accept, body) = match options.dialect {
        Dialect::Sse => (path, "text/event-stream", params),
        Dialect::Text => (path, "text/plain", params),
        Dialect::Ndjson => (path, "application/x-ndjson", params),
        Dialect::Rpc => {
            let call = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
            ("/rpc", "application/json", call)
        }
    };
    let body = body.to_string();
    format!(
        "POST {}{path} HTTP/1.1\r\nhost: {}\r\naccept: {accept}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        target.base,
        target.authority,
        body.len()
    )
    .into_bytes()
}

/// Raises this process's limit of open files towards what is wanted, as far as the system lets it;
/// returns the limit then.
fn raise_file_limit(wanted: u64) -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    if current >= wanted {
        return current;
    }
    let raised = limit.maximum.map_or(wanted, |most| most.min(wanted));
    let new = Rlimit {
        current: Some(raised),
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, new).map_or(current, |()| raised)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn options(line: &str) -> Options {
        Options::try_parse_from(line.split_whitespace()).unwrap()
    }

    #[test]
    fn the_flags_are_consistent() {
        Options::command().debug_assert();
    }

    fn body(line: &str) -> (String, Value) {
        let plan = plan(&options(line)).unwrap();
        let request = String::from_utf8(plan.requests[0].clone()).unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        (head.to_owned(), serde_json::from_str(body).unwrap())
    }

    #[test]
    fn a_chat_is_asked_for_as_openai_does() {
        let (head, body) = body("x -m m --max-tokens 5 --ignore-eos --prompt hi");
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:8080\r\n"));
        let messages = json!([{"role": "user", "content": "hi"}]);
        let expected = json!({
            "model": "m", "messages": messages, "max_tokens": 5, "ignore_eos": true, "stream": true
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn the_other_dialects_differ_in_path_and_accept() {
        let (head, request) = body("x --dialect text --endpoint completions --prompt-tokens 2");
        assert!(head.starts_with("POST /v1/completions") && head.contains("accept: text/plain"));
        assert_eq!(request, json!({"prompt": "word word", "stream": true}));
        let (head, request) = body("x --dialect rpc --endpoint completions");
        assert!(head.starts_with("POST /rpc"));
        assert_eq!(request["method"], "complete");
        assert_eq!(request["params"]["stream"], true);
    }

    #[test]
    fn every_model_has_its_request_and_the_mode_follows_the_flags() {
        let two = plan(&options("x -m a -m b --open 7 --duration 2s")).unwrap();
        assert_eq!((two.requests.len(), two.streams), (2, 7));
        assert_eq!(two.until, Until::Held(Duration::from_secs(2)));
        let counted = plan(&options("x -c 3 --requests 9")).unwrap();
        assert_eq!((counted.streams, counted.until), (3, Until::Requests(9)));
        assert!(counted.warm_up.is_zero());
    }
}
