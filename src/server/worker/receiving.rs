//! What comes from the client: bytes, cut into frames.

use std::io;
use std::time::Instant;

use super::{BATCH, Worker, is_transient, socket_error};
use crate::net::FrameError;
use crate::server::close_reason::CloseReason;
use crate::server::lifecycle::Phase;

impl<T: Send + 'static, R: Send + 'static, S: 'static> Worker<'_, T, R, S> {
    pub(super) fn read(&mut self) -> Result<(), CloseReason> {
        self.begin_to_serve();
        match self.input.fill(&mut self.conn.link.wire.stream) {
            Ok(0) => self.end_input(),
            Ok(n) => {
                self.owed = self.owed.saturating_sub(n as u64);
                self.conn.link.registered.entry().tally.received(n, self.clocks.now);
            }
            // All is here that was sent before it failed.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.conn.link.wire.has_failed() => {
                self.end_input();
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(socket_error(self.conn.link.wire.broken.take().unwrap_or(error))),
        }
        Ok(())
    }

    /// The client has sent no more than is here.
    pub(super) fn end_input(&mut self) {
        self.input_ended = true;
        self.clocks.ended_at.get_or_insert_with(Instant::now);
        let wire = &self.conn.link.wire;
        self.input.end(!wire.has_failed() && wire.stream.has_ended_in_order());
        if !self.input.may_have_frame() {
            // It brings nothing more, and must not stand in line before those who do.
            self.conn.link.port.leave_line();
        }
    }

    /// Whether this connection may be given more input now. Where the back room or the client's slowness says no,
    /// the worker is woken when that is over.
    pub(super) fn may_receive(&mut self) -> bool {
        // Asked in every case: who waits for room in the queue and is called must not keep the turn to itself.
        let should_pause = self.conn.link.port.should_pause();
        !should_pause && self.may_read()
    }

    /// Whether to look what comes next. Also where the back room takes no more for now, as long as there is no frame: the
    /// client may be gone.
    pub(super) fn may_read(&self) -> bool {
        self.phase == Phase::Serving && !self.conn.link.paused && !self.clocks.retired && !self.is_congested()
    }

    /// Hands the frames that are here to `on_receive`, until a batch is full or the connection may receive no
    /// more for now.
    pub(super) fn receive_frames(&mut self) -> Result<(), CloseReason> {
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
}
