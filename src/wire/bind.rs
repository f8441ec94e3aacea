//! The body and the answer of `POST /v1/bind`.

use bytes::{BufMut, BytesMut};

use super::{Head, json, read};
use crate::generation::Failure;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Reads the body: nothing, or an object without members.
///
/// # Errors
/// It is something else.
pub fn parse(body: &[u8], head: &Head<'_>) -> Result<(), Failure> {
    if body.trim_ascii().is_empty() {
        return Ok(());
    }
    let text = read::text(body, head.limits.json_depth)?;
    read::object::<Nothing>(text).map(|_| ())
}

/// Appends `{"token":…,"expires_at":…}`, the time in seconds since 1970.
pub fn write(token: &str, expires: u64, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"token\":");
    json::string(out, token);
    out.extend_from_slice(b",\"expires_at\":");
    json::integer(out, expires);
    out.put_u8(b'}');
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn nothing_may_be_asked_for() {
        let head = testing::head("");
        for good in [&b""[..], b" \r\n", b"{}", b" { } "] {
            assert!(parse(good, &head).is_ok(), "{good:?}");
        }
        for bad in [&b"[]"[..], b"null", b"{\"scopes\":[]}", b"{", b"\xff"] {
            assert!(parse(bad, &head).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_answer_is_json() {
        let mut out = BytesMut::new();
        write("sgb1.x", 7, &mut out);
        assert_eq!(&out[..], br#"{"token":"sgb1.x","expires_at":7}"#);
    }
}
