//! The crew: starts the task workers, keeps them going whatever a task does, and ends them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};
use threadpool::ThreadPool;

use super::Wake;
use super::context::{TaskContext, TaskInfo};
use super::outcome::{Outcome, TaskId};
use super::queue::Queue;
use super::reply::{Run, Ticket};
use super::submitter::Submitter;
use crate::logging::{LogLimit, foreign};
use crate::panic::catch;
use crate::patience::Patience;
use crate::stats::{Books, OpenLedger};

/// A worker state that cannot be made again after a panic is tried again after this, then twice this, …
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// How long dropping a pool waits for idle threads to end; what can take time is dropping their states.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct PoolConfig {
    pub(crate) task_worker_num: usize,
    pub(crate) queue_capacity: usize,
    /// How many submitters there are at once, at most.
    pub(crate) submitters: usize,
    pub(crate) stack_size: usize,
}

/// Why there is no pool.
#[derive(Debug)]
pub(crate) enum StartError {
    Threads(String),
    State { worker_index: usize, error: anyhow::Error },
}

/// `task_worker_num` threads over one queue.
pub(crate) struct TaskPool<T, R> {
    queue: Arc<Queue<T, R>>,
    crew: Arc<Crew<R>>,
    threads: ThreadPool,
    books: Arc<Books>,
}

/// What the task workers and those who command them share.
struct Crew<R> {
    /// The ticket of the task that each task worker runs. Taken out by the task worker when the task has
    /// ended, or before that by whoever gives the task up.
    running: Vec<Mutex<Option<Ticket<R>>>>,
    /// The loops are to end once nothing waits.
    told_to_end: AtomicBool,
    /// Nothing is waited for any more: a task that has not started is given up.
    expired: AtomicBool,
    /// Loops that have not ended.
    loops: Mutex<usize>,
    /// A loop has ended, or one of the two flags was set.
    changed: Condvar,
    /// Roused whenever a loop ends.
    owner: Arc<dyn Wake>,
    panic_log: LogLimit,
}

impl<T: Send + 'static, R: Send + 'static> TaskPool<T, R> {
    /// Starts the threads and waits until each has made its state; if one cannot, all end.
    ///
    /// `owner` is roused whenever a task worker has ended.
    pub(crate) fn start<W, O>(
        config: PoolConfig,
        books: Arc<Books>,
        make_state: impl Fn(usize) -> anyhow::Result<W> + Send + Sync + 'static,
        on_task: impl Fn(&mut TaskContext<W, O>, T) -> anyhow::Result<R> + Send + Sync + 'static,
        origin: O,
        owner: Arc<dyn Wake>,
    ) -> Result<TaskPool<T, R>, StartError>
    where
        W: 'static,
        O: Clone + Send + 'static,
    {
        let count = config.task_worker_num;
        let threads = start_threads(&config)?;
        let pool = TaskPool {
            queue: Arc::new(Queue::new(config.queue_capacity, config.submitters)),
            crew: Arc::new(Crew {
                running: (0..count).map(|_| Mutex::new(None)).collect(),
                told_to_end: AtomicBool::new(false),
                expired: AtomicBool::new(false),
                loops: Mutex::new(count),
                changed: Condvar::new(),
                owner,
                panic_log: LogLimit::default(),
            }),
            threads,
            books,
        };

        let (make_state, on_task) = (Arc::new(make_state), Arc::new(on_task));
        let (ready, made) = crossbeam_channel::bounded(count);
        for index in 0..count {
            let worker = TaskWorker {
                index,
                queue: Arc::clone(&pool.queue),
                crew: Arc::clone(&pool.crew),
                books: Arc::clone(&pool.books),
                ledger: pool.books.open(),
                make_state: Arc::clone(&make_state),
                on_task: Arc::clone(&on_task),
                origin: origin.clone(),
            };
            let ready = ready.clone();
            pool.threads.execute(move || worker.run(&ready));
        }
        drop(ready);
        // Every loop reports once, and the threads exist; a report that is missing would be our own bug.
        for _ in 0..count {
            if let Ok(Err((worker_index, error))) = made.recv() {
                return Err(StartError::State { worker_index, error });
            }
        }
        Ok(pool)
    }

    /// A party that hands tasks to this pool. `wake` rouses it when an outcome has come for it.
    pub(crate) fn submitter<F>(&self, wake: Arc<dyn Wake>, max_in_flight: usize) -> Submitter<T, R, F> {
        Submitter::new(Arc::clone(&self.queue), wake, max_in_flight, self.books.open())
    }

    /// Tells every task worker to end once the tasks that wait now are done.
    pub(crate) fn end(&self) {
        end(&self.queue, &self.crew);
    }

    /// How many task workers have not ended.
    pub(crate) fn loops(&self) -> usize {
        *self.crew.loops.lock()
    }

    /// Waits no longer: takes no more tasks, and gives up those that wait or run. A thread that runs one
    /// cannot be stopped; what it returns will be counted as late.
    pub(crate) fn abandon(&self) {
        let ledger = self.books.open();
        self.crew.expire();
        self.queue.close(&ledger);
        for (worker_index, running) in self.crew.running.iter().enumerate() {
            let ticket = running.lock().take();
            if let Some(ticket) = ticket {
                ticket.abandon(Some(worker_index), &ledger);
            }
        }
    }
}

impl<T, R> Drop for TaskPool<T, R> {
    /// Ends the threads if they have nothing to do; threads that are busy are left to themselves.
    fn drop(&mut self) {
        let patience = if self.crew.expired() { Duration::ZERO } else { DROP_PATIENCE };
        end(&self.queue, &self.crew);
        self.crew.expire();
        if self.crew.ended_within(patience) {
            self.threads.join();
        }
    }
}

fn end<T, R>(queue: &Queue<T, R>, crew: &Crew<R>) {
    if !crew.told_to_end.swap(true, Ordering::Relaxed) {
        queue.stop(crew.running.len());
        crew.notify();
    }
}

fn start_threads(config: &PoolConfig) -> Result<ThreadPool, StartError> {
    // `threadpool` panics where a thread cannot start.
    catch(|| {
        threadpool::Builder::new()
            .num_threads(config.task_worker_num)
            .thread_name("backroom-task-worker".to_owned())
            .thread_stack_size(config.stack_size)
            .build()
    })
    .map_err(StartError::Threads)
}

/// One of the crew.
struct TaskWorker<T, R, O, M, F> {
    index: usize,
    queue: Arc<Queue<T, R>>,
    crew: Arc<Crew<R>>,
    books: Arc<Books>,
    ledger: OpenLedger,
    make_state: Arc<M>,
    on_task: Arc<F>,
    origin: O,
}

/// Why a task worker left its loop.
enum Left {
    ToldToEnd,
    TaskPanicked,
}

impl<T, R, W, O, M, F> TaskWorker<T, R, O, M, F>
where
    O: Clone,
    M: Fn(usize) -> anyhow::Result<W>,
    F: Fn(&mut TaskContext<W, O>, T) -> anyhow::Result<R>,
{
    fn run(self, ready: &Sender<Result<(), (usize, anyhow::Error)>>) {
        let _ended = Ended(Arc::clone(&self.crew));
        let mut state = match self.make() {
            Ok(state) => {
                let _ = ready.send(Ok(()));
                Some(state)
            }
            Err(error) => {
                let _ = ready.send(Err((self.index, error)));
                None
            }
        };
        while let Some(worker) = state {
            let id = TaskId { submitter: 0, sequence: 0 };
            let info = TaskInfo { id, worker_index: self.index, origin: self.origin.clone() };
            let mut context = TaskContext { worker, info };
            // The second fence: what could panic beside `on_task` is what users' types do when dropped.
            let left = catch(|| self.work(&mut context)).unwrap_or(Left::TaskPanicked);
            if let Err(message) = catch(|| drop(context)) {
                log::warn!("task worker {}: its state panicked when dropped: {}", self.index, foreign(message));
            }
            state = match left {
                Left::ToldToEnd => None,
                Left::TaskPanicked => self.make_again(),
            };
        }
    }

    /// Runs tasks until told to end, or until one panics.
    fn work(&self, context: &mut TaskContext<W, O>) -> Left {
        let running = &self.crew.running[self.index];
        // One task's end is the next one's start, unless there was a wait between them.
        let mut clock: Option<Instant> = None;
        let mut patience = Patience::new();
        while let Some(task) = self.queue.take(&mut patience, || clock = None) {
            let started = clock.unwrap_or_else(Instant::now);
            context.info.id = task.ticket.id;
            *running.lock() = Some(task.ticket);
            // Whoever expires the crew looks into `running` after it; so either it finds this ticket there, or
            // we see that it came before.
            if self.crew.expired() {
                self.give_up(task.payload);
                continue;
            }
            self.ledger.running.set(1);

            let returned = catch(|| (self.on_task)(context, task.payload));

            let ended = Instant::now();
            self.ledger.running.set(0);
            let mut panic_message = None;
            let outcome = match returned {
                Ok(Ok(result)) => Outcome::Done(result),
                Ok(Err(error)) => Outcome::Failed(error),
                Err(message) => {
                    panic_message = Some(foreign(&message));
                    Outcome::Panicked(message)
                }
            };
            let ticket = running.lock().take();
            match ticket {
                Some(ticket) => {
                    let run = Run { worker_index: self.index, started, ended };
                    ticket.decide(outcome, run, &self.ledger);
                }
                None => self.ledger.late.add(1),
            }
            if let Some(message) = panic_message {
                self.log_panic(context.info.id, &message);
                return Left::TaskPanicked;
            }
            clock = Some(ended);
        }
        Left::ToldToEnd
    }

    fn give_up(&self, payload: T) {
        let ticket = self.crew.running[self.index].lock().take();
        if let Some(ticket) = ticket {
            ticket.abandon(None, &self.ledger);
        }
        drop(payload);
    }

    fn make(&self) -> anyhow::Result<W> {
        catch(|| (self.make_state)(self.index)).unwrap_or_else(|message| Err(anyhow::anyhow!("it panicked: {message}")))
    }

    /// Makes a fresh state after a panic, for as long as it takes; the others serve meanwhile.
    fn make_again(&self) -> Option<W> {
        let mut retry = FIRST_RETRY;
        loop {
            // Fenced, since an error's text is users' code too, and so is the logger.
            if let Ok(Some(state)) = catch(|| self.try_again(retry)) {
                return Some(state);
            }
            if self.is_needless_within(retry) {
                return None;
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    fn try_again(&self, retry: Duration) -> Option<W> {
        let error = match self.make() {
            Ok(state) => return Some(state),
            Err(error) => error,
        };
        self.ledger.state_failures.add(1);
        let error = foreign(format_args!("{error:#}"));
        log::error!("task worker {}: its state cannot be made again, next try in {retry:?}: {error}", self.index);
        None
    }

    /// Waits so long for this task worker to be needed no more: the crew has expired, or is told to end and has
    /// nothing left to do.
    fn is_needless_within(&self, time: Duration) -> bool {
        let crew = &self.crew;
        let needless = || {
            let ending = crew.told_to_end.load(Ordering::Relaxed);
            crew.expired() || ending && self.books.read().task_stats().pending == 0
        };
        let mut loops = crew.loops.lock();
        let _ = crew.changed.wait_while_for(&mut loops, |_| !needless(), time);
        needless()
    }

    fn log_panic(&self, id: TaskId, message: &str) {
        if let Some(held_back) = self.crew.panic_log.permit() {
            log::error!("task {id} panicked: {message} ({held_back} more panics since the last line)");
        }
    }
}

impl<R> Crew<R> {
    fn expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    fn expire(&self) {
        self.expired.store(true, Ordering::Relaxed);
        self.notify();
    }

    fn notify(&self) {
        // Whoever waits holds the lock between looking and sleeping; taking it here, no one is missed.
        drop(self.loops.lock());
        self.changed.notify_all();
    }

    fn ended_within(&self, time: Duration) -> bool {
        let mut loops = self.loops.lock();
        let _ = self.changed.wait_while_for(&mut loops, |loops| *loops > 0, time);
        *loops == 0
    }
}

/// Says that a loop has ended, however it did.
struct Ended<R>(Arc<Crew<R>>);

impl<R> Drop for Ended<R> {
    fn drop(&mut self) {
        *self.0.loops.lock() -= 1;
        self.0.changed.notify_all();
        fence(Ordering::SeqCst);
        self.0.owner.wake();
    }
}
