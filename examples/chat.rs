//! A chat through the client library: one question, and the answer as it comes.
//!
//! ```sh
//! cargo run --example chat -- https://127.0.0.1:8443 quic "Tell me a story about a fox."
//! ```
//!
//! The certificate of a development server is trusted with
//! `SSL_CERT_FILE=~/.local/state/sluicegate/dev-cert.pem`.
#![expect(clippy::print_stdout, reason = "the answer is the output")]

use std::io::Write;

use anyhow::{Context, Result, bail};
use sluicegate::client::{ChatRequest, Client, Endpoint, Event, Options, Transport};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, transport, question] = &arguments[..] else {
        bail!("give a URL, one of http1, http2, http3 and quic, and a question");
    };
    let options = Options {
        transport: match &**transport {
            "http1" => Transport::Http1,
            "http2" => Transport::Http2,
            "http3" => Transport::Http3,
            "quic" => Transport::Quic,
            other => bail!("{other} is no transport"),
        },
        // Go on where it was when the connection is lost, if the server keeps its streams.
        resume: true,
        ..Options::default()
    };
    let client = Client::new(Endpoint::parse(url)?, options);
    let models = client.models().await?;
    let model = models.first().context("the server has no model")?;

    let request = ChatRequest::new(&model.id).user(question);
    let mut stream = client.chat(&request).await?;
    while let Some(event) = stream.next().await {
        match event? {
            Event::Text { text, .. } => {
                print!("{text}");
                std::io::stdout().flush()?;
            }
            Event::Usage(usage) => println!("\n{} tokens", usage.completion_tokens),
            Event::Role { .. } | Event::Finish { .. } => {}
        }
    }
    // Dropping the stream earlier would have cancelled it; this tells a QUIC server that we leave.
    client.close().await;
    Ok(())
}
