//! When encoded text goes out: at once to a reader who keeps up, gathered for one who does not.
//!
//! Three things speak for waiting a moment:
//!
//! * **The reader is behind.** Text that had to wait for room is followed by more; frames of a few bytes
//!   would only make it later.
//! * **The transport pays by the packet.** Over QUIC each token by itself is a datagram and half an
//!   acknowledgement, so tokens that come within one flush interval share one.
//! * **HTTP/2 peers count small frames.** A client made with the h2 crate (0.4.16 and later) charges each
//!   DATA frame that waits unread with what it lacks to 256 bytes, and closes the whole connection when
//!   that exceeds half its connection window, or 25,600 bytes. A reader who pauses must not lose its other
//!   streams for that, so [`SmallFrames`] keeps the same account from our side.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::http::Extensions;
use tokio::time::Instant;

/// Below this a DATA frame counts as small (h2's `DEFAULT_DATA_FRAME_OVERHEAD_THRESHOLD`).
const SMALL: usize = 256;

/// From here on nothing is waited for: gathering more saves nothing.
const ENOUGH: usize = 4 * 1024;

/// Text that waited this long before it was asked for tells of a reader who is behind.
const BEHIND: Duration = Duration::from_millis(20);

/// How long a reader who is behind waits for a small frame to grow.
const GATHER: Duration = Duration::from_millis(20);

/// How long small frames are held back when no more of them may be sent: a reader who is there but
/// whose window is large confirms what it has read only now and then.
const HOLD: Duration = Duration::from_secs(1);

/// How the connection of a request wants its text.
#[derive(Clone, Default)]
pub(super) struct Pace {
    /// Text that comes within this time of the last frame shares the next one. Zero: none waits.
    pub(super) flush_interval: Duration,
    /// HTTP/2 only.
    pub(super) small_frames: Option<Arc<SmallFrames>>,
}

impl Pace {
    /// What the connection of a request noted among its extensions; no waiting if it did not.
    pub(super) fn of(extensions: &Extensions) -> Self {
        extensions.get().cloned().unwrap_or_default()
    }
}

/// When one stream's text goes out.
pub(super) struct Pacer {
    pace: Pace,
    sent_at: Option<Instant>,
    held_since: Option<Instant>,
    is_behind: bool,
}

impl Pacer {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            sent_at: None,
            held_since: None,
            is_behind: false,
        }
    }

    /// Until when `len` bytes of encoded text should wait for more; `None` if they should go. `waited` is
    /// how old their first token was when it was asked for.
    pub(super) fn hold(&mut self, len: usize, waited: Duration, now: Instant) -> Option<Instant> {
        let since = *self.held_since.get_or_insert_with(|| {
            self.is_behind = waited >= BEHIND;
            now
        });
        if len >= ENOUGH {
            return None;
        }
        let mut until = now;
        if let Some(sent) = self.sent_at {
            until = until.max(sent + self.pace.flush_interval);
        }
        if len < SMALL {
            if self.is_behind {
                until = until.max(since + GATHER);
            }
            if self
                .pace
                .small_frames
                .as_ref()
                .is_some_and(|it| it.is_spent())
            {
                until = until.max(since + HOLD);
            }
        }
        (until > now).then_some(until)
    }

    /// A frame of `len` bytes goes out.
    pub(super) fn sent(&mut self, len: usize, now: Instant) {
        self.sent_at = Some(now);
        self.held_since = None;
        if let Some(small_frames) = &self.pace.small_frames {
            small_frames.sent(len);
        }
    }
}

/// The account that the peer of one HTTP/2 connection keeps of small frames, as far as it can be known
/// from this side: what was sent, and what its window updates say was read.
pub(super) struct SmallFrames {
    /// The connection's window at first: what the peer's bound follows from.
    window: AtomicU64,
    charged: AtomicU64,
    unread: AtomicU64,
    /// Frames of text that went out.
    frames: AtomicU64,
    /// Whether anything was asked for. Until then an update enlarges the window instead of confirming.
    has_begun: AtomicBool,
}

/// Every connection's window at first, unless it is enlarged (RFC 9113, section 6.9.2).
const INITIAL_WINDOW: u64 = 65_535;

impl SmallFrames {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            window: AtomicU64::new(INITIAL_WINDOW),
            charged: AtomicU64::new(0),
            unread: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            has_begun: AtomicBool::new(false),
        })
    }

    fn sent(&self, len: usize) {
        const SMALL: u64 = self::SMALL as u64;
        self.has_begun.store(true, Relaxed);
        let len = len as u64;
        self.frames.fetch_add(1, Relaxed);
        self.unread.fetch_add(len, Relaxed);
        let _ = self.charged.fetch_update(Relaxed, Relaxed, |charged| {
            // A large frame makes up for small ones, as h2 has it.
            Some((charged + SMALL.saturating_sub(len)).saturating_sub(len.saturating_sub(SMALL)))
        });
    }

    /// Bytes of an answer that is no stream: the peer confirms them with the others. Its frames are large,
    /// but for the last.
    pub(super) fn sent_of_document(&self, len: usize) {
        self.unread.fetch_add(len as u64, Relaxed);
    }

    /// A request has begun: from now on window updates may confirm what was sent.
    pub(super) fn begin(&self) {
        self.has_begun.store(true, Relaxed);
    }

    /// The peer gave the connection so many bytes more.
    pub(super) fn window_grew(&self, bytes: u32) {
        let bytes = u64::from(bytes);
        if !self.has_begun.load(Relaxed) {
            self.window.fetch_add(bytes, Relaxed);
            return;
        }
        let unread = self.unread.load(Relaxed);
        let read = bytes.min(unread);
        self.unread.fetch_sub(read, Relaxed);
        let _ = self.charged.fetch_update(Relaxed, Relaxed, |charged| {
            // Which frames were read is not known: take them for average ones.
            let share = charged.saturating_mul(read) / unread.max(1);
            Some(charged.saturating_sub(share))
        });
    }

    /// How many frames of text have gone out.
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Relaxed)
    }

    /// Whether one more small frame could be one too many. Three quarters of the peer's bound: what is on
    /// its way is not read yet, and window updates are late.
    fn is_spent(&self) -> bool {
        let bound = (self.window.load(Relaxed) / 2).max(25_600);
        self.charged.load(Relaxed) > bound / 4 * 3
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The peer's own account, as h2 0.4.20 keeps it, never runs out, whatever the sizes of the
        /// pieces of text and whenever it reads.
        #[test]
        fn a_peer_that_counts_small_frames_is_never_driven_too_far(
            enlarged in prop_oneof![Just(0_u32), 1..2_000_000_u32],
            steps in prop::collection::vec((1..400_usize, prop::bool::weighted(0.02)), 1..3000),
        ) {
            let account = SmallFrames::new();
            if enlarged > 0 {
                account.window_grew(enlarged);
            }
            let window = 65_535 + u64::from(enlarged);
            let most = (window / 2).max(25_600);
            let (mut left, mut unread, mut unread_bytes) = (most, Vec::new(), 0_u64);
            let mut gathered = 0;
            for (len, reads) in steps {
                gathered += len;
                if gathered < SMALL && account.is_spent() {
                    continue;
                }
                if unread_bytes + gathered as u64 > window {
                    gathered -= len;
                } else {
                    let size = gathered as u64;
                    account.sent(gathered);
                    prop_assert!(left >= 256_u64.saturating_sub(size), "the connection is lost");
                    left = (left + size.saturating_sub(256)).min(most) - 256_u64.saturating_sub(size);
                    unread.push(size);
                    unread_bytes += size;
                    gathered = 0;
                }
                if reads {
                    // It reads everything, and says so once that is half of the window.
                    left = (left + unread.drain(..).map(|size| 256_u64.saturating_sub(size)).sum::<u64>()).min(most);
                    if unread_bytes >= window / 2 {
                        account.window_grew(u32::try_from(unread_bytes).unwrap());
                        unread_bytes = 0;
                    }
                }
            }
        }
    }

    fn at(millis: u64) -> Instant {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        *START.get_or_init(Instant::now) + Duration::from_millis(millis)
    }

    #[test]
    fn a_reader_who_keeps_up_gets_each_token_at_once() {
        let mut pacer = Pacer::new(Pace::default());
        for token in 0..100 {
            assert_eq!(pacer.hold(5, Duration::ZERO, at(token)), None);
            pacer.sent(5, at(token));
        }
    }

    #[test]
    fn a_reader_who_is_behind_gets_no_small_frame_for_a_moment() {
        let mut pacer = Pacer::new(Pace::default());
        let late = Duration::from_millis(50);
        assert_eq!(pacer.hold(100, late, at(0)), Some(at(20)));
        assert_eq!(pacer.hold(255, Duration::ZERO, at(10)), Some(at(20)));
        assert_eq!(pacer.hold(256, Duration::ZERO, at(10)), None, "enough");
        pacer.sent(256, at(10));
        assert_eq!(pacer.hold(100, late, at(30)), Some(at(50)));
        assert_eq!(
            pacer.hold(100, Duration::ZERO, at(50)),
            None,
            "no longer than that"
        );
        pacer.sent(100, at(50));
        assert_eq!(
            pacer.hold(5, Duration::ZERO, at(51)),
            None,
            "it has caught up"
        );
    }

    #[test]
    fn tokens_within_a_flush_interval_share_a_frame_and_wait_no_longer() {
        let mut pacer = Pacer::new(Pace {
            flush_interval: Duration::from_millis(20),
            small_frames: None,
        });
        assert_eq!(
            pacer.hold(16, Duration::ZERO, at(0)),
            None,
            "the first goes at once"
        );
        pacer.sent(16, at(0));
        assert_eq!(pacer.hold(16, Duration::ZERO, at(10)), Some(at(20)));
        assert_eq!(pacer.hold(ENOUGH, Duration::ZERO, at(10)), None);
        assert_eq!(pacer.hold(32, Duration::ZERO, at(20)), None);
        pacer.sent(32, at(20));
        assert_eq!(
            pacer.hold(16, Duration::ZERO, at(100)),
            None,
            "slow tokens never wait"
        );
    }

    #[test]
    fn what_confirms_a_document_makes_no_room_for_small_frames() {
        let account = SmallFrames::new();
        account.begin();
        account.sent_of_document(10 << 20);
        for _ in 0..160 {
            account.window_grew(65_536);
        }
        let spent = (0..1000).position(|_| {
            account.sent(16);
            account.is_spent()
        });
        assert!(spent.is_some_and(|frames| frames < 136), "{spent:?}");
    }

    #[test]
    fn small_frames_are_held_back_until_the_peer_reads() {
        let account = SmallFrames::new();
        let mut pacer = Pacer::new(Pace {
            flush_interval: Duration::ZERO,
            small_frames: Some(account.clone()),
        });
        let mut sent = 0;
        while pacer.hold(16, Duration::ZERO, at(0)).is_none() {
            pacer.sent(16, at(0));
            sent += 1;
        }
        assert!((90..136).contains(&sent), "h2 bears 136 of them: {sent}");
        assert_eq!(pacer.hold(255, Duration::ZERO, at(0)), Some(at(1000)));
        assert_eq!(pacer.hold(256, Duration::ZERO, at(0)), None);
        account.window_grew(32_768);
        assert_eq!(pacer.hold(16, Duration::ZERO, at(0)), None, "all was read");
    }
}
