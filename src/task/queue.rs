//! Where tasks wait: the only place that knows it is crossbeam channels in memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::lane::{Lane, Waits};
use super::options::{Priority, RetryOf};
use super::outcome::Returned;
use super::reply::Ticket;
use super::waiters::Waiters;
use crate::stamp::Stamp;

/// One piece of slow work, and the right to say how it ended.
pub(super) struct Task<T, R> {
    pub(super) job: Job<T>,
    pub(super) ticket: Ticket<R>,
    /// What only some tasks have.
    pub(super) extra: Option<Box<Extra<T>>>,
}

/// What a task worker is to do.
pub(super) enum Job<T> {
    /// Give this to `on_task`.
    OnTask(T),
    /// Run this.
    Closure(Closure),
}

impl<T, R> Waits for Task<T, R> {
    fn is_before(&self, other: &Self) -> bool {
        let (own, others) = (&self.ticket, &other.ticket);
        match own.id.submitter == others.id.submitter {
            true => own.id.sequence < others.id.sequence,
            false => own.queued_at < others.queued_at,
        }
    }
}

impl<T> Job<T> {
    /// Of a job that was made of a payload, and not taken.
    pub(super) fn payload_of(job: Option<Job<T>>) -> T {
        match job {
            Some(Job::OnTask(payload)) => payload,
            Some(Job::Closure(_)) | None => unreachable!("only payloads are handed back"),
        }
    }
}

pub(super) type Closure = Box<dyn FnOnce() -> Returned + Send>;

/// What a task has that is not like all others.
pub(super) struct Extra<T> {
    pub(super) deadline: Option<Instant>,
    /// The attempt that comes next, from 1.
    pub(super) attempt: u32,
    pub(super) retry: Option<RetryOf<T>>,
    /// How the last attempt ended.
    pub(super) last_error: Option<anyhow::Error>,
    /// Where to wait for the next attempt.
    pub(super) place: Place,
    /// Held until it has ended: a repetition has one of them at a time.
    pub(super) turn: Option<Arc<()>>,
}

/// Where a task waits.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    /// `None`: for whichever task worker is free.
    pub(super) worker: Option<u32>,
    pub(super) priority: Priority,
}

/// No submitter goes on for longer without looking how many tasks wait.
const MAX_CREDIT: usize = 15;

/// Each submitter may bring one task more than the capacity before it pauses; and all together so many times the
/// capacity, in callbacks that submit many, or of connections that come and go.
const HARD_LIMIT: usize = 4;

/// So many of those who wait for room are told at a time: enough that the queue does not run empty meanwhile.
const TURNS: usize = 16;

/// One in so many tasks that a task worker takes is of low priority, if there are any, and one of normal.
const GUARD: u32 = 16;

const PRIORITIES: [Priority; 3] = [Priority::High, Priority::Normal, Priority::Low];

/// One lane per priority, each made when first used.
struct Lanes<X>([OnceLock<Lane<X>>; 3]);

pub(super) struct Queue<T, R> {
    /// For whichever task worker is free.
    shared: Lanes<Task<T, R>>,
    /// For one task worker each.
    own: Box<[Lanes<Task<T, R>>]>,
    /// Others than the shared lane of normal priority are in use. Until then a plain task costs no look at them.
    side_lanes: AtomicBool,
    capacity: usize,
    submitters: usize,
    pub(super) waiters: Waiters,
}

/// A task worker's place at the queue.
pub(super) struct Seat {
    index: usize,
    /// Tasks it has taken since there are lanes to choose from.
    taken: u32,
}

impl Seat {
    pub(super) fn new(index: usize) -> Seat {
        Seat { index, taken: 0 }
    }

    /// Which priorities go first this time. Now and then the lower ones do, so that none waits for ever.
    fn order(&self) -> [Priority; 3] {
        match self.taken % GUARD {
            7 => [Priority::Normal, Priority::High, Priority::Low],
            15 => [Priority::Low, Priority::Normal, Priority::High],
            _ => PRIORITIES,
        }
    }
}

impl<T, R> Queue<T, R> {
    /// At `capacity` submitters are to pause, of whom there are at most so many at once.
    pub(super) fn new(capacity: usize, submitters: usize, workers: usize) -> Queue<T, R> {
        let queue = Queue {
            shared: Lanes::new(),
            own: (0..workers).map(|_| Lanes::new()).collect(),
            side_lanes: AtomicBool::new(false),
            capacity,
            submitters,
            waiters: Waiters::new(TURNS, capacity / 2),
        };
        queue.shared.lane(Priority::Normal);
        queue
    }

    /// Where a task is to be pushed that waits there. Put a full fence after that, and wake a task worker.
    #[inline(always)]
    pub(super) fn lane(&self, place: Place) -> &Lane<Task<T, R>> {
        let lanes = match place.worker {
            None => &self.shared,
            Some(worker) => &self.own[worker as usize],
        };
        if place.worker.is_some() || place.priority != Priority::Normal {
            self.side_lanes.store(true, Ordering::Relaxed);
        }
        lanes.lane(place.priority)
    }

    /// The next task for this task worker.
    #[inline]
    pub(super) fn take(&self, seat: &mut Seat) -> Option<Task<T, R>> {
        if !self.side_lanes.load(Ordering::Relaxed) {
            return self.shared.get(Priority::Normal)?.take();
        }
        let own = &self.own[seat.index];
        // Turn and turn about, so that neither starves the other; in each round the other way round, or else the
        // guard's turns would always begin with the same.
        let places = if (seat.taken + seat.taken / GUARD) % 2 == 0 { [own, &self.shared] } else { [&self.shared, own] };
        let task = seat
            .order()
            .into_iter()
            .find_map(|priority| places.into_iter().find_map(|lanes| lanes.get(priority)?.take()))?;
        seat.taken = seat.taken.wrapping_add(1);
        Some(task)
    }

    /// Tells those who wait for room that a task was taken, if there is some now.
    #[inline]
    pub(super) fn taken(&self) {
        self.waiters.taken(|| self.has_room());
    }

    /// A task worker has found nothing: tells more of those who wait, if there is room.
    pub(super) fn starved(&self) {
        self.waiters.starved(|| self.has_room());
    }

    /// Whether any free task worker would find nothing.
    pub(super) fn is_empty(&self) -> bool {
        match self.side_lanes.load(Ordering::Relaxed) {
            false => self.shared.get(Priority::Normal).is_none_or(|lane| lane.len() == 0),
            true => self.shared.len() == 0,
        }
    }

    /// Takes everything out, whoever it is for.
    pub(super) fn drain(&self) -> impl Iterator<Item = Task<T, R>> {
        self.all_lanes()
            .flat_map(|lanes| &lanes.0)
            .filter_map(OnceLock::get)
            .flat_map(|lane| std::iter::from_fn(move || lane.take()))
    }

    /// How many tasks wait.
    #[inline]
    pub(super) fn len(&self) -> usize {
        match self.side_lanes.load(Ordering::Relaxed) {
            false => self.shared.get(Priority::Normal).map_or(0, Lane::len),
            true => self.all_lanes().map(Lanes::len).sum(),
        }
    }

    /// How many tasks wait of each priority.
    pub(super) fn by_priority(&self) -> [usize; 3] {
        PRIORITIES.map(|priority| self.all_lanes().filter_map(|lanes| lanes.get(priority)).map(Lane::len).sum())
    }

    /// When the task was queued that has waited longest. Wake all task workers after it: one that looked meanwhile may
    /// have found nothing.
    pub(super) fn oldest(&self) -> Option<Stamp> {
        let lanes = self.all_lanes().flat_map(|lanes| &lanes.0).filter_map(OnceLock::get);
        lanes.filter_map(|lane| lane.peek(|task| task.ticket.queued_at)).min()
    }

    fn all_lanes(&self) -> impl Iterator<Item = &Lanes<Task<T, R>>> {
        std::iter::once(&self.shared).chain(&self.own)
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Where even those who pause at the capacity are refused.
    pub(super) fn hard_limit(&self) -> usize {
        self.capacity.saturating_mul(HARD_LIMIT).saturating_add(self.submitters)
    }

    /// So full that not even who is called goes on: what is left up to the hard limit is for those who do at the same time.
    pub(super) fn is_crowded(&self) -> bool {
        self.len() >= self.capacity.saturating_mul(HARD_LIMIT)
    }

    /// Whether who will not wait is refused: at the capacity, or while others wait for room, who might do so for ever
    /// if others always were faster.
    pub(super) fn is_full_at(&self, waiting: usize) -> bool {
        waiting >= self.capacity || !self.waiters.is_empty() && !self.has_room()
    }

    /// How many tasks a submitter that found so many waiting may submit before it looks again. If there are no more of
    /// them than expected, they exceed the capacity by no more than the credits that are left over. Looking costs a
    /// cache miss while task workers are busy.
    pub(super) fn credit(&self, waiting: usize) -> usize {
        (self.capacity.saturating_sub(waiting) / self.submitters.max(1)).min(MAX_CREDIT)
    }

    /// At most half full, which is when those who wait may go on.
    pub(super) fn has_room(&self) -> bool {
        self.len() <= self.capacity / 2
    }
}

impl<X: Waits> Lanes<X> {
    fn new() -> Lanes<X> {
        Lanes([const { OnceLock::new() }; 3])
    }

    fn lane(&self, priority: Priority) -> &Lane<X> {
        self.0[priority as usize].get_or_init(Lane::new)
    }

    fn get(&self, priority: Priority) -> Option<&Lane<X>> {
        self.0[priority as usize].get()
    }

    fn len(&self) -> usize {
        self.0.iter().filter_map(OnceLock::get).map(Lane::len).sum()
    }
}
