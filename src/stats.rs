//! The books: counters with one writer each, and the snapshot users see.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::task::OutcomeKind;

/// A counter that only one thread writes, so that counting is a plain store.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        // Release, so that whoever sees an outcome counted also sees its task accepted.
        self.0.store(self.0.load(Ordering::Relaxed) + n, Ordering::Release);
    }

    /// What was added too early.
    pub(crate) fn take_back(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) - n, Ordering::Release);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Release);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// What one thread has to count. On cache lines of its own, so that no two writers share one.
#[derive(Default)]
#[repr(align(128))]
pub(crate) struct Ledger {
    pub(crate) accepted: Counter,
    pub(crate) done: Counter,
    pub(crate) failed: Counter,
    pub(crate) panicked: Counter,
    pub(crate) timed_out: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) abandoned: Counter,
    pub(crate) late: Counter,
    pub(crate) delivered: Counter,
    pub(crate) orphaned: Counter,
    pub(crate) one_way: Counter,
    pub(crate) retried: Counter,
    pub(crate) recycled: Counter,
    pub(crate) finish_errors: Counter,
    pub(crate) state_failures: Counter,
    /// 1 while this thread is a task worker that has its state.
    pub(crate) serving: Counter,
    /// 1 while this thread runs a task.
    pub(crate) running: Counter,
}

impl Ledger {
    /// An outcome was decided.
    pub(crate) fn count(&self, outcome: OutcomeKind) {
        let counter = match outcome {
            OutcomeKind::Done => &self.done,
            OutcomeKind::Failed => &self.failed,
            OutcomeKind::Panicked => &self.panicked,
            OutcomeKind::TimedOut => &self.timed_out,
            OutcomeKind::Cancelled => &self.cancelled,
            OutcomeKind::Abandoned => &self.abandoned,
        };
        counter.add(1);
    }
}

/// All ledgers of one pool: those in use, and the sum of those that are closed.
#[derive(Default)]
pub(crate) struct Books(Mutex<Shelf>);

#[derive(Default)]
struct Shelf {
    open: HashMap<u64, Arc<Ledger>>,
    opened: u64,
    closed: Totals,
}

/// A ledger in use. When dropped, its figures stay in the books.
pub(crate) struct OpenLedger {
    books: Arc<Books>,
    key: u64,
    ledger: Arc<Ledger>,
}

impl Deref for OpenLedger {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        &self.ledger
    }
}

impl Drop for OpenLedger {
    fn drop(&mut self) {
        let mut shelf = self.books.0.lock();
        shelf.open.remove(&self.key);
        shelf.closed.add(&self.ledger);
    }
}

impl Books {
    pub(crate) fn open(self: &Arc<Self>) -> OpenLedger {
        let mut shelf = self.0.lock();
        let (key, ledger) = (shelf.opened, Arc::new(Ledger::default()));
        shelf.opened += 1;
        shelf.open.insert(key, Arc::clone(&ledger));
        drop(shelf);
        OpenLedger { books: Arc::clone(self), key, ledger }
    }

    pub(crate) fn read(&self) -> Totals {
        let shelf = self.0.lock();
        let mut totals = shelf.closed;
        for ledger in shelf.open.values() {
            totals.add_deliveries(ledger);
        }
        for ledger in shelf.open.values() {
            totals.add_outcomes(ledger);
        }
        for ledger in shelf.open.values() {
            totals.add_accepted(ledger);
        }
        totals
    }
}

/// Sums of ledgers. Deliveries are read first and acceptances last: a task that ends meanwhile may be seen
/// as pending, but no outcome is ever seen without its task.
#[derive(Clone, Copy, Default)]
pub(crate) struct Totals {
    accepted: u64,
    done: u64,
    failed: u64,
    panicked: u64,
    timed_out: u64,
    cancelled: u64,
    abandoned: u64,
    late: u64,
    delivered: u64,
    orphaned: u64,
    one_way: u64,
    retried: u64,
    recycled: u64,
    finish_errors: u64,
    state_failures: u64,
    serving: u64,
    running: u64,
}

impl Totals {
    fn add(&mut self, ledger: &Ledger) {
        self.add_deliveries(ledger);
        self.add_outcomes(ledger);
        self.add_accepted(ledger);
    }

    fn add_deliveries(&mut self, ledger: &Ledger) {
        self.delivered += ledger.delivered.get();
        self.orphaned += ledger.orphaned.get();
        self.one_way += ledger.one_way.get();
        self.retried += ledger.retried.get();
        self.recycled += ledger.recycled.get();
        self.finish_errors += ledger.finish_errors.get();
        self.state_failures += ledger.state_failures.get();
    }

    fn add_outcomes(&mut self, ledger: &Ledger) {
        self.running += ledger.running.get();
        self.serving += ledger.serving.get();
        self.done += ledger.done.get();
        self.failed += ledger.failed.get();
        self.panicked += ledger.panicked.get();
        self.timed_out += ledger.timed_out.get();
        self.cancelled += ledger.cancelled.get();
        self.abandoned += ledger.abandoned.get();
        self.late += ledger.late.get();
    }

    fn add_accepted(&mut self, ledger: &Ledger) {
        self.accepted += ledger.accepted.get();
    }

    /// How many tasks have no outcome.
    pub(crate) fn pending(&self) -> u64 {
        self.task_stats(&Whereabouts::default()).pending
    }

    /// The books, together with where the tasks are that have no outcome.
    pub(crate) fn task_stats(&self, at: &Whereabouts) -> TaskStats {
        let outcomes = self.done + self.failed + self.panicked + self.timed_out + self.cancelled + self.abandoned;
        let pending = self.accepted - outcomes.min(self.accepted);
        TaskStats {
            accepted: self.accepted,
            done: self.done,
            failed: self.failed,
            panicked: self.panicked,
            timed_out: self.timed_out,
            cancelled: self.cancelled,
            abandoned: self.abandoned,
            pending,
            queued: pending.saturating_sub(at.running + at.delayed + at.later),
            queued_high: at.queued[0],
            queued_normal: at.queued[1],
            queued_low: at.queued[2],
            oldest_queued: at.oldest_queued,
            running: at.running,
            delayed: at.delayed,
            to_be_finished_later: at.later,
            task_workers_busy: self.running,
            task_workers_idle: self.serving.saturating_sub(self.running),
            task_workers_renewing: at.task_workers.saturating_sub(self.serving),
            late: self.late,
            retried: self.retried,
            delivered: self.delivered,
            orphaned: self.orphaned,
            one_way: self.one_way,
            recycled: self.recycled,
            finish_errors: self.finish_errors,
            state_failures: self.state_failures,
        }
    }
}

/// Where the tasks are that have no outcome, and who might run them.
#[derive(Default)]
pub(crate) struct Whereabouts {
    pub(crate) running: u64,
    pub(crate) delayed: u64,
    pub(crate) later: u64,
    /// By priority.
    pub(crate) queued: [u64; 3],
    pub(crate) oldest_queued: Option<Duration>,
    pub(crate) task_workers: u64,
}

/// The books of a task pool at one moment.
///
/// Two accounts balance, exactly so while nothing moves:
/// `accepted = done + failed + panicked + timed_out + cancelled + abandoned + pending`, and
/// `outcomes() = delivered + orphaned + one_way` once every outcome has reached its submitter. And
/// `pending = queued + running + delayed + to_be_finished_later`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskStats {
    /// Tasks handed over, each counted once.
    pub accepted: u64,
    /// Tasks that returned a result.
    pub done: u64,
    /// Tasks that returned an error.
    pub failed: u64,
    /// Tasks that panicked.
    pub panicked: u64,
    /// Tasks whose deadline came first.
    pub timed_out: u64,
    /// Tasks that were cancelled.
    pub cancelled: u64,
    /// Tasks given up because a shutdown's deadline came first.
    pub abandoned: u64,
    /// Tasks that have no outcome yet.
    pub pending: u64,
    /// Tasks that wait for a task worker. Swoole's `tasking_num`.
    pub queued: u64,
    /// Of high priority. With those of the other priorities, this includes tasks that have timed out or were cancelled
    /// while they waited, until a task worker comes across them.
    pub queued_high: u64,
    /// Of normal priority.
    pub queued_normal: u64,
    /// Of low priority.
    pub queued_low: u64,
    /// How long the task has waited that has waited longest, of those that are counted by priority; `None` if none
    /// waits.
    pub oldest_queued: Option<Duration>,
    /// Tasks that run and have no outcome yet.
    pub running: u64,
    /// Tasks that are delayed, or wait for their next attempt.
    pub delayed: u64,
    /// Tasks whose reply was taken away.
    pub to_be_finished_later: u64,
    /// Task workers that are inside `on_task`, or a closure. It may be one whose outcome is decided already: after a
    /// shutdown's deadline, an abandoned one.
    pub task_workers_busy: u64,
    /// Task workers that wait for a task. Swoole's `task_idle_worker_num`.
    pub task_workers_idle: u64,
    /// Task workers that make or give up their state: at the start, after a panic, and when they are recycled.
    pub task_workers_renewing: u64,
    /// Tasks that ended after they were given up. Their outcome had been decided, so this is nothing else.
    pub late: u64,
    /// Attempts that failed and were followed by another.
    pub retried: u64,
    /// Outcomes that reached who submitted the task.
    pub delivered: u64,
    /// Outcomes that came too late for a connection that had closed, or a submitter that was gone.
    pub orphaned: u64,
    /// Outcomes of one-way tasks, of which nobody was to hear.
    pub one_way: u64,
    /// Times a task worker has renewed its state, after `task_max_request` tasks or by `recycle`.
    pub recycled: u64,
    /// Finish closures, and `on_progress`, that returned an error.
    pub finish_errors: u64,
    /// Times a task worker's state could not be made again.
    pub state_failures: u64,
}

impl TaskStats {
    /// How many tasks have ended, one way or another.
    pub fn outcomes(&self) -> u64 {
        self.done + self.failed + self.panicked + self.timed_out + self.cancelled + self.abandoned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_ledger_stays_in_the_books() {
        let books = Arc::new(Books::default());
        let (worker, task_worker) = (books.open(), books.open());
        worker.accepted.add(3);
        task_worker.done.add(1);
        drop(worker);
        let stats = books.read().task_stats(&Whereabouts::default());
        assert_eq!((stats.accepted, stats.done, stats.pending), (3, 1, 2));
    }
}
