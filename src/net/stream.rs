//! One client's socket, never blocking.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

pub(crate) struct Stream {
    socket: TcpStream,
    peer_addr: SocketAddr,
    local_addr: SocketAddr,
}

impl Stream {
    /// Fails where the client is gone already.
    pub(super) fn new(socket: TcpStream, peer_addr: SocketAddr) -> io::Result<Stream> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let local_addr = socket.local_addr()?;
        Ok(Stream { socket, peer_addr, local_addr })
    }

    pub(crate) fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The error that made `poll` report one.
    pub(crate) fn take_error(&self) -> io::Error {
        match self.socket.take_error() {
            Ok(Some(error)) | Err(error) => error,
            Ok(None) => io::ErrorKind::ConnectionReset.into(),
        }
    }

    /// Tells the client that nothing more will come. A client that is gone needs no telling.
    pub(crate) fn shutdown_write(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
