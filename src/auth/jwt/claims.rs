//! What a token whose signature holds says about its caller.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::config::Jwt;
use super::{JwtRefusal, Verified};
use crate::generation::{Caller, Rights, Scopes, Trace};

/// Most bytes of a name of any kind. Longer ones do not fit into a bound token.
const MOST_NAME: usize = 256;

/// Most models that one token may name.
const MOST_MODELS: usize = 256;

/// The end of the year 9999. Times beyond it are mistakes, such as milliseconds.
const LAST_SECOND: u64 = 253_402_300_799;

/// The claims, each there once: where a name appears twice, two readers may see two tokens (RFC 7519,
/// section 4).
pub(super) struct Claims(HashMap<Box<str>, Value>);

impl Claims {
    /// Whether it is their time, and who the caller is; `now` in seconds since 1970.
    pub(super) fn judge(&self, settings: &Jwt, now: u64) -> Result<Verified, JwtRefusal> {
        let leeway = settings.leeway.as_secs();
        let expires = self.date("exp")?.ok_or_else(|| refused("exp"))?;
        let expires = expires.saturating_add(leeway);
        if now >= expires {
            return Err(JwtRefusal::Expired);
        }
        for begins in ["nbf", "iat"] {
            if self
                .date(begins)?
                .is_some_and(|at| at > now.saturating_add(leeway))
            {
                return Err(JwtRefusal::TooSoon);
            }
        }
        let optional = |claim: &Option<Box<str>>| match claim {
            Some(claim) => self.name(claim, MOST_NAME),
            None => Ok(None),
        };
        let caller = Caller {
            address: None,
            identity: Some(self.identity(settings)?),
            organization: optional(&settings.organization_claim)?,
            class: optional(&settings.class_claim)?,
            rights: Rights {
                scopes: self.scopes(settings)?,
                models: match &settings.models_claim {
                    Some(claim) => self.models(claim)?,
                    None => None,
                },
            },
            until: Some(expires),
            stamp: 0,
            trace: Trace::none(),
        };
        Ok(Verified { caller, expires })
    }

    /// Two issuers may have a subject of the same name.
    fn identity(&self, settings: &Jwt) -> Result<Arc<str>, JwtRefusal> {
        let claim = &settings.identity_claim;
        let subject = self.name(claim, MOST_NAME)?;
        let subject = subject.ok_or_else(|| refused(claim))?;
        let issuer = if settings.issuer.is_empty() {
            None
        } else {
            // The library has found one of ours there, be it in a list, which is none of the standard's.
            let issuer = self.name("iss", MOST_NAME)?;
            Some(issuer.ok_or_else(|| refused("iss"))?)
        };
        let identity = match issuer.filter(|_| settings.issuer.len() > 1) {
            Some(issuer) => format!("jwt:{issuer}|{subject}"),
            None => format!("jwt:{subject}"),
        };
        if identity.len() > MOST_NAME {
            return Err(refused(claim));
        }
        Ok(identity.into())
    }

    fn scopes(&self, settings: &Jwt) -> Result<Scopes, JwtRefusal> {
        let claim = &settings.scope_claim;
        // Scopes of other services may stand among ours.
        let gather = |all: Scopes, name: &str| match Scopes::parse(name) {
            Some(scope) => all.with(scope),
            None => all,
        };
        match self.0.get(claim) {
            None => Ok(settings.default_scopes),
            Some(Value::String(names)) => Ok(names.split(' ').fold(Scopes::NONE, gather)),
            Some(Value::Array(names)) => names.iter().try_fold(Scopes::NONE, |all, name| {
                let name = name.as_str().ok_or_else(|| refused(claim))?;
                Ok(gather(all, name))
            }),
            Some(_) => Err(refused(claim)),
        }
    }

    fn models(&self, claim: &str) -> Result<Option<Arc<[Box<str>]>>, JwtRefusal> {
        match self.0.get(claim) {
            None => Ok(None),
            Some(Value::String(name)) => Ok(Some([name.as_str().into()].into())),
            Some(Value::Array(names)) if names.len() <= MOST_MODELS => {
                let names = names.iter().map(|name| {
                    let name = name.as_str().ok_or_else(|| refused(claim))?;
                    Ok(name.into())
                });
                names.collect::<Result<_, _>>().map(Some)
            }
            Some(_) => Err(refused(claim)),
        }
    }

    /// A text that may stand in a log line: not empty, not long, on one line.
    fn name(&self, claim: &str, most: usize) -> Result<Option<Arc<str>>, JwtRefusal> {
        match self.0.get(claim) {
            None => Ok(None),
            Some(Value::String(name))
                if !name.is_empty() && name.len() <= most && !name.contains(char::is_control) =>
            {
                Ok(Some(name.as_str().into()))
            }
            Some(_) => Err(refused(claim)),
        }
    }

    /// Seconds since 1970, which may have a fraction (RFC 7519, section 2).
    fn date(&self, claim: &str) -> Result<Option<u64>, JwtRefusal> {
        let Some(value) = self.0.get(claim) else {
            return Ok(None);
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a number from 0 to the year 9999"
        )]
        let whole = |seconds: f64| {
            (0.0..=LAST_SECOND as f64)
                .contains(&seconds)
                .then_some(seconds as u64)
        };
        let seconds = value.as_u64().or_else(|| value.as_f64().and_then(whole));
        let seconds = seconds.filter(|seconds| *seconds <= LAST_SECOND);
        seconds.map(Some).ok_or_else(|| refused(claim))
    }
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("claims")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let mut claims = HashMap::new();
                while let Some(name) = map.next_key::<Box<str>>()? {
                    match claims.entry(name) {
                        Entry::Vacant(place) => place.insert(map.next_value()?),
                        Entry::Occupied(_) => {
                            return Err(A::Error::custom("a claim is there twice"));
                        }
                    };
                }
                Ok(Claims(claims))
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

fn refused(claim: &str) -> JwtRefusal {
    JwtRefusal::Claim(claim.into())
}
