//! What `on_task` sees.

use std::cell::Cell;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::later::{Later, TakenAway};
use super::options::TaskOptions;
use super::outcome::{Progress, TaskId};
use super::queue::Job;
use super::reply::NotTaken;
use super::room::{Further, Room};
use crate::error::{FinishError, NotFinished, TaskError, TryTaskError};
use crate::stats::OpenLedger;

/// What `on_task` is given beside the payload: the state `W` of the task worker it runs on, and
/// [what there is to know of the task](TaskInfo), to which it dereferences.
///
/// `O` is where the pool belongs: in a server, its [`ServerHandle`](crate::ServerHandle).
pub struct TaskContext<T, R, W, O> {
    pub(super) worker: W,
    pub(super) info: TaskInfo<T, R, O>,
}

/// The task that is running, and what it can do beside returning.
pub struct TaskInfo<T, R, O> {
    pub(super) id: TaskId,
    pub(super) attempt: u32,
    pub(super) is_last_attempt: bool,
    pub(super) deadline: Option<Instant>,
    /// The number of who hears of the task.
    pub(super) submitter: u64,
    pub(super) worker_index: usize,
    pub(super) origin: O,
    pub(super) room: Arc<Room<T, R>>,
    /// The ids of the tasks that are submitted on this task worker.
    pub(super) number: u64,
    pub(super) sequence: Cell<u64>,
    pub(super) ledger: Rc<OpenLedger>,
}

impl<T, R, W, O> TaskContext<T, R, W, O> {
    /// The state of this task worker, as its `task_worker` closure made it: a database connection, say.
    pub fn worker(&mut self) -> &mut W {
        &mut self.worker
    }

    /// The state of the task worker, and the rest, so that both can be used together.
    pub fn parts(&mut self) -> (&mut W, &TaskInfo<T, R, O>) {
        (&mut self.worker, &self.info)
    }
}

impl<T, R, W, O> Deref for TaskContext<T, R, W, O> {
    type Target = TaskInfo<T, R, O>;

    fn deref(&self) -> &TaskInfo<T, R, O> {
        &self.info
    }
}

impl<T, R, O> TaskInfo<T, R, O> {
    /// The id that `task` returned to the submitter.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Which task worker this is: 0 to `task_worker_num` - 1.
    pub fn worker_index(&self) -> usize {
        self.worker_index
    }

    /// Which attempt this is, from 1; more than 1 only with a [retry](TaskOptions::retry).
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether there will be no other attempt if this one fails, since it was allowed no more. There may be none for
    /// other reasons: an error that [is not worth it](crate::Retry::when), a deadline, a shutdown.
    pub fn is_last_attempt(&self) -> bool {
        self.is_last_attempt
    }

    /// Whether the outcome has been decided without this task: it was cancelled, has timed out, or was abandoned at a
    /// shutdown's deadline. What it returns will be counted as late, so it may as well stop. A long task should ask
    /// now and then, which takes some 20 ns.
    pub fn cancelled(&self) -> bool {
        self.room.crew.is_decided(self.worker_index)
    }

    /// Whether the task's [deadline](TaskOptions::deadline) has passed; the end of a wait for it is none. Reads the
    /// clock.
    pub fn expired(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    pub(crate) fn origin(&self) -> &O {
        &self.origin
    }

    pub(crate) fn submitter(&self) -> u64 {
        self.submitter
    }
}

/// More than one result, and a later one.
impl<T, R, O> TaskInfo<T, R, O> {
    /// Gives a result while the task goes on. It comes to the finish closure like the one that `on_task` returns, which
    /// is the [last](crate::Finished::is_last); a `task_then` closure hears the last only. Never blocks. Swoole's
    /// `$task->finish`.
    ///
    /// An error, which hands the result back, where [`max_results`](crate::ServerBuilder::max_results) of this
    /// submitter's are undelivered, and where nobody will hear of it.
    ///
    /// ```
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder()
    ///     .on_receive(|conn, data| {
    ///         conn.task(data.to_vec())?;
    ///         Ok(())
    ///     })
    ///     .on_task(|cx, data| {
    ///         for chunk in data.chunks(1024) {
    ///             cx.finish(format!("{} bytes, ", chunk.len()))?;
    ///         }
    ///         Ok("that was all\n".to_owned())
    ///     })
    ///     .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn finish(&self, result: R) -> Result<(), FinishError<R>> {
        self.room.crew.send(self.worker_index, result, &self.ledger).map_err(|(why, result)| {
            let reason = match why {
                Some(NotTaken::TooMany) => NotFinished::TooMany,
                Some(NotTaken::Unheard) => NotFinished::Unheard,
                None => NotFinished::Decided,
            };
            FinishError { reason, result }
        })
    }

    /// Says how far the task has come. The latest is kept, for the submitter to read by
    /// [`progress`](crate::Connection::progress), and to be told of by
    /// [`on_progress`](crate::ServerBuilder::on_progress) when it next comes to it. Never blocks. Does nothing once the
    /// outcome is decided or the reply taken.
    pub fn progress(&self, done: u64, total: u64) {
        self.room.crew.set_progress(self.worker_index, Progress { done, total }, &self.ledger);
    }

    /// Takes the reply away, to finish the task later, from any thread; `take` is given it, and `on_task` returns what
    /// this returns. The task worker is free for the next task then; this one is pending until its reply is finished,
    /// and fails if that is dropped.
    ///
    /// `take` is not called if the outcome is decided already, or the reply taken.
    ///
    /// ```
    /// use std::thread;
    ///
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder()
    ///     .on_receive(|conn, data| {
    ///         conn.task(data.to_vec())?;
    ///         Ok(())
    ///     })
    ///     .on_task(|cx, data: Vec<u8>| {
    ///         // Some other thread, or a library with callbacks, that ends when it ends.
    ///         cx.finish_later(|reply| drop(thread::spawn(move || reply.finish(data.len()))))
    ///     })
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn finish_later(&self, take: impl FnOnce(Later<R>)) -> anyhow::Result<R> {
        if self.room.crew.take_reply(self.worker_index) {
            take(Later::new(self.id, &self.room.crew));
        }
        Err(anyhow::Error::new(TakenAway))
    }
}

/// Further tasks. There is no waiting for them here: if all task workers waited, none would be left to run them.
impl<T: Send + 'static, R: Send + 'static, O> TaskInfo<T, R, O> {
    /// Submits a further task, whose outcome comes to the `on_finish` of whoever hears of this one. Its id has the
    /// number of this task worker. Never blocks: an error where
    /// [`queue_capacity`](crate::ServerBuilder::queue_capacity) is reached, where that submitter has four times
    /// `max_tasks_in_flight` of them to hear of, and during a shutdown; it hands the payload back. While others wait
    /// for room in the queue, it is refused above half the capacity.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// use backroom::TaskPool;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let leaves = Arc::new(AtomicU32::new(0));
    /// let count = Arc::clone(&leaves);
    /// let pool = TaskPool::builder()
    ///     .on_task(|cx, depth: u32| {
    ///         if depth > 0 {
    ///             cx.task(depth - 1)?;
    ///             cx.task(depth - 1)?;
    ///         }
    ///         Ok(depth)
    ///     })
    ///     .on_finish(move |_submitter, done| {
    ///         count.fetch_add(u32::from(done.into_result()? == 0), Ordering::Relaxed);
    ///         Ok(())
    ///     })
    ///     .build()?;
    /// let mut submitter = pool.submitter();
    /// submitter.task(3)?;
    /// while submitter.tasks_in_flight() > 0 {
    ///     submitter.run_finished_for(Duration::from_secs(10));
    /// }
    /// assert_eq!(leaves.load(Ordering::Relaxed), 8);
    /// # Ok(())
    /// # }
    /// ```
    pub fn task(&self, data: T) -> Result<TaskId, TryTaskError<T>> {
        self.submit(data, None, false)
    }

    /// The same with options. Refused as well where there is no such task worker, or the timer's thread cannot be
    /// started.
    pub fn task_with(&self, options: &TaskOptions<T>, data: T) -> Result<TaskId, TryTaskError<T>> {
        self.submit(data, Some(options), false)
    }

    /// Submits a further task of whose outcome nobody hears; refused like [`task`](Self::task), but for the bound in
    /// flight.
    pub fn task_oneway(&self, data: T) -> Result<TaskId, TryTaskError<T>> {
        self.submit(data, None, true)
    }

    /// The same with options, refused like [`task_with`](Self::task_with).
    pub fn task_oneway_with(&self, options: &TaskOptions<T>, data: T) -> Result<TaskId, TryTaskError<T>> {
        self.submit(data, Some(options), true)
    }

    fn submit(&self, data: T, options: Option<&TaskOptions<T>>, one_way: bool) -> Result<TaskId, TryTaskError<T>> {
        let crew = &self.room.crew;
        if self.room.queue.is_full_at(self.room.queue.len()) {
            return Err(TryTaskError::new(TaskError::QueueFull, data));
        }
        if options.is_some_and(|options| !options.has_worker_among(crew.size())) {
            return Err(TryTaskError::new(TaskError::NoSuchWorker, data));
        }
        // It is there, since this is called while the task runs.
        let Some(reply_to) = crew.reply_address(self.worker_index) else {
            return Err(TryTaskError::new(TaskError::ShuttingDown, data));
        };
        let id = TaskId { submitter: self.number, sequence: self.sequence.get() + 1 };
        let further = Further { id, reply_to, one_way, turn: None };
        let mut job = Some(Job::OnTask(data));
        if let Err(reason) = self.room.accept_further(further, &mut job, options, &self.ledger) {
            return Err(TryTaskError::new(reason, Job::payload_of(job)));
        }
        self.sequence.set(id.sequence);
        Ok(id)
    }
}

impl<T, R, W, O> fmt::Debug for TaskContext<T, R, W, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskContext").field("info", &self.info).finish_non_exhaustive()
    }
}

impl<T, R, O> fmt::Debug for TaskInfo<T, R, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskInfo { id, worker_index, attempt, .. } = self;
        f.debug_struct("TaskInfo")
            .field("id", id)
            .field("worker_index", worker_index)
            .field("attempt", attempt)
            .finish_non_exhaustive()
    }
}
