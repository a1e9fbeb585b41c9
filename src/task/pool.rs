//! Starts the crew and ends it.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use threadpool::ThreadPool;

use super::Wake;
use super::context::TaskContext;
use super::crew::Crew;
use super::port::{Port, PortConfig};
use super::queue::Queue;
use super::room::Room;
use super::unheard::Label;
use super::worker::TaskWorker;
use crate::new_thread::{HasStarted, NewThread};
use crate::observer::MaybeObserver;
use crate::own_threads::OwnThreads;
use crate::panic::catch;
use crate::stack::with_room_for;
use crate::stamp::Stamp;
use crate::stats::{Books, TaskStats, Whereabouts};
use crate::times::{Clocks, TaskTimes};

/// How long dropping a pool waits for idle threads to end; what can take time is dropping their states.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct PoolConfig {
    pub(crate) task_worker_num: usize,
    pub(crate) queue_capacity: usize,
    /// How many submitters there are at once, at most.
    pub(crate) submitters: usize,
    pub(crate) stack_size: usize,
    /// How many tasks a task worker runs before it renews its state, and so many more at random.
    pub(crate) max_tasks: Option<(u64, u64)>,
    /// Keeps histograms of times.
    pub(crate) times: bool,
}

/// What is users' of the task workers. `O` is where the pool belongs.
pub(crate) struct Hooks<T, R, W, O> {
    pub(crate) state: StateHooks<W>,
    pub(crate) on_task: OnTask<T, R, W, O>,
}

/// Makes the state of a task worker, and is given it when that gives it up.
pub(crate) struct StateHooks<W> {
    pub(crate) make: Box<dyn Fn(usize) -> anyhow::Result<W> + Send + Sync>,
    pub(crate) stop: Option<Box<dyn Fn(usize, W) + Send + Sync>>,
}

impl<W> StateHooks<W> {
    pub(crate) fn new(make: impl Fn(usize) -> anyhow::Result<W> + Send + Sync + 'static) -> StateHooks<W> {
        StateHooks { make: Box::new(make), stop: None }
    }
}

pub(crate) type OnTask<T, R, W, O> = Box<dyn Fn(&mut TaskContext<T, R, W, O>, T) -> anyhow::Result<R> + Send + Sync>;

/// Why there is no pool.
#[derive(Debug)]
pub(crate) enum StartError {
    Threads(String),
    State { worker_index: usize, error: anyhow::Error },
}

/// `task_worker_num` threads over one queue.
pub(crate) struct Pool<T: Send + 'static, R: Send + 'static> {
    room: Arc<Room<T, R>>,
    threads: ThreadPool,
    clocks: Option<Arc<Clocks>>,
}

impl<T: Send + 'static, R: Send + 'static> Pool<T, R> {
    /// Starts the threads and waits until each has made its state; if one cannot, all end.
    ///
    /// `owner` is roused whenever a task worker has ended.
    pub(crate) fn start<W, O>(
        config: &PoolConfig,
        threads: OwnThreads,
        books: &Arc<Books>,
        hooks: Hooks<T, R, W, O>,
        origin: O,
        owner: Arc<dyn Wake>,
        observer: MaybeObserver,
    ) -> Result<Pool<T, R>, StartError>
    where
        W: 'static,
        O: Clone + Send + 'static,
    {
        let count = config.task_worker_num;
        let stack_size = with_room_for(&[size_of::<T>(), size_of::<R>(), size_of::<W>()], config.stack_size);
        let pool_threads = start_threads(count, stack_size)?;
        let queue = Queue::new(config.queue_capacity, config.submitters, count);
        let room = Arc::new(Room::new(queue, Crew::new(count, threads, books, owner, observer)));
        let clocks = config.times.then(|| Clocks::new(count)).flatten().map(Arc::new);
        let pool = Pool { room, threads: pool_threads, clocks };

        let hooks = Arc::new(hooks);
        let (starting, started) = bounded(count);
        for index in 0..count {
            let worker = TaskWorker {
                index,
                room: Arc::clone(&pool.room),
                hooks: Arc::clone(&hooks),
                origin: origin.clone(),
                max_tasks: config.max_tasks,
                clocks: pool.clocks.clone(),
            };
            let starting = starting.clone();
            pool.threads.execute(move || worker.run(&starting));
        }
        drop(starting);
        // Every loop reports once, and the threads exist; a report that is missing would be our own bug.
        for _ in 0..count {
            if let Ok(Err((worker_index, error))) = started.recv() {
                return Err(StartError::State { worker_index, error });
            }
        }
        Ok(pool)
    }

    /// A party that hands tasks to this pool, with a name for the log. `wake` rouses it when an outcome has come for it.
    pub(crate) fn port<C>(
        &self,
        number: u64,
        wake: Arc<dyn Wake>,
        label: Option<Label>,
        config: PortConfig,
    ) -> Port<T, R, C> {
        Port::new(number, &self.room, wake, label, config)
    }

    pub(crate) fn own_threads(&self) -> &OwnThreads {
        &self.room.crew.threads
    }

    /// A shutdown begins: cancels what is delayed, and lets tasks submit no more.
    pub(crate) fn drain(&self) {
        self.room.drain(&self.room.crew.books.open());
    }

    /// Tells every task worker to end once nothing is pending.
    pub(crate) fn end(&self) {
        self.room.crew.tell_to_end();
    }

    /// How many task workers have not ended.
    pub(crate) fn loops(&self) -> usize {
        self.room.crew.loops()
    }

    /// Whether all have ended, and nothing is pending.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.room.crew.is_at_rest()
    }

    /// Waits until then for that.
    pub(crate) fn at_rest_by(&self, deadline: Option<Instant>) -> bool {
        self.room.crew.at_rest_by(deadline)
    }

    /// Waits no longer: takes no more tasks, and gives up those that wait or run. A thread that runs one
    /// cannot be stopped; what it returns will be counted as late.
    pub(crate) fn abandon(&self) {
        self.room.abandon(&self.room.crew.books.open());
    }

    /// The books, and where the tasks are that have no outcome.
    pub(crate) fn stats(&self) -> TaskStats {
        let Room { queue, crew, timer, .. } = &*self.room;
        let now = Stamp::now();
        let oldest = queue.oldest();
        if oldest.is_some() {
            // One that looked meanwhile may have found nothing.
            fence(Ordering::SeqCst);
            crew.idle.wake_all();
        }
        let at = Whereabouts {
            running: crew.running() as u64,
            delayed: timer.tasks() as u64,
            later: crew.later() as u64,
            queued: queue.by_priority().map(|tasks| tasks as u64),
            oldest_queued: oldest.map(|since| now.since(since)),
            task_workers: crew.loops() as u64,
        };
        crew.books.read().task_stats(&at)
    }

    /// How long tasks waited and ran, if that is kept.
    pub(crate) fn times(&self) -> Option<TaskTimes> {
        self.clocks.as_ref()?.read()
    }

    /// Has all task workers renew their state, one at a time.
    pub(crate) fn recycle(&self) {
        let crew = &self.room.crew;
        crew.renewals.tell_all(|index| crew.idle.wake(index));
    }
}

impl<T: Send + 'static, R: Send + 'static> Drop for Pool<T, R> {
    /// Ends the threads if they have nothing to do; threads that are busy are left to themselves.
    fn drop(&mut self) {
        let patience = if self.room.crew.is_expired() { Duration::ZERO } else { DROP_PATIENCE };
        self.drain();
        self.abandon();
        if self.at_rest_by(Instant::now().checked_add(patience)) {
            self.threads.join();
        }
    }
}

/// One after the other, since each may have to wait for room.
fn start_threads(count: usize, stack_size: usize) -> Result<ThreadPool, StartError> {
    let first = || {
        let one = threadpool::Builder::new().num_threads(1).thread_stack_size(stack_size);
        one.thread_name("br-task".to_owned()).build()
    };
    let mut threads: Option<ThreadPool> = None;
    // Closed when this returns. Until then each thread is busy, so that the next job is the next thread's.
    let (_closes, gate) = bounded::<()>(0);
    for number in 1..=count {
        let new = NewThread::reserve_exactly(stack_size).map_err(|error| StartError::Threads(error.to_string()))?;
        let gate = gate.clone();
        // `threadpool` panics where a thread cannot start.
        let start = |has_started: HasStarted| {
            let threads = threads.get_or_insert_with(first);
            threads.set_num_threads(number);
            threads.execute(move || {
                has_started.say();
                let _ = gate.recv();
            });
        };
        new.start_by(|has_started| catch(|| start(has_started))).map_err(StartError::Threads)?;
    }
    Ok(threads.unwrap_or_else(first))
}
