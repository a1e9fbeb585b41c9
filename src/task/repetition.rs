//! Tasks that are submitted again and again, by the timer.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::options::TaskOptions;
use super::outcome::TaskId;
use super::port::far;
use super::queue::Job;
use super::reply::ReplyAddress;
use super::room::{Further, Room};
use crate::logging::foreign;
use crate::panic::{catch, drop_fenced};
use crate::stats::Ledger;

/// A task that is submitted again and again, from `task_every`. Dropping this changes nothing; it goes on until
/// [`stop`](Self::stop), until the closure that makes its payloads panics, or until its submitter is gone or a shutdown
/// begins.
#[derive(Clone)]
pub struct Repetition {
    number: u64,
    stopped: Arc<AtomicBool>,
    /// Where the timer is that keeps it.
    keeper: Weak<dyn Keeper>,
}

/// Who keeps repetitions, whatever the types of their tasks.
pub(super) trait Keeper: Send + Sync {
    /// Lets go of a repetition, if it is not just firing.
    fn forget(&self, id: TaskId);
}

impl Repetition {
    /// No further task is submitted, but for one that the timer is just about to; those that were go on. Never blocks.
    /// May be called from anywhere, and again.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(keeper) = self.keeper.upgrade() {
            keeper.forget(repetition_id(self.number));
        }
    }

    /// The [`submitter`](TaskId::submitter) in the ids of its tasks.
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Debug for Repetition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stopped = self.stopped.load(Ordering::Relaxed);
        f.debug_struct("Repetition").field("number", &self.number).field("stopped", &stopped).finish()
    }
}

/// What the timer knows a repetition by; its tasks have sequences from 1.
pub(super) fn repetition_id(number: u64) -> TaskId {
    TaskId { submitter: number, sequence: 0 }
}

/// A shorter period than this is taken for this.
const SHORTEST: Duration = Duration::from_millis(1);

/// The timer's side of it.
pub(super) struct Repeating<T, R> {
    number: u64,
    sequence: u64,
    period: Duration,
    make: Box<dyn FnMut() -> T + Send>,
    options: TaskOptions<T>,
    reply_to: Arc<ReplyAddress<R>>,
    stopped: Arc<AtomicBool>,
    /// Its last task has this too, until it has ended.
    turn: Arc<()>,
}

impl<T, R> Repeating<T, R> {
    pub(super) fn new(
        number: u64,
        period: Duration,
        make: Box<dyn FnMut() -> T + Send>,
        options: TaskOptions<T>,
        reply_to: Arc<ReplyAddress<R>>,
        keeper: Weak<dyn Keeper>,
    ) -> (Repeating<T, R>, Repetition) {
        let stopped = Arc::new(AtomicBool::new(false));
        let handle = Repetition { number, stopped: Arc::clone(&stopped), keeper };
        let period = period.max(SHORTEST);
        (Repeating { number, sequence: 0, period, make, options, reply_to, stopped, turn: Arc::new(()) }, handle)
    }

    pub(super) fn id(&self) -> TaskId {
        repetition_id(self.number)
    }

    /// It was stopped, or its submitter is gone.
    pub(super) fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || self.reply_to.is_gone()
    }

    /// The mark that it has ended; gone with it and its handles.
    pub(super) fn ended(&self) -> Weak<AtomicBool> {
        Arc::downgrade(&self.stopped)
    }

    /// When it is due again. Firings that were missed are left out.
    pub(super) fn next(&self, due: Instant) -> Instant {
        let now = Instant::now();
        match due.checked_add(self.period) {
            Some(next) if next > now => next,
            _ => far(now, self.period),
        }
    }
}

impl<T: Send + 'static, R: Send + 'static> Repeating<T, R> {
    /// Submits the next task, unless the one before has not ended, or too many wait already. False if that was the end.
    pub(super) fn fire(&mut self, room: &Arc<Room<T, R>>, ledger: &Ledger) -> bool {
        if self.is_over() {
            return false;
        }
        let overlaps = Arc::strong_count(&self.turn) > 1;
        if overlaps || room.queue.is_full_at(room.queue.len()) || self.reply_to.has_many_foreign() {
            return true;
        }
        match catch(&mut self.make) {
            Ok(payload) if self.is_over() => {
                drop_fenced(payload);
                false
            }
            Ok(payload) => {
                self.submit(payload, room, ledger);
                true
            }
            Err(message) => {
                self.stopped.store(true, Ordering::Relaxed);
                log::error!("a repetition panicked, and ends: {}", foreign(message));
                false
            }
        }
    }

    fn submit(&mut self, payload: T, room: &Arc<Room<T, R>>, ledger: &Ledger) {
        let ids = TaskId { submitter: self.number, sequence: self.sequence + 1 };
        let further = Further {
            id: ids,
            reply_to: Arc::clone(&self.reply_to),
            one_way: false,
            turn: Some(Arc::clone(&self.turn)),
        };
        let mut job = Some(Job::OnTask(payload));
        // Refused only where others were faster, or a shutdown was: then this firing is left out.
        match room.accept_further(further, &mut job, Some(&self.options), ledger) {
            Ok(()) => self.sequence += 1,
            Err(_) => drop_fenced(job),
        }
    }
}
