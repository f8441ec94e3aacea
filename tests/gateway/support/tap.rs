//! A relay of datagrams between one client and a gateway, which keeps a copy of what the client sent, and can
//! keep either side's datagrams back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// Datagrams that are kept back or late; more are lost, as on any network.
const QUEUE: usize = 4096;

pub(crate) struct Tap {
    /// Where the client shall send to.
    pub(crate) address: SocketAddr,
    replies: watch::Sender<bool>,
    requests: watch::Sender<bool>,
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    _relay: AbortOnDropHandle<()>,
}

impl Tap {
    /// Before `to`, with its replies kept back at first.
    pub(crate) async fn before(to: SocketAddr) -> Self {
        Self::with(to, false, Duration::ZERO).await
    }

    /// Before `to`, with nothing kept back, and every datagram so late in either direction.
    pub(crate) async fn late(to: SocketAddr, delay: Duration) -> Self {
        Self::with(to, true, delay).await
    }

    async fn with(to: SocketAddr, open: bool, delay: Duration) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = near.local_addr().unwrap();
        let (replies, replies_open) = watch::channel(open);
        let (requests, requests_open) = watch::channel(true);
        let (client_is, client) = watch::channel(address);
        let sent = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let forth = {
            let (far, sent) = (far.clone(), sent.clone());
            let (line, queue) = mpsc::channel(QUEUE);
            let read = {
                let near = near.clone();
                async move {
                    let mut buffer = vec![0; 65_536];
                    while let Ok((count, from)) = near.recv_from(&mut buffer).await {
                        client_is.send_replace(from);
                        let datagram = buffer[..count].to_vec();
                        sent.lock().unwrap().push(datagram.clone());
                        let _ = line.try_send((Instant::now() + delay, datagram));
                    }
                }
            };
            async move {
                tokio::join!(read, write(queue, requests_open, far, || to));
            }
        };
        let back = {
            let (line, queue) = mpsc::channel(QUEUE);
            let read = async move {
                let mut buffer = vec![0; 65_536];
                while let Ok(count) = far.recv(&mut buffer).await {
                    let _ = line.try_send((Instant::now() + delay, buffer[..count].to_vec()));
                }
            };
            async move {
                let to = || *client.borrow();
                tokio::join!(read, write(queue, replies_open, near, to));
            }
        };
        let relay = tokio::spawn(async move {
            tokio::join!(forth, back);
        });
        Self {
            address,
            replies,
            requests,
            sent,
            _relay: AbortOnDropHandle::new(relay),
        }
    }

    /// Lets replies through.
    pub(crate) fn release(&self) {
        self.replies.send_replace(true);
    }

    /// Keeps replies back.
    pub(crate) fn hold(&self) {
        self.replies.send_replace(false);
    }

    /// Keeps back what the client sends from now on.
    pub(crate) fn hold_client(&self) {
        self.requests.send_replace(false);
    }

    /// Lets it through again.
    pub(crate) fn release_client(&self) {
        self.requests.send_replace(true);
    }

    /// All that the client has sent so far, let through or not.
    pub(crate) fn sent(&self) -> Vec<Vec<u8>> {
        self.sent.lock().unwrap().clone()
    }
}

async fn write(
    mut queue: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut open: watch::Receiver<bool>,
    socket: Arc<UdpSocket>,
    to: impl Fn() -> SocketAddr,
) {
    while let Some((due, datagram)) = queue.recv().await {
        sleep_until(due).await;
        let _ = open.wait_for(|open| *open).await;
        let _ = socket.send_to(&datagram, to()).await;
    }
}
