//! What a guide sees coming: right where it is certain, and without a trace.

use super::*;

const NONE: [u32; 0] = [];

/// What is foreseen after a text said byte by byte.
fn foreseen(guide: &Guide, said: &str, most: usize) -> Vec<u32> {
    let mut guide = guide.copy();
    for byte in said.bytes() {
        guide.accept(BYTES + u32::from(byte)).unwrap();
    }
    let mut tokens = Vec::new();
    guide.foresee(most, &mut tokens);
    tokens
}

#[test]
fn the_rest_of_a_key_and_what_ends_it_are_foreseen() {
    let word = |text: &str| {
        let at = WORDS.iter().position(|word| *word == text).unwrap();
        BYTES + 256 + u32::try_from(at).unwrap()
    };
    let object = |field: &str| {
        schema(&format!(
            r#"{{"type": "object", "properties": {{"name": {field}}}, "required": ["name"], "additionalProperties": false}}"#
        ))
    };
    let guide = guide_of(&object(r#"{"enum": ["true abc", "true 123"]}"#));
    let name = [word("name"), word("\":")];
    assert_eq!(foreseen(&guide, "{\"", 8), name);
    assert_eq!(foreseen(&guide, "{\"", 1), name[..1]);
    assert_eq!(foreseen(&guide, "{\"na", 8).len(), 3);
    // White space may follow, or not.
    assert_eq!(foreseen(&guide, "{\"name\"", 8), NONE);
    let space = BYTES + u32::from(b' ');
    assert_eq!(foreseen(&guide, "{\"name\":\"", 8), [word("true"), space]);
    let end = [b'"', b'}'].map(|byte| BYTES + u32::from(byte));
    assert_eq!(
        foreseen(&guide, "{\"name\":\"true a", 8)[2..],
        end,
        "b, c, and the end"
    );
    // What may force more than a little is left alone, and what need not say JSON.
    let long = format!(r#"{{"const": "{}"}}"#, "x".repeat(300));
    for unbounded in [
        object(&long),
        object(r#"{"type": "string", "pattern": "^a{1000000}$"}"#),
        schema(r#"{"const": "name", "x-guidance": {"whitespace_flexible": false}}"#),
        Grammar::Regex("name{1000000}".to_owned()),
        Grammar::Lark("start: \"name\"".to_owned()),
    ] {
        assert_eq!(
            foreseen(&guide_of(&unbounded), "", 8),
            NONE,
            "{unbounded:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn looking_ahead_changes_nothing(given in small_schema(), mut seed in any::<u64>()) {
        static COMPILER: LazyLock<Compiler> = LazyLock::new(compiler);
        let mut looking = COMPILER.compile(&schema(&given.to_string())).unwrap();
        let mut plain = looking.copy();
        for _ in 0..150 {
            prop_assert_eq!(looking.is_complete(), plain.is_complete());
            if plain.is_complete() {
                break;
            }
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let mut ahead = Vec::new();
            if seed >> 62 > 0 {
                looking.foresee(8, &mut ahead);
            }
            let mask = plain.mask().unwrap().to_vec();
            prop_assert_eq!(looking.mask().unwrap(), &mask);
            let every = 0..BYTES + 256 + u32::try_from(WORDS.len()).unwrap();
            let allowed: Vec<u32> = every.filter(|&token| allows(&mask, token)).collect();
            let index = (seed >> 20) % allowed.len() as u64;
            let token = match ahead.first() {
                Some(&token) => {
                    prop_assert!(allows(&mask, token));
                    if seed >> 30 & 1 == 0 { token } else { allowed[usize::try_from(index).unwrap()] }
                }
                None => allowed[usize::try_from(index).unwrap()],
            };
            if token < BYTES {
                break;
            }
            looking.accept(token).unwrap();
            plain.accept(token).unwrap();
        }
    }
}
