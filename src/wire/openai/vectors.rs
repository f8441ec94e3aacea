//! `POST /v1/embeddings` as OpenAI has it, and `POST /v1/rerank` as Jina, llama-server and vLLM do.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};
use serde::{Deserialize, Deserializer};

use super::super::read::Bounded;
use super::super::{Head, json, read};
use super::fields::{Prompts, whole};
use crate::generation::vectors::MAX_INPUTS;
use crate::generation::{EmbedRequest, Failure, Input, RerankRequest, Scores, Usage, Vectors};

/// What a body of `/v1/embeddings` asks for.
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// What to compute.
    pub request: EmbedRequest,
    /// Whether each vector is a base64 text of little-endian `f32` instead of an array of numbers.
    pub base64: bool,
}

/// What a body of `/v1/rerank` asks for.
#[derive(Clone, Debug)]
pub struct Rerank {
    /// What to compute.
    pub request: RerankRequest,
    /// How many of the best are wanted.
    pub top_n: usize,
    /// Whether they are wanted with their texts.
    pub return_documents: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EmbeddingsBody {
    model: Option<String>,
    input: Option<Prompts<MAX_INPUTS>>,
    encoding_format: Option<String>,
    dimensions: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RerankBody {
    model: Option<String>,
    query: Option<String>,
    documents: Option<Bounded<Document, MAX_INPUTS>>,
    top_n: Option<i64>,
    return_documents: Option<bool>,
}

/// A document: its text, or an object with a `text`.
#[derive(Debug)]
struct Document(String);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a document must be a string, or an object with a text"
        )]
        enum Either {
            Text(String),
            Object { text: String },
        }
        let (Either::Text(text) | Either::Object { text }) = Either::deserialize(deserializer)?;
        Ok(Self(text))
    }
}

/// Reads the body of `POST /v1/embeddings`.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub fn parse_embeddings(body: &[u8], head: &Head<'_>) -> Result<Embeddings, Failure> {
    embeddings(read::text(body, head.limits.json_depth)?, head)
}

/// Reads the body of `POST /v1/rerank`.
///
/// # Errors
/// `Invalid`, naming the field at fault.
pub fn parse_rerank(body: &[u8], head: &Head<'_>) -> Result<Rerank, Failure> {
    rerank(read::text(body, head.limits.json_depth)?, head)
}

pub(in crate::wire) fn embeddings(json: &str, head: &Head<'_>) -> Result<Embeddings, Failure> {
    let body: EmbeddingsBody = read::object(json)?;
    let inputs = body.input.map_or(Vec::new(), |inputs| inputs.0);
    if inputs.is_empty() {
        return Err(Failure::invalid(
            "input",
            "input must be a string, token ids, or a list of either, and not an empty list.",
        ));
    }
    let is_empty = |input: &Input| match input {
        Input::Text(text) => text.is_empty(),
        Input::Tokens(tokens) => tokens.is_empty(),
        Input::Chat(_) => false,
    };
    if let Some(at) = inputs.iter().position(is_empty) {
        let place = format!("input[{at}]");
        let message = format!("{place} must not be empty.");
        return Err(Failure::invalid(place, message));
    }
    let base64 = match body.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            return Err(Failure::invalid(
                "encoding_format",
                "encoding_format must be float or base64.",
            ));
        }
    };
    Ok(Embeddings {
        request: EmbedRequest {
            id: head.id.clone(),
            caller: head.caller.clone(),
            model: body.model.unwrap_or_default(),
            inputs,
            dimensions: whole("dimensions", body.dimensions, 1..=u32::MAX)?,
            normalize: true,
            deadlines: head.deadlines,
        },
        base64,
    })
}

pub(in crate::wire) fn rerank(json: &str, head: &Head<'_>) -> Result<Rerank, Failure> {
    let body: RerankBody = read::object(json)?;
    let query = body.query.filter(|query| !query.is_empty());
    let query = query.ok_or_else(|| {
        Failure::invalid("query", "query must be a string, and not an empty one.")
    })?;
    let documents = body.documents.map_or(Vec::new(), |list| list.0);
    if documents.is_empty() {
        return Err(Failure::invalid(
            "documents",
            "documents must be a list of texts, and not an empty one.",
        ));
    }
    let top_n = whole("top_n", body.top_n, 1..=u32::MAX)?;
    Ok(Rerank {
        top_n: top_n.map_or(usize::MAX, |most| {
            usize::try_from(most).unwrap_or(usize::MAX)
        }),
        return_documents: body.return_documents.unwrap_or(false),
        request: RerankRequest {
            id: head.id.clone(),
            caller: head.caller.clone(),
            model: body.model.unwrap_or_default(),
            query,
            documents: documents.into_iter().map(|document| document.0).collect(),
            deadlines: head.deadlines,
        },
    })
}

/// Appends the answer of `/v1/embeddings`. `model` is the name under which the request was served.
pub fn write_embeddings(vectors: &Vectors, model: &str, base64: bool, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"object\":\"list\",\"data\":[");
    let (mut bytes, mut text) = (Vec::new(), String::new());
    for (index, row) in vectors.rows().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        out.extend_from_slice(b"{\"object\":\"embedding\",\"index\":");
        json::integer(out, index);
        out.extend_from_slice(b",\"embedding\":");
        if base64 {
            bytes.clear();
            bytes.extend(row.iter().flat_map(|number| number.to_le_bytes()));
            text.clear();
            STANDARD.encode_string(&bytes, &mut text);
            out.put_u8(b'"');
            out.extend_from_slice(text.as_bytes());
            out.put_u8(b'"');
        } else {
            // Each number in the fewest digits that read back as the same.
            json::document(out, &row);
        }
        out.put_u8(b'}');
    }
    out.extend_from_slice(b"],\"model\":");
    json::string(out, model);
    usage(vectors.usage, out);
}

/// Appends the answer of `/v1/rerank`: the best documents, best first. `model` is the name under which
/// the request was served.
pub fn write_ranking(asked: &Rerank, scores: &Scores, model: &str, out: &mut BytesMut) {
    out.extend_from_slice(b"{\"object\":\"list\",\"model\":");
    json::string(out, model);
    out.extend_from_slice(b",\"results\":[");
    for (rank, (index, score)) in scores.ranked(asked.top_n).into_iter().enumerate() {
        if rank > 0 {
            out.put_u8(b',');
        }
        out.extend_from_slice(b"{\"index\":");
        json::integer(out, index);
        out.extend_from_slice(b",\"relevance_score\":");
        json::document(out, &score);
        if asked.return_documents
            && let Some(document) = asked.request.documents.get(index)
        {
            out.extend_from_slice(b",\"document\":{\"text\":");
            json::string(out, document);
            out.put_u8(b'}');
        }
        out.put_u8(b'}');
    }
    out.put_u8(b']');
    usage(scores.usage, out);
}

/// Appends the usage of what only reads, and the end of the document.
fn usage(usage: Usage, out: &mut BytesMut) {
    out.extend_from_slice(b",\"usage\":{\"prompt_tokens\":");
    json::integer(out, usage.prompt_tokens);
    out.extend_from_slice(b",\"total_tokens\":");
    json::integer(out, usage.prompt_tokens);
    out.extend_from_slice(b"}}");
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::super::testing::head;
    use super::*;

    fn vectors() -> Vectors {
        Vectors {
            numbers: vec![0.6, -0.8, f32::MIN_POSITIVE, 0.333_333_34],
            width: 2,
            usage: Usage {
                prompt_tokens: 7,
                ..Usage::default()
            },
        }
    }

    fn written(write: impl FnOnce(&mut BytesMut)) -> Value {
        let mut out = BytesMut::new();
        write(&mut out);
        serde_json::from_slice(&out).unwrap()
    }

    fn refused(body: &str) -> Option<String> {
        let failure = parse_embeddings(body.as_bytes(), &head("")).unwrap_err();
        failure.param.map(std::borrow::Cow::into_owned)
    }

    #[test]
    fn inputs_come_in_four_forms() {
        let text = |text: &str| Input::Text(text.into());
        for (input, expected) in [
            (r#""a""#, vec![text("a")]),
            (r#"["a","b"]"#, vec![text("a"), text("b")]),
            ("[1,2]", vec![Input::Tokens(vec![1, 2])]),
            (
                "[[1],[2]]",
                vec![Input::Tokens(vec![1]), Input::Tokens(vec![2])],
            ),
        ] {
            let body = format!(r#"{{"model":"m","input":{input},"dimensions":5}}"#);
            let parsed = parse_embeddings(body.as_bytes(), &head("")).unwrap();
            assert_eq!(parsed.request.inputs, expected);
            assert_eq!(parsed.request.dimensions, Some(5));
            assert!(parsed.request.normalize && !parsed.base64);
        }
    }

    #[test]
    fn what_cannot_be_embedded_is_refused_by_its_place() {
        for (body, place) in [
            ("{}", "input"),
            (r#"{"input":[]}"#, "input"),
            (r#"{"input":""}"#, "input[0]"),
            (r#"{"input":["a",""]}"#, "input[1]"),
            (r#"{"input":[[1],[]]}"#, "input[1]"),
            (
                r#"{"input":"a","encoding_format":"int8"}"#,
                "encoding_format",
            ),
            (r#"{"input":"a","dimensions":0}"#, "dimensions"),
        ] {
            assert_eq!(refused(body).as_deref(), Some(place), "{body}");
        }
        let many = |count| json!({"input": vec!["a"; count]}).to_string();
        assert!(parse_embeddings(many(MAX_INPUTS).as_bytes(), &head("")).is_ok());
        assert_eq!(refused(&many(MAX_INPUTS + 1)).as_deref(), Some("input"));
    }

    #[test]
    fn both_encodings_hold_the_same_bits() {
        let vectors = vectors();
        let floats = written(|out| write_embeddings(&vectors, "m", false, out));
        let base64 = written(|out| write_embeddings(&vectors, "m", true, out));
        for (index, row) in vectors.rows().enumerate() {
            let read: Vec<f32> =
                serde_json::from_value(floats["data"][index]["embedding"].clone()).unwrap();
            assert_eq!(read, row);
            let text = base64["data"][index]["embedding"].as_str().unwrap();
            let bytes = STANDARD.decode(text).unwrap();
            let read: Vec<_> = bytes
                .chunks_exact(4)
                .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                .collect();
            assert_eq!(read, row);
        }
        assert_eq!(
            floats["usage"],
            json!({"prompt_tokens": 7, "total_tokens": 7})
        );
        assert_eq!(floats["object"], "list");
        assert_eq!(floats["data"][1]["index"], 1);
        assert_eq!(floats["data"][1]["object"], "embedding");
    }

    #[test]
    fn a_ranking_holds_the_best_and_their_texts_where_asked() {
        let body = br#"{"query":"q","documents":["a",{"text":"b","title":1},"c"],"top_n":2,"return_documents":true}"#;
        let mut asked = parse_rerank(body, &head("")).unwrap();
        assert_eq!(asked.request.documents, ["a", "b", "c"]);
        let scores = Scores {
            scores: vec![0.25, 0.5, -1.0],
            usage: Usage::default(),
        };
        let whole = written(|out| write_ranking(&asked, &scores, "m", out));
        assert_eq!(
            whole,
            json!({
                "object": "list",
                "model": "m",
                "results": [
                    {"index": 1, "relevance_score": 0.5, "document": {"text": "b"}},
                    {"index": 0, "relevance_score": 0.25, "document": {"text": "a"}},
                ],
                "usage": {"prompt_tokens": 0, "total_tokens": 0},
            })
        );
        asked.return_documents = false;
        let bare = written(|out| write_ranking(&asked, &scores, "m", out));
        assert_eq!(bare["results"][0].get("document"), None);
    }

    #[test]
    fn what_cannot_be_ranked_is_refused_by_its_place() {
        for (body, place) in [
            (r#"{"documents":["a"]}"#, "query"),
            (r#"{"query":"","documents":["a"]}"#, "query"),
            (r#"{"query":"q"}"#, "documents"),
            (r#"{"query":"q","documents":[]}"#, "documents"),
            (r#"{"query":"q","documents":["a",7]}"#, "documents[1]"),
            (r#"{"query":"q","documents":["a"],"top_n":0}"#, "top_n"),
        ] {
            let failure = parse_rerank(body.as_bytes(), &head("")).unwrap_err();
            assert_eq!(failure.param.as_deref(), Some(place), "{body}");
        }
    }
}
