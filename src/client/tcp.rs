//! TCP connections, with and without TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::Error;
use super::{Endpoint, tls};

/// How long a connection may take to come about, TLS included. Local servers answer in microseconds,
/// far ones in a second; beyond this a reader would rather know.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection of either kind.
pub(super) enum Socket {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

/// Connects. `tls`: with this configuration, to speak only `protocol` (its name in ALPN).
pub(super) async fn connect(
    endpoint: &Endpoint,
    tls: Option<&rustls::ClientConfig>,
    protocol: &[u8],
) -> Result<Socket, Error> {
    let failed = |source| Error::Connect {
        authority: endpoint.authority().to_owned(),
        source,
    };
    let connecting = async {
        let socket = TcpStream::connect((endpoint.host(), endpoint.port()))
            .await
            .map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        match tls {
            None => Ok(Socket::Plain(socket)),
            Some(config) => secure(endpoint, config.clone(), protocol, socket).await,
        }
    };
    timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(failed(io::ErrorKind::TimedOut.into())))
}

async fn secure(
    endpoint: &Endpoint,
    mut config: rustls::ClientConfig,
    protocol: &[u8],
    socket: TcpStream,
) -> Result<Socket, Error> {
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TlsConnector::from(Arc::new(config))
        .connect(tls::name(endpoint)?, socket)
        .await
        .map_err(|error| tls::failed(endpoint, error))?;
    Ok(Socket::Secure(Box::new(stream)))
}

/// Drives a connection for as long as the returned set lives. What ends it is told to whoever reads
/// an answer from it, so its own result has no reader.
pub(super) fn drive<C, T>(connection: C) -> JoinSet<()>
where
    C: Future<Output = T> + Send + 'static,
{
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let _ = connection.await;
    });
    driver
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Secure(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Secure(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(context),
            Self::Secure(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
