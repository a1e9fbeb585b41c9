//! The thread that blocks until a client connects, and hands the socket to a worker.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::handle::Core;
use super::lifecycle::Phase;
use super::worker::Accepted;
use crate::logging::LogLimit;
use crate::net::{AcceptError, Listener, Sleeper};

/// How long to leave the listener alone when the process is out of descriptors: doubled each time in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// Finds a worker for a connection.
pub(super) type Hire = Box<dyn FnMut(Accepted) -> io::Result<()> + Send>;

pub(super) struct Acceptor {
    core: Arc<Core>,
    listener: Listener,
    sleeper: Sleeper,
    hire: Hire,
    /// The wake-up descriptor of the next connection. Made before it is accepted, so that no client is
    /// accepted only to be dropped where descriptors are short.
    next: Option<Sleeper>,
    backoff: Duration,
    log: LogLimit,
}

impl Acceptor {
    pub(super) fn new(core: Arc<Core>, listener: Listener, sleeper: Sleeper, hire: Hire) -> Acceptor {
        let log = LogLimit::default();
        Acceptor { core, listener, sleeper, hire, next: None, backoff: FIRST_BACKOFF, log }
    }

    /// Accepts until the server shuts down; nothing else ends it.
    pub(super) fn run(&mut self) {
        while self.serving() {
            let taken = self.core.registry.taken();
            if self.core.registry.is_full(taken) {
                // The backlog of the kernel is the queue now.
                self.wait_for_place(taken, None);
                continue;
            }
            match self.accept() {
                Ok(accepted) => {
                    self.backoff = FIRST_BACKOFF;
                    if let Err(error) = (self.hire)(accepted) {
                        self.core.registry.count_refused();
                        self.warn("no thread for a connection, which is refused", &error);
                    }
                }
                Err(AcceptError::Empty) => self.wait_for_client(),
                Err(AcceptError::ClientGone(error)) => log::debug!("a client was gone before it was accepted: {error}"),
                Err(AcceptError::Exhausted(error)) => {
                    self.warn("cannot accept for now", &error);
                    self.wait_for_place(taken, Some(self.backoff));
                    self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
                }
            }
        }
    }

    fn serving(&self) -> bool {
        self.core.lifecycle.phase() == Phase::Serving
    }

    fn accept(&mut self) -> Result<Accepted, AcceptError> {
        let sleeper = match self.next.take() {
            Some(sleeper) => sleeper,
            None => Sleeper::new().map_err(AcceptError::Exhausted)?,
        };
        match self.listener.accept() {
            Ok(stream) => Ok(Accepted { stream, sleeper, place: self.core.registry.take_place() }),
            Err(error) => {
                self.next = Some(sleeper);
                Err(error)
            }
        }
    }

    /// Not marked asleep: a closing connection need not wake it, and a shutdown interrupts it all the same.
    fn wait_for_client(&mut self) {
        if let Err(error) = self.sleeper.sleep(Some(self.listener.as_fd()), true, false, None) {
            self.warn("cannot wait for clients", &error);
            self.wait_for_place(self.core.registry.taken(), Some(LAST_BACKOFF));
        }
    }

    /// Waits until fewer places are taken than there were, at most for `time`.
    fn wait_for_place(&self, taken: usize, time: Option<Duration>) {
        self.sleeper.mark_asleep();
        if !self.serving() || self.core.registry.taken() < taken {
            return self.sleeper.mark_awake();
        }
        if let Err(error) = self.sleeper.sleep(None, false, false, time) {
            self.warn("cannot wait for a connection to close", &error);
            // Without `poll` there is nothing to wait on, and trying again at once would spin.
            thread::sleep(LAST_BACKOFF);
        }
    }

    fn warn(&self, what: &str, error: &io::Error) {
        if let Some(held_back) = self.log.permit() {
            log::warn!("acceptor: {what}: {error} ({held_back} more since the last line)");
        }
    }
}
