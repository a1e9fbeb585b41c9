//! The mark of a thread that sleeps, or is about to.
//!
//! No wake-up is lost, because both sides put a full fence between their two steps: the sleeper marks itself asleep and
//! then looks at everything that could have come; the other side pushes and then looks at the mark.

use super::sync::{AtomicBool, Ordering, fence};

pub(crate) struct Asleep(AtomicBool);

impl Asleep {
    pub(crate) fn new() -> Asleep {
        Asleep(AtomicBool::new(false))
    }

    /// From here on whoever pushes something finds the mark. Look once more at everything before sleeping.
    pub(crate) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Takes the mark back, once awake.
    pub(crate) fn unmark(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the caller is to wake the sleeper, which is asked of one caller only. It has put a full fence between
    /// what it pushed and this.
    pub(crate) fn take(&self) -> bool {
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}
