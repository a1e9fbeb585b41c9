//! Every knob: its default, and what cannot work. What each means is said at its setter in `server::settings`.

use std::time::Duration;

use crate::error::BindError;
use crate::net::Framing;

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
    /// half: whoever floods is slowed down by TCP. A connection that submits nothing is read all the same. The
    /// default. Only connections that submit and go, again and again, are refused in the end: see
    /// [`queue_capacity`](crate::ServerBuilder::queue_capacity).
    #[default]
    Defer,
    /// `task` returns [`TaskError::QueueFull`](crate::TaskError::QueueFull), and reading goes on.
    Refuse,
}

/// The least stack on which a panic can be reported; an overflow would end the process.
const MIN_STACK: usize = 64 * 1024;
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
