//! Connections: each is a connection to the gateway, with bytes that take their time in between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::delay::line;
use super::{Path, State};

/// Bytes read at once.
const READ: usize = 64 * 1024;

/// Reads on their way in one direction of a connection; then the sender waits. 4 MiB at the most, more than
/// any answer here has on its way.
const ROOM: usize = 64;

/// Relays until it is dropped.
pub(super) async fn serve(
    listener: TcpListener,
    upstream: SocketAddr,
    path: Path,
    state: Arc<State>,
) {
    let mut tasks = JoinSet::new();
    // An error is of a connection that has gone before it was accepted.
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let state = Arc::clone(&state);
        tasks.spawn_local(async move {
            let Ok(server) = TcpStream::connect(upstream).await else {
                return;
            };
            // Best effort: without, it is only slower.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::join!(
                copy(from_client, to_server, path, &state),
                copy(from_server, to_client, path, &state),
            );
        });
    }
}

/// One direction, up to the end of what is read.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, path: Path, state: &State) {
    let (entry, mut exit) = line(path.delay, ROOM);
    let read = async move {
        let mut buffer = vec![0; READ];
        loop {
            let length = match from.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            if state.dead.load(Relaxed) {
                // Nothing is read any more, so that what waits stays with its sender.
                std::future::pending::<()>().await;
            }
            if !entry.put(buffer[..length].to_vec()).await {
                return;
            }
        }
    };
    let write = async {
        while let Some(bytes) = exit.take().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // The peer may have gone already.
        let _ = to.shutdown().await;
    };
    // The end of reading is the end of the line, and so of writing.
    tokio::join!(read, write);
}

#[cfg(test)]
mod tests {
    use super::super::Relay;
    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_so_does_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start(listener.local_addr().unwrap(), false, Path::default()).unwrap();
        let mut client = TcpStream::connect(relay.address).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"there").await.unwrap();
        client.shutdown().await.unwrap();
        let mut seen = String::new();
        server.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "there");
        server.write_all(b"back").await.unwrap();
        drop(server);
        let mut seen = String::new();
        client.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "back");
    }
}
