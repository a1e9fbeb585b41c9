//! One party's way into the back room: it numbers its tasks, keeps their finish closures, and hears of their outcomes.

mod delivery;
mod early;
mod full_queue;
mod wait;

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

pub(crate) use delivery::TaskCallbacks;

use super::Wake;
use super::bell::Bell;
use super::flight::{Finish, Flight};
use super::flights::Flights;
use super::options::TaskOptions;
use super::order::Order;
use super::outcome::{Progress, TaskId};
use super::queue::Job;
use super::reply::{Limits, Message, ReplyAddress, Ticket};
use super::room::{Room, Settled};
use super::unheard::Label;
use crate::error::TaskError;
use crate::panic::catch;
use crate::patience::Patience;
use crate::stamp::Stamp;
use crate::stats::{Ledger, OpenLedger};

/// Belongs to one thread. `C` is who uses it, and is lent to the finish closures.
///
/// The port decides the outcome of one of its tasks early, at a deadline or by cancelling it; and likewise of one that
/// was submitted in its name, of whose deadline it is told. Nobody else does without the ticket in hand. So it knows
/// which of them have no outcome yet, but for those it is about to hear of.
pub(crate) struct Port<T, R, C> {
    /// The sequence of the last accepted task.
    sequence: u64,
    pub(super) room: Arc<Room<T, R>>,
    pub(super) address: Arc<ReplyAddress<R>>,
    wake: Arc<dyn Wake>,
    flights: Flights<Flight<R, C>>,
    /// How many of them count towards `max_in_flight`.
    counted: usize,
    deadlines: BTreeSet<(Instant, TaskId)>,
    /// The deadlines of tasks that others submitted in its name.
    foreign_deadlines: FxHashMap<TaskId, Instant>,
    /// Came for others while somebody waited, or was decided here.
    pub(super) aside: VecDeque<Message<R>>,
    order: Option<Box<Order<Message<R>>>>,
    pub(super) ledger: OpenLedger,
    config: PortConfig,
    /// False while it may submit nothing.
    pub(crate) open: bool,
    /// The stamp of what is submitted now; taken when first needed.
    now: Option<Stamp>,
    /// Those that are to end with it, each with the mark that it has ended; gone, it has ended too.
    repetitions: Vec<(TaskId, Weak<AtomicBool>)>,
    /// So many tasks may be submitted before it looks again how many wait.
    credit: usize,
    /// Found the queue full after submitting, and waits at this place in the line.
    held_back: Option<usize>,
    patience: Patience,
    /// What it waits for room with, once it has.
    bell: Option<Arc<Bell>>,
}

#[derive(Clone, Copy)]
pub(crate) struct PortConfig {
    /// At so many tasks in flight it should pause.
    pub(crate) max_in_flight: usize,
    pub(crate) when_full: WhenFull,
    /// Finish closures run in the order of submission.
    pub(crate) in_order: bool,
    /// What is in flight when it ends is cancelled.
    pub(crate) cancel_at_end: bool,
    /// So many results other than outcomes may wait to be delivered.
    pub(crate) max_results: usize,
    /// Somebody wants to hear of progress.
    pub(crate) hears_progress: bool,
    /// Task workers may end while it still submits, so it is refused from then on.
    pub(crate) until_drained: bool,
}

/// When a task is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Only far beyond the capacity of the queue and the cap in flight: the submitter is trusted to heed
    /// [`Port::should_pause`].
    Defer,
    /// At the queue's capacity.
    Refuse,
    /// At the queue's capacity, and at the cap in flight.
    RefuseAtCap,
    /// The same, but though others wait for room: it was its turn.
    RefuseInTurn,
}

/// Who defers may exceed its cap in flight so many times, in a callback that submits without end.
const HARD_LIMIT: usize = 4;

/// Whose outcome a finish closure hears; `None`: nobody's, for a one-way task.
pub(super) type Heard<R, C> = Option<Finish<R, C>>;

impl<T: Send + 'static, R: Send + 'static, C> Port<T, R, C> {
    pub(super) fn new(
        number: u64,
        room: &Arc<Room<T, R>>,
        wake: Arc<dyn Wake>,
        label: Option<Label>,
        config: PortConfig,
    ) -> Self {
        let limits = Limits {
            results: config.max_results,
            foreign: config.max_in_flight.saturating_mul(HARD_LIMIT),
            progress: config.hears_progress,
        };
        Port {
            sequence: 0,
            room: Arc::clone(room),
            address: Arc::new(ReplyAddress::new(number, limits, Arc::clone(&wake), label, &room.crew.unheard)),
            wake,
            flights: Flights::new(),
            counted: 0,
            deadlines: BTreeSet::new(),
            foreign_deadlines: FxHashMap::default(),
            aside: VecDeque::new(),
            order: config.in_order.then(|| Box::new(Order::new())),
            ledger: room.crew.books.open(),
            config,
            open: true,
            now: None,
            repetitions: Vec::new(),
            credit: 0,
            held_back: None,
            patience: Patience::new(),
            bell: None,
        }
    }

    /// Of a submitter that is not told when the pool shuts down.
    pub(crate) fn look_whether_open(&mut self) {
        self.open = !self.room.crew.is_draining();
        self.forget_time();
    }

    /// Time has passed: what is submitted from here on gets a new stamp.
    pub(crate) fn forget_time(&mut self) {
        self.now = None;
    }

    pub(super) fn when_full(&self) -> WhenFull {
        self.config.when_full
    }

    /// Hands a job over as a task; never waits. An error leaves the job where it is, and takes no id.
    #[inline]
    pub(super) fn submit(
        &mut self,
        job: &mut Option<Job<T>>,
        heard: Heard<R, C>,
        options: Option<&TaskOptions<T>>,
        when_full: WhenFull,
    ) -> Result<TaskId, TaskError> {
        if !self.open {
            return Err(TaskError::ShuttingDown);
        }
        let waiting = self.look();
        if let Some(reason) = self.refusal(when_full, waiting, matches!(heard, Some(Finish::Waited))) {
            return Err(reason);
        }
        let now = *self.now.get_or_insert_with(Stamp::now);
        let id = self.id(self.sequence + 1);
        let ticket = Ticket { id, queued_at: now, reply_to: Arc::clone(&self.address), one_way: heard.is_none() };
        let settled = match options {
            None => Settled::default(),
            Some(options) => self.settle(options)?,
        };
        let (deadline, delayed) = (settled.deadline(), settled.due.is_some());
        self.room.accept(job, ticket, settled, self.config.until_drained, &self.ledger)?;
        self.sequence = id.sequence;
        if let Some(finish) = heard {
            self.take_off(id.sequence, Flight::new(finish, deadline, delayed));
        }
        let full = waiting + 1 >= self.room.queue.capacity() || !self.room.queue.waiters.is_empty();
        if full && when_full == WhenFull::Defer && self.held_back.is_none() {
            self.hold_back();
        }
        Ok(id)
    }

    fn settle(&self, options: &TaskOptions<T>) -> Result<Settled<T>, TaskError> {
        let task_workers = self.room.crew.size();
        if !options.has_worker_among(task_workers) {
            return Err(TaskError::NoSuchWorker);
        }
        // Deadline and delay count from now, and not from when this batch began.
        Ok(options.settle(Instant::now(), task_workers))
    }

    #[inline]
    fn take_off(&mut self, sequence: u64, flight: Flight<R, C>) {
        if let Some(deadline) = flight.deadline() {
            self.deadlines.insert((deadline, self.id(sequence)));
        }
        if !flight.is_apart() {
            self.counted += 1;
            if let Some(order) = &mut self.order {
                order.join(sequence);
            }
        }
        self.flights.insert(sequence, flight);
    }

    #[inline]
    pub(super) fn land(&mut self, sequence: u64) -> Option<Finish<R, C>> {
        let flight = self.flights.remove(sequence)?;
        if let Some(deadline) = flight.deadline() {
            self.deadlines.remove(&(deadline, self.id(sequence)));
        }
        if !flight.is_apart() {
            self.counted -= 1;
            if let Some(order) = &mut self.order {
                order.leave(sequence);
            }
        }
        Some(flight.into_finish())
    }

    /// How many tasks wait; 0 while there is credit.
    #[inline]
    fn look(&mut self) -> usize {
        if self.credit > 0 {
            self.credit -= 1;
            return 0;
        }
        let waiting = self.room.queue.len();
        self.credit = self.room.queue.credit(waiting);
        waiting
    }

    #[inline]
    fn refusal(&self, when_full: WhenFull, waiting: usize, waited: bool) -> Option<TaskError> {
        let queue_full = match when_full {
            WhenFull::Defer => waiting >= self.room.queue.hard_limit(),
            WhenFull::Refuse | WhenFull::RefuseAtCap => self.room.queue.is_full_at(waiting),
            WhenFull::RefuseInTurn => waiting >= self.room.queue.capacity(),
        };
        let hard_cap = self.config.max_in_flight.saturating_mul(HARD_LIMIT);
        let at_cap = match when_full {
            _ if waited => false,
            WhenFull::RefuseAtCap | WhenFull::RefuseInTurn if self.counted >= self.config.max_in_flight => true,
            _ => self.flights.len() >= hard_cap,
        };
        if at_cap {
            Some(TaskError::TooManyInFlight)
        } else if queue_full {
            Some(TaskError::QueueFull)
        } else {
            None
        }
    }

    /// Whether this thread may wait for task workers: if it is one of them, or the timer, it might wait for itself.
    pub(crate) fn may_wait(&self) -> bool {
        !self.room.crew.threads.have_this()
    }

    /// Whether there may be one more repetition.
    pub(super) fn may_repeat(&mut self) -> bool {
        let most = self.config.max_in_flight.saturating_mul(HARD_LIMIT);
        let kept = self.repetitions.len();
        if kept >= most || kept >= 64 && kept.is_power_of_two() {
            // Some have ended meanwhile.
            self.repetitions.retain(|(_, ended)| ended.upgrade().is_some_and(|ended| !ended.load(Ordering::Relaxed)));
        }
        self.repetitions.len() < most
    }

    /// A repetition that is to end with this.
    pub(super) fn keep_repetition(&mut self, id: TaskId, ended: Weak<AtomicBool>) {
        self.repetitions.push((id, ended));
    }

    /// How many tasks have no outcome delivered yet, of those that this submitter is to hear of.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len() + self.address.foreign()
    }

    pub(crate) fn number(&self) -> u64 {
        self.address.number
    }

    /// The id of the task that it submitted with this sequence.
    pub(super) fn id(&self, sequence: u64) -> TaskId {
        TaskId { submitter: self.address.number, sequence }
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How far a task has come, if it runs and has said so.
    pub(crate) fn progress(&self, id: TaskId) -> Option<Progress> {
        self.room.crew.progress(id)
    }

    /// Gives back what a burst has left allocated.
    pub(crate) fn release(&mut self) {
        self.flights.release();
        self.address.release();
        if let Some(address) = Arc::get_mut(&mut self.address) {
            address.release_channel();
        }
        if self.foreign_deadlines.is_empty() {
            self.foreign_deadlines = FxHashMap::default();
        }
        if self.aside.is_empty() {
            self.aside = VecDeque::new();
        }
    }
}

impl<T, R, C> Drop for Port<T, R, C> {
    fn drop(&mut self) {
        self.leave_line();
        self.address.close(&self.ledger);
        let held = self.order.take().into_iter().flat_map(|order| order.into_held());
        for message in self.aside.drain(..).chain(held) {
            self.address.orphan_one(message, &self.ledger);
        }
        for (id, _) in self.repetitions.drain(..) {
            // What it holds is users', and so are the closures that follow; each drop may panic.
            let _ = catch(|| drop(self.room.timer.remove(id)));
        }
        for flight in self.flights.drain() {
            let _ = catch(|| drop(flight));
        }
    }
}

/// So long after `now`, or as far away as the clock reaches.
pub(crate) fn far(now: Instant, time: Duration) -> Instant {
    const YEARS: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    now.checked_add(time).unwrap_or(now + YEARS)
}
