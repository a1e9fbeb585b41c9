//! The times of a connection: how long its worker may sleep, and when one of them is over.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Worker;
use crate::net::Outbox;
use crate::server::close_reason::{CloseReason, Timeout};
use crate::server::limits::Limits;

/// A connection that has nothing to do for so long gives its buffers back.
pub(super) const IDLE_AFTER: Duration = Duration::from_secs(1);

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
    /// Since it last went to sleep there has been a task in flight, or anything else for its client.
    pub(super) at_work: bool,
    /// When it last went to sleep after that.
    worked_at: Instant,
    /// When the client closed its sending half.
    pub(super) ended_at: Option<Instant>,
}

impl Clocks {
    pub(super) fn new(limits: &Limits, now: Instant) -> Clocks {
        let expires_at = now.checked_add(limits.max_lifetime);
        let shortest = limits.idle_timeout.min(limits.silence_timeout).min(limits.max_lifetime);
        let look_at = now.checked_add(shortest);
        Clocks { now, expires_at, look_at, retired: false, at_work: false, worked_at: now, ended_at: None }
    }
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> Worker<'_, T, R, S> {
    /// Now, when the worker is about to sleep.
    pub(super) fn begin_rest(&mut self) -> Instant {
        let (now, link) = (Instant::now(), &self.conn.link);
        // Nobody resumes for a client that is gone, perhaps, or cannot be sent anything.
        let is_paused = link.paused && !self.is_peer_gone && link.wire.broken.is_none();
        let at_work = link.port.in_flight() > 0 || !link.wire.outbox.is_empty() || is_paused;
        if std::mem::replace(&mut self.clocks.at_work, at_work) {
            self.clocks.worked_at = now;
        }
        now
    }

    /// Until the first thing that must happen at its time; `None` if nothing must.
    pub(super) fn time_to_sleep(&self, read: bool, idle: bool, now: Instant) -> Result<Option<Duration>, CloseReason> {
        let link = &self.conn.link;
        let write = write_time_left(&link.wire.outbox, self.limits)?;
        let frame = if read { self.frame_time_left()? } else { None };
        let half_closed = self.half_closed_time_left();
        let release = idle.then_some(IDLE_AFTER);
        let look_at = self.clocks.look_at.filter(|_| link.port.in_flight() == 0);
        let due = [look_at, link.port.next_deadline(), link.timers.next_due()].into_iter().flatten().min();
        let due = due.map(|due| due.saturating_duration_since(now));
        Ok([write, frame, half_closed, release, due].into_iter().flatten().min())
    }

    /// How much longer a client is kept that has closed its sending half, though nothing is owed to it.
    pub(super) fn half_closed_time_left(&self) -> Option<Duration> {
        let ended_at = self.clocks.ended_at.filter(|_| !self.is_peer_gone)?;
        self.limits.half_closed_time.checked_sub(ended_at.elapsed()).filter(|left| !left.is_zero())
    }

    /// Whether nothing has gone either way for a while. It may be a timer that ended the sleep, and not that.
    pub(super) fn is_quiet(&self) -> bool {
        self.clocks.now.saturating_duration_since(self.active_at()) >= IDLE_AFTER
    }

    fn active_at(&self) -> Instant {
        let tally = &self.conn.link.registered.entry().tally;
        tally.received_at().max(tally.sent_at())
    }

    /// Until when what is sent may take after the lifetime is over; `None` if that never is.
    pub(super) fn last_moment(&self) -> Option<Instant> {
        let end = self.clocks.expires_at?.max(self.clocks.now);
        end.checked_add(self.limits.write_timeout)
    }

    /// Its outcomes wait for a client that takes too little, however often.
    pub(super) fn is_too_slow_to_retire(&self) -> bool {
        let since = self.clocks.expires_at.map_or(Duration::ZERO, |at| self.clocks.now.saturating_duration_since(at));
        self.conn.link.wire.outbox.is_congested() && since >= self.limits.write_timeout
    }

    /// How much longer the rest of the unfinished frame is waited for.
    fn frame_time_left(&self) -> Result<Option<Duration>, CloseReason> {
        let Some(awaited) = self.input.awaited() else { return Ok(None) };
        match self.limits.frame_timeout.checked_sub(awaited) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ if self.input.may_be_tls() => Err(CloseReason::UnexpectedTls),
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
        let heard_at = entry.tally.received_at().max(self.clocks.worked_at);
        let active_at = heard_at.max(self.active_at());
        let exempt = self.clocks.at_work || entry.protected.load(Ordering::Relaxed);
        let mut next = self.clocks.expires_at.filter(|_| !self.clocks.retired);
        for (since, limit, timeout) in [
            (active_at, self.limits.idle_timeout, Timeout::Idle),
            (heard_at, self.limits.silence_timeout, Timeout::Silence),
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
