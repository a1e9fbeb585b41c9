//! Task workers with nothing to do: those that still look for a task, and those that sleep.
//!
//! While one looks, or was woken to, nobody is woken: it will find what was pushed meanwhile, and wakes another if it
//! leaves something. So a burst of tasks costs its submitter one wake-up, and not one for each. Go's and tokio's
//! schedulers do the same. What it costs: a task may wait until the one that looks has a processor.
//!
//! A task for one task worker alone wakes that one, whoever else looks.

use super::Patience;
use super::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, fence};

pub(super) struct Idle {
    /// How many look, or were woken to.
    looking: AtomicUsize,
    /// How many sleep and have not been woken yet. Written under `door`.
    sleeping: AtomicUsize,
    /// Who sleeps and has not been woken yet.
    door: Mutex<Vec<usize>>,
    /// What each sleeps on. The channel's own `recv` yields before it sleeps, which costs dear beside somebody who
    /// computes.
    knocks: Box<[Condvar]>,
}

impl Idle {
    pub(super) fn new(workers: usize) -> Idle {
        Idle {
            looking: AtomicUsize::new(0),
            sleeping: AtomicUsize::new(0),
            door: Mutex::new(Vec::new()),
            knocks: (0..workers).map(|_| Condvar::new()).collect(),
        }
    }

    /// Waits until `take` has something for this task worker. `is_empty` tells whether there is nothing for any other.
    pub(super) fn wait<X>(
        &self,
        index: usize,
        patience: &mut Patience,
        mut take: impl FnMut() -> Option<X>,
        is_empty: impl Fn() -> bool,
    ) -> X {
        self.looking.fetch_add(1, Ordering::Relaxed);
        let taken = patience.wait(usize::MAX, Patience::HOT, &mut take).unwrap_or_else(|| self.sleep(index, take));
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
    fn sleep<X>(&self, index: usize, mut take: impl FnMut() -> Option<X>) -> X {
        let mut door = self.door.lock();
        loop {
            door.push(index);
            self.sleeping.fetch_add(1, Ordering::Relaxed);
            self.looking.fetch_sub(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if let Some(taken) = take() {
                self.rouse(&mut door, index);
                return taken;
            }
            while door.contains(&index) {
                self.knocks[index].wait(&mut door);
            }
        }
    }

    /// This one is to look again, if it sleeps; whether it did.
    fn rouse(&self, door: &mut MutexGuard<'_, Vec<usize>>, index: usize) -> bool {
        let place = door.iter().position(|&sleeper| sleeper == index);
        if let Some(place) = place {
            door.swap_remove(place);
            self.looking.fetch_add(1, Ordering::Relaxed);
            self.sleeping.fetch_sub(1, Ordering::Relaxed);
            self.knocks[index].notify_one();
        }
        place.is_some()
    }

    /// Has one task worker look, if one sleeps and none looks already. The caller has put a full fence between its
    /// push and this.
    pub(super) fn wake_one(&self) {
        if !self.may_wake() {
            return;
        }
        let mut door = self.door.lock();
        if self.may_wake() {
            if let Some(&latest) = door.last() {
                self.rouse(&mut door, latest);
            }
        }
    }

    /// Has this task worker look, if it sleeps; whether it did. The same holds for the caller.
    pub(super) fn wake(&self, index: usize) -> bool {
        self.sleeping.load(Ordering::Relaxed) > 0 && self.rouse(&mut self.door.lock(), index)
    }

    /// Has all look that sleep. The same holds for the caller.
    pub(super) fn wake_all(&self) {
        let mut door = self.door.lock();
        while let Some(&latest) = door.last() {
            self.rouse(&mut door, latest);
        }
    }

    fn may_wake(&self) -> bool {
        self.looking.load(Ordering::Relaxed) == 0 && self.sleeping.load(Ordering::Relaxed) > 0
    }
}
