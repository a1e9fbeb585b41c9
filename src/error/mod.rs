//! One small error per operation.

mod server;
mod task;

pub use server::{BindError, JoinError, RunError, SendError, SendFileError, VisitError};
pub use task::{BuildError, FinishError, NotFinished, TaskError, TaskFailure, TryTaskError, WaitError};
