//! The page, from the binary.
//!
//! Each file has an `ETag` of its contents, so a browser asks each time and downloads once. Nothing is
//! loaded from elsewhere, and the policy says so to the browser.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;

/// What the page may do: load its own files, talk to this server, nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self' data:; connect-src 'self'; font-src 'self'; base-uri 'none'; \
    form-action 'none'; frame-ancestors 'none'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

struct Asset {
    path: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($path:literal, $file:literal, $content_type:expr) => {
        Asset {
            path: $path,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../../static/", $file)),
        }
    };
}

const ASSETS: &[Asset] = &[
    asset!("/", "index.html", "text/html; charset=utf-8"),
    asset!("/app.js", "app.js", JAVASCRIPT),
    asset!("/flow.js", "flow.js", JAVASCRIPT),
    asset!("/markdown.js", "markdown.js", JAVASCRIPT),
    asset!("/stream.js", "stream.js", JAVASCRIPT),
    asset!("/theme.js", "theme.js", JAVASCRIPT),
    asset!("/style.css", "style.css", "text/css; charset=utf-8"),
    asset!("/icon.svg", "icon.svg", "image/svg+xml"),
];

/// The path itself, if it is one of the page's.
pub(super) fn known(path: &str) -> Option<&'static str> {
    let asset = ASSETS.iter().find(|asset| asset.path == path);
    asset.map(|asset| asset.path)
}

/// Whether a path is one of the page's.
pub(super) fn is_asset(path: &str) -> bool {
    known(path).is_some()
}

/// The page's paths.
pub(super) fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        let mut hasher = DefaultHasher::new();
        asset.bytes.hash(&mut hasher);
        let tag = format!("\"{:016x}\"", hasher.finish());
        router.route(
            asset.path,
            get(async move |headers: HeaderMap| serve(asset, &tag, &headers)),
        )
    })
}

fn serve(asset: &Asset, tag: &str, headers: &HeaderMap) -> Response {
    let is_known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|known| known.to_str().ok())
        .is_some_and(|known| {
            known == "*"
                || known
                    .split(',')
                    .any(|one| one.trim().trim_start_matches("W/") == tag)
        });
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Bytes::from_static(asset.bytes).into_response()
    };
    let headers = response.headers_mut();
    let mut set = |name, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, asset.content_type);
    set(header::ETAG, tag);
    set(header::CACHE_CONTROL, "no-cache");
    set(header::CONTENT_SECURITY_POLICY, POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    response
}
