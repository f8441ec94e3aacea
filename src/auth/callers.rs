//! From what a request shows to who asks: every credential that is believed now.
//!
//! One order for all: a bound token, else a key, else the certificate of the connection, else nobody. What
//! is shown and not believed is refused, whatever else is there: who shows an expired key must not
//! become somebody else in silence. Where nobody is asked who they are, only bound tokens and certificates
//! count, because every SDK sends a key of some sort.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::config::{Auth, OnRemoved};
use super::files::{self, Files};
use super::jwt::{self, Jwt};
use super::keys::{self, KeyEntry, Keys, usual_scopes};
use super::token::Grant;
use crate::generation::{Caller, Failure, Kind, Rights};

/// Most bytes of a key file.
const MAX_FILE: usize = 64 << 20;

/// What a request shows of its caller.
#[derive(Clone, Copy, Default)]
pub struct Shown<'a> {
    /// Where it comes from.
    pub address: Option<IpAddr>,
    /// What it carries as `Authorization: Bearer` or `x-api-key`, if that is no bound token.
    pub credential: Option<&'a str>,
    /// The identity of its connection's certificate.
    pub certificate: Option<&'a Arc<str>>,
    /// What its bound token says.
    pub bound: Option<&'a Grant>,
    /// The calendar, in seconds since 1970.
    pub today: u64,
}

/// Without what is secret.
impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown")
            .field("address", &self.address)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// Every credential that is believed now.
#[derive(Debug, Default)]
pub struct Callers {
    is_on: bool,
    allow_anonymous: bool,
    on_removed: OnRemoved,
    inline: Vec<KeyEntry>,
    classes: HashSet<Box<str>>,
    file: Option<PathBuf>,
    files: Option<Files>,
    /// Replaced whole when the file changes.
    keys: RwLock<Arc<Keys>>,
    jwt: Option<Arc<Jwt>>,
}

/// A key that cannot be used, and where it is written.
#[derive(Debug, PartialEq, Eq)]
pub enum Unusable {
    /// In the section.
    Inline {
        /// The index in `auth.keys`.
        index: usize,
        /// The field at fault.
        field: &'static str,
        /// What is wrong.
        message: String,
    },
    /// In the file, or the file itself; the message says where.
    File(String),
    /// The keys of JWTs.
    Jwt(jwt::KeysError),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline {
                index,
                field,
                message,
            } => write!(f, "auth.keys[{index}].{field}: {message}"),
            Self::File(message) => f.write_str(message),
            Self::Jwt(error) => error.fmt(f),
        }
    }
}

impl Callers {
    /// What the section believes; reads its files. `classes` are the classes of limits that a key may be of.
    ///
    /// # Errors
    /// Everything that is wrong with the keys.
    pub fn new<'a>(
        auth: &Auth,
        classes: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, Vec<Unusable>> {
        let classes = classes.into_iter().map(Box::from).collect();
        // Before the first reading, so that no change is missed.
        let files = auth.keys_file.as_ref().map(|path| Files::new([path]));
        let keys = read(&auth.keys, auth.keys_file.as_deref(), &classes)?;
        let jwt = auth.jwt.clone().map(Jwt::new).transpose();
        let jwt = jwt.map_err(|error| vec![Unusable::Jwt(error)])?;
        Ok(Self {
            is_on: auth.is_on(),
            allow_anonymous: auth.allow_anonymous,
            on_removed: auth.on_removed,
            inline: auth.keys.clone(),
            classes,
            file: auth.keys_file.clone(),
            files,
            keys: RwLock::new(Arc::new(keys)),
            jwt: jwt.map(Arc::new),
        })
    }

    /// Reads the key file again and believes what it says from now on; gives the identities whose keys are
    /// there no longer, are others, or have expired. What cannot be read changes nothing.
    ///
    /// # Errors
    /// What is wrong, without a credential in it.
    pub fn reread(&self, today: u64) -> Result<HashSet<Arc<str>>, String> {
        let keys = read(&self.inline, self.file.as_deref(), &self.classes).map_err(|wrong| {
            let texts: Vec<_> = wrong.iter().map(ToString::to_string).collect();
            texts.join("; ")
        })?;
        let new = Arc::new(keys);
        let mut held = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *held, new.clone());
        drop(held);
        Ok(old.gone_in(&new, today))
    }

    /// What follows the key file, if there is one.
    #[must_use]
    pub fn files(&self) -> Option<Files> {
        self.files.clone()
    }

    /// Whether callers are asked who they are.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// What becomes of the streams of a key that ends.
    #[must_use]
    pub fn on_removed(&self) -> OnRemoved {
        self.on_removed
    }

    /// Who asks.
    ///
    /// # Errors
    /// `Unauthorized`, with a code that says what is missing or wrong.
    pub fn authenticate(&self, shown: Shown<'_>) -> Result<Caller, Failure> {
        let caller = if let Some(grant) = shown.bound {
            self.bound(&grant.caller, shown.today)
        } else if let Some(credential) = shown.credential.filter(|_| self.is_on) {
            self.credential(credential, shown.today)
        } else if let Some(certificate) = shown.certificate {
            Ok(Caller {
                identity: Some(certificate.clone()),
                rights: self.usual_rights(),
                ..Caller::default()
            })
        } else {
            self.nobody()
        };
        Ok(Caller {
            address: shown.address,
            ..caller?
        })
    }

    /// What judges JWTs, if they are believed.
    #[must_use]
    pub fn jwt(&self) -> Option<&Arc<Jwt>> {
        self.jwt.as_ref()
    }

    /// Whoever a secret belongs to.
    fn credential(&self, text: &str, today: u64) -> Result<Caller, Failure> {
        if let Some(jwt) = self.jwt.as_ref().filter(|_| looks_like_jwt(text)) {
            return Ok(jwt.verify(text, today)?.caller);
        }
        match self.keys().shown(text) {
            None => Err(invalid()),
            Some(key) if key.has_expired(today) => Err(expired()),
            Some(key) => Ok(key.caller().clone()),
        }
    }

    /// Whoever a bound token was made for, as far as that still holds. What a key is good for may have
    /// changed since, so that is looked up; the rest is as it was sealed.
    fn bound(&self, caller: &Caller, today: u64) -> Result<Caller, Failure> {
        let Some(identity) = caller.identity.as_deref() else {
            return self.nobody();
        };
        if !Keys::is_key(identity) {
            return Ok(caller.clone());
        }
        // One table for both questions: there may be another one in between.
        let keys = self.keys();
        if let Some(ended) = ended(&keys, caller, today) {
            return Err(ended);
        }
        let live = keys.of(identity).map(|key| key.caller().clone());
        live.ok_or_else(removed)
    }

    /// What a bound token is made of for this caller.
    #[must_use]
    pub fn to_be_bound(&self, caller: &Caller) -> Caller {
        let is_key = caller.identity.as_deref().is_some_and(Keys::is_key);
        if !is_key {
            return caller.clone();
        }
        // The rest is looked up each time, and might be too long.
        Caller {
            identity: caller.identity.clone(),
            until: caller.until,
            stamp: caller.stamp,
            ..Caller::default()
        }
    }

    /// Why the caller of a request that was believed would not be believed now, if so: the key is gone, is
    /// another one by now, or has expired.
    #[must_use]
    pub fn ended(&self, caller: &Caller, today: u64) -> Option<Failure> {
        ended(&self.keys(), caller, today)
    }

    /// Why the streams of this identity end by now, if so: its key has expired.
    #[must_use]
    pub fn expired(&self, identity: &str, today: u64) -> Option<Failure> {
        let keys = self.keys();
        let key = keys.of(identity)?;
        key.has_expired(today).then(expired)
    }

    fn nobody(&self) -> Result<Caller, Failure> {
        if self.is_on && !self.allow_anonymous {
            return Err(missing());
        }
        Ok(Caller {
            rights: self.usual_rights(),
            ..Caller::default()
        })
    }

    /// What somebody may do of whom nothing is written down.
    fn usual_rights(&self) -> Rights {
        if self.is_on {
            Rights {
                scopes: usual_scopes(),
                models: None,
            }
        } else {
            Rights::default()
        }
    }

    /// The keys as they are now.
    #[must_use]
    pub fn keys(&self) -> Arc<Keys> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.clone()
    }
}

fn ended(keys: &Keys, caller: &Caller, today: u64) -> Option<Failure> {
    let identity = caller.identity.as_deref().filter(|id| Keys::is_key(id))?;
    match keys.of(identity) {
        Some(key) if key.caller().stamp != caller.stamp => Some(removed()),
        Some(key) => key.has_expired(today).then(expired),
        None => Some(removed()),
    }
}

/// Three parts, of which the first is a JSON object in base64url.
fn looks_like_jwt(text: &str) -> bool {
    text.starts_with("ey") && text.matches('.').count() == 2
}

fn read(
    inline: &[KeyEntry],
    file: Option<&Path>,
    classes: &HashSet<Box<str>>,
) -> Result<Keys, Vec<Unusable>> {
    let mut wrong = Vec::new();
    let in_file = file.map_or(Ok(Vec::new()), |path| {
        let text = files::read(path, MAX_FILE)?;
        keys::parse_file(&text).map_err(|message| format!("{}: {message}", path.display()))
    });
    let in_file = in_file.unwrap_or_else(|message| {
        wrong.push(Unusable::File(message));
        Vec::new()
    });
    let entries = in_file.iter().map(|(_, entry)| entry);
    match Keys::new(inline.iter().chain(entries), |class| {
        classes.contains(class)
    }) {
        Ok(keys) if wrong.is_empty() => return Ok(keys),
        Ok(_) => {}
        Err(misfits) => wrong.extend(misfits.into_iter().map(|misfit| {
            let Some(at) = misfit.index.checked_sub(inline.len()) else {
                return Unusable::Inline {
                    index: misfit.index,
                    field: misfit.field,
                    message: misfit.message,
                };
            };
            let line = in_file.get(at).map_or(0, |(line, _)| *line);
            let shown = file.map(Path::display);
            let path = shown.map(|path| path.to_string()).unwrap_or_default();
            let (field, message) = (misfit.field, misfit.message);
            Unusable::File(format!("{path}: line {line}: {field}: {message}"))
        })),
    }
    Err(wrong)
}

/// What is asked of who shows nothing.
#[must_use]
pub fn missing() -> Failure {
    Failure::new(
        Kind::Unauthorized,
        "This server wants to know who asks: send an API key as Authorization: Bearer or as x-api-key.",
    )
    .with_code("missing_api_key")
}

/// What is shown for a credential that is none of this server's, or for two that differ.
#[must_use]
pub fn invalid() -> Failure {
    Failure::new(
        Kind::Unauthorized,
        "The API key is none of this server's, or is one no longer, or the request shows two that differ.",
    )
    .with_code("invalid_api_key")
}

fn expired() -> Failure {
    Failure::new(Kind::Unauthorized, "The API key has expired.").with_code("key_expired")
}

/// Why streams end whose key is there no longer.
#[must_use]
pub fn removed() -> Failure {
    Failure::new(Kind::Unauthorized, "The API key was removed.").with_code("key_removed")
}

#[cfg(test)]
mod tests;
