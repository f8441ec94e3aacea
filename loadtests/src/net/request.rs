//! One request in the words of each transport, and what its answer's head says.

use http::Method;
use serde_json::{Value, json};

use super::frames::put_frame;
use super::site::Site;
use super::{Fault, Transport};

/// Where requests go.
pub(super) const PATH: &str = "/v1/chat/completions";

/// The name that the server's certificate has.
pub(crate) const HOST: &str = "localhost";

pub(super) const EVENTS: &str = "text/event-stream";
pub(super) const JSON: &str = "application/json";

/// Types of frames (RFC 9114, section 7.2).
pub(crate) const H3_HEADERS: u64 = 1;
const H3_SETTINGS: u32 = 4;

/// Types of frames of `sluice/1`.
pub(crate) mod sluice {
    pub(crate) const REQUEST: u32 = 0x01;
    pub(crate) const RESPONSE: u64 = 0x03;
    pub(crate) const END: u64 = 0x04;
    pub(crate) const ERROR: u64 = 0x05;
    pub(crate) const TOKENS: u64 = 0x10;
}

/// The JSON body that asks for a script.
pub(crate) fn body(model: &str) -> Vec<u8> {
    let messages = json!([{"role": "user", "content": "Tell me a story."}]);
    json!({"model": model, "messages": messages, "stream": true})
        .to_string()
        .into_bytes()
}

/// What goes onto a socket or a QUIC stream. HTTP/2 has a library for that.
pub(crate) fn bytes(transport: Transport, site: &Site, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match transport {
        Transport::Http1 | Transport::Http1Tls | Transport::Http2 | Transport::Http2Tls => {
            out.extend_from_slice(site.head().as_bytes());
            out.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
            out.extend_from_slice(body);
        }
        Transport::Http3 => {
            put_frame(&mut out, 1, &field_section());
            put_frame(&mut out, 0, body);
        }
        Transport::Sluice => {
            let head = json!({"path": PATH, "headers": {"content-type": JSON}});
            put_frame(&mut out, sluice::REQUEST, head.to_string().as_bytes());
            put_frame(&mut out, 0, body);
        }
    }
    out
}

/// The same for the HTTP/2 library.
pub(crate) fn head(secure: bool) -> http::Result<http::Request<()>> {
    let scheme = if secure { "https" } else { "http" };
    http::Request::builder()
        .method(Method::POST)
        .uri(format!("{scheme}://{HOST}{PATH}"))
        .header("accept", EVENTS)
        .header("content-type", JSON)
        .body(())
}

/// What an HTTP/3 client says first on a unidirectional stream of its own: that it is the control stream,
/// and that it has no settings.
pub(crate) fn control_stream() -> Vec<u8> {
    let mut out = vec![0];
    put_frame(&mut out, H3_SETTINGS, &[]);
    out
}

/// The request's head in QPACK (RFC 9204, section 4.5), with the static table (appendix A) and no Huffman.
fn field_section() -> Vec<u8> {
    // No dynamic table; then `:method: POST` (20), `:scheme: https` (23) and
    // `content-type: application/json` (46), each whole in the table.
    let mut out = vec![0, 0, indexed(20), indexed(23), indexed(46)];
    // `:authority` (0), `:path` (1) and `accept` (29) with values of our own.
    for (name, value) in [(0, HOST), (1, PATH), (29, EVENTS)] {
        // Four bits for the index: 15 means that the rest follows.
        if name < 15 {
            out.push(0x50 | name);
        } else {
            out.extend([0x5f, name - 15]);
        }
        // All values are shorter than the 127 from which a length would take more than a byte.
        out.push(u8::try_from(value.len()).unwrap_or(0x7e));
        out.extend_from_slice(value.as_bytes());
    }
    out
}

/// A field that is whole in the static table, with an index below 63.
fn indexed(index: u8) -> u8 {
    0xc0 | index
}

/// Whether the answer's head in QPACK says that all is well: `:status: 200` is entry 25 of the static
/// table and comes first.
///
/// # Errors
/// It says something else.
pub(crate) fn h3_status(section: &[u8]) -> Result<(), Fault> {
    match section.get(2) {
        Some(first) if *first == indexed(25) => Ok(()),
        _ => Err(Fault::Broken(format!("no status 200 in {section:02x?}"))),
    }
}

/// The same for RESPONSE.
///
/// # Errors
/// It says something else.
pub(crate) fn sluice_status(head: &[u8]) -> Result<(), Fault> {
    let status = serde_json::from_slice::<Value>(head)
        .ok()
        .and_then(|head| head.get("status")?.as_u64());
    match status {
        Some(200) => Ok(()),
        Some(status) => Err(Fault::Status(u16::try_from(status).unwrap_or_default())),
        None => Err(Fault::Broken("RESPONSE has no status".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{Piece, Scanner};
    use super::*;

    fn site() -> Site {
        Site::of_gateway(([127, 0, 0, 1], 1).into(), None).unwrap()
    }

    fn frames(bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        let mut scanner = Scanner::default();
        scanner
            .feed(bytes, |piece| {
                found.push(match piece {
                    Piece::Data(bytes) => (0, bytes.to_vec()),
                    Piece::Frame(kind, payload) => (kind, payload.to_vec()),
                });
                Ok(())
            })
            .unwrap();
        assert!(scanner.is_between());
        found
    }

    #[test]
    fn http1_has_a_head_and_a_length() {
        let text = String::from_utf8(bytes(Transport::Http1, &site(), b"{}")).unwrap();
        assert!(text.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
        assert!(text.ends_with("content-length: 2\r\n\r\n{}"));
    }

    #[test]
    fn http3_has_its_head_in_the_static_table() {
        let found = frames(&bytes(Transport::Http3, &site(), b"{}"));
        assert_eq!(found[1], (0, b"{}".to_vec()));
        let (kind, head) = &found[0];
        assert_eq!((*kind, &head[..5]), (1, &[0, 0, 0xd4, 0xd7, 0xee][..]));
        assert_eq!(&head[5..16], b"\x50\x09localhost");
        assert_eq!(head[16..18], [0x51, 20]);
        assert_eq!(head[38..41], [0x5f, 14, 17]);
        assert_eq!(&head[41..], b"text/event-stream");
        assert_eq!(control_stream(), [0, 4, 0]);
    }

    #[test]
    fn sluice_has_its_head_in_json() {
        let found = frames(&bytes(Transport::Sluice, &site(), &body("scripted")));
        let head: Value = serde_json::from_slice(&found[0].1).unwrap();
        assert_eq!((found[0].0, head["path"].as_str()), (1, Some(PATH)));
        let body: Value = serde_json::from_slice(&found[1].1).unwrap();
        assert_eq!((found[1].0, body["model"].as_str()), (0, Some("scripted")));
    }

    #[test]
    fn only_status_200_is_good() {
        assert!(h3_status(&[0, 0, 0xd9, 1]).is_ok());
        assert!(h3_status(&[0, 0, 0xdb]).is_err() && h3_status(&[]).is_err());
        assert!(sluice_status(b"{\"status\":200,\"headers\":{}}").is_ok());
        assert!(sluice_status(b"{\"status\":404}").is_err() && sluice_status(b"").is_err());
    }
}
