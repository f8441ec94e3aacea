//! What must hold in every dialect alike: the text comes out as it went in, whatever its pieces.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::sluice::frames::{Decoder, Frame};
use super::testing::{Step, encode, encode_text, frames, head, lines};
use super::*;
use crate::generation::Finish;

/// Puts bytes together to whole characters, as the text path below the encoders does.
fn assemble(bytes: &[u8], cuts: &[usize]) -> Vec<String> {
    let mut held = Vec::new();
    let mut texts = Vec::new();
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        held.extend_from_slice(&bytes[from..cut]);
        from = cut;
        let whole = match std::str::from_utf8(&held) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let rest = held.split_off(whole);
        texts.push(String::from_utf8(std::mem::replace(&mut held, rest)).unwrap());
    }
    texts
}

fn steps_of(texts: Vec<String>, flushes: &[bool]) -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, text) in texts.into_iter().enumerate() {
        steps.push(Step::Text(0, text));
        if flushes.get(index % flushes.len().max(1)) == Some(&true) {
            steps.push(Step::Flush);
        }
    }
    steps.push(Step::Finish(0, Finish::Stop));
    steps
}

/// The text that a reader of each format puts together.
fn read_back(steps: &[Step]) -> Vec<(&'static str, String)> {
    let run = |call: Call| encode_text(&*call.answer, 1, steps.to_vec());
    let chat = |accept, stream: bool| {
        let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": stream});
        run(openai::parse_chat(body.to_string().as_bytes(), &head(accept)).unwrap())
    };
    let completion =
        run(openai::parse_completion(br#"{"prompt":"a","stream":true}"#, &head("")).unwrap());
    let document: Value = serde_json::from_str(&chat("", false)).unwrap();
    let delta = "/choices/0/delta/content";
    vec![
        ("chat", joined(&frames(&chat("", true)), delta)),
        ("lines", joined(&lines(&chat(NDJSON, true)), delta)),
        (
            "completion",
            joined(&frames(&completion), "/choices/0/text"),
        ),
        ("text", chat("text/plain", true)),
        ("frames", framed(steps)),
        (
            "document",
            joined(&[document], "/choices/0/message/content"),
        ),
        ("json-rpc", joined(&lines(&run(rpc())), "/params/text")),
    ]
}

/// The text in the frames of `sluice/1`.
fn framed(steps: &[Step]) -> String {
    let body = br#"{"prompt":"a"}"#;
    let call = openai::parse_completion(body, &head(sluice::FRAMES)).unwrap();
    let bytes = encode(&*call.answer, 1, steps.to_vec()).concat();
    let (mut decoder, mut input) = (Decoder::new(), &bytes[..]);
    let mut read = String::new();
    while let Some(frame) = decoder.next(&mut input).unwrap() {
        if let Frame::Tokens { text, .. } = frame {
            read.push_str(text);
        }
    }
    decoder.finish().unwrap();
    read
}

fn joined(objects: &[Value], pointer: &str) -> String {
    objects
        .iter()
        .filter_map(|object| object.pointer(pointer)?.as_str())
        .collect()
}

fn rpc() -> Call {
    let body =
        br#"{"jsonrpc":"2.0","method":"complete","params":{"prompt":"a","stream":true},"id":7}"#;
    let mut incoming = jsonrpc::parse(body, &head(""));
    match incoming.items.remove(0).work {
        Ok(jsonrpc::Method::Complete(call)) => call,
        _ => panic!("a complete call"),
    }
}

#[test]
fn one_byte_order_mark_is_stripped_however_its_bytes_are_split() {
    let mark = '\u{feff}';
    for text in [
        format!("{mark}a"),
        format!("{mark}{mark}a"),
        format!("a{mark}b"),
        format!("{mark}"),
        format!("ä{mark}"),
        String::new(),
        format!("{mark}é{mark}"),
    ] {
        let bytes = text.as_bytes();
        let expected = text.strip_prefix(mark).unwrap_or(&text);
        let n = bytes.len();
        for first in 0..=n {
            for second in first..=n {
                let steps = steps_of(assemble(bytes, &[first, second]), &[true]);
                for (format, read) in read_back(&steps) {
                    assert_eq!(read, expected, "{format}: {text:?} at {first}, {second}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_text_in_any_split_reads_back_the_same_in_every_format(
        text in proptest::collection::vec(
            prop_oneof![
                "\\PC{0,12}", "[\r\n\u{0}-\u{1f}\"\\\\]{1,4}", Just("\u{feff}".to_owned()),
                Just("\u{2028}\u{2029}\u{85}\u{7f}".to_owned()), Just("data: [DONE]\n\n".to_owned()),
            ],
            0..6,
        ),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        flushes in proptest::collection::vec(any::<bool>(), 1..6),
    ) {
        let text = text.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.sort_unstable();
        let expected = text.strip_prefix('\u{feff}').unwrap_or(&text);
        for (format, read) in read_back(&steps_of(assemble(text.as_bytes(), &cuts), &flushes)) {
            prop_assert_eq!(read, expected, "{}", format);
        }
    }
}
