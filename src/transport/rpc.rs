//! JSON-RPC over HTTP: one body in, replies out, together or as they come.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use std::pin::Pin;
use std::task::{self, Poll, ready};
use tokio_stream::{Stream, StreamExt, StreamMap};

use super::http::{Context, document, read_counted, streamed};
use super::pace::Pace;
use super::plain::{as_model, write_tokens};
use super::resume::{self, Asked, TakenOver};
use super::tokens::TokenBody;
use super::{bind, vectors};
use crate::generation::{BoxFuture, Failure, RequestId, Scopes};
use crate::telemetry::{RequestRecorder, Route};
use crate::wire::jsonrpc::{self, Framing, Incoming, Item, Method, Reply, Resume, Target};
use crate::wire::{self, Call, Head, models, tokenize};

type Replies = Pin<Box<dyn Stream<Item = Result<Bytes, TakenOver>> + Send>>;

/// `GET /rpc/openrpc.json`.
pub(super) async fn openrpc() -> Response {
    document(wire::JSON, Bytes::from_static(jsonrpc::OPENRPC.as_bytes()))
}

/// `POST /rpc`.
pub(super) async fn handle(State(context): State<Context>, request: Request) -> Response {
    let pace = Pace::of(request.extensions());
    let sender = bind::Asker::of(request.extensions());
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
        replies.insert(index, begin(&context, item, &pace, &sender, &id).await);
    }
    if framing == Framing::Lines {
        let body = Body::from_stream(replies.map(|(_, bytes)| bytes));
        return streamed(framing.content_type(), body);
    }
    // Each of these streams gives one whole reply; they are put together as they come.
    let (before, between, after) = framing.around();
    let mut out = BytesMut::from(before);
    let mut count = 0;
    // Only what streams can be taken over, and is answered in lines.
    while let Some((_, Ok(bytes))) = replies.next().await {
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
async fn begin(
    context: &Context,
    item: Item,
    pace: &Pace,
    sender: &bind::Asker,
    id: &RequestId,
) -> Replies {
    let Item {
        reply,
        work,
        resumable,
    } = item;
    let method = match work {
        Ok(method) => method,
        Err(fault) => {
            context
                .gateway
                .recorder("", Route::Rpc, id, &sender.caller().trace)
                .refused(fault.failure());
            return once(|out| reply.fault(&fault, out));
        }
    };
    match method {
        Method::Chat(call) | Method::Complete(call) => {
            let announced = resumable.then_some(&reply);
            generate(context, call, pace.clone(), announced).await
        }
        Method::Models => {
            let cards = context.gateway.models(sender.caller());
            let list: Vec<_> = cards.iter().map(as_model).collect();
            once(|out| reply.result(out, |out| models::write_list(&list, out)))
        }
        Method::Tokenize(asked) => {
            let recorder =
                context
                    .gateway
                    .recorder(&asked.model, Route::Rpc, id, &sender.caller().trace);
            let mut out = BytesMut::new();
            let result = write_tokens(&context.gateway, sender.caller(), &asked, &mut out).await;
            result_or_failure(&reply, &recorder, result.map(|()| out))
        }
        Method::Detokenize(asked) => {
            let recorder =
                context
                    .gateway
                    .recorder(&asked.model, Route::Rpc, id, &sender.caller().trace);
            let gateway = &context.gateway;
            let pieces = gateway.detokenize(sender.caller(), &asked.model, &asked.tokens);
            let pieces = pieces.await;
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
        Method::Cancel(target) => {
            if let Err(failure) = streams_of(context, sender) {
                return once(|out| reply.failure(&failure, out));
            }
            let count = match target {
                Target::Request(id, caller) => context.gateway.cancel(&id, &caller),
                // As with a request that is over: nothing was running.
                Target::Stream(id, caller) => context
                    .streams
                    .as_ref()
                    .and_then(|streams| streams.cancel(&id, &caller).ok())
                    .map_or(0, usize::from),
            };
            once(|out| reply.result(out, |out| jsonrpc::write_cancelled(count, out)))
        }
        Method::Resume(asked) => match streams_of(context, sender) {
            Ok(()) => resume(context, &asked, pace, &reply),
            Err(failure) => once(|out| reply.failure(&failure, out)),
        },
        Method::Bind => {
            let recorder = context
                .gateway
                .recorder("", Route::Rpc, id, &sender.caller().trace);
            result_or_failure(&reply, &recorder, bind::bind(context, sender.clone()))
        }
        Method::Ping => once(|out| reply.result(out, jsonrpc::write_pong)),
    }
}

/// What a stream has left, then the reply to who asked for it.
fn resume(context: &Context, asked: &Resume, pace: &Pace, reply: &Reply) -> Replies {
    let reader = match &context.streams {
        None => Err(resume::unknown()),
        Some(streams) => {
            let pace = pace.clone();
            streams.resume_rpc(&asked.stream, &asked.caller, asked.after, pace)
        }
    };
    match reader {
        Ok(reader) => {
            let mut out = BytesMut::new();
            reply.result(&mut out, |out| jsonrpc::write_resumed(&asked.stream, out));
            Box::pin(reader.chain(tokio_stream::once(Ok(out.freeze()))))
        }
        Err(failure) => once(|out| reply.failure(&failure, out)),
    }
}

/// Whether whoever asks may have streams at all.
fn streams_of(context: &Context, sender: &bind::Asker) -> Result<(), Failure> {
    let gateway = &context.gateway;
    gateway.permit_scope(sender.caller(), Scopes::GENERATE)
}

/// Begins a stream. If it can be resumed and `announced` wants that, its first line says how.
async fn generate(context: &Context, call: Call, pace: Pace, announced: Option<&Reply>) -> Replies {
    let Call { request, answer } = call;
    let owner = request.caller.identity.clone();
    let model = context.gateway.served_name(&request.model);
    match context.gateway.generate(request, Route::Rpc).await {
        Ok(stream) => {
            let encoder = answer.encoder(&model, stream.is_deterministic());
            let patience = context.gateway.patience().clone();
            let body = TokenBody::new(stream, encoder, answer, pace, patience.keep_alive)
                .noticing(patience.queue_notice);
            let (Some(streams), Some(reply)) = (&context.streams, announced) else {
                return Box::pin(body.map(Ok));
            };
            let asked = Asked {
                owner,
                ids: false,
                is_rpc: true,
            };
            let announcement = |id: &str| {
                let mut out = BytesMut::new();
                reply.stream(id, &mut out);
                out.freeze()
            };
            match streams.keep(body, asked, announcement) {
                Ok(reader) => Box::pin(reader),
                Err(body) => Box::pin(body.map(Ok)),
            }
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
    Box::pin(tokio_stream::once(Ok(whole(reply, result))))
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
    type Item = Result<Bytes, TakenOver>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(reply) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let bytes = ready!(reply.as_mut().poll(cx));
        self.0 = None;
        Poll::Ready(Some(Ok(bytes)))
    }
}

fn once(write: impl FnOnce(&mut BytesMut)) -> Replies {
    let mut out = BytesMut::new();
    write(&mut out);
    Box::pin(tokio_stream::once(Ok(out.freeze())))
}
