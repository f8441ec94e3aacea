//! Where a server is: the host and port to connect to, and the path under which its API lies.

use std::net::IpAddr;

use hyper::Uri;

/// The address of an OpenAI-compatible API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    is_secure: bool,
    host: String,
    port: u16,
    authority: String,
    base: String,
}

/// A URL that no connection can be made from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// A scheme that is not spoken here.
    #[error("the URL scheme {0:?} is not supported; use http://host:port or https://host:port")]
    Scheme(String),
    /// A part that has no meaning here.
    #[error("the URL must not have {0}; use http://host:port or http://host:port/base")]
    Surplus(&'static str),
    /// Not a URL.
    #[error("{0:?} is not a URL of the form http://host:port")]
    Malformed(String),
}

impl Endpoint {
    /// Reads `http[s]://host[:port][/base]`. `http://` may be left out; the port is 80 by default, and
    /// 443 with `https`.
    ///
    /// The API is expected under `/v1` of the base, and a base that ends in `/v1` already is taken as
    /// it is, so both the server's root and what other SDKs call the base URL work.
    ///
    /// # Errors
    /// The scheme is neither `http` nor `https`, or the URL is malformed or has parts besides host, port and path.
    pub fn parse(url: &str) -> Result<Self, EndpointError> {
        let url = url.trim();
        let (is_secure, rest) = match url.split_once("://") {
            None => (false, url),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, _)) => return Err(EndpointError::Scheme(scheme.to_owned())),
        };
        for (mark, part) in [('@', "a user name"), ('?', "a query"), ('#', "a fragment")] {
            if rest.contains(mark) {
                return Err(EndpointError::Surplus(part));
            }
        }
        let malformed = || EndpointError::Malformed(url.to_owned());
        let uri: Uri = format!("http://{rest}").parse().map_err(|_| malformed())?;
        let authority = uri.authority().ok_or_else(malformed)?;
        let host = authority.host().trim_matches(['[', ']']);
        // `Uri` takes a port that is no number, or too large a one, as no port at all.
        let has_port = authority.as_str().len() > authority.host().len();
        let port = match authority.port_u16() {
            Some(port) => port,
            None if has_port => return Err(malformed()),
            None if is_secure => 443,
            None => 80,
        };
        if host.is_empty() {
            return Err(malformed());
        }
        Ok(Self {
            is_secure,
            host: host.to_owned(),
            port,
            authority: authority.as_str().to_owned(),
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Whether the URL asks for TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.is_secure
    }

    /// Whether it is on this machine by its name.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        address.map_or(self.host.eq_ignore_ascii_case("localhost"), |ip| {
            ip.is_loopback()
        })
    }

    /// The name or address to connect to, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port to connect to.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as the URL had them: the `host` header.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Scheme, host and port: what stands before a path in an absolute URL.
    #[must_use]
    pub fn origin(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// The path of an API method such as `chat/completions`.
    #[must_use]
    pub fn path(&self, method: &str) -> String {
        let base = self.base.strip_suffix("/v1").unwrap_or(&self.base);
        format!("{base}/v1/{method}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_port_and_base_are_read() {
        let endpoint = Endpoint::parse("http://example.org:8080/api/").unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("example.org", 8080));
        assert_eq!(endpoint.authority(), "example.org:8080");
        assert_eq!(endpoint.path("models"), "/api/v1/models");
    }

    #[test]
    fn the_scheme_and_the_port_may_be_left_out() {
        let endpoint = Endpoint::parse("localhost:8080").unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("localhost", 8080));
        assert_eq!(Endpoint::parse("HTTP://localhost").unwrap().port(), 80);
    }

    #[test]
    fn a_base_that_ends_in_v1_is_not_doubled() {
        for url in ["http://h/v1", "http://h/v1/", "http://h", "http://h/"] {
            assert_eq!(Endpoint::parse(url).unwrap().path("models"), "/v1/models");
        }
    }

    #[test]
    fn an_ipv6_address_loses_its_brackets_only_for_connecting() {
        let endpoint = Endpoint::parse("http://[::1]:8080").unwrap();
        assert_eq!((endpoint.host(), endpoint.port()), ("::1", 8080));
        assert_eq!(endpoint.authority(), "[::1]:8080");
    }

    #[test]
    fn https_has_a_port_of_its_own() {
        let endpoint = Endpoint::parse("HTTPS://example.org/v1").unwrap();
        assert_eq!((endpoint.is_secure(), endpoint.port()), (true, 443));
        assert_eq!(endpoint.origin(), "https://example.org");
        let endpoint = Endpoint::parse("https://example.org:8443").unwrap();
        assert_eq!(endpoint.port(), 8443);
        assert!(!Endpoint::parse("example.org").unwrap().is_secure());
    }

    #[test]
    fn this_machine_has_several_names() {
        let local = |url| Endpoint::parse(url).unwrap().is_loopback();
        assert!(local("https://LOCALHOST:8443"));
        assert!(local("https://127.0.0.2") && local("https://[::1]"));
        assert!(!local("https://example.org") && !local("https://10.0.0.1"));
    }

    #[test]
    fn what_cannot_be_connected_to_is_refused() {
        for url in [
            "",
            "http://",
            "http://:8080",
            "http://h:port",
            "http://h:99999",
            "http://h:",
            "ftp://h",
            "http://user:secret@h",
            "http://h/?x=1",
            "http://h/#x",
            "http://a b",
        ] {
            assert!(Endpoint::parse(url).is_err(), "{url}");
        }
    }
}
