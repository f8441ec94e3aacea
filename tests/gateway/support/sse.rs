//! Server-sent events, read with no mercy: what a lenient parser would pass over is a failure here.

use serde_json::Value;

/// One event.
#[derive(Debug)]
pub(crate) enum Event {
    Data(Value),
    Comment,
    Done,
}

/// Reads one event, without the empty line behind it.
pub(super) fn event(text: &str) -> Event {
    assert!(
        !text.contains(['\r', '\n']),
        "one line is one event: {text:?}"
    );
    if text.starts_with(':') {
        return Event::Comment;
    }
    let data = text
        .strip_prefix("data: ")
        .unwrap_or_else(|| panic!("no other fields: {text:?}"));
    if data == "[DONE]" {
        return Event::Done;
    }
    Event::Data(serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")))
}

/// A whole stream of chat or completion chunks, put together.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// The text of each choice.
    pub(crate) texts: Vec<String>,
    /// Why each choice ended.
    pub(crate) finishes: Vec<Option<String>>,
    /// Each piece of text of any choice, as it came.
    pub(crate) pieces: Vec<String>,
    /// Log-probabilities of the first choice.
    pub(crate) logprobs: Vec<Value>,
    pub(crate) usage: Option<Value>,
    /// The code of the error that broke the stream.
    pub(crate) error: Option<String>,
    pub(crate) comments: usize,
}

impl Answer {
    /// Checks what holds for every stream: one id, one model, `[DONE]` once and last.
    pub(crate) fn of(events: &[Event]) -> Self {
        let mut answer = Self::default();
        let mut constant = None;
        let (last, before) = events.split_last().expect("a stream is not empty");
        assert!(
            matches!(last, Event::Done),
            "the last event is [DONE]: {last:?}"
        );
        for event in before {
            match event {
                Event::Comment => answer.comments += 1,
                Event::Done => panic!("[DONE] comes once"),
                Event::Data(data) => {
                    assert!(
                        answer.error.is_none() && answer.usage.is_none(),
                        "nothing follows"
                    );
                    if data.get("error").is_some() {
                        answer.error = Some(error_code(&data["error"]));
                        continue;
                    }
                    let same = ["id", "object", "created", "model"].map(|key| data[key].clone());
                    assert!(!same.contains(&Value::Null), "{data}");
                    assert_eq!(constant.get_or_insert_with(|| same.clone()), &same);
                    answer.chunk(data);
                }
            }
        }
        answer
    }

    /// [`Answer::of`] a whole body.
    pub(crate) fn of_text(body: &str) -> Self {
        let events = body
            .strip_suffix("\n\n")
            .expect("it ends with a whole event");
        Self::of(&events.split("\n\n").map(event).collect::<Vec<_>>())
    }

    fn chunk(&mut self, chunk: &Value) {
        let choices = chunk["choices"].as_array().expect("choices are a list");
        if choices.is_empty() {
            self.usage = Some(chunk["usage"].clone());
        }
        for choice in choices {
            let index = usize::try_from(choice["index"].as_u64().expect("a number")).unwrap();
            while self.texts.len() <= index {
                self.texts.push(String::new());
                self.finishes.push(None);
            }
            assert_eq!(
                self.finishes[index], None,
                "nothing follows a finish: {chunk}"
            );
            if let Some(finish) = choice["finish_reason"].as_str() {
                self.finishes[index] = Some(finish.to_owned());
            }
            let text = choice["delta"]["content"]
                .as_str()
                .or(choice["text"].as_str());
            if let Some(text) = text.filter(|text| !text.is_empty()) {
                self.texts[index] += text;
                self.pieces.push(text.to_owned());
            }
            if let Some(list) = choice["logprobs"]["content"].as_array() {
                self.logprobs.extend_from_slice(list);
            }
        }
    }

    /// The text of the only choice of a stream that ended well.
    pub(crate) fn text(self) -> String {
        assert_eq!(self.error, None);
        assert_eq!(self.texts.len(), 1);
        assert!(self.finishes[0].is_some(), "it has ended");
        self.texts.into_iter().next().unwrap_or_default()
    }
}

/// The code of an error object, which has four keys of strings or null; its type if it has no code.
pub(super) fn error_code(error: &Value) -> String {
    let object = error.as_object().expect("an error is an object");
    let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "message", "param", "type"]);
    assert!(
        object["message"].is_string() && object["type"].is_string(),
        "{error}"
    );
    assert!(
        object
            .values()
            .all(|value| value.is_string() || value.is_null()),
        "{error}"
    );
    object["code"]
        .as_str()
        .or(object["type"].as_str())
        .unwrap_or_default()
        .to_owned()
}
