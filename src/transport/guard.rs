//! A connection's bytes, with two clocks on them that hyper does not keep.
//!
//! * From the first byte of a request to the end of its headers: a peer that trickles headers.
//! * A write that makes no progress: a peer that stopped reading for good.
//!
//! And beside them, the requests under way: HTTP/2 needs to know when there are none, and when one of
//! them finds no room though the connection as a whole does. While all of them are token streams, the
//! kernel is given no more than their share of `stream.send_budget`, acknowledged bytes not counted.

mod held;
mod requests;
mod room;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

pub(super) use self::requests::{AHEAD, InFlight, Requests};
use self::room::Room;
use super::outq::SendQueue;
use super::peer_frames::PeerFrames;

/// So many bytes of a connection are counted together.
const MANY: u64 = 16 * 1024;

/// A connection whose first bytes were read already.
pub(super) struct Guarded<S> {
    stream: S,
    head: Bytes,
    requests: Arc<Requests>,
    /// `None` where one connection carries many requests at once (HTTP/2 has its own bounds).
    header_timeout: Option<Duration>,
    headers_due: Option<Pin<Box<Sleep>>>,
    /// How many requests had begun when that clock was started.
    headers_of: u64,
    write_timeout: Duration,
    write_due: Option<Pin<Box<Sleep>>>,
    is_writing: bool,
    room: Room,
    /// What an HTTP/2 peer sends.
    frames: Option<PeerFrames>,
    carried: Carried,
}

/// Bytes that were not counted yet: that is done for many together, and for all when no request is under way,
/// since the counters are everybody's.
#[derive(Default)]
struct Carried {
    bytes_in: u64,
    bytes_out: u64,
}

impl Carried {
    fn are_many(&self) -> bool {
        self.bytes_in + self.bytes_out >= MANY
    }

    fn tell(&mut self, requests: &Requests) {
        let Self {
            bytes_in,
            bytes_out,
        } = std::mem::take(self);
        if let Some(traffic) = &requests.traffic
            && bytes_in + bytes_out > 0
        {
            traffic.carried(bytes_in, bytes_out);
        }
    }
}

impl<S> Drop for Guarded<S> {
    fn drop(&mut self) {
        self.carried.tell(&self.requests);
    }
}

impl<S> Guarded<S> {
    pub(super) fn new(
        stream: S,
        head: Bytes,
        requests: Arc<Requests>,
        header_timeout: Option<Duration>,
        write_timeout: Duration,
        kernel_share: usize,
    ) -> Self {
        Self {
            room: Room::new(kernel_share),
            stream,
            headers_due: header_timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout))),
            headers_of: 0,
            head,
            requests,
            header_timeout,
            write_timeout,
            write_due: None,
            is_writing: false,
            frames: None,
            carried: Carried::default(),
        }
    }

    /// Looks at every frame of an HTTP/2 peer.
    pub(super) fn with_frames(mut self, frames: PeerFrames) -> Self {
        self.frames = Some(frames);
        self
    }

    /// Looks at bytes that came.
    fn see(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(frames) = &mut self.frames
            && !frames.read(bytes)
        {
            let reason = "too many frames that ask for nothing";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason));
        }
        Ok(())
    }

    /// Bytes came. If no request is under way they begin the next one's headers.
    fn bytes_came(&mut self) {
        self.note_first_byte();
        self.forget_headers_that_came();
        if let Some(timeout) = self.header_timeout
            && self.headers_due.is_none()
            && !self.requests.any()
        {
            self.headers_due = Some(Box::pin(tokio::time::sleep(timeout)));
        }
    }

    /// Where one request follows the other, what comes between them is the next one's.
    fn note_first_byte(&self) {
        if self.header_timeout.is_some() {
            self.requests.bytes_came();
        }
    }

    /// A request has begun since the clock was started: its headers were in time. It need not be under way
    /// any more; with `half_close = "serve"` nothing is read meanwhile.
    fn forget_headers_that_came(&mut self) {
        let begun = self.requests.begun.load(Relaxed);
        if std::mem::replace(&mut self.headers_of, begun) != begun {
            self.headers_due = None;
        }
    }

    /// Nothing came: fails if headers have been on their way for too long.
    fn headers_in_time(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.forget_headers_that_came();
        if self.requests.any() {
            self.headers_due = None;
        } else if let Some(due) = &mut self.headers_due
            && due.as_mut().poll(cx).is_ready()
        {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "headers took too long",
            ));
        }
        Ok(())
    }

    /// Starts, checks or stops the clock of a write, by whether it could go on.
    fn write_in_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.is_writing = false;
            return result;
        }
        let due = self
            .write_due
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.write_timeout)));
        if !self.is_writing {
            self.is_writing = true;
            due.as_mut().reset(Instant::now() + self.write_timeout);
        }
        if due.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer takes no data",
            )));
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.has_remaining() {
            let count = self.head.len().min(buf.remaining());
            let head = self.head.split_to(count);
            self.carried.bytes_in += count as u64;
            self.note_first_byte();
            self.see(&head)?;
            buf.put_slice(&head);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                let came = buf.filled().len() - before;
                if came > 0 {
                    self.carried.bytes_in += came as u64;
                    self.see(&buf.filled()[before..])?;
                    self.bytes_came();
                }
                Poll::Ready(result)
            }
            Poll::Pending => match self.headers_in_time(cx) {
                Ok(()) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            },
        }
    }
}

impl<S: SendQueue> Guarded<S> {
    /// Writes if the kernel may have more.
    fn write_within(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>>
    where
        S: Unpin,
    {
        let streams = self.requests.streams_alone();
        let result = if self.room.poll(cx, streams, &self.stream).is_ready() {
            write(Pin::new(&mut self.stream), cx)
        } else {
            Poll::Pending
        };
        if let Poll::Ready(Ok(count)) = &result {
            self.room.under_way += count;
            self.carried.bytes_out += *count as u64;
            if let Some(frames) = &mut self.frames {
                frames.wrote(*count);
            }
        }
        self.write_in_time(cx, result)
    }
}

impl<S: AsyncWrite + SendQueue + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write_within(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write_within(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS takes small writes into its own buffer: then it is only here that nothing goes on.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.requests.flushed();
            let Self {
                carried, requests, ..
            } = &mut *self;
            if carried.are_many() || !requests.any() {
                carried.tell(requests);
            }
        }
        self.write_in_time(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.write_in_time(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::{Wake, Waker};

    use super::super::outq::Queue;
    use super::*;
    use crate::generation::clock;
    use crate::telemetry::{Metrics, Transport};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, Sink};

    const SHARE: usize = 1000;

    impl SendQueue for DuplexStream {
        fn queue(&self) -> Queue {
            Queue::default()
        }
    }

    /// A connection that sends everything and is told of acknowledgements by the test.
    struct Far {
        sink: Sink,
        queue: Arc<Mutex<Queue>>,
    }

    impl SendQueue for Far {
        fn queue(&self) -> Queue {
            *self.queue.lock().unwrap()
        }
    }

    impl AsyncWrite for Far {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.queue.lock().unwrap().unacknowledged += buf.len();
            Pin::new(&mut self.sink).poll_write(cx, buf)
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// How many bytes of 100 at a time go out before nothing more does for a second.
    async fn pulled(io: &mut Guarded<Far>) -> usize {
        let mut written = 0;
        while let Ok(Ok(count)) =
            tokio::time::timeout(Duration::from_secs(1), io.write(&[0; 100])).await
        {
            written += count;
            if written > 100 * SHARE {
                break;
            }
        }
        written
    }

    /// Takes every write and never gets it out, as TLS does above a socket that is full.
    struct Stuck;

    impl SendQueue for Stuck {
        fn queue(&self) -> Queue {
            Queue::default()
        }
    }

    impl AsyncWrite for Stuck {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_or_an_end_that_makes_no_progress_fails_like_a_write() {
        for ends in [false, true] {
            let mut io = guarded(Stuck, &Requests::new(Transport::Http1, None));
            io.write_all(&[0; 64]).await.unwrap();
            let start = Instant::now();
            let result = if ends {
                io.shutdown().await
            } else {
                io.flush().await
            };
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(start.elapsed().as_secs(), 60);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_of_headers_ends_with_them_though_nothing_is_read_meanwhile() {
        let (mut peer, ours) = tokio::io::duplex(64);
        let requests = Requests::new(Transport::Http1, None);
        let mut io = guarded(ours, &requests);
        io.read_exact(&mut [0; 3]).await.unwrap();
        drop(requests.begin());
        // Longer than headers may take.
        tokio::time::sleep(Duration::from_secs(8)).await;
        let next = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            peer.write_all(b"G").await.unwrap();
            peer
        });
        let mut byte = [0; 1];
        io.read_exact(&mut byte).await.expect("it may idle");
        drop(next.await);
    }

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_told_to_wait_is_woken_even_if_it_writes_before() {
        let queue = Arc::new(Mutex::new(Queue {
            unacknowledged: 2 * SHARE,
            unsent: 0,
        }));
        let far = Far {
            sink: tokio::io::sink(),
            queue: queue.clone(),
        };
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut room = Room::new(SHARE);
        room.under_way = 2 * SHARE;
        assert!(room.poll(&mut cx, 1, &far).is_pending());
        *queue.lock().unwrap() = Queue::default();
        assert!(room.poll(&mut cx, 1, &far).is_ready());
        assert_eq!(woken.0.load(SeqCst), 1);
        assert!(room.poll(&mut cx, 1, &far).is_ready());
        assert_eq!(woken.0.load(SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_keep_to_their_share_of_what_is_not_acknowledged() {
        let requests = Requests::new(Transport::Http1, None);
        let queue = Arc::<Mutex<Queue>>::default();
        let far = Far {
            sink: tokio::io::sink(),
            queue: queue.clone(),
        };
        let mut io = guarded(far, &requests);
        let mut one = requests.begin();
        one.streams(false);
        let first = pulled(&mut io).await;
        assert!((SHARE..=SHARE + 100).contains(&first), "{first}");
        queue.lock().unwrap().unacknowledged -= 500;
        let then = pulled(&mut io).await;
        assert!((400..=600).contains(&then), "{then}");
        // A second stream brings its own share, one that ends takes its share away.
        let mut two = requests.begin();
        two.streams(false);
        let more = pulled(&mut io).await;
        assert!((SHARE - 100..=SHARE + 100).contains(&more), "{more}");
        drop(two);
        assert_eq!(pulled(&mut io).await, 0);
        // An answer that is no stream knows no bound.
        let _document = requests.begin();
        assert!(pulled(&mut io).await > 100 * SHARE);
    }

    fn guarded<S>(stream: S, requests: &Arc<Requests>) -> Guarded<S> {
        Guarded::new(
            stream,
            Bytes::from_static(b"GET"),
            requests.clone(),
            Some(Duration::from_secs(5)),
            Duration::from_mins(1),
            SHARE,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_counted_many_at_a_time_and_all_when_nothing_is_under_way() {
        let metrics = Metrics::new([]).unwrap();
        let counted = |direction: &str| {
            let text = metrics.render(&crate::telemetry::Scrape::default());
            let series =
                format!("sluicegate_bytes_total{{transport=\"h1\",direction=\"{direction}\"}} ");
            let found = text.lines().find_map(|line| line.strip_prefix(&*series));
            found.unwrap().parse::<u64>().unwrap()
        };
        let traffic = metrics.transports.traffic(Transport::Http1).clone();
        let requests = Requests::new(Transport::Http1, Some(traffic));
        let (mut peer, ours) = tokio::io::duplex(1 << 20);
        let mut io = guarded(ours, &requests);
        peer.write_all(b" /").await.unwrap();
        io.read_exact(&mut [0; 5]).await.unwrap();
        let request = requests.begin();
        io.write_all(&[0; 100]).await.unwrap();
        io.flush().await.unwrap();
        assert_eq!((counted("in"), counted("out")), (0, 0), "a few wait");
        io.write_all(&[0; 16 * 1024]).await.unwrap();
        io.flush().await.unwrap();
        assert_eq!((counted("in"), counted("out")), (5, 16 * 1024 + 100));
        io.write_all(&[0; 7]).await.unwrap();
        io.flush().await.unwrap();
        drop(request);
        io.flush().await.unwrap();
        assert_eq!(counted("out"), 16 * 1024 + 107, "the end of an answer");
        io.write_all(&[0; 3]).await.unwrap();
        drop(io);
        assert_eq!(counted("out"), 16 * 1024 + 110, "and of the connection");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_begins_with_its_first_byte() {
        let second = Duration::from_secs(1);
        let (mut peer, ours) = tokio::io::duplex(64);
        let requests = Requests::new(Transport::Http1, None);
        let mut io = guarded(ours, &requests);
        let now = clock::task_micros;
        let began = now();
        io.read_exact(&mut [0; 3]).await.unwrap();
        tokio::time::advance(second).await;
        let first = requests.begin();
        assert_eq!(first.arrived().at, began, "what came before it was served");
        // Its body.
        peer.write_all(b"b").await.unwrap();
        io.read_exact(&mut [0; 1]).await.unwrap();
        drop(first);
        tokio::time::advance(second).await;
        peer.write_all(b"G").await.unwrap();
        let began = now();
        io.read_exact(&mut [0; 1]).await.unwrap();
        tokio::time::advance(second).await;
        let second = requests.begin();
        assert_eq!(second.arrived().at, began, "idle time is nobody's");
    }

    #[tokio::test(start_paused = true)]
    async fn headers_that_trickle_are_cut_off() {
        let (mut peer, ours) = tokio::io::duplex(64);
        let mut io = guarded(ours, &Requests::new(Transport::Http1, None));
        let trickle = tokio::spawn(async move {
            while peer.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let start = Instant::now();
        let error = loop {
            let mut byte = [0; 1];
            if let Err(error) = io.read_exact(&mut byte).await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() <= Duration::from_secs(6));
        trickle.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_and_a_running_request_have_no_header_clock() {
        let (mut peer, ours) = tokio::io::duplex(64);
        let requests = Requests::new(Transport::Http1, None);
        let mut io = guarded(ours, &requests);
        let mut head = [0; 3];
        io.read_exact(&mut head).await.unwrap();
        let request = requests.begin();
        let later = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_mins(1)).await;
            peer.write_all(b"G").await.unwrap();
            peer
        });
        let mut byte = [0; 1];
        io.read_exact(&mut byte)
            .await
            .expect("a body may take its time here");
        drop((request, later.await));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_fails_the_write() {
        let (_peer, ours) = tokio::io::duplex(8);
        let mut io = guarded(ours, &Requests::new(Transport::Http1, None));
        let start = Instant::now();
        let error = io.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 60);
    }
}
