//! The one place where a worker sleeps, and what it does on the way there.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::clocks::IDLE_AFTER;
use super::{MAX_TURNS_AWAKE, Worker};
use crate::server::close_reason::CloseReason;

/// How often a worker with tasks in flight lets others run before it sleeps. A reply that comes meanwhile
/// costs no system call on either side.
const YIELDS: usize = 4;
/// And how long at most, where many others have their turn in between.
const HOT: Duration = Duration::from_millis(10);

impl<T: Send + 'static, R: Send + 'static, S: 'static> Worker<'_, T, R, S> {
    /// Gives the task workers the processor for a moment; whether an outcome is here.
    pub(super) fn outcome_comes_soon(&mut self) -> bool {
        let port = &self.conn.link.port;
        if port.in_flight() == 0 || !self.may_deliver() {
            return false;
        }
        self.patience.wait(YIELDS, HOT, || port.has_message().then_some(())).is_some()
    }

    /// Sleeps until there is something to do, and reads if that is input.
    pub(super) fn sleep_and_read(&mut self) -> Result<(), CloseReason> {
        // Marked first and looked second; whoever has something for us pushes first and looks at the mark
        // second. So no wake-up is lost.
        self.is_new &= self.owed > 0 || self.input.may_have_frame();
        self.sleeper.mark_asleep();
        let receive = self.may_receive();
        let has_work = self.has_work(receive);
        if has_work && self.turns_awake < MAX_TURNS_AWAKE {
            self.sleeper.mark_awake();
            return Ok(());
        }
        self.turns_awake = 0;
        let read = self.may_read() && !self.input_ended && !self.input.may_have_frame();
        let wire = &self.conn.link.wire;
        let has_buffered = read && (wire.stream.has_buffered() || self.is_peer_gone || wire.has_failed());
        let idle = self.conn.link.port.in_flight() == 0 && self.may_hold_buffers;
        let slept_at = self.begin_rest();
        // Looked at in any case, since a time may be over while there is always work.
        let time_to_sleep = self.time_to_sleep(read, idle, slept_at)?;
        let timeout = if has_work || has_buffered { Some(Duration::ZERO) } else { time_to_sleep };
        self.publish();
        if !self.may_keep_all() {
            return Err(CloseReason::Overloaded);
        }
        let served = std::mem::replace(&mut self.has_served, false);
        let link = &self.conn.link;
        let write = !link.wire.outbox.is_empty();
        // `poll` would report again and again that the peer is gone.
        let source = (read || !self.is_peer_gone).then(|| link.wire.stream.as_fd());
        let mailbox = self.mailbox();
        // Not between two requests, where it would only cost.
        let may_park = !served && !write && link.wire.broken.is_none();
        let parked = may_park.then(|| link.wire.stream.park()).flatten();
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
            self.note_that_peer_is_gone();
        } else if idle && ready.timed_out && (self.clocks.now - slept_at >= IDLE_AFTER || self.is_quiet()) {
            self.release_buffers();
        }
        // Last, since what has just been read was sent in time.
        self.end_if_too_old()
    }

    fn note_that_peer_is_gone(&mut self) {
        self.is_peer_gone = true;
        let wire = &mut self.conn.link.wire;
        if let Some(error) = wire.stream.take_error() {
            wire.break_off(error);
        }
        if !wire.stream.has_unread() {
            self.end_input();
        }
    }

    /// Everything that could have come while the worker was not asleep yet.
    fn has_work(&mut self, receive: bool) -> bool {
        self.conn.link.port.has_message() && self.may_deliver()
            || self.mailbox().has_mail_for(&self.conn.link.wire.outbox)
            || self.input.may_have_frame() && receive
            || self.phase_now() != self.phase
    }

    /// Whether there is memory for what this connection keeps.
    fn may_keep_all(&mut self) -> bool {
        let outbox = &self.conn.link.wire.outbox;
        // Otherwise the mailbox has been emptied.
        let waits = self.mailbox().waits_for(outbox);
        let (mail, own_mail) = if waits { self.mailbox().all_and_own_bytes() } else { (0, 0) };
        let input = self.input.capacity();
        self.buffered.may_keep(outbox.len() + input + mail, outbox.own_len() + input + own_mail)
    }

    /// For others to read while it sleeps.
    #[inline]
    pub(super) fn publish(&self) {
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
}
