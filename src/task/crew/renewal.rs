//! Renewing the states of the task workers, one after the other.

use std::sync::atomic::{Ordering, fence};

use super::{Crew, NOBODY};

impl<R> Crew<R> {
    /// All are to renew their state; those that wait for their turn already do so once.
    pub(in crate::task) fn renew_all(&self) {
        let mut renewals = self.renewals.lock();
        for index in 0..self.slots.len() {
            if !renewals.contains(&index) {
                renewals.push_back(index);
            }
        }
        self.call_next(renewals.front().copied());
    }

    pub(in crate::task) fn is_to_renew(&self, index: usize) -> bool {
        self.turn.load(Ordering::Relaxed) == index
    }

    /// This one has a new state, or has ended.
    pub(in crate::task) fn renewed(&self, index: usize) {
        let mut renewals = self.renewals.lock();
        renewals.retain(|&waiting| waiting != index);
        self.call_next(renewals.front().copied());
    }

    fn call_next(&self, index: Option<usize>) {
        self.turn.store(index.unwrap_or(NOBODY), Ordering::Relaxed);
        if let Some(index) = index {
            fence(Ordering::SeqCst);
            self.idle.wake(index);
        }
    }
}
