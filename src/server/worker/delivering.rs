//! What goes to the client: outcomes, mail, timers, and the writing of it.

use std::time::Instant;

use super::{BATCH, Worker};
use crate::panic::drop_fenced;
use crate::server::close_reason::CloseReason;
use crate::server::lifecycle::Phase;
use crate::server::mailbox::{Item, Taken};
use crate::server::timers::Timer;
use crate::task::Port;

impl<T: Send + 'static, R: Send + 'static, S: 'static> Worker<'_, T, R, S> {
    /// Runs the finish closures of the outcomes that are here.
    pub(super) fn deliver_outcomes(&mut self) -> Result<(), CloseReason> {
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
            self.clocks.at_work = true;
            self.begin_to_serve();
            let callbacks = &self.service.callbacks.tasks;
            let delivered = Port::deliver(&mut self.conn, |conn| &mut conn.link.port, callbacks);
            let returned = delivered.unwrap_or(Ok(()));
            if let Some(error) = self.failure(returned) {
                self.conn.link.port.ledger().finish_errors.add(1);
                self.log_callback_error("a finish closure", &error);
            }
            self.end_if_closing()?;
        }
        Ok(())
    }

    /// Sees to what others have had for this connection until now: moves what they sent into its outbox, as far as
    /// there is room, and runs what they want run.
    pub(super) fn take_mail(&mut self) -> Result<(), CloseReason> {
        for _ in 0..self.mailbox().len() {
            let Some(taken) = self.mailbox().take(&self.conn.link.wire.outbox) else { break };
            match taken {
                Taken::Item(Item::Send(piece, messages)) => {
                    self.may_hold_buffers = true;
                    // Fits, since it was taken for this outbox.
                    self.conn.link.wire.push(piece, messages);
                }
                Taken::Item(Item::Visit(run)) => {
                    self.begin_to_serve();
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
    pub(super) fn run_timers(&mut self) -> Result<(), CloseReason> {
        if self.conn.link.timers.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some(mut due) = self.conn.link.timers.take_due(now) else { break };
            self.begin_to_serve();
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

    pub(super) fn flush(&mut self) {
        self.conn.link.wire.flush();
        if self.conn.link.wire.broken.is_some() {
            let unsent = self.mailbox().stop_sending();
            self.conn.link.wire.is_short |= !unsent.is_empty();
            unsent.into_iter().for_each(drop_fenced);
        }
        self.count_sent();
    }

    #[inline]
    pub(super) fn count_sent(&mut self) {
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
    pub(super) fn tell_watermarks(&mut self) -> Result<(), CloseReason> {
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

    /// Whether finish closures may send more now. A client that takes nothing delays its own outcomes; at a
    /// shutdown's deadline they come all the same.
    pub(super) fn may_deliver(&self) -> bool {
        !self.is_congested() || self.phase == Phase::Expired
    }

    /// Whether what waits for the client must become less before more is added to it.
    pub(super) fn is_congested(&self) -> bool {
        let outbox = &self.conn.link.wire.outbox;
        outbox.is_congested() || self.mailbox().waits_for(outbox)
    }
}
