//! What is read, what is refused and where, and what the Lark of it looks like.

use super::*;

fn wrong(gbnf: &str) -> String {
    to_lark(gbnf).unwrap_err()
}

#[test]
fn a_grammar_without_recursion_is_one_terminal() {
    let lark = to_lark("root ::= \"a\" digit{2,3} ( \"x\" | [^a-c\\]] )* # end\ndigit ::= [0-9]");
    assert_eq!(
        lark.unwrap(),
        concat!(
            "start: T0\n",
            "T0: \"a\" T1{2,3} T2* \n",
            "T1: /[\\x{30}-\\x{39}]/ \n",
            "T2: \"x\"  | /[^\\x{61}-\\x{63}\\x{5d}]/ \n",
        )
    );
}

#[test]
fn runs_beside_a_recursion_become_terminals() {
    let lark = to_lark("root ::= \"(\" ws root ws \")\" | [0-9]+\nws ::= \" \"*\n");
    assert_eq!(
        lark.unwrap(),
        concat!(
            "start: r0\n",
            "r0: S0 r0 S1  | S2 \n",
            "S0: \"(\" T1 \n",
            "S1: T1 \")\" \n",
            "S2: /[\\x{30}-\\x{39}]/+ \n",
            "T1: \" \"* \n",
        )
    );
}

#[test]
fn lines_end_rules_but_not_groups_or_alternatives() {
    let gbnf =
        "root ::= (\n  \"a\"\n  |\n  b\n)\n  | c |\n  \"d\"\r\n\r\nb ::= \"b\"\nc ::=\n  \"c\"\n";
    let lark = to_lark(gbnf).unwrap();
    assert!(lark.contains("T0: T1  | T3  | \"d\" \n"), "{lark}");
}

#[test]
fn escapes_are_characters() {
    let lark = to_lark(r#"root ::= "\x41\u00e9\U0001F600\n\"\\" [\x41-\u0043\-\]]"#).unwrap();
    assert!(lark.contains(r#""Aé😀\n\"\\""#), "{lark}");
    assert!(lark.contains(r"/[\x{41}-\x{43}\x{2d}\x{5d}]/"), "{lark}");
}

#[test]
fn tokens_keep_their_names() {
    let lark = to_lark("root ::= <think> [a-z]+ </think> <[17]>").unwrap();
    assert!(lark.contains("r0: <think> S0 </think> <[17]>"), "{lark}");
}

#[test]
fn what_is_wrong_is_named_by_its_place() {
    let table = [
        ("", "line 1, column 1: there is no rule \"root\""),
        (
            "root ::= a\nb ::= \"b\"",
            "line 1, column 10: there is no rule \"a\"",
        ),
        ("root ::= \"a", "line 1, column 12: the text has no end"),
        (
            "root ::= [a",
            "line 1, column 12: the set of characters has no end",
        ),
        ("root ::= \"a\"\nx = 3", "line 2, column 3: ::= is expected"),
        ("root ::= (\"a\"", "column 14: ) is expected"),
        (
            "root ::= \"a\" )",
            "column 14: the end of the line is expected",
        ),
        ("root ::= \"a\"{3,1}", "the upper bound is below the lower"),
        ("root ::= \"a\"{2001}", "more than 2000 repetitions"),
        ("root ::= \"a\"{99999999999}", "a number is expected"),
        ("root ::= \"\\q\"", "column 11: this escape is unknown"),
        (
            "root ::= \"\\uD800\"",
            "column 11: this escape is no character",
        ),
        ("root ::= [z-a]", "ends before it begins"),
        (
            "root ::= \"a\"\nroot ::= \"b\"",
            "line 2, column 1: there is another rule",
        ),
        ("root ::= !<think>", "tokens cannot be excluded"),
        ("root ::= \"a\"*?", "put parentheses around it"),
        ("::= \"a\"", "line 1, column 1: a name is expected"),
    ];
    for (gbnf, expected) in table {
        let message = wrong(gbnf);
        assert!(message.contains(expected), "{gbnf}: {message}");
    }
}

#[test]
fn hostile_grammars_are_refused_or_read_at_once() {
    assert!(wrong(&format!("root ::= {}", "(".repeat(20_000))).contains("nest more than"));
    assert!(wrong(&format!("root ::= {}", "() ".repeat(20_000))).contains("more than 10000"));
    let chain = |n: usize| {
        (0..n).fold(String::from("root ::= a0\n"), |text, i| {
            text + &format!("a{i} ::= a{} a{}\n", i + 1, i + 1)
        })
    };
    let closed = chain(5000) + "a5000 ::= \"x\"\n";
    assert!(to_lark(&closed).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_a_panic(
        text in r#"(root ::= )?([a-c()|*+?{},0-9"\[\]^.<>#\n\\xuU -]|::=|é){0,60}"#,
    ) {
        let _ = to_lark(&text);
    }
}
