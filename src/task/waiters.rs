//! Submitters that found the queue full, and wait in line for room.
//!
//! A few at a time are called; each that leaves the line again, because it has found room or is gone, has the next one
//! called while there is room. So thousands that wait cost no more than those that there is room for, where waking all
//! of them would have most find the room taken. And where there is none for long, since those who have just come and wait
//! for nothing yet keep the queue full, somebody is called for one in a few tasks all the same.
//!
//! No wake-up is lost: who waits registers first and looks for room second; who takes a task out makes room first and
//! looks for those who wait second. Each puts a full fence between the two. And while somebody waits and there is room,
//! somebody is called who will leave: whoever gives a turn back, or finds all of them taken, does so under the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Wake;
use super::sync::{AtomicBool, AtomicUsize, Mutex, Ordering, fence};

pub(super) struct Waiters {
    /// Somebody waits who was not called yet.
    awaited: AtomicBool,
    line: Mutex<Line>,
    /// All whose place is before this one were called.
    called: AtomicUsize,
    /// So many may be called at once.
    turns: usize,
    /// Tasks that were taken while somebody waited, and there was no room.
    taken: AtomicUsize,
    /// From so many on, others must be filling the queue; until then it may be draining.
    patience: usize,
}

/// For one in so many of them somebody is called then.
const FAIR_SHARE: usize = 4;

struct Line {
    waiting: BTreeMap<usize, Arc<dyn Wake>>,
    next_place: usize,
    /// Who was woken by its call, and has not left. Whoever is called in the midst of something else has no turn that
    /// others would have to wait for.
    turns: BTreeSet<usize>,
}

impl Waiters {
    pub(super) fn new(turns: usize, patience: usize) -> Waiters {
        let line = Line { waiting: BTreeMap::new(), next_place: 0, turns: BTreeSet::new() };
        Waiters {
            awaited: AtomicBool::new(false),
            line: Mutex::new(line),
            called: AtomicUsize::new(0),
            turns,
            taken: AtomicUsize::new(0),
            patience,
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        !self.awaited.load(Ordering::Relaxed)
    }

    /// Takes a place in the line, to be woken when it is called. Look for room after it. Must leave, in every case.
    pub(super) fn register(&self, waiter: Arc<dyn Wake>) -> usize {
        let mut line = self.line.lock();
        let place = line.next_place;
        line.next_place += 1;
        line.waiting.insert(place, waiter);
        self.awaited.store(true, Ordering::Relaxed);
        drop(line);
        fence(Ordering::SeqCst);
        place
    }

    pub(super) fn is_called(&self, place: usize) -> bool {
        place < self.called.load(Ordering::Acquire)
    }

    /// No longer waits there. If it was called, the next one is, while there is room.
    pub(super) fn leave(&self, place: usize, has_room: impl Fn() -> bool) {
        let mut line = self.line.lock();
        match line.waiting.remove(&place) {
            Some(_) => self.awaited.store(!line.waiting.is_empty(), Ordering::Relaxed),
            None => {
                line.turns.remove(&place);
                drop(line);
                self.call_some(has_room);
            }
        }
    }

    /// A task was taken out: calls some who wait, if there is room now.
    #[inline]
    pub(super) fn taken(&self, has_room: impl Fn() -> bool) {
        fence(Ordering::SeqCst);
        if self.is_empty() || self.call_some(has_room) {
            return;
        }
        let taken = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        if taken > self.patience && taken % FAIR_SHARE == 0 {
            self.call(|turns| usize::from(turns < self.turns));
        }
    }

    /// Calls as many as there are turns for, if there is room; whether there is.
    fn call_some(&self, has_room: impl Fn() -> bool) -> bool {
        let has_room = !self.is_empty() && has_room();
        if has_room {
            self.taken.store(0, Ordering::Relaxed);
            self.call(|turns| self.turns.saturating_sub(turns));
        }
        has_room
    }

    /// A task worker finds nothing: calls some more, since those who were called may be busy with something else.
    pub(super) fn starved(&self, has_room: impl Fn() -> bool) {
        if !self.is_empty() && has_room() {
            self.call(|_| self.turns);
        }
    }

    /// Calls all, whether or not there is room.
    pub(super) fn call_all(&self) {
        self.call(|_| usize::MAX);
    }

    /// Calls as many as `how_many` says, given how many have a turn, beside those who do not sleep.
    #[cold]
    fn call(&self, how_many: impl Fn(usize) -> usize) {
        loop {
            let called = self.take(&how_many);
            fence(Ordering::SeqCst);
            let awake: Vec<usize> =
                called.into_iter().filter_map(|(place, waiter)| (!waiter.wake()).then_some(place)).collect();
            if awake.is_empty() {
                return;
            }
            let mut line = self.line.lock();
            line.turns.retain(|place| awake.binary_search(place).is_err());
        }
    }

    /// Those who are first in the line, each with a turn.
    fn take(&self, how_many: impl Fn(usize) -> usize) -> Vec<(usize, Arc<dyn Wake>)> {
        let mut line = self.line.lock();
        let count = how_many(line.turns.len()).min(line.waiting.len());
        let called: Vec<_> = std::iter::from_fn(|| line.waiting.pop_first()).take(count).collect();
        for (place, _) in &called {
            line.turns.insert(*place);
            self.called.store(place + 1, Ordering::Release);
        }
        self.awaited.store(!line.waiting.is_empty(), Ordering::Relaxed);
        called
    }
}
