//! Waiting for the end of a connection's handshake.
//!
//! A server may read streams before it has heard the client's Finished. What came that early may be a
//! replay; what waits here until the handshake has ended is none, because a replayed flight never
//! finishes one.

use std::sync::Arc;

use tokio::sync::watch;

/// The handshake of one connection, as its requests see it.
#[derive(Clone)]
pub(in crate::transport) struct Handshake(watch::Receiver<Option<Peer>>);

/// Who the other side turned out to be: what its certificate says, if it showed one.
type Peer = Option<Arc<str>>;

impl Handshake {
    /// A handshake under way, and what says that it has ended.
    pub(in crate::transport) fn begin() -> (HandshakeEnd, Self) {
        let (end, handshake) = watch::channel(None);
        (HandshakeEnd(end), Self(handshake))
    }

    /// One that has ended before there were any requests.
    pub(in crate::transport) fn ended(peer: Option<Arc<str>>) -> Self {
        Self(watch::channel(Some(peer)).1)
    }

    /// Whether it has ended well by now.
    pub(super) fn has_ended(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until it has ended well; false if it never will.
    pub(super) async fn finished(&self) -> bool {
        let mut ended = self.0.clone();
        ended.wait_for(Option::is_some).await.is_ok()
    }

    /// Who the other side is; nobody as long as the handshake goes on.
    pub(in crate::transport) fn peer(&self) -> Option<Arc<str>> {
        self.0.borrow().clone().flatten()
    }
}

/// Dropped unused, it says that the handshake failed.
pub(in crate::transport) struct HandshakeEnd(watch::Sender<Option<Peer>>);

impl HandshakeEnd {
    pub(in crate::transport) fn finished(&self, peer: Option<Arc<str>>) {
        self.0.send_replace(Some(peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll(handshake: &Handshake) -> Poll<bool> {
        pin!(handshake.finished()).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn who_waits_is_told_of_a_good_end_and_of_a_bad_one() {
        let (end, handshake) = Handshake::begin();
        let other = handshake.clone();
        assert!(poll(&handshake).is_pending());
        assert_eq!((handshake.has_ended(), handshake.peer()), (false, None));
        end.finished(Some("alice".into()));
        assert_eq!(poll(&handshake), Poll::Ready(true));
        drop(end);
        assert_eq!(poll(&other), Poll::Ready(true), "for ever");
        assert_eq!(other.peer().as_deref(), Some("alice"));
        let (end, handshake) = Handshake::begin();
        drop(end);
        assert_eq!(poll(&handshake), Poll::Ready(false));
        assert!(!handshake.has_ended());
        assert!(Handshake::ended(None).has_ended());
    }
}
