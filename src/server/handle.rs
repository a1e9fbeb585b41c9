//! What the rest of the program holds of a server.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use super::BackRoom;
use super::lifecycle::{Lifecycle, ShutdownReport};
use super::registry::{ConnectionId, ConnectionInfo, Registry};
use crate::error::{JoinError, SendError};
use crate::logging::LogLimit;
use crate::observer::MaybeObserver;
use crate::panic::catch;
use crate::stats::{Books, Stats, Whereabouts};
use crate::task::{TaskInfo, Wake};
use crate::times::TaskTimes;

/// What all threads of one server share, whatever the types of its tasks.
pub(super) struct Core {
    number: u64,
    local_addr: SocketAddr,
    pub(super) lifecycle: Lifecycle,
    pub(super) registry: Arc<Registry>,
    pub(super) books: Arc<Books>,
    callback_log: LogLimit,
    pub(super) observer: MaybeObserver,
    /// The task pool, once there is one. It holds this, so this does not hold it.
    pub(super) back_room: OnceLock<Weak<dyn BackRoom>>,
}

static SERVERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The number of the server whose callbacks run on this thread; 0 for none.
    static CALLBACKS_OF: Cell<u64> = const { Cell::new(0) };
}

impl Core {
    pub(super) fn new(local_addr: SocketAddr, registry: Registry, observer: MaybeObserver) -> Core {
        Core {
            number: SERVERS.fetch_add(1, Ordering::Relaxed) + 1,
            local_addr,
            lifecycle: Lifecycle::new(),
            registry: Arc::new(registry),
            books: Arc::new(Books::default()),
            callback_log: LogLimit::default(),
            observer,
            back_room: OnceLock::new(),
        }
    }

    /// This thread runs callbacks of this server until it ends.
    pub(super) fn claim_thread(&self) {
        CALLBACKS_OF.set(self.number);
    }

    /// Runs a callback of this server on a thread that is not its own.
    pub(super) fn catch_callback<X>(&self, callback: impl FnOnce() -> X) -> Result<X, String> {
        let before = CALLBACKS_OF.replace(self.number);
        let returned = catch(callback);
        CALLBACKS_OF.set(before);
        returned
    }

    pub(super) fn back_room(&self) -> Option<Arc<dyn BackRoom>> {
        self.back_room.get()?.upgrade()
    }

    /// Logs what went wrong in a callback of a connection. `what` is fit for a log already.
    pub(super) fn log_callback(&self, id: ConnectionId, what: &str) {
        if let Some(held_back) = self.callback_log.permit() {
            log::warn!("connection {id}: {what} ({held_back} more errors in callbacks since the last line)");
        }
    }
}

impl Wake for Core {
    fn wake(&self) {
        self.lifecycle.notify();
    }
}

/// A handle to a server, for any thread: clone it, keep it, send it.
///
/// It does not keep the server alive; calls on one that has ended find nothing.
///
/// ```
/// use std::time::Duration;
///
/// # fn main() -> anyhow::Result<()> {
/// let server = backroom::Server::builder::<(), ()>()
///     .on_receive(|_conn, _data| Ok(()))
///     .on_task(|_cx, ()| Ok(()))
///     .bind("127.0.0.1:0")?;
/// let handle = server.handle();
/// let running = std::thread::spawn(|| server.run());
///
/// for connection in handle.connections() {
///     handle.send(connection.id, "the server closes in a minute\n")?;
/// }
/// handle.shutdown(Duration::from_secs(60));
/// assert_eq!(handle.wait()?.tasks.abandoned, 0);
/// # running.join().unwrap()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ServerHandle {
    pub(super) core: Arc<Core>,
}

impl ServerHandle {
    /// Begins to shut the server down, and returns at once: accept no more, read no more, finish the tasks in flight,
    /// deliver their outcomes, flush, close. What is delayed is cancelled, and repetitions end. What is unfinished
    /// `deadline` from now is abandoned.
    ///
    /// May be called anywhere, callbacks included, and again: the earliest deadline holds. As soon as a connection's
    /// worker knows of it, which is before its next outcome or batch of frames, `task` refuses there with
    /// [`TaskError::ShuttingDown`](crate::TaskError::ShuttingDown). A client that was active within the last second
    /// has up to a second to close its side.
    pub fn shutdown(&self, deadline: Duration) {
        self.core.lifecycle.begin_shutdown(deadline);
    }

    /// Blocks until the server has ended, for as long as that takes, and returns what
    /// [`Server::run`](crate::Server::run) does. An error in a callback of this server, which would wait for
    /// itself, and for a server that was dropped without having run.
    pub fn wait(&self) -> Result<ShutdownReport, JoinError> {
        if CALLBACKS_OF.get() == self.core.number {
            return Err(JoinError::InCallback);
        }
        self.core.lifecycle.wait_for_end()
    }

    /// What the server has done and is doing. Takes time in proportion to the open connections.
    pub fn stats(&self) -> Stats {
        let registry = &self.core.registry;
        Stats {
            connections: registry.taken(),
            accepted_connections: registry.accepted(),
            refused_connections: registry.refused(),
            tasks: match self.core.back_room() {
                Some(back_room) => back_room.stats(),
                None => self.core.books.read().task_stats(&Whereabouts::default()),
            },
        }
    }

    /// How long tasks waited and ran, if [`task_times`](crate::ServerBuilder::task_times) is set. `None` too once the
    /// server has ended.
    pub fn task_times(&self) -> Option<TaskTimes> {
        self.core.back_room()?.times()
    }

    /// Has all task workers renew their state, each between two tasks and only one at a time, beside those that do so
    /// after a panic or `task_max_request`; no task is lost.
    /// One that is busy for long comes later and holds up no other; one whose state cannot be made again keeps the turn
    /// until it can. May be called again meanwhile. Returns at once. Swoole's `reload` of task workers.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicUsize, Ordering};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let made = Arc::new(AtomicUsize::new(0));
    /// let count = Arc::clone(&made);
    /// let pool = backroom::TaskPool::builder()
    ///     .task_worker_num(2)
    ///     .task_worker(move |_index| Ok(count.fetch_add(1, Ordering::Relaxed)))
    ///     .on_task(|cx, ()| Ok(*cx.worker()))
    ///     .build()?;
    ///
    /// pool.recycle();
    /// let mut submitter = pool.submitter();
    /// while pool.stats().recycled < 2 {
    ///     submitter.task_wait((), Duration::from_secs(10))?;
    /// }
    /// assert!(submitter.task_wait((), Duration::from_secs(10))? >= 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn recycle(&self) {
        if let Some(back_room) = self.core.back_room() {
            back_room.recycle();
        }
    }

    /// Sends `bytes` to a connection; they are taken all or not at all. Never blocks. What one thread sends
    /// arrives in that order. An error where the connection is closed, where `max_outbox` bytes sent this way already
    /// wait, and where these are more than that.
    pub fn send(&self, connection: ConnectionId, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        match self.core.registry.mailbox(connection) {
            Some(mailbox) => mailbox.send(bytes.as_ref()),
            None => Err(SendError::Closed),
        }
    }

    /// Has a connection closed once what was sent to it is flushed, without waiting for its tasks. Returns at
    /// once; `false` if it was closed, closing or never there.
    pub fn close(&self, connection: ConnectionId) -> bool {
        self.core.registry.mailbox(connection).is_some_and(|mailbox| mailbox.close())
    }

    /// The address the server listens on, with the port it got where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.core.local_addr
    }

    /// The connections that are open or closing, in no order.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.core.registry.connections()
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").field("local_addr", &self.core.local_addr).finish_non_exhaustive()
    }
}

/// In a server, where the task came from.
impl<T, R> TaskInfo<T, R, ServerHandle> {
    /// The connection that is to hear of the task. It may be closed by now.
    pub fn connection_id(&self) -> ConnectionId {
        ConnectionId(self.submitter())
    }

    /// The server.
    pub fn server(&self) -> &ServerHandle {
        self.origin()
    }
}
