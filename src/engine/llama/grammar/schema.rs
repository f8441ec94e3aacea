//! A JSON Schema before it is compiled: its shape is checked, so that what is wrong is named by its
//! place.
//!
//! Only what would make a schema meaningless is an error here. Keywords that the compiler does not know
//! how to follow are refused in strict mode and otherwise ignored, as they are where OpenAI's API has
//! `strict: false`.

use serde_json::{Map, Value};

/// Keywords of the standard's drafts that cannot be followed token by token.
const NOT_FOLLOWED: [&str; 20] = [
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "$dynamicAnchor",
    "contentSchema",
    "$vocabulary",
];

const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

/// Reads a schema and checks its shape.
///
/// # Errors
/// A sentence that names the line and column, or the JSON pointer, of what is wrong.
pub(super) fn read(text: &str, strict: bool) -> Result<Value, String> {
    let schema: Value = serde_json::from_str(text)
        .map_err(|error| format!("The schema is not valid JSON: {error}."))?;
    let mut place = Place(Vec::new());
    check(&schema, strict, &mut place)?;
    Ok(schema)
}

/// Longest text in a schema that forces little, in bytes.
const LITTLE: usize = 200;

/// Whether no more than a short text is ever forced at once: white space may come between the parts of a
/// JSON text, so that it is the rest of a key or of a value that the schema spells out. A pattern can
/// force a text far longer than itself.
pub(super) fn forces_little(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => fields.iter().all(|(key, value)| match key.as_str() {
            "description" | "title" | "$comment" if value.is_string() => true,
            "pattern" | "patternProperties" | "x-guidance" => false,
            key => key.len() <= LITTLE && forces_little(value),
        }),
        Value::Array(items) => items.iter().all(forces_little),
        Value::String(text) => text.len() <= LITTLE,
        Value::Number(number) => number.to_string().len() <= LITTLE,
        Value::Null | Value::Bool(_) => true,
    }
}

/// Where a value is in the schema: the keys on the way to it.
struct Place<'a>(Vec<Step<'a>>);

enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> Place<'a> {
    fn within<T>(&mut self, step: Step<'a>, look: impl FnOnce(&mut Self) -> T) -> T {
        self.0.push(step);
        let seen = look(self);
        self.0.pop();
        seen
    }

    /// A sentence about this place, which it names by its JSON pointer (RFC 6901, section 6).
    fn error<T>(&self, what: &str) -> Result<T, String> {
        let mut pointer = String::from("#");
        for step in &self.0 {
            pointer.push('/');
            match step {
                Step::Key(key) => pointer.push_str(&key.replace('~', "~0").replace('/', "~1")),
                Step::Index(index) => pointer.push_str(&index.to_string()),
            }
        }
        // Names are the caller's own, and may be long.
        let end = pointer.floor_char_boundary(300);
        Err(format!("{} {what}", &pointer[..end]))
    }
}

/// Depth is bounded: the parser refuses what nests deeper than 128.
fn check<'a>(schema: &'a Value, strict: bool, place: &mut Place<'a>) -> Result<(), String> {
    match schema {
        Value::Bool(true) => Ok(()),
        Value::Bool(false) if !place.0.is_empty() => Ok(()),
        Value::Bool(false) => place.error("allows nothing."),
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| {
            place.within(Step::Key(key), |place| keyword(key, value, strict, place))
        }),
        _ => place.error("must be a schema: an object or a boolean."),
    }
}

fn keyword<'a>(
    key: &str,
    value: &'a Value,
    strict: bool,
    place: &mut Place<'a>,
) -> Result<(), String> {
    match key {
        _ if NOT_FOLLOWED.contains(&key) => {
            if strict {
                return place.error("is a keyword that this server cannot follow.");
            }
            Ok(())
        }
        "properties" | "patternProperties" | "$defs" | "definitions" => match value {
            Value::Object(schemas) => each(schemas, strict, place),
            _ => place.error("must be an object of schemas."),
        },
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => match value {
            Value::Array(schemas) if !schemas.is_empty() => list(schemas, strict, place),
            _ => place.error("must be an array of schemas, and not empty."),
        },
        "items" => match value {
            // As drafts before 2020-12 had it.
            Value::Array(schemas) => list(schemas, strict, place),
            _ => check(value, strict, place),
        },
        "additionalProperties" | "additionalItems" => check(value, strict, place),
        "type" => {
            let known = |one: &Value| one.as_str().is_some_and(|name| TYPES.contains(&name));
            match value {
                Value::Array(names) if !names.is_empty() && names.iter().all(known) => Ok(()),
                _ if known(value) => Ok(()),
                _ => place.error(
                    "must be null, boolean, integer, number, string, array or object, or an array of these.",
                ),
            }
        }
        "enum" => match value {
            Value::Array(values) if !values.is_empty() => Ok(()),
            _ => place.error("must be an array, and not empty."),
        },
        "required" => match value {
            Value::Array(names) if names.iter().all(Value::is_string) => Ok(()),
            _ => place.error("must be an array of strings."),
        },
        "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => {
            if value.as_u64().is_some() {
                Ok(())
            } else {
                place.error("must be a whole number, 0 or more.")
            }
        }
        "minimum" | "maximum" | "multipleOf" if !value.is_number() => {
            place.error("must be a number.")
        }
        "pattern" | "format" | "$ref" if !value.is_string() => place.error("must be a string."),
        _ => Ok(()),
    }
}

fn each<'a>(
    schemas: &'a Map<String, Value>,
    strict: bool,
    place: &mut Place<'a>,
) -> Result<(), String> {
    schemas.iter().try_for_each(|(name, schema)| {
        place.within(Step::Key(name), |place| check(schema, strict, place))
    })
}

fn list<'a>(schemas: &'a [Value], strict: bool, place: &mut Place<'a>) -> Result<(), String> {
    schemas.iter().enumerate().try_for_each(|(index, schema)| {
        place.within(Step::Index(index), |place| check(schema, strict, place))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        read(text, true).unwrap_err()
    }

    #[test]
    fn what_is_wrong_is_named_by_its_place() {
        let table = [
            (r#"{"type": "objekt"}"#, "#/type must be"),
            (
                r#"{"properties": {"a/b": {"items": 3}}}"#,
                "#/properties/a~1b/items must be a schema",
            ),
            (
                r#"{"anyOf": [true, {"required": "x"}]}"#,
                "#/anyOf/1/required must be",
            ),
            (
                r#"{"$defs": {"x": {"minLength": -1}}}"#,
                "#/$defs/x/minLength must be",
            ),
            (r#"{"enum": []}"#, "#/enum must be"),
            (r#"{"pattern": 1}"#, "#/pattern must be a string"),
            ("7", "# must be a schema"),
            ("false", "# allows nothing"),
            (
                r#"{"properties": {"a": {"not": {}}}}"#,
                "#/properties/a/not is a keyword",
            ),
        ];
        for (text, expected) in table {
            let message = wrong(text);
            assert!(message.starts_with(expected), "{text}: {message}");
        }
        assert!(wrong("{\"a\":\n}").contains("line 2 column 1"));
        assert!(wrong(&"[".repeat(100_000)).contains("recursion limit"));
    }

    #[test]
    fn keywords_that_cannot_be_followed_are_refused_in_strict_mode_only() {
        for keyword in NOT_FOLLOWED {
            let text = format!(r#"{{"items": {{"{keyword}": 1}}}}"#);
            assert!(wrong(&text).contains(keyword));
            assert!(read(&text, false).is_ok());
        }
    }

    #[test]
    fn names_and_values_that_look_like_keywords_are_left_alone() {
        let text = r#"{"properties": {"not": true, "type": {"const": {"not": 1}}}, "x": {"type": 1},
            "enum": [{"type": 1}], "default": {"type": 3}}"#;
        assert!(read(text, true).is_ok());
    }
}
