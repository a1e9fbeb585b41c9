//! What the task workers and those who command them share: which tasks have started, who is idle, and when to end.

mod started;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};

pub(super) use started::{Ending, Started, in_time};
use started::{Slot, TakenReplies};

use super::Wake;
use super::idle::Idle;
use super::outcome::{Ended, Outcome};
use super::renewals::Renewals;
use super::reply::Decided;
use super::unheard::Unheard;
use crate::logging::LogLimit;
use crate::observer::MaybeObserver;
use crate::own_threads::OwnThreads;
use crate::panic::catch;
use crate::stats::{Books, Ledger};

pub(super) struct Crew<R> {
    /// The task that each task worker runs.
    slots: Box<[Slot<R>]>,
    /// Tasks whose reply was taken away, to be finished later.
    later: Mutex<TakenReplies<R>>,
    pub(super) idle: Idle,
    /// What is delayed is cancelled, and tasks may submit no more.
    draining: AtomicBool,
    /// Dropped then, which those hear who wait at `drained`.
    drains: Mutex<Option<Sender<()>>>,
    drained: Receiver<()>,
    /// The loops are to end once nothing is pending.
    ending: AtomicBool,
    /// Nothing is waited for any more: a task that has not started is given up.
    expired: AtomicBool,
    pub(super) renewals: Renewals,
    /// Loops that have not ended.
    loops: Mutex<usize>,
    /// A loop has ended, or it may be time to.
    changed: Condvar,
    /// Roused whenever a loop ends.
    owner: Arc<dyn Wake>,
    /// The task workers, the timer, and each thread that runs users' code in their place.
    pub(super) threads: OwnThreads,
    pub(super) books: Arc<Books>,
    pub(super) observer: MaybeObserver,
    pub(super) panic_log: LogLimit,
    pub(super) unheard: Arc<Unheard>,
}

impl<R> Crew<R> {
    pub(super) fn new(
        workers: usize,
        threads: OwnThreads,
        books: &Arc<Books>,
        owner: Arc<dyn Wake>,
        observer: MaybeObserver,
    ) -> Crew<R> {
        let (drains, drained) = bounded(0);
        Crew {
            threads,
            drains: Mutex::new(Some(drains)),
            drained,
            slots: (0..workers).map(|_| Slot::new()).collect(),
            later: Mutex::new(TakenReplies::new(books.open())),
            idle: Idle::new(workers),
            draining: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            renewals: Renewals::new(workers),
            loops: Mutex::new(workers),
            changed: Condvar::new(),
            owner,
            books: Arc::clone(books),
            observer,
            panic_log: LogLimit::default(),
            unheard: Arc::default(),
        }
    }

    pub(super) fn size(&self) -> usize {
        self.slots.len()
    }

    /// A task worker has a new state, or has ended.
    pub(super) fn renewed(&self, index: usize) {
        self.renewals.done(index, |other| self.idle.wake(other));
    }

    /// Why it failed, if an observer is to be told. Hold no lock: the text is users' code.
    pub(super) fn why(&self, ended: &Ended<R>) -> Option<String> {
        match ended {
            Ended::Task(Outcome::Failed(error)) if self.observer.is_there() => catch(|| format!("{error:#}")).ok(),
            Ended::Task(Outcome::Panicked(message)) if self.observer.is_there() => Some(message.clone()),
            _ => None,
        }
    }

    /// What follows a decided outcome, once no lock is held.
    #[inline]
    pub(super) fn announce(&self, decided: Decided<R>, ledger: &Ledger) {
        self.observer.tell(|observer| decided.tell(observer));
        decided.rouse(ledger);
        self.fewer_pending();
    }

    /// The outcome of a task was decided, or it was not accepted after all. The caller has put a full fence between
    /// counting that and this: either it sees that the crew is to end, or whoever says so sees it counted; and of those
    /// who end their tasks at the same time, the last sees what all have counted.
    #[inline]
    pub(super) fn fewer_pending(&self) {
        if self.ending.load(Ordering::Relaxed) && self.is_over() {
            self.notify();
        }
    }
}

/// Beginning and ending.
impl<R> Crew<R> {
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        drop(self.drains.lock().take());
    }

    /// At its end once the crew drains.
    pub(super) fn drained(&self) -> &Receiver<()> {
        &self.drained
    }

    pub(super) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// The loops are to end once nothing is pending.
    pub(super) fn tell_to_end(&self) {
        self.drain();
        self.ending.store(true, Ordering::Relaxed);
        self.notify();
    }

    pub(super) fn expire(&self) {
        self.drain();
        self.expired.store(true, Ordering::Relaxed);
        self.notify();
    }

    /// Whether a loop that finds nothing to do is to end: no task can come any more. Replies that were taken away are
    /// not waited for here, since a task worker's own state may hold them.
    pub(super) fn is_over(&self) -> bool {
        self.is_expired() || self.ending.load(Ordering::Relaxed) && self.pending() <= self.later() as u64
    }

    /// Whether all loops have ended, and nothing is pending.
    pub(super) fn is_at_rest(&self) -> bool {
        self.loops() == 0 && self.pending() == 0 && self.later.lock().finishing == 0
    }

    fn pending(&self) -> u64 {
        self.books.read().pending()
    }

    /// Has everybody look whether it is over.
    fn notify(&self) {
        fence(Ordering::SeqCst);
        self.idle.wake_all();
        // Whoever waits holds the lock between looking and sleeping; taking it here, no one is missed.
        drop(self.loops.lock());
        self.changed.notify_all();
        self.owner.wake();
    }

    /// Waits so long for it to be over.
    pub(super) fn is_over_within(&self, time: Duration) -> bool {
        let mut loops = self.loops.lock();
        let _ = self.changed.wait_while_for(&mut loops, |_| !self.is_over(), time);
        drop(loops);
        self.is_over()
    }

    /// How many loops have not ended.
    pub(super) fn loops(&self) -> usize {
        *self.loops.lock()
    }

    /// Waits until then for all to be at rest.
    pub(super) fn at_rest_by(&self, deadline: Option<Instant>) -> bool {
        let at_rest = |loops: &usize| *loops == 0 && self.pending() == 0 && self.later.lock().finishing == 0;
        let mut loops = self.loops.lock();
        while !at_rest(&loops) {
            match deadline {
                Some(deadline) if self.changed.wait_until(&mut loops, deadline).timed_out() => break,
                Some(_) => {}
                None => self.changed.wait(&mut loops),
            }
        }
        at_rest(&loops)
    }

    /// A loop has ended.
    pub(super) fn left(&self) {
        *self.loops.lock() -= 1;
        self.changed.notify_all();
        fence(Ordering::SeqCst);
        self.owner.wake();
    }
}
