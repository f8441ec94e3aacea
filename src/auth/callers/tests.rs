//! Who is believed, in which order, and for how long.

use super::super::keys::KeyHash;
use super::super::{Lineage, token::Grant};
use super::*;
use crate::generation::Scopes;

const TODAY: u64 = 1_700_000_000;

fn entry(id: &str, more: &str) -> String {
    let hash = KeyHash::of(&format!("key-of-{id}"));
    format!("[[keys]]\nid = '{id}'\nhash = '{hash}'\n{more}\n")
}

fn auth(text: &str) -> Auth {
    toml::from_str(text).unwrap()
}

/// With keys of their own for `a` and `b`.
fn asking(more: &str) -> Callers {
    let keys = entry("a", "owner = 'acme'") + &entry("b", "expires = '2020-01-01'");
    Callers::new(&auth(&format!("{more}\n{keys}")), []).unwrap()
}

fn shown(credential: &str) -> Shown<'_> {
    Shown {
        credential: Some(credential),
        today: TODAY,
        ..Shown::default()
    }
}

fn grant(caller: Caller) -> Grant {
    Grant {
        caller,
        expires: u64::MAX,
        lineage: Lineage([0; 16]),
    }
}

fn code(result: Result<Caller, Failure>) -> &'static str {
    let failure = result.unwrap_err();
    assert_eq!(failure.kind, Kind::Unauthorized);
    failure.code.unwrap()
}

#[test]
fn where_nobody_is_asked_a_key_is_ignored_and_everything_allowed() {
    let callers = Callers::default();
    for credential in [None, Some("sk-whatever")] {
        let caller = callers.authenticate(Shown {
            credential,
            address: Some([127, 0, 0, 1].into()),
            ..Shown::default()
        });
        let caller = caller.unwrap();
        assert_eq!(
            (&caller.identity, &caller.rights),
            (&None, &Rights::default())
        );
        assert!(caller.address.is_some());
    }
}

#[test]
fn a_key_is_its_owner_a_wrong_one_nobody() {
    let callers = asking("");
    let caller = callers.authenticate(shown("key-of-a")).unwrap();
    assert_eq!(caller.identity.as_deref(), Some("key:a"));
    assert_eq!(caller.organization.as_deref(), Some("acme"));
    assert_eq!(
        code(callers.authenticate(shown("key-of-c"))),
        "invalid_api_key"
    );
    assert_eq!(code(callers.authenticate(shown("key-of-b"))), "key_expired");
    assert_eq!(
        code(callers.authenticate(Shown::default())),
        "missing_api_key"
    );
}

#[test]
fn nobody_is_served_where_that_is_said_and_a_wrong_key_is_wrong_there_too() {
    let callers = asking("allow_anonymous = true");
    let caller = callers.authenticate(Shown::default()).unwrap();
    assert_eq!(caller.identity, None);
    assert!(!caller.rights.scopes.contain(Scopes::OPS_READ));
    assert_eq!(
        code(callers.authenticate(shown("wrong"))),
        "invalid_api_key"
    );
}

#[test]
fn what_is_shown_goes_before_the_certificate_and_a_bound_token_before_all() {
    let callers = asking("");
    let certificate = Arc::from("cert:dns:c");
    let with = |credential, bound| Shown {
        credential,
        certificate: Some(&certificate),
        bound,
        today: TODAY,
        ..Shown::default()
    };
    let identity = |shown| {
        let caller = callers.authenticate(shown).unwrap();
        caller.identity.unwrap().to_string()
    };
    assert_eq!(identity(with(None, None)), "cert:dns:c");
    assert_eq!(identity(with(Some("key-of-a"), None)), "key:a");
    let bound = grant(Caller {
        identity: Some("jwt:x".into()),
        ..Caller::default()
    });
    assert_eq!(identity(with(Some("key-of-a"), Some(&bound))), "jwt:x");
    let wrong = callers.authenticate(with(Some("wrong"), None));
    assert_eq!(code(wrong), "invalid_api_key");
}

#[test]
fn a_bound_token_lives_and_changes_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    write(&entry("a", "models = ['m']"));
    let callers = Callers::new(&auth(&format!("keys_file = '{}'", path.display())), []).unwrap();
    let caller = callers.authenticate(shown("key-of-a")).unwrap();
    let bound = grant(callers.to_be_bound(&caller));
    assert!(bound.caller.rights.models.is_none(), "it is looked up");
    let ask = || {
        callers.authenticate(Shown {
            bound: Some(&bound),
            today: TODAY,
            ..Shown::default()
        })
    };
    assert!(!ask().unwrap().rights.allow_model("n"));
    write(&entry("a", "models = ['m', 'n']"));
    assert!(callers.reread(TODAY).unwrap().is_empty());
    assert!(ask().unwrap().rights.allow_model("n"));
    assert!(callers.ended(&caller, TODAY).is_none());

    write(&entry("a", "expires = '2021-01-01'"));
    assert!(callers.reread(TODAY).unwrap().contains("key:a"));
    assert_eq!(code(ask()), "key_expired");
    assert!(callers.expired("key:a", TODAY).is_some());
    assert!(callers.expired("key:b", TODAY).is_none());

    // Another secret under the same name.
    let other = KeyHash::of("another");
    write(&format!("[[keys]]\nid = 'a'\nhash = '{other}'"));
    assert!(callers.reread(TODAY).unwrap().contains("key:a"));
    assert_eq!(code(ask()), "key_removed");
    assert!(callers.ended(&caller, TODAY).is_some());
    assert_eq!(
        code(callers.authenticate(shown("key-of-a"))),
        "invalid_api_key"
    );

    write("[[keys]]\nid = 'a'\nhash = 'x'");
    let error = callers.reread(TODAY).unwrap_err();
    assert!(error.contains("keys.toml: line "), "{error}");
    assert!(
        callers.authenticate(shown("another")).is_ok(),
        "the old ones stay"
    );

    write("");
    assert!(callers.reread(TODAY).unwrap().contains("key:a"));
    assert_eq!(code(ask()), "key_removed");
    assert_eq!(
        code(callers.authenticate(Shown::default())),
        "missing_api_key"
    );
}

#[test]
fn a_token_bound_by_nobody_is_worth_what_nobody_is() {
    let bound = grant(Caller::default());
    let ask = |callers: &Callers| {
        callers.authenticate(Shown {
            bound: Some(&bound),
            ..Shown::default()
        })
    };
    assert!(ask(&Callers::default()).is_ok());
    assert!(ask(&asking("allow_anonymous = true")).is_ok());
    assert_eq!(code(ask(&asking(""))), "missing_api_key");
}

#[test]
fn keys_of_the_section_and_of_the_file_are_one_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    std::fs::write(&path, entry("b", "") + &entry("a", "")).unwrap();
    let both = |file: &Path| {
        let keys = entry("a", "");
        Callers::new(
            &auth(&format!("keys_file = '{}'\n{keys}", file.display())),
            [],
        )
    };
    let wrong = both(&path).unwrap_err();
    let texts: Vec<_> = wrong.iter().map(ToString::to_string).collect();
    assert!(
        texts[0].contains("keys.toml: line 5: id: there are two keys a"),
        "{texts:?}"
    );
    assert_eq!(texts.len(), 2, "the hash, too: {texts:?}");
    std::fs::write(&path, entry("b", "")).unwrap();
    let callers = both(&path).unwrap();
    for key in ["key-of-a", "key-of-b"] {
        assert!(callers.authenticate(shown(key)).is_ok());
    }
    let none = both(&dir.path().join("none")).unwrap_err();
    assert!(matches!(&none[..], [Unusable::File(text)] if text.contains("cannot read")));
}

#[test]
fn nothing_secret_is_printed() {
    let callers = asking("");
    let printed = format!("{:?} {callers:?}", shown("key-of-a"));
    assert!(!printed.contains("key-of-a"), "{printed}");
}
