//! The back room without a socket: for programs that have a loop of their own.

mod builder;
mod submitter;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use builder::Settings;
pub use builder::TaskPoolBuilder;
pub use submitter::Submitter;

use crate::aside::aside;
use crate::logging::LogLimit;
use crate::panic::catch;
use crate::stats::TaskStats;
use crate::task::{Pool, PortConfig, TaskCallbacks, Wake, WhenFull, new_number};
use crate::times::TaskTimes;

/// A fixed pool of task workers for any thread of a program to hand tasks to: the back room of a
/// [`Server`](crate::Server) without the server.
///
/// Two pools whose tasks wait for tasks of each other may wait until their timeouts: nobody sees such a circle. A process
/// that forks has none of the threads in its child: build the pool there.
///
/// Each thread takes a [`Submitter`] of its own, which has a reply channel: outcomes come back to that thread, and
/// their finish closures run there, when it calls [`run_finished`](Submitter::run_finished).
///
/// Dropped, it drains: no more tasks are taken, what is delayed is cancelled, the rest is finished; what is not by the
/// [`drain_timeout`](TaskPoolBuilder::drain_timeout) is abandoned. [`shutdown`](Self::shutdown) does the same and
/// reports. The submitters can still run the finish closures of what has come. In a task of this same pool either would
/// wait for itself until that time.
///
/// ```
/// use std::cell::Cell;
/// use std::rc::Rc;
/// use std::time::Duration;
///
/// use backroom::TaskPool;
///
/// # fn main() -> anyhow::Result<()> {
/// let pool = TaskPool::builder().task_worker_num(2).on_task(|_cx, number: u64| Ok(number * number)).build()?;
/// let mut submitter = pool.submitter();
///
/// // The finish closures run on this thread, so they may share what is not `Send`.
/// let sum = Rc::new(Cell::new(0));
/// for number in 1..=10 {
///     let sum = Rc::clone(&sum);
///     submitter.task_then(number, move |_submitter, done| Ok(sum.set(sum.get() + done.into_result()?)))?;
/// }
/// while submitter.tasks_in_flight() > 0 {
///     submitter.run_finished_for(Duration::from_secs(1));
/// }
/// assert_eq!(sum.get(), 385);
///
/// assert_eq!(submitter.task_wait(11, Duration::from_secs(5))?, 121);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct TaskPool<T: Send + 'static, R: Send + 'static> {
    pool: Arc<Pool<T, R>>,
    shared: Arc<Shared<T, R>>,
    port_config: PortConfig,
    drain_timeout: Duration,
    is_shut_down: bool,
}

/// After the deadline, how long task workers that are idle may take to end.
const GRACE: Duration = Duration::from_millis(250);

/// What all submitters share.
struct Shared<T: Send + 'static, R: Send + 'static> {
    callbacks: TaskCallbacks<R, Submitter<T, R>>,
    log: LogLimit,
}

/// How a pool ended, from [`TaskPool::shutdown`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolReport {
    /// The books of the tasks. Nothing was lost if `tasks.abandoned` is 0.
    pub tasks: TaskStats,
    /// Task workers whose thread has not ended: it runs an abandoned task, or makes or gives up its state. Rust cannot
    /// kill a thread.
    pub task_workers_running: usize,
    /// What belongs to tasks that were cancelled or given up (an observer, a logger, the drop of a payload) and still
    /// runs: `cancelling`, `giving up`.
    pub hooks_running: Vec<&'static str>,
}

/// A submitter sleeps on its reply channel, which wakes it by itself.
struct OnTheChannel;

impl Wake for OnTheChannel {
    fn wake(&self) -> bool {
        false
    }
}

impl<T: Send + 'static, R: Send + 'static> TaskPool<T, R> {
    /// A pool to be put together.
    pub fn builder() -> TaskPoolBuilder<T, R> {
        TaskPoolBuilder::new()
    }

    fn new(pool: Pool<T, R>, callbacks: TaskCallbacks<R, Submitter<T, R>>, settings: &Settings) -> Self {
        let Settings { tasks, results_in_order, drain_timeout } = settings;
        let port_config = PortConfig {
            max_in_flight: tasks.max_tasks_in_flight,
            when_full: WhenFull::Refuse,
            in_order: *results_in_order,
            cancel_at_end: false,
            max_results: tasks.max_results,
            hears_progress: callbacks.on_progress.is_some(),
            until_drained: true,
        };
        let shared = Arc::new(Shared { callbacks, log: LogLimit::default() });
        TaskPool { pool: Arc::new(pool), shared, port_config, drain_timeout: *drain_timeout, is_shut_down: false }
    }

    /// A way into the pool for one thread, with a reply channel of its own. It stays on the thread that calls this,
    /// and may outlive the pool.
    pub fn submitter(&self) -> Submitter<T, R> {
        Submitter::new(
            self.pool.port(new_number(), Arc::new(OnTheChannel), None, self.port_config),
            Arc::clone(&self.shared),
        )
    }

    /// What the pool has done and is doing. Takes time in proportion to the task workers and submitters.
    pub fn stats(&self) -> TaskStats {
        self.pool.stats()
    }

    /// How long tasks waited and ran, if [`task_times`](TaskPoolBuilder::task_times) is set.
    pub fn task_times(&self) -> Option<TaskTimes> {
        self.pool.times()
    }

    /// Has all task workers renew their state, one at a time. Never blocks. As
    /// [`ServerHandle::recycle`](crate::ServerHandle::recycle).
    pub fn recycle(&self) {
        self.pool.recycle();
    }

    /// Takes no more tasks, cancels what is delayed, finishes the rest, and ends the task workers. Blocks until then,
    /// or until some 250 ms after `deadline` from now, at which what is unfinished is abandoned.
    pub fn shutdown(mut self, deadline: Duration) -> PoolReport {
        self.end_within(deadline)
    }

    fn end_within(&mut self, time: Duration) -> PoolReport {
        self.is_shut_down = true;
        let deadline = Instant::now().checked_add(time);
        // Aside, since what is cancelled and given up is users', and may not return.
        let cancelled = self.aside(Pool::drain);
        let is_cancelled = ended_by(&cancelled, deadline);
        self.pool.end();
        self.pool.at_rest_by(deadline);
        // In time, this gives up what no one can have submitted any more: nothing.
        let given_up = self.aside(Pool::abandon);
        let is_given_up = ended_by(&given_up, Instant::now().checked_add(GRACE));
        self.pool.at_rest_by(Instant::now().checked_add(GRACE));
        let steps = [("cancelling", is_cancelled, cancelled), ("giving up", is_given_up, given_up)];
        let hangs = |(name, has_ended, ended): (_, bool, Receiver<_>)| (!has_ended && ended.is_empty()).then_some(name);
        PoolReport {
            tasks: self.pool.stats(),
            task_workers_running: self.pool.loops(),
            hooks_running: steps.into_iter().filter_map(hangs).collect(),
        }
    }

    fn aside(&self, step: fn(&Pool<T, R>)) -> Receiver<Result<(), String>> {
        let pool = Arc::clone(&self.pool);
        aside(self.pool.own_threads(), move || step(&pool), || ())
    }
}

/// Waits until then for that.
fn ended_by<X>(ended: &Receiver<X>, deadline: Option<Instant>) -> bool {
    match deadline {
        Some(deadline) => ended.recv_deadline(deadline).is_ok(),
        None => ended.recv().is_ok(),
    }
}

impl<T: Send + 'static, R: Send + 'static> Drop for TaskPool<T, R> {
    fn drop(&mut self) {
        if !self.is_shut_down {
            // Fenced, since this may run while a panic unwinds.
            let _ = catch(|| self.end_within(self.drain_timeout));
        }
    }
}

impl<T: Send + 'static, R: Send + 'static> fmt::Debug for TaskPool<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskPool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
