//! How a server is put together.

mod build;

use std::fmt;
use std::marker::PhantomData;
use std::net::{ToSocketAddrs, UdpSocket};
use std::sync::Arc;

use super::close_reason::{CloseReason, Timeout};
use super::connection::Connection;
use super::handle::ServerHandle;
use super::lifecycle::ShutdownReport;
use super::listener::{Listener, TcpAddresses};
use super::packets::{OnPacket, PacketSocket};
use super::service::{Callbacks, MakeSession, OnReceive};
use crate::config::Config;
use crate::net::{Address, PacketPeer};
use crate::observer::Observer;
use crate::task::{Finished, OnTask, Progress, StateHooks, TaskContext, TaskId};

/// How far a [`ServerBuilder`] has come.
pub mod stage {
    /// No callback is set yet: `session` and `task_worker` can be called.
    #[derive(Debug)]
    pub enum State {}
    /// A callback is set, so the types of the states are settled.
    #[derive(Debug)]
    pub enum Callbacks {}
}

pub(super) type OnHandle = Box<dyn FnOnce(&ServerHandle) -> anyhow::Result<()> + Send>;
pub(super) type OnShutdown = Box<dyn FnOnce(&ShutdownReport) -> anyhow::Result<()> + Send>;

/// Puts a server together; from [`Server::builder`](crate::Server::builder).
///
/// `T` is what a task is given and `R` what it returns; both are inferred from the closures. `S` is the state of
/// a connection, `W` that of a task worker; they are set first, by [`session`](Self::session) and
/// [`task_worker`](Self::task_worker), because the callbacks use them. Every callback is `Fn` and shared by all
/// threads: what they change belongs in `S` or `W`, or behind a lock.
#[must_use]
pub struct ServerBuilder<T, R, S = (), W = (), Stage = stage::State> {
    pub(crate) config: Config,
    pub(super) listens_at: ListensAt,
    hooks: ServerHooks,
    session: MakeSession<S>,
    task_worker: StateHooks<W>,
    on_task: Option<OnTask<T, R, W, ServerHandle>>,
    on_receive: Option<OnReceive<T, R, S>>,
    on_packet: Option<OnPacket<T, R>>,
    callbacks: Callbacks<T, R, S>,
    stage: PhantomData<Stage>,
}

/// Where clients come in.
#[derive(Default)]
pub(super) struct ListensAt {
    listeners: Vec<Listener>,
    udp: Vec<UdpAt>,
}

enum UdpAt {
    Addresses(TcpAddresses),
    Open(UdpSocket),
}

/// What is told of the server as a whole.
#[derive(Default)]
struct ServerHooks {
    observer: Option<Arc<dyn Observer>>,
    on_start: Option<OnHandle>,
    before_shutdown: Option<OnHandle>,
    on_shutdown: Option<OnShutdown>,
}

impl<T, R> ServerBuilder<T, R> {
    pub(super) fn new() -> Self {
        let (session, task_worker) = (Box::new(|_: &Address| ()), StateHooks::new(|_| Ok(())));
        ServerBuilder::with_states(
            Config::default(),
            ListensAt::default(),
            ServerHooks::default(),
            session,
            task_worker,
        )
    }
}

impl<T, R, S, W> ServerBuilder<T, R, S, W> {
    fn with_states(
        config: Config,
        listens_at: ListensAt,
        hooks: ServerHooks,
        session: MakeSession<S>,
        task_worker: StateHooks<W>,
    ) -> ServerBuilder<T, R, S, W> {
        ServerBuilder {
            config,
            listens_at,
            hooks,
            session,
            task_worker,
            on_task: None,
            on_receive: None,
            on_packet: None,
            callbacks: Callbacks::default(),
            stage: PhantomData,
        }
    }
}

/// The states. They come before the callbacks.
impl<T, R, S, W> ServerBuilder<T, R, S, W> {
    /// Makes the state of a connection, given the address of its client, on the worker that will own it; so `S`
    /// need not be `Send`. If it panics, that connection is closed, without `on_close`. It runs for a client too whose
    /// TLS handshake or proxy's header has failed, since `on_close` is told of that.
    pub fn session<S2>(self, make: impl Fn(&Address) -> S2 + Send + Sync + 'static) -> ServerBuilder<T, R, S2, W> {
        ServerBuilder::with_states(self.config, self.listens_at, self.hooks, Box::new(make), self.task_worker)
    }

    /// Makes the state of a task worker, given its index: a database connection, say. It runs on the thread that
    /// will own the state, so `W` need not be `Send`. Swoole's `WorkerStart` event, for task workers.
    ///
    /// If one cannot be made at the start, that is an error from `bind`. After a task has panicked the state is
    /// made anew; if that fails, it is tried again after 100 ms, 200 ms, … up to 10 s, while the other task
    /// workers serve.
    pub fn task_worker<W2>(
        self,
        make: impl Fn(usize) -> anyhow::Result<W2> + Send + Sync + 'static,
    ) -> ServerBuilder<T, R, S, W2> {
        ServerBuilder::with_states(self.config, self.listens_at, self.hooks, self.session, StateHooks::new(make))
    }
}

/// The events of the server itself.
impl<T, R, S, W, Stage> ServerBuilder<T, R, S, W, Stage> {
    /// Is told what happens; replaces one given before.
    pub fn observer(mut self, observer: Arc<impl Observer + 'static>) -> Self {
        self.hooks.observer = Some(observer);
        self
    }

    /// Is given the state of a task worker when that gives it up: at the end, or to renew it; not after a panic, which
    /// may have left it half changed. Runs on the thread that owns the state. Set it after `task_worker`, which drops
    /// it. Swoole's `WorkerStop`, for task workers.
    pub fn task_worker_stop(mut self, stop: impl Fn(usize, W) + Send + Sync + 'static) -> Self {
        self.task_worker.stop = Some(Box::new(stop));
        self
    }

    /// Runs once on a thread of its own, before the first client is accepted. An error ends `run`; where it has not
    /// returned by the deadline of a shutdown, no client is accepted. Swoole's `Start`.
    pub fn on_start(mut self, callback: impl FnOnce(&ServerHandle) -> anyhow::Result<()> + Send + 'static) -> Self {
        self.hooks.on_start = Some(Box::new(callback));
        self
    }

    /// Runs once on a thread of its own, when a shutdown has been asked for and before it begins: everything still
    /// serves, and can be told. Its time counts towards the deadline, at which it is waited for no longer; but it has 250
    /// ms in any case. An error is logged. Swoole's `BeforeShutdown`.
    pub fn before_shutdown(
        mut self,
        callback: impl FnOnce(&ServerHandle) -> anyhow::Result<()> + Send + 'static,
    ) -> Self {
        self.hooks.before_shutdown = Some(Box::new(callback));
        self
    }

    /// Runs once on a thread of its own, after everything has ended but what the report says still runs. `run` waits for
    /// it until the deadline, or for 250 ms if that is later. An error is logged. Swoole's `Shutdown`.
    pub fn on_shutdown(
        mut self,
        callback: impl FnOnce(&ShutdownReport) -> anyhow::Result<()> + Send + 'static,
    ) -> Self {
        self.hooks.on_shutdown = Some(Box::new(callback));
        self
    }
}

/// Where clients come in. What is said here comes on top of what was said before.
impl<T, R, S, W, Stage> ServerBuilder<T, R, S, W, Stage> {
    /// Listens there too. Swoole's `listen` and `addListener`.
    pub fn listen(mut self, listener: impl Into<Listener>) -> Self {
        self.listens_at.listeners.push(listener.into());
        self
    }

    /// Receives datagrams there, for [`on_packet`](Self::on_packet); on a thread of its own. Of the
    /// [`socket_options`](Self::socket_options), those of TCP are ignored. A name is resolved here, which may
    /// block; an address that cannot be resolved or bound is an error of `build`.
    pub fn listen_udp(mut self, address: impl ToSocketAddrs + fmt::Debug) -> Self {
        self.listens_at.udp.push(UdpAt::Addresses(TcpAddresses::of(address)));
        self
    }

    /// Receives datagrams on a socket that is bound already.
    pub fn listen_udp_socket(mut self, socket: UdpSocket) -> Self {
        self.listens_at.udp.push(UdpAt::Open(socket));
        self
    }
}

/// The callbacks. All but `on_task` and `on_packet` run on the worker of their connection, one at a time; a panic in one closes
/// that connection and nothing else.
impl<T, R, S, W, Stage> ServerBuilder<T, R, S, W, Stage> {
    fn settled(self) -> ServerBuilder<T, R, S, W, stage::Callbacks> {
        ServerBuilder {
            config: self.config,
            listens_at: self.listens_at,
            hooks: self.hooks,
            session: self.session,
            task_worker: self.task_worker,
            on_task: self.on_task,
            on_receive: self.on_receive,
            on_packet: self.on_packet,
            callbacks: self.callbacks,
            stage: PhantomData,
        }
    }

    /// Runs when a client has connected. An error flushes and closes the connection. Swoole's `Connect`.
    pub fn on_connect<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut Connection<T, R, S>) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.on_connect = Some(Box::new(callback));
        builder
    }

    /// Runs for each frame a client has sent; required. An error flushes and closes the connection. Swoole's
    /// `Receive`.
    ///
    /// It should not do slow work: that is what [`task`](crate::Link::task) is for. Where it calls methods of a
    /// task's result, as in a finish closure, `R` must be known before: set `on_task` first then, with the type of
    /// its payload annotated.
    pub fn on_receive<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut Connection<T, R, S>, &[u8]) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.on_receive = Some(Box::new(callback));
        builder
    }

    /// Runs for each task, on one of `task_worker_num` threads; required. What it returns, or that it panicked,
    /// becomes the task's [`Outcome`](crate::Outcome). Swoole's `Task`.
    pub fn on_task<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut TaskContext<T, R, W, ServerHandle>, T) -> anyhow::Result<R> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.on_task = Some(Box::new(callback));
        builder
    }

    /// Runs for the outcome, and for each result before it, of each task that was not given a finish closure of its
    /// own, on the worker that submitted it. An error is logged and counted. Swoole's `Finish`.
    pub fn on_finish<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut Connection<T, R, S>, Finished<R>) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.tasks.on_finish = Some(Box::new(callback));
        builder
    }

    /// Runs when a task of this connection has said [how far it has come](crate::TaskInfo::progress), with the latest
    /// of what it said. An error is logged and counted with those of finish closures.
    pub fn on_progress<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut Connection<T, R, S>, TaskId, Progress) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.tasks.on_progress = Some(Box::new(callback));
        builder
    }

    /// Runs when a connection's outbox has passed its [high watermark](crate::Limits::watermarks): its client takes less
    /// than it is sent. An error is logged. Swoole's `BufferFull`.
    pub fn on_high_watermark<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut Connection<T, R, S>) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.on_high_watermark = Some(Box::new(callback));
        builder
    }

    /// Runs when the outbox is down to its [low watermark](crate::Limits::watermarks) after that. An error is logged.
    /// Swoole's `BufferEmpty`.
    pub fn on_low_watermark<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut Connection<T, R, S>) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.on_low_watermark = Some(Box::new(callback));
        builder
    }

    /// Runs when a [time is over](crate::Timeout) and its connection is about to close for it: it may send something, which
    /// is flushed before. Not for [`Timeout::Handshake`], before which nothing can be sent,
    /// nor for [`Timeout::Write`], after which the client takes nothing. An error is logged.
    ///
    /// ```
    /// use backroom::{Framing, Timeout};
    ///
    /// # fn main() -> Result<(), backroom::BindError> {
    /// let server = backroom::Server::builder::<(), ()>()
    ///     .framing(Framing::lines())
    ///     .on_receive(|_conn, _line| Ok(()))
    ///     .on_task(|_cx, ()| Ok(()))
    ///     .on_timeout(|conn, timeout| match timeout {
    ///         Timeout::Frame => Ok(conn.send("too slow\n")?),
    ///         _ => Ok(conn.send("goodbye\n")?),
    ///     })
    ///     .bind("127.0.0.1:0")?;
    /// # drop(server);
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_timeout<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut Connection<T, R, S>, Timeout) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.on_timeout = Some(Box::new(callback));
        builder
    }

    /// Runs for each datagram that comes to one of the [UDP sockets](Self::listen_udp), on that socket's thread, with
    /// its [sender](PacketPeer), to whom an answer can be sent; required where there are any. An error and a panic are logged. Swoole's `Packet`.
    pub fn on_packet<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut PacketSocket<T, R>, PacketPeer, &[u8]) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.on_packet = Some(Box::new(callback));
        builder
    }

    /// Runs once when a connection has closed, whatever closed it (but not where `session` panicked: then there is no
    /// `Connection`); nothing can be sent any more. Where a TLS handshake failed or a proxy's header was missing it runs
    /// without an `on_connect` before. An error is logged. Swoole's `Close`.
    pub fn on_close<F>(self, callback: F) -> ServerBuilder<T, R, S, W, stage::Callbacks>
    where
        F: Fn(&mut Connection<T, R, S>, &CloseReason) -> anyhow::Result<()> + Send + Sync + 'static,
    {
        let mut builder = self.settled();
        builder.callbacks.on_close = Some(Box::new(callback));
        builder
    }
}

impl<T, R, S, W, Stage> fmt::Debug for ServerBuilder<T, R, S, W, Stage> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}
