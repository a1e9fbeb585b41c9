//! The loop of one connection: it sleeps in one place, and does everything else on the way there.

mod clocks;
mod closing;
mod delivering;
mod opening;
mod receiving;
mod serving;
mod sleeping;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Instant;

pub(super) use serving::{Accepted, serve};

use super::buffered::Buffered;
use super::close_reason::{CloseReason, Timeout};
use super::connection::Connection;
use super::core::Core;
use super::lifecycle::Phase;
use super::limits::Limits;
use super::link::LinkState;
use super::mailbox::Mailbox;
use super::service::Service;
use crate::error::{SendError, SendFileError};
use crate::logging::foreign;
use crate::net::{Input, Sleeper};
use crate::patience::Patience;
use clocks::Clocks;

/// At most so many outcomes are delivered, and frames received, before the other has its turn.
const BATCH: usize = 64;
/// A worker that always has outcomes to deliver looks at its socket after so many turns all the same: the client may
/// have sent something, or be gone, or take nothing for too long.
const MAX_TURNS_AWAKE: u32 = 16;

struct Worker<'a, T: Send + 'static, R: Send + 'static, S> {
    service: &'a Service<T, R, S>,
    core: &'a Arc<Core>,
    limits: &'a Limits,
    input: Input,
    /// The client has closed its sending half.
    input_ended: bool,
    /// The client has closed altogether, or reset the connection; the kernel says so before what was sent until then is
    /// read. That is still to be read.
    is_peer_gone: bool,
    sleeper: &'a Sleeper,
    conn: Connection<T, R, S>,
    /// The buffers were not given back, or something has happened since.
    may_hold_buffers: bool,
    /// Since it last woke it has done more than send what others have for its client.
    has_served: bool,
    patience: Patience,
    /// Turns of the loop since the socket was last looked at.
    turns_awake: u32,
    /// What it was at the beginning of this turn of the loop.
    phase: Phase,
    /// What its client had sent when it was accepted is not all received.
    is_new: bool,
    /// How many bytes of that have yet to be read. Zero where no shutdown had begun.
    owed: u64,
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
        // Whoever connects mostly says something at once. `on_connect` may have taken its time.
        self.clocks.now = Instant::now();
        if self.may_receive() {
            self.read()?;
        }
        loop {
            self.begin_turn();
            self.deliver_outcomes()?;
            self.take_mail()?;
            self.run_timers()?;
            self.flush();
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
        self.phase = self.phase_now();
        self.conn.link.port.open = self.phase == Phase::Serving;
        self.conn.link.port.forget_time();
        self.conn.link.port.time_out();
        self.conn.link.port.hear_call();
        self.turns_awake += 1;
    }

    /// A client that was accepted at the last moment is answered what it had asked by then.
    fn phase_now(&self) -> Phase {
        match self.core.lifecycle.phase() {
            Phase::Draining if self.is_new => Phase::Serving,
            phase => phase,
        }
    }

    /// It does something that may take buffers, and is more than to send what others have for its client.
    fn begin_to_serve(&mut self) {
        (self.has_served, self.may_hold_buffers) = (true, true);
    }

    fn mailbox(&self) -> &Mailbox {
        &self.conn.link.registered.entry().mailbox
    }

    /// Why a callback failed. One that could not send, because the client takes nothing any more or it has aborted the
    /// connection itself, did not.
    fn failure(&mut self, returned: anyhow::Result<()>) -> Option<anyhow::Error> {
        let was_refused = std::mem::take(&mut self.conn.link.wire.refused);
        let is_aborted = matches!(self.conn.link.state, LinkState::Aborting);
        returned.err().filter(|error| !(is_aborted || was_refused && says_closed(error)))
    }

    fn end_if_failed(&mut self, returned: anyhow::Result<()>) -> Result<(), CloseReason> {
        match self.failure(returned) {
            Some(error) => Err(CloseReason::CallbackFailed(error)),
            None => self.end_if_closing(),
        }
    }

    /// A callback may have closed the connection.
    fn end_if_closing(&self) -> Result<(), CloseReason> {
        match self.conn.link.state {
            LinkState::Open => Ok(()),
            LinkState::Aborting => Err(CloseReason::Aborted),
            LinkState::Closing | LinkState::Closed => Err(CloseReason::Server),
        }
    }

    /// Where nothing can be sent any more, all that is left to do is to receive what the client has sent.
    fn end_if_cut_off(&mut self) -> Result<(), CloseReason> {
        let may_receive_more = self.phase == Phase::Serving && !self.clocks.retired;
        let has_more = !self.input_ended || self.input.may_have_frame();
        match self.conn.link.wire.broken.take_if(|_| !may_receive_more || !has_more) {
            Some(error) => Err(socket_error(error)),
            None => Ok(()),
        }
    }

    /// Whether everything is done that was to be done.
    fn end_if_done(&mut self) -> Result<(), CloseReason> {
        self.end_if_closing()?;
        self.end_if_cut_off()?;
        let link = &self.conn.link;
        let no_tasks = link.port.in_flight() == 0;
        let settled = no_tasks && link.wire.outbox.is_empty();
        match self.phase {
            Phase::Serving if self.clocks.retired && (no_tasks || self.is_too_slow_to_retire()) => {
                Err(CloseReason::TimedOut(Timeout::Lifetime))
            }
            Phase::Serving
                if settled
                    && self.input_ended
                    && !self.input.may_have_frame()
                    && self.half_closed_time_left().is_none() =>
            {
                Err(CloseReason::Client)
            }
            Phase::Serving => Ok(()),
            Phase::Draining if settled => Err(CloseReason::Shutdown),
            Phase::Draining => Ok(()),
            Phase::Expired if link.port.has_message() => Ok(()),
            Phase::Expired => Err(CloseReason::Shutdown),
        }
    }

    /// Of a callback whose failure does not close the connection.
    fn log_if_failed(&mut self, callback: &str, returned: anyhow::Result<()>) {
        if let Some(error) = self.failure(returned) {
            self.log_callback_error(callback, &error);
        }
    }

    fn log_callback_error(&self, callback: &str, error: &anyhow::Error) {
        let error = foreign(format_args!("{error:#}"));
        self.core.log_callback(self.conn.id(), &format!("{callback} failed: {error}"));
    }
}

/// TLS says in an error of its own what the client has done wrong.
fn socket_error(error: io::Error) -> CloseReason {
    match error.kind() {
        io::ErrorKind::InvalidData => CloseReason::TlsFailed(error.to_string()),
        _ => CloseReason::Io(error),
    }
}

/// Whether it is that nothing can be sent, with whatever context.
fn says_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(SendError::Closed))
            || matches!(cause.downcast_ref(), Some(SendFileError::Closed))
    })
}

pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
