//! One connection, from its thread's first step to its last.

use std::sync::{Arc, Weak};
use std::time::Instant;

use super::Worker;
use super::clocks::Clocks;
use super::opening::open;
use crate::logging::foreign;
use crate::net::{Input, Outbox, Sleeper, Stream};
use crate::panic::{catch, drop_fenced};
use crate::patience::Patience;
use crate::server::admission::Admitted;
use crate::server::close_reason::CloseReason;
use crate::server::connection::Connection;
use crate::server::connection_info::ConnectionId;
use crate::server::entrance::Entrance;
use crate::server::handle::ServerHandle;
use crate::server::lifecycle::Phase;
use crate::server::link::{Link, LinkState, Wire};
use crate::server::listener::ListenerSettings;
use crate::server::mailbox::Mailbox;
use crate::server::places::Place;
use crate::server::registry::Entry;
use crate::server::service::Service;
use crate::server::tally::Tally;
use crate::server::timers::Timers;
use crate::task::Wake;

/// A client that was accepted, and what its worker needs. The order matters when it is dropped: first the socket, then
/// the place.
pub(in crate::server) struct Accepted {
    pub(in crate::server) stream: Stream,
    pub(in crate::server) settings: Arc<ListenerSettings>,
    /// Where the next may wait; gone once no more are accepted.
    pub(in crate::server) entrance: Weak<Entrance>,
    pub(in crate::server) admitted: Option<Admitted>,
    pub(in crate::server) place: Place,
}

/// Serves one connection from its first callback to its last.
pub(in crate::server) fn serve<T, R, S>(service: &Service<T, R, S>, accepted: Accepted, sleeper: &Sleeper)
where
    T: Send + 'static,
    R: Send + 'static,
    S: 'static,
{
    // First of all, so that they are dropped last.
    let Accepted { place: _place, mut admitted, settings, entrance: _, mut stream } = accepted;
    let core = &service.core;
    let wake: Arc<dyn Wake> = Arc::clone(sleeper.waker()) as _;
    let port = service.pool.port(wake, service.port_config());
    let id = ConnectionId(port.number());
    let opened = match settings.needs_opening() {
        true => open(id, &mut stream, &mut admitted, sleeper, core, &settings),
        false => Ok(()),
    };

    let now = Instant::now();
    let entry = Entry::new(
        id,
        (stream.peer_addr().clone(), stream.local_addr().clone()),
        Arc::clone(&settings.name),
        Mailbox::new(Arc::clone(sleeper.waker()), settings.limits.bounds().limit),
        Tally::new(now),
    );
    if opened.is_err() {
        // Nobody knows who that is, and nothing is for them.
        entry.mailbox.seal();
    }
    log::debug!("connection {id}: open, from {}", foreign(&entry.peer_addr));
    let registered = core.registry.register(entry);

    let limits = &settings.limits;
    let session = catch(|| (service.session)(&registered.entry().peer_addr));
    let input = catch(|| Input::new(&settings.framing, limits.max_frame));
    let (session, input) = match (session, input) {
        (Ok(session), Ok(input)) => (session, input),
        (Err(message), _) | (_, Err(message)) => {
            core.log_callback(id, &format!("its session or decoder could not be made: {}", foreign(&message)));
            return registered.count_closed(&CloseReason::Panicked(message));
        }
    };
    core.observer.tell(|observer| observer.connection_opened(&registered.entry().info()));
    let link = Link {
        wire: Wire { stream, outbox: Outbox::new(limits.bounds()), flushed: 0, messages: 0 },
        registered,
        port,
        server: ServerHandle { core: Arc::clone(core) },
        state: LinkState::Open,
        paused: false,
        timers: Timers::new(),
    };
    let mut worker = Worker {
        service,
        core,
        input,
        conn: Connection { session, link },
        limits,
        input_ended: false,
        is_peer_gone: false,
        sleeper,
        may_hold_buffers: true,
        patience: Patience::new(),
        turns_awake: 0,
        phase: Phase::Serving,
        clocks: Clocks::new(limits, now),
        told_congested: false,
        buffered: core.registry.buffered.of_one(),
        is_open: opened.is_ok(),
    };
    let reason = match opened {
        Ok(()) => catch(|| worker.work()).unwrap_or_else(CloseReason::Panicked),
        Err(reason) => reason,
    };
    worker.close(reason);
    let Worker { conn: Connection { session, mut link }, input, .. } = worker;
    // Each is users', and each drop may panic; two panics at once would end the process.
    link.timers.drain().for_each(drop_fenced);
    drop_fenced(input);
    if let Err(message) = catch(|| drop(session)) {
        core.log_callback(id, &format!("its session panicked when dropped: {}", foreign(message)));
    }
}
