//! Connections for the child: one socket pair for each choice of a call, whose other ends are passed
//! through a socket between the two processes. There is no path on which anybody else could connect,
//! and none that could be left behind.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};

/// Most connections of one call: what one message carries on Linux (`SCM_MAX_FD`).
pub(super) const MOST: usize = 253;

/// What the kernel keeps of a child's words for one choice: the least that it lets one ask for, a few
/// frames. More would be tokens that the engine has computed for a reader who does not read.
const SEND_BUFFER: usize = 2048;

/// The two ends of a connection: the parent's, and the one for the child.
pub(super) fn connection() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    sockopt::set_socket_send_buffer_size(&theirs, SEND_BUFFER)?;
    Ok((ours, theirs.into()))
}

/// Passes the connections of one call. Never blocks: `WouldBlock` says that the child is behind.
pub(super) fn pass(door: &UnixStream, connections: &[OwnedFd]) -> io::Result<()> {
    let connections: Vec<BorrowedFd<'_>> = connections.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    if !rights.push(SendAncillaryMessage::ScmRights(&connections)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Rights need a byte to travel with.
    sendmsg(
        door,
        &[IoSlice::new(b"c")],
        &mut rights,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// The connections of the next call; none when the parent has gone.
pub(super) fn take(door: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    // One byte at a time: what is read together would have its rights together.
    let mut byte = [0];
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::DONTWAIT;
    recvmsg(door, &mut [IoSliceMut::new(&mut byte)], &mut rights, flags)?;
    let mut connections = Vec::new();
    for message in rights.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            connections.extend(passed);
        }
    }
    Ok(connections)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn the_connections_of_each_call_arrive_together_and_in_order() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut ours = Vec::new();
        for count in [1, 3, 2] {
            let (near, far): (Vec<_>, Vec<_>) = (0..count).map(|_| connection().unwrap()).unzip();
            pass(&here, &far).unwrap();
            ours.push(near);
        }
        for near in &mut ours {
            let far = take(&there).unwrap();
            assert_eq!(far.len(), near.len());
            for (at, (near, far)) in (0..).zip(near.iter_mut().zip(far)) {
                near.write_all(&[at]).unwrap();
                let mut byte = [9];
                UnixStream::from(far).read_exact(&mut byte).unwrap();
                assert_eq!(byte, [at]);
            }
        }
        assert_eq!(take(&there).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(here);
        assert!(take(&there).unwrap().is_empty());
    }
}
