//! What the task workers and those who command them share: which tasks have started, who is idle, and when to end.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Wake;
use super::idle::Idle;
use super::outcome::{Ended, Outcome, Progress, Run, TaskId};
use super::reply::{Decided, NotTaken, ReplyAddress, Ticket};
use crate::logging::{LogLimit, foreign};
use crate::observer::Observer;
use crate::panic::catch;
use crate::stats::{Books, Ledger, OpenLedger};

pub(super) struct Crew<R> {
    /// The task that each task worker runs.
    slots: Box<[Slot<R>]>,
    /// Tasks whose reply was taken away, to be finished later.
    later: Mutex<TakenReplies<R>>,
    pub(super) idle: Idle,
    /// What is delayed is cancelled, and tasks may submit no more.
    draining: AtomicBool,
    /// The loops are to end once nothing is pending.
    ending: AtomicBool,
    /// Nothing is waited for any more: a task that has not started is given up.
    expired: AtomicBool,
    /// Task workers that are to renew their state, one after the other.
    renewals: Mutex<VecDeque<usize>>,
    /// Whose turn that is: its index, or `NOBODY`.
    turn: AtomicUsize,
    /// Loops that have not ended.
    loops: Mutex<usize>,
    /// A loop has ended, or it may be time to.
    changed: Condvar,
    /// Roused whenever a loop ends.
    owner: Arc<dyn Wake>,
    pub(super) books: Arc<Books>,
    observer: Option<Arc<dyn Observer>>,
    pub(super) panic_log: LogLimit,
}

const NOBODY: usize = usize::MAX;

/// A task that has started, wherever it is now.
pub(super) struct Started<R> {
    pub(super) ticket: Ticket<R>,
    pub(super) worker_index: u32,
    pub(super) started: Instant,
    pub(super) deadline: Option<Instant>,
    /// What it has said, once it has.
    pub(super) said: Option<Box<Said>>,
}

/// How far a task says it has come.
pub(super) struct Said {
    progress: Progress,
    /// The submitter was told, and has not looked since.
    told: bool,
}

/// What became of the task that a task worker runs. On a cache line of its own, since each is written for every task.
#[repr(align(128))]
struct Slot<R>(Mutex<Running<R>>);

enum Running<R> {
    Nothing,
    Task(Started<R>),
    /// Its outcome was decided by somebody else.
    Decided(Arc<ReplyAddress<R>>),
    /// Its reply was taken away.
    Later(Arc<ReplyAddress<R>>),
}

struct TakenReplies<R> {
    tasks: HashMap<TaskId, Started<R>>,
    /// How many are being finished, and have yet to be counted to the end.
    finishing: usize,
    /// Written under this lock, whoever finishes.
    ledger: OpenLedger,
}

/// Who decides a task's outcome after all.
pub(super) enum Ending<R> {
    /// The task worker, and so it did.
    Decided(Decided<R>),
    /// Whoever has its reply.
    Later,
    /// Somebody has before; and here is the outcome that came too late.
    Late(Ended<R>),
}

impl<R> Crew<R> {
    pub(super) fn new(
        workers: usize,
        books: &Arc<Books>,
        owner: Arc<dyn Wake>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Crew<R> {
        Crew {
            slots: (0..workers).map(|_| Slot(Mutex::new(Running::Nothing))).collect(),
            later: Mutex::new(TakenReplies { tasks: HashMap::new(), finishing: 0, ledger: books.open() }),
            idle: Idle::new(workers),
            draining: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            renewals: Mutex::new(VecDeque::new()),
            turn: AtomicUsize::new(NOBODY),
            loops: Mutex::new(workers),
            changed: Condvar::new(),
            owner,
            books: Arc::clone(books),
            observer,
            panic_log: LogLimit::default(),
        }
    }

    pub(super) fn size(&self) -> usize {
        self.slots.len()
    }

    /// Tells who observes. No lock is held, and a panic there goes no further.
    #[inline]
    pub(super) fn observe(&self, tell: impl FnOnce(&dyn Observer)) {
        if let Some(observer) = &self.observer {
            if let Err(message) = catch(|| tell(&**observer)) {
                if let Some(held_back) = self.panic_log.permit() {
                    let message = foreign(message);
                    log::error!("an observer panicked: {message} ({held_back} more panics since the last line)");
                }
            }
        }
    }

    /// What follows a decided outcome, once no lock is held.
    #[inline]
    pub(super) fn announce(&self, decided: Decided<R>, ledger: &Ledger) {
        let (id, kind) = (decided.id, decided.kind);
        self.observe(|observer| observer.task_ended(id, kind));
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

/// The tasks that have started.
impl<R> Crew<R> {
    /// Shows that a task has started. Whether it may be one that is not to run after all: its outcome was decided while
    /// it was queued, or the crew has expired.
    #[inline]
    pub(super) fn start(&self, index: usize, started: Started<R>) -> bool {
        let mut running = self.slots[index].0.lock();
        // Whoever decides or expires says so first, and takes this lock second to look for the task here.
        let look_closer = started.ticket.reply_to.has_struck() || self.is_expired();
        *running = Running::Task(started);
        look_closer
    }

    /// Takes the task on this task worker away if its outcome was decided before it started. False if it may run.
    pub(super) fn take_if_decided(&self, index: usize) -> bool {
        let mut running = self.slots[index].0.lock();
        let decided = match &*running {
            // Under this lock, or whoever looks for a task between the two would take it for one that runs.
            Running::Task(started) => started.ticket.reply_to.unstrike(started.ticket.id),
            Running::Decided(_) => true,
            Running::Later(_) | Running::Nothing => false,
        };
        let taken = decided.then(|| std::mem::replace(&mut *running, Running::Nothing));
        drop(running);
        taken.is_some()
    }

    /// The task on this task worker has ended by itself, at this time; or is not to run.
    #[inline]
    pub(super) fn end(&self, index: usize, ended: Ended<R>, at: Option<Instant>, ledger: &Ledger) -> Ending<R> {
        let mut running = self.slots[index].0.lock();
        match std::mem::replace(&mut *running, Running::Nothing) {
            Running::Task(started) => {
                let ran = at.map(|at| (started.worker_index, started.run(at)));
                Ending::Decided(started.ticket.decide(ended, ran, ledger))
            }
            Running::Later(_) => Ending::Later,
            Running::Decided(_) | Running::Nothing => Ending::Late(ended),
        }
    }

    /// Takes the task on this task worker back, undecided; `None` if somebody else has decided it.
    pub(super) fn withdraw(&self, index: usize) -> Option<Started<R>> {
        let mut running = self.slots[index].0.lock();
        match std::mem::replace(&mut *running, Running::Nothing) {
            Running::Task(started) => Some(started),
            other => {
                *running = other;
                None
            }
        }
    }

    /// Takes a started task away from whoever was to decide it.
    pub(super) fn claim(&self, id: TaskId) -> Option<Started<R>> {
        // In this order: a reply may be taken away meanwhile.
        let running = self.slots.iter().find_map(|slot| slot.claim_and(|ticket| ticket.id == id, |started| started));
        running.or_else(|| self.later.lock().tasks.remove(&id))
    }

    /// Gives up all tasks that have started.
    pub(super) fn abandon_started(&self, ledger: &Ledger) {
        let abandon = |started: Started<R>| {
            let ran = Some((started.worker_index, started.run(Instant::now())));
            started.ticket.decide_unless_struck(Ended::Task(Outcome::Abandoned), ran, ledger).ok()
        };
        for slot in &self.slots {
            if let Some(Some(decided)) = slot.claim_and(|_| true, abandon) {
                self.announce(decided, ledger);
            }
        }
        let decided: Vec<_> = {
            let mut later = self.later.lock();
            later.tasks.drain().filter_map(|(_, started)| abandon(started)).collect()
        };
        for decided in decided {
            self.announce(decided, ledger);
        }
    }

    /// Whether the outcome of the task on this task worker was decided by somebody else.
    pub(super) fn is_decided(&self, index: usize) -> bool {
        matches!(&*self.slots[index].0.lock(), Running::Decided(_))
    }

    /// Where the outcome of the task on this task worker goes.
    pub(super) fn reply_address(&self, index: usize) -> Option<Arc<ReplyAddress<R>>> {
        match &*self.slots[index].0.lock() {
            Running::Task(started) => Some(Arc::clone(&started.ticket.reply_to)),
            Running::Decided(reply_to) | Running::Later(reply_to) => Some(Arc::clone(reply_to)),
            Running::Nothing => None,
        }
    }

    /// Sends a result of the task on this task worker, which goes on.
    pub(super) fn send(&self, index: usize, result: R, ledger: &Ledger) -> Result<(), (Option<NotTaken>, R)> {
        let reply_to = {
            let Running::Task(started) = &*self.slots[index].0.lock() else { return Err((None, result)) };
            started
                .ticket
                .send(result, started.worker_index, started.run(Instant::now()))
                .map_err(|(why, result)| (Some(why), result))?;
            Arc::clone(&started.ticket.reply_to)
        };
        reply_to.rouse(ledger);
        Ok(())
    }

    pub(super) fn set_progress(&self, index: usize, progress: Progress, ledger: &Ledger) {
        let reply_to = {
            let mut running = self.slots[index].0.lock();
            let Running::Task(started) = &mut *running else { return };
            let said = started.said.get_or_insert_with(|| Box::new(Said { progress, told: false }));
            said.progress = progress;
            if said.told || !started.ticket.tell_progress(started.worker_index) {
                return;
            }
            said.told = true;
            Arc::clone(&started.ticket.reply_to)
        };
        reply_to.rouse(ledger);
    }

    /// How far the task has come, if it runs.
    pub(super) fn progress(&self, id: TaskId) -> Option<Progress> {
        let running = (0..self.slots.len()).find_map(|index| self.progress_on(index, id, false));
        running.or_else(|| Some(self.later.lock().tasks.get(&id)?.said.as_ref()?.progress))
    }

    /// The same for who was told, and where; to be told again when it has come further.
    pub(super) fn told_progress(&self, id: TaskId, index: u32) -> Option<Progress> {
        self.progress_on(index as usize, id, true)
    }

    fn progress_on(&self, index: usize, id: TaskId, told: bool) -> Option<Progress> {
        match &mut *self.slots[index].0.lock() {
            Running::Task(started) if started.ticket.id == id => {
                let said = started.said.as_mut()?;
                said.told &= !told;
                Some(said.progress)
            }
            _ => None,
        }
    }

    /// Moves the reply of the task on this task worker to where it can be finished later; false if its outcome is
    /// decided, or its reply taken.
    pub(super) fn take_reply(&self, index: usize) -> bool {
        let mut running = self.slots[index].0.lock();
        let Running::Task(started) = &*running else { return false };
        let reply_to = Arc::clone(&started.ticket.reply_to);
        // Under both locks: whoever looks for the task finds it in one place or the other.
        let mut later = self.later.lock();
        if let Running::Task(started) = std::mem::replace(&mut *running, Running::Later(reply_to)) {
            later.tasks.insert(started.ticket.id, started);
        }
        true
    }

    /// Finishes a task whose reply was taken away.
    pub(super) fn end_later(&self, id: TaskId, ended: Ended<R>) {
        let now = Instant::now();
        let mut later = self.later.lock();
        let (decided, too_late) = match later.tasks.remove(&id) {
            Some(started) => {
                let (ended, too_late) = in_time(started.deadline, ended, now);
                let ran = Some((started.worker_index, started.run(now)));
                (Some(started.ticket.decide(ended, ran, &later.ledger)), too_late)
            }
            None => (None, Some(ended)),
        };
        later.ledger.late.add(u64::from(too_late.is_some()));
        later.finishing += 1;
        drop(later);

        // What is dropped is users'.
        let _ = catch(|| drop(too_late));
        if let Some(decided) = decided {
            self.announce(decided, &self.books.open());
        }
        self.later.lock().finishing -= 1;
        fence(Ordering::SeqCst);
        self.fewer_pending();
    }

    pub(super) fn is_decided_later(&self, id: TaskId) -> bool {
        !self.later.lock().tasks.contains_key(&id)
    }

    /// How many tasks run that have no outcome.
    pub(super) fn running(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(&*slot.0.lock(), Running::Task(_))).count()
    }

    /// How many tasks have their reply taken away.
    pub(super) fn later(&self) -> usize {
        self.later.lock().tasks.len()
    }
}

impl<R> Slot<R> {
    /// Takes its task away from the task worker, and does `what` with it before anybody else can look.
    fn claim_and<X>(&self, is_it: impl FnOnce(&Ticket<R>) -> bool, what: impl FnOnce(Started<R>) -> X) -> Option<X> {
        let mut running = self.0.lock();
        let reply_to = match &*running {
            Running::Task(started) if is_it(&started.ticket) => Arc::clone(&started.ticket.reply_to),
            _ => return None,
        };
        match std::mem::replace(&mut *running, Running::Decided(reply_to)) {
            Running::Task(started) => Some(what(started)),
            _ => None,
        }
    }
}

impl<R> Started<R> {
    pub(super) fn run(&self, ended: Instant) -> Run {
        Run { queued_at: self.ticket.queued_at, started: self.started, ended }
    }
}

/// What comes after the deadline is too late, even where nobody has looked yet: the outcome, and what came too late.
pub(super) fn in_time<R>(deadline: Option<Instant>, ended: Ended<R>, now: Instant) -> (Ended<R>, Option<Ended<R>>) {
    match deadline {
        Some(deadline) if deadline <= now => (Ended::Task(Outcome::TimedOut), Some(ended)),
        _ => (ended, None),
    }
}

/// Beginning and ending.
impl<R> Crew<R> {
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
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

/// Renewing the states of the task workers, one after the other.
impl<R> Crew<R> {
    /// All are to renew their state; those that wait for their turn already do so once.
    pub(super) fn renew_all(&self) {
        let mut renewals = self.renewals.lock();
        for index in 0..self.slots.len() {
            if !renewals.contains(&index) {
                renewals.push_back(index);
            }
        }
        self.call_next(renewals.front().copied());
    }

    pub(super) fn is_to_renew(&self, index: usize) -> bool {
        self.turn.load(Ordering::Relaxed) == index
    }

    /// This one has a new state, or has ended.
    pub(super) fn renewed(&self, index: usize) {
        let mut renewals = self.renewals.lock();
        renewals.retain(|&waiting| waiting != index);
        self.call_next(renewals.front().copied());
    }

    fn call_next(&self, index: Option<usize>) {
        self.turn.store(index.unwrap_or(NOBODY), Ordering::Relaxed);
        if let Some(index) = index {
            fence(Ordering::SeqCst);
            self.idle.wake(index);
        }
    }
}
