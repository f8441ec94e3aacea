//! The other side of the wire: a streaming client for any OpenAI-compatible server.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use sluicegate::client::{ChatRequest, Client, Endpoint, Event, Transport};
//!
//! let client = Client::new(Endpoint::parse("https://127.0.0.1:8443")?, Transport::Quic);
//! let mut stream = client.chat(&ChatRequest::new("demo").user("Hello!")).await?;
//! while let Some(event) = stream.next().await {
//!     if let Event::Text { text, .. } = event? {
//!         print!("{text}");
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Transport`] says what is spoken; [`Options`] holds the rest. What is asked and what comes back is the same
//! over each:
//!
//! ```text
//! Client   a request, and what carries it       http1  http2  http3  sluice
//!                                                   \    /        \    /
//!                                                    tcp       bound, quic   token and proof, 0-RTT
//! feed     the bytes of its answer, across connections
//! stream   server-sent events, or frames: the same [`Event`]s
//! ```
//!
//! Dropping a [`ChatStream`] or [`Frames`] cancels the generation: over HTTP/1.1 each request has a
//! connection of its own, which closes; elsewhere the stream is reset and the connection stays.
//! Nothing is read ahead of the caller but what the kernel and one stream's window hold, so a slow reader
//! is felt by the server.

mod bound;
mod connection;
mod endpoint;
mod error;
mod exchange;
mod feed;
mod generation;
mod http1;
mod http2;
mod http3;
mod key;
mod options;
mod quic;
mod request;
mod sluice;
pub mod sse;
mod stream;
mod tcp;
#[cfg(test)]
mod testing;
mod tls;

pub use connection::Client;
pub use endpoint::{Endpoint, EndpointError};
pub use error::Error;
pub use key::ApiKey;
pub use options::{Options, Transport};
pub use request::{ChatRequest, Message, Model};
pub use stream::{ChatStream, Event, Frames, Usage, parse_chunk};

#[cfg(test)]
mod tests;
