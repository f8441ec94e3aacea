//! The signatures of JWTs by ring, the one library of cryptography here. Nothing is ever signed.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind, new_error};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};
use ring::{error::Unspecified, hmac};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(new_error(ErrorKind::UnsupportedAlgorithm)),
    verifier_factory: |algorithm, key| Ok(Box::new(Ring::new(*algorithm, key)?)),
    // They serve to make JWKs, which nothing here does.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring do what `jsonwebtoken` has to compute, in the whole process.
pub(super) fn install() {
    // An error says that it is installed already.
    let _ = PROVIDER.install_default();
}

/// A key with its one algorithm.
struct Ring {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Ring {
    fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Self, Error> {
        let family = match algorithm {
            Algorithm::EdDSA => AlgorithmFamily::Ed,
            Algorithm::ES256 => AlgorithmFamily::Ec,
            Algorithm::RS256 => AlgorithmFamily::Rsa,
            Algorithm::HS256 => AlgorithmFamily::Hmac,
            _ => return Err(new_error(ErrorKind::UnsupportedAlgorithm)),
        };
        if key.family() != family {
            return Err(new_error(ErrorKind::InvalidKeyFormat));
        }
        let key = key.clone();
        Ok(Self { algorithm, key })
    }

    fn check(&self, message: &[u8], signature: &[u8]) -> Result<(), Unspecified> {
        match (self.algorithm, self.key.kind()) {
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(key)) => {
                public(&ED25519, key, message, signature)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(key)) => {
                public(&ECDSA_P256_SHA256_FIXED, key, message, signature)
            }
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::verify(&key, message, signature)
            }
            _ => Err(Unspecified),
        }
    }
}

impl Verifier<Vec<u8>> for Ring {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        self.check(message, signature)
            .map_err(|Unspecified| signature::Error::new())
    }
}

impl JwtVerifier for Ring {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn public(
    algorithm: &'static dyn VerificationAlgorithm,
    key: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Result<(), Unspecified> {
    UnparsedPublicKey::new(algorithm, key).verify(message, signature)
}
