//! What a submitter keeps of a task in flight.

use std::time::Instant;

use super::outcome::{Finished, Progress, Returned, TaskId};
use crate::error::TaskFailure;

/// A task that was submitted and whose outcome was not delivered yet. `C` is who gets it: a connection, say.
pub(super) struct Flight<R, C> {
    pub(super) finish: Finish<R, C>,
    /// What only some tasks have.
    pub(super) special: Option<Box<Special>>,
    /// Its outcome is here, and has yet to be delivered.
    pub(super) ended: bool,
}

/// What runs when something comes for a task.
pub(super) enum Finish<R, C> {
    /// What runs for all tasks that have nothing of their own.
    ForAll,
    Then(Then<Finished<R>, C>),
    /// For every result. Taken out while it runs.
    Each(Option<Each<R, C>>),
    /// For a closure that was run as a task.
    Closure(Then<Result<Returned, TaskFailure>, C>),
    /// Somebody waits for it.
    Waited,
}

/// What is given something once.
pub(super) type Then<F, C> = Box<dyn FnOnce(&mut C, F) -> anyhow::Result<()>>;
pub(super) type Each<R, C> = Box<dyn FnMut(&mut C, Finished<R>) -> anyhow::Result<()>>;

pub(super) struct Special {
    pub(super) deadline: Option<Instant>,
    pub(super) delayed: bool,
}

impl<R, C> Flight<R, C> {
    /// Takes no place in order, and none among the tasks in flight.
    pub(super) fn is_apart(&self) -> bool {
        matches!(self.finish, Finish::Waited) || self.special.as_ref().is_some_and(|special| special.delayed)
    }

    /// When its submitter is to end it; whoever waits looks at the clock itself.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.finish {
            Finish::Waited => None,
            _ => self.special.as_ref()?.deadline,
        }
    }
}

/// Something that came for a submitter, and what is to run for it.
pub(crate) struct Delivery<R, C>(pub(super) What<R, C>);

pub(super) enum What<R, C> {
    ForAll(Finished<R>),
    Then(Then<Finished<R>, C>, Finished<R>),
    Each(Each<R, C>, Finished<R>),
    Closure(Then<Result<Returned, TaskFailure>, C>, Result<Returned, TaskFailure>),
    Progress(TaskId, Progress),
}
