//! Datagrams: each client gets a socket of its own towards the gateway.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::delay::{self, Exit, line};
use super::loss::Loss;
use super::{Path, State};

/// Datagrams on their way in one direction; more are lost, as in any router.
const ROOM: usize = 16 * 1024;

/// The longest datagram.
const LONGEST: usize = 64 * 1024;

/// Room in the kernel, so that none is lost but on purpose.
const BUFFER: usize = 4 << 20;

/// A socket with much room.
pub(super) fn socket(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::DGRAM,
        None,
    )?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Relays until it is dropped.
pub(super) async fn serve(socket: UdpSocket, upstream: SocketAddr, path: Path, state: Arc<State>) {
    let socket = Rc::new(socket);
    let mut clients = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; LONGEST];
    // An error here is of one datagram before (ICMP), not of the socket.
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let way = match clients.entry(client) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                match begin(&socket, client, upstream, path, &state, &mut tasks).await {
                    Ok(way) => place.insert(way),
                    Err(_) => continue,
                }
            }
        };
        way.offer(&buffer[..length], &state);
    }
}

/// One direction of one client's datagrams.
struct Way {
    loss: Loss,
    entry: delay::Entry<Vec<u8>>,
}

impl Way {
    fn offer(&mut self, datagram: &[u8], state: &State) {
        if state.dead.load(Relaxed) {
            return;
        }
        if self.loss.next() {
            state.lost.fetch_add(1, Relaxed);
        } else if !self.entry.offer(datagram.to_vec()) {
            state.overflown.fetch_add(1, Relaxed);
        }
    }
}

/// Makes a client's two ways; returns the one towards the gateway.
async fn begin(
    socket: &Rc<UdpSocket>,
    client: SocketAddr,
    upstream: SocketAddr,
    path: Path,
    state: &Arc<State>,
    tasks: &mut JoinSet<()>,
) -> io::Result<Way> {
    let mut any = client;
    any.set_port(0);
    let towards = UdpSocket::from_std(self::socket(any)?)?;
    towards.connect(upstream).await?;
    let towards = Rc::new(towards);
    let (up, up_exit) = line(path.delay, ROOM);
    let (down, mut down_exit) = line::<Vec<u8>>(path.delay, ROOM);
    tasks.spawn_local(send_up(Rc::clone(&towards), up_exit));
    let back = Rc::clone(socket);
    tasks.spawn_local(async move {
        while let Some(datagram) = down_exit.take().await {
            // Lost, if it cannot be sent.
            let _ = back.send_to(&datagram, client).await;
        }
    });
    let mut way = Way {
        // Another sequence than upwards.
        loss: Loss::new(path.loss_percent, !path.seed),
        entry: down,
    };
    let state = Arc::clone(state);
    tasks.spawn_local(async move {
        let mut buffer = vec![0; LONGEST];
        loop {
            if let Ok(length) = towards.recv(&mut buffer).await {
                way.offer(&buffer[..length], &state);
            }
        }
    });
    Ok(Way {
        loss: Loss::new(path.loss_percent, path.seed),
        entry: up,
    })
}

async fn send_up(towards: Rc<UdpSocket>, mut exit: Exit<Vec<u8>>) {
    while let Some(datagram) = exit.take().await {
        // Lost, if it cannot be sent.
        let _ = towards.send(&datagram).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::Relay;
    use super::*;

    async fn any() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.unwrap()
    }

    #[tokio::test]
    async fn datagrams_go_both_ways_and_each_client_has_its_own() {
        let server = any().await;
        let relay = Relay::start(server.local_addr().unwrap(), true, Path::default()).unwrap();
        let (one, two) = (any().await, any().await);
        let mut buffer = [0; 64];
        let mut seen = Vec::new();
        for (client, text) in [(&one, b"one"), (&two, b"two")] {
            client.send_to(text, relay.address).await.unwrap();
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..length], text);
            seen.push(from);
        }
        assert_ne!(seen[0], seen[1]);
        server.send_to(b"back", seen[1]).await.unwrap();
        let (length, from) = two.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from), (&b"back"[..], relay.address));
    }

    #[tokio::test]
    async fn a_dead_path_swallows_everything() {
        let (entry, mut exit) = line(Duration::ZERO, 8);
        let state = State::default();
        let mut way = Way {
            loss: Loss::new(0.0, 1),
            entry,
        };
        way.offer(b"before", &state);
        state.dead.store(true, Relaxed);
        way.offer(b"after", &state);
        drop(way);
        assert_eq!(exit.take().await.as_deref(), Some(&b"before"[..]));
        assert_eq!(exit.take().await, None);
    }

    #[tokio::test]
    async fn all_that_is_lost_is_counted() {
        let server = any().await;
        let path = Path {
            loss_percent: 50.0,
            seed: 3,
            delay: Duration::ZERO,
        };
        let relay = Relay::start(server.local_addr().unwrap(), true, path).unwrap();
        let client = any().await;
        let mut loss = Loss::new(50.0, 3);
        let kept: Vec<u8> = (0..100).filter(|_| !loss.next()).collect();
        for number in 0..100 {
            client.send_to(&[number], relay.address).await.unwrap();
        }
        for number in &kept {
            let mut buffer = [0; 1];
            server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[0], *number);
        }
        assert_eq!(relay.lost(), (100 - kept.len() as u64, 0));
    }
}
