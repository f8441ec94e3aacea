//! What the kernel holds of a TCP connection: bytes written to it that the peer has not acknowledged.
//!
//! The one place of the transports where the system is asked in a way that no safe crate has.

use std::os::fd::AsFd;

use rustix::ioctl::{Getter, ioctl};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// `SIOCOUTQ` (tcp(7)): bytes sent and not acknowledged, and those not sent.
const NOT_ACKNOWLEDGED: rustix::ioctl::Opcode = 0x5411;

/// `SIOCOUTQNSD` (linux/sockios.h): bytes not sent.
const NOT_SENT: rustix::ioctl::Opcode = 0x894B;

/// A connection's send queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Queue {
    /// Bytes that the peer has not acknowledged, unsent ones included.
    pub(super) unacknowledged: usize,
    /// Those of them that were not sent.
    pub(super) unsent: usize,
}

/// A connection that knows its send queue.
pub(super) trait SendQueue {
    /// The queue now; a system call or two.
    fn queue(&self) -> Queue;
}

impl SendQueue for TcpStream {
    fn queue(&self) -> Queue {
        let unacknowledged = read::<NOT_ACKNOWLEDGED>(self);
        Queue {
            unacknowledged,
            unsent: if unacknowledged == 0 {
                0
            } else {
                read::<NOT_SENT>(self)
            },
        }
    }
}

impl SendQueue for TlsStream<TcpStream> {
    fn queue(&self) -> Queue {
        self.get_ref().0.queue()
    }
}

/// One of the two figures. Zero where the system does not know it: then the bounds above the kernel are
/// all there is.
fn read<const OPCODE: rustix::ioctl::Opcode>(socket: &TcpStream) -> usize {
    #[expect(unsafe_code, reason = "no crate has this call in a safe form")]
    // SAFETY: both requests write one `int` (linux/sockios.h).
    let getter = unsafe { Getter::<OPCODE, i32>::new() };
    #[expect(unsafe_code, reason = "no crate has this call in a safe form")]
    // SAFETY: they read nothing, and do nothing else, whatever kind of file it is.
    let read = unsafe { ioctl(socket.as_fd(), getter) };
    read.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    #[tokio::test]
    async fn what_a_reader_leaves_is_seen_until_it_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut reader = socket.connect(address).await.unwrap();
        let (mut writer, _) = listener.accept().await.unwrap();
        assert_eq!(writer.queue(), Queue::default());
        let mut written = 0;
        while let Ok(count) = writer.try_write(&[0; 4096]) {
            written += count;
        }
        let queue = writer.queue();
        assert!((1..=written).contains(&queue.unacknowledged), "{queue:?}");
        assert!(
            (1..=queue.unacknowledged).contains(&queue.unsent),
            "{queue:?}"
        );
        reader.read_exact(&mut vec![0; written]).await.unwrap();
        writer.write_all(b"x").await.unwrap();
        reader.read_exact(&mut [0]).await.unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while writer.queue() != Queue::default() {
            assert!(
                std::time::Instant::now() < deadline,
                "an acknowledgement comes"
            );
            tokio::task::yield_now().await;
        }
    }
}
