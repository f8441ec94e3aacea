//! Sealed tokens: what a credential was exchanged for, readable by this process alone.
//!
//! A token is `sgb1.` and, in unpadded base64url, a nonce and the sealed content: who the caller is,
//! what they may do, until when, and the TLS lineage it is good for. Nothing is stored per token. The keys
//! live in memory only: a restart forgets the tickets, so every lineage ends with it, and a token
//! that outlived its lineage would be worth nothing.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::binding::Lineage;
use super::{NoRandomness, random};

/// How a bound token begins; no other credential may.
pub const PREFIX: &str = "sgb1.";

/// First byte of the content.
const VERSION: u8 = 1;

/// Longest identity and scope, in bytes, and most scopes. They bound a token to about 1,800
/// characters, well within one header.
pub(super) const MAX_IDENTITY: usize = 256;
const MAX_SCOPE: usize = 64;
const MAX_SCOPES: usize = 16;
const MAX_TEXT: usize = 2048;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who the caller proved to be; `None` is anybody.
    pub identity: Option<Arc<str>>,
    /// What the caller may do.
    pub scopes: Vec<Arc<str>>,
    /// Seconds since 1970 at which it ends.
    pub expires: u64,
    /// The TLS lineage on which it is good.
    pub lineage: Lineage,
}

/// Why a token was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The content exceeds the bounds above.
    #[error("the caller's name or scopes are too long for a token")]
    TooLong,
    /// No nonce or key.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// Why a token was not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not sealed with a key of this process, or changed since.
    #[error("the token is not one of this process")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
}

/// Makes and opens tokens.
pub struct Tokens {
    lifetime: u64,
    keys: RwLock<Keys>,
}

/// A key serves for one lifetime of a token and then another one as the previous key, so every
/// token can be opened until it expires, and no key seals without end.
struct Keys {
    current: LessSafeKey,
    since: u64,
    previous: Option<LessSafeKey>,
}

impl Tokens {
    /// With a random key; `now` in seconds since 1970.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn new(lifetime: Duration, now: u64) -> Result<Self, NoRandomness> {
        Ok(Self {
            lifetime: lifetime.as_secs().max(1),
            keys: RwLock::new(Keys {
                current: fresh_key()?,
                since: now,
                previous: None,
            }),
        })
    }

    /// Seals a token that is good for one lifetime from `now` on; gives it and its content.
    ///
    /// # Errors
    /// If the content is too long, or the system gives no random bytes.
    pub fn mint(
        &self,
        identity: Option<Arc<str>>,
        scopes: Vec<Arc<str>>,
        lineage: Lineage,
        now: u64,
    ) -> Result<(String, Grant), MintError> {
        let grant = Grant {
            identity,
            scopes,
            expires: now.saturating_add(self.lifetime),
            lineage,
        };
        let nonce = random()?;
        self.rotate(now)?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let text = seal(&keys.current, nonce, &grant).ok_or(MintError::TooLong)?;
        Ok((text, grant))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// If it is not one of this process, or has expired.
    pub fn open(&self, text: &str, now: u64) -> Result<Grant, OpenError> {
        let sealed = text
            .strip_prefix(PREFIX)
            .filter(|_| text.len() <= MAX_TEXT)
            .and_then(|text| URL_SAFE_NO_PAD.decode(text).ok())
            .ok_or(OpenError::Unknown)?;
        let grant = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            let opened = unseal(&keys.current, &sealed);
            opened.or_else(|| unseal(keys.previous.as_ref()?, &sealed))
        };
        let grant = grant.ok_or(OpenError::Unknown)?;
        if grant.expires <= now {
            return Err(OpenError::Expired);
        }
        Ok(grant)
    }

    fn rotate(&self, now: u64) -> Result<(), NoRandomness> {
        let due = |keys: &Keys| now.saturating_sub(keys.since) >= self.lifetime;
        if !due(&self.keys.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let key = fresh_key()?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if due(&keys) {
            keys.previous = Some(std::mem::replace(&mut keys.current, key));
            keys.since = now;
        }
        Ok(())
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

fn fresh_key() -> Result<LessSafeKey, NoRandomness> {
    let bytes = Zeroizing::new(random::<32>()?);
    key(&bytes).ok_or(NoRandomness)
}

/// ChaCha20-Poly1305: the same speed and the same time on every machine, with or without AES in
/// hardware. `None` never happens with 32 bytes.
fn key(bytes: &[u8; 32]) -> Option<LessSafeKey> {
    let key = UnboundKey::new(&CHACHA20_POLY1305, bytes).ok()?;
    Some(LessSafeKey::new(key))
}

/// `None` if the content is too long. The nonce is random: at 96 bits two of a key's first four
/// billion tokens meet with a probability of one in eight billion.
fn seal(key: &LessSafeKey, nonce: [u8; NONCE_LEN], grant: &Grant) -> Option<String> {
    let mut content = encode(grant)?;
    let tag = key.seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from(PREFIX),
        &mut content,
    );
    let sealed = [&nonce[..], &content, tag.ok()?.as_ref()].concat();
    Some(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed)))
}

fn unseal(key: &LessSafeKey, sealed: &[u8]) -> Option<Grant> {
    let (nonce, content) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut content = content.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let content = key.open_in_place(nonce, Aad::from(PREFIX), &mut content);
    decode(content.ok()?)
}

/// Version, lineage, expiry, identity with its length in two bytes (absent: 0xffff), number of scopes, each
/// with its length in one byte. Integers are big-endian.
fn encode(grant: &Grant) -> Option<Vec<u8>> {
    let mut out = vec![VERSION];
    out.extend_from_slice(&grant.lineage.0);
    out.extend_from_slice(&grant.expires.to_be_bytes());
    match &grant.identity {
        None => out.extend_from_slice(&u16::MAX.to_be_bytes()),
        Some(identity) if identity.len() <= MAX_IDENTITY => {
            let length = u16::try_from(identity.len()).ok()?;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(identity.as_bytes());
        }
        Some(_) => return None,
    }
    if grant.scopes.len() > MAX_SCOPES {
        return None;
    }
    out.push(u8::try_from(grant.scopes.len()).ok()?);
    for scope in &grant.scopes {
        if scope.len() > MAX_SCOPE {
            return None;
        }
        out.push(u8::try_from(scope.len()).ok()?);
        out.extend_from_slice(scope.as_bytes());
    }
    Some(out)
}

fn decode(mut bytes: &[u8]) -> Option<Grant> {
    let rest = &mut bytes;
    if array::<1>(rest)? != [VERSION] {
        return None;
    }
    let lineage = Lineage(array(rest)?);
    let expires = u64::from_be_bytes(array(rest)?);
    let identity = match u16::from_be_bytes(array(rest)?) {
        u16::MAX => None,
        length => Some(text(rest, usize::from(length))?),
    };
    let [count] = array(rest)?;
    let mut scopes = Vec::new();
    for _ in 0..count {
        let [length] = array(rest)?;
        scopes.push(text(rest, usize::from(length))?);
    }
    rest.is_empty().then_some(Grant {
        identity,
        scopes,
        expires,
        lineage,
    })
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*bytes)
}

fn text(rest: &mut &[u8], length: usize) -> Option<Arc<str>> {
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(std::str::from_utf8(bytes).ok()?.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(1000);
    const NOW: u64 = 1_700_000_000;

    fn grant() -> Grant {
        Grant {
            identity: Some("alice".into()),
            scopes: vec!["chat".into(), "embed".into()],
            expires: 1_800_000_000,
            lineage: Lineage([7; 16]),
        }
    }

    fn tokens() -> Tokens {
        Tokens::new(LIFETIME, NOW).unwrap()
    }

    fn mint(tokens: &Tokens, now: u64) -> String {
        let minted = tokens.mint(Some("alice".into()), Vec::new(), Lineage([7; 16]), now);
        minted.unwrap().0
    }

    // The expected text was computed with another implementation.
    #[test]
    fn the_token_of_version_1_is_known() {
        let key = key(&[3; 32]).unwrap();
        let text = seal(&key, [9; NONCE_LEN], &grant()).unwrap();
        assert_eq!(
            text,
            "sgb1.CQkJCQkJCQkJCQkJ6CqwOcfJwFCyqr-jL6Z8QRuBP2BCr-UjNPWvXZR9IElEkOXtouEGhxqj7k--Aml2KiLlyPqTXlGrpNTl"
        );
        let sealed = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
        assert_eq!(unseal(&key, &sealed), Some(grant()));
    }

    #[test]
    fn a_token_says_what_it_was_minted_for_until_it_expires() {
        let tokens = tokens();
        let scopes = vec!["chat".into()];
        let minted = tokens.mint(None, scopes, Lineage([1; 16]), NOW);
        let (text, grant) = minted.unwrap();
        assert_eq!((grant.identity.as_ref(), grant.expires), (None, NOW + 1000));
        assert_eq!(tokens.open(&text, NOW + 999), Ok(grant));
        assert_eq!(tokens.open(&text, NOW + 1000), Err(OpenError::Expired));
    }

    #[test]
    fn another_process_does_not_open_it() {
        let text = mint(&tokens(), NOW);
        assert_eq!(tokens().open(&text, NOW), Err(OpenError::Unknown));
    }

    #[test]
    fn a_rotated_key_still_opens_until_its_tokens_have_expired() {
        let tokens = tokens();
        let old = mint(&tokens, NOW + 999);
        let new = mint(&tokens, NOW + 1000);
        assert!(tokens.keys.read().unwrap().previous.is_some());
        assert!(tokens.open(&old, NOW + 1500).is_ok());
        assert!(tokens.open(&new, NOW + 1500).is_ok());
        let newer = mint(&tokens, NOW + 2000);
        // Two rotations later the key is gone; the token had expired before.
        assert_eq!(tokens.open(&old, NOW + 2000), Err(OpenError::Unknown));
        assert!(tokens.open(&newer, NOW + 2000).is_ok());
    }

    #[test]
    fn a_clock_set_back_rotates_nothing() {
        let tokens = tokens();
        let text = mint(&tokens, NOW - 5000);
        assert!(tokens.keys.read().unwrap().previous.is_none());
        assert!(tokens.open(&text, NOW - 5000).is_ok());
    }

    #[test]
    fn content_beyond_the_bounds_is_not_sealed() {
        let long = |length: usize| -> Arc<str> { "x".repeat(length).into() };
        let mint = |identity, scopes| tokens().mint(Some(identity), scopes, Lineage([1; 16]), NOW);
        let (text, _) = mint(long(256), vec![long(64); 16]).unwrap();
        assert!(text.len() <= MAX_TEXT, "{}", text.len());
        for too_long in [
            mint(long(257), vec![]),
            mint(long(1), vec![long(65)]),
            mint(long(1), vec![long(1); 17]),
        ] {
            assert_eq!(too_long.unwrap_err(), MintError::TooLong);
        }
    }

    #[test]
    fn every_shortened_or_changed_token_is_refused() {
        let tokens = tokens();
        let text = mint(&tokens, NOW);
        for end in 0..text.len() {
            assert_eq!(tokens.open(&text[..end], NOW), Err(OpenError::Unknown));
        }
        for place in PREFIX.len()..text.len() {
            let other = if text.as_bytes()[place] == b'A' {
                "B"
            } else {
                "A"
            };
            let mut changed = text.clone();
            changed.replace_range(place..=place, other);
            assert_eq!(tokens.open(&changed, NOW), Err(OpenError::Unknown));
        }
        let padded = format!("{text}{}", "A".repeat(MAX_TEXT));
        assert_eq!(tokens.open(&padded, NOW), Err(OpenError::Unknown));
        assert!(tokens.open(&text, NOW).is_ok());
    }

    #[test]
    fn nothing_secret_is_printed() {
        let shown = format!("{:?}", tokens());
        assert_eq!(shown, "Tokens { lifetime: 1000, .. }");
    }

    proptest! {
        #[test]
        fn any_grant_survives_the_encoding(
            identity in proptest::option::of("\\PC{0,60}"),
            scopes in proptest::collection::vec("[a-z:.]{0,64}", 0..16),
            expires: u64, lineage: [u8; 16],
        ) {
            let grant = Grant {
                identity: identity.map(Into::into),
                scopes: scopes.into_iter().map(Into::into).collect(),
                expires,
                lineage: Lineage(lineage),
            };
            prop_assert_eq!(decode(&encode(&grant).unwrap()), Some(grant));
        }

        #[test]
        fn any_bytes_decode_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..80), text in "\\PC*") {
            let _ = decode(&bytes);
            prop_assert!(tokens().open(&text, NOW).is_err());
        }
    }
}
