//! Grammars over a vocabulary of bytes and a few words.

use proptest::prelude::*;
use serde_json::{Value, json};

mod ahead;

use super::*;
use crate::engine::llama::sampling::{Sampler, Scratch};
use crate::generation::{Mirostat, Sampling};

/// Ends a generation.
const END: u32 = 0;
/// Another token that does, with a text that is not to be taken for text.
const ALSO_END: u32 = 1;
/// The first of 256 tokens of one byte each.
const BYTES: u32 = 2;

/// Tokens of several bytes, after those.
const WORDS: [&str; 11] = [
    "{\"", "\":", "true", "false", "null", "name", "  ", "123", "abc", "é", "</s>",
];

fn compiler() -> Compiler {
    let mut words = vec![b"\xff<|end|>".to_vec(), b"\xff<|im_end|>".to_vec()];
    words.extend((0..=255_u8).map(|byte| vec![byte]));
    for word in [
        "{\"", "\":", "true", "false", "null", "name", "  ", "123", "abc", "é", "</s>",
    ] {
        words.push(word.as_bytes().to_vec());
    }
    Compiler::new(&words, &[END, ALSO_END]).unwrap()
}

fn allows(mask: &[u32], token: u32) -> bool {
    mask[token as usize / 32] >> (token % 32) & 1 == 1
}

/// Whether a text can be said byte by byte, and whether it may end there.
fn follows(guide: &Guide, text: &str) -> (bool, bool) {
    let mut guide = guide.copy();
    for byte in text.bytes() {
        let token = BYTES + u32::from(byte);
        if guide.is_complete() || !allows(guide.mask().unwrap(), token) {
            return (false, false);
        }
        guide.accept(token).unwrap();
    }
    let ends = guide.is_complete() || allows(guide.mask().unwrap(), END);
    (true, ends)
}

fn guide_of(grammar: &Grammar) -> Guide {
    compiler().compile(grammar).unwrap()
}

fn schema(text: &str) -> Grammar {
    Grammar::JsonSchema {
        schema: text.to_owned(),
        strict: false,
    }
}

#[track_caller]
fn check(grammar: &Grammar, whole: &[&str], beginnings: &[&str], wrong: &[&str]) {
    let guide = guide_of(grammar);
    for text in whole {
        assert_eq!(follows(&guide, text), (true, true), "{text}");
    }
    for text in beginnings {
        assert_eq!(follows(&guide, text), (true, false), "{text}");
    }
    for text in wrong {
        assert_eq!(follows(&guide, text), (false, false), "{text}");
    }
}

#[test]
fn every_kind_of_grammar_is_followed() {
    check(
        &Grammar::JsonObject,
        &["{}", r#"{"a": [1, {"b": null}], "é": "\n"}"#],
        &["{", r#"{"a""#],
        &["[", "{]", "1"],
    );
    check(
        &schema(
            r#"{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}"#,
        ),
        &[r#"{"a":12}"#, r#"{ "a" : -1 }"#],
        &[r#"{"a":1"#],
        &["{}", r#"{"b"#, r#"{"a":1.5"#],
    );
    check(
        &Grammar::Regex("[a-z]+(-[0-9]{2})?".to_owned()),
        &["a", "abc-12"],
        &["abc-", "abc-1"],
        &["A", "abc-123"],
    );
    check(
        &Grammar::Lark("start: \"<\" WORD \">\"\nWORD: /[a-z]+/".to_owned()),
        &["<a>", "<ab>"],
        &["<", "<ab"],
        &["<>", "a"],
    );
    check(
        &Grammar::Gbnf("root ::= \"(\" root? \")\" | [0-9]+ \",\"?".to_owned()),
        &["()", "((12,))", "7"],
        &["((", "((12"],
        &[")", "(()1"],
    );
}

#[test]
fn a_regular_gbnf_grammar_is_followed_where_a_lexer_would_lose_its_way() {
    // The repetition has to stop short of the last "x".
    check(
        &Grammar::Gbnf("root ::= word \"x\"\nword ::= [a-z]+".to_owned()),
        &["ax", "axx"],
        &["a", "axa"],
        &["A"],
    );
}

#[test]
fn the_json_grammar_of_llama_cpp_is_followed() {
    let gbnf = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws
string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"#;
    check(
        &Grammar::Gbnf(gbnf.to_owned()),
        &[
            "{}",
            "{\"a\": [1, -2.5e7, {\"b\" :null}], \"\\u00e9\": \"\"}",
            "{\n  \"a\":true\n}",
        ],
        &["{", "{\"a\": [1, "],
        &["[", "{\"a\" 1", "{  "],
    );
}

#[test]
fn what_ends_a_generation_comes_only_when_the_text_is_whole() {
    let mut guide = guide_of(&Grammar::Regex("a+".to_owned()));
    let mask = guide.mask().unwrap();
    assert!(!allows(mask, END) && !allows(mask, ALSO_END));
    guide.accept(BYTES + u32::from(b'a')).unwrap();
    let mask = guide.mask().unwrap();
    assert!(allows(mask, END) && allows(mask, ALSO_END) && !guide.is_complete());
    guide.accept(ALSO_END).unwrap();
    assert!(guide.is_complete());
}

#[test]
fn a_text_that_nothing_can_follow_is_complete() {
    let mut guide = guide_of(&Grammar::Regex("ab".to_owned()));
    for byte in b"ab" {
        assert!(!guide.is_complete());
        guide.mask().unwrap();
        guide.accept(BYTES + u32::from(*byte)).unwrap();
    }
    assert!(guide.is_complete());
}

#[test]
fn control_tokens_are_not_text() {
    let mut guide = guide_of(&Grammar::Regex("(?s:.)*".to_owned()));
    let mask = guide.mask().unwrap();
    // An end is an end here, and nothing else: its name is not matched.
    assert!(allows(mask, END) && allows(mask, BYTES + u32::from(b'<')));
    let mut named = guide_of(&Grammar::Regex("<\\|im_end\\|>".to_owned()));
    assert!(!allows(named.mask().unwrap(), ALSO_END));
}

#[test]
fn a_token_that_may_not_come_ends_this_guide_and_no_other() {
    let guide = guide_of(&Grammar::Regex("ab".to_owned()));
    let mut broken = guide.copy();
    let error = broken.accept(BYTES + u32::from(b'x')).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    assert!(!broken.is_complete());
    let failure = Failure::from(error);
    assert_eq!(failure.code, Some("constraint_failed"));
    assert_eq!(follows(&guide, "ab"), (true, true));
}

#[test]
fn a_sampler_chooses_what_its_guide_allows_under_every_setting() {
    let grammar = Grammar::Regex("(abc|name|123)+ true".to_owned());
    let mirostat = Sampling {
        mirostat: Some(Mirostat { tau: 5.0, eta: 0.1 }),
        ..Sampling::default()
    };
    let all = [
        Sampling::default(),
        mirostat,
        Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        },
        Sampling {
            temperature: Some(5.0),
            top_k: Some(1),
            repeat_penalty: Some(1.3),
            ignore_eos: Some(true),
            logit_bias: vec![(END, 50.0)],
            ..Sampling::default()
        },
    ];
    let count = BYTES as usize + 256 + WORDS.len();
    let (mut scratch, compiled) = (Scratch::default(), guide_of(&grammar));
    for (seed, settings) in (0..).zip(all) {
        let mut sampler = Sampler::new(&settings, seed, count, &[], &[], Arc::default()).unwrap();
        sampler.follow(compiled.copy());
        let mut said = Vec::new();
        while !sampler.is_complete() {
            // The model likes what comes late in the vocabulary, and "t" best.
            let mut row: Vec<f32> = (0_u16..)
                .take(count)
                .map(|token| f32::from(token) / 99.0)
                .collect();
            row[BYTES as usize + usize::from(b't')] = 4.0;
            row[BYTES as usize + usize::from(b' ')] = 4.0;
            let token = sampler.sample(&row, &mut scratch).unwrap() as usize;
            let byte = u8::try_from(token - BYTES as usize);
            match byte {
                Ok(byte) => said.push(byte),
                Err(_) => said.extend_from_slice(WORDS[token - BYTES as usize - 256].as_bytes()),
            }
        }
        let said = String::from_utf8(said).unwrap();
        assert!(said.ends_with(" true") && said.len() > 7, "{said}");
    }
}

#[test]
fn a_sampler_whose_guide_and_bans_leave_nothing_says_so() {
    let bans = Sampling {
        logit_bias: vec![(BYTES + u32::from(b'a'), -100.0)],
        ..Sampling::default()
    };
    let mut sampler = Sampler::new(&bans, 0, 300, &[], &[], Arc::default()).unwrap();
    sampler.follow(guide_of(&Grammar::Regex("a".to_owned())));
    let error = sampler
        .sample(&[0.0; 300], &mut Scratch::default())
        .unwrap_err();
    let failure = Failure::from(error);
    assert_eq!(
        (failure.kind, failure.code),
        (Kind::Invalid, Some("constraint_failed"))
    );
}

fn refused(grammar: &Grammar) -> String {
    compiler().compile(grammar).expect_err("it is refused")
}

#[test]
fn what_is_wrong_is_named() {
    let table = [
        (Grammar::Regex("a(".to_owned()), "unclosed group"),
        (Grammar::Lark("start: \"a\"\n  b: (".to_owned()), "line 2"),
        (Grammar::Lark("start: b".to_owned()), "unknown name: \"b\""),
        (Grammar::Gbnf("root ::= b".to_owned()), "line 1, column 10"),
        (schema("{"), "line 1 column 1"),
        (schema(r##"{"$ref": "#/$defs/x"}"##), "$defs/x"),
        (
            schema(r#"{"type": "string", "pattern": "("}"#),
            "unclosed group",
        ),
        (
            schema(r#"{"type": "string", "minLength": 3, "maxLength": 1}"#),
            "nsatisfiable",
        ),
    ];
    for (grammar, expected) in table {
        let message = refused(&grammar);
        assert!(message.contains(expected), "{grammar:?}: {message}");
        assert!(message.len() < 400 && !message.contains('\n'), "{message}");
    }
}

#[test]
fn keywords_that_cannot_be_followed_are_ignored_unless_strict() {
    let text = r#"{"type": "array", "items": {"type": "integer"}, "uniqueItems": true}"#;
    check(&schema(text), &["[1, 1]"], &["["], &["{"]);
    let strict = Grammar::JsonSchema {
        schema: text.to_owned(),
        strict: true,
    };
    assert!(refused(&strict).starts_with("#/uniqueItems is a keyword"));
}

fn asked(grammar: Grammar) -> Constraint {
    Constraint {
        field: "grammar",
        grammar,
    }
}

fn grammars() -> Grammars {
    Grammars::new(|| {
        let words = (0..=255_u8).map(|byte| vec![byte]);
        let words: Vec<_> = [b"\xff<|end|>".to_vec()].into_iter().chain(words).collect();
        (words, vec![0])
    })
}

/// What a line for each number up to `n` makes.
fn lines(n: usize, line: impl Fn(usize) -> String) -> String {
    (0..n).map(line).collect()
}

/// Long chains, deep nests, explosions. Each is answered within the patience of a request, and none
/// ends the process.
#[tokio::test]
async fn hostile_sources_are_answered_and_harm_nobody() {
    let references: Vec<_> = (0..7500)
        .map(|i| format!(r##""a{i}":{{"$ref":"#/$defs/a{}"}}"##, i + 1))
        .collect();
    let references = references.join(",");
    let taken = [
        schema(&format!(
            r##"{{"$ref":"#/$defs/a0","$defs":{{{references},"a7500":{{}}}}}}"##
        )),
        schema(&format!(
            r#"{{"allOf":[{}true]}}"#,
            r#"{"anyOf":[{"type":"integer"},{"type":"string"}]},"#.repeat(1000)
        )),
        schema(&format!(
            "{}true{}",
            r#"{"items":"#.repeat(120),
            "}".repeat(120)
        )),
        schema(r#"{"type":"string","pattern":"((((a{1,1000}){1,1000}){1,1000}){1,1000})"}"#),
        schema(r#"{"type":"string","minLength":100000,"maxLength":1000000}"#),
        schema(r#"{"type":"array","minItems":100000,"items":{"type":"object"}}"#),
        Grammar::Regex("(a|b|ab)*c{1,5000}(a?){5000}".to_owned()),
        Grammar::Lark(format!(
            "start: a0\n{}a18000:\"x\"\n",
            lines(18_000, |i| format!("a{i}:a{}\n", i + 1))
        )),
        Grammar::Lark(format!(
            "start: a0\n{}a40: \"x\"\n",
            lines(40, |i| format!("a{i}: a{} a{}\n", i + 1, i + 1))
        )),
        Grammar::Lark("start: start start | \"\"".to_owned()),
        Grammar::Lark("start: \"a\"{1,2000000000}".to_owned()),
    ];
    let refused = [
        schema(&format!(
            "{}true{}",
            r#"{"items":"#.repeat(20_000),
            "}".repeat(20_000)
        )),
        schema(&format!("\"{}\"", "x".repeat(1 << 20))),
        Grammar::Regex("(".repeat(10_000)),
        Grammar::Regex("a".repeat(20_000)),
        Grammar::Lark(format!(
            "start: A0\n{}A40: \"x\"\n",
            lines(40, |i| format!("A{i}: A{} A{}\n", i + 1, i + 1))
        )),
        Grammar::Lark(format!("start: {}\"x\"", "(".repeat(5_000))),
        Grammar::Gbnf(format!(
            "root ::= a0\n{}a5000 ::= \"x\"\n",
            lines(5000, |i| format!("a{i} ::= a{} a{}\n", i + 1, i + 1))
        )),
        Grammar::Lark(format!(
            "start: A0\n{}A10000:\"x\"\n",
            lines(10_000, |i| format!("A{i}:A{}\n", i + 1))
        )),
        Grammar::Gbnf("root ::= root".to_owned()),
        Grammar::Gbnf(format!("root ::= {}", "\"a\"? ".repeat(40_000))),
    ];
    let grammars = grammars();
    for source in taken {
        let answer = grammars.guide(&asked(source.clone())).await;
        assert!(answer.is_ok(), "{source:.60?}: {:?}", answer.err());
    }
    for source in refused {
        let failure = grammars
            .guide(&asked(source.clone()))
            .await
            .expect_err("refused");
        assert_eq!(failure.kind, Kind::Invalid, "{source:.60?}: {failure:?}");
        assert_eq!(failure.param.as_deref(), Some("grammar"));
        assert!(failure.message.len() < 500, "{failure}");
    }
}

#[tokio::test]
async fn what_was_compiled_once_is_kept_and_each_sequence_has_its_own() {
    let grammars = grammars();
    let constraint = asked(Grammar::Regex("ab".to_owned()));
    let mut first = grammars.guide(&constraint).await.unwrap();
    assert!(grammars.kept.copy(&constraint.grammar).is_some());
    first.mask().unwrap();
    first.accept(1 + u32::from(b'a')).unwrap();
    let mut second = grammars.guide(&constraint).await.unwrap();
    assert!(allows(second.mask().unwrap(), 1 + u32::from(b'a')));
}

/// Says what `guide` allows at random, with a liking for what ends things; the text, if it came to an
/// end.
fn say(mut guide: Guide, mut seed: u64) -> Option<Vec<u8>> {
    let mut said = Vec::new();
    for _ in 0..300 {
        if guide.is_complete() {
            return Some(said);
        }
        let mask = guide.mask().unwrap();
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let ends = [b'"', b'}', b']'].map(|byte| BYTES + u32::from(byte));
        let liked = (ends.iter().copied().chain([END]))
            .find(|&token| allows(mask, token) && seed >> 60 < 9);
        let allowed: Vec<u32> = (0..BYTES + 256)
            .filter(|&token| allows(mask, token))
            .collect();
        let index = (seed >> 20) % allowed.len() as u64;
        let token = liked.unwrap_or(allowed[usize::try_from(index).unwrap()]);
        if token < BYTES {
            return Some(said);
        }
        said.push(u8::try_from(token - BYTES).unwrap());
        guide.accept(token).unwrap();
    }
    None
}

/// Whether a value is what these few keywords say.
fn validates(value: &Value, schema: &Value) -> bool {
    let bound = |name: &str| schema[name].as_u64();
    let within = |size: usize, least: &str, most: &str| {
        bound(least).is_none_or(|least| size as u64 >= least)
            && bound(most).is_none_or(|most| size as u64 <= most)
    };
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().any(|option| validates(value, option));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    match (schema["type"].as_str(), value) {
        (Some("null"), Value::Null) | (Some("boolean"), Value::Bool(_)) => true,
        (Some("integer"), Value::Number(number)) => {
            // Whole, though perhaps written as "-0".
            let number = number.as_f64().unwrap();
            number.fract() == 0.0
                && number >= schema["minimum"].as_f64().unwrap()
                && number <= schema["maximum"].as_f64().unwrap()
        }
        (Some("string"), Value::String(text)) => {
            within(text.chars().count(), "minLength", "maxLength")
        }
        (Some("array"), Value::Array(items)) => {
            within(items.len(), "minItems", "maxItems")
                && items.iter().all(|item| validates(item, &schema["items"]))
        }
        (Some("object"), Value::Object(fields)) => {
            let properties = schema["properties"].as_object().unwrap();
            let required = schema["required"].as_array().unwrap();
            let known = |(name, value): (&String, &Value)| {
                properties
                    .get(name)
                    .is_some_and(|schema| validates(value, schema))
            };
            fields.iter().all(known)
                && required
                    .iter()
                    .all(|name| fields.contains_key(name.as_str().unwrap()))
        }
        _ => false,
    }
}

fn small_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "null"})),
        Just(json!({"type": "boolean"})),
        (-50_i64..50, 0_i64..2000).prop_map(
            |(from, more)| json!({"type": "integer", "minimum": from, "maximum": from + more})
        ),
        (0_u64..4, 0_u64..4).prop_map(
            |(least, more)| json!({"type": "string", "minLength": least, "maxLength": least + more})
        ),
        prop::collection::vec(
            prop_oneof![
                "[a-c\"\\\\é]{0,3}".prop_map(Value::from),
                (0_i64..20).prop_map(Value::from),
            ],
            1..4
        )
        .prop_map(|values| json!({"enum": values})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let properties =
            prop::collection::btree_map("[a-c]{1,2}", (inner.clone(), any::<bool>()), 0..4);
        prop_oneof![
            (0_u64..3, 0_u64..3, inner.clone()).prop_map(|(least, more, items)| json!({
                "type": "array", "minItems": least, "maxItems": least + more, "items": items,
            })),
            prop::collection::vec(inner, 1..3).prop_map(|options| json!({"anyOf": options})),
            properties.prop_map(|fields| {
                let required: Vec<_> = (fields.iter())
                    .filter(|(_, (_, required))| *required)
                    .map(|(name, _)| name.clone())
                    .collect();
                let fields: serde_json::Map<_, _> = fields
                    .into_iter()
                    .map(|(name, (schema, _))| (name, schema))
                    .collect();
                json!({
                    "type": "object", "properties": fields, "required": required,
                    "additionalProperties": false,
                })
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn whatever_is_said_to_its_end_validates(given in small_schema(), seed in any::<u64>()) {
        static COMPILER: LazyLock<Compiler> = LazyLock::new(compiler);
        let guide = COMPILER.compile(&schema(&given.to_string())).unwrap();
        for turn in 0..4 {
            if let Some(said) = say(guide.copy(), seed.wrapping_add(turn)) {
                let value: Value = serde_json::from_slice(&said).unwrap();
                prop_assert!(validates(&value, &given), "{value} by {given}");
            }
        }
    }
}
