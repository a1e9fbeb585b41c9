//! What a submitter keeps of a task in flight.

use std::time::Instant;

use super::outcome::{Finished, Returned};
use crate::error::TaskFailure;

/// A task that was submitted and whose outcome was not delivered yet. `C` is who gets it: a connection, say.
///
/// Small, since most tasks have nothing of their own, and each is written here once.
pub(super) struct Flight<R, C> {
    own: Own<R, C>,
    /// Its outcome is here, and has yet to be delivered.
    pub(super) ended: bool,
}

enum Own<R, C> {
    Nothing,
    /// Somebody waits for it.
    Waited,
    Special(Box<Special<R, C>>),
}

struct Special<R, C> {
    finish: Finish<R, C>,
    deadline: Option<Instant>,
    delayed: bool,
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

impl<R, C> Flight<R, C> {
    #[inline]
    pub(super) fn new(finish: Finish<R, C>, deadline: Option<Instant>, delayed: bool) -> Flight<R, C> {
        let own = match finish {
            // Whoever waits looks at the clock itself.
            Finish::Waited => Own::Waited,
            Finish::ForAll if deadline.is_none() && !delayed => Own::Nothing,
            finish => Own::Special(Box::new(Special { finish, deadline, delayed })),
        };
        Flight { own, ended: false }
    }

    /// Takes no place in order, and none among the tasks in flight.
    #[inline]
    pub(super) fn is_apart(&self) -> bool {
        match &self.own {
            Own::Nothing => false,
            Own::Waited => true,
            Own::Special(special) => special.delayed,
        }
    }

    /// When its submitter is to end it.
    #[inline]
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.own {
            Own::Nothing | Own::Waited => None,
            Own::Special(special) => special.deadline,
        }
    }

    /// Whether what runs for all tasks runs for this one.
    pub(super) fn is_for_all(&self) -> bool {
        match &self.own {
            Own::Nothing => true,
            Own::Waited => false,
            Own::Special(special) => matches!(special.finish, Finish::ForAll),
        }
    }

    /// What runs for every result of this one, if it has that.
    pub(super) fn each(&mut self) -> Option<&mut Option<Each<R, C>>> {
        match &mut self.own {
            Own::Special(special) => match &mut special.finish {
                Finish::Each(each) => Some(each),
                _ => None,
            },
            Own::Nothing | Own::Waited => None,
        }
    }

    #[inline]
    pub(super) fn into_finish(self) -> Finish<R, C> {
        match self.own {
            Own::Nothing => Finish::ForAll,
            Own::Waited => Finish::Waited,
            Own::Special(special) => special.finish,
        }
    }
}
