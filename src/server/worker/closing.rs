//! The end of a connection: what was sent is flushed, `on_close` runs, and the client is given time to notice.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::clocks::write_time_left;
use super::{Worker, is_transient, socket_error};
use crate::logging::foreign;
use crate::panic::{catch, drop_fenced};
use crate::server::close_reason::{CloseReason, Timeout};
use crate::server::lifecycle::Phase;
use crate::server::link::LinkState;
use crate::server::mailbox::Item;
use crate::server::stats::ClosedBeside;

/// How long a client may take to notice that the connection is closed, while it still sends. Without that, the kernel
/// answers what it sends with a reset, and the client can lose what it was sent last.
const LINGER: Duration = Duration::from_secs(30);
/// At a shutdown.
const SHORT_LINGER: Duration = Duration::from_secs(1);
/// How long it may send nothing meanwhile,
const LINGER_PAUSE: Duration = Duration::from_secs(2);
/// and how many bytes it may send.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

impl<T: Send + 'static, R: Send + 'static, S: 'static> Worker<'_, T, R, S> {
    /// The end: flush if the client is there, `on_close`, and let the client notice.
    pub(super) fn close(&mut self, reason: CloseReason) {
        // Others may have its turn meanwhile.
        self.conn.link.port.leave_line();
        let reason = self.run_on_timeout(reason);
        let reason = self.flush_all(reason);
        let reason = match self.mailbox().end() {
            true => {
                drop_fenced(reason);
                CloseReason::Aborted
            }
            false => reason,
        };
        self.count_sent();
        self.publish();
        self.conn.link.state = LinkState::Closed;
        // Fenced, since the text of an error is users' code too.
        let _ = catch(|| self.log_reason(&reason));
        let _ = catch(|| self.conn.link.port.end());
        // It may have been about to sleep; who is called while `on_close` runs is not to take it for a sleeper.
        self.sleeper.mark_awake();
        let has_ended = self.input_ended || matches!(reason, CloseReason::Io(_));
        let left = if has_ended { self.input.unfinished() } else { 0 };
        if left > 0 {
            let id = self.conn.id();
            let _ = catch(|| log::debug!("connection {id}: {left} bytes of an unfinished frame are dropped"));
        }
        let count = ClosedBeside { undelivered: self.conn.link.wire.is_short, unfinished: left > 0 };
        self.conn.link.registered.count_closed(&reason, count);
        if let Err(message) = catch(|| self.run_on_close(&reason)) {
            self.core.log_callback(self.conn.id(), &format!("on_close panicked: {}", foreign(message)));
        }
        let link = &self.conn.link;
        self.core.observer.tell(|observer| observer.connection_closed(&link.info(), &reason));
        let is_told = self.tell_client(&reason);
        // Something of the client's may be on its way; surely where that was what failed.
        let may_lose = match reason {
            CloseReason::Client => false,
            CloseReason::TlsFailed(_) => true,
            _ => !self.is_quiet(),
        };
        drop_fenced(reason);
        // `on_close` may have submitted something.
        self.conn.link.port.leave_line();
        if is_told && may_lose {
            self.linger();
        }
    }

    /// What the program still has to say to a client that a timeout closes. Where that panics, it is what closes it.
    fn run_on_timeout(&mut self, reason: CloseReason) -> CloseReason {
        let (CloseReason::TimedOut(timeout), Some(on_timeout)) = (&reason, &self.service.callbacks.on_timeout) else {
            return reason;
        };
        if !self.is_open || !reason.is_orderly() {
            return reason;
        }
        match catch(|| on_timeout(&mut self.conn, *timeout)) {
            Ok(returned) => {
                // Fenced, since the text of an error is users' code too.
                let _ = catch(|| self.log_if_failed("on_timeout", returned));
                match self.conn.link.state {
                    LinkState::Aborting => CloseReason::Aborted,
                    _ => reason,
                }
            }
            Err(message) => CloseReason::Panicked(message),
        }
    }

    /// Writes the rest of the outbox, and what others have sent; what they wanted run is dropped. Returns the reason; where
    /// not all could be written, and nothing else has failed before, that is the reason.
    fn flush_all(&mut self, reason: CloseReason) -> CloseReason {
        let mut mail = self.mailbox().seal();
        let flushed = match self.is_open && reason.is_orderly() {
            true => self.flush_mail(&mut mail),
            false => Ok(()),
        };
        let wire = &mut self.conn.link.wire;
        wire.is_short |= !wire.outbox.is_empty() || mail.iter().any(|item| matches!(item, Item::Send(..)));
        mail.into_iter().for_each(drop_fenced);
        match flushed {
            Err(why) if reason.is_planned() => why,
            _ => reason,
        }
    }

    fn flush_mail(&mut self, mail: &mut VecDeque<Item>) -> Result<(), CloseReason> {
        self.clocks.now = Instant::now();
        let last_moment = self.last_moment();
        self.flush_out(last_moment)?;
        while let Some(item) = mail.pop_front() {
            if let Item::Send(piece, messages) = item {
                // Fits, since the outbox is empty, and a mailbox is no larger.
                self.conn.link.wire.push(piece, messages);
                self.flush_out(last_moment)?;
            } else {
                drop_fenced(item);
            }
        }
        Ok(())
    }

    /// Writes the rest of the outbox, for as long as the client takes some of it within the write timeout.
    fn flush_out(&mut self, last_moment: Option<Instant>) -> Result<(), CloseReason> {
        loop {
            self.flush();
            let wire = &mut self.conn.link.wire;
            if let Some(error) = wire.broken.take() {
                return Err(socket_error(error));
            }
            if wire.outbox.is_empty() {
                return Ok(());
            }
            self.sleeper.mark_asleep();
            if self.core.lifecycle.phase() == Phase::Expired {
                return Err(CloseReason::Shutdown);
            }
            if self.mailbox().is_aborted() {
                return Err(CloseReason::Aborted);
            }
            let timeout = write_time_left(&self.conn.link.wire.outbox, self.limits)?;
            let left = last_moment.map(|until| until.saturating_duration_since(self.clocks.now));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(CloseReason::TimedOut(Timeout::Lifetime));
            }
            let timeout = timeout.into_iter().chain(left).min();
            let source = Some(self.conn.link.wire.stream.as_fd());
            let ready = self.sleeper.sleep(source, false, true, timeout).map_err(CloseReason::Io)?;
            self.clocks.now = Instant::now();
            if ready.hung_up {
                if let Some(error) = self.conn.link.wire.stream.take_error() {
                    self.conn.link.wire.break_off(error);
                }
            }
        }
    }

    fn run_on_close(&mut self, reason: &CloseReason) {
        let Some(on_close) = &self.service.callbacks.on_close else { return };
        if let Err(error) = on_close(&mut self.conn, reason) {
            self.log_callback_error("on_close", &error);
        }
    }

    fn log_reason(&self, reason: &CloseReason) {
        let (id, is_short) = (self.conn.id(), self.conn.link.wire.is_short);
        match reason {
            CloseReason::Panicked(_) | CloseReason::CallbackFailed(_) => self.core.log_callback(id, &foreign(reason)),
            CloseReason::TlsFailed(_) | CloseReason::UnexpectedTls | CloseReason::BadProxyHeader(_) => {
                self.core.log_client(id, &foreign(reason));
            }
            _ if is_short => log::debug!("connection {id}: {}; not all was sent", foreign(reason)),
            _ => log::debug!("connection {id}: {}", foreign(reason)),
        }
    }

    /// Tells the client that nothing more will come: by an end in good order if it has had all it was sent, by a reset
    /// if not. Whether it has been told anything that it can still read.
    fn tell_client(&mut self, reason: &CloseReason) -> bool {
        let wire = &mut self.conn.link.wire;
        match reason {
            _ if wire.is_short => wire.stream.reset_on_close(),
            CloseReason::Aborted => wire.stream.reset_on_close(),
            // What TLS has to say about it, as far as the client takes that.
            CloseReason::TlsFailed(_) => {
                wire.flush();
                return true;
            }
            _ if reason.is_orderly() => {
                if self.is_open {
                    wire.stream.end_tls();
                }
                return true;
            }
            _ => {}
        }
        false
    }

    /// Reads and forgets what the client still sends, until it closes too.
    fn linger(&mut self) {
        self.conn.link.wire.stream.shutdown_write();
        let begun = Instant::now();
        let (mut heard_at, mut room) = (begun, LINGER_BYTES);
        loop {
            self.sleeper.mark_asleep();
            let linger = match self.core.lifecycle.phase() {
                Phase::Serving => LINGER,
                Phase::Draining => SHORT_LINGER,
                Phase::Expired => return,
            };
            let left = (begun + linger).min(heard_at + LINGER_PAUSE).saturating_duration_since(Instant::now());
            let stream = &mut self.conn.link.wire.stream;
            if left.is_zero() || self.sleeper.sleep(Some(stream.as_fd()), true, false, Some(left)).is_err() {
                return;
            }
            match self.input.discard(&mut stream.raw()) {
                Ok(0) => return,
                Ok(n) if n >= room => return,
                Ok(n) => (heard_at, room) = (Instant::now(), room - n),
                Err(error) if is_transient(&error) => {}
                Err(_) => return,
            }
        }
    }
}
