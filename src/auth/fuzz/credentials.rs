//! What a fuzzer shows as a credential: nothing that it can make is believed, and nothing breaks.

use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::hmac;

use super::TODAY;
use crate::auth::callers::{Callers, Shown};
use crate::auth::config::Auth;
use crate::auth::early::Decision;
use crate::auth::gate::{Arrival, Gate};
use crate::auth::keys::{self, KeyEntry, KeyHash};
use crate::auth::session::Session;
use crate::auth::{Signed, jwt, token};

/// Whoever has it is believed; the fuzzer gets only what is made with it.
const SECRET: &[u8] = b"a secret of no less than 32 bytes";
const KEY: &str = "sgk_0123456789012345678901234567890123456789012";
const AUDIENCE: &str = "gate";

/// Everything that believes somebody.
struct Doors {
    callers: Callers,
    gate: Gate,
    session: Arc<Session>,
    /// What is believed: a key, a JWT, and a bound token of the session.
    good: [String; 3],
}

/// Reads bytes as a credential, as a key file, as a JWT with any header and any claims, signed and not, and as
/// a good credential that was changed.
///
/// # Panics
/// If something is believed that was not made with a secret.
pub fn credentials(bytes: &[u8]) {
    static DOORS: OnceLock<Option<Doors>> = OnceLock::new();
    let Some(doors) = DOORS.get_or_init(doors) else {
        return;
    };
    let Some((&what, rest)) = bytes.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    match what % 4 {
        0 => {
            let is_good = doors.good.iter().any(|good| *good == text);
            assert!(is_good || !doors.believe(&text), "a stranger is believed");
        }
        1 => {
            // A secret in a file of hashes is told apart, and neither is repeated in the error.
            let _ = text.parse::<KeyHash>();
            let _ = keys::parse_file(&text);
        }
        2 => signed(doors, rest),
        _ => changed(doors, rest),
    }
}

/// A JWT of this header and these claims: with a signature it is believed if it says all that it must, without one
/// never.
fn signed(doors: &Doors, bytes: &[u8]) {
    let Some((&cut, rest)) = bytes.split_first() else {
        return;
    };
    let (header, claims) = rest.split_at(usize::from(cut).min(rest.len()));
    let encode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
    let message = format!("{}.{}", encode(header), encode(claims));
    for unsigned in [
        format!("{message}."),
        format!("{message}.{}", encode(&[0; 32])),
        format!("{message}.{}", encode(&[0; 64])),
    ] {
        assert!(!doors.believe(&unsigned), "what nobody signed is believed");
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let signature = hmac::sign(&key, message.as_bytes());
    let token = format!("{message}.{}", encode(signature.as_ref()));
    if doors.believe(&token) {
        let says = |part: &[u8], what: &str| String::from_utf8_lossy(part).contains(what);
        assert!(says(header, "HS256"), "by another algorithm");
        assert!(says(claims, "exp") && says(claims, AUDIENCE), "for another");
    }
}

/// A good credential of which one bit, or the end, is another.
fn changed(doors: &Doors, bytes: &[u8]) {
    let &[which, high, low, bit, ref end @ ..] = bytes else {
        return;
    };
    let Some(good) = doors.good.get(usize::from(which) % 3) else {
        return;
    };
    let mut other = good.clone().into_bytes();
    let place = usize::from(u16::from_be_bytes([high, low])) % other.len();
    if bit < 8 {
        other[place] ^= 1 << bit;
    } else {
        other.truncate(place);
        other.extend_from_slice(end);
    }
    if let Ok(other) = String::from_utf8(other)
        && other != *good
    {
        assert!(!doors.believe(&other), "what was changed is believed");
    }
}

impl Doors {
    fn believe(&self, text: &str) -> bool {
        let request = Signed {
            id: "1",
            method: "POST",
            path: "/v1/completions",
            token: text,
            body: b"",
        };
        let arrival = Arrival {
            session: Some(&self.session),
            early: false,
            forwarded: false,
            live_only: false,
            room: true,
            proof: None,
            now: std::time::Instant::now(),
            today: TODAY,
        };
        let verdict = self.gate.judge(&arrival, &request, None);
        if verdict.grant.is_some() {
            return verdict.decision == Decision::Serve;
        }
        if text.starts_with(token::PREFIX) {
            return false;
        }
        let shown = Shown {
            credential: Some(text),
            today: TODAY,
            ..Shown::default()
        };
        let caller = self.callers.authenticate(shown);
        caller.is_ok_and(|caller| caller.identity.is_some())
    }
}

fn doors() -> Option<Doors> {
    let secret_file = std::env::temp_dir().join(format!("sluicegate-fuzz-{}", std::process::id()));
    std::fs::write(&secret_file, SECRET).ok()?;
    let jwt = jwt::config::Jwt {
        keys: vec![jwt::config::Key {
            id: "one".into(),
            algorithm: jwt::config::Algorithm::Hs256,
            public_key_file: None,
            secret_file: Some(secret_file.clone()),
        }],
        audience: Some(jwt::config::Audience::OneOf(vec![AUDIENCE.into()])),
        ..jwt::config::Jwt::default()
    };
    let auth = Auth {
        jwt: Some(jwt),
        keys: vec![KeyEntry {
            id: "one".into(),
            hash: KeyHash::of(KEY),
            owner: None,
            scopes: keys::usual_scopes(),
            models: None,
            expires: None,
            class: None,
        }],
        require_proof: false,
        ..Auth::default()
    };
    let callers = Callers::new(&auth, []);
    std::fs::remove_file(secret_file).ok()?;
    let callers = callers.ok()?;
    let gate = Gate::new(&auth, TODAY).ok()?;
    let session = gate.session().ok()?;
    let (bound, _) = gate
        .bind(&session, &crate::generation::Caller::default(), TODAY)
        .ok()?;
    let claims = format!(r#"{{"sub":"a","aud":"{AUDIENCE}","exp":{}}}"#, TODAY + 100);
    let encode = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
    let header = encode(br#"{"alg":"HS256","typ":"JWT"}"#);
    let message = format!("{header}.{}", encode(claims.as_bytes()));
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let signature = encode(hmac::sign(&key, message.as_bytes()).as_ref());
    let doors = Doors {
        callers,
        gate,
        session,
        good: [KEY.to_owned(), format!("{message}.{signature}"), bound],
    };
    let believed = doors.good.iter().all(|good| doors.believe(good));
    assert!(believed, "the good ones are good");
    Some(doors)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::credentials;

    #[test]
    fn a_signed_token_is_read_to_its_end() {
        let header = br#"{"alg":"HS256"}"#;
        let claims = br#"{"sub":"a","aud":"gate","exp":1700000100}"#;
        let cut = u8::try_from(header.len()).unwrap();
        credentials(&[&[2, cut], &header[..], claims].concat());
    }

    proptest! {
        #[test]
        fn nothing_is_believed_and_nothing_breaks(
            what: u8,
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                "[ -~]{0,80}".prop_map(String::into_bytes),
                "(sgk_|sgb1\\.|ey)[\\w.-]{0,80}".prop_map(String::into_bytes),
            ],
        ) {
            credentials(&[&[what], &bytes[..]].concat());
        }

        #[test]
        fn no_change_of_a_good_credential_is_believed(which: u8, place: u16, bit in 0_u8..16) {
            let [high, low] = place.to_be_bytes();
            credentials(&[3, which, high, low, bit]);
        }
    }
}
