//! Packet sockets: UDP, a thread for each socket, and tasks from there.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::handle::ServerHandle;
use super::lifecycle::Phase;
use super::service::Service;
use super::workers::Counted;
use crate::error::{TaskError, TaskFailure};
use crate::logging::{LogLimit, foreign};
use crate::net::{Address, Datagrams, Sleeper, Waker};
use crate::panic::catch;
use crate::task::{Finished, Port, TaskCallbacks, TaskId, TaskOptions, Wake, With};

/// The largest datagram there is.
const LARGEST: usize = 64 * 1024;
/// At most so many outcomes are delivered, and packets received, before the other has its turn.
const BATCH: usize = 64;

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
    fn send(&self, datagrams: &Datagrams, address: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        datagrams.send_to(address, bytes)?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl<T, R> PacketSocket<T, R> {
    /// Sends a datagram. Never blocks. An error of kind [`WouldBlock`](io::ErrorKind::WouldBlock) where the kernel's
    /// buffer is full, and others of the system, as for a datagram that is too large.
    pub fn send_to(&self, address: SocketAddr, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.shared.send(&self.datagrams, address, bytes.as_ref())
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

    pub(super) fn send_to(&self, address: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let fits = |socket: &&Arc<Shared>| socket.local_addr.is_ipv4() == address.is_ipv4();
        match self.0.iter().find(fits).and_then(|socket| Some((socket, socket.datagrams.upgrade()?))) {
            Some((socket, datagrams)) => socket.send(&datagrams, address, bytes),
            None => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "no packet socket of that family is open")),
        }
    }

    pub(super) fn wake_all(&self) {
        for socket in &self.0 {
            socket.waker.wake();
        }
    }
}

/// Serves one packet socket until the server shuts down and its outcomes are delivered.
pub(super) fn serve_packets<T, R, S>(service: &Service<T, R, S>, idle: IdleSocket)
where
    T: Send + 'static,
    R: Send + 'static,
    S: 'static,
{
    let IdleSocket { datagrams, shared, sleeper } = idle;
    let wake: Arc<dyn Wake> = Arc::clone(sleeper.waker()) as _;
    let server = ServerHandle { core: Arc::clone(&service.core) };
    let socket = PacketSocket { datagrams, shared, port: service.pool.port(wake, service.port_config()), server };
    let mut worker = PacketWorker {
        service,
        socket,
        sleeper,
        buffer: vec![0; LARGEST],
        callbacks: TaskCallbacks::default(),
        log: LogLimit::default(),
    };
    while worker.turn() {}
    worker.socket.port.end();
}

struct PacketWorker<'a, T: Send + 'static, R: Send + 'static, S> {
    service: &'a Service<T, R, S>,
    socket: PacketSocket<T, R>,
    sleeper: Sleeper,
    buffer: Vec<u8>,
    callbacks: TaskCallbacks<R, PacketSocket<T, R>>,
    log: LogLimit,
}

impl<T: Send + 'static, R: Send + 'static, S> PacketWorker<'_, T, R, S> {
    /// False if that was the last.
    fn turn(&mut self) -> bool {
        let phase = self.service.core.lifecycle.phase();
        let port = &mut self.socket.port;
        port.open = phase == Phase::Serving;
        port.forget_time();
        port.time_out();
        self.deliver();
        let port = &mut self.socket.port;
        match phase {
            Phase::Serving => {}
            Phase::Draining if port.in_flight() == 0 => return false,
            Phase::Expired if !port.has_message() => return false,
            _ => {}
        }
        let receive = phase == Phase::Serving && !port.should_pause();
        if !(receive && self.receive()) {
            self.sleep(phase, receive);
        }
        true
    }

    fn deliver(&mut self) {
        for _ in 0..BATCH {
            let Some(delivery) = self.socket.port.next() else { break };
            let callbacks = &self.callbacks;
            let socket = &mut self.socket;
            let returned = catch(|| Port::run(delivery, socket, |socket| &mut socket.port, callbacks));
            if !matches!(returned, Ok(Ok(()))) {
                self.socket.port.ledger().finish_errors.add(1);
            }
            self.log_failure("a finish closure", returned);
        }
    }

    /// False if there are no more packets for now.
    fn receive(&mut self) -> bool {
        for _ in 0..BATCH {
            let (len, from) = match self.socket.datagrams.receive(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // What an earlier datagram met on its way, mostly: nobody there.
                Err(error) => {
                    log::debug!("packet socket: {error}");
                    continue;
                }
            };
            self.socket.shared.received.fetch_add(1, Ordering::Relaxed);
            let Some(on_packet) = &self.service.on_packet else { continue };
            let (socket, data) = (&mut self.socket, &self.buffer[..len]);
            let returned = catch(|| on_packet(socket, from, data));
            self.log_failure("on_packet", returned);
            if self.socket.port.should_pause() {
                break;
            }
        }
        true
    }

    fn sleep(&mut self, phase: Phase, receive: bool) {
        // Marked first and looked second; whoever has something for us pushes first and looks at the mark second.
        self.sleeper.mark_asleep();
        let port = &self.socket.port;
        if port.has_message() || self.service.core.lifecycle.phase() != phase {
            return self.sleeper.mark_awake();
        }
        let timeout = port.next_deadline().map(|at| at.saturating_duration_since(Instant::now()));
        let source = receive.then(|| self.socket.datagrams.as_fd());
        if let Err(error) = self.sleeper.sleep(source, true, false, timeout) {
            log::error!("packet socket: cannot wait: {error}");
            // Without `poll` there is nothing to wait on, and trying again at once would spin.
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn log_failure(&self, what: &str, returned: Result<anyhow::Result<()>, String>) {
        let failure = match returned {
            Ok(Ok(())) => return,
            Ok(Err(error)) => format!("failed: {}", foreign(format_args!("{error:#}"))),
            Err(message) => format!("panicked: {}", foreign(message)),
        };
        if let Some(held_back) = self.log.permit() {
            let address = self.socket.local_addr();
            log::warn!("packet socket {address}: {what} {failure} ({held_back} more since the last line)");
        }
    }
}

/// Runs on the thread of a packet socket, for each datagram.
pub(super) type OnPacket<T, R> =
    Box<dyn Fn(&mut PacketSocket<T, R>, SocketAddr, &[u8]) -> anyhow::Result<()> + Send + Sync>;

/// Starts the thread of a packet socket.
pub(super) type StartPackets = Box<dyn Fn(IdleSocket) -> io::Result<()> + Send>;

/// Starts the thread of one.
pub(super) fn start<T, R, S>(service: &Arc<Service<T, R, S>>, idle: IdleSocket) -> io::Result<()>
where
    T: Send + 'static,
    R: Send + 'static,
    S: 'static,
{
    let counted = Counted::new(&service.core);
    let service = Arc::clone(service);
    let name = format!("backroom-udp-{}", idle.shared.local_addr.port());
    let run = move || {
        service.core.claim_thread();
        if let Err(message) = catch(|| serve_packets(&service, idle)) {
            log::error!("a packet socket panicked outside its callbacks: {}", foreign(message));
        }
        drop(service);
        drop(counted);
    };
    std::thread::Builder::new().name(name).spawn(run).map(drop)
}
