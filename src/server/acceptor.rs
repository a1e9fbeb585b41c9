//! The thread that blocks until a client connects, and hands the socket to a worker.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::admission::Refusal;
use super::core::Core;
use super::lifecycle::Phase;
use super::listener::OpenListener;
use super::places::Place;
use super::worker::Accepted;
use crate::logging::LogLimit;
use crate::net::{AcceptError, Sleeper, Stream, Waker};

/// How long to leave the listener alone when the process is out of descriptors: doubled each time in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// Finds a worker for a connection.
pub(super) type Hire = Arc<dyn Fn(Accepted, &mut Option<Sleeper>) -> io::Result<()> + Send + Sync>;

/// Of one listener.
pub(super) struct Acceptor {
    core: Arc<Core>,
    listener: OpenListener,
    sleeper: Sleeper,
    hire: Hire,
    /// The wake-up descriptor of the next new worker. Made before a client is accepted, so that none is accepted only to
    /// be dropped where descriptors are short.
    next: Option<Sleeper>,
    backoff: Duration,
    log: LogLimit,
}

impl Acceptor {
    pub(super) fn new(core: Arc<Core>, listener: OpenListener, sleeper: Sleeper, hire: Hire) -> Acceptor {
        let log = LogLimit::default();
        Acceptor { core, listener, sleeper, hire, next: None, backoff: FIRST_BACKOFF, log }
    }

    pub(super) fn waker(&self) -> &Arc<Waker> {
        self.sleeper.waker()
    }

    /// Accepts until the server shuts down; nothing else ends it.
    pub(super) fn run(&mut self) {
        while self.serving() {
            let Some(mut place) = self.core.places.take() else {
                // The backlog of the kernel is the queue now.
                self.wait_for_place();
                continue;
            };
            match self.accept() {
                Ok(stream) => {
                    self.backoff = FIRST_BACKOFF;
                    place.occupy();
                    self.admit(stream, place);
                }
                Err(AcceptError::Empty) => {
                    drop(place);
                    self.wait_for_client();
                }
                Err(AcceptError::ClientGone(error)) => log::debug!("a client was gone before it was accepted: {error}"),
                Err(AcceptError::Exhausted(error)) => {
                    drop(place);
                    self.warn("cannot accept for now", &error);
                    self.back_off(self.backoff);
                    self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
                }
            }
        }
    }

    /// Gives a client a worker, unless its address has enough of them.
    fn admit(&mut self, stream: Stream, place: Place) {
        let settings = &self.listener.settings;
        let admitted = match settings.is_proxy(stream.peer_addr()) {
            // Whose client it is will turn out.
            true => None,
            false => match settings.admission.admit(stream.peer_addr(), Instant::now()) {
                Ok(admitted) => admitted,
                Err(refusal) => return self.refuse(&stream, refusal),
            },
        };
        let settings = Arc::clone(settings);
        if let Err(error) = (self.hire)(Accepted { stream, settings, admitted, place }, &mut self.next) {
            self.core.registry.count_no_thread();
            self.warn("no thread for a connection, which is refused", &error);
        }
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

    fn serving(&self) -> bool {
        self.core.lifecycle.phase() == Phase::Serving
    }

    fn accept(&mut self) -> Result<Stream, AcceptError> {
        if self.next.is_none() {
            self.next = Some(Sleeper::new().map_err(AcceptError::Exhausted)?);
        }
        self.listener.socket.accept()
    }

    /// Not marked asleep: a closing connection need not wake it, and a shutdown interrupts it all the same.
    fn wait_for_client(&mut self) {
        if let Err(error) = self.sleeper.sleep(Some(self.listener.socket.as_fd()), true, false, None) {
            self.warn("cannot wait for clients", &error);
            self.back_off(LAST_BACKOFF);
        }
    }

    /// Blocks until a place is free.
    fn wait_for_place(&self) {
        self.sleep_until(|| self.core.places.has_place(), None);
    }

    /// Blocks for a time, or until a connection has closed. A place that another acceptor gives back unused is no reason
    /// to try again: the two would wake each other without end.
    fn back_off(&self, time: Duration) {
        let connections = self.core.places.connections();
        self.sleep_until(|| self.core.places.connections() < connections, Instant::now().checked_add(time));
    }

    /// Blocks until `done`, the deadline or a shutdown. Whoever makes it done wakes those that are marked asleep.
    fn sleep_until(&self, done: impl Fn() -> bool, deadline: Option<Instant>) {
        loop {
            self.sleeper.mark_asleep();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if done() || !self.serving() || left.is_some_and(|left| left.is_zero()) {
                return self.sleeper.mark_awake();
            }
            if let Err(error) = self.sleeper.sleep(None, false, false, left) {
                self.warn("cannot wait for a connection to close", &error);
                // Without `poll` there is nothing to wait on, and trying again at once would spin.
                thread::sleep(LAST_BACKOFF);
            }
        }
    }

    fn warn(&self, what: &str, error: &io::Error) {
        if let Some(held_back) = self.log.permit() {
            log::warn!("{}: {what}: {error} ({held_back} more since the last line)", self.listener.settings.name);
        }
    }
}
