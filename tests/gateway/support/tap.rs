//! A relay of datagrams between one client and a gateway, which can keep the gateway's replies back.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

pub(crate) struct Tap {
    /// Where the client shall send to.
    pub(crate) address: SocketAddr,
    open: watch::Sender<bool>,
    _relay: AbortOnDropHandle<()>,
}

impl Tap {
    /// Before `to`, with its replies kept back at first.
    pub(crate) async fn before(to: SocketAddr) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = near.local_addr().unwrap();
        let (open, mut opened) = watch::channel(false);
        let (client_is, mut client) = watch::channel(None);
        let forth = {
            let (near, far) = (near.clone(), far.clone());
            async move {
                let mut buffer = vec![0; 65_536];
                while let Ok((count, from)) = near.recv_from(&mut buffer).await {
                    client_is.send_replace(Some(from));
                    let _ = far.send_to(&buffer[..count], to).await;
                }
            }
        };
        let back = async move {
            let mut buffer = vec![0; 65_536];
            while let Ok(count) = far.recv(&mut buffer).await {
                // What waits meanwhile waits in the socket.
                let _ = opened.wait_for(|open| *open).await;
                let Ok(to) = client.wait_for(Option::is_some).await.map(|to| *to) else {
                    return;
                };
                let _ = near.send_to(&buffer[..count], to.unwrap_or(address)).await;
            }
        };
        let relay = tokio::spawn(async move {
            tokio::join!(forth, back);
        });
        Self {
            address,
            open,
            _relay: AbortOnDropHandle::new(relay),
        }
    }

    /// Lets replies through.
    pub(crate) fn release(&self) {
        self.open.send_replace(true);
    }

    /// Keeps replies back.
    pub(crate) fn hold(&self) {
        self.open.send_replace(false);
    }
}
