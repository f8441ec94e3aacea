//! The other side of the wire: a streaming client for any OpenAI-compatible server.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use sluicegate::client::{ChatRequest, Client, Endpoint, Event, HttpVersion};
//!
//! let client = Client::new(Endpoint::parse("http://127.0.0.1:8080")?, HttpVersion::Http1);
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
//! Dropping a [`ChatStream`] or [`Frames`] cancels the generation: over HTTP/1.1 each request has a
//! connection of its own, which closes; over HTTP/2 the stream is reset and the connection stays.
//! Nothing is read ahead of the caller but what the kernel and one HTTP/2 stream window hold, so a
//! slow reader is felt by the server.

mod connection;
mod endpoint;
mod error;
mod request;
pub mod sse;
mod stream;

pub use connection::{Client, HttpVersion};
pub use endpoint::{Endpoint, EndpointError};
pub use error::Error;
pub use request::{ChatRequest, Message, Model};
pub use stream::{ChatStream, Event, Frames, Usage, parse_chunk};

#[cfg(test)]
mod tests;
