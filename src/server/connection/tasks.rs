//! What a connection submits, and how it waits for that.

use std::time::Duration;

use super::Connection;
use crate::error::{TaskError, TaskFailure, TryTaskError, WaitError};
use crate::task::{Finished, Progress, Repetition, TaskId, TaskOptions, With};

/// Tasks. Their outcomes come to this connection's worker.
impl<T: Send + 'static, R: Send + 'static, S> Connection<T, R, S> {
    /// How many tasks have no outcome delivered yet, of those whose outcome comes to this connection.
    pub fn tasks_in_flight(&self) -> usize {
        self.link.tasks_in_flight()
    }

    /// The ways of submitting a task that is not like all others: with a priority, a deadline, a delay, …
    ///
    /// ```
    /// use backroom::{Priority, TaskOptions};
    ///
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder()
    ///     .on_receive(|conn, data| {
    ///         conn.with(TaskOptions::new().priority(Priority::Low)).task(data.to_vec())?;
    ///         Ok(())
    ///     })
    ///     .on_task(|_cx, data: Vec<u8>| Ok(data.len()))
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with(&mut self, options: TaskOptions<T>) -> With<'_, T, R, Self> {
        self.link.with(options)
    }

    /// Hands a task to the task workers and returns its id at once. Its outcome comes to `on_finish`, on this
    /// worker. Swoole's `$serv->task($data)`.
    ///
    /// Never blocks. At `queue_capacity` it does what
    /// [`when_queue_full`](crate::ServerBuilder::when_queue_full) says; it refuses when the server shuts down,
    /// and far beyond `max_tasks_in_flight`. In `on_close` a task is still accepted, unless the server shuts
    /// down, and its outcome counted as orphaned.
    pub fn task(&mut self, data: T) -> Result<TaskId, TaskError> {
        self.link.task(data)
    }

    /// A [`task`](Self::task) with a finish closure of its own, which runs instead of `on_finish`, on this
    /// worker; so it need not be `Send`. It is given the outcome, and no result that the task gave before. The third
    /// parameter of Swoole's `task`.
    ///
    /// It is dropped unrun if the connection closes first.
    ///
    /// ```
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder()
    ///     .on_task(|_cx, number: u64| Ok(number * number))
    ///     .on_receive(|conn, data| {
    ///         let asked = String::from_utf8_lossy(data).into_owned();
    ///         let number = asked.trim().parse()?;
    ///         conn.task_then(number, move |conn, done| {
    ///             Ok(conn.send(format!("{asked} squared is {}\n", done.into_result()?))?)
    ///         })?;
    ///         Ok(())
    ///     })
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn task_then<F>(&mut self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnOnce(&mut Connection<T, R, S>, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        self.link.plain().task_then(data, finish)
    }

    /// A [`task`](Self::task) with a finish closure for each result that it gives by
    /// [`finish`](crate::TaskInfo::finish), and for its outcome, which comes [last](Finished::is_last).
    ///
    /// ```
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder()
    ///     .on_task(|cx, pages: u32| {
    ///         for page in 1..pages {
    ///             cx.finish(page)?;
    ///         }
    ///         Ok(pages)
    ///     })
    ///     .on_receive(|conn, _data| {
    ///         let mut pages = Vec::new();
    ///         conn.task_each(3, move |conn, done| {
    ///             let is_last = done.is_last();
    ///             pages.push(done.into_result()?);
    ///             if is_last {
    ///                 conn.send(format!("{pages:?}\n"))?;
    ///             }
    ///             Ok(())
    ///         })?;
    ///         Ok(())
    ///     })
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn task_each<F>(&mut self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnMut(&mut Connection<T, R, S>, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        self.link.plain().task_each(data, finish)
    }

    /// A [`task`](Self::task) of whose outcome nobody hears; it is still counted. It takes no place among
    /// `max_tasks_in_flight`, outlives its connection, and cannot be cancelled.
    pub fn task_oneway(&mut self, data: T) -> Result<TaskId, TaskError> {
        self.link.plain().task_oneway(data)
    }

    /// A [`task`](Self::task) that is refused at `queue_capacity` and at `max_tasks_in_flight`, and whose
    /// error hands the payload back. While others wait for room in the queue, it is refused above half the capacity.
    ///
    /// ```
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder()
    ///     .on_receive(|conn, data| {
    ///         if let Err(refused) = conn.try_task(data.to_vec()) {
    ///             let reason = refused.reason();
    ///             let bytes = refused.into_payload().len();
    ///             conn.send(format!("{reason}; your {bytes} bytes were not taken\n"))?;
    ///         }
    ///         Ok(())
    ///     })
    ///     .on_task(|_cx, data| Ok(data.len()))
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn try_task(&mut self, data: T) -> Result<TaskId, TryTaskError<T>> {
        self.link.try_task(data)
    }

    /// Runs a closure on a task worker, and `finish` with what it returned on this one: for one-off work beside the
    /// tasks of `on_task`, with the same queue, outcomes and books. A panic in it is an outcome, and leaves the state
    /// of the task worker alone.
    ///
    /// ```
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder::<(), ()>()
    ///     .on_receive(|conn, data| {
    ///         let path = String::from_utf8_lossy(data).into_owned();
    ///         conn.run(
    ///             move || std::fs::read_to_string(path),
    ///             |conn, read| match read? {
    ///                 Ok(text) => Ok(conn.send(text)?),
    ///                 Err(error) => Ok(conn.send(format!("{error}\n"))?),
    ///             },
    ///         )?;
    ///         Ok(())
    ///     })
    ///     .on_task(|_cx, ()| Ok(()))
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn run<X, W, F>(&mut self, work: W, finish: F) -> Result<TaskId, TaskError>
    where
        X: Send + 'static,
        W: FnOnce() -> X + Send + 'static,
        F: FnOnce(&mut Connection<T, R, S>, Result<X, TaskFailure>) -> anyhow::Result<()> + 'static,
    {
        self.link.plain().run(work, finish)
    }

    /// Submits a task and blocks this connection's worker until it has ended, or until `timeout`: then, if it has not
    /// started it never will, and if it is running, [`cancelled`](crate::TaskInfo::cancelled) says so to it. Swoole's
    /// `taskwait`, there with half a second.
    ///
    /// What was sent to the client is written before, as far as it takes it. Nothing of this connection happens
    /// meanwhile: what comes is put aside and delivered after. The task takes no place among `max_tasks_in_flight`, and
    /// none in [the order of results](crate::ServerBuilder::results_in_order), so a finish closure may wait too. What
    /// comes after the time is discarded and counted as late. A shutdown's deadline ends the wait. At a `timeout` of
    /// zero the task is given up at once; `Duration::MAX` is no limit.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder()
    ///     .on_receive(|conn, data| {
    ///         let answer = match conn.task_wait(data.to_vec(), Duration::from_secs(2)) {
    ///             Ok(bytes) => format!("{bytes} bytes\n"),
    ///             Err(error) => format!("sorry: {error}\n"),
    ///         };
    ///         Ok(conn.send(answer)?)
    ///     })
    ///     .on_task(|_cx, data: Vec<u8>| Ok(data.len()))
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn task_wait(&mut self, data: T, timeout: Duration) -> Result<R, WaitError> {
        self.link.plain().task_wait(data, timeout)
    }

    /// Submits tasks and blocks until all have ended, or for `timeout` in all, as [`task_wait`](Self::task_wait) does.
    /// The results are in the order of the tasks, one for each. Swoole's `taskWaitMulti` and `taskCo`, there with at
    /// most 1,023 tasks and without a place for those that timed out.
    /// [`Submitter::task_wait_multi`](crate::Submitter::task_wait_multi) has an example.
    pub fn task_wait_multi(&mut self, data: Vec<T>, timeout: Duration) -> Vec<Result<R, WaitError>> {
        self.link.plain().task_wait_multi(data, timeout)
    }

    /// Submits a task once every `period`, the first after one period, until the [`Repetition`] is stopped, the
    /// connection closes or a shutdown begins; each has a payload that `make` makes, on the timer's thread, so it
    /// should be quick. Outcomes come to `on_finish`.
    ///
    /// A firing is left out while the task of the one before has not ended (one that is to be finished later has, once it
    /// has returned), so they never pile up; and while as many tasks wait as `queue_capacity` allows, or half as many and others wait for
    /// room, and while this connection has four times `max_tasks_in_flight` of such outcomes to hear of; firings that
    /// were missed are left out too. A period below 1 ms is taken for 1 ms. If `make` panics, that is the end of it.
    /// The ids are [the repetition's own](Repetition::number). An error at four times `max_tasks_in_flight`
    /// repetitions, where the timer's thread cannot be started, and during a shutdown.
    /// [`Submitter::task_every`](crate::Submitter::task_every) has an example.
    pub fn task_every<F>(&mut self, period: Duration, make: F) -> Result<Repetition, TaskError>
    where
        F: FnMut() -> T + Send + 'static,
    {
        self.link.plain().task_every(period, make)
    }

    /// Cancels a task of this connection: if it has not started it never runs, and if it is running,
    /// [`cancelled`](crate::TaskInfo::cancelled) says so to it. Its outcome is
    /// [`Cancelled`](crate::Outcome::Cancelled) at once either way, and comes to its finish closure.
    ///
    /// False, and nothing happens, if its outcome is decided already, and for tasks that are not to be heard of here
    /// or that this connection did not submit itself. [`Submitter::cancel`](crate::Submitter::cancel) has an example.
    pub fn cancel(&mut self, task: TaskId) -> bool {
        self.link.cancel(task)
    }

    /// How far a task has come, if it has started, has no outcome yet, and has [said so](crate::TaskInfo::progress). To
    /// be told of it, see [`on_progress`](crate::ServerBuilder::on_progress).
    pub fn progress(&self, task: TaskId) -> Option<Progress> {
        self.link.progress(task)
    }
}
