//! Waiting for the end of a connection's handshake.
//!
//! A server may read streams before it has heard the client's Finished. What came that early may be a
//! replay; what waits here until the handshake has ended is none, because a replayed flight never
//! finishes one.

use tokio::sync::watch;

/// The handshake of one connection, as its requests see it.
#[derive(Clone)]
pub(crate) struct Handshake(watch::Receiver<bool>);

impl Handshake {
    /// A handshake under way, and what says that it has ended.
    pub(super) fn begin() -> (HandshakeEnd, Self) {
        let (end, handshake) = watch::channel(false);
        (HandshakeEnd(end), Self(handshake))
    }

    /// Waits until the handshake has ended well; false if it never will.
    pub(crate) async fn finished(&mut self) -> bool {
        self.0.wait_for(|&ended| ended).await.is_ok()
    }
}

/// Dropped unused, it says that the handshake failed.
pub(super) struct HandshakeEnd(watch::Sender<bool>);

impl HandshakeEnd {
    pub(super) fn finished(&self) {
        self.0.send_replace(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn poll(handshake: &mut Handshake) -> Poll<bool> {
        pin!(handshake.finished()).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn who_waits_is_told_of_a_good_end_and_of_a_bad_one() {
        let (end, mut handshake) = Handshake::begin();
        let mut other = handshake.clone();
        assert!(poll(&mut handshake).is_pending());
        end.finished();
        assert_eq!(poll(&mut handshake), Poll::Ready(true));
        drop(end);
        assert_eq!(poll(&mut other), Poll::Ready(true), "for ever");
        let (end, mut handshake) = Handshake::begin();
        drop(end);
        assert_eq!(poll(&mut handshake), Poll::Ready(false));
    }
}
