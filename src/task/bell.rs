//! What a thread sleeps on that waits for room in the queue.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::Wake;

#[derive(Default)]
pub(super) struct Bell {
    door: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// Blocks until `ready`, which is asked again whenever the bell is rung; false at the deadline.
    pub(super) fn wait_until(&self, deadline: Instant, ready: impl Fn() -> bool) -> bool {
        let mut door = self.door.lock();
        while !ready() {
            if self.rung.wait_until(&mut door, deadline).timed_out() {
                return ready();
            }
        }
        true
    }
}

impl Wake for Bell {
    fn wake(&self) -> bool {
        // Whoever waits holds the door between asking and sleeping; taking it here, no one is missed.
        drop(self.door.lock());
        self.rung.notify_all();
        true
    }
}
