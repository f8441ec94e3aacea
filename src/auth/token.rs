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
use crate::generation::{Caller, Rights, Scopes, Trace};

/// How a bound token begins; no other credential may.
pub const PREFIX: &str = "sgb1.";

/// First byte of the content.
const VERSION: u8 = 2;

/// Longest name of whatever kind, in bytes, and longest token, in characters: well within one header.
const MAX_NAME: usize = 256;
const MAX_TEXT: usize = 4096;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Who the caller proved to be, and what they may do. The address is whoever's shows the token.
    pub caller: Caller,
    /// Seconds since 1970 at which it ends.
    pub expires: u64,
    /// The TLS lineage on which it is good.
    pub lineage: Lineage,
}

/// Why a token was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The content exceeds the bounds above.
    #[error("the caller's names or models are too long for a token")]
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

    /// Seals a token that is good for one lifetime from `now` on, or as long as the caller's own credential;
    /// gives it and its content.
    ///
    /// # Errors
    /// If the content is too long, or the system gives no random bytes.
    pub fn mint(
        &self,
        caller: &Caller,
        lineage: Lineage,
        now: u64,
    ) -> Result<(String, Grant), MintError> {
        let end = now.saturating_add(self.lifetime);
        let grant = Grant {
            caller: Caller {
                address: None,
                ..caller.clone()
            },
            expires: caller.until.map_or(end, |until| until.min(end)),
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
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(sealed));
    (text.len() <= MAX_TEXT).then_some(text)
}

fn unseal(key: &LessSafeKey, sealed: &[u8]) -> Option<Grant> {
    let (nonce, content) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut content = content.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let content = key.open_in_place(nonce, Aad::from(PREFIX), &mut content);
    decode(content.ok()?)
}

/// Version, lineage, expiry, stamp, the end of the credential (none: 0), identity, organization and class,
/// number of scopes and they, number of models (all: 0xffff) and they. A name is its length in two bytes and
/// itself (absent: 0xffff). Integers are big-endian.
fn encode(grant: &Grant) -> Option<Vec<u8>> {
    let caller = &grant.caller;
    let mut out = vec![VERSION];
    out.extend_from_slice(&grant.lineage.0);
    out.extend_from_slice(&grant.expires.to_be_bytes());
    out.extend_from_slice(&caller.stamp.to_be_bytes());
    out.extend_from_slice(&caller.until.unwrap_or_default().to_be_bytes());
    for text in [&caller.identity, &caller.organization, &caller.class] {
        name(&mut out, text.as_deref())?;
    }
    out.push(u8::try_from(caller.rights.scopes.names().count()).ok()?);
    for scope in caller.rights.scopes.names() {
        name(&mut out, Some(scope))?;
    }
    let models = caller.rights.models.as_ref();
    let count = models.map_or(Some(NONE), |models| {
        let count = u16::try_from(models.len()).ok()?;
        (count < NONE).then_some(count)
    });
    out.extend_from_slice(&count?.to_be_bytes());
    for model in models.into_iter().flat_map(|models| models.iter()) {
        name(&mut out, Some(model))?;
    }
    Some(out)
}

/// In the place of a length or a number: there is no such thing.
const NONE: u16 = u16::MAX;

fn name(out: &mut Vec<u8>, text: Option<&str>) -> Option<()> {
    let Some(text) = text else {
        out.extend_from_slice(&NONE.to_be_bytes());
        return Some(());
    };
    let length = u16::try_from(text.len()).ok()?;
    if text.len() > MAX_NAME {
        return None;
    }
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    Some(())
}

fn decode(mut bytes: &[u8]) -> Option<Grant> {
    let rest = &mut bytes;
    if array::<1>(rest)? != [VERSION] {
        return None;
    }
    let lineage = Lineage(array(rest)?);
    let expires = u64::from_be_bytes(array(rest)?);
    let stamp = u64::from_be_bytes(array(rest)?);
    let until = u64::from_be_bytes(array(rest)?);
    let [identity, organization, class] = [text(rest)?, text(rest)?, text(rest)?];
    let [count] = array(rest)?;
    let mut scopes = Scopes::NONE;
    for _ in 0..count {
        scopes = scopes.with(Scopes::parse(&text(rest)??)?);
    }
    let models = match u16::from_be_bytes(array(rest)?) {
        NONE => None,
        count => {
            let mut models = Vec::<Box<str>>::new();
            for _ in 0..count {
                models.push((*text(rest)??).into());
            }
            Some(models.into())
        }
    };
    rest.is_empty().then_some(Grant {
        caller: Caller {
            address: None,
            identity,
            organization,
            class,
            rights: Rights { scopes, models },
            until: (until > 0).then_some(until),
            stamp,
            trace: Trace::none(),
        },
        expires,
        lineage,
    })
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*bytes)
}

/// A name that may be absent.
#[expect(
    clippy::option_option,
    reason = "one says whether the bytes hold a name, the other whether there is one"
)]
fn text(rest: &mut &[u8]) -> Option<Option<Arc<str>>> {
    let length = match u16::from_be_bytes(array(rest)?) {
        NONE => return Some(None),
        length => usize::from(length),
    };
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(Some(std::str::from_utf8(bytes).ok()?.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFETIME: Duration = Duration::from_secs(1000);
    const NOW: u64 = 1_700_000_000;

    fn someone(name: &str) -> Caller {
        Caller {
            identity: Some(name.into()),
            ..Caller::default()
        }
    }

    fn grant() -> Grant {
        Grant {
            caller: Caller {
                organization: Some("acme".into()),
                rights: Rights {
                    scopes: Scopes::GENERATE.with(Scopes::EMBED),
                    models: Some(["demo".into()].into()),
                },
                until: Some(1_900_000_000),
                stamp: 5,
                ..someone("alice")
            },
            expires: 1_800_000_000,
            lineage: Lineage([7; 16]),
        }
    }

    fn tokens() -> Tokens {
        Tokens::new(LIFETIME, NOW).unwrap()
    }

    fn mint(tokens: &Tokens, now: u64) -> String {
        let minted = tokens.mint(&someone("alice"), Lineage([7; 16]), now);
        minted.unwrap().0
    }

    // The expected text was computed with another implementation.
    #[test]
    fn the_token_of_version_2_is_known() {
        let key = key(&[3; 32]).unwrap();
        let text = seal(&key, [9; NONCE_LEN], &grant()).unwrap();
        assert_eq!(
            text,
            "sgb1.CQkJCQkJCQkJCQkJ6yqwOcfJwFCyqr-jL6Z8QRuBP2BCr-UjNPWqPPgUQyxDlIaFw-Q8UXfBjkpwl0x_mZRkNo6S3W485YgsZricp4GI3yKPLLk58d_ikTc0IGJn9AiY0cn0b1amIhY7x-eDEJI"
        );
        let sealed = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
        assert_eq!(unseal(&key, &sealed), Some(grant()));
    }

    #[test]
    fn a_token_says_what_it_was_minted_for_until_it_expires() {
        let tokens = tokens();
        let caller = Caller {
            address: Some([127, 0, 0, 1].into()),
            ..Caller::default()
        };
        let minted = tokens.mint(&caller, Lineage([1; 16]), NOW);
        let (text, grant) = minted.unwrap();
        assert_eq!(
            (&grant.caller, grant.expires),
            (&Caller::default(), NOW + 1000)
        );
        assert_eq!(tokens.open(&text, NOW + 999), Ok(grant));
        assert_eq!(tokens.open(&text, NOW + 1000), Err(OpenError::Expired));
    }

    #[test]
    fn a_token_ends_with_the_credential_that_it_was_made_from() {
        let tokens = tokens();
        let caller = Caller {
            until: Some(NOW + 10),
            ..someone("alice")
        };
        let (text, grant) = tokens.mint(&caller, Lineage([1; 16]), NOW).unwrap();
        assert_eq!((grant.expires, grant.caller), (NOW + 10, caller));
        assert_eq!(tokens.open(&text, NOW + 10), Err(OpenError::Expired));
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
        let long = |length: usize| "x".repeat(length);
        let mint = |identity: usize, models: usize| {
            let models: Vec<Box<str>> = vec![long(200).into(); models];
            let caller = Caller {
                rights: Rights {
                    models: Some(models.into()),
                    ..Rights::default()
                },
                ..someone(&long(identity))
            };
            tokens().mint(&caller, Lineage([1; 16]), NOW)
        };
        let (text, _) = mint(256, 12).unwrap();
        assert!(text.len() <= MAX_TEXT, "{}", text.len());
        for too_long in [mint(257, 0), mint(1, 15)] {
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
            names: [Option<String>; 3],
            scopes in proptest::sample::subsequence(
                vec![Scopes::GENERATE, Scopes::EMBED, Scopes::OPS_READ, Scopes::OPS_WRITE],
                0..=4,
            ),
            models in proptest::option::of(proptest::collection::vec("[a-z:.]{0,64}", 0..16)),
            expires: u64, stamp: u64, until in proptest::option::of(1_u64..), lineage: [u8; 16],
        ) {
            let names = names.map(|name| name.map(|name| {
                Arc::from(name.chars().take(60).collect::<String>())
            }));
            let [identity, organization, class] = names;
            let models = models.map(|models| {
                let models: Vec<Box<str>> = models.into_iter().map(Into::into).collect();
                models.into()
            });
            let scopes = scopes.into_iter().fold(Scopes::NONE, Scopes::with);
            let grant = Grant {
                caller: Caller {
                    address: None,
                    identity,
                    organization,
                    class,
                    rights: Rights { scopes, models },
                    until,
                    stamp,
                    trace: Trace::none(),
                },
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
