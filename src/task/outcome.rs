//! How a task ended.

use std::fmt;
use std::time::Duration;

use crate::error::TaskFailure;

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
    /// [`ConnectionId`](crate::ConnectionId).
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
    /// A shutdown's deadline came first. If the task was running, it may be running still.
    Abandoned,
}

/// A task that has ended: what a finish closure is given.
#[derive(Debug)]
pub struct Finished<R> {
    pub(super) id: TaskId,
    pub(super) outcome: Outcome<R>,
    pub(super) worker_index: Option<usize>,
    pub(super) time_queued: Duration,
    pub(super) time_run: Duration,
}

impl<R> Finished<R> {
    /// The id that `task` returned.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// How the task ended.
    pub fn outcome(&self) -> &Outcome<R> {
        &self.outcome
    }

    /// How the task ended, by value.
    pub fn into_outcome(self) -> Outcome<R> {
        self.outcome
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
            Outcome::Abandoned => Err(TaskFailure::Abandoned),
        }
    }

    /// The index of the task worker that ran it; `None` for a task that never ran.
    pub fn worker_index(&self) -> Option<usize> {
        self.worker_index
    }

    /// How long the task waited for a task worker (of one abandoned while it ran: the time until then). Tasks
    /// submitted while one batch of input is handled share one stamp, taken when the first is submitted.
    pub fn time_queued(&self) -> Duration {
        self.time_queued
    }

    /// How long `on_task` ran; zero for a task that was abandoned.
    pub fn time_run(&self) -> Duration {
        self.time_run
    }
}
