//! Every knob: its default, and what cannot work. What each means is said at its setter, in `server::settings` and
//! `pool::builder`.

use crate::error::BindError;
use crate::net::{Framing, SocketOptions};
use crate::resources;
use crate::server::Limits;
use crate::stack::DEFAULT_STACK;
use crate::task::PoolConfig;

#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) tasks: TaskConfig,
    pub(crate) connections: ConnectionConfig,
    /// Of the listeners that do not say otherwise.
    pub(crate) listeners: ListenerConfig,
}

/// Of the back room, with or without a socket.
#[derive(Clone, Debug)]
pub(crate) struct TaskConfig {
    pub(crate) task_worker_num: usize,
    pub(crate) task_worker_stack_size: usize,
    /// `None`: no limit.
    pub(crate) task_max_request: Option<u64>,
    /// `None`: half of `task_max_request`.
    pub(crate) task_max_request_grace: Option<u64>,
    pub(crate) queue_capacity: usize,
    pub(crate) max_tasks_in_flight: usize,
    pub(crate) max_results: usize,
    pub(crate) task_times: bool,
}

/// Of the front of house.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionConfig {
    pub(crate) when_queue_full: WhenQueueFull,
    pub(crate) results_in_order: bool,
    pub(crate) cancel_on_close: bool,
    /// `None`: what the process's own limits allow.
    pub(crate) max_connections: Option<usize>,
    /// `None`: a default, or a quarter of the memory that the process may have.
    pub(crate) max_buffered: Option<usize>,
    pub(crate) worker_stack_size: usize,
}

/// Of one listener and its connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListenerConfig {
    pub(crate) framing: Framing,
    pub(crate) limits: Limits,
    pub(crate) socket_options: SocketOptions,
}

impl Default for TaskConfig {
    fn default() -> TaskConfig {
        TaskConfig {
            task_worker_num: 4,
            task_worker_stack_size: DEFAULT_STACK,
            task_max_request: None,
            task_max_request_grace: None,
            queue_capacity: 10_000,
            max_tasks_in_flight: 64,
            max_results: 64,
            task_times: false,
        }
    }
}

impl Default for ConnectionConfig {
    fn default() -> ConnectionConfig {
        ConnectionConfig {
            when_queue_full: WhenQueueFull::Defer,
            results_in_order: false,
            cancel_on_close: false,
            max_connections: None,
            max_buffered: None,
            worker_stack_size: WORKER_STACK,
        }
    }
}

const MAX_BUFFERED: usize = 512 * 1024 * 1024;
/// Without optimizations code takes several times as much of it.
const WORKER_STACK: usize = if cfg!(debug_assertions) { 1024 * 1024 } else { 256 * 1024 };

/// What `task` does while as many tasks wait as `queue_capacity` allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenQueueFull {
    /// The task is accepted, and its connection receives no further frame until the queue has drained to half and it is
    /// its turn: whoever floods is slowed down by TCP. A connection that submits nothing receives all the same. The
    /// default. Callbacks that submit many, and connections that submit and go, are refused in the end: see
    /// [`queue_capacity`](crate::ServerBuilder::queue_capacity).
    #[default]
    Defer,
    /// `task` returns [`TaskError::QueueFull`](crate::TaskError::QueueFull), and reading goes on.
    Refuse,
}

/// The least stack on which a TLS handshake with keys of 4,096 bits can be done and a panic reported, without
/// optimizations too: that takes 72 KiB. An overflow would end the process.
const MIN_STACK: usize = 128 * 1024;
/// More task workers than this is a slip of the pen.
const MAX_TASK_WORKERS: usize = 10_000;

/// A value that cannot work, named by its setter.
pub(crate) struct Unworkable {
    pub(crate) field: &'static str,
    pub(crate) problem: String,
}

impl Unworkable {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> Unworkable {
        Unworkable { field, problem: problem.into() }
    }
}

impl From<Unworkable> for BindError {
    fn from(Unworkable { field, problem }: Unworkable) -> BindError {
        BindError::Config { field, problem }
    }
}

pub(crate) fn at_least(field: &'static str, value: usize, least: usize) -> Result<(), Unworkable> {
    match value >= least {
        true => Ok(()),
        false => Err(Unworkable::new(field, format!("{value} is less than {least}"))),
    }
}

impl TaskConfig {
    pub(crate) fn check(&self) -> Result<(), Unworkable> {
        at_least("task_worker_num", self.task_worker_num, 1)?;
        at_least("task_worker_stack_size", self.task_worker_stack_size, MIN_STACK)?;
        at_least("queue_capacity", self.queue_capacity, 1)?;
        at_least("max_tasks_in_flight", self.max_tasks_in_flight, 1)?;
        if self.task_worker_num > MAX_TASK_WORKERS {
            let problem = format!("{} is more than {MAX_TASK_WORKERS}", self.task_worker_num);
            return Err(Unworkable::new("task_worker_num", problem));
        }
        if self.task_max_request == Some(0) {
            return Err(Unworkable::new("task_max_request", "it is zero"));
        }
        Ok(())
    }

    /// What the pool is started with, for at most so many submitters at once.
    pub(crate) fn pool(&self, submitters: usize) -> PoolConfig {
        let grace = |tasks: u64| self.task_max_request_grace.unwrap_or(tasks / 2);
        PoolConfig {
            task_worker_num: self.task_worker_num,
            queue_capacity: self.queue_capacity,
            submitters,
            stack_size: self.task_worker_stack_size,
            max_tasks: self.task_max_request.map(|tasks| (tasks, grace(tasks))),
            times: self.task_times,
        }
    }
}

impl ConnectionConfig {
    fn check(&self) -> Result<(), Unworkable> {
        at_least("max_connections", self.max_connections.unwrap_or(1), 1)?;
        at_least("max_buffered", self.max_buffered.unwrap_or(1), 1)?;
        at_least("worker_stack_size", self.worker_stack_size, MIN_STACK)?;
        Ok(())
    }
}

impl ConnectionConfig {
    pub(crate) fn max_buffered(&self) -> usize {
        let by_memory = || resources::memory().map_or(usize::MAX, |memory| memory / 4);
        self.max_buffered.unwrap_or_else(|| MAX_BUFFERED.min(by_memory()).max(1))
    }
}

impl ListenerConfig {
    pub(crate) fn check(&self) -> Result<(), Unworkable> {
        self.limits.check()?;
        if let Some(problem) = self.framing.problem(self.limits.max_frame) {
            return Err(Unworkable::new("framing", problem));
        }
        match self.socket_options.problem() {
            Some(problem) => Err(Unworkable::new("socket_options", problem)),
            None => Ok(()),
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), Unworkable> {
        self.tasks.check()?;
        self.connections.check()
    }

    /// `stack_size`: of the thread of each connection, in bytes.
    pub(crate) fn max_connections(&self, stack_size: usize) -> usize {
        self.connections.max_connections.unwrap_or_else(|| resources::connections(stack_size))
    }
}
