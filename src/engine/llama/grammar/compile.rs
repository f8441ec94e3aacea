//! From the text of a schema or grammar to a guide, within limits.

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::guide::Guide;
use super::{gbnf, schema, terminals, tokens};
use crate::generation::Grammar;

/// Longest message of llguidance that goes back to the caller: it quotes their own text.
const MESSAGE_MAX: usize = 300;

/// White space between the parts of a JSON text: a blank or two, or up to two line ends and an
/// indentation. It has an end, because a model that has lost its thread may well send white space for
/// ever. llama.cpp draws the line much the same way.
const WHITE_SPACE: &str = r"[\x20\x09]{1,2}|(\x0D?\x0A){1,2}[\x20\x09]{0,32}";

/// States that the lexer of one sequence may have; by llguidance's own account each takes 1 to 2 kB.
const MAX_LEXER_STATES: usize = 20_000;

/// Compiles for one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
}

impl Compiler {
    /// `words` are the bytes of every token, those of control tokens marked by a leading `0xff`; `end`
    /// are the tokens that end a generation.
    ///
    /// # Errors
    /// The vocabulary has a shape that llguidance cannot work with.
    pub fn new(words: &[Vec<u8>], end: &[u32]) -> Result<Self, String> {
        let environment = tokens::environment(words, end);
        // None of them: forced tokens would need the model's own tokenizer on the engine thread.
        let capabilities = InferenceCapabilities::default();
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| error.to_string())?;
        factory.quiet();
        *factory.limits_mut() = ParserLimits {
            max_lexer_states: MAX_LEXER_STATES,
            verbose_errors: false,
            ..ParserLimits::default()
        };
        Ok(Self { factory })
    }

    /// A guide at its beginning.
    ///
    /// # Errors
    /// A sentence for the caller that says what is wrong, and where as far as that is known.
    pub fn compile(&self, grammar: &Grammar) -> Result<Guide, String> {
        let mut foresees = false;
        let grammar = match grammar {
            Grammar::JsonObject => from_schema(json!({"type": "object"}), true),
            Grammar::JsonSchema { schema, strict } => {
                let schema = schema::read(schema, *strict)?;
                foresees = schema::forces_little(&schema);
                from_schema(schema, *strict)
            }
            Grammar::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Grammar::Lark(lark) => from_lark(lark.clone())?,
            Grammar::Gbnf(gbnf) => from_lark(gbnf::to_lark(gbnf)?)?,
        };
        let parser = self
            .factory
            .create_parser(TopLevelGrammar::from_grammar(grammar));
        let parser = parser.map_err(|error| refusal(&error.to_string()))?;
        let mut guide = Guide::new(Matcher::new(Ok(parser)), foresees);
        // The first step is the dearest: taken here, it is kept with the rest.
        guide.mask().map_err(|error| refusal(&error.to_string()))?;
        Ok(guide)
    }
}

fn from_lark(lark: String) -> Result<GrammarWithLexer, String> {
    terminals::check(&lark)?;
    Ok(GrammarWithLexer::from_lark(lark))
}

fn from_schema(schema: Value, strict: bool) -> GrammarWithLexer {
    let mut options = json!({"whitespace_pattern": WHITE_SPACE, "lenient": !strict});
    let mut schema = match schema {
        Value::Object(fields) => Value::Object(fields),
        _ => json!({}),
    };
    if let Some(fields) = schema.as_object_mut() {
        // llguidance's own extension, with which a schema may say more about its output.
        if let Some(Value::Object(given)) = fields.remove("x-guidance")
            && let Some(options) = options.as_object_mut()
        {
            options.extend(given);
        }
        fields.insert("x-guidance".to_owned(), options);
    }
    GrammarWithLexer::from_json_schema(schema)
}

fn refusal(message: &str) -> String {
    format!("It cannot be compiled: {}.", plain(message))
}

/// The first line of llguidance's message, cut to a length that cannot be abused, its place in words.
pub(super) fn plain(message: &str) -> String {
    if message.starts_with("panic:") {
        return "llguidance cannot handle it".to_owned();
    }
    if message.starts_with("NoExtensionBias") {
        return "no token can come next".to_owned();
    }
    // The regex parser draws a picture first and says what is wrong last.
    let line = match message.split_once("regex parse error:") {
        Some((_, drawn)) => (drawn.lines()).find_map(|line| line.trim().strip_prefix("error: ")),
        None => message.lines().next(),
    };
    let line = line.unwrap_or_default();
    let line = line.strip_prefix("at ").unwrap_or(line);
    let end = line.floor_char_boundary(MESSAGE_MAX);
    let cut = if end < line.len() { "…" } else { "" };
    let text = line[..end].trim_end_matches('.');
    // "3(14): …"
    match text.split_once("): ") {
        Some((place, rest))
            if let Some((line, column)) = place.split_once('(')
                && is_number(line)
                && is_number(column) =>
        {
            format!("line {line}, column {column}: {rest}{cut}")
        }
        _ => format!("{text}{cut}"),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_place_and_keep_to_one_line() {
        assert_eq!(
            plain("at 3(14): Expected value\n 1 | x\n"),
            "line 3, column 14: Expected value"
        );
        assert_eq!(
            plain("panic: index\n<backtrace>"),
            "llguidance cannot handle it"
        );
        assert_eq!(plain("a (b): c."), "a (b): c");
        assert_eq!(plain(&"é".repeat(400)).chars().count(), MESSAGE_MAX / 2 + 1);
    }
}
