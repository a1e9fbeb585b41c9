//! Where tasks wait: the only place that knows it is a crossbeam channel in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

use super::Wake;
use super::idle::Idle;
use super::reply::Ticket;
use crate::panic::catch;
use crate::patience::Patience;
use crate::stats::Ledger;

/// One piece of slow work, and the right to say how it ended.
pub(super) struct Task<T, R> {
    pub(super) payload: T,
    pub(super) ticket: Ticket<R>,
}

/// No submitter goes on for longer without looking how many tasks wait.
const MAX_CREDIT: usize = 15;

/// Each submitter may bring one task more than the capacity before it pauses; and all together so many times the
/// capacity, in callbacks that submit many, or of connections that come and go.
const HARD_LIMIT: usize = 4;

enum Entry<T, R> {
    Task(Task<T, R>),
    /// Ends the loop of one task worker. Waits behind the tasks that were there before it.
    Stop,
}

pub(super) struct Queue<T, R> {
    sender: Sender<Entry<T, R>>,
    receiver: Receiver<Entry<T, R>>,
    capacity: usize,
    submitters: usize,
    closed: AtomicBool,
    idle: Idle,
    /// Somebody in `waiting` wants to hear when there is room.
    awaited: AtomicBool,
    waiting: Mutex<Vec<Arc<dyn Wake>>>,
    /// How often those waiting have been woken, all at once.
    rounds: AtomicU64,
}

impl<T, R> Queue<T, R> {
    /// At `capacity` submitters are to pause, of whom there are at most so many at once.
    pub(super) fn new(capacity: usize, submitters: usize) -> Queue<T, R> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        Queue {
            sender,
            receiver,
            capacity,
            submitters,
            closed: AtomicBool::new(false),
            idle: Idle::new(),
            awaited: AtomicBool::new(false),
            waiting: Mutex::new(Vec::new()),
            rounds: AtomicU64::new(0),
        }
    }

    /// Never waits. Hands the task back once the queue is closed.
    pub(super) fn push(&self, task: Task<T, R>, ledger: &Ledger) -> Result<(), Task<T, R>> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(task);
        }
        ledger.accepted.add(1);
        // Cannot fail: a receiver lives as long as this.
        let _ = self.sender.send(Entry::Task(task));
        // Either we see here that it was closed meanwhile, or whoever closes it sees this task; and likewise with a
        // task worker that goes to sleep.
        fence(Ordering::SeqCst);
        self.idle.wake_one();
        if self.closed.load(Ordering::Relaxed) {
            self.abandon_all(ledger);
        }
        Ok(())
    }

    /// The next task; `None` tells the caller's loop to end. Blocks until there is either, and calls
    /// `before_waiting` first if it has to.
    pub(super) fn take(&self, patience: &mut Patience, before_waiting: impl FnOnce()) -> Option<Task<T, R>> {
        let entry = match self.receiver.try_recv() {
            Ok(entry) => entry,
            Err(_) => {
                before_waiting();
                self.idle.wait(patience, || self.receiver.try_recv().ok(), || self.receiver.is_empty())
            }
        };
        // Either we see who registered, or it sees the place that we made.
        fence(Ordering::SeqCst);
        if self.is_awaited() && self.has_room() {
            self.wake_waiting();
        }
        match entry {
            Entry::Task(task) => Some(task),
            Entry::Stop => None,
        }
    }

    /// Ends the loops of `count` task workers, each once nothing waits before it.
    pub(super) fn stop(&self, count: usize) {
        for _ in 0..count {
            let _ = self.sender.send(Entry::Stop);
        }
        fence(Ordering::SeqCst);
        self.idle.wake_all();
    }

    /// Takes no more, and gives up what waits.
    pub(super) fn close(&self, ledger: &Ledger) {
        self.closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.abandon_all(ledger);
    }

    fn abandon_all(&self, ledger: &Ledger) {
        let mut stops = 0;
        while let Ok(entry) = self.receiver.try_recv() {
            match entry {
                Entry::Task(Task { payload, ticket }) => {
                    ticket.abandon(None, ledger);
                    // The payload's own drop may panic; the rest must be given up all the same.
                    let _ = catch(|| drop(payload));
                }
                Entry::Stop => stops += 1,
            }
        }
        self.stop(stops);
    }

    /// How many tasks wait.
    pub(super) fn len(&self) -> usize {
        self.receiver.len()
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Where even those who pause at the capacity are refused.
    pub(super) fn hard_limit(&self) -> usize {
        self.capacity.saturating_mul(HARD_LIMIT).saturating_add(self.submitters)
    }

    /// How many tasks a submitter that found so many waiting may submit before it looks again. If all of them do,
    /// the queue has twice its capacity at most. Looking costs a cache miss while task workers are busy.
    pub(super) fn credit(&self, waiting: usize) -> usize {
        (self.capacity.saturating_sub(waiting) / self.submitters.max(1)).min(MAX_CREDIT)
    }

    /// Somebody waits for room. Who comes later waits too, or those who wait might do so for ever.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    /// At most half full, which is when those who wait may go on.
    pub(super) fn has_room(&self) -> bool {
        self.len() <= self.capacity / 2
    }

    /// Registers to be woken once there is room, and returns the round it waits for. Look at `has_room` again
    /// after it; and register again if there is no room after that round, since others may have been faster.
    pub(super) fn await_room(&self, waiter: Arc<dyn Wake>) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.push(waiter);
        self.awaited.store(true, Ordering::Relaxed);
        let round = self.rounds();
        drop(waiting);
        fence(Ordering::SeqCst);
        round
    }

    pub(super) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    fn wake_waiting(&self) {
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
