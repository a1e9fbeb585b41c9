//! The front of house: accepts clients, gives each a worker, and ends in good order. Knows tasks only through a
//! `Port` and the pool it comes from.
//!
//! The way of a client: a `listener` is opened into an `entrance`, where the `acceptor` takes a place for it (`places`)
//! and asks whether its address may come (`admission`); `workers` finds it a thread (`idle_threads`); `worker` serves it
//! from the proxy's header (`proxy`) and the handshake to its end, and lends callbacks its `connection`, which is a
//! session and a `link`.
//!
//! The way of everybody else to it: a `handle` or a `remote` finds it in the `registry` and leaves something in its
//! `mailbox`. `packets` is the same house for datagrams. What all of them share is in `core` and `service`; `builder`
//! and `settings` put it together, and `lifecycle` ends it.

mod acceptor;
mod admission;
mod broadcast;
mod buffered;
mod builder;
mod close_reason;
mod connection;
mod connection_info;
mod core;
mod entrance;
mod handle;
mod idle_threads;
mod inherited;
mod lifecycle;
mod limits;
mod link;
mod listener;
mod mailbox;
mod packets;
mod places;
mod proxy;
mod refused;
mod registry;
mod remote;
mod running;
mod service;
mod settings;
mod stats;
mod tally;
mod timers;
mod worker;
mod workers;

use std::fmt;
use std::io;
use std::sync::Arc;

use self::core::Core;
use acceptor::Acceptor;
use builder::{OnHandle, OnShutdown};
use packets::{IdleSocket, StartPackets};
use workers::Counted;

pub use broadcast::Broadcast;
pub use builder::{ServerBuilder, stage};
pub use close_reason::{CloseReason, Timeout};
pub use connection::Connection;
pub use connection_info::{ConnectionId, ConnectionInfo, Connections};
pub use handle::ServerHandle;
pub use inherited::Inherited;
pub use lifecycle::ShutdownReport;
pub use limits::Limits;
pub use link::Link;
pub use listener::Listener;
pub use packets::PacketSocket;
pub use proxy::ProxyProtocol;
pub use remote::Remote;
pub use stats::{ClosedStats, RefusedStats, Stats, Traffic};
pub use timers::TimerId;

use crate::error::{JoinError, RunError};
use crate::net::{Address, Waker};
use crate::new_thread::NewThread;
use crate::stack::DEFAULT_STACK;
use crate::stats::TaskStats;
use crate::task::{Pool, Wake};
use crate::times::TaskTimes;

/// A server that is bound to its address and has its task workers; [`run`](Self::run) serves.
///
/// Dropped without having run, it gives back its port and its threads.
#[must_use]
pub struct Server {
    core: Arc<Core>,
    doors: Doors,
    back_room: Arc<dyn BackRoom>,
    hooks: RunHooks,
    /// Last, so that those who wait for the end hear of it when all is gone.
    ending: Ending,
}

/// What `run` calls.
struct RunHooks {
    on_start: Option<OnHandle>,
    before_shutdown: Option<OnHandle>,
    on_shutdown: Option<OnShutdown>,
}

/// Where clients come in, before their threads run.
struct Doors {
    acceptors: Vec<Acceptor>,
    idle_sockets: Vec<IdleSocket>,
    start_packets: StartPackets,
}

impl Doors {
    /// Starts a thread for each, until one cannot be started.
    fn open(self, core: &Arc<Core>) -> io::Result<()> {
        self.idle_sockets.into_iter().try_for_each(self.start_packets)?;
        (1..).zip(self.acceptors).try_for_each(|(number, acceptor)| {
            let counted = Counted::new(core);
            let run = move || {
                acceptor.run();
                drop(counted);
            };
            NewThread::reserve(DEFAULT_STACK)?.start(format!("br-acceptor-{number}"), run).map(drop)
        })
    }
}

/// What a server needs of its task pool, whatever the types of its tasks.
trait BackRoom: Send + Sync {
    fn drain(&self);
    fn end(&self);
    fn loops(&self) -> usize;
    fn is_at_rest(&self) -> bool;
    fn abandon(&self);
    fn recycle(&self);
    fn stats(&self) -> TaskStats;
    fn times(&self) -> Option<TaskTimes>;
}

impl<T: Send + 'static, R: Send + 'static> BackRoom for Pool<T, R> {
    fn drain(&self) {
        Pool::drain(self);
    }

    fn end(&self) {
        Pool::end(self);
    }

    fn loops(&self) -> usize {
        Pool::loops(self)
    }

    fn is_at_rest(&self) -> bool {
        Pool::is_at_rest(self)
    }

    fn abandon(&self) {
        Pool::abandon(self);
    }

    fn recycle(&self) {
        Pool::recycle(self);
    }

    fn stats(&self) -> TaskStats {
        Pool::stats(self)
    }

    fn times(&self) -> Option<TaskTimes> {
        Pool::times(self)
    }
}

/// A server that ends without a report never ran.
struct Ending(Arc<Core>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lifecycle.end(Err(JoinError::NeverRan));
    }
}

impl Wake for Waker {
    fn wake(&self) -> bool {
        self.wake_fenced()
    }
}

impl Server {
    /// A server to be put together.
    pub fn builder<T, R>() -> ServerBuilder<T, R> {
        ServerBuilder::new()
    }

    fn new(core: Arc<Core>, doors: Doors, back_room: Arc<dyn BackRoom>, hooks: RunHooks) -> Server {
        Server { doors, back_room, hooks, ending: Ending(Arc::clone(&core)), core }
    }

    /// A handle to this server, for other threads.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle { core: Arc::clone(&self.core) }
    }

    /// The address of the first listener, with the port it got where 0 was asked for; of the first UDP socket where there
    /// is no listener.
    pub fn local_addr(&self) -> Address {
        self.core.local_addr().clone()
    }

    /// The addresses of all listeners, and then of all UDP sockets, in the order in which they were given; one given to
    /// `bind` is the first.
    pub fn local_addrs(&self) -> &[Address] {
        self.core.local_addrs()
    }

    /// Serves until [`ServerHandle::shutdown`] is called and its work is done; blocks for all that time. What is not
    /// done at the shutdown's deadline has some 250 ms more to be delivered as abandoned, and then `on_shutdown` as much.
    ///
    /// Nothing of the program's own runs on the thread that calls this, so nothing keeps it beyond that: a hook that does
    /// not return is left to itself, and [named](ShutdownReport::hooks_running) in the report.
    pub fn run(self) -> Result<ShutdownReport, RunError> {
        // `_ending` comes first, so that it is dropped last.
        let Server { ending: _ending, core, doors, back_room, hooks } = self;
        running::run(core, doors, back_room, hooks)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("local_addrs", &self.local_addrs()).finish_non_exhaustive()
    }
}
