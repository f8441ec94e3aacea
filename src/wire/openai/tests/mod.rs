//! Tests of the two endpoints: what is read, and what is written.

mod answers;
mod requests;

use serde_json::Value;
use serde_json::json;

use super::super::Call;
use super::super::testing::head;
use super::*;

fn chat_call(body: &Value, accept: &str) -> Call {
    parse_chat(body.to_string().as_bytes(), &head(accept)).unwrap()
}

fn completion_call(body: &Value, accept: &str) -> Call {
    parse_completion(body.to_string().as_bytes(), &head(accept)).unwrap()
}

fn chat_body(more: &Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

fn refused(chat: bool, body: &Value) -> Failure {
    let parse = if chat { parse_chat } else { parse_completion };
    match parse(body.to_string().as_bytes(), &head("")) {
        Ok(_) => panic!("accepted: {body}"),
        Err(failure) => failure,
    }
}
