//! Of the server and its connections.

use std::error::Error;
use std::fmt;
use std::io;

use crate::net::Address;

/// Why [`bind`](crate::ServerBuilder::bind) has no server to give.
#[derive(Debug)]
#[non_exhaustive]
pub enum BindError {
    /// A callback that a server cannot do without was not set: `on_receive`, `on_packet` or `on_task`.
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
    /// No listener and no packet socket was given.
    NoListener,
    /// The address could not be listened on.
    Listen {
        /// The last of the addresses tried.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// A socket that was handed in could not be listened on.
    OpenSocket(io::Error),
    /// The wake-up descriptor of a listener's thread could not be made.
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
            BindError::NoListener => f.write_str("no listener was given"),
            BindError::OpenSocket(_) => f.write_str("cannot listen on a socket that was handed in"),
            BindError::Waker(_) => f.write_str("cannot make the wake-up descriptor of a listener"),
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
            BindError::Resolve { source, .. }
            | BindError::Listen { source, .. }
            | BindError::OpenSocket(source)
            | BindError::Waker(source) => Some(source),
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
    /// The thread of a listener or of a packet socket could not be started.
    Acceptor(io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RunError::OnStart(_) => "on_start failed",
            RunError::Acceptor(_) => "cannot start the thread of a listener",
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

/// Why a file was not taken for sending.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendFileError {
    /// The connection is closed or closing, or was never there.
    Closed,
    /// So many files already wait, for this client or for all together, that no further one is kept open.
    TooManyFiles,
    /// It is a directory, a pipe or the like.
    NoFile,
    /// It is shorter than that.
    OutOfRange,
    /// It holds something else than its length says, as the files of /proc and /sys do: read it, and send what it holds.
    NoLength,
    /// The system would not say how long it is.
    Io(io::Error),
}

impl fmt::Display for SendFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendFileError::Closed => "the connection is closed",
            SendFileError::TooManyFiles => "too many files wait to be sent",
            SendFileError::NoFile => "it is no regular file",
            SendFileError::OutOfRange => "the file is shorter than that",
            SendFileError::NoLength => "the file does not say how much it holds",
            SendFileError::Io(_) => "the length of the file cannot be read",
        })
    }
}

impl Error for SendFileError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            SendFileError::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a closure will not run on a connection's worker; it is handed back.
pub struct VisitError<F> {
    closure: F,
    is_full: bool,
}

impl<F> VisitError<F> {
    pub(crate) fn closed(closure: F) -> VisitError<F> {
        VisitError { closure, is_full: false }
    }

    pub(crate) fn full(closure: F) -> VisitError<F> {
        VisitError { closure, is_full: true }
    }

    /// Too many closures already wait for that worker. Otherwise the connection is closed or closing, or was never
    /// there.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// The closure.
    pub fn into_closure(self) -> F {
        self.closure
    }
}

impl<F> fmt::Display for VisitError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.is_full {
            true => "too many closures wait for that connection's worker",
            false => "the connection is closed",
        })
    }
}

impl<F> fmt::Debug for VisitError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VisitError").field("is_full", &self.is_full).finish_non_exhaustive()
    }
}

impl<F> Error for VisitError<F> {}
