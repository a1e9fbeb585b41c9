//! One client's TLS, over a socket that does not block.

use std::io::{self, Read, Write};

use rustls::{Error, InvalidMessage, ServerConnection};
use socket2::Socket;

use super::info::TlsInfo;
use crate::net::quiet::Quiet;

pub(crate) struct Session {
    connection: ServerConnection,
    /// Bytes of the client that are decrypted and wait.
    plaintext: usize,
    /// Bytes that the socket has taken.
    sent: u64,
    /// The client will send no more.
    ended: bool,
    /// It has said so itself.
    was_closed: bool,
    /// What is wrong with what the client has sent last. What it sent before that is read first.
    failed: Option<String>,
}

/// How far the handshake is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Handshake {
    Done,
    /// It goes on once the socket can be read,
    Reads,
    /// or written.
    Writes,
}

/// So many times a read looks for something of the client in what TLS has to itself.
const MAX_READS: usize = 16;

impl Session {
    pub(super) fn new(connection: ServerConnection) -> Session {
        Session { connection, plaintext: 0, sent: 0, ended: false, was_closed: false, failed: None }
    }

    pub(crate) fn info(&self) -> TlsInfo<'_> {
        TlsInfo::new(&self.connection)
    }

    /// As far as it goes without blocking.
    pub(crate) fn shake_hands(&mut self, socket: &Socket) -> io::Result<Handshake> {
        loop {
            let flushed = self.flush(socket);
            match flushed {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Handshake::Writes),
                // A client that has closed by now may have sent something before, which is to be received.
                _ if !self.connection.is_handshaking() => return Ok(Handshake::Done),
                flushed => flushed?,
            }
            match self.receive(socket) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Handshake::Reads),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received?,
            }
            if self.connection.is_handshaking() {
                if let Some(reason) = self.failed.take() {
                    return Err(broken(reason));
                }
                if self.ended {
                    return Err(broken("the client closed before the handshake was done"));
                }
            }
        }
    }

    /// Takes in what the client has sent next. An error is the socket's, an interruption too; what is wrong with the bytes is put down.
    fn receive(&mut self, socket: &Socket) -> io::Result<()> {
        if self.connection.read_tls(&mut Quiet(socket))? == 0 {
            self.ended = true;
        }
        match self.connection.process_new_packets() {
            Ok(state) => {
                self.plaintext = state.plaintext_bytes_to_read();
                self.was_closed |= state.peer_has_closed();
                self.ended |= self.was_closed;
            }
            Err(error) => {
                // The alert that says so, if the client takes it.
                let _ = self.flush(socket);
                self.failed = Some(match error {
                    Error::InvalidMessage(InvalidMessage::InvalidContentType) => "the client does not speak TLS".into(),
                    error => error.to_string(),
                });
            }
        }
        Ok(())
    }

    /// The error is `InvalidData` where something is wrong with what the client has sent, and the socket's otherwise.
    pub(crate) fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..MAX_READS {
            if self.plaintext > 0 {
                let n = self.connection.reader().read(buffer)?;
                self.plaintext = self.plaintext.saturating_sub(n);
                return Ok(n);
            }
            if let Some(reason) = &self.failed {
                // How much there is before it nobody has said.
                return self.connection.reader().read(buffer).map_err(|_| broken(reason.as_str()));
            }
            if self.ended {
                return Ok(0);
            }
            self.receive(socket)?;
        }
        // There may be more, and `poll` will say so.
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Takes bytes once all that were taken before are gone; none once something was wrong with what the client has sent.
    pub(crate) fn write(&mut self, socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
        if let Some(reason) = &self.failed {
            return Err(broken(reason.as_str()));
        }
        self.flush(socket)?;
        let n = self.connection.writer().write(bytes)?;
        match self.flush(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(n),
            flushed => flushed.map(|()| n),
        }
    }

    pub(crate) fn flush(&mut self, socket: &Socket) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Quiet(socket)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => self.sent += written? as u64,
            }
        }
        Ok(())
    }

    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// A read has something to give without the socket: bytes, their end, or what is wrong with them.
    pub(crate) fn has_input(&self) -> bool {
        self.plaintext > 0 || self.ended || self.failed.is_some()
    }

    /// Whether the client has said that it sends no more; what only the connection says, somebody else may have said.
    pub(crate) fn was_closed(&self) -> bool {
        self.was_closed
    }

    /// Tells the client that nothing more will come, if it takes that.
    pub(crate) fn close(&mut self, socket: &Socket) {
        self.connection.send_close_notify();
        let _ = self.flush(socket);
    }
}

fn broken(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}
