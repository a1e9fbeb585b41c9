//! One thread's way into a pool, and the outcomes' way back to it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use crate::error::{TaskError, TaskFailure, TryTaskError, WaitError};
use crate::logging::foreign;
use crate::task::{Finished, Port, Progress, Repetition, TaskId, TaskOptions, With, far};

/// One thread's way into a [`TaskPool`](super::TaskPool), and the outcomes' way back: their finish closures run on this
/// thread, when it calls [`run_finished`](Self::run_finished) or [`run_finished_for`](Self::run_finished_for).
///
/// Dropped, it hears of nothing more: outcomes still to come are orphaned. A panic in a finish closure goes on through
/// whoever called.
pub struct Submitter<T: Send + 'static, R: Send + 'static> {
    port: Port<T, R, Submitter<T, R>>,
    shared: Arc<Shared<T, R>>,
    /// Inside `run_finished`.
    is_running: bool,
}

/// What is submitted while so many finish closures run shares one stamp: reading the clock takes as long as much of the
/// rest.
const BATCH: usize = 16;

/// Inside `run_finished`, however that is left.
struct Running<'a, T: Send + 'static, R: Send + 'static>(&'a mut Submitter<T, R>);

impl<T: Send + 'static, R: Send + 'static> Drop for Running<'_, T, R> {
    fn drop(&mut self) {
        self.0.is_running = false;
    }
}

impl<T: Send + 'static, R: Send + 'static> Submitter<T, R> {
    pub(super) fn new(port: Port<T, R, Submitter<T, R>>, shared: Arc<Shared<T, R>>) -> Self {
        Submitter { port, shared, is_running: false }
    }

    /// The number in the ids of its tasks.
    pub fn number(&self) -> u64 {
        self.port.number()
    }

    /// How many tasks have no outcome delivered yet, of those whose outcome comes to this submitter.
    pub fn tasks_in_flight(&self) -> usize {
        self.port.in_flight()
    }

    /// Runs the finish closures, and `on_progress`, for what has come, and returns how many things came, those without
    /// a closure included. Does not block, and takes no more than there was to be heard of when it began. Called in a
    /// finish closure, it does nothing.
    pub fn run_finished(&mut self) -> usize {
        if std::mem::replace(&mut self.is_running, true) {
            return 0;
        }
        let running = Running(self);
        running.0.run_what_is_here()
    }

    fn run_what_is_here(&mut self) -> usize {
        self.port.time_out();
        let shared = Arc::clone(&self.shared);
        let (mut run, most) = (0, self.port.most_messages());
        while run < most && self.port.fetch() {
            if run % BATCH == 0 {
                self.port.look_whether_open();
            }
            let returned = Port::deliver(self, |submitter| &mut submitter.port, &shared.callbacks);
            run += usize::from(returned.is_some());
            if let Some(Err(error)) = returned {
                self.port.ledger().finish_errors.add(1);
                if let Some(held_back) = shared.log.permit() {
                    let error = foreign(format_args!("{error:#}"));
                    log::warn!("a finish closure failed: {error} ({held_back} more since the last line)");
                }
            }
        }
        run
    }

    /// Waits until something comes, but no longer than `timeout`, and does what [`run_finished`](Self::run_finished)
    /// does. 0 only after `timeout`, or where it does not wait: in a finish closure, and in a task of the same pool.
    /// With nothing in flight it waits as well, for a [repetition](Self::task_every), say, until the pool ends.
    pub fn run_finished_for(&mut self, timeout: Duration) -> usize {
        let run = self.run_finished();
        if run > 0 || timeout.is_zero() || self.is_running || !self.port.may_wait() {
            return run;
        }
        let mut now = Instant::now();
        let end = far(now, timeout);
        loop {
            self.port.wait_for_message(now, end);
            let run = self.run_finished();
            if run > 0 {
                return run;
            }
            // What comes may be held back, until its turn in the order of results has come.
            now = Instant::now();
            if now >= end || self.port.is_over() {
                return 0;
            }
        }
    }
}

/// Tasks. Their outcomes come to this submitter.
impl<T: Send + 'static, R: Send + 'static> Submitter<T, R> {
    /// The ways of submitting a task that is not like all others: with a priority, a deadline, a delay, …
    pub fn with(&mut self, options: TaskOptions<T>) -> With<'_, T, R, Self> {
        self.look();
        With::new(&mut self.port, Some(options), None)
    }

    fn look(&mut self) {
        if !self.is_running {
            self.port.look_whether_open();
        }
    }

    fn plain(&mut self) -> With<'_, T, R, Self> {
        self.look();
        With::new(&mut self.port, None, None)
    }

    /// Hands a task to the task workers and returns its id at once. Its outcome comes to `on_finish`. Never blocks:
    /// refused at `queue_capacity`, above half of it while a `task_within` waits, at four times `max_tasks_in_flight`,
    /// and once the pool shuts down.
    pub fn task(&mut self, data: T) -> Result<TaskId, TaskError> {
        self.plain().task(data)
    }

    /// A [`task`](Self::task) with a finish closure of its own, which is given the outcome.
    pub fn task_then<F>(&mut self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnOnce(&mut Submitter<T, R>, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        self.plain().task_then(data, finish)
    }

    /// A [`task`](Self::task) with a finish closure for each result, the outcome last. See
    /// [`Connection::task_each`](crate::Connection::task_each).
    pub fn task_each<F>(&mut self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnMut(&mut Submitter<T, R>, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        self.plain().task_each(data, finish)
    }

    /// A [`task`](Self::task) of whose outcome nobody hears; it is still counted. It cannot be cancelled.
    pub fn task_oneway(&mut self, data: T) -> Result<TaskId, TaskError> {
        self.plain().task_oneway(data)
    }

    /// A [`task`](Self::task) that is refused at `max_tasks_in_flight` already, and whose error hands the payload back.
    pub fn try_task(&mut self, data: T) -> Result<TaskId, TryTaskError<T>> {
        self.plain().try_task(data)
    }

    /// A [`try_task`](Self::try_task) that, where the queue is full, waits up to `timeout` for its turn, which comes
    /// once the queue is at most half full, or is kept from that by others; then [`QueueFull`](TaskError::QueueFull). At `max_tasks_in_flight`, at a shutdown, and in a task of the
    /// same pool it is refused at once. No finish closure runs meanwhile.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use backroom::TaskPool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = TaskPool::builder()
    ///     .queue_capacity(2)
    ///     .on_task(|_cx, number: u64| Ok(std::thread::sleep(Duration::from_millis(number))))
    ///     .build()?;
    /// let mut submitter = pool.submitter();
    ///
    /// // As fast as the task workers go, and never more than two that wait.
    /// for number in 0..20 {
    ///     submitter.task_within(number, Duration::from_secs(10))?;
    ///     submitter.run_finished();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn task_within(&mut self, data: T, timeout: Duration) -> Result<TaskId, TryTaskError<T>> {
        self.plain().task_within(data, timeout)
    }

    /// Runs a closure on a task worker, and `finish` with what it returned on this thread. See
    /// [`Connection::run`](crate::Connection::run).
    pub fn run<X, W, F>(&mut self, work: W, finish: F) -> Result<TaskId, TaskError>
    where
        X: Send + 'static,
        W: FnOnce() -> X + Send + 'static,
        F: FnOnce(&mut Submitter<T, R>, Result<X, TaskFailure>) -> anyhow::Result<()> + 'static,
    {
        self.plain().run(work, finish)
    }

    /// Submits a task and blocks until it has ended, or until `timeout`: then, if it has not started it never will, and
    /// if it is running, [`cancelled`](crate::TaskInfo::cancelled) says so to it. What comes for others meanwhile is
    /// put aside; what comes after the time is discarded and counted as late. Swoole's `taskwait`, there with half a
    /// second.
    pub fn task_wait(&mut self, data: T, timeout: Duration) -> Result<R, WaitError> {
        self.plain().task_wait(data, timeout)
    }

    /// Submits tasks and blocks until all have ended, or for `timeout` in all. The results are in the order of the
    /// tasks, one for each. Nothing else of this submitter happens meanwhile. Swoole's `taskWaitMulti`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use backroom::{TaskPool, WaitError};
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = TaskPool::builder().on_task(|_cx, text: &str| Ok(text.parse::<u32>()?)).build()?;
    /// let mut submitter = pool.submitter();
    ///
    /// let numbers = submitter.task_wait_multi(vec!["7", "seven", "77"], Duration::from_secs(10));
    /// assert!(matches!(numbers[..], [Ok(7), Err(WaitError::Failed(_)), Ok(77)]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn task_wait_multi(&mut self, data: Vec<T>, timeout: Duration) -> Vec<Result<R, WaitError>> {
        self.plain().task_wait_multi(data, timeout)
    }

    /// Submits a task once every `period` until the [`Repetition`] is stopped or this is dropped. See
    /// [`Connection::task_every`](crate::Connection::task_every).
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// use backroom::TaskPool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let sum = Arc::new(AtomicU32::new(0));
    /// let total = Arc::clone(&sum);
    /// let pool = TaskPool::builder()
    ///     .on_task(|_cx, tick: u32| Ok(tick))
    ///     .on_finish(move |_submitter, done| {
    ///         total.fetch_add(done.into_result()?, Ordering::Relaxed);
    ///         Ok(())
    ///     })
    ///     .build()?;
    /// let mut submitter = pool.submitter();
    ///
    /// let mut ticks = 0..;
    /// let repetition = submitter.task_every(Duration::from_millis(5), move || ticks.next().unwrap_or(0))?;
    /// while sum.load(Ordering::Relaxed) < 10 {
    ///     submitter.run_finished_for(Duration::from_secs(1));
    /// }
    /// repetition.stop();
    /// # Ok(())
    /// # }
    /// ```
    pub fn task_every<F>(&mut self, period: Duration, make: F) -> Result<Repetition, TaskError>
    where
        F: FnMut() -> T + Send + 'static,
    {
        self.plain().task_every(period, make)
    }

    /// Cancels a task of this submitter. See [`Connection::cancel`](crate::Connection::cancel).
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use backroom::{OutcomeKind, TaskPool};
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = TaskPool::builder()
    ///     .on_task(|cx, ()| {
    ///         while !cx.cancelled() {
    ///             std::thread::sleep(Duration::from_millis(1)); // a piece of the work
    ///         }
    ///         Ok(())
    ///     })
    ///     .build()?;
    /// let mut submitter = pool.submitter();
    ///
    /// let id = submitter.task_then((), |_submitter, done| {
    ///     assert_eq!(done.outcome().kind(), OutcomeKind::Cancelled);
    ///     Ok(())
    /// })?;
    /// assert!(submitter.cancel(id));
    /// assert_eq!(submitter.run_finished(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(&mut self, task: TaskId) -> bool {
        self.port.cancel(task)
    }

    /// How far a task has come, if it has started, has no outcome yet, and has [said so](crate::TaskInfo::progress). To
    /// be told of it, see [`on_progress`](crate::TaskPoolBuilder::on_progress).
    pub fn progress(&self, task: TaskId) -> Option<Progress> {
        self.port.progress(task)
    }
}

/// Waiting for room, which only a thread without clients may.
impl<T: Send + 'static, R: Send + 'static> With<'_, T, R, Submitter<T, R>> {
    /// A [`try_task`](Self::try_task) that waits up to `timeout` for room in the queue. See
    /// [`Submitter::task_within`].
    pub fn task_within(self, data: T, timeout: Duration) -> Result<TaskId, TryTaskError<T>> {
        self.wait_for_room(data, timeout)
    }
}

impl<T: Send + 'static, R: Send + 'static> fmt::Debug for Submitter<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitter")
            .field("number", &self.number())
            .field("tasks_in_flight", &self.tasks_in_flight())
            .finish_non_exhaustive()
    }
}
