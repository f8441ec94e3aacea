//! An OTLP receiver: gRPC and HTTP on one port, in whatever mood a test wants it.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
pub(crate) use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use super::within;

/// What becomes of what comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It is taken.
    Takes,
    /// It is taken when the test lets it: [`Collector::take_one`].
    Slow,
    /// It is never answered.
    Hangs,
    /// It is refused for now.
    Refuses,
    /// Its connection is closed.
    Resets,
}

/// A receiver; gone when this is dropped.
pub(crate) struct Collector {
    address: SocketAddr,
    store: Arc<Store>,
    serving: JoinHandle<()>,
}

struct Store {
    mood: Mutex<Mood>,
    lets: Semaphore,
    batches: Mutex<Vec<ExportTraceServiceRequest>>,
    came: Notify,
}

impl Collector {
    pub(crate) async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = Arc::new(Store {
            mood: Mutex::new(mood),
            lets: Semaphore::new(0),
            batches: Mutex::default(),
            came: Notify::new(),
        });
        let serving = tokio::spawn(serve(listener, store.clone()));
        Self {
            address,
            store,
            serving,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.store.mood.lock().unwrap() = mood;
    }

    /// Lets a slow one take one more batch.
    pub(crate) fn take_one(&self) {
        self.store.lets.add_permits(1);
    }

    /// The spans that were taken, when there is one of this name for each of so many traces.
    pub(crate) async fn spans(&self, name: &str, count: usize) -> Vec<Span> {
        let all = async {
            loop {
                let came = self.store.came.notified();
                let spans = self.taken();
                if spans.iter().filter(|span| span.name == name).count() >= count {
                    return spans;
                }
                came.await;
            }
        };
        within(all).await
    }

    /// The spans that were taken so far.
    pub(crate) fn taken(&self) -> Vec<Span> {
        let batches = self.store.batches.lock().unwrap();
        let resources = batches.iter().flat_map(|batch| &batch.resource_spans);
        resources
            .flat_map(|resource| &resource.scope_spans)
            .flat_map(|scope| scope.spans.clone())
            .collect()
    }

    /// Spans of each batch.
    pub(crate) fn batches(&self) -> Vec<ExportTraceServiceRequest> {
        self.store.batches.lock().unwrap().clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// What a span or an event says.
pub(crate) fn said(attributes: &[KeyValue]) -> HashMap<&str, String> {
    let pairs = attributes
        .iter()
        .map(|pair| (&*pair.key, text(pair.value.as_ref())));
    pairs.collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(Value::BoolValue(yes)) => yes.to_string(),
        Some(Value::ArrayValue(list)) => {
            let texts: Vec<_> = list.values.iter().map(|value| text(Some(value))).collect();
            texts.join(",")
        }
        other => format!("{other:?}"),
    }
}

async fn serve(listener: TcpListener, store: Arc<Store>) {
    let grpc = TraceServiceServer::from_arc(store.clone());
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        if *store.mood.lock().unwrap() == Mood::Resets {
            continue;
        }
        let (grpc, store) = (grpc.clone(), store.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let (grpc, store) = (grpc.clone(), store.clone());
            async move {
                if *store.mood.lock().unwrap() == Mood::Resets {
                    return Err(io::Error::other("closed"));
                }
                let kind = request.headers().get("content-type");
                if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
                    let answer = TowerToHyperService::new(grpc).call(request).await;
                    let Ok(answer) = answer;
                    return Ok(answer.map(Body::new));
                }
                Ok(store.over_http(request).await)
            }
        });
        connections.spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            let io = TokioIo::new(stream);
            // How a connection ends is the client's business.
            let _ = server.serve_connection(io, service).await;
        });
    }
}

impl Store {
    /// Whether it is taken.
    async fn takes(&self, batch: ExportTraceServiceRequest) -> bool {
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Takes => {}
            Mood::Slow => self.lets.acquire().await.unwrap().forget(),
            Mood::Hangs => std::future::pending().await,
            Mood::Refuses | Mood::Resets => return false,
        }
        self.batches.lock().unwrap().push(batch);
        self.came.notify_one();
        true
    }

    async fn over_http(&self, request: Request<Incoming>) -> Response<Body> {
        assert_eq!(request.uri().path(), "/v1/traces");
        assert_eq!(request.headers()["content-type"], "application/x-protobuf");
        let body = axum::body::to_bytes(Body::new(request.into_body()), 4 << 20).await;
        let status = if self
            .takes(ExportTraceServiceRequest::decode(body.unwrap()).unwrap())
            .await
        {
            200
        } else {
            503
        };
        let answer = Response::builder().status(status).body(Body::empty());
        answer.unwrap()
    }
}

#[tonic::async_trait]
impl TraceService for Store {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        if self.takes(request.into_inner()).await {
            Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
        } else {
            Err(tonic::Status::unavailable("not now"))
        }
    }
}
