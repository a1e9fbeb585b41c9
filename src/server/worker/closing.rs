//! The end of a connection: what was sent is flushed, `on_close` runs, and the client is given time to notice.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::clocks::write_time_left;
use super::{Worker, is_transient};
use crate::logging::foreign;
use crate::panic::{catch, drop_fenced};
use crate::server::close_reason::CloseReason;
use crate::server::lifecycle::Phase;
use crate::server::link::{LinkState, Wire};
use crate::server::mailbox::Item;

/// How long a client that was active a moment ago may take to notice that we closed. Without it, the kernel answers
/// what it still sends with a reset, and the client can lose what we sent last.
const LINGER: Duration = Duration::from_secs(1);

impl<T: Send + 'static, R: Send + 'static, S: 'static> Worker<'_, T, R, S> {
    /// The end: flush if the client is there, `on_close`, and let the client notice.
    pub(super) fn close(&mut self, reason: CloseReason) {
        // Others may have its turn meanwhile.
        self.conn.link.port.leave_line();
        // Fenced, since the text of an error is users' code too.
        let _ = catch(|| self.log_reason(&reason));
        let mut mail = self.mailbox().seal();
        let flushed = self.is_open && reason.is_orderly() && self.flush_all(&mut mail);
        mail.into_iter().for_each(drop_fenced);
        let reason = match self.mailbox().end() {
            true => {
                drop_fenced(reason);
                CloseReason::Aborted
            }
            false => reason,
        };
        match reason {
            CloseReason::Aborted => self.conn.link.wire.stream.reset_on_close(),
            // What TLS has to say about it, as far as the client takes that.
            CloseReason::TlsFailed(_) => drop(self.conn.link.wire.flush()),
            _ => {}
        }
        self.count_sent();
        self.conn.link.state = LinkState::Closed;
        let _ = catch(|| self.conn.link.port.end());
        // It may have been about to sleep; who is called while `on_close` runs is not to take it for a sleeper.
        self.sleeper.mark_awake();
        self.conn.link.registered.count_closed(&reason);
        if let Err(message) = catch(|| self.run_on_close(&reason)) {
            self.core.log_callback(self.conn.id(), &format!("on_close panicked: {}", foreign(message)));
        }
        let link = &self.conn.link;
        self.core.observer.tell(|observer| observer.connection_closed(&link.info(), &reason));
        let is_aborted = matches!(reason, CloseReason::Aborted);
        let may_be_sending = flushed && !is_aborted && !matches!(reason, CloseReason::Client);
        drop_fenced(reason);
        if flushed && !is_aborted {
            self.conn.link.wire.stream.end_tls();
        }
        // `on_close` may have submitted something.
        self.conn.link.port.leave_line();
        if may_be_sending && !self.is_quiet() {
            self.linger();
        }
    }

    /// Writes the rest of the outbox, and what others have sent; what they wanted run is dropped.
    fn flush_all(&mut self, mail: &mut VecDeque<Item>) -> bool {
        self.clocks.now = Instant::now();
        let last_moment = self.last_moment();
        if !self.flush_out(last_moment) {
            return false;
        }
        while let Some(item) = mail.pop_front() {
            if let Item::Send(piece, messages) = item {
                self.conn.link.wire.messages += messages;
                // Fits, since the outbox is empty, and a mailbox is no larger.
                let _ = self.conn.link.wire.outbox.push_piece(piece);
                if !self.flush_out(last_moment) {
                    return false;
                }
            } else {
                drop_fenced(item);
            }
        }
        true
    }

    fn run_on_close(&mut self, reason: &CloseReason) {
        let Some(on_close) = &self.service.callbacks.on_close else { return };
        if let Err(error) = on_close(&mut self.conn, reason) {
            self.log_callback_error("on_close", &error);
        }
    }

    fn log_reason(&self, reason: &CloseReason) {
        let id = self.conn.id();
        match reason {
            CloseReason::Panicked(_) | CloseReason::CallbackFailed(_) => self.core.log_callback(id, &foreign(reason)),
            CloseReason::TlsFailed(_) | CloseReason::UnexpectedTls | CloseReason::BadProxyHeader(_) => {
                self.core.log_client(id, &foreign(reason));
            }
            _ => log::debug!("connection {id}: {}", foreign(reason)),
        }
    }

    /// Writes the rest of the outbox, for as long as the client takes some of it within the write timeout.
    fn flush_out(&mut self, last_moment: Option<Instant>) -> bool {
        loop {
            if self.flush().is_err() {
                return false;
            }
            let Wire { outbox, stream, .. } = &self.conn.link.wire;
            if outbox.is_empty() {
                return true;
            }
            self.sleeper.mark_asleep();
            if self.core.lifecycle.phase() == Phase::Expired || self.mailbox().is_aborted() {
                return false;
            }
            let Ok(timeout) = write_time_left(outbox, self.limits) else { return false };
            let left = last_moment.map(|until| until.saturating_duration_since(self.clocks.now));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let timeout = timeout.into_iter().chain(left).min();
            match self.sleeper.sleep(Some(stream.as_fd()), false, true, timeout) {
                Ok(ready) if !ready.hung_up => self.clocks.now = Instant::now(),
                _ => return false,
            }
        }
    }

    /// Reads and forgets what the client still sends, until it closes too.
    fn linger(&mut self) {
        self.conn.link.wire.stream.shutdown_write();
        let until = Instant::now() + LINGER;
        loop {
            self.sleeper.mark_asleep();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.core.lifecycle.phase() == Phase::Expired {
                return;
            }
            let source = Some(self.conn.link.wire.stream.as_fd());
            if self.sleeper.sleep(source, true, false, Some(left)).is_err() {
                return;
            }
            match self.input.discard(&mut self.conn.link.wire.stream) {
                Ok(0) => return,
                Err(error) if !is_transient(&error) => return,
                _ => {}
            }
        }
    }
}
