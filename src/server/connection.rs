//! What a connection's callbacks are given.

mod tasks;

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use super::connection_info::{ConnectionId, ConnectionInfo};
use super::handle::ServerHandle;
use super::link::Link;
use super::remote::Remote;
use super::timers::TimerId;
use crate::error::{SendError, SendFileError};
use crate::net::Address;
#[cfg(feature = "tls")]
use crate::net::TlsInfo;

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
    ///
    /// Once a client is gone every send fails, and the callback may as well: what the client had sent before is received
    /// all the same, and then the connection closes.
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
    /// silent, unless its client has reset it: then nothing can be sent any more, and what the client had sent before
    /// waits for `resume`; if there is none, the connection closes at once. That the client has closed in good order is
    /// noticed after `resume`. Swoole's `pause`, and `enable_delay_receive`.
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

impl<T, R, S: fmt::Debug> fmt::Debug for Connection<T, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("id", &self.id()).field("session", &self.session).finish_non_exhaustive()
    }
}
