//! A reply that was taken out of its task, to be finished later.

use std::fmt;
use std::sync::Arc;

use super::crew::Crew;
use super::outcome::{Ended, Outcome, TaskId};

/// The reply of a task that has returned without one, from [`finish_later`](crate::TaskInfo::finish_later). Whoever has
/// it finishes the task, from any thread. Dropped unfinished, it fails the task, with
/// [`ReplyDropped`].
#[must_use]
pub struct Later<R> {
    id: TaskId,
    /// `None` once it is finished.
    crew: Option<Arc<Crew<R>>>,
}

impl<R> Later<R> {
    pub(super) fn new(id: TaskId, crew: &Arc<Crew<R>>) -> Later<R> {
        Later { id, crew: Some(Arc::clone(crew)) }
    }

    /// The id of the task.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Whether the outcome has been decided meanwhile: the task was cancelled, has timed out, or was abandoned at a
    /// shutdown's deadline. Finishing it is counted as late then.
    pub fn cancelled(&self) -> bool {
        self.crew.as_ref().is_some_and(|crew| crew.is_decided_later(self.id))
    }

    /// The task is done, with this result. Never blocks.
    pub fn finish(self, result: R) {
        self.end(Outcome::Done(result));
    }

    /// The task has failed.
    pub fn fail(self, error: impl Into<anyhow::Error>) {
        self.end(Outcome::Failed(error.into()));
    }

    fn end(mut self, outcome: Outcome<R>) {
        if let Some(crew) = self.crew.take() {
            crew.end_later(self.id, Ended::Task(outcome));
        }
    }
}

impl<R> Drop for Later<R> {
    fn drop(&mut self) {
        if let Some(crew) = self.crew.take() {
            crew.end_later(self.id, Ended::Task(Outcome::Failed(anyhow::Error::new(ReplyDropped))));
        }
    }
}

impl<R> fmt::Debug for Later<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a task failed whose reply was [taken away](crate::TaskInfo::finish_later) and then dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyDropped;

impl fmt::Display for ReplyDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task's reply was taken away and dropped unfinished")
    }
}

impl std::error::Error for ReplyDropped {}

/// What `on_task` returns whose reply was taken away; nobody hears of it.
#[derive(Debug)]
pub(super) struct TakenAway;

impl fmt::Display for TakenAway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task's reply was taken away")
    }
}

impl std::error::Error for TakenAway {}
