//! `sluicegate chat`: talks to a model from the terminal, or from a script.
//!
//! A prompt gives one answer: live text with a line of figures on a terminal, bare text to a pipe,
//! one JSON object a line with `--json`. Without a prompt a terminal gets a conversation.
#![expect(clippy::print_stderr, reason = "a command that talks to a person")]

mod interactive;
mod reply;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::auth::files;
use crate::client::{
    ApiKey, ChatRequest, Client, Endpoint, EndpointError, Error, Message, Options, Transport,
    parse_chunk,
};
use reply::{Reply, Screen};

/// What a shell reports for a program that Ctrl-C ended: 128 and the signal's number.
const INTERRUPTED: u8 = 130;

/// A command line that makes no sense, as clap itself reports it.
const USAGE: u8 = 2;

/// Where the key is looked for that no flag gives.
const KEY_VARIABLE: &str = "SLUICEGATE_API_KEY";

/// Most bytes of a key's file; a JWT may have a few thousand.
const MOST_KEY: usize = 64 * 1024;

/// Where `sluicegate serve` listens unless it is told otherwise, in clear text and with TLS and QUIC.
const PLAIN_URL: &str = "http://127.0.0.1:8080";
const SECURE_URL: &str = "https://127.0.0.1:8443";

/// Talk to a model
///
/// With a prompt, as argument or on stdin, prints the answer as it comes. Without one, on a terminal,
/// starts a conversation; /help lists its commands. Works with any OpenAI-compatible server.
///
/// Where the server keeps streams (stream.resume), an answer whose connection is lost goes on where it
/// was. With --http3 and --quic an answer also survives a change of address.
#[derive(Args, Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct ChatArgs {
    /// What to say; "-" reads it from stdin, as does a pipe when this is left out
    #[arg(value_name = "PROMPT")]
    pub prompt: Option<String>,

    /// Where the server is: its root, or the base URL as other clients take it [default:
    /// http://127.0.0.1:8080; with --http3 and --quic https://127.0.0.1:8443]
    #[expect(clippy::doc_markdown, reason = "a terminal shows it as it is")]
    #[arg(long, value_name = "URL", value_parser = well_formed)]
    pub url: Option<String>,

    /// Which model to ask [default: the first that the server lists]
    #[arg(short, long, value_name = "NAME")]
    pub model: Option<String>,

    /// Speak HTTP/2 instead of HTTP/1.1: by prior knowledge in clear text, by ALPN over TLS
    #[arg(long, group = "transport")]
    pub http2: bool,

    /// Speak HTTP/3, or HTTP/2 where UDP is blocked
    #[arg(long, group = "transport")]
    pub http3: bool,

    /// Speak sluice/1, Sluicegate's own protocol on QUIC, or HTTP/2 where UDP is blocked
    #[arg(long, group = "transport")]
    pub quic: bool,

    /// Take any certificate: whoever gets between you and the server can read and change everything. For
    /// a server on this machine that has made its own
    #[arg(long)]
    pub insecure: bool,

    /// Show this key to the server. Whoever is on this machine can read it in the list of processes and in the
    /// shell's history: SLUICEGATE_API_KEY in the environment, or --key-file, keep it to yourself
    #[expect(clippy::doc_markdown, reason = "a terminal shows it as it is")]
    #[arg(long, value_name = "KEY", value_parser = |key: &str| Ok::<_, Infallible>(ApiKey::new(key)), conflicts_with = "key_file", help_heading = "Identity")]
    pub key: Option<ApiKey>,

    /// Show the key, or the JWT, in FILE to the server [default: what SLUICEGATE_API_KEY says]
    #[expect(clippy::doc_markdown, reason = "a terminal shows it as it is")]
    #[arg(long, value_name = "FILE", help_heading = "Identity")]
    pub key_file: Option<PathBuf>,

    /// Print the server's own events, one JSON object a line, instead of the text
    #[arg(long)]
    pub json: bool,

    /// What the model is told before the conversation begins
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,

    /// How freely to choose among likely tokens: 0 always takes the likeliest
    #[arg(short, long, value_name = "T", value_parser = non_negative, help_heading = "Sampling")]
    pub temperature: Option<f64>,

    /// Choose among the fewest tokens whose probabilities add up to P
    #[arg(long, value_name = "P", value_parser = probability, help_heading = "Sampling")]
    pub top_p: Option<f64>,

    /// Choose among the K likeliest tokens
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub top_k: Option<u32>,

    /// Choose among tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", value_parser = probability, help_heading = "Sampling")]
    pub min_p: Option<f64>,

    /// End each answer after N tokens
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Sampling"
    )]
    pub max_tokens: Option<u32>,

    /// Start the random numbers from N, for the same answer again
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub seed: Option<u64>,

    /// End each answer where TEXT would begin (repeatable)
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    pub stop: Vec<String>,
}

/// Runs the command. A reader of stdout that goes away ends it quietly.
///
/// # Errors
/// No connection, a refusal, a stream that broke, or an output that cannot be written. What is wrong
/// with the command line is printed to stderr and is no error, but exit code 2.
pub async fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    match talk(args).await {
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        end => end,
    }
}

async fn talk(args: ChatArgs) -> anyhow::Result<ExitCode> {
    let on_terminal = io::stdout().is_terminal();
    let prompt = match source(&args, io::stdin().is_terminal(), on_terminal) {
        Ok(Source::Argument(prompt)) => Some(prompt),
        Ok(Source::Stdin) => Some(read_prompt(io::stdin())?),
        Ok(Source::Conversation) => None,
        Err(message) => return Ok(misused(message)),
    };
    if prompt.as_ref().is_some_and(|text| text.trim().is_empty()) {
        return Ok(misused("the prompt is empty"));
    }
    let json = args.json;
    let endpoint = match endpoint(&args) {
        Ok(endpoint) => endpoint,
        Err(message) => return Ok(misused(&message)),
    };
    let api_key = match api_key(&args, std::env::var_os(KEY_VARIABLE)) {
        Ok(api_key) => api_key,
        Err(message) => return Ok(misused(&message)),
    };
    if api_key.is_some() && !endpoint.is_secure() && !endpoint.is_loopback() {
        eprintln!("warning: the key goes over the network unencrypted; an https URL protects it");
    }
    let (client, mut request) = prepare(endpoint, api_key, args).await?;
    let end = match prompt {
        None => interactive::converse(client.clone(), request).await,
        Some(prompt) => {
            request.messages.push(Message::new("user", prompt));
            if json {
                let printed = print_events(&client, &request, &mut io::stdout()).await;
                printed.map(|()| ExitCode::SUCCESS)
            } else {
                print_answer(&client, &request, on_terminal).await
            }
        }
    };
    client.close().await;
    end
}

/// Where the prompt comes from.
#[derive(Debug, PartialEq)]
enum Source {
    Argument(String),
    Stdin,
    Conversation,
}

fn source(args: &ChatArgs, terminal_in: bool, terminal_out: bool) -> Result<Source, &'static str> {
    match args.prompt.as_deref() {
        Some("-") => Ok(Source::Stdin),
        Some(prompt) => Ok(Source::Argument(prompt.to_owned())),
        None if !terminal_in => Ok(Source::Stdin),
        None if args.json => Err("--json needs a prompt, as argument or on stdin"),
        None if !terminal_out => Err("a conversation needs a terminal; give a prompt"),
        None => Ok(Source::Conversation),
    }
}

fn misused(message: &str) -> ExitCode {
    eprintln!("error: {message}\n\nFor more information, try 'sluicegate chat --help'.");
    ExitCode::from(USAGE)
}

fn read_prompt(from: impl io::Read) -> anyhow::Result<String> {
    let text = io::read_to_string(from).context("could not read the prompt from stdin")?;
    // Editors and `echo` put these two there; they are not what anybody wants to say.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn transport(args: &ChatArgs) -> Transport {
    if args.quic {
        Transport::Quic
    } else if args.http3 {
        Transport::Http3
    } else if args.http2 {
        Transport::Http2
    } else {
        Transport::Http1
    }
}

/// The key by flag, file or environment. An empty variable is none, as scripts leave it; an empty file is a
/// mistake.
fn api_key(args: &ChatArgs, variable: Option<OsString>) -> Result<Option<ApiKey>, String> {
    if let Some(key) = &args.key {
        return Ok(Some(key.clone()));
    }
    if let Some(path) = &args.key_file {
        let key = ApiKey::new(&files::read(path, MOST_KEY)?);
        if key.is_empty() {
            return Err(format!("{} holds no key", path.display()));
        }
        return Ok(Some(key));
    }
    match variable.map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(ApiKey::new(&text)).filter(|key| !key.is_empty())),
        Some(Err(_)) => Err(format!("{KEY_VARIABLE} is not UTF-8")),
    }
}

fn well_formed(url: &str) -> Result<String, EndpointError> {
    Endpoint::parse(url).map(|_| url.trim().to_owned())
}

/// Where to connect to. QUIC is never in clear text, so what does not say so is taken for `https` there.
fn endpoint(args: &ChatArgs) -> Result<Endpoint, String> {
    let is_quic = transport(args).is_quic();
    let url = match (args.url.as_deref(), is_quic) {
        (None, false) => PLAIN_URL.to_owned(),
        (None, true) => SECURE_URL.to_owned(),
        (Some(url), true) if !url.contains("://") => format!("https://{url}"),
        (Some(url), _) => url.to_owned(),
    };
    let endpoint = Endpoint::parse(&url).map_err(|error| error.to_string())?;
    if is_quic && !endpoint.is_secure() {
        return Err(Error::NotSecure.to_string());
    }
    Ok(endpoint)
}

/// The client, and a request with everything but the user's words.
async fn prepare(
    endpoint: Endpoint,
    api_key: Option<ApiKey>,
    args: ChatArgs,
) -> anyhow::Result<(Client, ChatRequest)> {
    let options = Options {
        api_key,
        insecure: args.insecure,
        resume: true,
        ..transport(&args).into()
    };
    let client = Client::new(endpoint, options);
    let model = match args.model {
        Some(model) => Some(model),
        None => default_model(&client).await?,
    };
    let request = ChatRequest {
        model,
        messages: args
            .system
            .into_iter()
            .map(|text| Message::new("system", text))
            .collect(),
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        max_tokens: args.max_tokens,
        seed: args.seed,
        stop: args.stop,
        traceparent: None,
    };
    Ok((client, request))
}

/// The first model of the server's list. A server without a list has one model or a default.
async fn default_model(client: &Client) -> Result<Option<String>, Error> {
    match client.models().await {
        Ok(models) => Ok(models.into_iter().next().map(|model| model.id)),
        Err(Error::Refused { .. } | Error::Malformed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn print_answer(
    client: &Client,
    request: &ChatRequest,
    on_terminal: bool,
) -> anyhow::Result<ExitCode> {
    let mut screen = Screen::new(io::stdout(), on_terminal);
    let interrupt = async {
        // A pipeline's Ctrl-C ends all of its programs; only a terminal is owed the figures.
        if !on_terminal || tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let Reply { interrupted, .. } = reply::stream(client, request, &mut screen, interrupt).await?;
    Ok(if interrupted {
        ExitCode::from(INTERRUPTED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Prints every event as one line. An event that reports a failure is printed too, and is an error.
async fn print_events(
    client: &Client,
    request: &ChatRequest,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut frames = client.chat_frames(request).await?;
    let mut events = VecDeque::new();
    while let Some(message) = frames.next().await? {
        write_line(out, message.data)?;
        parse_chunk(message, &mut events)?;
        events.clear();
    }
    Ok(())
}

/// Writes JSON as one line. A line feed between JSON's tokens is only space, and in a string it
/// cannot stand unescaped.
fn write_line(out: &mut impl Write, json: &[u8]) -> io::Result<()> {
    let mut line: Vec<u8> = json
        .iter()
        .map(|byte| if *byte == b'\n' { b' ' } else { *byte })
        .collect();
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    // Only the output's errors are bare I/O errors here: a connection's are wrapped in the client's.
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn non_negative(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(number) if (0.0..f64::INFINITY).contains(&number) => Ok(number),
        _ => Err("must be a number of at least 0"),
    }
}

fn probability(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("must be a number from 0 to 1"),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        chat: ChatArgs,
    }

    fn args(line: &[&str]) -> ChatArgs {
        Cli::try_parse_from([&["chat"], line].concat())
            .unwrap()
            .chat
    }

    #[test]
    fn the_flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_argument_wins_over_stdin_and_a_dash_asks_for_it() {
        let of = |line: &[&str], terminal| source(&args(line), terminal, true);
        assert_eq!(of(&["hi"], false), Ok(Source::Argument("hi".to_owned())));
        assert_eq!(of(&["-"], true), Ok(Source::Stdin));
        assert_eq!(of(&[], false), Ok(Source::Stdin));
        assert_eq!(of(&[], true), Ok(Source::Conversation));
    }

    #[test]
    fn a_conversation_needs_a_terminal_both_ways_and_text() {
        assert!(source(&args(&[]), true, false).is_err());
        assert!(source(&args(&["--json"]), true, true).is_err());
        assert!(source(&args(&["--json"]), false, false).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            &["--temperature", "-1"][..],
            &["--temperature", "nan"],
            &["--temperature", "inf"],
            &["--top-p", "1.5"],
            &["--max-tokens", "0"],
            &["--seed", "-1"],
            &["--url", "ftp://example.org"],
            &["--http2", "--quic"],
            &["--http3", "--quic"],
        ] {
            let error = Cli::try_parse_from([&["chat"], line].concat()).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(USAGE), "{line:?}");
        }
    }

    #[test]
    fn the_default_url_follows_the_transport() {
        let of = |line: &[&str]| endpoint(&args(line)).map(|endpoint| endpoint.origin());
        assert_eq!(of(&[]).unwrap(), PLAIN_URL);
        assert_eq!(of(&["--http2"]).unwrap(), PLAIN_URL);
        for flag in ["--http3", "--quic"] {
            assert_eq!(of(&[flag]).unwrap(), SECURE_URL);
            assert_eq!(
                of(&[flag, "--url", "example.org"]).unwrap(),
                "https://example.org"
            );
            assert!(of(&[flag, "--url", "http://example.org"]).is_err());
        }
        assert_eq!(of(&["--url", "example.org"]).unwrap(), "http://example.org");
        assert_eq!(
            of(&["--url", "https://example.org"]).unwrap(),
            "https://example.org"
        );
    }

    #[tokio::test]
    async fn every_flag_reaches_the_request() {
        let line = "--model m --system s --temperature 0.5 --top-p 0.9 --top-k 4 --min-p 0.1 \
                    --max-tokens 9 --seed 7 --stop x --stop y hello";
        let line: Vec<_> = line.split_whitespace().collect();
        let args = args(&line);
        let (_, request) = prepare(endpoint(&args).unwrap(), None, args).await.unwrap();
        let expected = ChatRequest {
            model: Some("m".to_owned()),
            messages: vec![Message::new("system", "s")],
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(4),
            min_p: Some(0.1),
            max_tokens: Some(9),
            seed: Some(7),
            stop: vec!["x".to_owned(), "y".to_owned()],
            traceparent: None,
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn the_key_comes_from_a_flag_a_file_or_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sgk_file\n").unwrap();
        let file = path.to_str().unwrap();
        let of = |line: &[&str], variable: Option<&str>| {
            api_key(&args(line), variable.map(OsString::from))
        };
        let is = |key: &str| Ok(Some(ApiKey::new(key)));
        assert_eq!(of(&[], None), Ok(None));
        assert_eq!(of(&[], Some("")), Ok(None));
        assert_eq!(of(&[], Some("sgk_env")), is("sgk_env"));
        assert_eq!(of(&["--key", "sgk_flag"], Some("sgk_env")), is("sgk_flag"));
        assert_eq!(of(&["--key-file", file], Some("sgk_env")), is("sgk_file"));
        std::fs::write(&path, "\n").unwrap();
        assert!(of(&["--key-file", file], None).is_err());
        assert!(of(&["--key-file", "/nowhere"], None).is_err());
        let both = Cli::try_parse_from(["chat", "--key", "a", "--key-file", "b"]);
        assert!(both.is_err());
        assert!(!format!("{:?}", args(&["--key", "sgk_flag"])).contains("sgk_flag"));
    }

    #[test]
    fn a_prompt_on_stdin_loses_its_mark_and_its_last_line_end_only() {
        let read = |text: &str| read_prompt(text.as_bytes()).unwrap();
        assert_eq!(read("\u{feff} a\n\nb \r\n"), " a\n\nb ");
        assert!(read_prompt(&b"\xff"[..]).is_err());
    }

    #[test]
    fn an_event_is_one_line() {
        let mut out = Vec::new();
        write_line(&mut out, b"{\n\"a\":1}").unwrap();
        assert_eq!(out, b"{ \"a\":1}\n");
    }

    #[test]
    fn only_the_outputs_broken_pipe_is_quiet() {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&broken().into()));
        let error = Error::Connect {
            authority: String::new(),
            source: broken(),
        };
        assert!(!is_broken_pipe(&error.into()));
    }
}
