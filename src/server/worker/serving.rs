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
use crate::server::core::Core;
use crate::server::entrance::Entrance;
use crate::server::handle::ServerHandle;
use crate::server::lifecycle::Phase;
use crate::server::limits::Limits;
use crate::server::link::{Link, LinkState, Wire};
use crate::server::listener::ListenerSettings;
use crate::server::mailbox::Mailbox;
use crate::server::places::Place;
use crate::server::registry::{Entry, Registered};
use crate::server::service::Service;
use crate::server::stats::ClosedBeside;
use crate::server::tally::Tally;
use crate::server::timers::Timers;
use crate::task::{Label, Port, Wake, new_number};

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
    let id = ConnectionId(new_number());
    let opened = match settings.needs_opening() {
        true => open(id, &mut stream, &mut admitted, sleeper, core, &settings),
        false => Ok(()),
    };
    let registered = register(core, id, &stream, &settings, sleeper, opened.is_ok());
    let session = catch(|| (service.session)(&registered.entry().peer_addr));
    let input = catch(|| Input::new(&settings.framing, settings.limits.max_frame));
    let (session, input) = match (session, input) {
        (Ok(session), Ok(input)) => (session, input),
        (Err(message), _) | (_, Err(message)) => {
            core.log_callback(id, &format!("its session or decoder could not be made: {}", foreign(&message)));
            return registered.count_closed(&CloseReason::Panicked(message), ClosedBeside::default());
        }
    };
    core.observer.tell(|observer| observer.connection_opened(&registered.entry().info()));

    let arrived = Arrived { stream, registered, session, input, is_open: opened.is_ok() };
    let mut worker = Worker::new(service, sleeper, &settings.limits, arrived);
    let reason = match opened {
        Ok(()) => catch(|| worker.work()).unwrap_or_else(CloseReason::Panicked),
        Err(reason) => reason,
    };
    worker.close(reason);
    // Each is users', and each drop may panic; two panics at once would end the process.
    worker.conn.link.timers.drain().for_each(drop_fenced);
    drop_fenced(worker.input);
    let session = worker.conn.session;
    if let Err(message) = catch(|| drop(session)) {
        core.log_callback(id, &format!("its session panicked when dropped: {}", foreign(message)));
    }
}

/// A client that is known, and what was made for it.
struct Arrived<S> {
    stream: Stream,
    registered: Registered,
    session: S,
    input: Input,
    is_open: bool,
}

impl<'a, T: Send + 'static, R: Send + 'static, S> Worker<'a, T, R, S> {
    /// Not inlined, and nor are those below: the stack of an idle connection is memory that it keeps, and what things are
    /// put together from would stay there.
    #[inline(never)]
    fn new(service: &'a Service<T, R, S>, sleeper: &'a Sleeper, limits: &'a Limits, arrived: Arrived<S>) -> Self {
        let Arrived { stream, registered, session, input, is_open } = arrived;
        let core = &service.core;
        let port = new_port(service, registered.entry(), sleeper);
        let clocks = Clocks::new(limits, registered.entry().tally.connected_at);
        let owed = if core.lifecycle.phase() == Phase::Serving { 0 } else { stream.unread() };
        let link = Link {
            wire: Wire::new(stream, Outbox::new(limits.bounds())),
            registered,
            port,
            server: ServerHandle { core: Arc::clone(core) },
            state: LinkState::Open,
            paused: false,
            timers: Timers::new(),
        };
        Worker {
            service,
            core,
            input,
            conn: Connection { session, link },
            limits,
            input_ended: false,
            is_peer_gone: false,
            sleeper,
            may_hold_buffers: true,
            has_served: true,
            patience: Patience::new(),
            turns_awake: 0,
            phase: Phase::Serving,
            is_new: true,
            owed,
            clocks,
            told_congested: false,
            buffered: core.registry.buffered.of_one(),
            is_open,
        }
    }
}

#[inline(never)]
fn new_port<T: Send + 'static, R: Send + 'static, S>(
    service: &Service<T, R, S>,
    entry: &Arc<Entry>,
    sleeper: &Sleeper,
) -> Box<Port<T, R, Connection<T, R, S>>> {
    let wake: Arc<dyn Wake> = Arc::clone(sleeper.waker()) as _;
    Box::new(service.pool.port(entry.id.0, wake, Some(Arc::clone(entry) as Label), service.port_config()))
}

/// From here on others can find the connection.
#[inline(never)]
fn register(
    core: &Core,
    id: ConnectionId,
    stream: &Stream,
    settings: &ListenerSettings,
    sleeper: &Sleeper,
    is_open: bool,
) -> Registered {
    log::debug!("connection {id}: open, from {}", foreign(stream.peer_addr()));
    let entry = Entry::new(
        id,
        (stream.peer_addr().clone(), stream.local_addr().clone()),
        Arc::clone(&settings.name),
        Mailbox::new(Arc::clone(sleeper.waker()), settings.limits.bounds().limit),
        Tally::new(Instant::now()),
    );
    if !is_open {
        // Nobody knows who that is, and nothing is for them.
        entry.mailbox.seal();
    }
    core.registry.register(entry)
}
