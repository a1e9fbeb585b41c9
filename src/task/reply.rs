//! The way back: from whoever decides a task's outcome to the submitter.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::Wake;
use super::outcome::{Finished, Outcome, TaskId};
use crate::panic::catch;
use crate::stats::Ledger;

/// Where the outcomes of one submitter's tasks go: its reply channel, and how to rouse it.
///
/// The channel is unbounded, so that a task worker never waits for a submitter; what bounds it is the number
/// of that submitter's tasks in flight.
///
/// Aligned, so that it does not share a cache line with its `Arc`'s count, which every ticket changes.
#[repr(align(64))]
pub(super) struct ReplyAddress<R> {
    sender: Sender<Finished<R>>,
    /// A second receiver beside the submitter's own, for the outcomes that come once it is gone.
    receiver: Receiver<Finished<R>>,
    gone: AtomicBool,
    submitter: Arc<dyn Wake>,
}

impl<R> ReplyAddress<R> {
    pub(super) fn new(submitter: Arc<dyn Wake>) -> ReplyAddress<R> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        ReplyAddress { sender, receiver, gone: AtomicBool::new(false), submitter }
    }

    pub(super) fn receiver(&self) -> &Receiver<Finished<R>> {
        &self.receiver
    }

    /// The submitter ends: what is here and what will come is nobody's.
    pub(super) fn close(&self, ledger: &Ledger) {
        self.gone.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.orphan(ledger);
    }

    fn send(&self, finished: Finished<R>, ledger: &Ledger) {
        // Cannot fail: a receiver lives as long as this.
        let _ = self.sender.send(finished);
        // Either we see that the submitter is gone, or it sees this outcome when it closes; and likewise
        // with its mark of being asleep.
        fence(Ordering::SeqCst);
        if self.gone.load(Ordering::Relaxed) {
            self.orphan(ledger);
        } else {
            self.submitter.wake();
        }
    }

    /// Whoever takes an outcome out counts it, so each is counted once.
    fn orphan(&self, ledger: &Ledger) {
        while let Ok(finished) = self.receiver.try_recv() {
            ledger.orphaned.add(1);
            // The result's own drop may panic; the rest must be counted all the same.
            let _ = catch(|| drop(finished));
        }
    }
}

/// The right to decide a task's outcome. There is one per accepted task; whoever takes it owns the outcome.
pub(super) struct Ticket<R> {
    pub(super) id: TaskId,
    pub(super) queued_at: Instant,
    pub(super) reply_to: Arc<ReplyAddress<R>>,
}

/// Where and when a task ran.
pub(super) struct Run {
    pub(super) worker_index: usize,
    pub(super) started: Instant,
    pub(super) ended: Instant,
}

impl<R> Ticket<R> {
    /// The task has run; this is how it ended.
    pub(super) fn decide(self, outcome: Outcome<R>, run: Run, ledger: &Ledger) {
        match &outcome {
            Outcome::Done(_) => ledger.done.add(1),
            Outcome::Failed(_) => ledger.failed.add(1),
            Outcome::Panicked(_) => ledger.panicked.add(1),
            Outcome::Abandoned => ledger.abandoned.add(1),
        }
        let finished = Finished {
            id: self.id,
            outcome,
            worker_index: Some(run.worker_index),
            time_queued: run.started.saturating_duration_since(self.queued_at),
            time_run: run.ended.saturating_duration_since(run.started),
        };
        self.reply_to.send(finished, ledger);
    }

    /// Gives the task up; `worker_index` says where it runs, if it does.
    pub(super) fn abandon(self, worker_index: Option<usize>, ledger: &Ledger) {
        ledger.abandoned.add(1);
        let finished = Finished {
            id: self.id,
            outcome: Outcome::Abandoned,
            worker_index,
            time_queued: self.queued_at.elapsed(),
            time_run: Duration::ZERO,
        };
        self.reply_to.send(finished, ledger);
    }
}
