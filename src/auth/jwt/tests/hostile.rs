//! What people who attack tokens have come up with.

use ::ring::signature::KeyPair;
use proptest::prelude::*;
use serde_json::json;

use super::issuer::*;
use super::*;

#[test]
fn what_a_header_asks_for_decides_nothing() {
    let (issuer, _dir, jwt) = usual();
    let claims = claims().to_string();
    let table = [
        (r#"{"alg":"none","kid":"EdDSA"}"#, JwtRefusal::Malformed),
        (r#"{"alg":"None"}"#, JwtRefusal::Malformed),
        (r#"{"alg":""}"#, JwtRefusal::Malformed),
        (r#"{"kid":"EdDSA"}"#, JwtRefusal::Malformed),
        (r#"{"alg":"EdDSA","alg":"EdDSA"}"#, JwtRefusal::Malformed),
        (r#"{"alg":"HS256","kid":"EdDSA"}"#, JwtRefusal::UnknownKey),
        (r#"{"alg":"HS512","kid":"HS256"}"#, JwtRefusal::UnknownKey),
        (r#"{"alg":"PS256","kid":"RS256"}"#, JwtRefusal::UnknownKey),
        (r#"{"alg":"ES384","kid":"ES256"}"#, JwtRefusal::UnknownKey),
        (r#"{"alg":"EdDSA","kid":"ES256"}"#, JwtRefusal::UnknownKey),
        (r#"{"alg":"EdDSA","kid":""}"#, JwtRefusal::UnknownKey),
        (
            r#"{"alg":"EdDSA","kid":"../../etc/passwd"}"#,
            JwtRefusal::UnknownKey,
        ),
        (
            r#"{"alg":"EdDSA","kid":"EdDSA' OR '1'='1"}"#,
            JwtRefusal::UnknownKey,
        ),
        (
            r#"{"alg":"EdDSA","kid":"EdDSA\u0000"}"#,
            JwtRefusal::UnknownKey,
        ),
        (r#"{"alg":"EdDSA","kid":["EdDSA"]}"#, JwtRefusal::Malformed),
        (r#"{"alg":"EdDSA","crit":[]}"#, JwtRefusal::Extension),
        (
            r#"{"alg":"EdDSA","crit":["b64"],"b64":false}"#,
            JwtRefusal::Extension,
        ),
        (
            r#"{"alg":"EdDSA","typ":"logout+jwt"}"#,
            JwtRefusal::Extension,
        ),
        (r#"["EdDSA"]"#, JwtRefusal::Malformed),
        ("", JwtRefusal::Malformed),
    ];
    for (header, refusal) in table {
        let token = issuer.raw("EdDSA", header, &claims);
        assert_eq!(jwt.verify(&token, NOW).unwrap_err(), refusal, "{header}");
    }
    for good in [
        r#"{"alg":"EdDSA"}"#,
        r#"{"alg":"EdDSA","typ":"at+JWT","jku":"https://evil.example","x5u":"https://evil.example"}"#,
        r#"{"alg":"EdDSA","typ":"application/jwt","kid":"EdDSA","new":1}"#,
    ] {
        let token = issuer.raw("EdDSA", good, &claims);
        assert!(jwt.verify(&token, NOW).is_ok(), "{good}");
    }
}

#[test]
fn a_key_in_the_token_is_not_the_key() {
    let (_, _dir, jwt) = usual();
    let stranger = Issuer::new();
    let mut key = stranger.jwks()["keys"][0].clone();
    for id in ["EdDSA", "mine"] {
        key["kid"] = id.into();
        let header = json!({"alg": "EdDSA", "kid": id, "jwk": key}).to_string();
        let token = stranger.raw("EdDSA", &header, &claims().to_string());
        assert!(jwt.verify(&token, NOW).is_err(), "{id}");
    }
}

#[test]
fn a_public_key_is_no_secret() {
    let (issuer, _dir, jwt) = usual();
    let components: ::ring::rsa::PublicKeyComponents<Vec<u8>> = issuer.rsa.public().into();
    for secret in [
        RSA_PEM.as_bytes(),
        RSA_PEM.trim_end().as_bytes(),
        &components.n,
        issuer.ed.public_key().as_ref(),
        issuer.ec.public_key().as_ref(),
        b"",
    ] {
        for kid in ["RS256", "EdDSA", "ES256", "HS256"] {
            let header = json!({"alg": "HS256", "kid": kid}).to_string();
            let message = format!("{}.{}", encoded(header), encoded(claims().to_string()));
            let signature = encoded(mac(secret, message.as_bytes()));
            assert!(jwt.verify(&format!("{message}.{signature}"), NOW).is_err());
        }
    }
}

#[test]
fn the_shape_is_three_parts_of_base64url_and_nothing_else() {
    let (issuer, _dir, jwt) = usual();
    let good = issuer.token("EdDSA", &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let parts: Vec<_> = good.split('.').collect();
    let long = issuer.token("EdDSA", &with(&json!({"x": "y".repeat(MAX_TOKEN)})));
    for bad in [
        "",
        ".",
        "..",
        "...",
        "ey",
        message,
        &format!("{message}."),
        &format!("{good}."),
        &format!(".{good}"),
        &format!("{good}.{signature}"),
        &format!("{good}="),
        &format!(" {good}"),
        &format!("{good}\n"),
        &format!("{}..{}", parts[0], parts[2]),
        &format!("{}.{}.{}", parts[1], parts[0], parts[2]),
        &good.replace('.', ".."),
        &good.to_uppercase(),
        &good.replace('e', "\u{435}"),
        &format!("{message}.{}", encoded([0; 64])),
        &format!("{message}.{}", encoded([0xff; 64])),
        &long,
    ] {
        assert!(jwt.verify(bad, NOW).is_err(), "{bad:?}");
    }
    for end in 0..good.len() {
        assert!(jwt.verify(&good[..end], NOW).is_err(), "{end}");
    }
    // All zeros was a signature of everything for a while, elsewhere (CVE-2022-21449).
    let message = issuer.token("ES256", &claims());
    let (message, _) = message.rsplit_once('.').unwrap();
    let zeros = format!("{message}.{}", encoded([0; 64]));
    assert_eq!(jwt.verify(&zeros, NOW).unwrap_err(), JwtRefusal::Signature);
}

#[test]
fn claims_that_are_there_twice_are_refused() {
    let (issuer, _dir, jwt) = usual();
    let header = r#"{"alg":"EdDSA"}"#;
    for twice in [
        r#"{"sub":"a","sub":"b","aud":"gate","iss":"https://a.example","exp":9999999999}"#,
        r#"{"sub":"a","aud":"x","aud":"gate","iss":"https://a.example","exp":9999999999}"#,
        r#"{"sub":"a","aud":"gate","iss":"https://a.example","exp":1,"exp":9999999999}"#,
        r#"{"sub":"a","aud":"gate","iss":"https://a.example","exp":9999999999,"x":1,"\u0078":2}"#,
    ] {
        let token = issuer.raw("EdDSA", header, twice);
        assert_eq!(
            jwt.verify(&token, NOW).unwrap_err(),
            JwtRefusal::Malformed,
            "{twice}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_token_with_any_bit_changed_is_refused(which in 0_usize..4, place: prop::sample::Index, bit in 0_u32..8) {
        let (issuer, _dir, jwt) = usual();
        let token = issuer.token(ALGORITHMS[which], &claims());
        let mut bytes = token.into_bytes();
        let place = place.index(bytes.len());
        bytes[place] ^= 1_u8 << bit;
        // Headers that are no text do not come this far.
        if let Ok(changed) = String::from_utf8(bytes) {
            prop_assert!(jwt.verify(&changed, NOW).is_err());
        }
    }

    #[test]
    fn any_text_is_refused(text in "\\PC{0,200}", parts in prop::collection::vec("[\\w-]{0,60}", 0..5)) {
        let (_, _dir, jwt) = usual();
        prop_assert!(jwt.verify(&text, NOW).is_err());
        prop_assert!(jwt.verify(&parts.join("."), NOW).is_err());
    }
}
