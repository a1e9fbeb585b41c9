//! What all threads of one server share.

use std::any::TypeId;
use std::sync::{Arc, OnceLock, Weak};
use std::time::SystemTime;

use super::BackRoom;
use super::broadcast::{Broadcast, Helpers};
use super::connection_info::ConnectionId;
use super::lifecycle::Lifecycle;
use super::packets::PacketSockets;
use super::places::Places;
use super::registry::{Entry, Registry};
use crate::logging::{LogLimit, foreign};
use crate::net::Address;
use crate::observer::{MaybeObserver, Observer};
use crate::own_threads::OwnThreads;
use crate::panic::catch;
use crate::stats::Books;
use crate::task::Wake;

/// Whatever the types of the server's tasks.
pub(super) struct Core {
    pub(super) threads: OwnThreads,
    /// What its callbacks are given.
    pub(super) connection_type: TypeId,
    pub(super) started_at: SystemTime,
    /// Of the listeners and the packet sockets, as they were given.
    local_addrs: Vec<Address>,
    pub(super) packets: PacketSockets,
    pub(super) lifecycle: Lifecycle,
    pub(super) places: Arc<Places>,
    pub(super) registry: Arc<Registry>,
    pub(super) helpers: Helpers,
    pub(super) books: Arc<Books>,
    callback_log: LogLimit,
    client_log: LogLimit,
    pub(super) observer: MaybeObserver,
    /// The task pool, once there is one. It holds this, so this does not hold it.
    pub(super) back_room: OnceLock<Weak<dyn BackRoom>>,
}

impl Core {
    pub(super) fn new(
        connection_type: TypeId,
        local_addrs: Vec<Address>,
        packets: PacketSockets,
        places: Places,
        registry: Registry,
        lifecycle: Lifecycle,
        observer: Option<Arc<dyn Observer>>,
    ) -> Core {
        let threads = OwnThreads::new();
        Core {
            observer: MaybeObserver::new(observer, &threads),
            threads,
            connection_type,
            started_at: SystemTime::now(),
            local_addrs,
            packets,
            lifecycle,
            places: Arc::new(places),
            registry: Arc::new(registry),
            helpers: Helpers::new(),
            books: Arc::new(Books::default()),
            callback_log: LogLimit::default(),
            client_log: LogLimit::default(),
            back_room: OnceLock::new(),
        }
    }

    /// Runs a callback whose failure changes nothing.
    pub(super) fn run_hook(&self, name: &str, hook: impl FnOnce() -> anyhow::Result<()>) {
        match catch(hook) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("{name} failed: {}", foreign(format_args!("{error:#}"))),
            Err(message) => log::error!("{name} panicked: {}", foreign(message)),
        }
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

    /// Logs what a client has done wrong. `what` is fit for a log already.
    pub(super) fn log_client(&self, id: ConnectionId, what: &str) {
        if let Some(held_back) = self.client_log.permit() {
            log::info!("connection {id}: {what} ({held_back} more of the kind since the last line)");
        }
    }

    pub(super) fn local_addr(&self) -> &Address {
        // There is one, or there would be no server.
        &self.local_addrs[0]
    }

    pub(super) fn local_addrs(&self) -> &[Address] {
        &self.local_addrs
    }

    /// Returns when it is on its way to all of them.
    pub(super) fn broadcast(&self, to: &[Arc<Entry>], bytes: &[u8]) -> Broadcast {
        self.helpers.send_to_all(to, bytes, &self.registry.buffered)
    }

    /// Has every thread look in which phase the server is.
    pub(super) fn wake_all(&self) {
        self.places.interrupt_acceptors();
        self.registry.wake_all();
        self.packets.wake_all();
    }
}

impl Wake for Core {
    fn wake(&self) -> bool {
        self.lifecycle.notify();
        true
    }
}
