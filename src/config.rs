//! Every knob: what it means, its unit, its default, and what cannot work.

use std::time::Duration;

use crate::error::BindError;
use crate::net::Framing;
use crate::server::ServerBuilder;

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) task_worker_num: usize,
    pub(crate) task_worker_stack_size: usize,
    pub(crate) queue_capacity: usize,
    pub(crate) when_queue_full: WhenQueueFull,
    pub(crate) max_tasks_in_flight: usize,
    /// `None`: what the process's own limits allow.
    pub(crate) max_connections: Option<usize>,
    pub(crate) worker_stack_size: usize,
    pub(crate) backlog: u32,
    pub(crate) framing: Framing,
    pub(crate) max_frame: usize,
    pub(crate) max_outbox: usize,
    pub(crate) write_timeout: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            task_worker_num: 4,
            task_worker_stack_size: 2 * 1024 * 1024,
            queue_capacity: 10_000,
            when_queue_full: WhenQueueFull::Defer,
            max_tasks_in_flight: 64,
            max_connections: None,
            worker_stack_size: 256 * 1024,
            backlog: 1024,
            framing: Framing::raw(),
            max_frame: 256 * 1024,
            max_outbox: 1024 * 1024,
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// What `task` does while as many tasks wait as `queue_capacity` allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenQueueFull {
    /// The task is accepted, and its connection's socket is not read again until the queue has drained to
    /// half: whoever floods is slowed down by TCP, and nothing is refused. A connection that submits nothing is
    /// read all the same. The default.
    #[default]
    Defer,
    /// `task` returns [`TaskError::QueueFull`](crate::TaskError::QueueFull), and reading goes on.
    Refuse,
}

/// The settings. Each replaces an earlier call of the same setter; `bind` checks them all.
impl<T, R, S, W, Stage> ServerBuilder<T, R, S, W, Stage> {
    /// How many threads run `on_task`. At least 1; default 4. Swoole's `task_worker_num`, where 0 is allowed
    /// and the default.
    pub fn task_worker_num(mut self, threads: usize) -> Self {
        self.config.task_worker_num = threads;
        self
    }

    /// The stack of a task worker's thread, in bytes. At least 16 KiB; default 2 MiB, of which only what is
    /// touched is resident.
    pub fn task_worker_stack_size(mut self, bytes: usize) -> Self {
        self.config.task_worker_stack_size = bytes;
        self
    }

    /// How many tasks may wait for a task worker, those of all connections together, before
    /// [`when_queue_full`](Self::when_queue_full) decides. At least 1; default 10,000.
    ///
    /// A bound on reading and not a hard one: what a callback submits beyond it is accepted.
    pub fn queue_capacity(mut self, tasks: usize) -> Self {
        self.config.queue_capacity = tasks;
        self
    }

    /// What `task` does at `queue_capacity`. Default [`WhenQueueFull::Defer`].
    pub fn when_queue_full(mut self, what: WhenQueueFull) -> Self {
        self.config.when_queue_full = what;
        self
    }

    /// How many tasks of one connection may be in flight before its socket is no longer read. At least 1;
    /// default 64. At four times as many, which takes a callback that submits without end, `task` refuses.
    pub fn max_tasks_in_flight(mut self, tasks: usize) -> Self {
        self.config.max_tasks_in_flight = tasks;
        self
    }

    /// How many connections may be open at once; beyond it clients wait in the backlog of the kernel. At
    /// least 1; default: what the process's own limits allow, min((file limit − 64) / 2, memory maps / 8,
    /// 10,000), which `bind` logs. Swoole's `max_connection`, which refuses instead.
    ///
    /// Each connection takes one thread and two file descriptors.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.config.max_connections = Some(connections);
        self
    }

    /// The stack of a connection's worker thread, in bytes. At least 16 KiB; default 256 KiB, of which only
    /// what is touched is resident. Every callback but `on_task` runs on it.
    pub fn worker_stack_size(mut self, bytes: usize) -> Self {
        self.config.worker_stack_size = bytes;
        self
    }

    /// How many clients may wait in the kernel to be accepted. At least 1; default 1,024, cut by the kernel
    /// to its `somaxconn`. Swoole's `backlog`, there 512.
    pub fn backlog(mut self, clients: u32) -> Self {
        self.config.backlog = clients;
        self
    }

    /// How the bytes of a connection are cut into the `data` of `on_receive`. Default [`Framing::raw`].
    pub fn framing(mut self, framing: Framing) -> Self {
        self.config.framing = framing;
        self
    }

    /// The longest frame, in bytes without its delimiter; a longer one closes its connection with
    /// [`CloseReason::FrameTooLong`](crate::CloseReason::FrameTooLong). At least 1; default 256 KiB. Swoole's
    /// `package_max_length`, there 2 MiB.
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.config.max_frame = bytes;
        self
    }

    /// How many bytes may wait for one client to take them, sent from its own callbacks and again as many
    /// sent from elsewhere; beyond it `send` refuses. At least 1; default 1 MiB. Swoole's
    /// `socket_buffer_size`.
    ///
    /// A connection whose outbox is half full is not read.
    pub fn max_outbox(mut self, bytes: usize) -> Self {
        self.config.max_outbox = bytes;
        self
    }

    /// How long a client may take nothing of what waits for it before it is closed, with
    /// [`CloseReason::WriteTimeout`](crate::CloseReason::WriteTimeout). Above zero; default 30 s.
    pub fn write_timeout(mut self, time: Duration) -> Self {
        self.config.write_timeout = time;
        self
    }
}

/// The least stack that a thread starts with reliably.
const MIN_STACK: usize = 16 * 1024;
/// More task workers than this is a slip of the pen.
const MAX_TASK_WORKERS: usize = 10_000;

impl Config {
    /// What cannot work, named by its setter.
    pub(crate) fn check(&self) -> Result<(), BindError> {
        let at_least = |field, value: usize, least: usize| match value >= least {
            true => Ok(()),
            false => Err(BindError::Config { field, problem: format!("{value} is less than {least}") }),
        };
        at_least("task_worker_num", self.task_worker_num, 1)?;
        at_least("task_worker_stack_size", self.task_worker_stack_size, MIN_STACK)?;
        at_least("queue_capacity", self.queue_capacity, 1)?;
        at_least("max_tasks_in_flight", self.max_tasks_in_flight, 1)?;
        at_least("max_connections", self.max_connections.unwrap_or(1), 1)?;
        at_least("worker_stack_size", self.worker_stack_size, MIN_STACK)?;
        at_least("backlog", self.backlog as usize, 1)?;
        at_least("max_frame", self.max_frame, 1)?;
        at_least("max_outbox", self.max_outbox, 1)?;
        if self.task_worker_num > MAX_TASK_WORKERS {
            let problem = format!("{} is more than {MAX_TASK_WORKERS}", self.task_worker_num);
            return Err(BindError::Config { field: "task_worker_num", problem });
        }
        if self.write_timeout.is_zero() {
            return Err(BindError::Config { field: "write_timeout", problem: "it is zero".to_owned() });
        }
        if let Some(problem) = self.framing.problem() {
            return Err(BindError::Config { field: "framing", problem: problem.to_owned() });
        }
        Ok(())
    }

    pub(crate) fn max_connections(&self) -> usize {
        self.max_connections.unwrap_or_else(connections_this_process_allows)
    }
}

/// A connection takes two file descriptors and a thread of some four memory maps. Near the limit of maps a
/// starting thread can abort the whole process instead of failing, so half of them are left alone.
fn connections_this_process_allows() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let by_files =
        files.map_or(usize::MAX, |files| usize::try_from(files.saturating_sub(64) / 2).unwrap_or(usize::MAX));
    let by_maps = std::fs::read_to_string("/proc/sys/vm/max_map_count")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
        .map_or(usize::MAX, |maps| maps / 8);
    by_files.min(by_maps).clamp(1, 10_000)
}
