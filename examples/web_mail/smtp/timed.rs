//! A socket that no slow peer holds for ever.

use std::cell::Cell;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A socket on which all that is read and written is so by a certain moment, however little it is at a time.
pub(crate) struct Timed {
    pub(crate) socket: TcpStream,
    pub(crate) until: Rc<Cell<Instant>>,
}

impl Timed {
    pub(crate) fn try_clone(&self) -> io::Result<Timed> {
        Ok(Timed { socket: self.socket.try_clone()?, until: Rc::clone(&self.until) })
    }
}

pub(crate) fn time_left(until: Instant) -> io::Result<Duration> {
    match until.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::new(ErrorKind::TimedOut, "the SMTP server took too long")),
        left => Ok(left),
    }
}

/// Whether to look how much time is left.
fn is_interrupted<X>(result: &io::Result<X>) -> bool {
    result.as_ref().is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted))
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.set_read_timeout(Some(time_left(self.until.get())?))?;
            let read = self.socket.read(bytes);
            if !is_interrupted(&read) {
                return read;
            }
        }
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.socket.set_write_timeout(Some(time_left(self.until.get())?))?;
            let written = self.socket.write(bytes);
            if !is_interrupted(&written) {
                return written;
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
