//! What a connection's callbacks are given.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::handle::ServerHandle;
use super::registry::ConnectionId;
use crate::error::{SendError, TaskError, TryTaskError};
use crate::net::{Outbox, Stream};
use crate::task::{Finished, Submitter, TaskId, WhenFull};

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

    /// The address of the client.
    pub fn peer_addr(&self) -> SocketAddr {
        self.link.peer_addr()
    }

    /// The address the client connected to.
    pub fn local_addr(&self) -> SocketAddr {
        self.link.local_addr()
    }

    /// The server.
    pub fn server(&self) -> &ServerHandle {
        self.link.server()
    }

    /// How many tasks of this connection have no outcome delivered yet.
    pub fn tasks_in_flight(&self) -> usize {
        self.link.tasks_in_flight()
    }

    /// Hands a task to the task workers and returns its id at once. Its outcome comes to `on_finish`, on this
    /// worker. Swoole's `$serv->task($data)`.
    ///
    /// Never blocks. At `queue_capacity` it does what
    /// [`when_queue_full`](crate::ServerBuilder::when_queue_full) says; it refuses when the server shuts down,
    /// and far beyond `max_tasks_in_flight`. In `on_close` a task is still accepted, and its outcome counted
    /// as orphaned.
    pub fn task(&mut self, data: T) -> Result<TaskId, TaskError> {
        self.link.task(data)
    }

    /// A [`task`](Self::task) with a finish closure of its own, which runs instead of `on_finish`, on this
    /// worker; so it need not be `Send`. The third parameter of Swoole's `task`.
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
        self.link.task_then(data, finish)
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

    /// Sends `bytes` to the client; they are taken all or not at all. Never blocks: they are written when the
    /// callback has returned, with what else was sent in the same batch, or before that once 64 KiB have gathered.
    /// An error where the connection is closed or closing, where `max_outbox` bytes already wait that the client does
    /// not take, and where these are more than that.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.link.send(bytes)
    }

    /// Closes this connection once what was sent is flushed, without waiting for its tasks. No callback but
    /// `on_close` follows the current one.
    pub fn close(&mut self) {
        self.link.close();
    }
}

/// A connection without its session: the client's socket on one side, the back room on the other. From
/// [`Connection::parts`].
pub struct Link<T, R, S = ()> {
    pub(super) id: ConnectionId,
    pub(super) stream: Stream,
    pub(super) outbox: Outbox,
    pub(super) submitter: Submitter<T, R, FinishClosure<T, R, S>>,
    pub(super) server: ServerHandle,
    pub(super) when_full: WhenFull,
    pub(super) state: LinkState,
    /// False once the worker knows of a shutdown.
    pub(super) accepts_tasks: bool,
    /// The stamp of what is submitted in this turn of the worker's loop; taken when first needed.
    pub(super) now: Option<Instant>,
}

/// Whether there is anyone to send to.
pub(super) enum LinkState {
    Open,
    /// `close` was called.
    Closing,
    /// A write failed while a callback ran.
    Broken(io::Error),
    Closed,
}

/// What runs on the worker when the outcome of its task arrives.
#[expect(clippy::type_complexity)]
pub(super) struct FinishClosure<T, R, S>(
    pub(super) Box<dyn FnOnce(&mut Connection<T, R, S>, Finished<R>) -> anyhow::Result<()>>,
);

/// `send` does not gather more than this before it writes.
const WRITE_THROUGH: usize = 64 * 1024;

impl<T, R, S> Link<T, R, S> {
    /// The id of this connection.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// The address of the client.
    pub fn peer_addr(&self) -> SocketAddr {
        self.stream.peer_addr()
    }

    /// The address the client connected to.
    pub fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr()
    }

    /// The server.
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// How many tasks of this connection have no outcome delivered yet.
    pub fn tasks_in_flight(&self) -> usize {
        self.submitter.in_flight()
    }

    /// Hands a task to the task workers; see [`Connection::task`].
    pub fn task(&mut self, data: T) -> Result<TaskId, TaskError> {
        self.submit(data, None, self.when_full).map_err(|(reason, _)| reason)
    }

    /// Hands over a task with a finish closure of its own; see [`Connection::task_then`].
    pub fn task_then<F>(&mut self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnOnce(&mut Connection<T, R, S>, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        let finish = FinishClosure(Box::new(finish));
        self.submit(data, Some(finish), self.when_full).map_err(|(reason, _)| reason)
    }

    /// Hands over a task unless the queue is full; see [`Connection::try_task`].
    pub fn try_task(&mut self, data: T) -> Result<TaskId, TryTaskError<T>> {
        self.submit(data, None, WhenFull::RefuseAtCap).map_err(|(reason, payload)| TryTaskError { reason, payload })
    }

    fn submit(
        &mut self,
        data: T,
        finish: Option<FinishClosure<T, R, S>>,
        when_full: WhenFull,
    ) -> Result<TaskId, (TaskError, T)> {
        if !self.accepts_tasks {
            return Err((TaskError::ShuttingDown, data));
        }
        let now = *self.now.get_or_insert_with(Instant::now);
        self.submitter.submit(data, finish, when_full, now)
    }

    /// Sends bytes to the client; see [`Connection::send`].
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        let bytes = bytes.as_ref();
        if !matches!(self.state, LinkState::Open) {
            return Err(SendError::Closed);
        }
        if bytes.len() > self.outbox.limit() {
            return Err(SendError::TooLong);
        }
        if self.outbox.push(bytes).is_err() {
            self.write_through()?;
            return self.outbox.push(bytes).map_err(|_| SendError::OutboxFull);
        }
        if self.outbox.len() >= WRITE_THROUGH {
            self.write_through()?;
        }
        Ok(())
    }

    /// Closes this connection once what was sent is flushed; see [`Connection::close`].
    pub fn close(&mut self) {
        if matches!(self.state, LinkState::Open) {
            self.state = LinkState::Closing;
        }
    }

    fn write_through(&mut self) -> Result<(), SendError> {
        self.outbox.flush(&mut self.stream).map_err(|error| {
            self.state = LinkState::Broken(error);
            SendError::Closed
        })
    }
}

impl<T, R, S: fmt::Debug> fmt::Debug for Connection<T, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id()).field("session", &self.session).finish_non_exhaustive()
    }
}

impl<T, R, S> fmt::Debug for Link<T, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id).field("peer_addr", &self.peer_addr()).finish_non_exhaustive()
    }
}

/// Why a connection closed: what `on_close` is told.
///
/// ```
/// use backroom::CloseReason;
///
/// # fn main() -> Result<(), backroom::BindError> {
/// let server = backroom::Server::builder::<(), ()>()
///     .on_receive(|_conn, _data| Ok(()))
///     .on_task(|_cx, ()| Ok(()))
///     .on_close(|conn, reason| {
///         match reason {
///             CloseReason::Client | CloseReason::Shutdown => {}
///             other => eprintln!("connection {} of {}: {other}", conn.id(), conn.peer_addr()),
///         }
///         Ok(())
///     })
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client closed its sending half, and all it was owed is delivered.
    Client,
    /// `close` was called, on the connection or on the server's handle.
    Server,
    /// The server shuts down.
    Shutdown,
    /// `on_connect` or `on_receive` returned this error.
    CallbackFailed(anyhow::Error),
    /// A callback panicked, with this message.
    Panicked(String),
    /// The client sent a frame longer than `max_frame`, given here in bytes.
    FrameTooLong(usize),
    /// The client took nothing of what waited for it for as long as `write_timeout`.
    WriteTimeout,
    /// The socket failed; a reset by the client is
    /// [`ConnectionReset`](std::io::ErrorKind::ConnectionReset) or
    /// [`BrokenPipe`](std::io::ErrorKind::BrokenPipe).
    Io(io::Error),
}

impl CloseReason {
    /// The client can still be told what was sent to it, and may still be sending.
    pub(super) fn is_orderly(&self) -> bool {
        !matches!(self, CloseReason::WriteTimeout | CloseReason::Io(_))
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Client => f.write_str("closed by the client"),
            CloseReason::Server => f.write_str("closed by the server"),
            CloseReason::Shutdown => f.write_str("the server shuts down"),
            CloseReason::CallbackFailed(error) => write!(f, "a callback failed: {error:#}"),
            CloseReason::Panicked(message) => write!(f, "a callback panicked: {message}"),
            CloseReason::FrameTooLong(max) => write!(f, "a frame was longer than {max} bytes"),
            CloseReason::WriteTimeout => f.write_str("the client did not take what was sent to it in time"),
            CloseReason::Io(error) => write!(f, "the socket failed: {error}"),
        }
    }
}
