//! TCP sockets, plain or with TLS, that count what goes through them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use super::site::Site;

/// What went over the wire, as the generator sees it: payloads of TCP or of UDP.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    down: AtomicU64,
    up: AtomicU64,
}

impl Wire {
    /// Bytes down and up.
    pub(crate) fn read(&self) -> (u64, u64) {
        (self.down.load(Relaxed), self.up.load(Relaxed))
    }
}

/// A socket that counts.
pub(crate) struct Counted {
    inner: TcpStream,
    wire: Arc<Wire>,
}

/// A connection over TCP: bytes in clear, or TLS.
pub(crate) struct Socket(Box<dyn Duplex>);

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Socket {
    /// Connects. With `receive_buffer` the kernel holds no more for the reader than that.
    pub(crate) async fn connect(
        site: &Site,
        tls: Option<&Arc<rustls::ClientConfig>>,
        receive_buffer: Option<u32>,
        wire: &Arc<Wire>,
    ) -> io::Result<Self> {
        let socket = match site.address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let inner = socket.connect(site.address).await?;
        inner.set_nodelay(true)?;
        let counted = Counted {
            inner,
            wire: Arc::clone(wire),
        };
        let Some(tls) = tls else {
            return Ok(Self(Box::new(counted)));
        };
        let name = ServerName::try_from(site.name.clone()).map_err(io::Error::other)?;
        let connected = TlsConnector::from(Arc::clone(tls))
            .connect(name, counted)
            .await?;
        Ok(Self(Box::new(connected)))
    }

    /// Itself if it can be used again: one that the server has closed, or talks on unasked, is of no use.
    pub(super) fn if_open(mut self) -> Option<Self> {
        let mut byte = [0];
        let mut context = Context::from_waker(Waker::noop());
        let polled = Pin::new(&mut self.0).poll_read(&mut context, &mut ReadBuf::new(&mut byte));
        polled.is_pending().then_some(self)
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        self.wire.down.fetch_add(read as u64, Relaxed);
        polled
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = &polled {
            self.wire.up.fetch_add(*written as u64, Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
