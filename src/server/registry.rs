//! Which connections there are, how many there may be, and where each has its mailbox.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::mailbox::Mailbox;
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

    pub(super) fn is_full(&self, taken: usize) -> bool {
        taken >= self.max_connections
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
