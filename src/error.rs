//! One small error per operation.

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

/// Why [`build`](crate::TaskPoolBuilder::build) has no pool to give.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// A callback that a pool cannot do without was not set: `on_task`.
    Missing(&'static str),
    /// The value of the field cannot work.
    Config {
        /// The setter it was given to.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
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

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::Missing(callback) => write!(f, "{callback} is not set"),
            BuildError::Config { field, problem } => write!(f, "{field}: {problem}"),
            BuildError::TaskWorkers(message) => write!(f, "cannot start the task workers: {message}"),
            BuildError::TaskWorkerState { worker_index, .. } => {
                write!(f, "cannot make the state of task worker {worker_index}")
            }
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            BuildError::TaskWorkerState { error, .. } => Some(&**error),
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

/// Why a task was not accepted.
///
/// The payload is lost with it; [`try_task`](crate::Link::try_task) is the call that hands it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskError {
    /// As many tasks wait as `queue_capacity` allows, or half as many while others wait for room; or, where a full queue
    /// defers, four times as many and one for each of `max_connections`.
    QueueFull,
    /// This connection, or submitter, has as many tasks in flight as it may have: `max_tasks_in_flight` for `try_task`, four times as
    /// many for the others.
    TooManyInFlight,
    /// The server, or the pool, is shutting down.
    ShuttingDown,
    /// There is no task worker of the index that the options ask for.
    NoSuchWorker,
    /// The thread of the timer could not be started, which delayed tasks need.
    NoTimer,
    /// A closure can be run once only, and the options ask for a retry.
    RunsOnce,
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskError::QueueFull => "the task queue is full",
            TaskError::TooManyInFlight => "too many tasks in flight of this submitter",
            TaskError::ShuttingDown => "no more tasks are taken, because of a shutdown",
            TaskError::NoSuchWorker => "there is no task worker of that index",
            TaskError::NoTimer => "the thread of the timer could not be started",
            TaskError::RunsOnce => "a closure cannot be tried again",
        })
    }
}

impl Error for TaskError {}

/// Why a task was not accepted, with its payload.
pub struct TryTaskError<T> {
    reason: TaskError,
    payload: T,
}

impl<T> TryTaskError<T> {
    pub(crate) fn new(reason: TaskError, payload: T) -> TryTaskError<T> {
        TryTaskError { reason, payload }
    }

    /// Why.
    pub fn reason(&self) -> TaskError {
        self.reason
    }

    /// The payload, to be used otherwise.
    pub fn into_payload(self) -> T {
        self.payload
    }
}

impl<T> fmt::Debug for TryTaskError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryTaskError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for TryTaskError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<T> Error for TryTaskError<T> {}

/// Why a task has no result, from [`Finished::into_result`](crate::Finished::into_result).
#[derive(Debug)]
#[non_exhaustive]
pub enum TaskFailure {
    /// `on_task` returned this error.
    Failed(anyhow::Error),
    /// `on_task` panicked, with this message.
    Panicked(String),
    /// The task's deadline came first.
    TimedOut,
    /// The task was cancelled.
    Cancelled,
    /// A shutdown's deadline came first.
    Abandoned,
}

impl fmt::Display for TaskFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TaskFailure::Failed(_) => f.write_str("the task failed"),
            TaskFailure::Panicked(message) => write!(f, "the task panicked: {message}"),
            TaskFailure::TimedOut => f.write_str("the task did not end by its deadline"),
            TaskFailure::Cancelled => f.write_str("the task was cancelled"),
            TaskFailure::Abandoned => f.write_str("the task was abandoned at the shutdown's deadline"),
        }
    }
}

impl Error for TaskFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            TaskFailure::Failed(error) => Some(&**error),
            _ => None,
        }
    }
}

/// Why a task that was waited for has no result.
#[derive(Debug)]
#[non_exhaustive]
pub enum WaitError {
    /// It was not accepted.
    NotAccepted(TaskError),
    /// It had not ended when the time was up. If it had not started it never will; if it was running, what it returns
    /// is counted as late.
    TimedOut,
    /// It returned this error.
    Failed(anyhow::Error),
    /// It panicked, with this message.
    Panicked(String),
    /// It was cancelled.
    Cancelled,
    /// A shutdown's deadline came first.
    Abandoned,
}

impl From<TaskFailure> for WaitError {
    fn from(failure: TaskFailure) -> WaitError {
        match failure {
            TaskFailure::Failed(error) => WaitError::Failed(error),
            TaskFailure::Panicked(message) => WaitError::Panicked(message),
            TaskFailure::TimedOut => WaitError::TimedOut,
            TaskFailure::Cancelled => WaitError::Cancelled,
            TaskFailure::Abandoned => WaitError::Abandoned,
        }
    }
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitError::NotAccepted(_) => f.write_str("the task was not accepted"),
            WaitError::TimedOut => f.write_str("the task did not end in time"),
            WaitError::Failed(_) => f.write_str("the task failed"),
            WaitError::Panicked(message) => write!(f, "the task panicked: {message}"),
            WaitError::Cancelled => f.write_str("the task was cancelled"),
            WaitError::Abandoned => f.write_str("the task was abandoned at the shutdown's deadline"),
        }
    }
}

impl Error for WaitError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            WaitError::NotAccepted(reason) => Some(reason),
            WaitError::Failed(error) => Some(&**error),
            _ => None,
        }
    }
}

/// Why a result that was to come before the last was not taken, with that result.
pub struct FinishError<R> {
    pub(crate) reason: NotFinished,
    pub(crate) result: R,
}

/// Why a result was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotFinished {
    /// `max_results` of this submitter's wait to be delivered. It may be tried again later, or left.
    TooMany,
    /// Nobody will hear of it: the task is one-way, or its submitter is gone.
    Unheard,
    /// The task's outcome was decided already, or its reply taken away.
    Decided,
}

impl<R> FinishError<R> {
    /// Why.
    pub fn reason(&self) -> NotFinished {
        self.reason
    }

    /// The result, to be used otherwise.
    pub fn into_result(self) -> R {
        self.result
    }
}

impl<R> fmt::Debug for FinishError<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinishError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<R> fmt::Display for FinishError<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl fmt::Display for NotFinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotFinished::TooMany => "too many results wait to be delivered",
            NotFinished::Unheard => "nobody will hear of the result",
            NotFinished::Decided => "the outcome of the task is decided already",
        })
    }
}

impl<R> Error for FinishError<R> {}

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
