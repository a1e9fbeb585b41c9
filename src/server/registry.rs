//! Which connections there are, and the mailbox through which the rest of the program reaches each.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::error::SendError;
use crate::net::Waker;

/// The name of a connection. Never used twice in the life of a process, so that what comes late for one
/// cannot reach another. (Swoole's is the file descriptor, which is.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(super) u64);

impl ConnectionId {
    /// The number, which is also the [`submitter`](crate::TaskId::submitter) of the connection's tasks.
    pub fn number(&self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({})", self.0)
    }
}

/// A connection that is open, from [`ServerHandle::connections`](crate::ServerHandle::connections).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its id.
    pub id: ConnectionId,
    /// The address of the client.
    pub peer_addr: SocketAddr,
}

pub(super) struct Registry {
    mailboxes: Mutex<HashMap<ConnectionId, Arc<Mailbox>>>,
    max_connections: usize,
    /// Places taken: connections from their acceptance until their socket is closed.
    taken: AtomicUsize,
    accepted: AtomicU64,
    refused: AtomicU64,
    /// Threads of workers, those that wait for their next connection included.
    threads: AtomicUsize,
    acceptor: Arc<Waker>,
}

impl Registry {
    pub(super) fn new(max_connections: usize, acceptor: Arc<Waker>) -> Registry {
        Registry {
            mailboxes: Mutex::new(HashMap::new()),
            max_connections,
            taken: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            threads: AtomicUsize::new(0),
            acceptor,
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.taken() >= self.max_connections
    }

    /// Places taken.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn threads(&self) -> &AtomicUsize {
        &self.threads
    }

    /// A place for a connection that was just accepted.
    pub(super) fn take_place(self: &Arc<Self>) -> Place {
        self.taken.fetch_add(1, Ordering::AcqRel);
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(self))
    }

    /// Makes a connection known; it is until the mailbox is dropped.
    pub(super) fn register(self: &Arc<Self>, mailbox: Mailbox) -> Registered {
        let mailbox = Arc::new(mailbox);
        self.mailboxes.lock().insert(mailbox.info.id, Arc::clone(&mailbox));
        Registered { registry: Arc::clone(self), mailbox }
    }

    pub(super) fn mailbox(&self, id: ConnectionId) -> Option<Arc<Mailbox>> {
        self.mailboxes.lock().get(&id).cloned()
    }

    pub(super) fn connections(&self) -> Vec<ConnectionInfo> {
        self.mailboxes.lock().values().map(|mailbox| mailbox.info).collect()
    }

    pub(super) fn wake_all(&self) {
        let mailboxes: Vec<_> = self.mailboxes.lock().values().cloned().collect();
        for mailbox in mailboxes {
            mailbox.waker.wake();
        }
    }
}

/// One of the `max_connections`. Dropped after the connection's descriptors are closed, it lets the acceptor
/// go on if that waits for one.
pub(super) struct Place(Arc<Registry>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::AcqRel);
        self.0.acceptor.wake();
    }
}

/// A connection that is known; forgotten when this is dropped.
pub(super) struct Registered {
    registry: Arc<Registry>,
    mailbox: Arc<Mailbox>,
}

impl std::ops::Deref for Registered {
    type Target = Mailbox;

    fn deref(&self) -> &Mailbox {
        &self.mailbox
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.mailboxes.lock().remove(&self.mailbox.info.id);
    }
}

/// What other threads have for one connection. Its worker, which alone touches the socket, takes it out.
pub(super) struct Mailbox {
    info: ConnectionInfo,
    waker: Arc<Waker>,
    max_bytes: usize,
    mail: Mutex<Mail>,
    /// Something is in `mail`; spares the worker the lock.
    any: AtomicBool,
}

#[derive(Default)]
pub(super) struct Mail {
    pub(super) bytes: Vec<u8>,
    /// Close the connection once the bytes are flushed.
    pub(super) close: bool,
    /// The worker takes no more.
    sealed: bool,
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

    /// Whether there is mail of at most so many bytes.
    pub(super) fn has_mail(&self, room: usize) -> bool {
        self.any.load(Ordering::Relaxed) && self.mail.lock().bytes.len() <= room
    }

    /// Takes the mail, if there is any and its bytes fit.
    pub(super) fn take(&self, room: usize) -> Option<Mail> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut mail = self.mail.lock();
        if mail.bytes.len() > room {
            return None;
        }
        self.any.store(false, Ordering::Relaxed);
        let taken = Mail { bytes: std::mem::take(&mut mail.bytes), close: mail.close, sealed: false };
        Some(taken)
    }

    /// From here on, whoever sends is told that the connection is closed. Returns what was accepted before.
    pub(super) fn seal(&self) -> Vec<u8> {
        let mut mail = self.mail.lock();
        mail.sealed = true;
        std::mem::take(&mut mail.bytes)
    }
}
