//! Who a client's certificate says that it is.

use std::sync::Arc;

use ring::digest;
use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The identity of a chain that was found good: `cert:` and the leaf's first name with its kind, in the order
/// `uri` (where SPIFFE puts it), `dns`, `mail`, the subject's common name `cn`; else the certificate's `sha256`.
/// The kind stands there because an authority may check one and not the other. A name outlives the
/// certificate that is renewed, so what a caller owns stays its own.
pub(in crate::transport) fn identity_of(chain: &[CertificateDer<'_>]) -> Option<Arc<str>> {
    let leaf = chain.first()?;
    let name = X509Certificate::from_der(leaf)
        .ok()
        .and_then(|(_, parsed)| name_of(&parsed))
        .unwrap_or_else(|| fingerprint(leaf));
    Some(format!("cert:{name}").into())
}

fn name_of(certificate: &X509Certificate<'_>) -> Option<String> {
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let names = alternatives.map_or(&[][..], |found| &found.value.general_names);
    let rank = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((0, format!("uri:{uri}"))),
        GeneralName::DNSName(dns) => Some((1, format!("dns:{dns}"))),
        GeneralName::RFC822Name(mail) => Some((2, format!("mail:{mail}"))),
        _ => None,
    };
    let best = names.iter().filter_map(rank).min_by_key(|(rank, _)| *rank);
    best.map(|(_, name)| name).or_else(|| {
        let common = certificate.subject().iter_common_name().next()?;
        common.as_str().ok().map(|name| format!("cn:{name}"))
    })
}

fn fingerprint(certificate: &[u8]) -> String {
    use std::fmt::Write;
    let digest = digest::digest(&digest::SHA256, certificate);
    let kind = "sha256:".to_owned();
    digest.as_ref().iter().fold(kind, |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn identity(change: impl FnOnce(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        identity_of(&[certificate.der().clone()])
            .unwrap()
            .to_string()
    }

    #[test]
    fn the_most_telling_name_is_taken() {
        let uri = SanType::URI("spiffe://example.org/chat".try_into().unwrap());
        let dns = SanType::DnsName("chat.example.org".try_into().unwrap());
        let both = identity(|params| params.subject_alt_names = vec![dns.clone(), uri]);
        assert_eq!(both, "cert:uri:spiffe://example.org/chat");
        let one = identity(|params| params.subject_alt_names = vec![dns]);
        assert_eq!(one, "cert:dns:chat.example.org");
        let common = identity(|params| {
            params.distinguished_name.push(DnType::CommonName, "chat");
        });
        assert_eq!(common, "cert:cn:chat");
    }

    #[test]
    fn a_nameless_certificate_is_its_own_digest() {
        let name = identity(|_| {});
        assert_eq!(name.len(), "cert:sha256:".len() + 64);
        assert_ne!(name, identity(|_| {}));
        assert!(identity_of(&[]).is_none());
    }
}
