//! Of tasks and the pool that runs them.

use std::error::Error;
use std::fmt;

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

/// Why a task was not accepted.
///
/// The payload is lost with it; [`try_task`](crate::Link::try_task), `task_within` and the calls of a task hand it
/// back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TaskError {
    /// As many tasks wait as `queue_capacity` allows, or more than half as many while others wait for room; or, where a
    /// full queue defers, four times as many and one for each of `max_connections`.
    QueueFull,
    /// This connection, or submitter, has as many tasks in flight as it may have: `max_tasks_in_flight` for `try_task`
    /// and `task_within`, four times as many for the others; or four times as many repetitions.
    TooManyInFlight,
    /// As many tasks are delayed, or wait for their next attempt, as may be: four times `queue_capacity`, and one for
    /// each of `max_connections`, or 64 in a pool without a server.
    TooManyDelayed,
    /// The server, or the pool, is shutting down.
    ShuttingDown,
    /// There is no task worker of the index that the options ask for.
    NoSuchWorker,
    /// The thread of the timer could not be started, which delayed and repeated tasks need.
    NoTimer,
    /// A closure can be run once only, and the options ask for a retry.
    RunsOnce,
    /// A task was to wait for another of the pool whose task worker it runs on. If all task workers waited, none would
    /// be left to run what they wait for.
    InTask,
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskError::QueueFull => "the task queue is full",
            TaskError::TooManyInFlight => "too many tasks in flight of this submitter",
            TaskError::TooManyDelayed => "too many tasks are delayed",
            TaskError::InTask => "a task cannot wait for the task workers it runs on",
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

impl Error for NotFinished {}

impl<R> Error for FinishError<R> {}
