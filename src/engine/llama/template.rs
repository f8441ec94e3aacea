//! Chat templates: the Jinja program that comes with a model, run with bounds.
//!
//! A template is somebody else's code. It runs with fuel, with a cap on its output, without access to
//! anything but the messages, and never comes from a request.

use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::load_error::LoadError;
use super::vocab::Vocabulary;
use crate::engine::config::Settings;
use crate::generation::Message;

/// Template instructions per rendering. A 300-message chat takes about 20,000.
const FUEL: u64 = 2_000_000;

/// Most bytes of a rendered prompt beyond what the messages hold.
const OUTPUT_SLACK: usize = 1024 * 1024;

/// What a model without a template gets.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// A compiled chat template.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos: Arc<str>,
    eos: Arc<str>,
}

impl ChatTemplate {
    /// Compiles a model's template, or `ChatML` if it has none.
    ///
    /// # Errors
    /// The template's own error when it does not parse.
    pub(super) fn new(source: Option<&str>, bos: &str, eos: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        // What Hugging Face's `apply_chat_template` sets, which templates are written against.
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()?,
        );
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: String| now(&format));
        environment.add_filter("tojson", to_json);
        environment.add_template_owned("chat", source.unwrap_or(CHATML).to_owned())?;
        Ok(Self {
            environment,
            bos: bos.into(),
            eos: eos.into(),
        })
    }

    /// Renders a conversation up to where the assistant is to speak.
    ///
    /// # Errors
    /// What the template raised, or that it ran out of fuel or of output.
    pub(super) fn render(&self, messages: &[Message]) -> Result<String, Error> {
        let list: Vec<Value> = messages
            .iter()
            .map(|message| {
                let (role, content) = (&message.role.0, &message.content);
                if let Some(name) = &message.name {
                    context! { role, content, name }
                } else {
                    context! { role, content }
                }
            })
            .collect();
        let held: usize = messages.iter().map(|message| message.content.len()).sum();
        let mut out = Capped {
            bytes: Vec::new(),
            limit: 2 * held + OUTPUT_SLACK,
        };
        self.environment.get_template("chat")?.render_captured_to(
            context! {
                messages => list,
                add_generation_prompt => true,
                bos_token => &*self.bos,
                eos_token => &*self.eos,
            },
            &mut out,
        )?;
        String::from_utf8(out.bytes)
            .map_err(|_| Error::new(ErrorKind::WriteFailure, "the output is not UTF-8"))
    }
}

/// Collects up to a limit, then fails the rendering.
struct Capped {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Capped {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + buf.len() > self.limit {
            return Err(io::Error::other("the template's output is too long"));
        }
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON as Hugging Face's filter writes it: Python's separators, nothing escaped for HTML.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that minijinja gives filters"
)]
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    match indent {
        None => write_json(value, Spaced),
        Some(width) => {
            let pad = " ".repeat(width.min(16));
            write_json(value, PrettyFormatter::with_indent(pad.as_bytes()))
        }
    }
}

fn write_json(value: &Value, format: impl Formatter) -> Result<String, Error> {
    let mut out = Vec::new();
    value
        .serialize(&mut Serializer::with_formatter(&mut out, format))
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// `{"a": 1, "b": [1, 2]}`, as Python's `json.dumps` writes it.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// The date and time in UTC, as `strftime` formats it; templates use it for "today's date".
fn now(format: &str) -> Result<String, Error> {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format, &now)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

/// The template of the configuration, if it names one.
pub(super) fn configured(settings: &Settings) -> Result<Option<String>, LoadError> {
    let Some(path) = &settings.chat_template else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.display().to_string(),
        source,
    })?;
    Ok(Some(text))
}

/// The template that a model is served with: the configured one, else its own, else `ChatML`.
pub(super) fn of_model(
    name: &str,
    settings: &Settings,
    own: Option<&str>,
    vocabulary: &Vocabulary,
) -> Result<ChatTemplate, LoadError> {
    let configured = configured(settings)?;
    let source = configured.as_deref().or(own);
    if source.is_none() {
        tracing::warn!(model = name, "the model has no chat template; using ChatML");
    }
    ChatTemplate::new(source, &vocabulary.bos_text(), &vocabulary.eos_text())
        .map_err(LoadError::Template)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Role;

    fn message(role: &str, content: &str) -> Message {
        Message {
            role: Role(role.into()),
            content: content.into(),
            name: None,
        }
    }

    #[test]
    fn a_model_without_a_template_gets_chatml() {
        let template = ChatTemplate::new(None, "", "").expect("it parses");
        let prompt = template
            .render(&[message("user", "hi")])
            .expect("it renders");
        assert_eq!(
            prompt,
            "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn an_endless_template_runs_out_of_fuel() {
        let source =
            "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let template = ChatTemplate::new(Some(source), "", "").expect("it parses");
        assert!(template.render(&[]).is_err());
    }

    #[test]
    fn a_template_that_multiplies_its_input_hits_the_output_cap() {
        let source = "{% for a in range(999) %}{{ messages[0]['content'] }}{% endfor %}";
        let template = ChatTemplate::new(Some(source), "", "").expect("it parses");
        let long = "x".repeat(100_000);
        assert!(template.render(&[message("user", &long)]).is_err());
    }

    #[test]
    fn python_methods_json_and_exceptions_work() {
        let source = "{%- if messages[0].role.startswith('us') -%}{{ messages[0] | tojson }}{%- else -%}{{ raise_exception('users only') }}{%- endif -%}";
        let template = ChatTemplate::new(Some(source), "", "").expect("it parses");
        let prompt = template
            .render(&[message("user", "<b>")])
            .expect("it renders");
        assert_eq!(prompt, r#"{"role": "user", "content": "<b>"}"#);
        let error = template
            .render(&[message("system", "")])
            .expect_err("it raises");
        assert!(error.to_string().contains("users only"));
    }
}
