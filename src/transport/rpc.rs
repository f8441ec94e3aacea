//! JSON-RPC over HTTP: one body in, replies out, together or as they come.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use std::pin::Pin;
use std::task::{self, Poll, ready};
use tokio_stream::{Stream, StreamExt, StreamMap};

use super::http::{Context, as_model, document, read_counted, write_tokens};
use super::pace::Pace;
use super::tokens::{Streamed, TokenBody};
use super::vectors;
use crate::generation::{BoxFuture, Failure, RequestId};
use crate::telemetry::{RequestRecorder, Route};
use crate::wire::jsonrpc::{self, Framing, Incoming, Item, Method, Reply};
use crate::wire::{self, Call, Head, models, tokenize};

type Replies = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// `GET /rpc/openrpc.json`.
pub(super) async fn openrpc() -> Response {
    document(wire::JSON, Bytes::from_static(jsonrpc::OPENRPC.as_bytes()))
}

/// `POST /rpc`.
pub(super) async fn handle(State(context): State<Context>, request: Request) -> Response {
    let pace = Pace::of(request.extensions());
    let parse = |body: &[u8], head: &Head<'_>| Ok(jsonrpc::parse(body, head));
    let (Incoming { items, framing }, id) =
        match read_counted(&context, request, Route::Rpc, parse).await {
            Ok(incoming) => incoming,
            Err(failure) => {
                let mut out = BytesMut::new();
                Reply::unknown().failure(&failure, &mut out);
                return document(wire::JSON, out.freeze());
            }
        };
    let mut replies = StreamMap::new();
    let mut expects_reply = false;
    for (index, item) in items.into_iter().enumerate() {
        expects_reply |= !item.reply.is_notification();
        replies.insert(index, begin(&context, item, &pace, &id).await);
    }
    if framing == Framing::Lines {
        let mut response = Response::new(Body::from_stream(
            replies.map(|(_, bytes)| Ok::<_, std::convert::Infallible>(bytes)),
        ));
        response.extensions_mut().insert(Streamed);
        let headers = response.headers_mut();
        let content_type = HeaderValue::from_static(framing.content_type());
        headers.insert(header::CONTENT_TYPE, content_type);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        return response;
    }
    // Each of these streams gives one whole reply; they are put together as they come.
    let (before, between, after) = framing.around();
    let mut out = BytesMut::from(before);
    let mut count = 0;
    while let Some((_, bytes)) = replies.next().await {
        if bytes.is_empty() {
            continue;
        }
        if count > 0 {
            out.extend_from_slice(between.as_bytes());
        }
        out.extend_from_slice(&bytes);
        count += 1;
    }
    if !expects_reply {
        return StatusCode::NO_CONTENT.into_response();
    }
    out.extend_from_slice(after.as_bytes());
    document(framing.content_type(), out.freeze())
}

/// Begins one call: its reply, or what it streams.
async fn begin(context: &Context, item: Item, pace: &Pace, id: &RequestId) -> Replies {
    let Item { reply, work } = item;
    let method = match work {
        Ok(method) => method,
        Err(fault) => {
            context
                .gateway
                .recorder("", Route::Rpc, id)
                .refused(fault.failure());
            return once(|out| reply.fault(&fault, out));
        }
    };
    match method {
        Method::Chat(call) | Method::Complete(call) => generate(context, call, pace.clone()).await,
        Method::Models => {
            let cards = context.gateway.models();
            let list: Vec<_> = cards.iter().map(as_model).collect();
            once(|out| reply.result(out, |out| models::write_list(&list, out)))
        }
        Method::Tokenize(asked) => {
            let recorder = context.gateway.recorder(&asked.model, Route::Rpc, id);
            let mut out = BytesMut::new();
            let result = write_tokens(&context.gateway, &asked, &mut out).await;
            result_or_failure(&reply, &recorder, result.map(|()| out))
        }
        Method::Detokenize(asked) => {
            let recorder = context.gateway.recorder(&asked.model, Route::Rpc, id);
            let pieces = context.gateway.pieces(&asked.model, &asked.tokens).await;
            let written = pieces.map(|pieces| {
                let mut out = BytesMut::new();
                tokenize::write_content(&pieces, &mut out);
                out
            });
            result_or_failure(&reply, &recorder, written)
        }
        Method::Embeddings(asked) => {
            let context = context.clone();
            Later::boxed(async move {
                let result = vectors::embeddings(&context, asked, Route::Rpc).await;
                whole(&reply, result)
            })
        }
        Method::Rerank(asked) => {
            let context = context.clone();
            Later::boxed(async move {
                let result = vectors::rerank(&context, asked, Route::Rpc).await;
                whole(&reply, result)
            })
        }
        Method::Cancel(id) => {
            let count = context.gateway.cancel(&id);
            once(|out| reply.result(out, |out| jsonrpc::write_cancelled(count, out)))
        }
        Method::Ping => once(|out| reply.result(out, jsonrpc::write_pong)),
    }
}

async fn generate(context: &Context, call: Call, pace: Pace) -> Replies {
    let Call { request, answer } = call;
    let model = context.gateway.served_name(&request.model);
    match context.gateway.generate(request, Route::Rpc).await {
        Ok(stream) => {
            let encoder = answer.encoder(&model, stream.is_deterministic());
            Box::pin(TokenBody::new(
                stream,
                encoder,
                answer,
                pace,
                context.keep_alive,
            ))
        }
        Err(failure) => once(|out| {
            answer.refuse(&failure, out);
        }),
    }
}

fn result_or_failure(
    reply: &Reply,
    recorder: &RequestRecorder,
    result: Result<BytesMut, Failure>,
) -> Replies {
    match &result {
        Ok(_) => recorder.answered(),
        Err(failure) => recorder.refused(failure),
    }
    Box::pin(tokio_stream::once(whole(reply, result)))
}

/// A whole reply.
fn whole(reply: &Reply, result: Result<BytesMut, Failure>) -> Bytes {
    let mut out = BytesMut::new();
    match result {
        Ok(bytes) => reply.result(&mut out, |out| out.extend_from_slice(&bytes)),
        Err(failure) => reply.failure(&failure, &mut out),
    }
    out.freeze()
}

/// A reply that takes its time; meanwhile the other calls of the body go on.
struct Later(Option<BoxFuture<'static, Bytes>>);

impl Later {
    fn boxed(reply: impl Future<Output = Bytes> + Send + 'static) -> Replies {
        Box::pin(Self(Some(Box::pin(reply))))
    }
}

impl Stream for Later {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Bytes>> {
        let Some(reply) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let bytes = ready!(reply.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(Some(bytes))
    }
}

fn once(write: impl FnOnce(&mut BytesMut)) -> Replies {
    let mut out = BytesMut::new();
    write(&mut out);
    Box::pin(tokio_stream::once(out.freeze()))
}
