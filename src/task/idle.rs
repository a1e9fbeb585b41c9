//! Task workers with nothing to do: those that still look for a task, and those that sleep.
//!
//! While one looks, or was woken to, nobody is woken: it will find what was pushed meanwhile, and wakes another if it
//! leaves something. So a burst of tasks costs its submitter one wake-up, and not one for each. Go's and tokio's
//! schedulers do the same. What it costs: a task may wait until the one that looks has a processor.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::patience::Patience;

/// How long a task worker with nothing to do lets others run before it sleeps: about what waking it costs. A client
/// that waits for each answer before it asks again finds it awake.
const HOT: Duration = Duration::from_micros(50);

pub(super) struct Idle {
    /// How many look, or were woken to.
    looking: AtomicUsize,
    /// How many sleep and have not been woken yet. Written under `door`.
    sleeping: AtomicUsize,
    /// Where they sleep; the channel's own `recv` yields before it does, which costs dear beside somebody who computes.
    door: Mutex<()>,
    knock: Condvar,
}

impl Idle {
    pub(super) fn new() -> Idle {
        Idle {
            looking: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            door: Mutex::new(()),
            knock: Condvar::new(),
        }
    }

    /// Waits until `take` has something. `is_empty` tells whether it would have nothing now.
    pub(super) fn wait<X>(
        &self,
        patience: &mut Patience,
        mut take: impl FnMut() -> Option<X>,
        is_empty: impl Fn() -> bool,
    ) -> X {
        self.looking.fetch_add(1, Ordering::Relaxed);
        let taken = patience.wait(usize::MAX, HOT, &mut take).unwrap_or_else(|| self.sleep(take));
        if self.looking.fetch_sub(1, Ordering::Relaxed) == 1 {
            // A push that still saw us looking relies on us.
            fence(Ordering::SeqCst);
            if !is_empty() {
                self.wake_one();
            }
        }
        taken
    }

    /// First counts itself as sleeping and no longer looking, and then takes; whoever pushes does the reverse.
    fn sleep<X>(&self, mut take: impl FnMut() -> Option<X>) -> X {
        let mut door = self.door.lock();
        loop {
            self.sleeping.fetch_add(1, Ordering::Relaxed);
            self.looking.fetch_sub(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if let Some(taken) = take() {
                self.rouse(1);
                return taken;
            }
            // This condition variable has no spurious wake-ups, so whoever woke us has roused us.
            self.knock.wait(&mut door);
        }
    }

    /// So many that sleep are to look again. The caller holds the door.
    fn rouse(&self, count: usize) {
        self.looking.fetch_add(count, Ordering::Relaxed);
        self.sleeping.fetch_sub(count, Ordering::Relaxed);
    }

    /// Has one task worker look, if one sleeps and none looks already. The caller has put a full fence between its
    /// push and this.
    pub(super) fn wake_one(&self) {
        if !self.may_wake() {
            return;
        }
        let _door = self.door.lock();
        if self.may_wake() {
            self.rouse(1);
            self.knock.notify_one();
        }
    }

    /// Has all look that sleep. The same holds for the caller.
    pub(super) fn wake_all(&self) {
        let _door = self.door.lock();
        self.rouse(self.sleeping.load(Ordering::Relaxed));
        self.knock.notify_all();
    }

    fn may_wake(&self) -> bool {
        self.looking.load(Ordering::Relaxed) == 0 && self.sleeping.load(Ordering::Relaxed) > 0
    }
}
