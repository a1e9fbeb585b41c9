//! One listener's way in: a place for a client, the client, and whether its address may come.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::admission::Refusal;
use super::core::Core;
use super::lifecycle::Phase;
use super::listener::OpenListener;
use super::places::Place;
use super::worker::Accepted;
use crate::logging::LogLimit;
use crate::net::{AcceptError, Stream};

/// The acceptor's, which ends it. A worker that is done with a client looks here for the next one.
pub(super) struct Entrance {
    core: Arc<Core>,
    listener: OpenListener,
    log: LogLimit,
    /// Of the lines that say that all places are taken: one must not be left out because of another warning.
    log_full: LogLimit,
}

impl Entrance {
    pub(super) fn new(core: Arc<Core>, listener: OpenListener) -> Entrance {
        Entrance { core, listener, log: LogLimit::default(), log_full: LogLimit::default() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.core.lifecycle.phase() == Phase::Serving
    }

    /// How many clients may wait.
    pub(super) fn backlog(&self) -> u32 {
        self.listener.socket.backlog()
    }

    /// The next client, which may have the place; `None` if it was refused. Never blocks.
    pub(super) fn accept(self: &Arc<Self>, mut place: Place) -> Result<Option<Accepted>, AcceptError> {
        let OpenListener { socket, settings } = &self.listener;
        let stream = socket.accept()?;
        place.occupy();
        let admitted = match settings.is_proxy(stream.peer_addr()) {
            // Whose client it is will turn out.
            true => None,
            false => match settings.admission.admit(stream.peer_addr(), Instant::now()) {
                Ok(admitted) => admitted,
                Err(refusal) => {
                    self.refuse(&stream, refusal);
                    return Ok(None);
                }
            },
        };
        let (entrance, settings) = (Arc::downgrade(self), Arc::clone(settings));
        Ok(Some(Accepted { stream, settings, entrance, admitted, place }))
    }

    /// A client that waits already, for a worker that has just become free: that spares handing it over, and the worker
    /// its sleep. Where places are short, the acceptors of all listeners come first.
    pub(super) fn next_waiting(self: &Arc<Self>) -> Option<Accepted> {
        while self.is_open() {
            match self.accept(self.core.places.take_spare()?) {
                Ok(Some(accepted)) => return Some(accepted),
                Ok(None) => {}
                // If there is something to be done about it, the acceptor will find it too.
                Err(_) => break,
            }
        }
        None
    }

    /// The next client, for which there is no place, and which is to be told so. Never blocks.
    pub(super) fn refuse_next(&self) -> Result<Stream, AcceptError> {
        let stream = self.listener.socket.accept()?;
        self.core.places.count_refused();
        self.core.registry.count_shut_out();
        Ok(stream)
    }

    /// A client for which there is no thread, and which is to be told so.
    pub(super) fn refuse_held(&self, held: Accepted) -> Stream {
        self.core.registry.count_shut_out();
        held.stream
    }

    fn refuse(&self, stream: &Stream, refusal: Refusal) {
        self.core.registry.count_refusal(refusal);
        if let Some(held_back) = self.log.permit() {
            let (name, peer, why) = (
                &self.listener.settings.name,
                stream.peer_addr(),
                match refusal {
                    Refusal::TooMany => "max_connections_per_address",
                    Refusal::TooFast => "accept_rate_per_address",
                },
            );
            log::warn!("{name}: {peer} is refused, by {why} ({held_back} more since the last line)");
        }
    }

    /// There is no place for the next client.
    pub(super) fn say_full(&self) {
        if let Some(held_back) = self.log_full.permit() {
            let (name, most) = (&self.listener.settings.name, self.core.places.max_connections());
            log::warn!(
                "{name}: all {most} connections that there may be (max_connections) are open; who comes now waits \
                 ({held_back} more since the last line)"
            );
        }
    }

    pub(super) fn warn(&self, what: &str, why: &dyn fmt::Display) {
        if let Some(held_back) = self.log.permit() {
            log::warn!("{}: {what}: {why} ({held_back} more since the last line)", self.listener.settings.name);
        }
    }
}

impl AsFd for Entrance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.socket.as_fd()
    }
}
