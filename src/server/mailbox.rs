//! The way from the rest of the program to one connection: bytes to send, and the wish to close.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::registry::ConnectionInfo;
use crate::error::SendError;
use crate::net::Waker;

/// What other threads have for one connection. Its worker, which alone touches the socket, takes it out.
pub(super) struct Mailbox {
    pub(super) info: ConnectionInfo,
    pub(super) waker: Arc<Waker>,
    max_bytes: usize,
    mail: Mutex<Mail>,
    /// Something is in `mail`; spares the worker the lock.
    any: AtomicBool,
}

#[derive(Default)]
struct Mail {
    bytes: Vec<u8>,
    /// Close the connection once the bytes are flushed.
    close: bool,
    /// The worker takes no more.
    sealed: bool,
}

/// What the worker has taken out.
pub(super) struct TakenMail {
    pub(super) bytes: Vec<u8>,
    /// There is no more, and the connection is to be closed.
    pub(super) close_after: bool,
}

impl Mailbox {
    pub(super) fn new(info: ConnectionInfo, waker: Arc<Waker>, max_bytes: usize) -> Mailbox {
        Mailbox { info, waker, max_bytes, mail: Mutex::new(Mail::default()), any: AtomicBool::new(false) }
    }

    /// Takes all of `bytes` for the worker to send, or none.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), SendError> {
        {
            let mut mail = self.mail.lock();
            if mail.close || mail.sealed {
                return Err(SendError::Closed);
            }
            if bytes.len() > self.max_bytes {
                return Err(SendError::TooLong);
            }
            if bytes.len() > self.max_bytes - mail.bytes.len() {
                return Err(SendError::OutboxFull);
            }
            mail.bytes.extend_from_slice(bytes);
            self.any.store(true, Ordering::Relaxed);
        }
        self.waker.wake();
        Ok(())
    }

    /// Asks the worker to flush and close; `false` if it does so already.
    pub(super) fn close(&self) -> bool {
        {
            let mut mail = self.mail.lock();
            if mail.close || mail.sealed {
                return false;
            }
            mail.close = true;
            self.any.store(true, Ordering::Relaxed);
        }
        self.waker.wake();
        true
    }

    /// Whether there is mail, and room for any of it.
    pub(super) fn has_mail(&self, room: usize) -> bool {
        room > 0 && self.any.load(Ordering::Relaxed)
    }

    /// Takes the mail, or as many of its bytes as there is room for.
    pub(super) fn take(&self, room: usize) -> Option<TakenMail> {
        if !self.has_mail(room) {
            return None;
        }
        let mut mail = self.mail.lock();
        let fitting = room.min(mail.bytes.len());
        let rest = mail.bytes.split_off(fitting);
        let bytes = std::mem::replace(&mut mail.bytes, rest);
        let all = mail.bytes.is_empty();
        self.any.store(!all, Ordering::Relaxed);
        Some(TakenMail { bytes, close_after: all && mail.close })
    }

    /// From here on, whoever sends is told that the connection is closed. Returns what was accepted before.
    pub(super) fn seal(&self) -> Vec<u8> {
        let mut mail = self.mail.lock();
        mail.sealed = true;
        std::mem::take(&mut mail.bytes)
    }
}
