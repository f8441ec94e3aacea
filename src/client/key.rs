//! The key that a client shows.

use std::fmt;
use std::sync::Arc;

use hyper::header::HeaderValue;
use zeroize::Zeroizing;

use super::Error;

/// An API key, or a JWT: whatever a server takes as `Authorization: Bearer`. It is never printed, and our copy
/// of it is overwritten at the end; those that go into requests are not.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Arc<Zeroizing<String>>);

impl ApiKey {
    /// Takes the key from a text, without the space around it. One that no header can hold fails when it is
    /// used.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::new(Zeroizing::new(text.trim().to_owned())))
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As `Authorization` has it.
    pub(super) fn header(&self) -> Result<HeaderValue, Error> {
        if self.is_empty() || !self.0.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::Key);
        }
        let text = Zeroizing::new(format!("Bearer {}", self.0.as_str()));
        let mut value = HeaderValue::from_str(&text).map_err(|_| Error::Key)?;
        // HPACK and QPACK keep it out of their tables, and `Debug` does not show it.
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_to_servers_only() {
        let key = ApiKey::new(" sgk_abc\n");
        assert_eq!(key.header().unwrap(), "Bearer sgk_abc");
        let shown = format!("{key:?} {:?}", key.header().unwrap());
        assert!(!shown.contains("abc"), "{shown}");
    }

    #[test]
    fn what_no_header_can_hold_is_an_error_that_does_not_tell_it() {
        for bad in ["", "a b", "a\r\nx: y", "schlüssel", "a\0"] {
            let error = ApiKey::new(bad).header().unwrap_err();
            assert!(matches!(error, Error::Key), "{bad:?}");
            assert!(bad.is_empty() || !error.to_string().contains(bad));
        }
    }
}
