//! What an answer must look like: OpenAI's `response_format`, and the fields of llama-server and vLLM.
//!
//! Only the shape of these fields is read here. Whether a schema or a grammar makes sense is for the
//! engine to say, which knows the vocabulary.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::read::Bounded;
use super::body::Body;
use super::fields::not_served;
use crate::generation::{Constraint, Failure, Grammar};

/// Most texts of one choice.
const MAX_CHOICES: usize = 1024;

/// `response_format`.
#[derive(Debug, Deserialize)]
pub(super) struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<NamedSchema>,
    /// llama-server's place for a schema.
    schema: Option<Box<RawValue>>,
}

/// `response_format.json_schema`. Its name and description are for models that are told of them.
#[derive(Debug, Deserialize)]
struct NamedSchema {
    schema: Option<Box<RawValue>>,
    strict: Option<bool>,
}

/// vLLM's `structured_outputs`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Structured {
    json: Option<Box<RawValue>>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Choices>,
    grammar: Option<String>,
    structural_tag: Option<Box<RawValue>>,
}

/// Texts of which one is to be said.
pub(super) type Choices = Bounded<String, MAX_CHOICES>;

/// What the answer must match, if anything. More than one wish is refused.
pub(super) fn constraint(body: &mut Body) -> Result<Option<Constraint>, Failure> {
    if body.grammar_lazy == Some(true) {
        return Err(not_served("grammar_lazy".to_owned()));
    }
    let structured = body.structured_outputs.take().unwrap_or_default();
    if structured.structural_tag.is_some() {
        return Err(not_served("structured_outputs.structural_tag".to_owned()));
    }
    let object = structured.json_object == Some(true);
    let wishes = [
        response_format(body.response_format.take())?,
        text("grammar", body.grammar.take(), Grammar::Gbnf),
        schema("json_schema", body.json_schema.take())?,
        schema("guided_json", body.guided_json.take())?,
        text("guided_regex", body.guided_regex.take(), Grammar::Regex),
        text("guided_grammar", body.guided_grammar.take(), lark_or_gbnf),
        choice("guided_choice", body.guided_choice.take())?,
        schema("structured_outputs.json", structured.json)?,
        object.then(|| wish("structured_outputs.json_object", Grammar::JsonObject)),
        text("structured_outputs.regex", structured.regex, Grammar::Regex),
        text(
            "structured_outputs.grammar",
            structured.grammar,
            lark_or_gbnf,
        ),
        choice("structured_outputs.choice", structured.choice)?,
    ];
    let mut wishes = wishes.into_iter().flatten();
    let first = wishes.next();
    match (&first, wishes.next()) {
        (Some(first), Some(second)) => Err(Failure::invalid(
            second.field,
            format!("{} and {} exclude each other.", first.field, second.field),
        )),
        _ => Ok(first),
    }
}

fn wish(field: &'static str, grammar: Grammar) -> Constraint {
    Constraint { field, grammar }
}

fn response_format(format: Option<ResponseFormat>) -> Result<Option<Constraint>, Failure> {
    let Some(format) = format else {
        return Ok(None);
    };
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => match format.schema {
            Some(given) => schema("response_format.schema", Some(given)),
            None => Ok(Some(wish("response_format", Grammar::JsonObject))),
        },
        "json_schema" => {
            let strict = format
                .json_schema
                .as_ref()
                .is_some_and(|named| named.strict == Some(true));
            let (field, given) = match (
                format.json_schema.and_then(|named| named.schema),
                format.schema,
            ) {
                (None, Some(given)) => ("response_format.schema", given),
                (Some(given), _) => ("response_format.json_schema.schema", given),
                (None, None) => {
                    return Err(Failure::invalid(
                        "response_format.json_schema.schema",
                        "response_format of type json_schema must have a json_schema with a schema.",
                    ));
                }
            };
            let schema = given.get().to_owned();
            Ok(Some(wish(field, Grammar::JsonSchema { schema, strict })))
        }
        _ => Err(Failure::invalid(
            "response_format.type",
            "response_format.type must be text, json_object or json_schema.",
        )),
    }
}

/// A schema as an object, or as the text of one.
fn schema(
    field: &'static str,
    given: Option<Box<RawValue>>,
) -> Result<Option<Constraint>, Failure> {
    let Some(given) = given else { return Ok(None) };
    let schema = if given.get().starts_with('"') {
        serde_json::from_str(given.get())
            .map_err(|error| Failure::invalid(field, format!("{field} is no text: {error}.")))?
    } else {
        given.get().to_owned()
    };
    let strict = false;
    Ok(Some(wish(field, Grammar::JsonSchema { schema, strict })))
}

/// A text, where an empty one asks for nothing.
fn text(
    field: &'static str,
    given: Option<String>,
    grammar: impl FnOnce(String) -> Grammar,
) -> Option<Constraint> {
    let given = given.filter(|text| !text.is_empty())?;
    Some(wish(field, grammar(given)))
}

/// vLLM takes both in one field. Only GBNF writes `::=`.
fn lark_or_gbnf(text: String) -> Grammar {
    if text.contains("::=") {
        Grammar::Gbnf(text)
    } else {
        Grammar::Lark(text)
    }
}

/// One of several texts, as a grammar with one terminal.
fn choice(field: &'static str, given: Option<Choices>) -> Result<Option<Constraint>, Failure> {
    let Some(Bounded(texts)) = given else {
        return Ok(None);
    };
    if texts.is_empty() || texts.iter().any(String::is_empty) {
        return Err(Failure::invalid(
            field,
            format!("{field} must hold at least one text, and no empty one."),
        ));
    }
    // Lark's strings are JSON's, but for this one character.
    let quoted = |text: &String| {
        let quoted = serde_json::Value::from(text.as_str()).to_string();
        quoted.replace('\u{7f}', "\\u007f")
    };
    let quoted: Vec<_> = texts.iter().map(quoted).collect();
    let lark = format!("start: CHOICE\nCHOICE: {}\n", quoted.join(" | "));
    Ok(Some(wish(field, Grammar::Lark(lark))))
}
