//! The back room itself: the one way in for tasks, and what they pass through.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Instant;

use super::crew::Crew;
use super::options::TaskOptions;
use super::outcome::{Ended, Outcome, TaskId};
use super::port::far;
use super::queue::{Extra, Job, Place, Queue, Task};
use super::repetition::Keeper;
use super::reply::{Message, ReplyAddress, Ticket};
use super::timer::{Due, NoTimer, Timer};
use crate::error::TaskError;
use crate::panic::catch;
use crate::stamp::Stamp;
use crate::stats::Ledger;

/// What submitters, task workers and the timer share.
pub(super) struct Room<T, R> {
    pub(super) queue: Queue<T, R>,
    pub(super) crew: Arc<Crew<R>>,
    pub(super) timer: Timer<T, R>,
    /// No task is taken any more, not even from the timer.
    closed: AtomicBool,
}

/// What a task has that is submitted in the name of a submitter.
pub(super) struct Further<R> {
    pub(super) id: TaskId,
    pub(super) reply_to: Arc<ReplyAddress<R>>,
    /// The submitter is not to hear of it.
    pub(super) one_way: bool,
    /// Of a repetition.
    pub(super) turn: Option<Arc<()>>,
}

/// Never reset, so that no two submitters of a process share a number.
static SUBMITTERS: AtomicU64 = AtomicU64::new(0);

/// The number of a new submitter.
pub(crate) fn new_number() -> u64 {
    SUBMITTERS.fetch_add(1, Ordering::Relaxed) + 1
}

/// What the options of a task come to when it is submitted.
pub(super) struct Settled<T> {
    /// What it has beside its payload.
    extra: Option<Box<Extra<T>>>,
    /// Where it waits.
    place: Place,
    /// Until when it is delayed, if it is.
    pub(super) due: Option<Instant>,
}

impl<T> Settled<T> {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.extra.as_ref()?.deadline
    }
}

impl<T> Settled<T> {
    fn hold(&mut self, turn: Arc<()>) {
        let place = self.place;
        let plain = || Box::new(Extra { deadline: None, attempt: 1, retry: None, last_error: None, place, turn: None });
        self.extra.get_or_insert_with(plain).turn = Some(turn);
    }
}

impl<T> Default for Settled<T> {
    fn default() -> Self {
        Settled { extra: None, place: Place::default(), due: None }
    }
}

impl<T> TaskOptions<T> {
    /// Of a task that is submitted now. The worker must exist.
    pub(super) fn settle(&self, now: Instant, task_workers: usize) -> Settled<T> {
        let TaskOptions { priority, deadline, after, retry, .. } = self;
        let place = Place { worker: self.worker_among(task_workers), priority: *priority };
        let due = after.map(|after| far(now, after));
        if deadline.is_none() && retry.is_none() {
            return Settled { extra: None, place, due };
        }
        let deadline = deadline.and_then(|deadline| now.checked_add(deadline));
        let extra = Extra { deadline, attempt: 1, retry: retry.clone(), last_error: None, place, turn: None };
        Settled { extra: Some(Box::new(extra)), place, due }
    }
}

impl<T, R> Task<T, R> {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.extra.as_ref()?.deadline
    }
}

/// Has the submitter follow the deadline of a task that somebody else submits in its name.
#[inline]
fn hand_deadline_over<R>(ticket: &Ticket<R>, deadline: Option<Instant>) {
    let Some(deadline) = deadline else { return };
    let Ticket { id, reply_to, one_way, .. } = ticket;
    if id.submitter != reply_to.number && !one_way {
        reply_to.push(Message::Deadline(*id, deadline));
    }
}

impl<T: Send + 'static, R: Send + 'static> Room<T, R> {
    pub(super) fn new(queue: Queue<T, R>, crew: Crew<R>) -> Room<T, R> {
        Room { queue, crew: Arc::new(crew), timer: Timer::new(), closed: AtomicBool::new(false) }
    }

    /// The one way in: accepts a job as a task, to be queued now or when it is due. Never waits. An error leaves the job
    /// where it is.
    ///
    /// `until_drained`: refuses it once a shutdown has begun, and so does not let one in that no task worker would see.
    /// A connection need not ask for that: task workers do not end before it has.
    // The job is taken as late as can be, and from here to the channel all is inlined: each call would copy it once more.
    #[inline(always)]
    pub(super) fn accept(
        self: &Arc<Self>,
        job: &mut Option<Job<T>>,
        ticket: Ticket<R>,
        settled: Settled<T>,
        until_drained: bool,
        ledger: &Ledger,
    ) -> Result<(), TaskError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(TaskError::ShuttingDown);
        }
        if settled.due.is_some() {
            if self.has_many_delayed() {
                return Err(TaskError::TooManyDelayed);
            }
            Timer::is_ready(self)?;
        }
        ledger.accepted.add(1);
        if until_drained {
            // Either we see that it is drained, or who ends the task workers sees this task counted.
            fence(Ordering::SeqCst);
            if self.crew.is_draining() {
                ledger.accepted.take_back(1);
                fence(Ordering::SeqCst);
                self.crew.fewer_pending();
                return Err(TaskError::ShuttingDown);
            }
        }
        let id = ticket.id;
        self.crew.observer.tell(|observer| observer.task_accepted(id));
        hand_deadline_over(&ticket, settled.deadline());
        let Settled { extra, place, due } = settled;
        // It is there: it is taken once, and here.
        if let Some(job) = job.take() {
            let task = Task { job, ticket, extra };
            match due {
                None => self.queue_up(task, place, ledger),
                Some(due) => self.delay(Box::new(task), place, due, ledger),
            }
        }
        Ok(())
    }

    /// Whether no more may be delayed.
    pub(super) fn has_many_delayed(&self) -> bool {
        self.timer.tasks() >= self.queue.hard_limit()
    }

    /// Accepts a task that somebody else submits in the name of a submitter. An error leaves the job where it is.
    pub(super) fn accept_further(
        self: &Arc<Self>,
        further: Further<R>,
        job: &mut Option<Job<T>>,
        options: Option<&TaskOptions<T>>,
        ledger: &Ledger,
    ) -> Result<(), TaskError> {
        let Further { id, reply_to, one_way, turn } = further;
        if !one_way && !reply_to.expect_foreign() {
            return Err(TaskError::TooManyInFlight);
        }
        let now = Instant::now();
        let mut settled = options.map(|options| options.settle(now, self.crew.size())).unwrap_or_default();
        turn.into_iter().for_each(|turn| settled.hold(turn));
        let ticket = Ticket { id, queued_at: Stamp::from(now), reply_to: Arc::clone(&reply_to), one_way };
        let has_deadline = settled.deadline().is_some();
        let accepted = self.accept(job, ticket, settled, true, ledger);
        if accepted.is_err() && !one_way {
            reply_to.forget_foreign();
        }
        if !one_way && (has_deadline || accepted.is_err()) {
            // It is to follow the deadline, or may have waited for this one to end.
            reply_to.rouse(ledger);
        }
        accepted
    }

    /// Queues a task that was accepted, and wakes a task worker for it.
    #[inline(always)]
    pub(super) fn queue_up(&self, task: Task<T, R>, place: Place, ledger: &Ledger) {
        self.queue.lane(place).push(task);
        // Either we see here that it was closed meanwhile, or whoever closes it sees this task; and likewise with a
        // task worker that goes to sleep.
        fence(Ordering::SeqCst);
        match place.worker {
            None => self.crew.idle.wake_one(),
            Some(worker) => {
                self.crew.idle.wake(worker as usize);
            }
        }
        if self.closed.load(Ordering::Relaxed) {
            self.abandon_queued(ledger);
        }
    }

    /// Has the timer queue a task that was accepted when it is due, or end it at its deadline if that comes first.
    pub(super) fn delay(self: &Arc<Self>, task: Box<Task<T, R>>, place: Place, due: Instant, ledger: &Ledger) {
        let (id, reply_to) = (task.ticket.id, Arc::clone(&task.ticket.reply_to));
        let due = task.deadline().map_or(due, |deadline| deadline.min(due));
        if let Err(task) = Timer::insert(self, due, task, place) {
            // A shutdown has begun meanwhile, or this was to be the first and there is no thread.
            return self.end_delayed(*task, ledger);
        }
        // Either we see here that its submitter has decided the outcome, or the submitter finds it in the timer.
        if reply_to.is_struck(id) {
            if let Some(Due::Task(task, _)) = self.timer.remove(id) {
                self.end_delayed(*task, ledger);
            }
        }
    }

    /// The timer has come to a task.
    pub(super) fn come_due(&self, mut task: Task<T, R>, place: Place, due: Instant, ledger: &Ledger) {
        if task.deadline().is_some_and(|deadline| deadline <= due) {
            return self.give_up(task, Outcome::TimedOut, ledger);
        }
        task.ticket.queued_at = Stamp::from(due);
        self.queue_up(task, place, ledger);
    }

    /// Ends a task that was delayed: as its last attempt has, if there was one.
    fn end_delayed(&self, mut task: Task<T, R>, ledger: &Ledger) {
        let last_error = task.extra.as_mut().and_then(|extra| extra.last_error.take());
        self.give_up(task, last_error.map_or(Outcome::Cancelled, Outcome::Failed), ledger);
    }

    /// A shutdown begins: what is delayed is cancelled, and tasks may submit no more.
    pub(super) fn drain(&self, ledger: &Ledger) {
        self.crew.drain();
        self.queue.waiters.call_all();
        for due in self.timer.close() {
            match due {
                Due::Task(task, _) => self.end_delayed(*task, ledger),
                repetition => drop(catch(|| drop(repetition))),
            }
        }
    }

    /// Takes no more tasks, and gives up those that wait, run, or are to be finished later.
    pub(super) fn abandon(&self, ledger: &Ledger) {
        self.drain(ledger);
        self.closed.store(true, Ordering::Relaxed);
        self.crew.expire();
        fence(Ordering::SeqCst);
        self.abandon_queued(ledger);
        self.crew.abandon_started(ledger);
        self.queue.waiters.call_all();
    }

    fn abandon_queued(&self, ledger: &Ledger) {
        for task in self.queue.drain() {
            self.give_up(task, Outcome::Abandoned, ledger);
        }
    }

    /// Ends a task that is not to start, unless its submitter has already done so.
    pub(super) fn give_up(&self, task: Task<T, R>, outcome: Outcome<R>, ledger: &Ledger) {
        let Task { job, ticket, extra } = task;
        // What is dropped may panic; the rest must be given up all the same.
        let ended = Ended::Task(outcome);
        let why = self.crew.why(&ended);
        match ticket.decide_unless_struck(ended, None, ledger) {
            Ok(decided) => self.crew.announce(decided.because(why), ledger),
            Err(outcome) => drop(catch(|| drop(outcome))),
        }
        let _ = catch(|| drop((job, extra)));
    }
}

impl<T: Send + 'static, R: Send + 'static> Keeper for Room<T, R> {
    fn forget(&self, id: TaskId) {
        // What it holds is users'.
        let _ = catch(|| drop(self.timer.remove(id)));
    }
}

impl From<NoTimer> for TaskError {
    fn from(why: NoTimer) -> TaskError {
        match why {
            NoTimer::Closed => TaskError::ShuttingDown,
            NoTimer::NoThread => TaskError::NoTimer,
        }
    }
}
