//! An HTTP/2 client made of frames, without a rule that it keeps to.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{TestGateway, within};

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

// Types of frames (RFC 9113, section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

// Flags.
pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;

/// `ENHANCE_YOUR_CALM`.
pub(super) const CALM: u32 = 11;

/// Frames that wait for the test: more than any flood is answered with, so that the gateway never waits.
const UNREAD: usize = 1 << 16;

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A literal field that is not to be remembered (RFC 7541, section 6.2.2).
pub(super) fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![0];
    for text in [name, value] {
        string(&mut out, text);
    }
    out
}

/// A string literal, not coded (section 5.2).
pub(super) fn string(out: &mut Vec<u8>, text: &[u8]) {
    if let Some(mut rest) = text.len().checked_sub(127) {
        out.push(127);
        while rest >= 128 {
            out.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        out.push(u8::try_from(rest).unwrap());
    } else {
        out.push(u8::try_from(text.len()).unwrap());
    }
    out.extend(text);
}

/// The fields of `GET` (2) or `POST` (3) `http://x` and this path.
fn fields(method: u8, path: &str) -> Vec<u8> {
    let mut block = vec![0x80 | method, 0x86];
    block.push(1);
    string(&mut block, b"x");
    block.push(4);
    string(&mut block, path.as_bytes());
    block
}

pub(super) fn get(path: &str) -> Vec<u8> {
    fields(2, path)
}

pub(super) fn post(path: &str) -> Vec<u8> {
    fields(3, path)
}

/// A chat with this body, as HEADERS and DATA.
pub(super) fn chat(stream: u32, body: &str) -> Vec<u8> {
    let mut frames = frame(HEADERS, END_HEADERS, stream, &post("/v1/chat/completions"));
    frames.extend(frame(DATA, END_STREAM, stream, body.as_bytes()));
    frames
}

/// A frame that came.
#[derive(Debug)]
pub(super) struct Came {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) payload: Vec<u8>,
}

/// One connection. What comes is read at once, so that nothing stops the gateway.
pub(super) struct Peer {
    write: OwnedWriteHalf,
    came: mpsc::Receiver<Came>,
    _reader: AbortOnDropHandle<()>,
}

impl Peer {
    /// Connects, and says what every client says first.
    pub(super) async fn new(gateway: &TestGateway) -> Self {
        let mut peer = Self::silent(gateway).await;
        assert!(peer.send(PREFACE).await);
        assert!(peer.send(&frame(SETTINGS, 0, 0, &[])).await);
        peer
    }

    pub(super) async fn silent(gateway: &TestGateway) -> Self {
        let stream = within(TcpStream::connect(gateway.public)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut read, write) = stream.into_split();
        let (send, came) = mpsc::channel(UNREAD);
        let reader = tokio::spawn(async move {
            let mut head = [0; 9];
            while read.read_exact(&mut head).await.is_ok() {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; usize::try_from(length).unwrap()];
                if read.read_exact(&mut payload).await.is_err() {
                    return;
                }
                let (kind, flags) = (head[3], head[4]);
                let came = Came {
                    kind,
                    flags,
                    payload,
                };
                let _ = send.send(came).await;
            }
        });
        Self {
            write,
            came,
            _reader: AbortOnDropHandle::new(reader),
        }
    }

    /// Writes; false if the gateway has closed.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> bool {
        within(self.write.write_all(bytes)).await.is_ok()
    }

    /// The same bytes up to so many times; how often they could be written.
    pub(super) async fn flood(&mut self, bytes: &[u8], times: usize) -> usize {
        for sent in 0..times {
            if !self.send(bytes).await {
                return sent;
            }
        }
        times
    }

    /// The next frame that came; `None` once the gateway has closed.
    pub(super) async fn next(&mut self) -> Option<Came> {
        within(self.came.recv()).await
    }

    /// Reads until a frame of this kind has come; false if the gateway closed first.
    pub(super) async fn until(&mut self, kind: u8, flags: u8) -> bool {
        while let Some(came) = self.next().await {
            if came.kind == kind && came.flags & flags == flags {
                return true;
            }
        }
        false
    }

    /// Everything until the gateway closes.
    pub(super) async fn rest(mut self) -> Rest {
        let mut all = Vec::new();
        while let Some(came) = self.next().await {
            all.push(came);
        }
        Rest(all)
    }
}

/// What came until the end.
pub(super) struct Rest(Vec<Came>);

impl Rest {
    /// The code of the GOAWAY that it ended with.
    pub(super) fn goaway(&self) -> Option<u32> {
        let last = self.0.iter().rfind(|came| came.kind == GOAWAY)?;
        Some(u32::from_be_bytes(last.payload[4..8].try_into().unwrap()))
    }

    /// Everything that came as DATA.
    pub(super) fn text(&self) -> String {
        let data = self.0.iter().filter(|came| came.kind == DATA);
        let bytes: Vec<_> = data.flat_map(|came| came.payload.clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
