//! How a pool without a socket is put together.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::{OnTheChannel, Submitter, TaskPool};
use crate::config::{TaskConfig, Unworkable};
use crate::error::BuildError;
use crate::observer::{MaybeObserver, Observer};
use crate::own_threads::OwnThreads;
use crate::server::stage;
use crate::stats::Books;
use crate::task::{
    Finished, Hooks, OnTask, Pool, Progress, StartError, StateHooks, TaskCallbacks, TaskContext, TaskId,
};

/// More submitters at once than this get less exact a bound on the queue.
const SUBMITTERS: usize = 64;

/// Puts a pool together; from [`TaskPool::builder`].
///
/// `T` is what a task is given and `R` what it returns; `W` is the state of a task worker, which is set first, by
/// [`task_worker`](Self::task_worker), because `on_task` uses it. `on_task` is `Fn` and shared by all task workers.
#[must_use]
pub struct TaskPoolBuilder<T: Send + 'static, R: Send + 'static, W = (), Stage = stage::State> {
    settings: Settings,
    observer: Option<Arc<dyn Observer>>,
    task_worker: StateHooks<W>,
    on_task: Option<OnTask<T, R, W, ()>>,
    callbacks: TaskCallbacks<R, Submitter<T, R>>,
    stage: PhantomData<Stage>,
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) tasks: TaskConfig,
    pub(super) results_in_order: bool,
    pub(super) drain_timeout: Duration,
}

impl<T: Send + 'static, R: Send + 'static, W> TaskPoolBuilder<T, R, W> {
    fn with_state(settings: Settings, observer: Option<Arc<dyn Observer>>, task_worker: StateHooks<W>) -> Self {
        TaskPoolBuilder {
            settings,
            observer,
            task_worker,
            on_task: None,
            callbacks: TaskCallbacks::default(),
            stage: PhantomData,
        }
    }
}

impl<T: Send + 'static, R: Send + 'static> TaskPoolBuilder<T, R> {
    pub(super) fn new() -> Self {
        let tasks = TaskConfig { max_tasks_in_flight: 100_000, max_results: 1024, ..TaskConfig::default() };
        let settings = Settings { tasks, results_in_order: false, drain_timeout: Duration::from_secs(10) };
        TaskPoolBuilder::with_state(settings, None, StateHooks::new(|_| Ok(())))
    }

    /// Makes the state of a task worker, given its index, on the thread that will own it, so `W` need not be `Send`. As
    /// [`ServerBuilder::task_worker`](crate::ServerBuilder::task_worker).
    pub fn task_worker<W>(
        self,
        make: impl Fn(usize) -> anyhow::Result<W> + Send + Sync + 'static,
    ) -> TaskPoolBuilder<T, R, W> {
        TaskPoolBuilder::with_state(self.settings, self.observer, StateHooks::new(make))
    }
}

/// The callbacks.
impl<T: Send + 'static, R: Send + 'static, W, Stage> TaskPoolBuilder<T, R, W, Stage> {
    fn settled(self) -> TaskPoolBuilder<T, R, W, stage::Callbacks> {
        TaskPoolBuilder {
            settings: self.settings,
            observer: self.observer,
            task_worker: self.task_worker,
            on_task: self.on_task,
            callbacks: self.callbacks,
            stage: PhantomData,
        }
    }

    /// Runs for each task, on one of `task_worker_num` threads; required. What it returns, or that it panicked,
    /// becomes the task's [`Outcome`](crate::Outcome).
    pub fn on_task<F>(self, callback: F) -> TaskPoolBuilder<T, R, W, stage::Callbacks>
    where
        F: Fn(&mut TaskContext<T, R, W, ()>, T) -> anyhow::Result<R> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.on_task = Some(Box::new(callback));
        builder
    }

    /// Runs for the outcome, and for each result before it, of each task that was not given a finish closure of its
    /// own, when its submitter calls [`run_finished`](Submitter::run_finished). An error is logged and counted.
    pub fn on_finish<F>(self, callback: F) -> TaskPoolBuilder<T, R, W, stage::Callbacks>
    where
        F: Fn(&mut Submitter<T, R>, Finished<R>) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.on_finish = Some(Box::new(callback));
        builder
    }

    /// Runs when a task has said [how far it has come](crate::TaskInfo::progress), with the latest of what it said,
    /// when its submitter calls [`run_finished`](Submitter::run_finished). An error is logged and counted.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU64, Ordering};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// use backroom::TaskPool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let percent = Arc::new(AtomicU64::new(0));
    /// let shown = Arc::clone(&percent);
    /// let pool = TaskPool::builder()
    ///     .on_task(|cx, pages: u64| {
    ///         for page in 1..=pages {
    ///             std::thread::sleep(Duration::from_millis(1)); // printing it
    ///             cx.progress(page, pages);
    ///         }
    ///         Ok(pages)
    ///     })
    ///     .on_progress(move |_submitter, _id, progress| {
    ///         shown.store(100 * progress.done / progress.total, Ordering::Relaxed);
    ///         Ok(())
    ///     })
    ///     .build()?;
    /// let mut submitter = pool.submitter();
    ///
    /// submitter.task(20)?;
    /// while submitter.tasks_in_flight() > 0 {
    ///     submitter.run_finished_for(Duration::from_secs(10));
    ///     println!("{} %", percent.load(Ordering::Relaxed));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_progress<F>(self, callback: F) -> TaskPoolBuilder<T, R, W, stage::Callbacks>
    where
        F: Fn(&mut Submitter<T, R>, TaskId, Progress) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.on_progress = Some(Box::new(callback));
        builder
    }

    /// Is given the state of a task worker when that gives it up. Set it after `task_worker`, which drops it. As
    /// [`ServerBuilder::task_worker_stop`](crate::ServerBuilder::task_worker_stop).
    pub fn task_worker_stop(mut self, stop: impl Fn(usize, W) + Send + Sync + 'static) -> Self {
        self.task_worker.stop = Some(Box::new(stop));
        self
    }

    /// Is told what happens; replaces one given before.
    pub fn observer(mut self, observer: Arc<impl Observer + 'static>) -> Self {
        self.observer = Some(observer);
        self
    }
}

/// The settings. Each replaces an earlier call of the same setter; `build` checks them all.
impl<T: Send + 'static, R: Send + 'static, W, Stage> TaskPoolBuilder<T, R, W, Stage> {
    /// How many threads run `on_task`. From 1 to 10,000; default 4.
    pub fn task_worker_num(mut self, threads: usize) -> Self {
        self.settings.tasks.task_worker_num = threads;
        self
    }

    /// The stack of a task worker's thread, in bytes, beside what
    /// [values](crate::ServerBuilder::worker_stack_size) take. At least 128 KiB; default 2 MiB.
    pub fn task_worker_stack_size(mut self, bytes: usize) -> Self {
        self.settings.tasks.task_worker_stack_size = bytes;
        self
    }

    /// How many tasks a task worker runs before it renews its state. As
    /// [`ServerBuilder::task_max_request`](crate::ServerBuilder::task_max_request). At least 1; default: no limit.
    pub fn task_max_request(mut self, tasks: u64) -> Self {
        self.settings.tasks.task_max_request = Some(tasks);
        self
    }

    /// Up to so many tasks more, at random; 0 makes it exact. Default: half of `task_max_request`.
    pub fn task_max_request_grace(mut self, tasks: u64) -> Self {
        self.settings.tasks.task_max_request_grace = Some(tasks);
        self
    }

    /// How many tasks may wait for a task worker, those of all submitters together; beyond it tasks are refused, and
    /// [`task_within`](Submitter::task_within) waits. Refused too above half of it while a `task_within` waits. With
    /// more than 64 submitters, each may exceed it by up to 15. At least 1; default 10,000.
    pub fn queue_capacity(mut self, tasks: usize) -> Self {
        self.settings.tasks.queue_capacity = tasks;
        self
    }

    /// How many tasks of one submitter may have an outcome that was not delivered yet, before `try_task` and
    /// `task_within` refuse; the others do at four times as many. It bounds the memory of a thread that does not come
    /// to its [`run_finished`](Submitter::run_finished). Tasks that are waited for, one-way or delayed take no place.
    /// At least 1; default 100,000.
    pub fn max_tasks_in_flight(mut self, tasks: usize) -> Self {
        self.settings.tasks.max_tasks_in_flight = tasks;
        self
    }

    /// How many results other than outcomes may wait for one submitter; beyond it
    /// [`finish`](crate::TaskInfo::finish) refuses, and at 0 always. Default 1,024.
    pub fn max_results(mut self, results: usize) -> Self {
        self.settings.tasks.max_results = results;
        self
    }

    /// Whether histograms are kept of how long tasks wait and run. As
    /// [`ServerBuilder::task_times`](crate::ServerBuilder::task_times). Default false.
    pub fn task_times(mut self, keep: bool) -> Self {
        self.settings.tasks.task_times = keep;
        self
    }

    /// Whether the finish closures of a submitter run in the order of submission. As
    /// [`ServerBuilder::results_in_order`](crate::ServerBuilder::results_in_order). Default false.
    ///
    /// ```
    /// use std::cell::RefCell;
    /// use std::rc::Rc;
    /// use std::time::Duration;
    ///
    /// use backroom::TaskPool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = TaskPool::builder()
    ///     .results_in_order(true)
    ///     .on_task(|_cx, millis: u64| Ok(std::thread::sleep(Duration::from_millis(millis))))
    ///     .build()?;
    /// let mut submitter = pool.submitter();
    ///
    /// let ended = Rc::new(RefCell::new(Vec::new()));
    /// for millis in [20, 0, 10] {
    ///     let ended = Rc::clone(&ended);
    ///     submitter.task_then(millis, move |_submitter, _done| Ok(ended.borrow_mut().push(millis)))?;
    /// }
    /// while submitter.tasks_in_flight() > 0 {
    ///     submitter.run_finished_for(Duration::from_secs(10));
    /// }
    /// assert_eq!(*ended.borrow(), [20, 0, 10]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn results_in_order(mut self, in_order: bool) -> Self {
        self.settings.results_in_order = in_order;
        self
    }

    /// How long dropping the pool waits for its tasks; then they are abandoned, which takes up to 250 ms more. Default
    /// 10 s.
    pub fn drain_timeout(mut self, time: Duration) -> Self {
        self.settings.drain_timeout = time;
        self
    }
}

impl<T: Send + 'static, R: Send + 'static, W: 'static, Stage> TaskPoolBuilder<T, R, W, Stage> {
    /// Starts the task workers. Blocks until each has made its state. An error where a setting cannot work, `on_task`
    /// is missing, the threads cannot be started, or a state cannot be made.
    pub fn build(self) -> Result<TaskPool<T, R>, BuildError> {
        self.settings.tasks.check().map_err(|Unworkable { field, problem }| BuildError::Config { field, problem })?;
        let on_task = self.on_task.ok_or(BuildError::Missing("on_task"))?;
        let books = Arc::new(Books::default());
        let hooks = Hooks { state: self.task_worker, on_task };
        let config = self.settings.tasks.pool(SUBMITTERS);
        let threads = OwnThreads::new();
        let observer = MaybeObserver::new(self.observer, &threads);
        let pool = Pool::start(&config, threads, &books, hooks, (), Arc::new(OnTheChannel), observer);
        let pool = pool.map_err(|error| match error {
            StartError::Threads(message) => BuildError::TaskWorkers(message),
            StartError::State { worker_index, error } => BuildError::TaskWorkerState { worker_index, error },
        })?;
        Ok(TaskPool::new(pool, self.callbacks, &self.settings))
    }
}

impl<T: Send + 'static, R: Send + 'static, W, Stage> fmt::Debug for TaskPoolBuilder<T, R, W, Stage> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskPoolBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}
