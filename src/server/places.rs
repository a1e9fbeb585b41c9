//! How many connections there may be, and who waits for one to close.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::net::Waker;

pub(super) struct Places {
    max_connections: usize,
    /// Connections until their socket is closed, and the places that acceptors keep for the next.
    taken: AtomicUsize,
    /// Of these, the connections.
    connections: AtomicUsize,
    /// Connections since the start.
    accepted: AtomicU64,
    acceptors: Vec<Arc<Waker>>,
}

/// One of the `max_connections`. Dropped after the connection's descriptors are closed, it lets the acceptors go on that
/// wait for one.
pub(super) struct Place {
    places: Arc<Places>,
    is_occupied: bool,
}

impl Places {
    pub(super) fn new(max_connections: usize, acceptors: Vec<Arc<Waker>>) -> Places {
        Places {
            max_connections,
            taken: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            acceptors,
        }
    }

    /// Whether there is a place to be taken.
    pub(super) fn has_place(&self) -> bool {
        self.taken.load(Ordering::Acquire) < self.max_connections
    }

    /// Connections that are open or closing.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    pub(super) fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// A place for a connection that is about to be accepted, if one is free.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        self.take_below(self.max_connections)
    }

    /// The same, if each acceptor could still have one.
    pub(super) fn take_spare(self: &Arc<Self>) -> Option<Place> {
        self.take_below(self.max_connections.saturating_sub(self.acceptors.len()))
    }

    fn take_below(self: &Arc<Self>, most: usize) -> Option<Place> {
        let one_more = |taken: usize| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Place { places: Arc::clone(self), is_occupied: false })
    }
}

impl Place {
    /// A connection was accepted, and has it.
    pub(super) fn occupy(&mut self) {
        self.is_occupied = true;
        self.places.connections.fetch_add(1, Ordering::AcqRel);
        self.places.accepted.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_occupied {
            self.places.connections.fetch_sub(1, Ordering::AcqRel);
        }
        self.places.taken.fetch_sub(1, Ordering::AcqRel);
        for acceptor in &self.places.acceptors {
            acceptor.wake();
        }
    }
}
