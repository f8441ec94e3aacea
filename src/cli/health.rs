//! `sluicegate health`: asks a running gateway how it is. For container images, which need no curl then.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use axum::http::Uri;
use clap::Args;

/// Bytes of an answer that are looked at: its status line, and more than enough.
const MOST_OF_ANSWER: u64 = 1024;

/// Ask a running gateway whether it is ready
///
/// Ends with status 0 after an answer of 200, and with status 1 after any other or none.
#[derive(Debug, Args)]
pub(super) struct HealthArgs {
    /// What to ask, on the operators' port: /readyz for ready to serve, /healthz for alive
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8081/readyz")]
    url: Uri,
    /// How long the answer may take
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Asks once.
pub(super) fn run(args: &HealthArgs) -> anyhow::Result<ExitCode> {
    let status = ask(&args.url, args.timeout).with_context(|| args.url.to_string())?;
    if status == 200 {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("{}: the answer is {status}", args.url)
}

/// The status that a GET is answered with.
fn ask(url: &Uri, timeout: Duration) -> anyhow::Result<u16> {
    let (Some("http"), Some(authority)) = (url.scheme_str(), url.authority()) else {
        bail!("it must begin with http://");
    };
    let until = Instant::now() + timeout;
    let mut stream = connect(authority.host(), authority.port_u16().unwrap_or(80), until)?;
    stream.set_write_timeout(Some(left(until)?))?;
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut stream = stream.take(MOST_OF_ANSWER);
    let mut piece = [0; 256];
    loop {
        if let Some(status) = status(&answer) {
            return Ok(status);
        }
        stream.get_ref().set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut piece)? {
            0 => bail!("this is no answer in HTTP/1.1"),
            length => answer.extend_from_slice(&piece[..length]),
        }
    }
}

/// A connection to the first address of `host` that takes one.
fn connect(host: &str, port: u16, until: Instant) -> anyhow::Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    let mut wrong = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(&address, left(until)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => wrong = error,
        }
    }
    Err(wrong.into())
}

/// The time that is left; an error when there is none, as sockets take no time-out of zero.
fn left(until: Instant) -> io::Result<Duration> {
    match until.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(left),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The status in a status line: `HTTP/1.1 200 OK` (RFC 9112, section 4).
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.strip_prefix(b"HTTP/1.1 ")?;
    let digits = line.get(..3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// What `ask` says of a server that answers every request with this, and then closes.
    fn asked(answer: &'static [u8]) -> anyhow::Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"GET /readyz HTTP");
            stream.write_all(answer).unwrap();
        });
        let status = ask(&url.parse().unwrap(), Duration::from_mins(1));
        server.join().unwrap();
        status
    }

    #[test]
    fn the_status_is_what_counts() {
        assert_eq!(asked(b"HTTP/1.1 200 OK\r\n\r\nready").unwrap(), 200);
        assert_eq!(asked(b"HTTP/1.1 503 \r\n\r\n").unwrap(), 503);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert!(asked(b"").is_err());
        assert!(asked(b"SSH-2.0-x\r\n").is_err());
        assert!(asked(b"HTTP/1.1 2").is_err());
    }

    #[test]
    fn a_server_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/readyz", listener.local_addr().unwrap());
        assert!(ask(&url.parse().unwrap(), Duration::from_millis(20)).is_err());
    }

    #[test]
    fn only_clear_text_is_spoken() {
        for url in ["https://127.0.0.1/readyz", "/readyz"] {
            assert!(ask(&url.parse().unwrap(), Duration::from_secs(1)).is_err());
        }
    }
}
