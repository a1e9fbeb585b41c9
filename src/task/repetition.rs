//! Tasks that are submitted again and again, by the timer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::options::TaskOptions;
use super::outcome::TaskId;
use super::queue::{Job, Task};
use super::reply::{ReplyAddress, Ticket};
use super::room::Room;
use crate::logging::foreign;
use crate::panic::catch;
use crate::stats::Ledger;

/// A task that is submitted again and again, from `task_every`. Dropping this changes nothing; it goes on until
/// [`stop`](Self::stop), or until its submitter is gone or a shutdown begins.
#[derive(Clone)]
pub struct Repetition {
    number: u64,
    stopped: Arc<AtomicBool>,
}

impl Repetition {
    /// No further task is submitted; those that were go on. May be called from anywhere, and again.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
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

/// The timer's side of it.
pub(super) struct Repeating<T, R> {
    number: u64,
    sequence: u64,
    period: Duration,
    make: Box<dyn FnMut() -> T + Send>,
    options: TaskOptions<T>,
    reply_to: Arc<ReplyAddress<R>>,
    stopped: Arc<AtomicBool>,
}

impl<T, R> Repeating<T, R> {
    pub(super) fn new(
        number: u64,
        period: Duration,
        make: Box<dyn FnMut() -> T + Send>,
        options: TaskOptions<T>,
        reply_to: Arc<ReplyAddress<R>>,
    ) -> (Repeating<T, R>, Repetition) {
        let stopped = Arc::new(AtomicBool::new(false));
        let handle = Repetition { number, stopped: Arc::clone(&stopped) };
        (Repeating { number, sequence: 0, period, make, options, reply_to, stopped }, handle)
    }

    /// When it is due again. Firings that were missed are left out.
    pub(super) fn next(&self, due: Instant) -> Instant {
        let now = Instant::now();
        match due.checked_add(self.period) {
            Some(next) if next > now => next,
            _ => now + self.period,
        }
    }
}

impl<T: Send + 'static, R: Send + 'static> Repeating<T, R> {
    /// Submits the next task, unless too many wait already. False if that was the end.
    pub(super) fn fire(&mut self, room: &Arc<Room<T, R>>, ledger: &Ledger) -> bool {
        if self.stopped.load(Ordering::Relaxed) || self.reply_to.is_gone() {
            return false;
        }
        if room.queue.is_full_at(room.queue.len()) || !self.reply_to.expect_foreign() {
            return true;
        }
        let submitted = catch(&mut self.make).map(|payload| self.submit(payload, room, ledger));
        if !matches!(submitted, Ok(true)) {
            self.reply_to.forget_foreign();
        }
        match submitted {
            Ok(goes_on) => goes_on,
            Err(message) => {
                log::error!("a repetition panicked, and ends: {}", foreign(message));
                false
            }
        }
    }

    fn submit(&mut self, payload: T, room: &Arc<Room<T, R>>, ledger: &Ledger) -> bool {
        let now = Instant::now();
        let id = TaskId { submitter: self.number, sequence: self.sequence + 1 };
        let ticket = Ticket { id, queued_at: now, reply_to: Arc::clone(&self.reply_to), one_way: false };
        let (extra, place) = self.options.settle(now);
        let accepted = room.accept(Task { job: Job::OnTask(payload), ticket, extra }, place, None, ledger).is_ok();
        self.sequence += u64::from(accepted);
        accepted
    }
}
