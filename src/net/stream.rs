//! One client's socket, never blocking.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::RecvFlags;
use socket2::Socket;

use super::address::Address;
use super::outbox::Sink;
use super::quiet::Quiet;
#[cfg(feature = "tls")]
use super::tls::{Handshake, Session, TlsInfo};

pub(crate) struct Stream {
    socket: Arc<Socket>,
    peer_addr: Address,
    local_addr: Address,
    /// `None`: the client speaks plainly.
    #[cfg(feature = "tls")]
    tls: Option<Box<Session>>,
}

impl Stream {
    pub(super) fn new(socket: Socket, peer_addr: Address, local_addr: Address) -> Stream {
        Stream {
            socket: Arc::new(socket),
            peer_addr,
            local_addr,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    pub(crate) fn peer_addr(&self) -> &Address {
        &self.peer_addr
    }

    pub(crate) fn local_addr(&self) -> &Address {
        &self.local_addr
    }

    /// The client is somewhere else than where the socket says: a proxy is between.
    pub(crate) fn set_addresses(&mut self, peer_addr: Address, local_addr: Address) {
        (self.peer_addr, self.local_addr) = (peer_addr, local_addr);
    }

    /// What can be read now, left there to be read.
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (_, n) = rustix::net::recv(&*self.socket, buffer, RecvFlags::PEEK)?;
        Ok(n)
    }

    /// Whether a read would give bytes now.
    pub(crate) fn has_unread(&self) -> bool {
        self.has_buffered() || self.peek(&mut [0]).is_ok_and(|n| n > 0)
    }

    /// How many bytes can be read now, as far as one can tell: not with TLS.
    pub(crate) fn unread(&self) -> u64 {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return 0;
        }
        rustix::io::ioctl_fionread(&*self.socket).unwrap_or(0)
    }

    /// Of a stream that has ended: whether it was the client that said so. With TLS others can cut it off.
    pub(crate) fn has_ended_in_order(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.was_closed();
        }
        true
    }

    /// The bytes of the socket itself, those of TLS still encrypted.
    pub(crate) fn raw(&self) -> impl Read {
        Quiet(&self.socket)
    }

    /// The error that made `poll` report one; `None` if it was only that the client is gone.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        match self.socket.take_error() {
            Ok(error) => error,
            Err(error) => Some(error),
        }
    }

    /// Tells a client that speaks TLS that nothing more will come, so that it need not suspect that something was cut
    /// off.
    pub(crate) fn end_tls(&mut self) {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            tls.close(&self.socket);
        }
    }

    /// Tells the client that nothing more will come. A client that is gone needs no telling.
    pub(crate) fn shutdown_write(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// When it is closed, the client is told by a reset; what it has not taken is lost.
    pub(crate) fn reset_on_close(&self) {
        let _ = self.socket.set_linger(Some(Duration::ZERO));
    }

    /// For others to write to while its worker sleeps; `None` where only the worker can, since it speaks TLS.
    pub(crate) fn park(&self) -> Option<Parked> {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return None;
        }
        Some(Parked(Arc::clone(&self.socket)))
    }

    /// From here on the client speaks TLS.
    #[cfg(feature = "tls")]
    pub(crate) fn begin_tls(&mut self, session: Session) {
        self.tls = Some(Box::new(session));
    }

    /// The TLS handshake, as far as it goes without blocking.
    #[cfg(feature = "tls")]
    pub(crate) fn shake_hands(&mut self) -> io::Result<Handshake> {
        match &mut self.tls {
            Some(tls) => tls.shake_hands(&self.socket),
            None => Ok(Handshake::Done),
        }
    }

    #[cfg(feature = "tls")]
    pub(crate) fn tls_info(&self) -> Option<TlsInfo<'_>> {
        self.tls.as_ref().map(|tls| tls.info())
    }

    /// TLS itself has something to say.
    #[inline]
    pub(crate) fn wants_write(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.wants_write();
        }
        false
    }

    /// Something was read from the socket already and waits here, be it the end, so `poll` does not know of it.
    #[inline]
    pub(crate) fn has_buffered(&self) -> bool {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.has_input();
        }
        false
    }
}

/// A client's socket, left by a worker that sleeps and has nothing to send.
pub(crate) struct Parked(Arc<Socket>);

impl Parked {
    /// As many bytes as the client takes now. What is wrong with the socket its worker will find out.
    pub(crate) fn write(&self, bytes: &[u8]) -> usize {
        Quiet(&self.0).write(bytes).unwrap_or(0)
    }
}

impl Read for Stream {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.read(&self.socket, buffer);
        }
        Quiet(&self.socket).read(buffer)
    }
}

impl Write for Stream {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.write(&self.socket, bytes);
        }
        Quiet(&self.socket).write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            let first = slices.iter().find(|slice| !slice.is_empty());
            return first.map_or(Ok(0), |slice| self.write(slice));
        }
        Quiet(&self.socket).write_vectored(slices)
    }

    /// What was written but is still here; only TLS keeps any.
    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            return tls.flush(&self.socket);
        }
        Ok(())
    }
}

impl Sink for Stream {
    fn send_file(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize> {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return copy_file(self, file, offset, len);
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        return Ok(rustix::fs::sendfile(&*self.socket, file, Some(&mut { offset }), len)?);
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        copy_file(self, file, offset, len)
    }

    #[cfg(feature = "tls")]
    fn moved(&self) -> u64 {
        self.tls.as_ref().map_or(0, |tls| tls.sent())
    }
}

/// One piece of a file, by way of this process.
#[cfg(any(feature = "tls", not(any(target_os = "linux", target_os = "android"))))]
fn copy_file(stream: &mut Stream, file: &File, offset: u64, len: usize) -> io::Result<usize> {
    use std::os::unix::fs::FileExt;

    /// One record of TLS.
    const PIECE: usize = 16 * 1024;
    let mut piece = vec![0; len.min(PIECE)];
    let n = file.read_at(&mut piece, offset)?;
    match n {
        0 => Ok(0),
        _ => stream.write(&piece[..n]),
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
