//! JSON Web Tokens (RFC 7519): who the caller is, in the words of somebody who is believed.
//!
//! ```text
//! token   size, header          of it only `kid`, `alg`, `typ` and `crit` count, and none of them decides how
//! keys    by id and algorithm   a few candidates at most
//! library signature, audience, issuer
//! claims  time, and who it is   read only after the signature holds
//! ```
//!
//! The keys' files are followed ([`Jwt::follow`]): what is published there holds within half a second.

mod claims;
pub mod config;
mod keys;
mod ring;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, decode, decode_header};

use self::claims::Claims;
use self::keys::{Fault, Key};
use super::files::Files;
use crate::generation::{Caller, Failure, Kind};

/// Longer ones are refused unread. What is longer does not fit into most servers' headers either.
pub const MAX_TOKEN: usize = 8 * 1024;

/// Signatures that are computed for one token that does not say which key it is of, at the most.
const MOST_TRIED: usize = 8;

/// Judges tokens.
pub struct Jwt {
    settings: config::Jwt,
    files: Files,
    keys: RwLock<Arc<[Key]>>,
}

/// Whom a token is about.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Who asks, but for the address.
    pub caller: Caller,
    /// Seconds since 1970 at which the token is believed no longer, leeway included.
    pub expires: u64,
}

/// Why a token is not believed. Says nothing of what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtRefusal {
    /// Longer than [`MAX_TOKEN`].
    #[error("it is longer than 8192 bytes")]
    TooLong,
    /// No JWT, or one with a header or claims that cannot be read.
    #[error("it is malformed")]
    Malformed,
    /// It wants something understood that is not.
    #[error("its header asks for an extension (crit) or a type (typ) that is not known here")]
    Extension,
    /// No such key, or not for this algorithm.
    #[error("no key of its id and algorithm is known")]
    UnknownKey,
    /// The signature is another's.
    #[error("its signature does not hold")]
    Signature,
    /// Its time is over.
    #[error("it has expired")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet")]
    TooSoon,
    /// From somebody else.
    #[error("its issuer is not one that is believed here")]
    Issuer,
    /// For somebody else.
    #[error("it is meant for another audience")]
    Audience,
    /// A claim that is absent, or not what it should be.
    #[error("its claim {0} is missing or malformed")]
    Claim(Box<str>),
}

/// The keys cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("auth.jwt.{key}: {message}")]
pub struct KeysError {
    key: &'static str,
    message: String,
}

impl Jwt {
    /// Reads the keys.
    ///
    /// # Errors
    /// A file cannot be read, or a key in it is not to be used.
    pub fn new(settings: config::Jwt) -> Result<Self, KeysError> {
        ring::install();
        let files = Files::new(keys::files(&settings));
        let keys = keys::load(&settings)?;
        Ok(Self {
            settings,
            files,
            keys: RwLock::new(keys.into()),
        })
    }

    /// Judges a token; `now` in seconds since 1970.
    ///
    /// # Errors
    /// It is not to be believed, now or ever.
    pub fn verify(&self, token: &str, now: u64) -> Result<Verified, JwtRefusal> {
        if token.len() > MAX_TOKEN {
            return Err(JwtRefusal::TooLong);
        }
        let header = decode_header(token).map_err(|_| JwtRefusal::Malformed)?;
        // Whatever is in it must be understood (RFC 7515, section 4.1.11), and nothing is.
        if header.crit.is_some() || !is_ours(header.typ.as_deref()) {
            return Err(JwtRefusal::Extension);
        }
        let keys = Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner));
        let mut refusal = JwtRefusal::UnknownKey;
        let fitting = keys.iter().filter(|key| key.fits(&header));
        for key in fitting.take(MOST_TRIED) {
            match decode::<Claims>(token, &key.decoding, &key.validation) {
                Ok(decoded) => return decoded.claims.judge(&self.settings, now),
                Err(error) => {
                    refusal = judged(error.kind());
                    if refusal != JwtRefusal::Signature {
                        break;
                    }
                }
            }
        }
        Err(refusal)
    }

    /// Reads the keys again when a file has changed, for as long as it is polled. Bad files leave the keys
    /// as they were; `told` hears of each reading whether it was good.
    pub async fn follow(self: Arc<Self>, mut told: impl FnMut(bool) + Send + 'static) {
        let files = self.files.clone();
        let reread = move || {
            let read = keys::load(&self.settings);
            told(read.is_ok());
            let keys = read.map_err(|fault| KeysError::from(fault).to_string())?;
            tracing::info!(keys = keys.len(), "the keys of JWTs were read again");
            *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
            Ok(())
        };
        files.follow(reread).await;
    }
}

impl Key {
    fn fits(&self, header: &Header) -> bool {
        let is_named = |id: &String| self.id.as_deref() == Some(id);
        self.algorithm == header.alg && header.kid.as_ref().is_none_or(is_named)
    }
}

/// Whether tokens of this type are for calls like ours: others of the same issuer may say that somebody has
/// logged out, or who has logged in elsewhere (RFC 8725, section 3.11).
fn is_ours(kind: Option<&str>) -> bool {
    let Some(kind) = kind else {
        return true;
    };
    let kind = kind.to_ascii_lowercase();
    let kind = kind.strip_prefix("application/").unwrap_or(&kind);
    matches!(kind, "jwt" | "at+jwt")
}

fn judged(error: &ErrorKind) -> JwtRefusal {
    match error {
        ErrorKind::InvalidSignature => JwtRefusal::Signature,
        ErrorKind::InvalidAudience => JwtRefusal::Audience,
        ErrorKind::InvalidIssuer => JwtRefusal::Issuer,
        ErrorKind::MissingRequiredClaim(claim) => JwtRefusal::Claim(claim.as_str().into()),
        _ => JwtRefusal::Malformed,
    }
}

impl From<Fault> for KeysError {
    fn from(Fault { key, message }: Fault) -> Self {
        Self { key, message }
    }
}

impl From<JwtRefusal> for Failure {
    fn from(refusal: JwtRefusal) -> Self {
        let message = format!("The token is not accepted: {refusal}.");
        Self::new(Kind::Unauthorized, message).with_code("invalid_token")
    }
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
