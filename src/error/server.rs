//! Of the server and its connections.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why [`bind`](crate::ServerBuilder::bind) has no server to give.
#[derive(Debug)]
#[non_exhaustive]
pub enum BindError {
    /// A callback that a server cannot do without was not set: `on_receive` or `on_task`.
    Missing(&'static str),
    /// The value of the field cannot work.
    Config {
        /// The setter it was given to.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The address could not be resolved.
    Resolve {
        /// The address as it was given.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The address could not be listened on.
    Listen {
        /// The last of the addresses tried.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The wake-up descriptor of the acceptor could not be made.
    Waker(io::Error),
    /// The threads of the task workers could not be started.
    TaskWorkers(String),
    /// The `task_worker` closure of this task worker failed or panicked.
    TaskWorkerState {
        /// Which task worker.
        worker_index: usize,
        /// What its closure returned.
        error: anyhow::Error,
    },
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BindError::Missing(callback) => write!(f, "{callback} is not set"),
            BindError::Config { field, problem } => write!(f, "{field}: {problem}"),
            BindError::Resolve { address, .. } => write!(f, "cannot resolve {address}"),
            BindError::Listen { address, .. } => write!(f, "cannot listen on {address}"),
            BindError::Waker(_) => f.write_str("cannot make the acceptor's wake-up descriptor"),
            BindError::TaskWorkers(message) => write!(f, "cannot start the task workers: {message}"),
            BindError::TaskWorkerState { worker_index, .. } => {
                write!(f, "cannot make the state of task worker {worker_index}")
            }
        }
    }
}

impl Error for BindError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BindError::Resolve { source, .. } | BindError::Listen { source, .. } | BindError::Waker(source) => {
                Some(source)
            }
            BindError::TaskWorkerState { error, .. } => Some(&**error),
            _ => None,
        }
    }
}

/// Why [`run`](crate::Server::run) could not serve.
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError {
    /// `on_start` returned this error, or panicked.
    OnStart(anyhow::Error),
    /// The acceptor's thread could not be started.
    Acceptor(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RunError::OnStart(_) => "on_start failed",
            RunError::Acceptor(_) => "cannot start the acceptor",
        })
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            RunError::OnStart(error) => Some(&**error),
            RunError::Acceptor(error) => Some(error),
        }
    }
}

/// Why [`ServerHandle::wait`](crate::ServerHandle::wait) has no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum JoinError {
    /// Called in a callback of the same server, which would wait for itself.
    InCallback,
    /// The server was dropped before it ran, or could not start.
    NeverRan,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            JoinError::InCallback => "a callback cannot wait for its own server to end",
            JoinError::NeverRan => "the server never ran",
        })
    }
}

impl Error for JoinError {}

/// Why bytes were not taken for sending. None of them was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The connection is closed or closing, or was never there.
    Closed,
    /// So many bytes already wait that the client has not taken.
    OutboxFull,
    /// The message alone is longer than `max_outbox`, and never fits.
    TooLong,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Closed => "the connection is closed",
            SendError::OutboxFull => "the outbox of the connection is full",
            SendError::TooLong => "the message is longer than an outbox holds",
        })
    }
}

impl Error for SendError {}
