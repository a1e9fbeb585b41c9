//! What the rest of the program holds of a server.

use std::any::TypeId;
use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::broadcast::Broadcast;
use super::connection::Connection;
use super::connection_info::{ConnectionId, ConnectionInfo, Connections};
use super::core::Core;
use super::lifecycle::ShutdownReport;
use super::link::file_part;
use super::registry::Entry;
use super::remote::Remote;
use super::stats::Stats;
use crate::error::{JoinError, SendError, SendFileError};
use crate::net::{Address, PacketPeer};
use crate::stats::Whereabouts;
use crate::task::TaskInfo;
use crate::times::TaskTimes;

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
    /// Clients that wait in the kernel's backlog by then are answered what they have asked, or refused in good order where
    /// there is no place. Who connects between the last look there and the closing of the listener is reset by the kernel:
    /// for a restart without that, hand one listening socket from one process to the next
    /// ([`Inherited`](crate::Inherited), or a `TcpListener` given to [`listen`](crate::ServerBuilder::listen)), which stays
    /// open while either has it; or have Linux hand such clients on to another socket of the port
    /// (`net.ipv4.tcp_migrate_req=1`, with [`reuse_port`](crate::SocketOptions::reuse_port)).
    ///
    /// May be called anywhere, callbacks included, and again: the earliest deadline holds. As soon as a connection's
    /// worker knows of it, which is before its next outcome or batch of frames, `task` refuses there with
    /// [`TaskError::ShuttingDown`](crate::TaskError::ShuttingDown). A client that was active within the last second
    /// has up to a second to close its side.
    pub fn shutdown(&self, deadline: Duration) {
        self.core.lifecycle.begin_shutdown(deadline);
    }

    /// Blocks until the server has ended, for as long as that takes, and returns what
    /// [`Server::run`](crate::Server::run) does. An error in whatever this server runs of the program's own, which would
    /// wait for itself (a callback, a hook, an observer, what makes a repetition's payloads, the drop of one), and for a
    /// server that was dropped without having run.
    pub fn wait(&self) -> Result<ShutdownReport, JoinError> {
        if self.core.threads.have_this() {
            return Err(JoinError::InCallback);
        }
        self.core.lifecycle.wait_for_end()
    }

    /// What the server has done and is doing. Takes time in proportion to the open connections.
    pub fn stats(&self) -> Stats {
        let (places, registry) = (&self.core.places, &self.core.registry);
        Stats {
            started_at: self.core.started_at,
            connections: places.connections(),
            accepted_connections: places.accepted(),
            refused: registry.refused(),
            closed: registry.closed(),
            traffic: registry.traffic(),
            packets_received: self.core.packets.received(),
            packets_sent: self.core.packets.sent(),
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
    /// this way arrives in that order; what a callback sends to its own connection by
    /// [`Connection::send`](crate::Connection::send) may come first. An error where the connection is closed, where
    /// `max_outbox` bytes sent this way already wait, and where these are more than that.
    pub fn send(&self, connection: ConnectionId, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.entry(connection).ok_or(SendError::Closed)?.send(bytes.as_ref())
    }

    /// Sends a part of a file to a connection, in turn with what this thread sends to it otherwise; see
    /// [`Connection::send_file`](crate::Connection::send_file).
    pub fn send_file(
        &self,
        connection: ConnectionId,
        file: File,
        offset: u64,
        len: Option<u64>,
    ) -> Result<(), SendFileError> {
        let entry = self.entry(connection).ok_or(SendFileError::Closed)?;
        let Some(part) = file_part(&self.core.registry.files, entry.mailbox.files(), file, offset, len)? else {
            return Ok(());
        };
        entry.send_file(part).map_err(|error| match error {
            SendError::Closed => SendFileError::Closed,
            SendError::OutboxFull | SendError::TooLong => SendFileError::TooManyFiles,
        })
    }

    /// Sends `bytes` to every connection. However many these are, 256 bytes and more are kept once; fewer are copied for
    /// each that does not take them at once. Returns once they are on their way, which takes some microseconds for each
    /// connection, and says how many they were. Where there are thousands, more threads lend a hand meanwhile: with the
    /// caller's one for each 512, and for all broadcasts of a server no more than there are processors.
    ///
    /// ```
    /// # let server = backroom::Server::builder::<(), ()>()
    /// #     .on_receive(|_conn, _data| Ok(()))
    /// #     .on_task(|_cx, ()| Ok(()))
    /// #     .bind("127.0.0.1:0")?;
    /// # let handle = server.handle();
    /// let broadcast = handle.broadcast("the server closes in a minute\n");
    /// println!("told {}, and {} take nothing", broadcast.sent, broadcast.refused.len());
    /// # Ok::<(), backroom::BindError>(())
    /// ```
    pub fn broadcast(&self, bytes: impl AsRef<[u8]>) -> Broadcast {
        self.core.broadcast(&self.core.registry.all(), bytes.as_ref())
    }

    /// Sends `bytes` to those connections that `wanted` wants; otherwise as [`broadcast`](Self::broadcast).
    pub fn broadcast_to(&self, wanted: impl Fn(&ConnectionInfo) -> bool, bytes: impl AsRef<[u8]>) -> Broadcast {
        let mut entries = self.core.registry.all();
        entries.retain(|entry| wanted(&entry.info()));
        self.core.broadcast(&entries, bytes.as_ref())
    }

    /// Sends `bytes` to these connections, and twice to one that is named twice; otherwise as
    /// [`broadcast`](Self::broadcast).
    ///
    /// ```
    /// # let server = backroom::Server::builder::<(), ()>()
    /// #     .on_receive(|_conn, _data| Ok(()))
    /// #     .on_task(|_cx, ()| Ok(()))
    /// #     .bind("127.0.0.1:0")?;
    /// # let handle = server.handle();
    /// use backroom::SendError;
    ///
    /// // To all connections of a user; and who is so slow that no more may wait for it, is dropped.
    /// let told = handle.multicast(handle.connections_of("ann"), "you have mail\n");
    /// for (id, why) in told.refused {
    ///     if why == SendError::OutboxFull {
    ///         handle.abort(id);
    ///     }
    /// }
    /// # Ok::<(), backroom::BindError>(())
    /// ```
    pub fn multicast(&self, to: impl IntoIterator<Item = ConnectionId>, bytes: impl AsRef<[u8]>) -> Broadcast {
        let (open, closed) = self.core.registry.among(to);
        let mut told = self.core.broadcast(&open, bytes.as_ref());
        told.refused.extend(closed.into_iter().map(|id| (id, SendError::Closed)));
        told
    }

    /// Sends a datagram from the packet socket that this peer has sent one to, or else from the first that reaches its
    /// address; see [`PacketSocket::send_to`](crate::PacketSocket::send_to). An error of kind
    /// [`AddrNotAvailable`](io::ErrorKind::AddrNotAvailable) where there is none. Swoole's `sendto`.
    pub fn send_to(&self, peer: impl Into<PacketPeer>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.core.packets.send_to(peer.into(), bytes.as_ref())
    }

    /// Has a connection closed once what was sent to it is flushed, without waiting for its tasks. Returns at
    /// once; `false` if it was closed, closing or never there.
    pub fn close(&self, connection: ConnectionId) -> bool {
        self.entry(connection).is_some_and(|entry| entry.mailbox.close())
    }

    /// Has a connection closed at once, with a reset: what its client has not taken is lost. Returns at once; `false` if
    /// it was closed or never there. Swoole's `close` with `$reset`.
    pub fn abort(&self, connection: ConnectionId) -> bool {
        self.entry(connection).is_some_and(|entry| entry.mailbox.abort())
    }

    /// Has a connection not read for now; see [`Connection::pause`](crate::Connection::pause). `false` if it was closed,
    /// closing or never there, or too much waits for its worker.
    pub fn pause(&self, connection: ConnectionId) -> bool {
        self.entry(connection).is_some_and(|entry| entry.mailbox.pause(true))
    }

    /// Has a connection read again after a [`pause`](Self::pause). `false` likewise.
    pub fn resume(&self, connection: ConnectionId) -> bool {
        self.entry(connection).is_some_and(|entry| entry.mailbox.pause(false))
    }

    /// A handle that runs closures on the workers of this server's connections, if they are of these types:
    /// `Connection<T, R, S>`. A callback has one by [`Connection::remote`](crate::Connection::remote).
    ///
    /// ```
    /// # let server = backroom::Server::builder::<(), ()>()
    /// #     .session(|_peer| 0u32)
    /// #     .on_receive(|_conn, _data| Ok(()))
    /// #     .on_task(|_cx, ()| Ok(()))
    /// #     .bind("127.0.0.1:0")?;
    /// # let handle = server.handle();
    /// let remote = handle.remote::<(), (), u32>().expect("the types of this server");
    /// for connection in handle.connections() {
    ///     let _closed_meanwhile = remote.with_connection(connection.id, |conn| {
    ///         *conn.session_mut() += 1;
    ///         Ok(())
    ///     });
    /// }
    /// # Ok::<(), backroom::BindError>(())
    /// ```
    pub fn remote<T: 'static, R: 'static, S: 'static>(&self) -> Option<Remote<T, R, S>> {
        let is_of = self.core.connection_type == TypeId::of::<Connection<T, R, S>>();
        is_of.then(|| Remote::new(self))
    }

    /// The address of the first listener, with the port it got where 0 was asked for; of the first packet socket where
    /// there is no listener.
    pub fn local_addr(&self) -> Address {
        self.core.local_addr().clone()
    }

    /// The addresses of all listeners, and then of all packet sockets, in the order in which they were given.
    pub fn local_addrs(&self) -> &[Address] {
        self.core.local_addrs()
    }

    /// The connections that are open or closing: all, or those that are asked for.
    pub fn connections(&self) -> Connections<'_> {
        Connections::of(&self.core.registry)
    }

    /// A connection that is open or closing.
    pub fn connection(&self, id: ConnectionId) -> Option<ConnectionInfo> {
        Some(self.entry(id)?.info())
    }

    /// The connections that are [bound](crate::Connection::bind) to this user, by ascending id.
    pub fn connections_of(&self, user: &str) -> Vec<ConnectionId> {
        self.core.registry.of_user(user)
    }

    fn entry(&self, id: ConnectionId) -> Option<Arc<Entry>> {
        self.core.registry.get(id)
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle").field("local_addrs", &self.core.local_addrs()).finish_non_exhaustive()
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
