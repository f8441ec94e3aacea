//! A receiver of traces that takes all and keeps nothing, so that what sending them costs can be measured.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Most connections at once; who exports needs one or two.
const MOST: u64 = 16;

/// A peer that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_mins(2);

/// A receiver of OTLP over HTTP, for as long as the process lives.
pub(super) struct Collector {
    /// Where it is.
    pub(super) address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: AtomicU64,
    bytes: AtomicU64,
    connections: AtomicU64,
}

impl Collector {
    /// Starts it.
    ///
    /// # Errors
    /// There is no port.
    pub(super) fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let seen = Arc::<Seen>::default();
        let shared = Arc::clone(&seen);
        // It has nothing to give back, and ends with the process.
        thread::Builder::new()
            .name("collector".to_owned())
            .spawn(move || accept(&listener, &shared))
            .context("could not start a thread")?;
        Ok(Self { address, seen })
    }

    /// Requests and bytes of their bodies so far.
    pub(super) fn seen(&self) -> (u64, u64) {
        (
            self.seen.requests.load(Relaxed),
            self.seen.bytes.load(Relaxed),
        )
    }
}

fn accept(listener: &TcpListener, seen: &Arc<Seen>) {
    for socket in listener.incoming().flatten() {
        if seen.connections.fetch_add(1, Relaxed) >= MOST {
            seen.connections.fetch_sub(1, Relaxed);
            continue;
        }
        let shared = Arc::clone(seen);
        let spawned = thread::Builder::new().spawn(move || {
            // A peer that breaks off has its reasons.
            let _ = serve(&socket, &shared);
            shared.connections.fetch_sub(1, Relaxed);
        });
        if spawned.is_err() {
            seen.connections.fetch_sub(1, Relaxed);
        }
    }
}

/// Answers request after request with an empty message, which is what OTLP calls success.
fn serve(socket: &TcpStream, seen: &Seen) -> std::io::Result<()> {
    socket.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(socket);
    let mut writer = socket;
    let mut line = String::new();
    loop {
        let mut length = 0;
        let mut is_first = true;
        loop {
            line.clear();
            if (&mut reader).take(16 * 1024).read_line(&mut line)? == 0 {
                return Ok(());
            }
            let text = line.trim_end();
            if text.is_empty() && !is_first {
                break;
            }
            is_first = false;
            if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or_default();
            }
        }
        let read = std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
        seen.requests.fetch_add(1, Relaxed);
        seen.bytes.fetch_add(read, Relaxed);
        writer.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n",
        )?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_one_after_the_other() {
        let collector = Collector::start().unwrap();
        let mut socket = TcpStream::connect(collector.address).unwrap();
        let mut answers = BufReader::new(socket.try_clone().unwrap());
        for body in ["abc", "defgh"] {
            let length = body.len();
            let request =
                format!("POST /v1/traces HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{body}");
            socket.write_all(request.as_bytes()).unwrap();
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                answers.read_line(&mut line).unwrap();
            }
        }
        assert_eq!(collector.seen(), (2, 8));
    }
}
