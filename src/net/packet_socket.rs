//! A UDP socket, never blocking.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, Socket, Type};

use super::socket_options::SocketOptions;

pub(crate) struct Datagrams {
    socket: UdpSocket,
    local_addr: SocketAddr,
}

impl Datagrams {
    pub(crate) fn bind(addr: SocketAddr, options: &SocketOptions) -> io::Result<Datagrams> {
        let domain = Domain::for_address(addr);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        options.apply_to_datagrams(&socket, domain)?;
        socket.bind(&addr.into())?;
        Datagrams::open(socket.into())
    }

    /// One that is bound already.
    pub(crate) fn open(socket: UdpSocket) -> io::Result<Datagrams> {
        socket.set_nonblocking(true)?;
        let local_addr = socket.local_addr()?;
        Ok(Datagrams { socket, local_addr })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.recv_from(buffer)
    }

    pub(crate) fn send_to(&self, addr: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        self.socket.send_to(bytes, addr).map(drop)
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
