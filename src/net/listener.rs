//! A listening TCP socket, and what can go wrong when one accepts.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::stream::Stream;

pub(crate) struct Listener {
    socket: TcpListener,
    local_addr: SocketAddr,
}

/// Why there is no connection.
pub(crate) enum AcceptError {
    /// None is waiting.
    Empty,
    /// That one was gone before it was accepted; the next may be fine.
    ClientGone(io::Error),
    /// The process or the machine is short of something; trying again at once would spin.
    Exhausted(io::Error),
}

impl Listener {
    pub(crate) fn bind(addr: SocketAddr, backlog: i32) -> io::Result<Listener> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted server takes its port back from connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        socket.listen(backlog)?;
        socket.set_nonblocking(true)?;
        let socket = TcpListener::from(socket);
        let local_addr = socket.local_addr()?;
        Ok(Listener { socket, local_addr })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(crate) fn accept(&self) -> Result<Stream, AcceptError> {
        let (socket, peer_addr) = self.socket.accept().map_err(classify)?;
        Stream::new(socket, peer_addr).map_err(AcceptError::ClientGone)
    }
}

fn classify(error: io::Error) -> AcceptError {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN) => AcceptError::Empty,
        // Errors of the network that Linux hands on through accept; see "Error handling" in accept(2).
        Some(
            Errno::INTR
            | Errno::CONNABORTED
            | Errno::PROTO
            | Errno::NETDOWN
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH
            | Errno::NETUNREACH,
        ) => AcceptError::ClientGone(error),
        _ => AcceptError::Exhausted(error),
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
