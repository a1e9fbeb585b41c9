//! How many connections there may be, and who waits for one to close.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::net::Waker;

pub(super) struct Places {
    max_connections: usize,
    /// By connections until their socket is closed, and by whoever accepts one just now.
    taken: AtomicUsize,
    /// Of these, the connections.
    connections: AtomicUsize,
    /// Connections since the start.
    accepted: AtomicU64,
    acceptors: Vec<Arc<Waker>>,
    /// How many acceptors lack something else for a client: a descriptor, a thread.
    short: AtomicUsize,
}

/// An acceptor lacks something, until this is dropped.
pub(super) struct Short(Arc<Places>);

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
            short: AtomicUsize::new(0),
        }
    }

    pub(super) fn max_connections(&self) -> usize {
        self.max_connections
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

    /// Has all acceptors look whether they are to go on.
    pub(super) fn interrupt_acceptors(&self) {
        self.acceptors.iter().for_each(|waker| waker.interrupt());
    }

    /// One was accepted for which there was no place.
    pub(super) fn count_refused(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    /// A place for a connection that is about to be accepted, if one is free.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        self.take_below(self.max_connections)
    }

    /// The same, if each acceptor could still have one, and lacks nothing else.
    pub(super) fn take_spare(self: &Arc<Self>) -> Option<Place> {
        if self.short.load(Ordering::Relaxed) > 0 {
            return None;
        }
        self.take_below(self.max_connections.saturating_sub(self.acceptors.len()))
    }

    /// Leaves what others give back to an acceptor.
    pub(super) fn short(self: &Arc<Self>) -> Short {
        self.short.fetch_add(1, Ordering::Relaxed);
        Short(Arc::clone(self))
    }

    fn take_below(self: &Arc<Self>, most: usize) -> Option<Place> {
        let one_more = |taken: usize| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Place { places: Arc::clone(self), is_occupied: false })
    }
}

impl Drop for Short {
    fn drop(&mut self) {
        self.0.short.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Sleeper;

    fn places(max_connections: usize, acceptors: usize) -> Arc<Places> {
        let acceptors = (0..acceptors).map(|_| Arc::clone(Sleeper::new().unwrap().waker())).collect();
        Arc::new(Places::new(max_connections, acceptors))
    }

    #[test]
    fn workers_leave_a_place_for_each_acceptor() {
        let places = places(5, 2);
        let spare: Vec<Place> = std::iter::from_fn(|| places.take_spare()).collect();
        assert_eq!(spare.len(), 3);
        let rest: Vec<Place> = std::iter::from_fn(|| places.take()).collect();
        assert_eq!(rest.len(), 2);
        drop((spare, rest));
        assert!(places.has_place() && places.take_spare().is_some());
    }

    #[test]
    fn workers_take_nothing_while_an_acceptor_lacks_something() {
        let places = places(5, 1);
        let short = places.short();
        assert!(places.take_spare().is_none() && places.take().is_some());
        drop(short);
        assert!(places.take_spare().is_some());
    }
}
