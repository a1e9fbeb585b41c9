//! Renewing the states of the task workers, one at a time.
//!
//! Whoever is between two tasks takes the turn if nobody has it, so one that is busy for long holds up no other.

use super::sync::{AtomicBool, AtomicUsize, Ordering, fence};

pub(super) struct Renewals {
    /// By the index of a task worker, whether it is to renew its state.
    due: Box<[AtomicBool]>,
    /// Whose turn it is: its index, or `NOBODY`.
    turn: AtomicUsize,
}

const NOBODY: usize = usize::MAX;

impl Renewals {
    pub(super) fn new(workers: usize) -> Renewals {
        Renewals { due: (0..workers).map(|_| AtomicBool::new(false)).collect(), turn: AtomicUsize::new(NOBODY) }
    }

    /// All are to renew their state; those that are told already do so once. `wake` wakes one,
    /// if it sleeps, and says whether it did.
    pub(super) fn tell_all(&self, wake: impl Fn(usize) -> bool) {
        for due in &self.due {
            due.store(true, Ordering::Relaxed);
        }
        self.offer_turn(wake);
    }

    /// Whether this one is to renew its state now. If so, nobody else is until it [has](Self::done).
    #[inline]
    pub(super) fn takes_turn(&self, index: usize) -> bool {
        self.is_due(index) && self.turn.compare_exchange(NOBODY, index, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// This one is about to make a new state; if all are told to renew theirs from here on, it does so once more.
    pub(super) fn begin(&self, index: usize) {
        self.due[index].store(false, Ordering::Relaxed);
    }

    /// This one has a new state, or has ended.
    pub(super) fn done(&self, index: usize, wake: impl Fn(usize) -> bool) {
        if self.turn.compare_exchange(index, NOBODY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.offer_turn(wake);
        }
    }

    /// Wakes one who is to take the turn and sleeps. Those who run a task look when it has ended.
    fn offer_turn(&self, wake: impl Fn(usize) -> bool) {
        // Either who goes to sleep sees that it may have the turn, or we see it sleep.
        fence(Ordering::SeqCst);
        let _ = (0..self.due.len()).filter(|&index| self.is_due(index)).any(wake);
    }

    fn is_due(&self, index: usize) -> bool {
        self.due[index].load(Ordering::Relaxed)
    }
}
