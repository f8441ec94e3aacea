//! Good tokens, claims that are not right, and the keys' files.

mod hostile;
mod issuer;

use ::ring::signature::KeyPair as _;
use base64::Engine as _;
use serde_json::{Value, json};

use self::issuer::*;
use super::*;
use crate::generation::Scopes;

#[test]
fn a_good_token_of_each_algorithm_says_who_the_caller_is() {
    let (issuer, _dir, jwt) = usual();
    for algorithm in ALGORITHMS {
        let token = issuer.token(algorithm, &claims());
        let verified = jwt.verify(&token, NOW).unwrap();
        assert_eq!(verified.caller.identity.as_deref(), Some("jwt:alice"));
        assert_eq!(verified.caller.address, None);
        assert_eq!(
            verified.caller.rights.scopes,
            Scopes::GENERATE.with(Scopes::EMBED)
        );
        assert_eq!(verified.expires, NOW + 130, "with the leeway");
    }
}

#[test]
fn claims_say_what_the_caller_may_do_and_who_pays() {
    let issuer = Issuer::new();
    let settings = "audience = 'any'\norganization_claim = 'org'\nclass_claim = 'tier'\n\
                    models_claim = 'models'\nidentity_claim = 'email'\ndefault_scopes = []";
    let (_dir, jwt) = judge(&issuer.jwks(), settings);
    let caller = |claims: &Value| {
        let verified = jwt.verify(&issuer.token("EdDSA", claims), NOW);
        verified.unwrap().caller
    };
    let full = caller(
        &json!({"exp": 1_800_000_001.5, "email": "a@b", "org": "acme", "tier": "gold",
        "models": ["m", "n"], "scope": "openid generate ops:read"}),
    );
    assert_eq!(full.identity.as_deref(), Some("jwt:a@b"));
    assert_eq!(full.organization.as_deref(), Some("acme"));
    assert_eq!(full.class.as_deref(), Some("gold"));
    assert!(full.rights.allow_model("n") && !full.rights.allow_model("o"));
    assert_eq!(full.rights.scopes, Scopes::GENERATE.with(Scopes::OPS_READ));
    let plain = caller(&json!({"exp": NOW + 1, "email": "a@b", "scope": ["embed"], "models": "m"}));
    assert_eq!(plain.rights.scopes, Scopes::EMBED);
    assert!(plain.rights.allow_model("m") && !plain.rights.allow_model("n"));
    let bare = caller(&json!({"exp": NOW + 1, "email": "a@b"}));
    assert_eq!(bare.rights.scopes, Scopes::NONE);
    assert!(bare.rights.allow_model("o") && bare.class.is_none());
}

#[test]
fn without_an_audience_to_be_nothing_is_believed() {
    let issuer = Issuer::new();
    let (_dir, jwt) = judge(&issuer.jwks(), "");
    for claims in [
        claims(),
        with(&json!({"aud": ""})),
        with(&json!({"aud": []})),
    ] {
        let judged = jwt.verify(&issuer.token("EdDSA", &claims), NOW);
        assert_eq!(judged.unwrap_err(), JwtRefusal::Audience);
    }
    let bare = jwt.verify(&issuer.token("EdDSA", &without("aud")), NOW);
    assert_eq!(bare.unwrap_err(), JwtRefusal::Claim("aud".into()));
}

#[test]
fn subjects_of_several_issuers_are_told_apart() {
    let issuer = Issuer::new();
    let settings = "audience = 'gate'\nissuer = ['https://a.example', 'https://b.example']";
    let (_dir, jwt) = judge(&issuer.jwks(), settings);
    for name in ["https://a.example", "https://b.example"] {
        let token = issuer.token("ES256", &with(&json!({"iss": name})));
        let identity = jwt.verify(&token, NOW).unwrap().caller.identity;
        assert_eq!(*identity.unwrap(), *format!("jwt:{name}|alice"));
    }
}

#[test]
fn claims_that_are_not_right_are_refused() {
    let (issuer, _dir, jwt) = usual();
    let claim = |name: &str| JwtRefusal::Claim(name.into());
    let table = [
        (without("exp"), claim("exp")),
        (with(&json!({"exp": NOW - 30})), JwtRefusal::Expired),
        (with(&json!({"exp": 0})), JwtRefusal::Expired),
        (with(&json!({"exp": -1})), claim("exp")),
        (with(&json!({"exp": "1800000100"})), claim("exp")),
        (with(&json!({"exp": null})), claim("exp")),
        (with(&json!({"exp": true})), claim("exp")),
        (with(&json!({"exp": (NOW + 100) * 1000})), claim("exp")),
        (with(&json!({"exp": u64::MAX})), claim("exp")),
        (with(&json!({"exp": 1e300})), claim("exp")),
        (with(&json!({"nbf": NOW + 31})), JwtRefusal::TooSoon),
        (with(&json!({"iat": NOW + 31})), JwtRefusal::TooSoon),
        (with(&json!({"nbf": "now"})), claim("nbf")),
        (with(&json!({"nbf": -5})), claim("nbf")),
        (without("aud"), claim("aud")),
        (with(&json!({"aud": "other"})), JwtRefusal::Audience),
        (with(&json!({"aud": "gate "})), JwtRefusal::Audience),
        (with(&json!({"aud": []})), JwtRefusal::Audience),
        (
            with(&json!({"aud": ["other", "Gate"]})),
            JwtRefusal::Audience,
        ),
        (with(&json!({"aud": 5})), claim("aud")),
        (without("iss"), claim("iss")),
        (
            with(&json!({"iss": "https://a.example/"})),
            JwtRefusal::Issuer,
        ),
        (with(&json!({"iss": ["https://a.example"]})), claim("iss")),
        (without("sub"), claim("sub")),
        (with(&json!({"sub": ""})), claim("sub")),
        (with(&json!({"sub": 7})), claim("sub")),
        (with(&json!({"sub": "a\nb"})), claim("sub")),
        (with(&json!({"sub": "x".repeat(300)})), claim("sub")),
        (with(&json!({"scope": 5})), claim("scope")),
        (with(&json!({"scope": ["generate", 5]})), claim("scope")),
        (json!([]), JwtRefusal::Malformed),
        (json!("alice"), JwtRefusal::Malformed),
    ];
    for (claims, refusal) in table {
        let judged = jwt.verify(&issuer.token("EdDSA", &claims), NOW);
        assert_eq!(judged.unwrap_err(), refusal, "{claims}");
    }
    for good in [
        with(&json!({"exp": NOW - 29})),
        with(&json!({"nbf": NOW + 30, "iat": NOW + 30})),
        with(&json!({"nbf": 0, "iat": 1.5})),
        with(&json!({"aud": ["other", "gate"]})),
        with(&json!({"sub": "Ålice — 爱丽丝"})),
    ] {
        assert!(
            jwt.verify(&issuer.token("EdDSA", &good), NOW).is_ok(),
            "{good}"
        );
    }
}

#[test]
fn a_token_without_an_id_is_tried_with_a_few_keys_of_its_algorithm() {
    let issuers: Vec<_> = (0..=MOST_TRIED).map(|_| Issuer::new()).collect();
    let keys = issuers
        .iter()
        .map(|issuer| issuer.jwks()["keys"][0].clone());
    let keys: Vec<_> = keys.collect();
    let (_dir, jwt) = judge(&json!({"keys": keys}), USUAL);
    let header = r#"{"alg":"EdDSA"}"#;
    let token = |issuer: &Issuer| issuer.raw("EdDSA", header, &claims().to_string());
    let (last, others) = issuers.split_last().unwrap();
    for issuer in others {
        assert!(jwt.verify(&token(issuer), NOW).is_ok());
    }
    let beyond = jwt.verify(&token(last), NOW).unwrap_err();
    assert_eq!(beyond, JwtRefusal::Signature);
}

#[test]
fn keys_that_are_not_for_this_are_left_out() {
    let issuer = Issuer::new();
    let good = issuer.jwks()["keys"].as_array().unwrap().clone();
    let changed = |index: usize, changes: Value| {
        let mut key = good[index].clone();
        for (name, value) in changes.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    };
    for bad in [
        changed(0, json!({"use": "enc"})),
        changed(0, json!({"key_ops": ["sign"]})),
        changed(0, json!({"alg": "ES256"})),
        changed(0, json!({"alg": "HS256"})),
        changed(0, json!({"x": encoded([1; 31])})),
        changed(0, json!({"x": "not base64!"})),
        changed(0, json!({"crv": "Ed448"})),
        changed(1, json!({"crv": "P-384"})),
        changed(1, json!({"x": encoded([1; 31])})),
        changed(1, json!({"crv": "secp256k1"})),
        changed(2, json!({"alg": "PS256"})),
        changed(2, json!({"alg": "RSA-OAEP"})),
        changed(2, json!({"n": encoded([0xff; 255])})),
        changed(2, json!({"e": "AQ"})),
        changed(3, json!({"k": encoded([1; 31])})),
        changed(3, json!({"alg": "HS512"})),
        json!({"kty": "new", "kid": "x"}),
        json!({"kty": "RSA", "kid": "x"}),
    ] {
        // With another, so that the set as a whole can be used.
        let kid = &bad["kid"];
        let named: &Value = good.iter().find(|key| key["kid"] != *kid).unwrap();
        let (_dir, jwt) = judge(&json!({"keys": [bad, named]}), USUAL);
        assert_eq!(jwt.keys.read().unwrap().len(), 1, "{bad}");
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_without_a_word_of_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let load = |contents: &[u8], settings: &str| {
        std::fs::write(&path, contents).unwrap();
        let settings = settings.replace("FILE", path.to_str().unwrap());
        let settings = format!("audience = 'any'\n{settings}");
        Jwt::new(toml::from_str(&settings).unwrap())
    };
    let key = |algorithm: &str, file: &str| {
        format!("[[keys]]\nid = 'a'\nalgorithm = '{algorithm}'\n{file} = 'FILE'")
    };
    let public = |algorithm| key(algorithm, "public_key_file");
    let set = "jwks_file = 'FILE'".to_owned();
    for (contents, settings) in [
        (&br#"{"keys":["hunter2"]}"#[..], &set),
        (br#"{"keys":[]}"#, &set),
        (b"hunter2", &set),
        (b"hunter2", &key("HS256", "secret_file")),
        (SECRET, &public("HS256")),
        (SECRET, &key("EdDSA", "secret_file")),
        (b"hunter2", &public("EdDSA")),
        (RSA_PEM.as_bytes(), &public("ES256")),
        (RSA_PEM.as_bytes(), &public("EdDSA")),
        (include_bytes!("tests/rsa_1024.pem"), &public("RS256")),
        (include_bytes!("tests/p384.pem"), &public("ES256")),
    ] {
        let error = load(contents, settings).unwrap_err().to_string();
        assert!(error.starts_with("auth.jwt."), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(load(RSA_PEM.as_bytes(), &public("RS256")).is_ok());
    assert!(load(SECRET, &key("HS256", "secret_file")).is_ok());
}

#[test]
fn keys_from_files_judge_like_those_of_a_set() {
    let issuer = Issuer::new();
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    let rsa = dir.path().join("rsa.pem");
    std::fs::write(&secret, [SECRET, b"\n"].concat()).unwrap();
    std::fs::write(&rsa, RSA_PEM).unwrap();
    let spki = |name: &str, before: &[u8], key: &[u8]| {
        let path = dir.path().join(name);
        let text = base64::prelude::BASE64_STANDARD.encode([before, key].concat());
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n");
        std::fs::write(&path, pem).unwrap();
        path
    };
    // The SubjectPublicKeyInfo of Ed25519 (RFC 8410, section 4) and of P-256 (RFC 5480, section 2).
    let ed = spki(
        "ed.pem",
        &[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0],
        issuer.ed.public_key().as_ref(),
    );
    let ec = spki(
        "ec.pem",
        &[
            0x30, 0x59, 0x30, 0x13, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 6, 8, 0x2a, 0x86,
            0x48, 0xce, 0x3d, 3, 1, 7, 3, 0x42, 0,
        ],
        issuer.ec.public_key().as_ref(),
    );
    let key = |algorithm, public: Option<_>, secret| config::Key {
        id: match algorithm {
            config::Algorithm::EdDsa => "EdDSA".into(),
            config::Algorithm::Es256 => "ES256".into(),
            config::Algorithm::Rs256 => "RS256".into(),
            config::Algorithm::Hs256 => "HS256".into(),
        },
        algorithm,
        public_key_file: public,
        secret_file: secret,
    };
    let jwt = Jwt::new(config::Jwt {
        keys: vec![
            key(config::Algorithm::EdDsa, Some(ed), None),
            key(config::Algorithm::Es256, Some(ec), None),
            key(config::Algorithm::Rs256, Some(rsa), None),
            key(config::Algorithm::Hs256, None, Some(secret)),
        ],
        audience: Some(config::Audience::Any),
        ..config::Jwt::default()
    })
    .unwrap();
    for algorithm in ALGORITHMS {
        let token = issuer.token(algorithm, &claims());
        assert!(jwt.verify(&token, NOW).is_ok(), "{algorithm}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_replaced_holds_and_a_bad_one_changes_nothing() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let (dir, jwt) = judge(&old.jwks(), USUAL);
    let jwt = Arc::new(jwt);
    let (send, mut told) = tokio::sync::mpsc::channel(8);
    let following = jwt.clone().follow(move |is_good| {
        let _ = send.try_send(is_good);
    });
    let following = tokio::spawn(following);
    let path = dir.path().join("jwks.json");
    let good = |issuer: &Issuer| jwt.verify(&issuer.token("EdDSA", &claims()), NOW).is_ok();
    std::fs::write(&path, "{").unwrap();
    while told.recv().await.unwrap() {}
    assert!(good(&old) && !good(&new));
    std::fs::write(&path, new.jwks().to_string()).unwrap();
    assert!(told.recv().await.unwrap());
    // It is told just before the keys are replaced.
    while !good(&new) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(!good(&old));
    following.abort();
}

#[test]
fn a_refusal_is_told_as_401_and_nothing_of_the_token_with_it() {
    let (issuer, _dir, jwt) = usual();
    let token = issuer.token("EdDSA", &with(&json!({"sub": "a\u{7}secret"})));
    let failure = Failure::from(jwt.verify(&token, NOW).unwrap_err());
    assert_eq!(failure.kind, Kind::Unauthorized);
    assert_eq!(
        failure.message,
        "The token is not accepted: its claim sub is missing or malformed."
    );
    assert_eq!(format!("{jwt:?}"), "Jwt { .. }");
}
