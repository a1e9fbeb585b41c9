//! The times of a connection: how long its worker may sleep, and when one of them is over.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{IDLE_AFTER, Worker};
use crate::net::Outbox;
use crate::server::close_reason::{CloseReason, Timeout};
use crate::server::limits::Limits;

/// What the worker remembers of them.
pub(super) struct Clocks {
    /// When it last woke.
    pub(super) now: Instant,
    /// The end of `max_lifetime`.
    expires_at: Option<Instant>,
    /// No long time is over before this: then it looks at each.
    look_at: Option<Instant>,
    /// It is too old, and takes nothing new.
    pub(super) retired: bool,
    /// Nothing was read when it last went to sleep, because the server would not.
    deaf: bool,
}

impl Clocks {
    pub(super) fn new(limits: &Limits, now: Instant) -> Clocks {
        let expires_at = now.checked_add(limits.max_lifetime);
        let shortest = limits.idle_timeout.min(limits.silence_timeout).min(limits.max_lifetime);
        Clocks { now, expires_at, look_at: now.checked_add(shortest), retired: false, deaf: false }
    }
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> Worker<'_, T, R, S> {
    /// Until the first thing that must happen at its time; `None` if nothing must.
    pub(super) fn time_to_sleep(&mut self, read: bool, idle: bool) -> Result<Option<Duration>, CloseReason> {
        let write = write_time_left(&self.conn.link.wire.outbox, self.limits)?;
        let frame = self.frame_time_left(read)?;
        let link = &self.conn.link;
        let at_rest = match link.port.in_flight() {
            0 => {
                let look = self.clocks.look_at.map(|at| at.saturating_duration_since(self.clocks.now));
                look.into_iter().chain(idle.then_some(IDLE_AFTER)).min()
            }
            _ => None,
        };
        let due = link.port.next_deadline().into_iter().chain(link.timers.next_due()).min();
        let due = due.map(|due| due.saturating_duration_since(Instant::now()));
        Ok([write, frame, at_rest, due].into_iter().flatten().min())
    }

    /// Whether nothing has gone either way for a while. It may be a timer that ended the sleep, and not that.
    pub(super) fn is_quiet(&self) -> bool {
        self.clocks.now.saturating_duration_since(self.active_at()) >= IDLE_AFTER
    }

    fn active_at(&self) -> Instant {
        let tally = &self.conn.link.registered.entry().tally;
        tally.received_at().max(tally.sent_at())
    }

    /// How long the unfinished frame may still take. Its clock runs only while the server reads.
    fn frame_time_left(&mut self, read: bool) -> Result<Option<Duration>, CloseReason> {
        let was_deaf = std::mem::replace(&mut self.clocks.deaf, !read);
        if !read || !self.has_frames {
            return Ok(None);
        }
        if was_deaf {
            self.input.begin_again(self.clocks.now);
        }
        let Some(since) = self.input.unfinished_since() else { return Ok(None) };
        match self.limits.frame_timeout.checked_sub(since.elapsed()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(CloseReason::TimedOut(Timeout::Frame)),
        }
    }

    /// Whether a long time is over. Costs a comparison, mostly.
    #[inline]
    pub(super) fn end_if_too_old(&mut self) -> Result<(), CloseReason> {
        match self.clocks.look_at {
            Some(at) if self.clocks.now >= at => self.look_at_clocks(),
            _ => Ok(()),
        }
    }

    #[cold]
    fn look_at_clocks(&mut self) -> Result<(), CloseReason> {
        let (now, link) = (self.clocks.now, &self.conn.link);
        let entry = link.registered.entry();
        if self.clocks.expires_at.is_some_and(|at| now >= at) {
            self.clocks.retired = true;
        }
        let received_at = entry.tally.received_at();
        let at_work = link.port.in_flight() > 0 || !link.wire.outbox.is_empty() || link.paused;
        let exempt = at_work || entry.protected.load(Ordering::Relaxed);
        let mut next = self.clocks.expires_at.filter(|_| !self.clocks.retired);
        for (since, limit, timeout) in [
            (self.active_at(), self.limits.idle_timeout, Timeout::Idle),
            (received_at, self.limits.silence_timeout, Timeout::Silence),
        ] {
            let Some(over_at) = (if exempt { now } else { since }).checked_add(limit) else { continue };
            if now >= over_at {
                return Err(CloseReason::TimedOut(timeout));
            }
            next = next.into_iter().chain([over_at]).min();
        }
        self.clocks.look_at = next;
        Ok(())
    }
}

/// How long the client may still take nothing; `None` while it takes what comes.
pub(super) fn write_time_left(outbox: &Outbox, limits: &Limits) -> Result<Option<Duration>, CloseReason> {
    let Some(since) = outbox.blocked_since() else { return Ok(None) };
    match limits.write_timeout.checked_sub(since.elapsed()) {
        Some(left) if !left.is_zero() => Ok(Some(left)),
        _ => Err(CloseReason::TimedOut(Timeout::Write)),
    }
}
