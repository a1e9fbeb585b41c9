//! What a connection's callbacks are given.

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::connection_info::{ConnectionId, ConnectionInfo};
use super::handle::ServerHandle;
use super::link::Link;
use super::remote::Remote;
use super::timers::TimerId;
use crate::error::{SendError, SendFileError, TaskError, TaskFailure, TryTaskError, WaitError};
use crate::net::Address;
#[cfg(feature = "tls")]
use crate::net::TlsInfo;
use crate::task::{Finished, Progress, Repetition, TaskId, TaskOptions, With};

/// One client, as its callbacks see it: its session `S` on one side, its [`Link`] to the client and to the back
/// room on the other. `T` is what its tasks are given, `R` what they return.
///
/// It belongs to the connection's worker thread and is lent to one callback at a time.
pub struct Connection<T, R, S = ()> {
    pub(super) session: S,
    pub(super) link: Link<T, R, S>,
}

/// The session.
impl<T, R, S> Connection<T, R, S> {
    /// The state of this connection, as the server's `session` closure made it.
    pub fn session(&self) -> &S {
        &self.session
    }

    /// The state of this connection, to be changed.
    pub fn session_mut(&mut self) -> &mut S {
        &mut self.session
    }

    /// The session and the rest, so that both can be used together.
    pub fn parts(&mut self) -> (&mut S, &mut Link<T, R, S>) {
        (&mut self.session, &mut self.link)
    }
}

// Not by `Deref`, under which `conn.send(format!("{}", conn.id()))` would not compile.
/// The rest, as its [`Link`] has it.
impl<T, R, S> Connection<T, R, S> {
    /// The id of this connection.
    pub fn id(&self) -> ConnectionId {
        self.link.id()
    }

    /// The address of the client; of one behind a [proxy](crate::ProxyProtocol) its own.
    pub fn peer_addr(&self) -> &Address {
        self.link.peer_addr()
    }

    /// The address the client connected to.
    pub fn local_addr(&self) -> &Address {
        self.link.local_addr()
    }

    /// The name of the [`Listener`](crate::Listener) the client came in by.
    pub fn listener(&self) -> &str {
        self.link.listener()
    }

    /// What TLS knows of the client; `None` where it speaks plainly.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(&self) -> Option<TlsInfo<'_>> {
        self.link.tls()
    }

    /// What is known of this connection from outside: times, bytes, frames.
    pub fn info(&self) -> ConnectionInfo {
        self.link.info()
    }

    /// The server.
    pub fn server(&self) -> &ServerHandle {
        self.link.server()
    }

    /// A handle for running closures on the workers of this and other connections, from any thread.
    pub fn remote(&self) -> Remote<T, R, S> {
        self.link.remote()
    }

    /// Sends `bytes` to the client; they are taken all or not at all. Never blocks: they are written when the
    /// callback has returned, with what else was sent in the same batch, or before that once 64 KiB have gathered.
    /// An error where the connection is closed or closing, where these do not fit into `max_outbox` beside what the
    /// client has not taken, and where they are more than that alone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.link.send(bytes)
    }

    /// Sends `len` bytes of a file to the client, from `offset` on; `None`: up to its end. They go out in turn with what
    /// else is sent, and over a plain connection from kernel to kernel. Returns at once; the file stays open until then,
    /// which the worker's reads of it may make wait for the disk. Where the client is gone, the kernel raises `SIGPIPE`:
    /// Rust programs ignore it unless they say otherwise, and others that embed this should. Swoole's `sendfile`.
    ///
    /// The bytes take no part in `max_outbox`. An error where the connection is closed or closing, where 16 files
    /// already wait for it, or a quarter of those that still may for all connections: an eighth of `max_connections`, at
    /// least 16. And where the file is shorter than that. If it becomes so later, the connection closes.
    ///
    /// ```
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder::<(), ()>()
    ///     .on_receive(|conn, _data| Ok(conn.send_file(std::fs::File::open("index.html")?, 0, None)?))
    ///     .on_task(|_cx, ()| Ok(()))
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn send_file(&mut self, file: File, offset: u64, len: Option<u64>) -> Result<(), SendFileError> {
        self.link.send_file(file, offset, len)
    }

    /// Reads no more from the client, until [`resume`](Self::resume); frames that are here already wait too. In
    /// `on_connect` it defers all reading. Everything else goes on. While paused, the connection is neither idle nor
    /// silent, and that its client has closed is noticed only if it was by a reset. Swoole's `pause`, and
    /// `enable_delay_receive`.
    pub fn pause(&mut self) {
        self.link.pause();
    }

    /// Reads again after a [`pause`](Self::pause). Swoole's `resume`, and `confirm`.
    pub fn resume(&mut self) {
        self.link.resume();
    }

    /// Closes this connection once what was sent is flushed, without waiting for its tasks. No callback but
    /// `on_close` follows the current one.
    pub fn close(&mut self) {
        self.link.close();
    }

    /// Closes this connection at once, with a reset: what its client has not taken is lost. No callback but `on_close`
    /// follows the current one. Swoole's `close` with `$reset`.
    pub fn abort(&mut self) {
        self.link.abort();
    }

    /// Says whose connection this is, so that [it is found by that](crate::ServerHandle::connections_of). A user may
    /// have several; a connection has one, which this replaces. Swoole's `bind`, there a number, once.
    pub fn bind(&mut self, user: impl Into<Arc<str>>) {
        self.link.bind(user);
    }

    /// Says that this is nobody's connection any more.
    pub fn unbind(&mut self) {
        self.link.unbind();
    }

    /// Whose connection this is, if [`bind`](Self::bind) has said so.
    pub fn user(&self) -> Option<Arc<str>> {
        self.link.user()
    }

    /// Whether this connection is exempt from [`idle_timeout`](crate::Limits::idle_timeout) and
    /// [`silence_timeout`](crate::Limits::silence_timeout). Swoole's `protect`.
    pub fn protect(&mut self, protect: bool) {
        self.link.protect(protect);
    }
}

/// Timers. They run on this connection's worker and end with it; an error that one returns is logged.
impl<T, R, S> Connection<T, R, S> {
    /// Runs a closure once, so much later. It need not be `Send`. A connection that closes drops it unrun; a timer does
    /// not keep one open. How many there may be is for the program to say: one per frame would be for the client to
    /// say. Swoole's `after`.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder::<(), ()>()
    ///     .session(|_peer| false) // whether the password has come
    ///     .on_connect(|conn| {
    ///         conn.after(Duration::from_secs(10), |conn| {
    ///             if !*conn.session() {
    ///                 conn.send("too slow\n")?;
    ///                 conn.close();
    ///             }
    ///             Ok(())
    ///         });
    ///         Ok(())
    ///     })
    ///     .on_receive(|conn, password| {
    ///         *conn.session_mut() = password == b"swordfish";
    ///         Ok(())
    ///     })
    ///     .on_task(|_cx, ()| Ok(()))
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn after<F>(&mut self, time: Duration, run: F) -> TimerId
    where
        F: FnOnce(&mut Connection<T, R, S>) -> anyhow::Result<()> + 'static,
    {
        self.link.after(time, run)
    }

    /// Runs a closure once every `period`, the first time after one, until it is cleared. Firings that were missed are
    /// left out; a period below 1 ms is taken for 1 ms. Swoole's `tick`.
    pub fn every<F>(&mut self, period: Duration, run: F) -> TimerId
    where
        F: FnMut(&mut Connection<T, R, S>) -> anyhow::Result<()> + 'static,
    {
        self.link.every(period, run)
    }

    /// Has a timer not run any more; false if it would not have. It may clear itself. Swoole's `clearTimer`.
    pub fn clear_timer(&mut self, timer: TimerId) -> bool {
        self.link.clear_timer(timer)
    }
}

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
    /// A firing is left out while as many tasks wait as `queue_capacity` allows, or half as many and others wait for
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

impl<T, R, S: fmt::Debug> fmt::Debug for Connection<T, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id()).field("session", &self.session).finish_non_exhaustive()
    }
}
