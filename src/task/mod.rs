//! The back room: takes tasks, runs them on a fixed crew of threads, and sends each outcome back to the
//! submitter. Knows nothing of sockets.

pub mod alone;
mod context;
mod idle;
mod outcome;
mod pool;
mod queue;
mod reply;
mod submitter;

pub use context::{TaskContext, TaskInfo};
pub use outcome::{Finished, Outcome, TaskId};

pub(crate) use pool::{PoolConfig, StartError, TaskPool};
pub(crate) use submitter::{Submitter, WhenFull};

/// Rouses a thread that may be asleep.
pub(crate) trait Wake: Send + Sync {
    /// The caller has put a full fence between what it pushed and this call.
    fn wake(&self);
}
