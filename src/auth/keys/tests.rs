//! What may be written for a key, and how it is found.

use proptest::prelude::*;

use super::*;

/// An entry for the key `key-of-{id}`.
fn entry(id: &str, more: &str) -> String {
    let hash = KeyHash::of(&format!("key-of-{id}"));
    format!("[[keys]]\nid = '{id}'\nhash = '{hash}'\n{more}\n")
}

fn table(text: &str) -> Result<Keys, Vec<Misfit>> {
    let entries = parse_file(text).unwrap();
    Keys::new(entries.iter().map(|(_, entry)| entry), |_| true)
}

#[test]
fn a_new_key_has_256_random_bits_and_is_found_by_its_hash_alone() {
    let (key, other) = (mint().unwrap(), mint().unwrap());
    assert_ne!(*key, *other);
    let random = key.strip_prefix(PREFIX).unwrap();
    assert_eq!(URL_SAFE_NO_PAD.decode(random).unwrap().len(), 32);
    let hash = KeyHash::of(&key);
    let keys = table(&format!("[[keys]]\nid = 'a'\nhash = '{hash}'")).unwrap();
    assert_eq!(
        keys.shown(&key).unwrap().caller().identity.as_deref(),
        Some("key:a")
    );
    assert!(keys.shown(&other).is_none());
    assert!(keys.shown(&hash.to_string()).is_none());
    assert!(keys.shown("").is_none());
}

#[test]
fn the_hash_is_what_sha256sum_prints() {
    assert_eq!(
        KeyHash::of("abc").to_string(),
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn an_entry_says_who_may_do_what_until_when() {
    let keys = table(&entry(
        "a",
        "owner = 'acme'\nscopes = ['ops:read', 'generate']\nmodels = ['m']\n\
         expires = '2030-01-31'\nclass = 'batch'",
    ));
    let keys = keys.unwrap();
    let key = keys.shown("key-of-a").unwrap();
    let caller = key.caller();
    assert_eq!(caller.organization.as_deref(), Some("acme"));
    assert_eq!(caller.class.as_deref(), Some("batch"));
    let scopes = Scopes::GENERATE.with(Scopes::OPS_READ);
    assert_eq!(caller.rights.scopes, scopes);
    assert!(caller.rights.allow_model("m") && !caller.rights.allow_model("n"));
    let end = 1_896_048_000;
    assert_eq!(caller.until, Some(end));
    assert!(!key.has_expired(end - 1) && key.has_expired(end));
}

#[test]
fn an_entry_that_says_little_gets_what_is_usual() {
    let keys = table(&entry("a", "")).unwrap();
    let key = keys.shown("key-of-a").unwrap();
    assert_eq!(key.caller().rights.scopes, usual_scopes());
    assert!(key.caller().rights.models.is_none());
    assert!(!key.has_expired(u64::MAX));
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let good = entry("first", "");
    for (more, expected) in [
        ("scopes = ['admin']", "there is no scope \"admin\""),
        ("scopes = []", "good for nothing"),
        ("models = []", "good for nothing"),
        ("expires = 'soon'", "must be a date"),
        ("expires = 2030-01-31", "in quotes"),
        ("owner = 'a b'", "must be 1 to 64 letters"),
        ("class = ''", "must be 1 to 64 letters"),
        ("colour = 'red'", "unknown field `colour`"),
    ] {
        let text = format!("{good}\n\n{}", entry("second", more));
        let error = parse_file(&text).unwrap_err();
        assert!(error.contains(expected), "{more}: {error}");
        let line: usize = error
            .strip_prefix("line ")
            .and_then(|rest| rest.split(':').next()?.parse().ok())
            .unwrap_or_else(|| panic!("{error}"));
        assert!((7..=10).contains(&line), "{more}: {error}");
    }
    assert!(parse_file("[[key]]").unwrap_err().starts_with("line 1: "));
}

#[test]
fn a_key_in_the_place_of_its_hash_is_refused_and_not_repeated() {
    let key = mint().unwrap();
    let text = format!("[[keys]]\nid = 'a'\nhash = '{}'", *key);
    let error = parse_file(&text).unwrap_err();
    assert!(error.contains("only its hash is kept"), "{error}");
    assert!(!error.contains(&**key), "{error}");
}

#[test]
fn a_key_in_any_wrong_place_is_refused_and_not_repeated() {
    let key = "sgk_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ";
    for text in [
        entry("a", &format!("scopes = '{key}'")),
        entry("a", &format!("models = '{key}'")),
        entry("a", &format!("owner = '{key}'")),
        entry("a", &format!("{key} = 1")),
        entry(key, ""),
        format!("keys = '{key}'"),
    ] {
        let told = parse_file(&text).unwrap_err();
        assert!(!told.contains("abcdefghij"), "{told}");
    }
}

#[test]
fn misfits_are_named() {
    let hash = KeyHash::of("key-of-a");
    let text = entry("a", "") + &entry("b", "") + &entry("b", "");
    let text = text + &format!("[[keys]]\nid = 'c'\nhash = '{hash}'");
    let misfits = table(&text).unwrap_err();
    let found: Vec<_> = misfits
        .iter()
        .map(|misfit| (misfit.index, misfit.field))
        .collect();
    assert_eq!(found, [(2, "id"), (2, "hash"), (3, "hash")]);
    assert_eq!(misfits[0].message, "there are two keys b");
    assert_eq!(misfits[2].message, "the key a has the same");
}

#[test]
fn a_class_must_be_there() {
    let text = entry("a", "class = 'known'") + &entry("b", "class = 'none'") + &entry("c", "");
    let entries = parse_file(&text).unwrap();
    let entries = entries.iter().map(|(_, entry)| entry);
    let misfits = Keys::new(entries, |class| class == "known").unwrap_err();
    let [misfit] = &misfits[..] else {
        panic!("{misfits:?}");
    };
    assert_eq!((misfit.index, misfit.field), (1, "class"));
    assert_eq!(misfit.message, "there is no [limits.classes.none]");
}

#[test]
fn who_is_gone_is_who_is_not_there_or_has_another_secret() {
    let old = ["a", "b", "c", "d", "e"].map(|id| entry(id, "")).concat();
    let old = table(&old).unwrap();
    let other = KeyHash::of("another");
    let new = entry("a", "scopes = ['embed']")
        + &format!("[[keys]]\nid='b'\nhash='{other}'\n")
        + &entry("d", "expires = '2020-01-01'")
        + &entry("e", "expires = '2030-01-01'");
    let gone = old.gone_in(&table(&new).unwrap(), 1_700_000_000);
    let mut gone: Vec<_> = gone.iter().map(|identity| &**identity).collect();
    gone.sort_unstable();
    assert_eq!(gone, ["key:b", "key:c", "key:d"]);
}

#[test]
fn an_end_is_found_between_two_looks() {
    let texts = entry("a", "expires = '1970-01-01T00:01:40Z'")
        + &entry("b", "expires = '1970-01-01T00:03:20Z'")
        + &entry("c", "");
    let keys = table(&texts).unwrap();
    for (from, to, expected) in [
        (0, 99, false),
        (99, 100, true),
        (100, 199, false),
        (150, 300, true),
        (200, 300, false),
        // A clock that is set back.
        (300, 0, false),
    ] {
        assert_eq!(keys.expire_between(from, to), expected, "{from}..{to}");
    }
}

#[test]
fn the_commented_entries_of_the_example_file_are_good() {
    let example = include_str!("../../../config/keys.toml");
    assert!(parse_file(example).unwrap().is_empty());
    let settings = example.lines().filter_map(|line| line.strip_prefix('#'));
    let settings = settings.filter(|line| !line.is_empty() && !line.starts_with(' '));
    let text: String = settings.flat_map(|line| [line, "\n"]).collect();
    assert_eq!(table(&text).unwrap().len(), 2);
}

#[test]
fn nothing_secret_is_printed() {
    let keys = table(&entry("a", "")).unwrap();
    let printed = format!("{keys:?} {:?}", parse_file(&entry("a", "")).unwrap());
    let hash = KeyHash::of("key-of-a").to_string();
    assert!(!printed.contains(&hash[7..]), "{printed}");
}

proptest! {
    #[test]
    fn a_hash_survives_its_text(key in "\\PC{0,40}") {
        let hash = KeyHash::of(&key);
        prop_assert_eq!(hash.to_string().parse::<KeyHash>(), Ok(hash));
    }

    #[test]
    fn any_text_is_a_hash_or_refused(text in "(sha256:)?[0-9a-fA-F]{60,68}|\\PC*") {
        if let Ok(hash) = text.parse::<KeyHash>() {
            prop_assert_eq!(hash.to_string(), text.to_lowercase());
        }
    }

    #[test]
    fn any_file_is_read_or_refused(text in "\\PC*|(\\[\\[keys\\]\\]\n(id|hash|scopes) ?= ?.{0,20}\n){0,3}") {
        let _ = parse_file(&text);
    }

    #[test]
    fn a_changed_key_is_no_key(place in 0_usize..47, bit in 0_u8..7) {
        let key = mint().unwrap();
        let hash = KeyHash::of(&key);
        let keys = table(&format!("[[keys]]\nid = 'a'\nhash = '{hash}'")).unwrap();
        let mut bytes = key.as_bytes().to_vec();
        bytes[place] ^= 1 << bit;
        prop_assert!(keys.shown(std::str::from_utf8(&bytes).unwrap()).is_none());
    }
}
