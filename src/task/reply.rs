//! The way back: from whoever decides a task's outcome to the submitter.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::Instant;

use parking_lot::Mutex;

use super::Wake;
use super::channel::Channel;
use super::outcome::{Ended, Finished, Outcome, OutcomeKind, Returned, Run, TaskId};
use super::unheard::{Label, Unheard};
use crate::observer::{Observer, TaskEnded};
use crate::panic::catch;
use crate::stamp::Stamp;
use crate::stats::Ledger;

/// What comes to a submitter.
pub(super) enum Message<R> {
    Finished(Finished<R>),
    /// A closure that was run as a task has returned.
    Returned(TaskId, Returned),
    /// The task has come further. There is one at most for each task; how far it has come is read where it runs.
    Progress(TaskId),
    /// Somebody has submitted this task in the submitter's name, with a deadline for the submitter to follow. Comes
    /// before anything else of that task.
    Deadline(TaskId, Instant),
}

impl<R> Message<R> {
    /// The task whose result this is.
    pub(super) fn task(&self) -> Option<TaskId> {
        match self {
            Message::Finished(finished) => Some(finished.id),
            Message::Returned(id, _) => Some(*id),
            Message::Progress(_) | Message::Deadline(..) => None,
        }
    }

    /// The task whose end this is.
    pub(super) fn ends(&self) -> Option<TaskId> {
        match self {
            Message::Finished(finished) => finished.is_last.then_some(finished.id),
            Message::Returned(id, _) => Some(*id),
            Message::Progress(_) | Message::Deadline(..) => None,
        }
    }
}

/// Where the outcomes of one submitter's tasks go: its reply channel, and how to rouse it.
///
/// The channel is unbounded, so that a task worker never waits for a submitter; what bounds it is the number
/// of that submitter's tasks in flight, and `Limits`.
///
/// Aligned, so that it does not share a cache line with its `Arc`'s count, which every ticket changes.
#[repr(align(64))]
pub(super) struct ReplyAddress<R> {
    /// The number of the submitter.
    pub(super) number: u64,
    /// The submitter takes from it; once it is gone, whoever pushes does.
    channel: Channel<Message<R>>,
    gone: AtomicBool,
    /// Something is in `struck`, or all are to be cancelled: look closer at a task that starts.
    any_struck: AtomicBool,
    /// All that others submitted for it, and that have yet to start, are to be cancelled, but for one-way tasks.
    cancels: AtomicBool,
    /// Tasks whose outcome the submitter has decided while they were queued: whoever takes one out of the queue
    /// throws it away.
    struck: Mutex<HashSet<TaskId>>,
    limits: Limits,
    /// Tasks of which there is an undelivered message of progress.
    told: Mutex<HashSet<TaskId>>,
    /// Undelivered results other than outcomes.
    results: AtomicUsize,
    /// Tasks that others submitted for this submitter to hear of, and it has not yet.
    foreign: AtomicUsize,
    submitter: Arc<dyn Wake>,
    /// Who that is, in words.
    pub(super) label: Option<Label>,
    unheard: Arc<Unheard>,
}

/// What bounds the messages of one submitter that it does not ask for.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Results other than outcomes.
    pub(super) results: usize,
    /// Tasks that others submit in its name.
    pub(super) foreign: usize,
    /// Whether it wants to hear of progress.
    pub(super) progress: bool,
}

impl<R> ReplyAddress<R> {
    pub(super) fn new(
        number: u64,
        limits: Limits,
        submitter: Arc<dyn Wake>,
        label: Option<Label>,
        unheard: &Arc<Unheard>,
    ) -> ReplyAddress<R> {
        ReplyAddress {
            number,
            channel: Channel::new(),
            gone: AtomicBool::new(false),
            any_struck: AtomicBool::new(false),
            cancels: AtomicBool::new(false),
            struck: Mutex::new(HashSet::new()),
            limits,
            told: Mutex::new(HashSet::new()),
            results: AtomicUsize::new(0),
            foreign: AtomicUsize::new(0),
            submitter,
            label,
            unheard: Arc::clone(unheard),
        }
    }

    pub(super) fn messages(&self) -> &Channel<Message<R>> {
        &self.channel
    }

    /// The submitter ends: what is here and what will come is nobody's.
    pub(super) fn close(&self, ledger: &Ledger) {
        self.gone.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.orphan(ledger);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Rouse the submitter after it.
    pub(super) fn push(&self, message: Message<R>) {
        self.channel.send(message);
    }

    /// Has the submitter look at what was pushed, after a full fence. No lock is held, since what this drops may be
    /// users' code.
    pub(super) fn rouse(&self, ledger: &Ledger) {
        // Either we see that the submitter is gone, or it sees what was pushed when it closes; and likewise
        // with its mark of being asleep.
        fence(Ordering::SeqCst);
        if self.is_gone() {
            self.orphan(ledger);
        } else {
            self.submitter.wake();
        }
    }

    /// Whoever takes an outcome out counts it, so each is counted once.
    fn orphan(&self, ledger: &Ledger) {
        while let Some(message) = self.channel.try_recv() {
            self.orphan_one(message, ledger);
        }
    }

    /// Counts an outcome that nobody will hear, and drops it.
    pub(super) fn orphan_one(&self, message: Message<R>, ledger: &Ledger) {
        self.note_unheard(&message);
        if let Some(id) = message.ends() {
            ledger.orphaned.add(1);
            if id.submitter != self.number {
                self.forget_foreign();
            }
        }
        // A result's own drop may panic; the rest must be counted all the same.
        let _ = catch(|| drop(message));
    }

    /// Nobody hears of this. Hold no lock.
    pub(super) fn note_unheard(&self, message: &Message<R>) {
        if let Message::Finished(Finished { id, outcome, .. }) = message {
            self.unheard.note(*id, self.label.as_ref(), outcome);
        }
    }

    /// From now on the task is thrown away by whoever takes it out of the queue.
    pub(super) fn strike(&self, id: TaskId) {
        let mut struck = self.struck.lock();
        struck.insert(id);
        self.any_struck.store(true, Ordering::Relaxed);
    }

    /// Takes that back, or does it: the task was struck, and now is forgotten. False if it was not.
    pub(super) fn unstrike(&self, id: TaskId) -> bool {
        if !self.any_struck.load(Ordering::Relaxed) {
            return false;
        }
        let mut struck = self.struck.lock();
        self.remove_struck(&mut struck, id)
    }

    fn remove_struck(&self, struck: &mut HashSet<TaskId>, id: TaskId) -> bool {
        let was_struck = struck.remove(&id);
        self.any_struck.store(!struck.is_empty() || self.cancels(), Ordering::Relaxed);
        was_struck
    }

    /// From now on whoever is to start a task that others submitted for it cancels that instead.
    pub(super) fn cancel_all(&self) {
        let _struck = self.struck.lock();
        self.cancels.store(true, Ordering::Relaxed);
        self.any_struck.store(true, Ordering::Relaxed);
    }

    pub(super) fn cancels(&self) -> bool {
        self.cancels.load(Ordering::Relaxed)
    }

    /// Gives back what a burst has left allocated.
    pub(super) fn release(&self) {
        for set in [&self.struck, &self.told] {
            let mut set = set.lock();
            if set.is_empty() {
                *set = HashSet::new();
            }
        }
    }

    /// The same of the channel, which keeps a block for its next messages. Whoever has it to itself knows that none is on
    /// its way.
    pub(super) fn release_channel(&mut self) {
        if self.channel.is_empty() {
            self.channel = Channel::new();
        }
    }

    pub(super) fn is_struck(&self, id: TaskId) -> bool {
        self.has_struck() && self.struck.lock().contains(&id)
    }

    pub(super) fn has_struck(&self) -> bool {
        self.any_struck.load(Ordering::Relaxed)
    }

    /// Counts a task that somebody submits for this submitter to hear of; false where there are too many.
    pub(super) fn expect_foreign(&self) -> bool {
        let before = self.foreign.fetch_add(1, Ordering::Relaxed);
        if before >= self.limits.foreign {
            self.forget_foreign();
        }
        before < self.limits.foreign
    }

    pub(super) fn has_many_foreign(&self) -> bool {
        self.foreign() >= self.limits.foreign
    }

    pub(super) fn forget_foreign(&self) {
        self.foreign.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn foreign(&self) -> usize {
        self.foreign.load(Ordering::Relaxed)
    }

    /// The message of a task's progress was received: the next is sent when it has come further.
    pub(super) fn forget_told(&self, id: TaskId) {
        self.told.lock().remove(&id);
    }

    fn expect_result(&self) -> bool {
        let before = self.results.fetch_add(1, Ordering::Relaxed);
        if before >= self.limits.results {
            self.forget_result();
        }
        before < self.limits.results
    }

    pub(super) fn results(&self) -> usize {
        self.results.load(Ordering::Relaxed)
    }

    pub(super) fn forget_result(&self) {
        self.results.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to decide a task's outcome. There is one per accepted task; whoever takes it owns the outcome.
pub(super) struct Ticket<R> {
    pub(super) id: TaskId,
    pub(super) queued_at: Stamp,
    pub(super) reply_to: Arc<ReplyAddress<R>>,
    /// Nobody hears of the outcome.
    pub(super) one_way: bool,
}

/// A decided outcome that is on its way. The submitter has yet to be roused, once no lock is held.
#[must_use]
pub(super) struct Decided<R> {
    pub(super) id: TaskId,
    pub(super) kind: OutcomeKind,
    pub(super) reply_to: Arc<ReplyAddress<R>>,
    pub(super) ran: Option<(u32, Run)>,
    /// Why it failed, for an observer.
    pub(super) why: Option<String>,
    /// The outcome of a one-way task.
    unheard: Option<Box<Message<R>>>,
}

/// What an observer is told of a task.
pub(super) fn told<'a, R>(
    id: TaskId,
    how: OutcomeKind,
    error: Option<&'a str>,
    reply_to: &'a ReplyAddress<R>,
    ran: Option<(u32, Run)>,
) -> TaskEnded<'a> {
    TaskEnded {
        id,
        how,
        error,
        submitter: reply_to.number,
        of: reply_to.label.as_ref().map(|label| &**label as &dyn fmt::Display),
        worker_index: ran.map(|(index, _)| index as usize),
        time_queued: ran.map(|(_, run)| run.started.since(run.queued_at)).unwrap_or_default(),
        time_run: ran.map(|(_, run)| run.ended.since(run.started)).unwrap_or_default(),
    }
}

/// Why a result was not taken.
pub(super) enum NotTaken {
    TooMany,
    Unheard,
}

impl<R> Ticket<R> {
    /// Whether it was submitted in the name of somebody who has closed since, and wants no more of it to run.
    pub(super) fn is_cancelled(&self) -> bool {
        !self.one_way && self.id.submitter != self.reply_to.number && self.reply_to.cancels()
    }

    /// Decides the outcome and sends it. Done under the lock where the ticket was found, so that who else looks for
    /// it finds either the ticket there or the outcome with the submitter.
    #[inline]
    pub(super) fn decide(self, ended: Ended<R>, ran: Option<(u32, Run)>, ledger: &Ledger) -> Decided<R> {
        let kind = ended.kind();
        ledger.count(kind);
        let message = match ended {
            Ended::Task(outcome) => Message::Finished(self.finished(outcome, ran, true)),
            Ended::Closure(returned) => Message::Returned(self.id, returned),
        };
        let mut unheard = None;
        if self.one_way {
            ledger.one_way.add(1);
            unheard = Some(Box::new(message));
        } else {
            self.reply_to.push(message);
        }
        Decided { id: self.id, kind, reply_to: self.reply_to, ran, why: None, unheard }
    }

    fn finished(&self, outcome: Outcome<R>, ran: Option<(u32, Run)>, is_last: bool) -> Finished<R> {
        let run = ran.map_or_else(|| Run::never(self.queued_at), |(_, run)| run);
        Finished { id: self.id, outcome, is_last, worker_index: ran.map(|(worker_index, _)| worker_index), run }
    }

    /// Decides the outcome of a task that is given up, unless its submitter has: of one that comes out of the queue or
    /// the timer, or whose task worker has yet to see that it was struck.
    pub(super) fn decide_unless_struck(
        self,
        ended: Ended<R>,
        ran: Option<(u32, Run)>,
        ledger: &Ledger,
    ) -> Result<Decided<R>, Ended<R>> {
        let reply_to = Arc::clone(&self.reply_to);
        // The submitter strikes the task out under this lock, and then looks for its outcome.
        let mut struck = reply_to.struck.lock();
        if reply_to.remove_struck(&mut struck, self.id) {
            return Err(ended);
        }
        Ok(self.decide(ended, ran, ledger))
    }

    /// Sends a result that is not the last, under the same lock. Rouse the submitter after it.
    pub(super) fn send(&self, result: R, worker_index: u32, run: Run) -> Result<(), (NotTaken, R)> {
        if self.one_way || self.reply_to.is_gone() {
            return Err((NotTaken::Unheard, result));
        }
        if !self.reply_to.expect_result() {
            return Err((NotTaken::TooMany, result));
        }
        let finished = self.finished(Outcome::Done(result), Some((worker_index, run)), false);
        self.reply_to.push(Message::Finished(finished));
        Ok(())
    }

    /// Tells of progress, under the same lock. False if nobody wants to hear of it, or will already.
    pub(super) fn tell_progress(&self) -> bool {
        let address = &*self.reply_to;
        let wanted = address.limits.progress && !self.one_way && !address.is_gone();
        let tells = wanted && address.told.lock().insert(self.id);
        if tells {
            address.push(Message::Progress(self.id));
        }
        tells
    }
}

impl<R> Decided<R> {
    pub(super) fn because(self, why: Option<String>) -> Decided<R> {
        Decided { why, ..self }
    }

    pub(super) fn tell(&self, observer: &dyn Observer) {
        observer.task_ended(&told(self.id, self.kind, self.why.as_deref(), &self.reply_to, self.ran));
    }

    /// Rouses the submitter, after a full fence. No lock is held, since what it drops may be users' code.
    pub(super) fn rouse(self, ledger: &Ledger) {
        match self.unheard {
            Some(message) => {
                fence(Ordering::SeqCst);
                self.reply_to.note_unheard(&message);
                let _ = catch(|| drop(message));
            }
            None => self.reply_to.rouse(ledger),
        }
    }
}
