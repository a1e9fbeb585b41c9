//! Packet sockets: UDP, and tasks from there.

mod worker;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

pub(super) use worker::start;

use super::handle::ServerHandle;
use crate::error::{TaskError, TaskFailure};
use crate::net::{Address, Datagrams, PacketPeer, Sleeper, Waker};
use crate::task::{Finished, Port, TaskId, TaskOptions, With};

/// A UDP socket, as [`on_packet`](crate::ServerBuilder::on_packet) sees it. It belongs to a thread of its own and is
/// lent to one callback at a time; so are its tasks' finish closures.
///
/// ```
/// # fn main() -> Result<(), backroom::BindError> {
/// let server = backroom::Server::builder()
///     .on_task(|_cx, question: String| Ok(format!("{question} -> OK")))
///     .on_packet(|socket, from, data| {
///         let question = String::from_utf8_lossy(data).into_owned();
///         socket.task_then(question, move |socket, done| Ok(socket.send_to(from, done.into_result()?)?))?;
///         Ok(())
///     })
///     .listen_udp("127.0.0.1:0")
///     .build()?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
pub struct PacketSocket<T, R> {
    datagrams: Arc<Datagrams>,
    shared: Arc<Shared>,
    port: Port<T, R, PacketSocket<T, R>>,
    server: ServerHandle,
}

/// What other threads use of it too.
struct Shared {
    /// Gone once its thread has ended, so that a handle to the server keeps no port.
    datagrams: Weak<Datagrams>,
    local_addr: SocketAddr,
    waker: Arc<Waker>,
    received: AtomicU64,
    sent: AtomicU64,
}

impl Shared {
    fn send(&self, datagrams: &Datagrams, peer: PacketPeer, bytes: &[u8]) -> io::Result<()> {
        datagrams.send_to(peer, bytes)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the packet socket on {}", self.local_addr)
    }
}

impl<T, R> PacketSocket<T, R> {
    /// Sends a datagram: to the sender of another, from the address that this was sent to, or to any address. Never
    /// blocks. An error of kind [`WouldBlock`](io::ErrorKind::WouldBlock) where the kernel's
    /// buffer is full, and others of the system, as for a datagram that is too large.
    pub fn send_to(&self, peer: impl Into<PacketPeer>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.shared.send(&self.datagrams, peer.into(), bytes.as_ref())
    }

    /// The address of this socket.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local_addr
    }

    /// The server.
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }
}

/// Tasks. What they do and when they are refused is as for a [`Connection`](crate::Connection); packets that come while
/// the queue is full are left to the kernel, which drops them when its buffer is.
impl<T: Send + 'static, R: Send + 'static> PacketSocket<T, R> {
    /// How many tasks of this socket have no outcome delivered yet.
    pub fn tasks_in_flight(&self) -> usize {
        self.port.in_flight()
    }

    /// All the ways of submitting a task, with options; see [`Connection::with`](crate::Connection::with). A plain
    /// `task` is one whose outcome nobody hears, since `on_finish` is for connections.
    pub fn with(&mut self, options: TaskOptions<T>) -> With<'_, T, R, PacketSocket<T, R>> {
        With::new(&mut self.port, Some(options), None)
    }

    fn plain(&mut self) -> With<'_, T, R, PacketSocket<T, R>> {
        With::new(&mut self.port, None, None)
    }

    /// Hands over a task with a finish closure, which runs on this socket's thread; see
    /// [`Connection::task_then`](crate::Connection::task_then).
    pub fn task_then<F>(&mut self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnOnce(&mut PacketSocket<T, R>, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        self.plain().task_then(data, finish)
    }

    /// Hands over a task of whose outcome nobody hears; see
    /// [`Connection::task_oneway`](crate::Connection::task_oneway).
    pub fn task_oneway(&mut self, data: T) -> Result<TaskId, TaskError> {
        self.plain().task_oneway(data)
    }

    /// Runs a closure on a task worker, and `finish` with what it returned on this socket's thread; see
    /// [`Connection::run`](crate::Connection::run).
    pub fn run<X, W, F>(&mut self, work: W, finish: F) -> Result<TaskId, TaskError>
    where
        X: Send + 'static,
        W: FnOnce() -> X + Send + 'static,
        F: FnOnce(&mut PacketSocket<T, R>, Result<X, TaskFailure>) -> anyhow::Result<()> + 'static,
    {
        self.plain().run(work, finish)
    }

    /// Cancels a task; see [`Connection::cancel`](crate::Connection::cancel).
    pub fn cancel(&mut self, task: TaskId) -> bool {
        self.port.cancel(task)
    }
}

impl<T, R> fmt::Debug for PacketSocket<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacketSocket").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

/// All packet sockets of a server.
#[derive(Default)]
pub(super) struct PacketSockets(Vec<Arc<Shared>>);

/// One that waits for its thread.
pub(super) struct IdleSocket {
    datagrams: Arc<Datagrams>,
    shared: Arc<Shared>,
    sleeper: Sleeper,
}

impl PacketSockets {
    pub(super) fn new(sockets: Vec<Datagrams>) -> io::Result<(PacketSockets, Vec<IdleSocket>)> {
        let mut idle = Vec::new();
        for datagrams in sockets {
            let sleeper = Sleeper::new()?;
            let datagrams = Arc::new(datagrams);
            let shared = Arc::new(Shared {
                datagrams: Arc::downgrade(&datagrams),
                local_addr: datagrams.local_addr(),
                waker: Arc::clone(sleeper.waker()),
                received: AtomicU64::new(0),
                sent: AtomicU64::new(0),
            });
            idle.push(IdleSocket { datagrams, shared, sleeper });
        }
        Ok((PacketSockets(idle.iter().map(|socket| Arc::clone(&socket.shared)).collect()), idle))
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.0.iter().map(|socket| socket.local_addr.into())
    }

    pub(super) fn received(&self) -> u64 {
        self.0.iter().map(|socket| socket.received.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn sent(&self) -> u64 {
        self.0.iter().map(|socket| socket.sent.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn send_to(&self, peer: PacketPeer, bytes: &[u8]) -> io::Result<()> {
        let open: Vec<_> = self.0.iter().filter_map(|socket| Some((&**socket, socket.datagrams.upgrade()?))).collect();
        let asked = open.iter().find(|(_, datagrams)| datagrams.is_asked_by(peer));
        match asked.or_else(|| open.iter().find(|(_, datagrams)| datagrams.reaches(peer.addr()))) {
            Some((socket, datagrams)) => socket.send(datagrams, peer, bytes),
            None => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no packet socket of that family is open")),
        }
    }

    pub(super) fn wake_all(&self) {
        for socket in &self.0 {
            socket.waker.wake();
        }
    }
}

/// Runs on the thread of a packet socket, for each datagram.
pub(super) type OnPacket<T, R> =
    Box<dyn Fn(&mut PacketSocket<T, R>, PacketPeer, &[u8]) -> anyhow::Result<()> + Send + Sync>;

/// Starts the thread of a packet socket.
pub(super) type StartPackets = Box<dyn Fn(IdleSocket) -> io::Result<()> + Send>;
