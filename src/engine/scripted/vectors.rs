//! Vectors of a scripted model: the letters of a text, counted.
//!
//! Number `i` counts the pairs of neighbouring bytes whose hash is `i`. So the same text always has the
//! same vector, texts that share letters have similar ones, and a document's score is the cosine of its
//! vector with the query's. They come when the script's first token is due, and `fail_at = 0` fails.

use super::Play;
use crate::generation::Failure;

/// Numbers of one vector.
pub(super) const WIDTH: usize = 64;

/// Appends the vector of a text.
pub(super) fn push(bytes: &[u8], out: &mut Vec<f32>) {
    let from = out.len();
    out.resize(from + WIDTH, 0.0);
    // The space in front gives a single byte a pair, and no text the zero vector.
    let first = std::iter::once(&b' ').chain(bytes);
    for (&a, &b) in first.zip(bytes) {
        let hash = u32::from(a) * 31 + u32::from(b);
        out[from + hash as usize % WIDTH] += 1.0;
    }
}

/// How much the second text has of the first, 0 to 1.
pub(super) fn score(query: &[u8], document: &[u8]) -> f32 {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    push(query, &mut a);
    push(document, &mut b);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let lengths = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if lengths > 0.0 {
        (dot(&a, &b) / lengths).min(1.0)
    } else {
        0.0
    }
}

/// Waits as the script does before its first token, and fails if it fails there.
pub(super) async fn play(script: &Play) -> Result<(), Failure> {
    tokio::time::sleep(script.due(0)).await;
    match script.fail {
        Some((0, kind)) => Err(Failure::new(kind, "The script says that this fails here.")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_most_like_itself_and_unlike_one_of_other_letters() {
        let query = b"the water runs";
        assert!((score(query, query) - 1.0).abs() < 1e-6);
        assert!(score(query, b"the water ran") > score(query, b"QQQQ"));
        assert!(score(query, b"").abs() < f32::EPSILON);
        let mut one = Vec::new();
        push(b"x", &mut one);
        assert!((one.iter().sum::<f32>() - 1.0).abs() < f32::EPSILON);
    }
}
