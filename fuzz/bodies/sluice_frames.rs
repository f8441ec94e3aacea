//! What must hold for any bytes that a `Decoder` is fed. The fuzz target runs it, and so does a test.

use super::frames::{Decoder, Frame, FrameError, MAX_PAYLOAD};
use bytes::BytesMut;

/// Feeds `input` whole and in pieces of the lengths that `cuts` gives, one after the other in a circle.
///
/// # Panics
/// If the two differ in what they find, if a decoder holds more than a payload, or if what was found does
/// not come out the same when it is written and read again.
pub(super) fn run(input: &[u8], cuts: &[usize]) {
    let whole = read(input, &[usize::MAX]);
    let pieces = read(input, cuts);
    assert_eq!(whole, pieces, "cuts change nothing");

    let (frames, _, _) = whole;
    let written = frames.concat();
    let (again, error, _) = read(&written, cuts);
    assert_eq!(error, None, "what was written is well formed");
    assert_eq!(again, frames, "what was written reads back");
}

/// Frames as they would be written, one after the other, DATA put together and cut anew; the error, if
/// one came; and whether the stream may end where the input does.
type Found = (Vec<Vec<u8>>, Option<FrameError>, bool);

fn read(mut input: &[u8], cuts: &[usize]) -> Found {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let mut data = Vec::new();
    let mut cuts = cuts.iter().copied().cycle();
    let mut error = None;
    while error.is_none() && !input.is_empty() {
        let cut = cuts.next().unwrap_or(1).clamp(1, input.len());
        let (mut piece, rest) = input.split_at(cut);
        input = rest;
        loop {
            match decoder.next(&mut piece) {
                Ok(None) => break,
                Ok(Some(Frame::Data(bytes))) => {
                    assert!(!bytes.is_empty(), "no empty pieces");
                    data.extend_from_slice(bytes);
                }
                Ok(Some(frame)) => {
                    put_data(&mut data, &mut frames);
                    frames.push(written(&frame));
                }
                Err(found) => {
                    error = Some(found);
                    break;
                }
            }
            assert!(decoder.memory() <= MAX_PAYLOAD, "memory is bounded");
        }
        assert!(piece.is_empty() || error.is_some(), "all was taken");
        assert!(decoder.memory() <= MAX_PAYLOAD, "memory is bounded");
    }
    put_data(&mut data, &mut frames);
    (frames, error, decoder.finish().is_ok())
}

fn put_data(data: &mut Vec<u8>, frames: &mut Vec<Vec<u8>>) {
    for bytes in data.chunks(MAX_PAYLOAD) {
        frames.push(written(&Frame::Data(bytes)));
    }
    data.clear();
}

fn written(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out.to_vec()
}
