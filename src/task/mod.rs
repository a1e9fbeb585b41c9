//! The back room: takes tasks, runs them on a fixed crew of threads, and sends each outcome back to the
//! submitter. Knows nothing of sockets.

mod bell;
mod channel;
mod context;
mod crew;
mod flight;
mod flights;
mod idle;
mod lane;
mod later;
mod options;
mod order;
mod outcome;
mod pool;
mod port;
mod queue;
mod renewals;
mod repetition;
mod reply;
mod room;
#[cfg(test)]
mod tests_of_waiters;
mod timer;
mod unheard;
mod waiters;
mod with;
mod worker;

pub use context::{TaskContext, TaskInfo};
pub use later::{Later, ReplyDropped};
pub use options::{Priority, Retry, TaskOptions};
pub use outcome::{Finished, Outcome, OutcomeKind, Progress, TaskId};
pub use repetition::Repetition;
pub use with::With;

pub(crate) use pool::{Hooks, OnTask, Pool, PoolConfig, StartError, StateHooks};
pub(crate) use port::{Port, PortConfig, TaskCallbacks, WhenFull, far};
pub(crate) use room::new_number;
pub(crate) use unheard::Label;

// For `idle`, `waiters` and `renewals`, which take them from here so that `tests/model` can put others in their place.
use crate::patience::Patience;
use crate::sync;

/// Rouses a thread that may be asleep.
pub(crate) trait Wake: Send + Sync {
    /// Whether it slept. The caller has put a full fence between what it pushed and this call.
    fn wake(&self) -> bool;
}

/// Somebody who has something to do before its thread blocks.
pub(crate) trait BeforeWait {
    fn before_wait(&mut self);
}
