//! HTTP/3: requests of a QUIC connection, answered by the same router as everybody's.
//!
//! `backend` puts quinn behind the `h3` crate, `frames` bounds what that crate gets to see, `bridge` is
//! one connection and its requests, `body` a request's body.

mod backend;
mod body;
mod bridge;
mod frames;

pub(super) use self::bridge::serve;
