//! Somebody who issues tokens, and a gate that believes him.

use ::ring::rand::SystemRandom;
use ::ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::{Jwt, config};

pub(super) const NOW: u64 = 1_800_000_000;
pub(super) const SECRET: &[u8] = b"a secret of no less than 32 bytes";
/// Two keys for tests, made with OpenSSL.
const RSA: &[u8] = include_bytes!("rsa.der");
pub(super) const RSA_PEM: &str = include_str!("rsa.pem");

pub(super) const ALGORITHMS: [&str; 4] = ["EdDSA", "ES256", "RS256", "HS256"];

/// An issuer with a key of each kind, each named as its algorithm.
pub(super) struct Issuer {
    pub(super) ed: Ed25519KeyPair,
    pub(super) ec: EcdsaKeyPair,
    pub(super) rsa: RsaKeyPair,
    random: SystemRandom,
}

impl Issuer {
    pub(super) fn new() -> Self {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let ec = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        Self {
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
            ec: EcdsaKeyPair::from_pkcs8(kind, ec.as_ref(), &random).unwrap(),
            rsa: RsaKeyPair::from_pkcs8(RSA).unwrap(),
            random,
        }
    }

    pub(super) fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        match algorithm {
            "EdDSA" => self.ed.sign(message).as_ref().to_vec(),
            "ES256" => {
                let signature = self.ec.sign(&self.random, message).unwrap();
                signature.as_ref().to_vec()
            }
            "RS256" => {
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                let padding = &RSA_PKCS1_SHA256;
                let signed = self
                    .rsa
                    .sign(padding, &self.random, message, &mut signature);
                signed.unwrap();
                signature
            }
            "HS256" => mac(SECRET, message),
            _ => Vec::new(),
        }
    }

    /// A token with this text as header and as claims, signed with the key for `algorithm`.
    pub(super) fn raw(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encoded(header), encoded(claims));
        let signature = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", encoded(signature))
    }

    pub(super) fn token(&self, algorithm: &str, claims: &Value) -> String {
        let header = json!({"alg": algorithm, "kid": algorithm, "typ": "JWT"});
        self.raw(algorithm, &header.to_string(), &claims.to_string())
    }

    pub(super) fn jwks(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        let rsa = self.rsa.public();
        let components: ::ring::rsa::PublicKeyComponents<Vec<u8>> = rsa.into();
        json!({"keys": [
            {"kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "x": encoded(self.ed.public_key())},
            {"kty": "EC", "crv": "P-256", "kid": "ES256", "use": "sig",
             "x": encoded(&point[1..33]), "y": encoded(&point[33..])},
            {"kty": "RSA", "kid": "RS256", "alg": "RS256", "key_ops": ["verify"],
             "n": encoded(components.n), "e": encoded(components.e)},
            {"kty": "oct", "kid": "HS256", "alg": "HS256", "k": encoded(SECRET)},
            {"kty": "OKP", "crv": "X25519", "kid": "other", "x": encoded([1; 32])},
        ]})
    }
}

pub(super) fn mac(secret: &[u8], message: &[u8]) -> Vec<u8> {
    let key = ::ring::hmac::Key::new(::ring::hmac::HMAC_SHA256, secret);
    ::ring::hmac::sign(&key, message).as_ref().to_vec()
}

pub(super) fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn claims() -> Value {
    json!({"sub": "alice", "aud": "gate", "iss": "https://a.example", "exp": NOW + 100})
}

pub(super) fn with(changes: &Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

pub(super) fn without(claim: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(claim);
    claims
}

/// Believes a set of this issuer's keys, with these settings.
pub(super) fn judge(jwks: &Value, settings: &str) -> (TempDir, Jwt) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, jwks.to_string()).unwrap();
    let mut settings: config::Jwt = toml::from_str(settings).unwrap();
    settings.jwks_file = Some(path);
    let jwt = Jwt::new(settings).unwrap();
    (dir, jwt)
}

pub(super) const USUAL: &str = "audience = 'gate'\nissuer = 'https://a.example'";

pub(super) fn usual() -> (Issuer, TempDir, Jwt) {
    let issuer = Issuer::new();
    let (dir, jwt) = judge(&issuer.jwks(), USUAL);
    (issuer, dir, jwt)
}
