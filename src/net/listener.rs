//! A listening socket, and what can go wrong when one accepts.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{SocketAddrAny, SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, Socket, Type};

use super::address::Address;
use super::socket_options::SocketOptions;
use super::stream::Stream;
use super::unix_path::{UnixOptions, UnixPath};

pub(crate) struct ListenSocket {
    /// First, so that the file of a Unix socket is removed before the socket is closed, and nobody takes it over
    /// meanwhile.
    _path: Option<UnixPath>,
    socket: Socket,
    local_addr: Address,
    options: SocketOptions,
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

impl ListenSocket {
    pub(crate) fn tcp(addr: SocketAddr, options: &SocketOptions) -> io::Result<ListenSocket> {
        let domain = Domain::for_address(addr);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        options.apply_to_unbound(&socket, domain)?;
        options.apply_to_listener(&socket, true)?;
        socket.bind(&addr.into())?;
        ListenSocket::listen(socket, options, None)
    }

    pub(crate) fn unix(unix: &UnixOptions, options: &SocketOptions) -> io::Result<ListenSocket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        options.apply_to_unbound(&socket, Domain::UNIX)?;
        // Locked until it listens, since one that is bound and does not listen looks stale.
        let (path, _lock) = UnixPath::bind(&socket, unix)?;
        ListenSocket::listen(socket, options, Some(path))
    }

    /// One that is bound already. The options that come before binding stay as they are.
    pub(crate) fn open(socket: Socket, options: &SocketOptions) -> io::Result<ListenSocket> {
        options.apply_to_listener(&socket, !socket.local_addr()?.is_unix())?;
        ListenSocket::listen(socket, options, None)
    }

    fn listen(socket: Socket, options: &SocketOptions, path: Option<UnixPath>) -> io::Result<ListenSocket> {
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        socket.set_nonblocking(true)?;
        let local_addr = Address::of(&socket.local_addr()?);
        Ok(ListenSocket { _path: path, socket, local_addr, options: options.clone() })
    }

    pub(crate) fn local_addr(&self) -> &Address {
        &self.local_addr
    }

    /// How many clients may wait.
    pub(crate) fn backlog(&self) -> u32 {
        self.options.backlog
    }

    /// Never blocks.
    pub(crate) fn accept(&self) -> Result<Stream, AcceptError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (socket, peer_addr) = acceptfrom_with(&self.socket, flags).map_err(classify)?;
        self.stream(Socket::from(socket), peer_addr).map_err(AcceptError::ClientGone)
    }

    /// Fails where the client is gone already.
    fn stream(&self, socket: Socket, peer_addr: Option<SocketAddrAny>) -> io::Result<Stream> {
        let peer_addr = match peer_addr.map(SocketAddr::try_from) {
            Some(Ok(addr)) => addr.into(),
            _ => Address::of(&socket.peer_addr()?),
        };
        let any = self.local_addr.ip().is_some_and(|ip| ip.is_unspecified());
        let local_addr = if any { Address::of(&socket.local_addr()?) } else { self.local_addr.clone() };
        if cfg!(not(any(target_os = "linux", target_os = "android"))) {
            self.options.apply_to_stream(&socket, local_addr.inet().is_some())?;
        }
        Ok(Stream::new(socket, peer_addr, local_addr))
    }
}

fn classify(error: Errno) -> AcceptError {
    match error {
        Errno::AGAIN => AcceptError::Empty,
        // Errors of the network that Linux hands on through accept; see "Error handling" in accept(2).
        Errno::INTR
        | Errno::CONNABORTED
        | Errno::PROTO
        | Errno::NETDOWN
        | Errno::NOPROTOOPT
        | Errno::HOSTDOWN
        | Errno::HOSTUNREACH
        | Errno::NETUNREACH => AcceptError::ClientGone(error.into()),
        _ => AcceptError::Exhausted(error.into()),
    }
}

impl AsFd for ListenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
