//! From what the builder was told to a server that is bound and has its task workers.

use std::any::TypeId;
use std::fmt;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Weak};

use super::{ListensAt, ServerBuilder, ServerHooks, UdpAt};
use crate::config::Config;
use crate::error::BindError;
use crate::net::{Address, Datagrams, Sleeper};
use crate::own_threads::OwnThreads;
use crate::server::acceptor::{Acceptor, Hire};
use crate::server::connection::Connection;
use crate::server::core::Core;
use crate::server::handle::ServerHandle;
use crate::server::lifecycle::Lifecycle;
use crate::server::listener::{Listener, OpenListener};
use crate::server::packets::{self, PacketSockets, StartPackets};
use crate::server::places::Places;
use crate::server::registry::Registry;
use crate::server::service::Service;
use crate::server::workers::Workers;
use crate::server::{BackRoom, Doors, RunHooks, Server};
use crate::stack::with_room_for;
use crate::task::{Hooks, Pool, PoolConfig, StartError, Wake};

impl<T, R, S, W, Stage> ServerBuilder<T, R, S, W, Stage>
where
    T: Send + 'static,
    R: Send + 'static,
    S: 'static,
    W: 'static,
{
    /// Listens on `address`, beside what [`listen`](Self::listen) was given; otherwise as [`build`](Self::build).
    ///
    /// Where a name has several addresses, the first that can be listened on is taken.
    pub fn bind(mut self, address: impl ToSocketAddrs + fmt::Debug) -> Result<Server, BindError> {
        // The first, since it is the server's own address.
        self.listens_at.listeners.insert(0, Listener::tcp(address));
        self.build()
    }

    /// Listens, and starts the task workers. Blocks until each of these has made its state. A process that forks after
    /// this has none of the threads in its child: there, tasks wait for ever. Fork first. Clients can connect from
    /// here on; they are served once [`Server::run`] is called.
    ///
    /// An error where a setting cannot work, there is nowhere to listen, one of the addresses cannot be listened on, a
    /// required callback is missing (`on_task`; `on_receive` where there are listeners, `on_packet` where there are UDP
    /// sockets), or the task workers cannot be started.
    pub fn build(self) -> Result<Server, BindError> {
        self.config.check()?;
        let ListensAt { listeners, udp } = self.listens_at;
        let on_task = self.on_task.ok_or(BindError::Missing("on_task"))?;
        let on_receive = match self.on_receive {
            None if !listeners.is_empty() => return Err(BindError::Missing("on_receive")),
            on_receive => on_receive.unwrap_or_else(|| Box::new(|_, _| Ok(()))),
        };
        if self.on_packet.is_none() && !udp.is_empty() {
            return Err(BindError::Missing("on_packet"));
        }
        let ServerHooks { observer, on_start, before_shutdown, on_shutdown } = self.hooks;

        let stack_size = stack_size::<T, R, S>(&self.config);
        let max_connections = self.config.max_connections(stack_size);
        let mut open = Vec::new();
        for listener in listeners {
            let listener = listener.open(&self.config.listeners, max_connections)?;
            open.push((listener, Sleeper::new().map_err(BindError::Waker)?));
        }
        let (sockets, idle_sockets) = PacketSockets::new(open_udp(udp, &self.config)?).map_err(BindError::Waker)?;
        let addresses = addresses(&open, &sockets, max_connections)?;
        let wakers = open.iter().map(|(_, sleeper)| Arc::clone(sleeper.waker())).collect();
        let core = Arc::new(Core::new(
            TypeId::of::<Connection<T, R, S>>(),
            addresses,
            sockets,
            Places::new(max_connections, wakers),
            Registry::new(max_connections, self.config.connections.max_buffered()),
            Lifecycle::new(before_shutdown.is_some()),
            observer,
        ));
        let pool_config = self.config.tasks.pool(max_connections);
        let pool = start_pool(&pool_config, &core, Hooks { state: self.task_worker, on_task })?;
        let service = Arc::new(Service {
            core: Arc::clone(&core),
            config: self.config,
            stack_size,
            pool: Arc::clone(&pool),
            session: self.session,
            on_receive,
            on_packet: self.on_packet,
            callbacks: self.callbacks,
        });
        let workers: Arc<dyn Hire> = Arc::new(Workers::new(Arc::clone(&service)));
        let start_packets: StartPackets = Box::new(move |idle| packets::start(&service, idle));
        let acceptors = open
            .into_iter()
            .map(|(listener, sleeper)| Acceptor::new(Arc::clone(&core), listener, sleeper, Arc::clone(&workers)))
            .collect();
        let doors = Doors { acceptors, idle_sockets, start_packets };
        Ok(Server::new(core, doors, pool, RunHooks { on_start, before_shutdown, on_shutdown }))
    }
}

/// Of the threads on which its callbacks run.
fn stack_size<T, R, S>(config: &Config) -> usize {
    let values = [size_of::<T>(), size_of::<R>(), size_of::<S>()];
    with_room_for(&values, config.connections.worker_stack_size)
}

fn open_udp(places: Vec<UdpAt>, config: &Config) -> Result<Vec<Datagrams>, BindError> {
    let open = |at| match at {
        UdpAt::Addresses(addresses) => {
            addresses.first(|address| Datagrams::bind(address, &config.listeners.socket_options))
        }
        UdpAt::Open(socket) => Datagrams::open(socket).map_err(BindError::OpenSocket),
    };
    places.into_iter().map(open).collect()
}

/// Where clients can connect, which the log is told.
fn addresses(
    listeners: &[(OpenListener, Sleeper)],
    sockets: &PacketSockets,
    max_connections: usize,
) -> Result<Vec<Address>, BindError> {
    let mut addresses: Vec<Address> = Vec::new();
    for (listener, _) in listeners {
        listener.announce(max_connections);
        addresses.push(listener.socket.local_addr().clone());
    }
    for address in sockets.addresses() {
        log::info!("receiving datagrams on {address}");
        if address.ip().is_some_and(|ip| !ip.is_loopback()) {
            log::warn!("{address} is not of this machine alone, and datagrams are not encrypted");
        }
        addresses.push(address);
    }
    if addresses.is_empty() { Err(BindError::NoListener) } else { Ok(addresses) }
}

fn start_pool<T, R, W>(
    config: &PoolConfig,
    core: &Arc<Core>,
    hooks: Hooks<T, R, W, ServerHandle>,
) -> Result<Arc<Pool<T, R>>, BindError>
where
    T: Send + 'static,
    R: Send + 'static,
    W: 'static,
{
    let owner = Arc::clone(core) as Arc<dyn Wake>;
    let origin = ServerHandle { core: Arc::clone(core) };
    let threads = OwnThreads::of_pool_in(&core.threads);
    match Pool::start(config, threads, &core.books, hooks, origin, owner, core.observer.clone()) {
        Ok(pool) => {
            let pool = Arc::new(pool);
            let back_room = Arc::downgrade(&pool) as Weak<dyn BackRoom>;
            let _ = core.back_room.set(back_room);
            Ok(pool)
        }
        Err(StartError::Threads(message)) => Err(BindError::TaskWorkers(message)),
        Err(StartError::State { worker_index, error }) => Err(BindError::TaskWorkerState { worker_index, error }),
    }
}
