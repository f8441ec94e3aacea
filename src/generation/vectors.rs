//! Texts to vectors, and documents to scores: what is asked for and what comes back.

use serde::{Deserialize, Serialize};

use super::{Caller, Deadlines, Failure, Input, RequestId, Usage};

/// Most inputs, or documents, of one request. OpenAI's bound.
pub const MAX_INPUTS: usize = 2048;

/// Texts whose vectors are wanted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EmbedRequest {
    /// Identifies the request in headers and logs.
    pub id: RequestId,
    /// Who asks.
    pub caller: Caller,
    /// The model's name as asked; empty means the default model.
    pub model: String,
    /// One input per vector; never empty. [`Input::Text`] or [`Input::Tokens`].
    pub inputs: Vec<Input>,
    /// Keep only the first so many numbers of each vector; `None` keeps all. At least 1.
    pub dimensions: Option<u32>,
    /// Scale each vector to length 1, after cutting it.
    pub normalize: bool,
    /// How long the caller is willing to wait; absent fields take the server's.
    pub deadlines: Deadlines,
}

/// Documents to be scored by how well they answer a query.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RerankRequest {
    /// Identifies the request in headers and logs.
    pub id: RequestId,
    /// Who asks.
    pub caller: Caller,
    /// The model's name as asked; empty means the default model.
    pub model: String,
    /// What the documents are compared with.
    pub query: String,
    /// The documents; never empty.
    pub documents: Vec<String>,
    /// How long the caller is willing to wait; absent fields take the server's.
    pub deadlines: Deadlines,
}

/// The vectors of an [`EmbedRequest`], in the order of its inputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    /// All vectors, one after the other.
    pub numbers: Vec<f32>,
    /// Numbers of one vector; at least 1.
    pub width: usize,
    /// Tokens of all inputs.
    pub usage: Usage,
}

impl Vectors {
    /// Each vector, in order.
    #[must_use]
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.numbers.chunks_exact(self.width.max(1))
    }

    /// Puts raw vectors of `width` numbers into the form that `request` asks for.
    ///
    /// # Errors
    /// `Invalid` if more dimensions are asked for than there are; `Internal` for a vector that holds
    /// something else than finite numbers.
    pub fn finish(
        mut raw: Vec<f32>,
        width: usize,
        usage: Usage,
        request: &EmbedRequest,
    ) -> Result<Self, Failure> {
        let kept = kept(width, request.dimensions)?;
        if raw.iter().any(|number| !number.is_finite()) {
            return Err(Failure::internal("the model computed no finite vector"));
        }
        if kept < width {
            for row in 0..raw.len() / width {
                raw.copy_within(row * width..row * width + kept, row * kept);
            }
            raw.truncate(raw.len() / width * kept);
        }
        if request.normalize {
            raw.chunks_exact_mut(kept).for_each(normalize);
        }
        Ok(Self {
            numbers: raw,
            width: kept,
            usage,
        })
    }
}

/// How many numbers of a vector of `width` are kept.
///
/// # Errors
/// `Invalid` if there are not as many as asked for.
pub fn kept(width: usize, dimensions: Option<u32>) -> Result<usize, Failure> {
    let wanted = dimensions.map_or(width, |wanted| {
        usize::try_from(wanted).unwrap_or(usize::MAX)
    });
    if (1..=width).contains(&wanted) {
        return Ok(wanted);
    }
    Err(Failure::invalid(
        "dimensions",
        format!("This model's vectors have {width} dimensions; ask for 1 to {width}."),
    ))
}

/// Scales a vector to length 1. One without a direction stays as it is.
fn normalize(row: &mut [f32]) {
    let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if square > 0.0 {
        let scale = square.sqrt().recip();
        for number in row {
            #[expect(clippy::cast_possible_truncation, reason = "at most 1 in size")]
            {
                *number = (f64::from(*number) * scale) as f32;
            }
        }
    }
}

/// How well each document of a [`RerankRequest`] answers its query, in the order of the documents.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// One finite number per document; higher is better.
    pub scores: Vec<f32>,
    /// Tokens of all pairs of query and document.
    pub usage: Usage,
}

impl Scores {
    /// The scores of all documents.
    ///
    /// # Errors
    /// `Internal` for a score that is no finite number.
    pub fn finish(scores: Vec<f32>, usage: Usage) -> Result<Self, Failure> {
        if scores.iter().all(|score| score.is_finite()) {
            Ok(Self { scores, usage })
        } else {
            Err(Failure::internal("the model computed no finite score"))
        }
    }

    /// The best `most` documents with their scores, best first; equal ones in their order.
    #[must_use]
    pub fn ranked(&self, most: usize) -> Vec<(usize, f32)> {
        let mut ranked: Vec<_> = self.scores.iter().copied().enumerate().collect();
        ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        ranked.truncate(most);
        ranked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Kind;

    fn request(dimensions: Option<u32>, normalize: bool) -> EmbedRequest {
        EmbedRequest {
            id: RequestId::random(),
            caller: Caller::default(),
            model: String::new(),
            inputs: vec![Input::Text("a".into())],
            dimensions,
            normalize,
            deadlines: Deadlines::default(),
        }
    }

    fn finish(raw: &[f32], dimensions: Option<u32>, normalize: bool) -> Result<Vectors, Failure> {
        let request = request(dimensions, normalize);
        Vectors::finish(raw.to_vec(), 3, Usage::default(), &request)
    }

    #[test]
    fn vectors_are_cut_first_and_scaled_to_length_one_then() {
        let raw = [3.0, 4.0, 12.0, 0.0, 0.0, 5.0];
        assert_eq!(finish(&raw, None, false).unwrap().numbers, raw);
        let cut = finish(&raw, Some(2), true).unwrap();
        assert_eq!(cut.rows().collect::<Vec<_>>(), [[0.6, 0.8], [0.0, 0.0]]);
        // Their squares would be infinite in f32.
        let large = finish(&[3e30, 4e30, 0.0], None, true).unwrap();
        let off = |(a, b): (&f32, f32)| (a - b).abs();
        assert!(
            large
                .numbers
                .iter()
                .zip([0.6, 0.8, 0.0])
                .map(off)
                .all(|off| off < 1e-6)
        );
    }

    #[test]
    fn dimensions_that_there_are_not_are_refused_by_name() {
        for wanted in [0, 4, u32::MAX] {
            let failure = finish(&[0.0; 3], Some(wanted), true).unwrap_err();
            assert_eq!(failure.kind, Kind::Invalid);
            assert_eq!(failure.param.as_deref(), Some("dimensions"));
        }
    }

    #[test]
    fn what_is_not_finite_is_a_failure() {
        for bad in [f32::NAN, f32::INFINITY] {
            let failure = finish(&[1.0, bad, 0.0], None, true).unwrap_err();
            assert_eq!(failure.kind, Kind::Internal);
            let failure = Scores::finish(vec![bad], Usage::default()).unwrap_err();
            assert_eq!(failure.kind, Kind::Internal);
        }
    }

    #[test]
    fn the_best_come_first_and_equals_keep_their_order() {
        let scores = Scores::finish(vec![0.5, -1.0, 0.5, 2.0], Usage::default()).unwrap();
        assert_eq!(scores.ranked(3), [(3, 2.0), (0, 0.5), (2, 0.5)]);
        assert_eq!(scores.ranked(9).len(), 4);
    }
}
