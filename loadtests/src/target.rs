//! Where a server is: what a URL says.

use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, bail};

/// Where to connect, and what the request line and the host header say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Target {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its host, and the port where the URL has one.
    pub(crate) authority: String,
    /// What comes before `/v1`.
    pub(crate) base: String,
    /// Whether it speaks TLS.
    pub(crate) is_secure: bool,
}

impl Target {
    /// Reads a URL, and looks its host up.
    ///
    /// # Errors
    /// It is no URL of HTTP, or there is no such host.
    pub(crate) fn parse(url: &str) -> Result<Self> {
        let (is_secure, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => bail!("{url:?} does not begin with http:// or https://"),
        };
        let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let port = authority
            .rsplit_once(':')
            .filter(|(_, port)| !port.ends_with(']'));
        let with_port = match port {
            Some(_) => authority.to_owned(),
            None => format!("{authority}:{}", if is_secure { 443 } else { 80 }),
        };
        let address = with_port
            .to_socket_addrs()
            .with_context(|| format!("{authority:?} is no host and port"))?
            .next()
            .with_context(|| format!("{authority:?} has no address"))?;
        let base = base.trim_end_matches('/');
        Ok(Self {
            address,
            authority: authority.to_owned(),
            base: base.strip_suffix("/v1").unwrap_or(base).to_owned(),
            is_secure,
        })
    }

    /// The host alone, as a certificate names it.
    pub(crate) fn host(&self) -> &str {
        let host = match self.authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => host,
            _ => &self.authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_leave_out_the_port_and_have_a_base() {
        let target = Target::parse("http://127.0.0.1/api/v1/").unwrap();
        assert_eq!(target.address, ([127, 0, 0, 1], 80).into());
        assert_eq!(
            (target.authority.as_str(), target.base.as_str()),
            ("127.0.0.1", "/api")
        );
        assert_eq!(Target::parse("http://[::1]:9").unwrap().address.port(), 9);
        assert_eq!(Target::parse("http://[::1]").unwrap().address.port(), 80);
        assert_eq!(Target::parse("http://[::1]:9").unwrap().host(), "::1");
        let secure = Target::parse("https://127.0.0.1").unwrap();
        assert!(secure.is_secure && secure.address.port() == 443 && secure.host() == "127.0.0.1");
        assert!(Target::parse("ftp://127.0.0.1").is_err());
        assert!(Target::parse("http://127.0.0.1:x").is_err());
    }
}
