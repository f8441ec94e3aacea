//! A path with delay and loss between a client and the gateway, in user space.
//!
//! Over UDP it does to datagrams what a network does. Over TCP it ends each connection and begins another:
//! both kernels see a path without delay, bytes arrive late and none is ever lost. So it shows what delay
//! does to an answer, but neither slow start nor retransmission.

mod delay;
mod loss;
mod tcp;
mod udp;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// What a path does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Path {
    /// In each direction.
    pub(super) delay: Duration,
    /// Datagrams lost, of a hundred, in each direction. TCP knows none.
    pub(super) loss_percent: f64,
    /// Which ones.
    pub(super) seed: u64,
}

/// A relay; it ends when this is dropped.
pub(super) struct Relay {
    /// Where clients find it.
    pub(super) address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What its tasks share.
#[derive(Debug, Default)]
struct State {
    dead: AtomicBool,
    lost: AtomicU64,
    /// Datagrams that found a queue full: more than the path was made for.
    overflown: AtomicU64,
}

impl Relay {
    /// Starts one in a thread of its own.
    ///
    /// # Errors
    /// No port, or no thread.
    pub(super) fn start(upstream: SocketAddr, is_udp: bool, path: Path) -> Result<Self> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let socket = if is_udp {
            Socket::Udp(udp::socket(any)?)
        } else {
            let listener = TcpListener::bind(any)?;
            listener.set_nonblocking(true)?;
            Socket::Tcp(listener)
        };
        let address = match &socket {
            Socket::Udp(socket) => socket.local_addr()?,
            Socket::Tcp(listener) => listener.local_addr()?,
        };
        let state = Arc::new(State::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let shared = Arc::clone(&state);
        let thread = thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || {
                // Without a runtime the socket is closed, and whoever comes finds nobody.
                let Ok(runtime) = runtime::Builder::new_current_thread().enable_all().build()
                else {
                    return;
                };
                LocalSet::new().block_on(&runtime, async {
                    tokio::select! {
                        _ = serve(socket, upstream, path, shared) => {}
                        _ = stopped => {}
                    }
                });
            })
            .context("could not start a thread")?;
        Ok(Self {
            address,
            state,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// From now on nothing comes through, in either direction, and nobody is told.
    pub(super) fn die(&self) {
        self.state.dead.store(true, Relaxed);
    }

    /// Datagrams lost on purpose, and for want of room.
    pub(super) fn lost(&self) -> (u64, u64) {
        (
            self.state.lost.load(Relaxed),
            self.state.overflown.load(Relaxed),
        )
    }
}

enum Socket {
    Udp(UdpSocket),
    Tcp(TcpListener),
}

async fn serve(
    socket: Socket,
    upstream: SocketAddr,
    path: Path,
    state: Arc<State>,
) -> io::Result<()> {
    match socket {
        Socket::Udp(socket) => {
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            udp::serve(socket, upstream, path, state).await;
        }
        Socket::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tcp::serve(listener, upstream, path, state).await;
        }
    }
    Ok(())
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was told by its own message.
            let _ = thread.join();
        }
    }
}
