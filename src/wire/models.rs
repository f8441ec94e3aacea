//! `GET /v1/models` and `GET /v1/models/{id}`.

use bytes::BytesMut;
use serde::Serialize;

use super::json;

/// One model as the list shows it.
#[derive(Clone, Debug)]
pub struct Model<'a> {
    /// Its name in requests.
    pub id: &'a str,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Tokens a sequence may hold.
    pub context: u32,
    /// What the model was trained for at most, when known.
    pub context_trained: Option<u32>,
    /// Vocabulary size.
    pub vocabulary: u32,
    /// Parameters, when known.
    pub parameters: Option<u64>,
    /// Size of the weights in bytes, when known.
    pub bytes: Option<u64>,
    /// Why it cannot be used now, if so.
    pub unavailable: Option<&'a str>,
    /// The model that this is an adapter of, if it is one.
    pub parent: Option<&'a str>,
}

/// OpenAI's model object; `meta` has the names that llama-server gives these figures, `parent` the name
/// that vLLM gives an adapter's model.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    unavailable: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    meta: Meta,
}

#[derive(Serialize)]
struct Meta {
    n_ctx: u32,
    n_ctx_train: Option<u32>,
    n_vocab: u32,
    n_params: Option<u64>,
    size: Option<u64>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
}

impl<'a> From<&Model<'a>> for Entry<'a> {
    fn from(model: &Model<'a>) -> Self {
        Self {
            id: model.id,
            object: "model",
            created: model.created,
            owned_by: "sluicegate",
            unavailable: model.unavailable,
            parent: model.parent,
            meta: Meta {
                n_ctx: model.context,
                n_ctx_train: model.context_trained,
                n_vocab: model.vocabulary,
                n_params: model.parameters,
                size: model.bytes,
            },
        }
    }
}

/// Appends the list of all models.
pub fn write_list(models: &[Model<'_>], out: &mut BytesMut) {
    let list = List {
        object: "list",
        data: models.iter().map(Entry::from).collect(),
    };
    json::document(out, &list);
}

/// Appends one model.
pub fn write_one(model: &Model<'_>, out: &mut BytesMut) {
    json::document(out, &Entry::from(model));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_holds_openai_objects_with_figures_in_meta() {
        let model = Model {
            id: "de\"mo",
            created: 7,
            context: 4096,
            context_trained: None,
            vocabulary: 512,
            parameters: Some(1000),
            bytes: Some(2000),
            unavailable: None,
            parent: None,
        };
        let mut out = BytesMut::new();
        write_list(std::slice::from_ref(&model), &mut out);
        let list: serde_json::Value = serde_json::from_slice(&out).unwrap();
        out.clear();
        write_one(&model, &mut out);
        let one: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(
            one,
            serde_json::json!({"id": "de\"mo", "object": "model", "created": 7, "owned_by": "sluicegate",
                "meta": {"n_ctx": 4096, "n_ctx_train": null, "n_vocab": 512, "n_params": 1000, "size": 2000}})
        );
        let gone = Model {
            unavailable: Some("quarantined"),
            ..model
        };
        out.clear();
        write_one(&gone, &mut out);
        let gone: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(gone["unavailable"], "quarantined");
        assert_eq!(list, serde_json::json!({"object": "list", "data": [one]}));
        out.clear();
        let adapter = Model {
            parent: Some("demo"),
            ..model
        };
        write_one(&adapter, &mut out);
        let one: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(one["parent"], "demo");
    }
}
