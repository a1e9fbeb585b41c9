//! Renewing the states of the task workers, one at a time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use super::Crew;

/// Who is to renew its state. Whoever is between two tasks takes the turn if nobody has it, so one that is busy for
/// long holds up no other.
pub(super) struct Renewals {
    /// By index, whether it is to.
    due: Box<[AtomicBool]>,
    /// Whose turn it is: its index, or `NOBODY`.
    turn: AtomicUsize,
}

const NOBODY: usize = usize::MAX;

impl Renewals {
    pub(super) fn new(workers: usize) -> Renewals {
        Renewals { due: (0..workers).map(|_| AtomicBool::new(false)).collect(), turn: AtomicUsize::new(NOBODY) }
    }

    fn is_due(&self, index: usize) -> bool {
        self.due[index].load(Ordering::Relaxed)
    }
}

impl<R> Crew<R> {
    /// All are to renew their state; those that are told already do so once.
    pub(in crate::task) fn renew_all(&self) {
        for due in &self.renewals.due {
            due.store(true, Ordering::Relaxed);
        }
        self.offer_turn();
    }

    /// Whether this one is to renew its state now. If so, nobody else is until it [has](Self::renewed).
    #[inline]
    pub(in crate::task) fn takes_turn(&self, index: usize) -> bool {
        self.renewals.is_due(index)
            && self.renewals.turn.compare_exchange(NOBODY, index, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// This one is about to make a new state; if all are told to renew theirs from here on, it does so once more.
    pub(in crate::task) fn renews(&self, index: usize) {
        self.renewals.due[index].store(false, Ordering::Relaxed);
    }

    /// This one has a new state, or has ended.
    pub(in crate::task) fn renewed(&self, index: usize) {
        if self.renewals.turn.compare_exchange(index, NOBODY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.offer_turn();
        }
    }

    /// Wakes those who are to take it and sleep. Those who run a task look when it has ended.
    fn offer_turn(&self) {
        // Either who goes to sleep sees that nobody has the turn, or we see it sleep.
        fence(Ordering::SeqCst);
        for index in (0..self.size()).filter(|&index| self.renewals.is_due(index)) {
            self.idle.wake(index);
        }
    }
}
