//! The keys by which JWTs are judged: from files with one each, and from a JWK set.
//!
//! Each key has exactly one algorithm, which the file or the configuration decides and never a token. So a
//! public key cannot be taken for a secret, nor one curve's for another's.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, KeyOperations, PublicKeyUse,
};
use jsonwebtoken::{self as library, DecodingKey, Validation};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::oid_registry::{OID_EC_P256, OID_SIG_ED25519};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::config::{self, Algorithm, Audience, Jwt};
use crate::auth::files;

/// More than any issuer publishes.
const MOST_BYTES: usize = 1 << 20;

/// Keys at once. Issuers publish two or three; each request without a key's id looks at all of them.
const MOST_KEYS: usize = 256;

/// A secret is as long as what it computes, at the least (RFC 7518, section 3.2).
const LEAST_SECRET: usize = 32;

/// Bits of an RSA modulus (RFC 7518, section 3.3).
const LEAST_MODULUS: usize = 2048;
/// More take longer to compute than a request is worth; ring has none larger.
const MOST_MODULUS: usize = 8192;

/// A key that is believed.
pub(super) struct Key {
    /// What tokens call it; a set's keys may have no name.
    pub(super) id: Option<Box<str>>,
    pub(super) algorithm: library::Algorithm,
    pub(super) decoding: DecodingKey,
    /// What the library checks in tokens of this key.
    pub(super) validation: Validation,
}

/// What is wrong, and with which key of the section.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) key: &'static str,
    pub(super) message: String,
}

/// Every file that the section names.
pub(super) fn files(settings: &Jwt) -> impl Iterator<Item = &PathBuf> {
    let own = settings.keys.iter();
    let own = own.flat_map(|key| key.public_key_file.iter().chain(&key.secret_file));
    settings.jwks_file.iter().chain(own)
}

/// Reads every key.
pub(super) fn load(settings: &Jwt) -> Result<Box<[Key]>, Fault> {
    let mut keys = Vec::new();
    let mut add = |id, (algorithm, key): (Algorithm, DecodingKey)| {
        keys.push(Key {
            id,
            algorithm: algorithm.into(),
            decoding: key,
            validation: validation(settings, algorithm),
        });
    };
    for key in &settings.keys {
        let read = read_key(key).map_err(|message| Fault {
            key: "keys",
            message: format!("{}: {message}", key.id),
        })?;
        add(Some(key.id.clone()), (key.algorithm, read));
    }
    let wrong = |message| Fault {
        key: "jwks_file",
        message,
    };
    if let Some(path) = &settings.jwks_file {
        let mut found = false;
        for jwk in read_set(path).map_err(wrong)? {
            let id = jwk.common.key_id.as_deref();
            match from_jwk(&jwk) {
                Ok(key) => {
                    add(id.map(Into::into), key);
                    found = true;
                }
                // A set may hold keys for other purposes and other readers (RFC 7517, section 5).
                Err(reason) => {
                    tracing::warn!(id, reason, "a key of auth.jwt.jwks_file is not used");
                }
            }
        }
        if !found {
            let message = format!("{} holds no key that can be used", path.display());
            return Err(wrong(message));
        }
    }
    if keys.is_empty() {
        let message = "set this, or [[auth.jwt.keys]]: there is no key to judge tokens by";
        return Err(wrong(message.to_owned()));
    }
    if keys.len() > MOST_KEYS {
        return Err(wrong(format!("there are more than {MOST_KEYS} keys")));
    }
    Ok(keys.into())
}

/// The library has no clock but the system's, so times are not for it to judge.
fn validation(settings: &Jwt, algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm.into());
    validation.validate_exp = false;
    let mut required = vec!["exp"];
    match &settings.audience {
        Some(Audience::OneOf(names)) => {
            validation.set_audience(names);
            required.push("aud");
        }
        Some(Audience::Any) => validation.validate_aud = false,
        // The configuration is refused without one; and if it were not, so is every token.
        None => {
            validation.set_audience::<&str>(&[]);
            required.push("aud");
        }
    }
    if !settings.issuer.is_empty() {
        validation.set_issuer(&settings.issuer);
        required.push("iss");
    }
    validation.set_required_spec_claims(&required);
    validation
}

fn read_key(key: &config::Key) -> Result<DecodingKey, String> {
    match (key.algorithm, &key.public_key_file, &key.secret_file) {
        (Algorithm::Hs256, None, Some(path)) => {
            let secret = files::read_bytes(path, MOST_BYTES)?;
            // Editors and `echo` end the line.
            let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
            let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
            hmac(secret).map_err(|why| format!("{} {why}", path.display()))
        }
        (Algorithm::Hs256, ..) => Err("HS256 needs secret_file, and no public_key_file".into()),
        (algorithm, Some(path), None) => {
            let text = files::read(path, MOST_BYTES)?;
            let read = from_pem(&text, algorithm);
            read.map_err(|why| format!("{} {why}", path.display()))
        }
        _ => Err("the algorithm needs public_key_file, and no secret_file".into()),
    }
}

fn from_pem(text: &str, algorithm: Algorithm) -> Result<DecodingKey, &'static str> {
    const OTHER: &str = "holds a key for another algorithm";
    let der = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes())
        .map_err(|_| "holds no public key as PEM (BEGIN PUBLIC KEY)")?;
    let (_, key) = SubjectPublicKeyInfo::from_der(&der).map_err(|_| "holds no valid public key")?;
    match (algorithm, key.parsed()) {
        (Algorithm::EdDsa, _) if key.algorithm.algorithm == OID_SIG_ED25519 => {
            ed25519(&key.subject_public_key.data)
        }
        (Algorithm::Es256, Ok(PublicKey::EC(point))) => {
            let curve = key.algorithm.parameters.as_ref();
            let curve = curve.and_then(|parameters| parameters.as_oid().ok());
            if curve != Some(OID_EC_P256) {
                return Err("holds a key on another curve than P-256");
            }
            p256(point.data())
        }
        (Algorithm::Rs256, Ok(PublicKey::RSA(key))) => rsa(key.modulus, key.exponent),
        _ => Err(OTHER),
    }
}

fn read_set(path: &Path) -> Result<Vec<Jwk>, String> {
    let text = files::read(path, MOST_BYTES)?;
    let set: JwkSet = serde_json::from_str(&text).map_err(|error| {
        // Its own words may quote the file.
        let (line, column) = (error.line(), error.column());
        let path = path.display();
        format!("{path} is no JWK set; see line {line}, column {column}")
    })?;
    Ok(set.keys)
}

fn from_jwk(jwk: &Jwk) -> Result<(Algorithm, DecodingKey), &'static str> {
    let common = &jwk.common;
    if !matches!(common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Err("its use is not sig");
    }
    if let Some(operations) = &common.key_operations
        && !operations.contains(&KeyOperations::Verify)
    {
        return Err("its key_ops do not include verify");
    }
    let bytes = |text: &str| {
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(text);
        decoded.map_err(|_| "it is not base64url")
    };
    let (algorithm, key) = match &jwk.algorithm {
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDsa, ed25519(&bytes(&key.x)?)?)
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            // Each coordinate at its full length (RFC 7518, section 6.2.1.2), after the mark of a point that
            // is not compressed (SEC 1, section 2.3.3).
            let (x, y) = (bytes(&key.x)?, bytes(&key.y)?);
            if x.len() != y.len() {
                return Err("its coordinates are cut short");
            }
            (Algorithm::Es256, p256(&[&[4], &x[..], &y[..]].concat())?)
        }
        AlgorithmParameters::RSA(key) => (Algorithm::Rs256, rsa(&bytes(&key.n)?, &bytes(&key.e)?)?),
        AlgorithmParameters::OctetKey(key) => (Algorithm::Hs256, hmac(&bytes(&key.value)?)?),
        _ => return Err("it is of a kind that is not used here"),
    };
    let named = common.key_algorithm.map(library::Algorithm::try_from);
    if named.is_some_and(|named| named != Ok(algorithm.into())) {
        return Err("its alg is not used here");
    }
    Ok((algorithm, key))
}

fn ed25519(key: &[u8]) -> Result<DecodingKey, &'static str> {
    if key.len() != 32 {
        return Err("is not 32 bytes long");
    }
    Ok(DecodingKey::from_ed_der(key))
}

fn p256(point: &[u8]) -> Result<DecodingKey, &'static str> {
    if point.len() != 65 || point[0] != 4 {
        return Err("is not an uncompressed point on P-256");
    }
    Ok(DecodingKey::from_ec_der(point))
}

fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, &'static str> {
    let significant = |number: &[u8]| {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        number[zeros..].to_vec()
    };
    let (modulus, exponent) = (significant(modulus), significant(exponent));
    let bits = modulus.first().map_or(0, |first| {
        modulus.len() * 8 - usize::try_from(first.leading_zeros()).unwrap_or(0)
    });
    if bits < LEAST_MODULUS {
        return Err("has an RSA modulus of fewer than 2048 bits");
    }
    if bits > MOST_MODULUS {
        return Err("has an RSA modulus of more than 8192 bits");
    }
    // ring takes none beyond 33 bits, and nobody uses more than 17.
    if matches!(exponent[..], [] | [0..=2] | [_, _, _, _, _, ..]) {
        return Err("has an RSA exponent that is not used");
    }
    Ok(DecodingKey::from_rsa_raw_components(&modulus, &exponent))
}

fn hmac(secret: &[u8]) -> Result<DecodingKey, &'static str> {
    if secret.len() < LEAST_SECRET {
        return Err("has a secret of fewer than 32 bytes");
    }
    Ok(DecodingKey::from_secret(secret))
}

impl From<Algorithm> for library::Algorithm {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::EdDsa => Self::EdDSA,
            Algorithm::Es256 => Self::ES256,
            Algorithm::Rs256 => Self::RS256,
            Algorithm::Hs256 => Self::HS256,
        }
    }
}
