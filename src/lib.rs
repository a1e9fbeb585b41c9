//! An embeddable TCP server for programs that do not use async.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(not(unix))]
compile_error!("backroom runs on Unix; Linux is what it is tested on");

mod config;
mod error;
mod logging;
mod net;
mod panic;
mod server;
mod stats;
mod task;

pub use config::WhenQueueFull;
pub use error::{BindError, RunError, SendError, TaskError, TaskFailure, TryTaskError, WaitError};
pub use net::Framing;
pub use server::{
    CloseReason, Connection, ConnectionId, ConnectionInfo, Link, Server, ServerBuilder, ServerHandle, ShutdownReport,
    stage,
};
pub use stats::{Stats, TaskStats};
#[doc(hidden)]
pub use task::alone as back_room;
pub use task::{Finished, Outcome, TaskContext, TaskId, TaskInfo};
