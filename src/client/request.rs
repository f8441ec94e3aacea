//! What a client asks: the `OpenAI` chat request, with the fields that local servers add.

use serde::{Deserialize, Serialize};

/// A chat request, always streamed and with usage at the end. Absent fields are the server's to choose.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatRequest {
    /// The model's name; servers with a default accept its absence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The conversation so far, oldest first.
    pub messages: Vec<Message>,
    /// Softens or sharpens the choice of tokens; 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Keep the smallest set of tokens whose probability reaches this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Keep the `k` likeliest tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keep tokens at least this likely relative to the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Most tokens to generate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Seed of the server's random numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Strings that end the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// The part of a trace that this request belongs to (W3C Trace Context, section 3.2), for the header
    /// `traceparent`; one that no header can hold is not sent.
    #[serde(skip)]
    pub traceparent: Option<String>,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// One entry of a server's list of models.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Model {
    /// The name to ask for.
    pub id: String,
}

impl ChatRequest {
    /// A request to a model, with no message yet.
    #[must_use]
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: Some(model.into()),
            ..Self::default()
        }
    }

    /// Adds a message of the user.
    #[must_use]
    pub fn user(mut self, content: impl Into<String>) -> Self {
        self.messages.push(Message::new("user", content));
        self
    }

    /// The request's body.
    pub(super) fn body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Streamed<'a> {
            #[serde(flatten)]
            request: &'a ChatRequest,
            stream: bool,
            stream_options: Options,
        }
        #[derive(Serialize)]
        struct Options {
            include_usage: bool,
        }
        let streamed = Streamed {
            request: self,
            stream: true,
            stream_options: Options {
                include_usage: true,
            },
        };
        // Strings, numbers and lists always serialize; an empty body would be refused by any server.
        serde_json::to_vec(&streamed).unwrap_or_default()
    }
}

impl Message {
    /// A message.
    #[must_use]
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_fields_are_not_sent() {
        let body = ChatRequest::new("m").user("hi").body();
        assert_eq!(
            String::from_utf8(body).unwrap(),
            concat!(
                r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"#,
                r#""stream":true,"stream_options":{"include_usage":true}}"#
            )
        );
    }

    #[test]
    fn every_field_is_sent_under_its_openai_name() {
        let request = ChatRequest {
            model: None,
            temperature: Some(0.5),
            top_p: Some(0.9),
            top_k: Some(4),
            min_p: Some(0.1),
            max_tokens: Some(9),
            seed: Some(7),
            stop: vec!["\n".to_owned()],
            traceparent: Some("a header's".to_owned()),
            ..ChatRequest::default()
        };
        let body: serde_json::Value = serde_json::from_slice(&request.body()).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "messages": [], "temperature": 0.5, "top_p": 0.9, "top_k": 4, "min_p": 0.1,
                "max_tokens": 9, "seed": 7, "stop": ["\n"],
                "stream": true, "stream_options": {"include_usage": true}
            })
        );
    }
}
