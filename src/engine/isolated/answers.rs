//! The bodies of answers that are no streams: lists of tokens, of byte strings, of numbers.
//!
//! ```text
//!  tokens   u32 each
//!  pieces   u32 length and so many bytes, each
//!  queued   position u32, milliseconds u32; or nothing
//!  moments  kind u8, time u64 by the parent's clock, each
//!  numbers  prompt, cached and completion tokens u32, width u32, then f32 each
//! ```

use std::time::Duration;

use super::frame::{Body, Malformed, put_bytes};
use crate::engine::EngineView;
use crate::engine::history;
use crate::generation::{Moment, Queued, RequestId, Usage};

/// Milliseconds of a wait that nobody can tell.
const UNKNOWN: u32 = u32::MAX;

/// Appends a list of tokens.
pub(super) fn put_tokens(out: &mut Vec<u8>, tokens: &[u32]) {
    out.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
}

/// Appends the bytes of some tokens.
pub(super) fn put_pieces(out: &mut Vec<u8>, pieces: &[Vec<u8>]) {
    for piece in pieces {
        put_bytes(out, piece);
    }
}

/// Appends rows of `width` numbers.
pub(super) fn put_numbers(out: &mut Vec<u8>, usage: Usage, width: usize, numbers: &[f32]) {
    let width = u32::try_from(width).unwrap_or(u32::MAX);
    let head = [
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        width,
    ];
    out.extend(head.iter().flat_map(|number| number.to_le_bytes()));
    out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

/// Appends a place in line.
pub(super) fn put_queued(out: &mut Vec<u8>, queued: Option<Queued>) {
    let Some(queued) = queued else { return };
    let ms = queued.estimate.map_or(UNKNOWN, |estimate| {
        u32::try_from(estimate.as_millis()).map_or(UNKNOWN - 1, |ms| ms.min(UNKNOWN - 1))
    });
    out.extend(queued.position.to_le_bytes());
    out.extend(ms.to_le_bytes());
}

/// A place in line.
pub(super) fn queued(mut body: Body<'_>) -> Result<Option<Queued>, Malformed> {
    if body.is_empty() {
        return Ok(None);
    }
    let (position, ms) = (body.u32()?, body.u32()?);
    if position == 0 || !body.is_empty() {
        return Err(Malformed("a place in line that is none"));
    }
    Ok(Some(Queued {
        position,
        estimate: (ms != UNKNOWN).then(|| Duration::from_millis(ms.into())),
    }))
}

/// Appends a moment. `shift` is added to its time.
pub(super) fn put_moment(out: &mut Vec<u8>, at: u64, moment: Moment, shift: i64) {
    if let Some(kind) = history::kind_of(moment) {
        out.push(kind);
        out.extend(at.saturating_add_signed(shift).to_le_bytes());
    }
}

/// Moments, oldest first.
pub(super) fn moments(
    body: Body<'_>,
) -> Result<impl Iterator<Item = Result<(u64, Moment), Malformed>>, Malformed> {
    let (chunks, []) = body.0.as_chunks::<9>() else {
        return Err(Malformed("a list that is cut"));
    };
    Ok(chunks.iter().map(|&[kind, ref at @ ..]| {
        let moment = history::of_kind(kind).ok_or(Malformed("an unknown moment"))?;
        Ok((u64::from_le_bytes(*at), moment))
    }))
}

/// What an engine is doing; no more of it than an engine tells.
pub(super) fn view(body: Body<'_>) -> Result<EngineView, Malformed> {
    let view: EngineView =
        serde_json::from_slice(body.0).map_err(|_| Malformed("a view that cannot be read"))?;
    let is_id = |id: &RequestId| RequestId::parse(id.as_str()).is_some();
    let ids = view.sequences.iter().map(|sequence| &sequence.request);
    let ids = ids.chain(view.line.iter().map(|waiting| &waiting.request));
    let layout = view.kv.as_ref().map_or("", |kv| &kv.layout);
    let prefixes = view.kv.as_ref().map_or(0, |kv| kv.prefixes.len());
    let most = view.sequences.len().max(view.line.len()).max(prefixes);
    if most > EngineView::MOST || layout.len() > 16 || !ids.clone().all(is_id) {
        return Err(Malformed("a view that no engine tells"));
    }
    Ok(view)
}

/// A list of tokens.
pub(super) fn tokens(body: Body<'_>) -> Result<Vec<u32>, Malformed> {
    let (chunks, []) = body.0.as_chunks() else {
        return Err(Malformed("a list that is cut"));
    };
    Ok(chunks
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .collect())
}

/// The bytes of so many tokens.
pub(super) fn pieces(mut body: Body<'_>, count: usize) -> Result<Vec<Vec<u8>>, Malformed> {
    let mut pieces = Vec::new();
    for _ in 0..count {
        pieces.push(body.bytes()?.to_vec());
    }
    if body.is_empty() {
        Ok(pieces)
    } else {
        Err(Malformed("more pieces than tokens"))
    }
}

/// So many rows of numbers: usage, numbers of a row, and all of them.
pub(super) fn numbers(
    mut body: Body<'_>,
    rows: usize,
) -> Result<(Usage, usize, Vec<f32>), Malformed> {
    let usage = Usage {
        prompt_tokens: body.u32()?,
        cached_tokens: body.u32()?,
        completion_tokens: body.u32()?,
    };
    let width = body.u32()? as usize;
    let (chunks, []) = body.0.as_chunks() else {
        return Err(Malformed("a list that is cut"));
    };
    if width == 0 || width.checked_mul(rows) != Some(chunks.len()) {
        return Err(Malformed("vectors of another number or size"));
    }
    let numbers = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes));
    Ok((usage, width, numbers.collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn answers_come_out_as_they_went_in(
            list in proptest::collection::vec(any::<u32>(), 0..20),
            bytes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9),
            (rows, width) in (1..5_usize, 1..5_usize),
        ) {
            let mut out = Vec::new();
            put_tokens(&mut out, &list);
            prop_assert_eq!(tokens(Body(&out)), Ok(list));
            out.clear();
            put_pieces(&mut out, &bytes);
            prop_assert_eq!(pieces(Body(&out), bytes.len()), Ok(bytes.clone()));
            prop_assert!(pieces(Body(&out), bytes.len() + 1).is_err());
            out.clear();
            let usage = Usage { prompt_tokens: 7, cached_tokens: 3, completion_tokens: 0 };
            let list = vec![0.5; rows * width];
            put_numbers(&mut out, usage, width, &list);
            prop_assert_eq!(numbers(Body(&out), rows), Ok((usage, width, list)));
            prop_assert!(numbers(Body(&out), rows + 1).is_err());
            for cut in 0..out.len() {
                prop_assert!(numbers(Body(&out[..cut]), rows).is_err());
            }
        }

        #[test]
        fn places_come_out_as_they_went_in(position in 1u32.., ms in proptest::option::of(0..UNKNOWN)) {
            let estimate = ms.map(|ms| Duration::from_millis(ms.into()));
            for place in [Some(Queued { position, estimate }), None] {
                let mut out = Vec::new();
                put_queued(&mut out, place);
                prop_assert_eq!(queued(Body(&out)), Ok(place));
                for cut in 1..out.len() {
                    prop_assert!(queued(Body(&out[..cut])).is_err());
                }
            }
        }

        #[test]
        fn a_view_is_no_longer_than_an_engine_tells(length in 0..600_usize, bad in any::<bool>()) {
            let mut view = EngineView::default();
            let waiting = crate::engine::WaitingView {
                request: RequestId::random(),
                choice: 1,
                tenant: 2,
                class: crate::generation::Class::Normal,
                place: 3,
                prompt_tokens: 4,
                generated: 5,
                is_parked: true,
                waited_us: 6,
            };
            view.line.resize(length, waiting);
            let sent = serde_json::to_string(&view).unwrap();
            let sent = if bad {
                sent.replace(r#""request":""#, r#""request":"\n"#)
            } else {
                sent
            };
            let came = super::view(Body(sent.as_bytes()));
            let is_fine = length <= EngineView::MOST && (!bad || length == 0);
            prop_assert_eq!(came.is_ok(), is_fine);
            if let Ok(came) = came {
                prop_assert_eq!(came.line, view.line);
            }
        }

        #[test]
        fn moments_come_out_as_they_went_in(
            sent in proptest::collection::vec((0..5_u8, any::<u64>()), 0..9),
        ) {
            let mut out = Vec::new();
            let sent: Vec<_> = (sent.iter())
                .filter_map(|&(kind, at)| Some((at, history::of_kind(kind)?)))
                .collect();
            for &(at, moment) in &sent {
                put_moment(&mut out, at, moment, 0);
            }
            let came: Result<Vec<_>, _> = moments(Body(&out)).unwrap().collect();
            prop_assert_eq!(came, Ok(sent));
            out.push(0);
            prop_assert!(moments(Body(&out)).is_err());
            out.splice(.., [9; 9]);
            prop_assert!(moments(Body(&out)).unwrap().all(|moment| moment.is_err()));
        }

        #[test]
        fn garbage_never_panics(body in proptest::collection::vec(any::<u8>(), 0..64), rows in 0..9_usize) {
            let _ = (moments(Body(&body)).map(Iterator::count), queued(Body(&body)), tokens(Body(&body)), pieces(Body(&body), rows), numbers(Body(&body), rows));
        }
    }
}
