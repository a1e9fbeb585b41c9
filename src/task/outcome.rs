//! How a task ended, and what it gave on the way.

use std::any::Any;
use std::fmt;
use std::time::Duration;

use crate::error::TaskFailure;
use crate::stamp::Stamp;

/// A task's name: the number of its submitter, and a sequence of that submitter's own that begins at 1 and
/// has no gaps. Shown as `17-3`.
///
/// Unique in the life of a process. In Swoole an id is unique only together with the worker's id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    pub(crate) submitter: u64,
    pub(crate) sequence: u64,
}

impl TaskId {
    /// The number of the submitter; of a connection's tasks, the number in its
    /// [`ConnectionId`](crate::ConnectionId). A task worker that submits tasks has a number of its own, and so has a
    /// [`Repetition`](crate::Repetition).
    pub fn submitter(&self) -> u64 {
        self.submitter
    }

    /// Its place among the accepted tasks of its submitter, from 1.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.submitter, self.sequence)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

/// How a task ended. Every accepted task has exactly one.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome<R> {
    /// `on_task` returned this result.
    Done(R),
    /// `on_task` returned this error.
    Failed(anyhow::Error),
    /// `on_task` panicked, with this message.
    Panicked(String),
    /// The task's deadline came first. If it had not started it never will; if it was running, it may be running
    /// still, and what it returns is counted as late.
    TimedOut,
    /// It was cancelled. The same holds of what it may still do.
    Cancelled,
    /// A shutdown's deadline came first. If the task was running, it may be running still.
    Abandoned,
}

/// How a task ended, without what it returned: what an [`Observer`](crate::Observer) is told, and what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the variant of the same name of `Outcome`")]
pub enum OutcomeKind {
    Done,
    Failed,
    Panicked,
    TimedOut,
    Cancelled,
    Abandoned,
}

impl<R> Outcome<R> {
    /// Which of its variants this is.
    pub fn kind(&self) -> OutcomeKind {
        match self {
            Outcome::Done(_) => OutcomeKind::Done,
            Outcome::Failed(_) => OutcomeKind::Failed,
            Outcome::Panicked(_) => OutcomeKind::Panicked,
            Outcome::TimedOut => OutcomeKind::TimedOut,
            Outcome::Cancelled => OutcomeKind::Cancelled,
            Outcome::Abandoned => OutcomeKind::Abandoned,
        }
    }
}

/// A task that has ended, or a result it gave before its end: what a finish closure is given.
#[derive(Debug)]
pub struct Finished<R> {
    pub(super) id: TaskId,
    pub(super) outcome: Outcome<R>,
    pub(super) is_last: bool,
    pub(super) worker_index: Option<u32>,
    pub(super) run: Run,
}

/// When a task was queued, started and ended: the durations are reckoned when they are asked for. All the same for a
/// task that never ran.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) queued_at: Stamp,
    pub(super) started: Stamp,
    pub(super) ended: Stamp,
}

impl Run {
    /// Of a task that never ran.
    pub(super) fn never(queued_at: Stamp) -> Run {
        Run { queued_at, started: queued_at, ended: queued_at }
    }
}

impl<R> Finished<R> {
    /// The id that `task` returned.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// How the task ended; [`Done`](Outcome::Done) too for a result that it gave by
    /// [`finish`](crate::TaskInfo::finish) before its end.
    pub fn outcome(&self) -> &Outcome<R> {
        &self.outcome
    }

    /// How the task ended, by value.
    pub fn into_outcome(self) -> Outcome<R> {
        self.outcome
    }

    /// Whether the task has ended, and this is its outcome; false for a result that it gave before.
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// The result, if there is one.
    pub fn result(&self) -> Option<&R> {
        match &self.outcome {
            Outcome::Done(result) => Some(result),
            _ => None,
        }
    }

    /// The result, or an error that says how else the task ended.
    pub fn into_result(self) -> Result<R, TaskFailure> {
        match self.outcome {
            Outcome::Done(result) => Ok(result),
            Outcome::Failed(error) => Err(TaskFailure::Failed(error)),
            Outcome::Panicked(message) => Err(TaskFailure::Panicked(message)),
            Outcome::TimedOut => Err(TaskFailure::TimedOut),
            Outcome::Cancelled => Err(TaskFailure::Cancelled),
            Outcome::Abandoned => Err(TaskFailure::Abandoned),
        }
    }

    /// The index of the task worker that ran it; `None` for a task that never ran, or that ended while it waited for
    /// another attempt.
    pub fn worker_index(&self) -> Option<usize> {
        self.worker_index.map(|index| index as usize)
    }

    /// How long the task waited for a task worker, from its submission, or from the moment it was delayed to. Zero
    /// for a task that never ran. Tasks submitted while one batch of input is handled share one stamp, taken when the
    /// first is submitted.
    pub fn time_queued(&self) -> Duration {
        self.run.started.since(self.run.queued_at)
    }

    /// How long `on_task` ran until this, in its last attempt; of a task that was finished later, until then. Zero for
    /// a task that never ran.
    pub fn time_run(&self) -> Duration {
        self.run.ended.since(self.run.started)
    }
}

/// How a task worker ended a task.
pub(super) enum Ended<R> {
    Task(Outcome<R>),
    /// A closure that was run as a task has returned this.
    Closure(Returned),
}

/// What a closure returned that was run as a task.
pub(super) type Returned = Box<dyn Any + Send>;

impl<R> Ended<R> {
    pub(super) fn kind(&self) -> OutcomeKind {
        match self {
            Ended::Task(outcome) => outcome.kind(),
            Ended::Closure(_) => OutcomeKind::Done,
        }
    }
}

/// How far a task has come, as it said itself by [`progress`](crate::TaskInfo::progress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// So many steps are done,
    pub done: u64,
    /// of so many.
    pub total: u64,
}
