//! The tasks that have started, and who decides how each ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use parking_lot::Mutex;

use super::Crew;
use crate::logging::foreign;
use crate::panic::catch;
use crate::stamp::Stamp;
use crate::stats::{Ledger, OpenLedger};
use crate::task::outcome::{Ended, Outcome, OutcomeKind, Progress, Run, TaskId};
use crate::task::reply::{Decided, NotTaken, ReplyAddress, Ticket};
use crate::task::unheard::Named;

/// A task that has started, wherever it is now.
pub(in crate::task) struct Started<R> {
    pub(in crate::task) ticket: Ticket<R>,
    pub(in crate::task) worker_index: u32,
    pub(in crate::task) started: Stamp,
    pub(in crate::task) deadline: Option<Instant>,
    /// How far it says it has come, once it has.
    pub(in crate::task) progress: Option<Box<Progress>>,
}

/// What became of the task that a task worker runs. On a cache line of its own, since each is written for every task.
#[repr(align(128))]
pub(super) struct Slot<R>(Mutex<Running<R>>);

enum Running<R> {
    Nothing,
    Task(Started<R>),
    /// Its outcome was decided by somebody else.
    Decided(Arc<ReplyAddress<R>>),
    /// Its reply was taken away.
    Later(Arc<ReplyAddress<R>>),
}

pub(super) struct TakenReplies<R> {
    tasks: HashMap<TaskId, Started<R>>,
    /// How many are being finished, and have yet to be counted to the end.
    pub(super) finishing: usize,
    /// Written under this lock, whoever finishes.
    ledger: OpenLedger,
}

impl<R> TakenReplies<R> {
    pub(super) fn new(ledger: OpenLedger) -> TakenReplies<R> {
        TakenReplies { tasks: HashMap::new(), finishing: 0, ledger }
    }
}

/// Who decides a task's outcome after all.
pub(in crate::task) enum Ending<R> {
    /// The task worker, and so it did.
    Decided(Decided<R>),
    /// Whoever has its reply.
    Later,
    /// Somebody has before; and here is the outcome that came too late.
    Late(Ended<R>),
}

impl<R> Crew<R> {
    /// Shows that a task has started. Whether it may be one that is not to run after all: its outcome was decided while
    /// it was queued, or the crew has expired.
    #[inline]
    pub(in crate::task) fn start(&self, index: usize, started: Started<R>) -> bool {
        let mut running = self.slots[index].0.lock();
        // Whoever decides or expires says so first, and takes this lock second to look for the task here.
        let look_closer = started.ticket.reply_to.has_struck() || self.is_expired();
        *running = Running::Task(started);
        look_closer
    }

    /// Takes the task on this task worker away if its outcome was decided before it started. False if it may run.
    pub(in crate::task) fn take_if_decided(&self, index: usize) -> bool {
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

    /// Whether the submitter of the task on this task worker wants no more of its tasks to start.
    pub(in crate::task) fn is_to_cancel(&self, index: usize) -> bool {
        matches!(&*self.slots[index].0.lock(), Running::Task(started) if started.ticket.is_cancelled())
    }

    /// The task on this task worker has ended by itself, at this time; or is not to run.
    #[inline]
    pub(in crate::task) fn end(&self, index: usize, ended: Ended<R>, at: Option<Stamp>, ledger: &Ledger) -> Ending<R> {
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
    pub(in crate::task) fn withdraw(&self, index: usize) -> Option<Started<R>> {
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
    pub(in crate::task) fn claim(&self, id: TaskId) -> Option<Started<R>> {
        // In this order: a reply may be taken away meanwhile.
        let running = self.slots.iter().find_map(|slot| slot.claim_and(|ticket| ticket.id == id, |started| started));
        running.or_else(|| self.later.lock().tasks.remove(&id))
    }

    /// Gives up all tasks that have started.
    pub(in crate::task) fn abandon_started(&self, ledger: &Ledger) {
        self.end_started(|_| true, || Outcome::Abandoned, ledger);
    }

    /// Cancels the tasks of a submitter that have started.
    pub(in crate::task) fn cancel_started(&self, of: &Arc<ReplyAddress<R>>, ledger: &Ledger) {
        let is_its = |ticket: &Ticket<R>| !ticket.one_way && Arc::ptr_eq(&ticket.reply_to, of);
        self.end_started(is_its, || Outcome::Cancelled, ledger);
    }

    fn end_started(&self, which: impl Fn(&Ticket<R>) -> bool, how: impl Fn() -> Outcome<R>, ledger: &Ledger) {
        let end = |started: Started<R>| {
            let ran = Some((started.worker_index, started.run(Stamp::now())));
            started.ticket.decide_unless_struck(Ended::Task(how()), ran, ledger).ok()
        };
        for slot in &self.slots {
            if let Some(Some(decided)) = slot.claim_and(&which, end) {
                self.announce(decided, ledger);
            }
        }
        let decided: Vec<_> = {
            let mut later = self.later.lock();
            let ids: Vec<TaskId> =
                later.tasks.iter().filter(|(_, started)| which(&started.ticket)).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| end(later.tasks.remove(id)?)).collect()
        };
        for decided in decided {
            self.announce(decided, ledger);
        }
    }

    /// Whether the outcome of the task on this task worker was decided by somebody else.
    pub(in crate::task) fn is_decided(&self, index: usize) -> bool {
        matches!(&*self.slots[index].0.lock(), Running::Decided(_))
    }

    /// Where the outcome of the task on this task worker goes.
    pub(in crate::task) fn reply_address(&self, index: usize) -> Option<Arc<ReplyAddress<R>>> {
        match &*self.slots[index].0.lock() {
            Running::Task(started) => Some(Arc::clone(&started.ticket.reply_to)),
            Running::Decided(reply_to) | Running::Later(reply_to) => Some(Arc::clone(reply_to)),
            Running::Nothing => None,
        }
    }

    /// How long the task on this task worker has run until then, unless its outcome is decided.
    pub(in crate::task) fn run_of(&self, index: usize, until: Stamp) -> Option<Run> {
        match &*self.slots[index].0.lock() {
            Running::Task(started) => Some(started.run(until)),
            Running::Decided(_) | Running::Later(_) | Running::Nothing => None,
        }
    }

    /// Sends a result of the task on this task worker, which goes on.
    pub(in crate::task) fn send(&self, index: usize, result: R, ledger: &Ledger) -> Result<(), (Option<NotTaken>, R)> {
        let reply_to = {
            let Running::Task(started) = &*self.slots[index].0.lock() else { return Err((None, result)) };
            started
                .ticket
                .send(result, started.worker_index, started.run(Stamp::now()))
                .map_err(|(why, result)| (Some(why), result))?;
            Arc::clone(&started.ticket.reply_to)
        };
        reply_to.rouse(ledger);
        Ok(())
    }

    pub(in crate::task) fn set_progress(&self, index: usize, progress: Progress, ledger: &Ledger) {
        let reply_to = {
            let mut running = self.slots[index].0.lock();
            let Running::Task(started) = &mut *running else { return };
            **started.progress.get_or_insert_with(|| Box::new(progress)) = progress;
            if !started.ticket.tell_progress() {
                return;
            }
            Arc::clone(&started.ticket.reply_to)
        };
        reply_to.rouse(ledger);
    }

    /// How far the task has come, if it runs.
    pub(in crate::task) fn progress(&self, id: TaskId) -> Option<Progress> {
        let running = self.slots.iter().find_map(|slot| match &*slot.0.lock() {
            Running::Task(started) if started.ticket.id == id => Some(started.progress.as_deref().copied()),
            _ => None,
        });
        running.unwrap_or_else(|| self.later.lock().tasks.get(&id)?.progress.as_deref().copied())
    }

    /// Moves the reply of the task on this task worker to where it can be finished later; false if its outcome is
    /// decided, or its reply taken.
    pub(in crate::task) fn take_reply(&self, index: usize) -> bool {
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
    pub(in crate::task) fn end_later(&self, id: TaskId, ended: Ended<R>) {
        // The end of the pool waits for this.
        let _lent = self.threads.lend();
        let now = Stamp::now();
        let why = self.why(&ended).or_else(|| text_for_log(&ended));
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
            let why = why.filter(|_| decided.kind != OutcomeKind::TimedOut);
            if let Some(why) = &why {
                let name = Named { id, of: decided.reply_to.label.as_ref() };
                // The logger is the program's.
                let _ = catch(|| log::debug!("{name}: failed later: {}", foreign(why)));
            }
            self.announce(decided.because(why), &self.books.open());
        }
        self.later.lock().finishing -= 1;
        fence(Ordering::SeqCst);
        self.fewer_pending();
    }

    pub(in crate::task) fn is_decided_later(&self, id: TaskId) -> bool {
        !self.later.lock().tasks.contains_key(&id)
    }

    /// How many tasks run that have no outcome.
    pub(in crate::task) fn running(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(&*slot.0.lock(), Running::Task(_))).count()
    }

    /// How many tasks have their reply taken away.
    pub(in crate::task) fn later(&self) -> usize {
        self.later.lock().tasks.len()
    }
}

fn text_for_log<R>(ended: &Ended<R>) -> Option<String> {
    match ended {
        Ended::Task(Outcome::Failed(error)) if log::log_enabled!(log::Level::Debug) => {
            catch(|| format!("{error:#}")).ok()
        }
        _ => None,
    }
}

impl<R> Slot<R> {
    pub(super) fn new() -> Slot<R> {
        Slot(Mutex::new(Running::Nothing))
    }

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
    pub(in crate::task) fn run(&self, ended: Stamp) -> Run {
        Run { queued_at: self.ticket.queued_at, started: self.started, ended }
    }
}

/// What comes after the deadline is too late, even where nobody has looked yet: the outcome, and what came too late.
pub(in crate::task) fn in_time<R>(
    deadline: Option<Instant>,
    ended: Ended<R>,
    now: Stamp,
) -> (Ended<R>, Option<Ended<R>>) {
    match deadline {
        Some(deadline) if Stamp::from(deadline) <= now => (Ended::Task(Outcome::TimedOut), Some(ended)),
        _ => (ended, None),
    }
}
