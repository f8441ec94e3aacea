//! What must hold for any frames and any bytes, in any pieces.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::wire::sluice::frames;

/// The same body as the fuzz target of this name.
#[path = "../../../../fuzz/bodies/sluice_frames.rs"]
mod fuzzed;

/// A frame with what it borrows.
#[derive(Clone, Debug)]
enum Owned {
    Data(Vec<u8>),
    Request(Vec<u8>),
    Resume(u64, String, Vec<u8>),
    Response(Vec<u8>),
    End(Vec<u8>),
    Error(Vec<u8>),
    Ping,
    Tokens(u32, u32, String),
    Logprobs(u32, Vec<(u32, f32, Vec<u8>)>),
    Progress(u32, u32),
    Usage(u32, u32, u32),
    /// A frame of a later version: its number and its payload's length.
    Unknown(u64, usize),
}

fn score((token, logprob, bytes): &(u32, f32, Vec<u8>)) -> Score<'_> {
    Score {
        token: *token,
        logprob: *logprob,
        bytes,
    }
}

impl Owned {
    fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Data(bytes) => Frame::Data(bytes).encode(out),
            Self::Request(bytes) => Frame::Request(bytes).encode(out),
            Self::Resume(after, id, headers) => Frame::Resume {
                after: *after,
                id,
                headers,
            }
            .encode(out),
            Self::Response(bytes) => Frame::Response(bytes).encode(out),
            Self::End(reasons) => Frame::End(Reasons::new(reasons).unwrap()).encode(out),
            Self::Error(bytes) => Frame::Error(bytes).encode(out),
            Self::Ping => Frame::Ping.encode(out),
            &Self::Tokens(choice, count, ref text) => Frame::Tokens {
                choice,
                count,
                text,
            }
            .encode(out),
            &Self::Logprobs(choice, ref list) => {
                let mut payload = BytesMut::new();
                // Each with the whole list as the likeliest at its position.
                for one in list {
                    logprobs::write(&mut payload, score(one), list.iter().map(score));
                }
                let tokens = Scores::parse(&payload).unwrap();
                Frame::Logprobs { choice, tokens }.encode(out);
            }
            &Self::Progress(prompt_tokens, cached_tokens) => Frame::Progress {
                prompt_tokens,
                cached_tokens,
            }
            .encode(out),
            &Self::Usage(prompt_tokens, cached_tokens, completion_tokens) => Frame::Usage {
                prompt_tokens,
                cached_tokens,
                completion_tokens,
            }
            .encode(out),
            &Self::Unknown(number, length) => {
                varint::write(out, number);
                varint::write(out, length as u64);
                out.resize(out.len() + length, 0xff);
            }
        }
    }

    fn encoded(&self) -> Vec<u8> {
        let mut out = BytesMut::new();
        self.encode(&mut out);
        out.to_vec()
    }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..64),
        (0..=MAX_PAYLOAD).prop_map(|length| vec![b'x'; length]),
    ]
}

/// Any frame but the last of an answer.
fn frame() -> impl Strategy<Value = Owned> {
    let text = "\\PC{0,12}";
    let score = (
        any::<u32>(),
        -99.0..0.0_f32,
        proptest::collection::vec(any::<u8>(), 0..9),
    );
    prop_oneof![
        bytes().prop_map(Owned::Data),
        bytes().prop_map(Owned::Request),
        (
            0..=varint::MAX,
            text,
            proptest::collection::vec(any::<u8>(), 0..64)
        )
            .prop_map(|(after, id, headers)| Owned::Resume(after, id, headers)),
        bytes().prop_map(Owned::Response),
        Just(Owned::Ping),
        (any::<u32>(), any::<u32>(), text).prop_map(|(c, n, text)| Owned::Tokens(c, n, text)),
        (any::<u32>(), proptest::collection::vec(score, 0..4))
            .prop_map(|(choice, list)| Owned::Logprobs(choice, list)),
        any::<(u32, u32)>().prop_map(|(a, b)| Owned::Progress(a, b)),
        any::<(u32, u32, u32)>().prop_map(|(a, b, c)| Owned::Usage(a, b, c)),
        (0x14..=varint::MAX, 0..200_000_usize).prop_map(|(n, length)| Owned::Unknown(n, length)),
    ]
}

fn last() -> impl Strategy<Value = Owned> {
    prop_oneof![
        proptest::collection::vec(0..64_u8, 0..20).prop_map(Owned::End),
        bytes().prop_map(Owned::Error),
    ]
}

/// Every frame as it would be written, DATA as one list of bytes wherever it stands.
fn read(decoder: &mut Decoder, pieces: &[&[u8]]) -> Result<(Vec<Vec<u8>>, Vec<u8>), FrameError> {
    let (mut frames, mut data) = (Vec::new(), Vec::new());
    for piece in pieces {
        let mut input = *piece;
        while let Some(frame) = decoder.next(&mut input)? {
            if let Frame::Data(bytes) = frame {
                data.extend_from_slice(bytes);
            } else {
                let mut out = BytesMut::new();
                frame.encode(&mut out);
                frames.push(out.to_vec());
            }
        }
        assert!(input.is_empty(), "all was taken");
        assert!(decoder.memory() <= MAX_PAYLOAD);
    }
    Ok((frames, data))
}

fn pieces<'a>(bytes: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.sort_unstable();
    at.push(bytes.len());
    let mut from = 0;
    let mut pieces = Vec::new();
    for to in at {
        pieces.push(&bytes[from..to]);
        from = to;
    }
    pieces
}

fn decode_one(bytes: &[u8]) -> Result<bool, FrameError> {
    Decoder::new()
        .next(&mut &bytes[..])
        .map(|frame| frame.is_some())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn frames_read_back_under_any_cuts(
        list in proptest::collection::vec(frame(), 0..8),
        end in last(),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..24),
    ) {
        let all: Vec<Owned> = list.into_iter().chain([end]).collect();
        let mut stream = BytesMut::new();
        for frame in &all {
 frame.encode(&mut stream);
}
        let mut rest = &stream[..];
        for frame in &all {
            let (kind, length) = first(rest).unwrap();
            prop_assert_eq!(kind.is_none(), matches!(frame, Owned::Unknown(..)));
            prop_assert_eq!(length, frame.encoded().len());
            prop_assert_eq!(first(&rest[..length - 1]), None);
            rest = &rest[length..];
        }
        let mut decoder = Decoder::new();
        let (frames, data) = read(&mut decoder, &pieces(&stream, &cuts)).unwrap();
        prop_assert_eq!(decoder.finish(), Ok(()));
        let is_data = |frame: &&Owned| matches!(frame, Owned::Data(_));
        let is_known = |frame: &&Owned| !matches!(frame, Owned::Data(_) | Owned::Unknown(..));
        let expected: Vec<_> = all.iter().filter(is_known).map(Owned::encoded).collect();
        prop_assert_eq!(frames, expected);
        let expected: Vec<u8> = all.iter().filter(is_data).flat_map(|frame| match frame {
            Owned::Data(bytes) => bytes.clone(),
            _ => Vec::new(),
        }).collect();
        prop_assert_eq!(data, expected);
    }

    #[test]
    fn a_stream_that_is_cut_anywhere_is_told_from_one_that_ended(
        list in proptest::collection::vec(frame(), 0..5),
        end in last(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut stream = BytesMut::new();
        for frame in &list {
 frame.encode(&mut stream);
}
        let before = stream.len();
        end.encode(&mut stream);
        let at = cut.index(stream.len());
        let mut decoder = Decoder::new();
        read(&mut decoder, &[&stream[..at]]).unwrap();
        prop_assert_eq!(decoder.finish(), Err(FrameError::Truncated));
        // Exactly between two frames it is no broken frame, but still no end.
        prop_assert!(at <= before || !decoder.is_between_frames());
        read(&mut decoder, &[&stream[at..]]).unwrap();
        prop_assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn any_bytes_in_any_pieces_are_read_alike_in_bounded_memory(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..2048),
        small in any::<bool>(),
        cuts in proptest::collection::vec(1..300_usize, 1..6),
    ) {
        if small {
            // Bytes that are frames more often than not.
            for byte in &mut bytes {
 *byte &= 0b1_0111;
}
        }
        fuzzed::run(&bytes, &cuts);
    }
}

fn hex(frame: Frame<'_>) -> String {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    let bytes: Vec<String> = out.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

#[test]
fn the_examples_of_the_description_are_what_is_written() {
    const DESCRIPTION: &str = include_str!("../../../../ARCHITECTURE.md");
    let (id, text, headers) = ("ab", "Hi ä", &b""[..]);
    let frames = [
        Frame::Request(br#"{"path":"/rpc"}"#),
        Frame::Data(b"{}"),
        Frame::Resume {
            after: 70,
            id,
            headers,
        },
        Frame::Progress {
            prompt_tokens: 300,
            cached_tokens: 16,
        },
        Frame::Tokens {
            choice: 0,
            count: 2,
            text,
        },
        Frame::Usage {
            prompt_tokens: 300,
            cached_tokens: 16,
            completion_tokens: 2,
        },
        Frame::End(Reasons::new(&[1]).unwrap()),
        Frame::Ping,
    ];
    for frame in frames {
        let line = format!("\n{:<54}{}", hex(frame), frame.kind().name());
        assert!(DESCRIPTION.contains(&line), "{line}");
    }
    for kind in (0..0x40).filter_map(Kind::of) {
        let row = format!("| `{:02x}` | {} |", kind as u8, kind.name());
        assert!(DESCRIPTION.contains(&row), "{row}");
    }
}

#[test]
fn log_probabilities_are_laid_out_as_described() {
    let mut payload = Vec::new();
    let chosen = Score {
        token: 7,
        logprob: -0.5,
        bytes: b"a",
    };
    logprobs::write(&mut payload, chosen, [chosen].into_iter());
    let tokens = Scores::parse(&payload).unwrap();
    let expected = "11 10 00 07 bf 00 00 00 01 61 01 07 bf 00 00 00 01 61";
    assert_eq!(hex(Frame::Logprobs { choice: 0, tokens }), expected);
    let (read, mut top) = tokens.iter().next().unwrap();
    assert_eq!((read, top.next(), top.next()), (chosen, Some(chosen), None));
}

#[test]
fn a_frame_above_the_cap_is_refused_from_its_header_alone() {
    let mut out = BytesMut::new();
    header(&mut out, Kind::Tokens, MAX_PAYLOAD + 1);
    let too_long = FrameError::TooLong {
        kind: Kind::Tokens,
        length: 65_537,
        most: MAX_PAYLOAD,
    };
    assert_eq!(decode_one(&out), Err(too_long));
    // With a lower bound, what must be held is bound by it, and DATA is not.
    let mut decoder = Decoder::with_most(10);
    let mut out = BytesMut::new();
    Frame::Data(&[0; 11]).encode(&mut out);
    assert!(decoder.next(&mut &out[..]).unwrap().is_some());
    let mut out = BytesMut::new();
    Frame::Request(&[b' '; 11]).encode(&mut out);
    assert!(matches!(
        decoder.next(&mut &out[..]),
        Err(FrameError::TooLong {
            length: 11,
            most: 10,
            ..
        })
    ));
    assert!(decoder.next(&mut &out[..]).is_err(), "and it stays broken");
}

#[test]
fn an_unknown_frame_without_end_costs_no_memory() {
    let mut out = BytesMut::new();
    varint::write(&mut out, 0x1234);
    varint::write(&mut out, varint::MAX);
    let mut decoder = Decoder::new();
    let junk = Bytes::from(vec![0; 1 << 20]);
    for piece in [&out[..], &junk, &junk, &junk] {
        assert_eq!(decoder.next(&mut &piece[..]), Ok(None));
    }
    assert_eq!(decoder.memory(), 0);
    assert!(!decoder.is_between_frames());
}

#[test]
fn who_announces_much_and_sends_little_costs_little() {
    let mut out = BytesMut::new();
    header(&mut out, Kind::Request, MAX_PAYLOAD);
    out.extend_from_slice(b"0123456789");
    let mut decoder = Decoder::new();
    assert_eq!(decoder.next(&mut &out[..]), Ok(None));
    assert!(decoder.memory() <= 64, "{}", decoder.memory());
}

#[test]
fn memory_of_a_large_frame_is_given_back_with_the_next() {
    let mut out = BytesMut::new();
    Frame::Request(&vec![b'x'; MAX_PAYLOAD]).encode(&mut out);
    Frame::Ping.encode(&mut out);
    let mut decoder = Decoder::new();
    assert_eq!(decoder.next(&mut &out[..9]), Ok(None));
    let mut rest = &out[9..];
    assert!(decoder.next(&mut rest).unwrap().is_some());
    assert_eq!(decoder.memory(), MAX_PAYLOAD);
    assert_eq!(decoder.next(&mut rest), Ok(Some(Frame::Ping)));
    assert!(decoder.memory() <= 4096);
}

#[test]
fn what_is_not_as_its_type_says_is_malformed() {
    let table: [(Kind, &[u8]); 7] = [
        (Kind::Tokens, b""),
        (Kind::Tokens, b"\x00\x01\xff"),
        (Kind::Progress, b"\x01"),
        (Kind::Usage, b"\x01\x02"),
        (Kind::End, b"\x40"),
        (Kind::Resume, b"\x00\x05ab"),
        (Kind::Logprobs, b"\x00\x01\x00\x00"),
    ];
    for (kind, payload) in table {
        let mut out = BytesMut::new();
        header(&mut out, kind, payload.len());
        out.extend_from_slice(payload);
        assert_eq!(
            decode_one(&out),
            Err(FrameError::Malformed(kind)),
            "{payload:?}"
        );
        // The same, put together from pieces.
        let mut decoder = Decoder::new();
        let mut bytes = out.chunks(1);
        let error = bytes.find_map(|mut byte| decoder.next(&mut byte).err());
        assert_eq!(error, Some(FrameError::Malformed(kind)));
    }
}

#[test]
fn numbers_that_a_later_version_appends_are_passed_over() {
    let mut decoder = Decoder::new();
    let mut bytes: &[u8] = &[0x12, 3, 5, 4, 3];
    let expected = Frame::Progress {
        prompt_tokens: 5,
        cached_tokens: 4,
    };
    assert_eq!(decoder.next(&mut bytes), Ok(Some(expected)));
}

#[test]
fn nothing_known_may_follow_the_end() {
    let mut out = BytesMut::new();
    Frame::End(Reasons::default()).encode(&mut out);
    varint::write(&mut out, 0x50);
    varint::write(&mut out, 0);
    Frame::Ping.encode(&mut out);
    let mut decoder = Decoder::new();
    let mut input = &out[..];
    assert!(matches!(decoder.next(&mut input), Ok(Some(Frame::End(_)))));
    assert_eq!(
        decoder.next(&mut input),
        Err(FrameError::AfterEnd(Kind::Ping))
    );
}
