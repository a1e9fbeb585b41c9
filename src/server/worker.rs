//! The loop of one connection: it sleeps in one place, and does everything else on the way there.

mod clocks;
mod closing;
mod opening;

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::admission::Admitted;
use super::buffered::Buffered;
use super::close_reason::{CloseReason, Timeout};
use super::connection::Connection;
use super::connection_info::ConnectionId;
use super::core::Core;
use super::handle::ServerHandle;
use super::lifecycle::Phase;
use super::limits::Limits;
use super::link::{Link, LinkState, Wire};
use super::listener::ListenerSettings;
use super::mailbox::{Item, Mailbox, Taken};
use super::registry::{Entry, Place};
use super::service::Service;
use super::tally::Tally;
use super::timers::{Timer, Timers};
use crate::logging::foreign;
use crate::net::{FrameError, Input, Outbox, Sleeper, Stream};
use crate::panic::{catch, drop_fenced};
use crate::patience::Patience;
use crate::task::{Port, Wake};

use clocks::Clocks;
use opening::open;

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

/// A client that was accepted, and what its worker needs. The order matters when it is dropped: first the socket, then
/// the place.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) settings: Arc<ListenerSettings>,
    pub(super) admitted: Option<Admitted>,
    pub(super) place: Place,
}

/// Serves one connection from its first callback to its last.
pub(super) fn serve<T, R, S>(service: &Service<T, R, S>, accepted: Accepted, sleeper: &Sleeper)
where
    T: Send + 'static,
    R: Send + 'static,
    S: 'static,
{
    // First of all, so that they are dropped last.
    let Accepted { place: _place, mut admitted, settings, mut stream } = accepted;
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
        has_frames: settings.framing.has_boundaries(),
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

struct Worker<'a, T: Send + 'static, R: Send + 'static, S> {
    service: &'a Service<T, R, S>,
    core: &'a Arc<Core>,
    limits: &'a Limits,
    /// What comes is cut into frames, which may be unfinished.
    has_frames: bool,
    input: Input,
    /// The client has closed its sending half.
    input_ended: bool,
    /// The client has closed altogether, as a Unix socket says before what it has sent is read. That is still to be
    /// read, and its tasks to be finished.
    is_peer_gone: bool,
    sleeper: &'a Sleeper,
    conn: Connection<T, R, S>,
    /// The buffers were not given back, or something has happened since.
    may_hold_buffers: bool,
    patience: Patience,
    /// Turns of the loop since the socket was last looked at.
    turns_awake: u32,
    /// What it was at the beginning of this turn of the loop.
    phase: Phase,
    clocks: Clocks,
    /// What the watermark callbacks were last told.
    told_congested: bool,
    buffered: Buffered,
    /// The client has come as far as its first frame.
    is_open: bool,
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> Worker<'_, T, R, S> {
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
        // Whoever connects mostly says something at once.
        if self.may_receive() {
            self.read()?;
        }
        loop {
            self.begin_turn();
            self.deliver_outcomes()?;
            self.take_mail()?;
            self.run_timers()?;
            self.flush()?;
            self.tell_watermarks()?;
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
            if !self.conn.link.port.fetch() {
                break;
            }
            // What the task sent to the client goes before what its finish closure sends. Where not all of it fits,
            // the outcome waits.
            self.take_mail()?;
            if !self.may_deliver() {
                break;
            }
            let Some(delivery) = self.conn.link.port.fetched() else { continue };
            (self.clocks.at_work, self.may_hold_buffers) = (true, true);
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

    /// Sees to what others have had for this connection until now: moves what they sent into its outbox, as far as
    /// there is room, and runs what they want run.
    fn take_mail(&mut self) -> Result<(), CloseReason> {
        for _ in 0..self.mailbox().len() {
            let Some(taken) = self.mailbox().take(&self.conn.link.wire.outbox) else { break };
            match taken {
                Taken::Item(Item::Send(piece, messages)) => {
                    self.may_hold_buffers = true;
                    self.conn.link.wire.messages += messages;
                    // Fits, since it was taken for this outbox.
                    let _ = self.conn.link.wire.outbox.push_piece(piece);
                }
                Taken::Item(Item::Visit(run)) => {
                    self.may_hold_buffers = true;
                    let returned = run(&mut self.conn);
                    self.log_if_failed("a closure from elsewhere", returned);
                    self.end_if_closing()?;
                }
                Taken::Item(Item::Pause(pause)) => self.conn.link.paused = pause,
                Taken::Close => return Err(CloseReason::Server),
                Taken::Abort => return Err(CloseReason::Aborted),
            }
        }
        Ok(())
    }

    /// Runs what is due.
    fn run_timers(&mut self) -> Result<(), CloseReason> {
        if self.conn.link.timers.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some(mut due) = self.conn.link.timers.take_due(now) else { break };
            self.may_hold_buffers = true;
            let returned = match due.timer {
                Timer::Once(run) => run(&mut self.conn),
                Timer::Every(_, ref mut run) => {
                    let returned = run(&mut self.conn);
                    self.conn.link.timers.set_again(due);
                    returned
                }
            };
            self.log_if_failed("a timer", returned);
            self.end_if_closing()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CloseReason> {
        self.conn.link.wire.flush().map_err(CloseReason::Io)?;
        self.count_sent();
        Ok(())
    }

    #[inline]
    fn count_sent(&mut self) {
        let wire = &mut self.conn.link.wire;
        let tally = &self.conn.link.registered.entry().tally;
        if wire.flushed > 0 {
            tally.sent(std::mem::take(&mut wire.flushed), self.clocks.now);
        }
        if wire.messages > 0 {
            tally.messages_sent.add(std::mem::take(&mut wire.messages));
        }
    }

    /// Says that the outbox is congested, or is no longer.
    fn tell_watermarks(&mut self) -> Result<(), CloseReason> {
        let congested = self.conn.link.wire.outbox.is_congested();
        if congested == self.told_congested {
            return Ok(());
        }
        self.told_congested = congested;
        let callbacks = &self.service.callbacks;
        let (name, callback) = match congested {
            true => ("on_high_watermark", &callbacks.on_high_watermark),
            false => ("on_low_watermark", &callbacks.on_low_watermark),
        };
        if let Some(callback) = callback {
            let returned = callback(&mut self.conn);
            self.log_if_failed(name, returned);
        }
        self.end_if_closing()
    }

    /// Hands the frames that are here to `on_receive`, until a batch is full or the connection may receive no
    /// more for now.
    fn receive_frames(&mut self) -> Result<(), CloseReason> {
        for _ in 0..BATCH {
            let frame = match self.input.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return Err(self.frame_error(error)),
            };
            self.conn.link.registered.entry().tally.frames_received.add(1);
            self.clocks.at_work = true;
            let returned = (self.service.on_receive)(&mut self.conn, frame);
            self.end_if_failed(returned)?;
            if !self.may_receive() {
                break;
            }
        }
        Ok(())
    }

    fn frame_error(&mut self, error: FrameError) -> CloseReason {
        match error {
            FrameError::TooLong => CloseReason::FrameTooLong(self.limits.max_frame),
            FrameError::Tls => CloseReason::UnexpectedTls,
            FrameError::Malformed(mut malformed) => {
                let reply = malformed.take_reply();
                if !reply.is_empty() {
                    // Where it does not fit, the client takes nothing anyway.
                    let _ = self.conn.link.send(reply);
                }
                CloseReason::Malformed(malformed)
            }
        }
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
        let read = receive && !self.input_ended && !self.input.may_have_frame();
        let has_buffered = read && (self.conn.link.wire.stream.has_buffered() || self.is_peer_gone);
        let idle = self.conn.link.port.in_flight() == 0 && self.may_hold_buffers;
        let slept_at = self.begin_rest();
        // Looked at in any case, since a time may be over while there is always work.
        let time_to_sleep = self.time_to_sleep(read, idle, slept_at)?;
        let timeout = if has_work || has_buffered { Some(Duration::ZERO) } else { time_to_sleep };
        self.publish();
        if !self.may_keep_all() {
            return Err(CloseReason::Overloaded);
        }
        let link = &self.conn.link;
        let write = !link.wire.outbox.is_empty();
        // `poll` would report again and again that the peer is gone.
        let source = (read || !self.is_peer_gone).then(|| link.wire.stream.as_fd());
        let mailbox = self.mailbox();
        // Not between two requests, where it would only cost.
        let parked = (!self.may_hold_buffers && !write).then(|| link.wire.stream.park()).flatten();
        let is_parked = parked.is_some();
        parked.into_iter().for_each(|socket| mailbox.park(socket));
        let slept = self.sleeper.sleep(source, read, write, timeout);
        if is_parked {
            mailbox.unpark();
        }
        let ready = slept.map_err(CloseReason::Io)?;
        self.clocks.now = Instant::now();
        if read {
            self.input.wait(self.clocks.now - slept_at);
        }
        if read && (ready.readable || ready.hung_up || has_buffered) {
            self.read()?;
        } else if ready.hung_up {
            match self.conn.link.wire.stream.take_error() {
                Some(error) => return Err(CloseReason::Io(error)),
                None => self.is_peer_gone = true,
            }
        } else if idle && ready.timed_out && self.is_quiet() {
            self.release_buffers();
        }
        // Last, since what has just been read was sent in time.
        self.end_if_too_old()
    }

    /// Whether there is memory for what this connection keeps.
    fn may_keep_all(&mut self) -> bool {
        let outbox = &self.conn.link.wire.outbox;
        // Otherwise the mailbox has been emptied.
        let mail = if self.mailbox().waits_for(outbox) { self.mailbox().own_bytes() } else { 0 };
        self.buffered.may_keep(outbox.own_len() + self.input.capacity() + mail)
    }

    /// For others to read while it sleeps.
    #[inline]
    fn publish(&self) {
        let tally = &self.conn.link.registered.entry().tally;
        tally.tasks_in_flight.store(self.conn.link.port.in_flight(), Ordering::Relaxed);
        tally.outbox_bytes.store(self.conn.link.wire.outbox.len(), Ordering::Relaxed);
    }

    /// An idle connection holds no buffers. One that is only between two requests keeps them.
    fn release_buffers(&mut self) {
        self.input.release();
        self.conn.link.wire.outbox.release();
        self.conn.link.port.release();
        self.may_hold_buffers = false;
    }

    fn read(&mut self) -> Result<(), CloseReason> {
        self.may_hold_buffers = true;
        match self.input.fill(&mut self.conn.link.wire.stream) {
            Ok(0) => self.input_ended = true,
            Ok(n) => self.conn.link.registered.entry().tally.received(n, self.clocks.now),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(read_error(error)),
        }
        Ok(())
    }

    /// Everything that could have come while the worker was not asleep yet.
    fn has_work(&mut self, receive: bool) -> bool {
        self.conn.link.port.has_message() && self.may_deliver()
            || self.mailbox().has_mail_for(&self.conn.link.wire.outbox)
            || self.input.may_have_frame() && receive
            || self.core.lifecycle.phase() != self.phase
    }

    /// Whether this connection may be given more input now. Where the back room or the client's slowness says no,
    /// the worker is woken when that is over.
    fn may_receive(&mut self) -> bool {
        self.phase == Phase::Serving
            && !self.conn.link.paused
            && !self.clocks.retired
            && !self.is_congested()
            && !self.conn.link.port.should_pause()
    }

    /// Whether finish closures may send more now. A client that takes nothing delays its own outcomes; at a
    /// shutdown's deadline they come all the same.
    fn may_deliver(&self) -> bool {
        !self.is_congested() || self.phase == Phase::Expired
    }

    /// Whether what waits for the client must become less before more is added to it.
    fn is_congested(&self) -> bool {
        let outbox = &self.conn.link.wire.outbox;
        outbox.is_congested() || self.mailbox().waits_for(outbox)
    }

    fn mailbox(&self) -> &Mailbox {
        &self.conn.link.registered.entry().mailbox
    }

    /// A callback that could not send because the connection is broken or aborted did not fail by itself.
    fn end_if_failed(&mut self, returned: anyhow::Result<()>) -> Result<(), CloseReason> {
        match (returned, &self.conn.link.state) {
            (Err(error), LinkState::Open | LinkState::Closing) => Err(CloseReason::CallbackFailed(error)),
            _ => self.end_if_closing(),
        }
    }

    /// A callback may have closed the connection, or found it broken.
    fn end_if_closing(&mut self) -> Result<(), CloseReason> {
        match self.conn.link.state {
            LinkState::Open => Ok(()),
            _ => match std::mem::replace(&mut self.conn.link.state, LinkState::Closing) {
                LinkState::Broken(error) => Err(CloseReason::Io(error)),
                LinkState::Aborting => Err(CloseReason::Aborted),
                _ => Err(CloseReason::Server),
            },
        }
    }

    /// Whether everything is done that was to be done.
    fn end_if_done(&mut self) -> Result<(), CloseReason> {
        self.end_if_closing()?;
        let link = &self.conn.link;
        let no_tasks = link.port.in_flight() == 0;
        let settled = no_tasks && link.wire.outbox.is_empty();
        match self.phase {
            Phase::Serving if no_tasks && self.clocks.retired => Err(CloseReason::TimedOut(Timeout::Lifetime)),
            Phase::Serving if settled && self.input_ended && !self.input.may_have_frame() => Err(CloseReason::Client),
            Phase::Serving => Ok(()),
            Phase::Draining if settled => Err(CloseReason::Shutdown),
            Phase::Draining => Ok(()),
            Phase::Expired if link.port.has_message() => Ok(()),
            Phase::Expired => Err(CloseReason::Shutdown),
        }
    }

    /// Of a callback whose failure does not close the connection.
    fn log_if_failed(&self, callback: &str, returned: anyhow::Result<()>) {
        if let Err(error) = returned {
            self.log_callback_error(callback, &error);
        }
    }

    fn log_callback_error(&self, callback: &str, error: &anyhow::Error) {
        let error = foreign(format_args!("{error:#}"));
        self.core.log_callback(self.conn.id(), &format!("{callback} failed: {error}"));
    }
}

/// TLS says in an error of its own what the client has done wrong.
fn read_error(error: io::Error) -> CloseReason {
    match error.kind() {
        io::ErrorKind::InvalidData => CloseReason::TlsFailed(error.to_string()),
        _ => CloseReason::Io(error),
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
