//! Submitters that found the queue full, and wait for room.
//!
//! No wake-up is lost: who waits registers first and looks for room second; who takes a task out makes room first and
//! looks for those who wait second. Each puts a full fence between the two.

use std::sync::Arc;

use super::Wake;
use super::sync::{AtomicBool, AtomicUsize, Mutex, Ordering, fence};

pub(super) struct Waiters {
    /// Somebody is in `waiting`.
    awaited: AtomicBool,
    waiting: Mutex<Vec<Arc<dyn Wake>>>,
    /// How often those waiting have been woken, all at once.
    rounds: AtomicUsize,
}

impl Waiters {
    pub(super) fn new() -> Waiters {
        Waiters { awaited: AtomicBool::new(false), waiting: Mutex::new(Vec::new()), rounds: AtomicUsize::new(0) }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        !self.awaited.load(Ordering::Relaxed)
    }

    pub(super) fn rounds(&self) -> usize {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Registers to be woken once there is room, and returns the round it waits for. Look for room after it; and
    /// register again if there is none after that round, since others may have been faster.
    pub(super) fn register(&self, waiter: Arc<dyn Wake>) -> usize {
        let mut waiting = self.waiting.lock();
        waiting.push(waiter);
        self.awaited.store(true, Ordering::Relaxed);
        let round = self.rounds();
        drop(waiting);
        fence(Ordering::SeqCst);
        round
    }

    /// A task was taken out: wakes all who wait, if there is room now.
    #[inline]
    pub(super) fn taken(&self, has_room: impl FnOnce() -> bool) {
        fence(Ordering::SeqCst);
        if !self.is_empty() && has_room() {
            self.wake_all();
        }
    }

    /// Wakes all who wait, whether or not there is room.
    pub(super) fn wake_all(&self) {
        let woken = {
            let mut waiting = self.waiting.lock();
            self.awaited.store(false, Ordering::Relaxed);
            self.rounds.fetch_add(1, Ordering::Relaxed);
            std::mem::take(&mut *waiting)
        };
        fence(Ordering::SeqCst);
        for waiter in woken {
            waiter.wake();
        }
    }
}
