//! Which connections there are, how many there may be, and how to reach each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::admission::Refusal;
use super::buffered::BufferedByAll;
use super::close_reason::CloseReason;
use super::connection_info::{ConnectionId, ConnectionInfo};
use super::mailbox::Mailbox;
use super::stats::{ClosedBeside, ClosedStats, RefusedStats, Traffic};
use super::tally::Tally;
use crate::error::SendError;
use crate::net::{Address, FileBudget, FilePart, Piece, SharedBytes, Waker};

pub(super) struct Registry {
    entries: Mutex<Entries>,
    refused: Mutex<RefusedStats>,
    /// Threads that have to end before the server has: those of workers, idle ones included, and of packet sockets.
    threads: AtomicUsize,
    pub(super) buffered: Arc<BufferedByAll>,
    pub(super) files: Arc<FileBudget>,
}

#[derive(Default)]
struct Entries {
    open: BTreeMap<ConnectionId, Arc<Entry>>,
    /// Those of whom a proxy's header or a TLS handshake is awaited; nobody else knows of them yet.
    opening: HashMap<ConnectionId, Arc<Waker>>,
    users: HashMap<Arc<str>, BTreeSet<ConnectionId>>,
    closed: ClosedStats,
    /// Of connections that are closed.
    traffic: Traffic,
}

/// What others may know of a connection, and the way to it.
pub(super) struct Entry {
    pub(super) id: ConnectionId,
    pub(super) peer_addr: Address,
    pub(super) local_addr: Address,
    pub(super) listener: Arc<str>,
    pub(super) mailbox: Mailbox,
    pub(super) tally: Tally,
    pub(super) protected: AtomicBool,
    user: Mutex<Option<Arc<str>>>,
}

/// So many files may wait however few connections there may be.
const MIN_FILES: usize = 16;

impl Registry {
    pub(super) fn new(max_connections: usize, max_buffered: usize) -> Registry {
        Registry {
            entries: Mutex::default(),
            refused: Mutex::default(),
            threads: AtomicUsize::new(0),
            buffered: Arc::new(BufferedByAll::new(max_buffered)),
            files: Arc::new(FileBudget::new((max_connections / 8).max(MIN_FILES))),
        }
    }

    pub(super) fn refused(&self) -> RefusedStats {
        *self.refused.lock()
    }

    pub(super) fn count_no_thread(&self) {
        self.refused.lock().no_thread += 1;
    }

    pub(super) fn count_shut_out(&self) {
        self.refused.lock().shutdown += 1;
    }

    pub(super) fn count_refusal(&self, refusal: Refusal) {
        let mut refused = self.refused.lock();
        match refusal {
            Refusal::TooMany => refused.too_many_of_address += 1,
            Refusal::TooFast => refused.too_fast_of_address += 1,
        }
    }

    pub(super) fn threads(&self) -> &AtomicUsize {
        &self.threads
    }

    /// Makes it possible to wake a connection that is not open yet; until this is dropped.
    pub(super) fn opening(self: &Arc<Self>, id: ConnectionId, waker: &Arc<Waker>) -> Opening {
        self.entries.lock().opening.insert(id, Arc::clone(waker));
        Opening { registry: Arc::clone(self), id }
    }

    /// Makes a connection known; it is until this is closed.
    pub(super) fn register(self: &Arc<Self>, entry: Entry) -> Registered {
        let entry = Arc::new(entry);
        self.entries.lock().open.insert(entry.id, Arc::clone(&entry));
        Registered { registry: Arc::clone(self), entry }
    }

    pub(super) fn get(&self, id: ConnectionId) -> Option<Arc<Entry>> {
        self.entries.lock().open.get(&id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().open.values().cloned().collect()
    }

    /// Those of them that are open, and the rest.
    pub(super) fn among(&self, ids: impl IntoIterator<Item = ConnectionId>) -> (Vec<Arc<Entry>>, Vec<ConnectionId>) {
        // The iterator is user code, under which no lock is held.
        let ids: Vec<_> = ids.into_iter().collect();
        let (mut open, mut closed) = (Vec::with_capacity(ids.len()), Vec::new());
        let entries = self.entries.lock();
        for id in ids {
            match entries.open.get(&id) {
                Some(entry) => open.push(Arc::clone(entry)),
                None => closed.push(id),
            }
        }
        (open, closed)
    }

    pub(super) fn list(
        &self,
        after: Option<ConnectionId>,
        limit: usize,
        user: Option<&str>,
        wanted: impl Fn(&ConnectionInfo) -> bool,
    ) -> Vec<ConnectionInfo> {
        let range = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let entries = self.entries.lock();
        let wanted = |entry: &Arc<Entry>| Some(entry.info()).filter(&wanted);
        match user {
            None => entries.open.range(range).filter_map(|(_, entry)| wanted(entry)).take(limit).collect(),
            Some(user) => {
                let ids = entries.users.get(user).into_iter().flat_map(|ids| ids.range(range));
                ids.filter_map(|id| wanted(entries.open.get(id)?)).take(limit).collect()
            }
        }
    }

    pub(super) fn of_user(&self, user: &str) -> Vec<ConnectionId> {
        self.entries.lock().users.get(user).into_iter().flatten().copied().collect()
    }

    pub(super) fn closed(&self) -> ClosedStats {
        self.entries.lock().closed
    }

    pub(super) fn traffic(&self) -> Traffic {
        let entries = self.entries.lock();
        let mut traffic = entries.traffic;
        for entry in entries.open.values() {
            traffic.add(&entry.tally.traffic());
        }
        traffic
    }

    pub(super) fn wake_all(&self) {
        let (open, opening): (Vec<_>, Vec<_>) = {
            let entries = self.entries.lock();
            (entries.open.values().cloned().collect(), entries.opening.values().cloned().collect())
        };
        for entry in open {
            entry.mailbox.waker().wake();
        }
        for waker in opening {
            waker.wake();
        }
    }
}

impl Entry {
    pub(super) fn new(
        id: ConnectionId,
        (peer_addr, local_addr): (Address, Address),
        listener: Arc<str>,
        mailbox: Mailbox,
        tally: Tally,
    ) -> Entry {
        let (protected, user) = (AtomicBool::new(false), Mutex::new(None));
        Entry { id, peer_addr, local_addr, listener, mailbox, tally, protected, user }
    }

    pub(super) fn send(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.mailbox.send(bytes, &self.tally)
    }

    /// Bytes that others are sent too.
    pub(super) fn send_shared(&self, bytes: SharedBytes) -> Result<(), SendError> {
        self.mailbox.send_piece(Piece::shared(bytes), &self.tally)
    }

    pub(super) fn send_file(&self, part: FilePart) -> Result<(), SendError> {
        self.mailbox.send_piece(Piece::File(part), &self.tally)
    }

    pub(super) fn user(&self) -> Option<Arc<str>> {
        self.user.lock().clone()
    }

    pub(super) fn info(&self) -> ConnectionInfo {
        let traffic = self.tally.traffic();
        ConnectionInfo {
            id: self.id,
            peer_addr: self.peer_addr.clone(),
            local_addr: self.local_addr.clone(),
            listener: Arc::clone(&self.listener),
            user: self.user(),
            connected_at: self.tally.connected_at,
            received_at: self.tally.received_at(),
            sent_at: self.tally.sent_at(),
            bytes_received: traffic.bytes_received,
            bytes_sent: traffic.bytes_sent,
            frames_received: traffic.frames_received,
            messages_sent: traffic.messages_sent,
            tasks_in_flight: self.tally.tasks_in_flight.load(Ordering::Relaxed),
            outbox_bytes: self.tally.outbox_bytes.load(Ordering::Relaxed) + self.mailbox.bytes(),
            protected: self.protected.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {} from {}", self.id, self.peer_addr)
    }
}

/// A connection that is not open yet.
pub(super) struct Opening {
    registry: Arc<Registry>,
    id: ConnectionId,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.registry.entries.lock().opening.remove(&self.id);
    }
}

/// A connection that is known; forgotten when this is dropped.
pub(super) struct Registered {
    registry: Arc<Registry>,
    entry: Arc<Entry>,
}

impl Registered {
    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Finds it by this user from now on, and by no other.
    pub(super) fn bind(&self, user: Option<Arc<str>>) {
        let mut entries = self.registry.entries.lock();
        let before = std::mem::replace(&mut *self.entry.user.lock(), user.clone());
        entries.forget_user(before, self.entry.id);
        if let Some(user) = user {
            entries.users.entry(user).or_default().insert(self.entry.id);
        }
    }

    pub(super) fn count_closed(&self, reason: &CloseReason, beside: ClosedBeside) {
        self.registry.entries.lock().closed.count(reason, beside);
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut entries = self.registry.entries.lock();
        entries.open.remove(&self.entry.id);
        entries.forget_user(self.entry.user(), self.entry.id);
        entries.traffic.add(&self.entry.tally.traffic());
    }
}

impl Entries {
    fn forget_user(&mut self, user: Option<Arc<str>>, id: ConnectionId) {
        let Some(user) = user else { return };
        if let Some(ids) = self.users.get_mut(&user) {
            ids.remove(&id);
            if ids.is_empty() {
                self.users.remove(&user);
            }
        }
    }
}
