//! The loop of one connection: it sleeps in one place, and does everything else on the way there.

mod closing;

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::close_reason::CloseReason;
use super::connection::Connection;
use super::handle::{Core, ServerHandle};
use super::lifecycle::Phase;
use super::link::{Link, LinkState, Wire};
use super::mailbox::Mailbox;
use super::registry::{ConnectionId, ConnectionInfo, Place, Registered};
use super::service::Service;
use crate::config::{ConnectionConfig, WhenQueueFull};
use crate::logging::foreign;
use crate::net::{FrameTooLong, Input, Outbox, Sleeper, Stream};
use crate::panic::catch;
use crate::patience::Patience;
use crate::task::{Port, PortConfig, Wake, WhenFull};

/// At most so many outcomes are delivered, and frames received, before the other has its turn.
const BATCH: usize = 64;
/// How often a worker with tasks in flight lets others run before it sleeps. A reply that comes meanwhile
/// costs no system call on either side.
const YIELDS: usize = 8;
/// And how long at most, where many others have their turn in between.
const HOT: Duration = Duration::from_millis(10);
/// A worker that always has outcomes to deliver looks at its socket after so many turns all the same: the client may
/// have sent something, or be gone, or take nothing for too long.
const MAX_TURNS_AWAKE: u32 = 16;
/// A connection that has nothing to do for so long gives its buffers back.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// A client that was accepted, and what its worker needs. The order matters when it is dropped: first the
/// descriptors, then the place.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) sleeper: Sleeper,
    pub(super) place: Place,
}

/// Serves one connection from its first callback to its last.
pub(super) fn serve<T, R, S>(service: &Service<T, R, S>, accepted: Accepted)
where
    T: Send + 'static,
    R: Send + 'static,
{
    // First of all, so that it is dropped last.
    let Accepted { place: _place, stream, sleeper } = accepted;
    let (core, config) = (&service.core, &service.config.connections);
    let peer_addr = stream.peer_addr();
    let wake: Arc<dyn Wake> = Arc::clone(sleeper.waker()) as _;
    let port_config = PortConfig {
        max_in_flight: service.config.tasks.max_tasks_in_flight,
        when_full: match config.when_queue_full {
            WhenQueueFull::Defer => WhenFull::Defer,
            WhenQueueFull::Refuse => WhenFull::Refuse,
        },
        in_order: config.results_in_order,
        cancel_at_end: config.cancel_on_close,
        max_results: service.config.tasks.max_results,
        hears_progress: service.callbacks.tasks.on_progress.is_some(),
        until_drained: false,
    };
    let port = service.pool.port(wake, port_config);
    let id = ConnectionId(port.number());
    let info = ConnectionInfo { id, peer_addr };
    let mailbox = core.registry.register(Mailbox::new(info, Arc::clone(sleeper.waker()), config.max_outbox));
    log::debug!("connection {id}: open, from {peer_addr}");

    let session = match catch(|| (service.session)(peer_addr)) {
        Ok(session) => session,
        Err(message) => return core.log_callback(id, &format!("session panicked: {}", foreign(message))),
    };
    core.observer.tell(|observer| observer.connection_opened(&info));
    let link = Link {
        id,
        wire: Wire { stream, outbox: Outbox::new(config.max_outbox) },
        port,
        server: ServerHandle { core: Arc::clone(core) },
        state: LinkState::Open,
    };
    let mut worker = Worker {
        service,
        core,
        config,
        conn: Connection { session, link },
        input: Input::new(config.framing.clone(), config.max_frame),
        input_ended: false,
        mailbox,
        sleeper,
        released: false,
        patience: Patience::new(),
        turns_awake: 0,
        phase: Phase::Serving,
    };
    let reason = catch(|| worker.work()).unwrap_or_else(CloseReason::Panicked);
    worker.close(reason);
    if let Err(message) = catch(|| drop(worker)) {
        core.log_callback(id, &format!("its session panicked when dropped: {}", foreign(message)));
    }
}

/// The order matters when it is dropped: the socket and the wake-up descriptor before the mailbox.
struct Worker<'a, T: Send + 'static, R: Send + 'static, S> {
    service: &'a Service<T, R, S>,
    core: &'a Arc<Core>,
    config: &'a ConnectionConfig,
    conn: Connection<T, R, S>,
    input: Input,
    /// The client has closed its sending half.
    input_ended: bool,
    sleeper: Sleeper,
    mailbox: Registered,
    /// The buffers were given back, and nothing was read since.
    released: bool,
    patience: Patience,
    /// Turns of the loop since the socket was last looked at.
    turns_awake: u32,
    /// What it was at the beginning of this turn of the loop.
    phase: Phase,
}

impl<T: Send + 'static, R: Send + 'static, S> Worker<'_, T, R, S> {
    fn work(&mut self) -> CloseReason {
        match self.turn_until_closed() {
            Err(reason) => reason,
        }
    }

    fn turn_until_closed(&mut self) -> Result<Infallible, CloseReason> {
        if let Some(on_connect) = &self.service.callbacks.on_connect {
            let returned = on_connect(&mut self.conn);
            self.end_if_failed(returned)?;
        }
        loop {
            self.begin_turn();
            self.deliver_outcomes()?;
            self.take_mail()?;
            self.flush()?;
            self.end_if_done()?;
            if self.input.may_have_frame() && self.may_receive() {
                self.receive_frames()?;
            } else if !self.outcome_comes_soon() || self.turns_awake >= MAX_TURNS_AWAKE {
                self.sleep_and_read()?;
            }
        }
    }

    /// What holds for one turn: if `on_receive` is called in it, the task it submits is not refused because a
    /// shutdown began meanwhile.
    fn begin_turn(&mut self) {
        self.phase = self.core.lifecycle.phase();
        self.conn.link.port.open = self.phase == Phase::Serving;
        self.conn.link.port.forget_time();
        self.conn.link.port.time_out();
        self.turns_awake += 1;
    }

    /// Runs the finish closures of the outcomes that are here.
    fn deliver_outcomes(&mut self) -> Result<(), CloseReason> {
        for _ in 0..BATCH {
            if !self.conn.link.port.has_message() {
                break;
            }
            // What the task sent to the client goes before what its finish closure sends. Where not all of it fits,
            // the outbox is full, and the outcome waits.
            self.take_mail()?;
            if !self.may_deliver() {
                break;
            }
            let Some(delivery) = self.conn.link.port.next() else { break };
            let callbacks = &self.service.callbacks.tasks;
            let returned = Port::run(delivery, &mut self.conn, |conn| &mut conn.link.port, callbacks);
            if let Err(error) = returned {
                self.conn.link.port.ledger().finish_errors.add(1);
                self.log_callback_error("a finish closure", &error);
            }
            self.end_if_closing()?;
        }
        Ok(())
    }

    /// Moves what others sent to this connection into its outbox, as far as there is room.
    fn take_mail(&mut self) -> Result<(), CloseReason> {
        let room = self.room_in_outbox();
        let Some(mail) = self.mailbox.take(room) else { return Ok(()) };
        // Fits, since it was taken for this room.
        let _ = self.conn.link.wire.outbox.push(&mail.bytes);
        self.released = false;
        if mail.close_after { Err(CloseReason::Server) } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), CloseReason> {
        self.conn.link.wire.flush().map_err(CloseReason::Io)
    }

    /// Hands the frames that are here to `on_receive`, until a batch is full or the connection may receive no
    /// more for now.
    fn receive_frames(&mut self) -> Result<(), CloseReason> {
        for _ in 0..BATCH {
            let frame = match self.input.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(FrameTooLong) => return Err(CloseReason::FrameTooLong(self.config.max_frame)),
            };
            let returned = (self.service.on_receive)(&mut self.conn, frame);
            self.end_if_failed(returned)?;
            if !self.may_receive() {
                break;
            }
        }
        Ok(())
    }

    /// Gives the task workers the processor for a moment; whether an outcome is here.
    fn outcome_comes_soon(&mut self) -> bool {
        let port = &self.conn.link.port;
        if port.in_flight() == 0 || !self.may_deliver() {
            return false;
        }
        self.patience.wait(YIELDS, HOT, || port.has_message().then_some(())).is_some()
    }

    /// Sleeps until there is something to do, and reads if that is input.
    fn sleep_and_read(&mut self) -> Result<(), CloseReason> {
        // Marked first and looked second; whoever has something for us pushes first and looks at the mark
        // second. So no wake-up is lost.
        self.sleeper.mark_asleep();
        let receive = self.may_receive();
        let has_work = self.has_work(receive);
        if has_work && self.turns_awake < MAX_TURNS_AWAKE {
            self.sleeper.mark_awake();
            return Ok(());
        }
        self.turns_awake = 0;
        let link = &self.conn.link;
        let idle = link.port.in_flight() == 0 && !self.released;
        let timeout = match write_time_left(&link.wire.outbox, self.config)? {
            _ if has_work => Some(Duration::ZERO),
            None if idle => Some(IDLE_AFTER),
            timeout => earlier(timeout, link.port.next_deadline()),
        };
        let read = receive && !self.input_ended && !self.input.may_have_frame();
        let write = !link.wire.outbox.is_empty();
        let source = Some(link.wire.stream.as_fd());
        let ready = self.sleeper.sleep(source, read, write, timeout).map_err(CloseReason::Io)?;
        if read && (ready.readable || ready.hung_up) {
            self.read()
        } else if ready.hung_up {
            Err(CloseReason::Io(link.wire.stream.take_error()))
        } else {
            if idle && ready.timed_out {
                self.release_buffers();
            }
            Ok(())
        }
    }

    /// An idle connection holds no buffers. One that is only between two requests keeps them.
    fn release_buffers(&mut self) {
        self.input.release();
        self.conn.link.wire.outbox.release();
        self.conn.link.port.release();
        self.released = true;
    }

    fn read(&mut self) -> Result<(), CloseReason> {
        self.released = false;
        match self.input.fill(&mut self.conn.link.wire.stream) {
            Ok(0) => self.input_ended = true,
            Ok(_) => {}
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(CloseReason::Io(error)),
        }
        Ok(())
    }

    /// Everything that could have come while the worker was not asleep yet.
    fn has_work(&mut self, receive: bool) -> bool {
        self.conn.link.port.has_message() && self.may_deliver()
            || self.mailbox.has_mail(self.room_in_outbox())
            || self.input.may_have_frame() && receive
            || self.core.lifecycle.phase() != self.phase
    }

    /// Whether this connection may be given more input now. Where the back room or the client's slowness says no,
    /// the worker is woken when that is over.
    fn may_receive(&mut self) -> bool {
        let link = &mut self.conn.link;
        self.phase == Phase::Serving && !link.wire.outbox.is_half_full() && !link.port.should_pause()
    }

    /// Whether finish closures may send more now. A client that takes nothing delays its own outcomes; at a
    /// shutdown's deadline they come all the same.
    fn may_deliver(&self) -> bool {
        !self.conn.link.wire.outbox.is_half_full() || self.phase == Phase::Expired
    }

    fn room_in_outbox(&self) -> usize {
        self.conn.link.wire.outbox.room()
    }

    /// A callback that could not send because the connection is broken did not fail by itself.
    fn end_if_failed(&mut self, returned: anyhow::Result<()>) -> Result<(), CloseReason> {
        match returned {
            Err(error) if !matches!(self.conn.link.state, LinkState::Broken(_)) => {
                Err(CloseReason::CallbackFailed(error))
            }
            _ => self.end_if_closing(),
        }
    }

    /// A callback may have closed the connection, or found it broken.
    fn end_if_closing(&mut self) -> Result<(), CloseReason> {
        match self.conn.link.state {
            LinkState::Open => Ok(()),
            _ => match std::mem::replace(&mut self.conn.link.state, LinkState::Closing) {
                LinkState::Broken(error) => Err(CloseReason::Io(error)),
                _ => Err(CloseReason::Server),
            },
        }
    }

    /// Whether everything is done that was to be done.
    fn end_if_done(&mut self) -> Result<(), CloseReason> {
        self.end_if_closing()?;
        let link = &self.conn.link;
        let settled = link.port.in_flight() == 0 && link.wire.outbox.is_empty();
        match self.phase {
            Phase::Serving if settled && self.input_ended && !self.input.may_have_frame() => Err(CloseReason::Client),
            Phase::Serving => Ok(()),
            Phase::Draining if settled => Err(CloseReason::Shutdown),
            Phase::Draining => Ok(()),
            Phase::Expired if link.port.has_message() => Ok(()),
            Phase::Expired => Err(CloseReason::Shutdown),
        }
    }

    fn log_callback_error(&self, callback: &str, error: &anyhow::Error) {
        let error = foreign(format_args!("{error:#}"));
        self.core.log_callback(self.conn.id(), &format!("{callback} failed: {error}"));
    }
}

/// How long the client may still take nothing; `None` while it takes what comes.
fn write_time_left(outbox: &Outbox, config: &ConnectionConfig) -> Result<Option<Duration>, CloseReason> {
    let Some(since) = outbox.blocked_since() else { return Ok(None) };
    match config.write_timeout.checked_sub(since.elapsed()) {
        Some(left) if !left.is_zero() => Ok(Some(left)),
        _ => Err(CloseReason::WriteTimeout),
    }
}

/// The time until either comes.
fn earlier(timeout: Option<Duration>, deadline: Option<Instant>) -> Option<Duration> {
    let until = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    timeout.into_iter().chain(until).min()
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
