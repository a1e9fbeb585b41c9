//! The thread that blocks until a client connects, and hands the socket to a worker.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::core::Core;
use super::entrance::Entrance;
use super::lifecycle::Phase;
use super::listener::OpenListener;
use super::places::{Place, Short};
use super::refused::let_notice;
use super::worker::Accepted;
use crate::net::{AcceptError, Sleeper, Stream};
use crate::panic::catch;

/// How long to leave the listener alone when the process is out of descriptors: doubled each time in a row.
const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// Finds workers for connections.
pub(super) trait Hire: Send + Sync {
    /// Gives the connection to a thread, which needs the sleeper only if it is a new one.
    fn hire(&self, accepted: Accepted, sleeper: &mut Option<Sleeper>) -> Result<(), NoThread>;
}

/// Why a connection has no thread.
pub(super) enum NoThread {
    /// There is no address space for one more. The connection can have one when another has closed.
    NoRoom(Box<Accepted>),
    /// It could not be started, and the connection is closed.
    Failed(io::Error),
}

/// Of one listener.
pub(super) struct Acceptor {
    core: Arc<Core>,
    entrance: Arc<Entrance>,
    sleeper: Sleeper,
    workers: Arc<dyn Hire>,
    /// The wake-up descriptor of the next new worker. Made before a client is accepted, so that none is accepted only to
    /// be dropped where descriptors are short.
    next: Option<Sleeper>,
    /// A client that waits for a thread. None is accepted meanwhile.
    held: Option<Box<Accepted>>,
    backoff: Duration,
    /// While it lacks something for the next client.
    short: Option<Short>,
}

impl Acceptor {
    pub(super) fn new(core: Arc<Core>, listener: OpenListener, sleeper: Sleeper, workers: Arc<dyn Hire>) -> Acceptor {
        let entrance = Arc::new(Entrance::new(Arc::clone(&core), listener));
        Acceptor { core, entrance, sleeper, workers, next: None, held: None, backoff: FIRST_BACKOFF, short: None }
    }

    /// Accepts until the server shuts down; nothing else ends it.
    pub(super) fn run(mut self) {
        // What could panic in it is a logger; it goes on all the same.
        while catch(|| self.accept_all()).is_err() {}
        let mut refused = Vec::new();
        let _ = catch(|| self.accept_last(&mut refused));
        self.refuse_held(&mut refused);
        let Acceptor { core, entrance, sleeper, workers, .. } = self;
        // The listener is closed as soon as nobody waits there, since closing it resets those who do.
        drop((entrance, workers));
        let_notice(refused, &core, &sleeper);
    }

    /// A shutdown has begun: the clients that wait in the kernel's backlog by now are served, or refused where there is no
    /// place or no thread. No more than the backlog holds, since others may come without end.
    fn accept_last(&mut self, refused: &mut Vec<Stream>) {
        for _ in 0..=self.entrance.backlog() {
            self.refuse_held(refused);
            if self.core.lifecycle.phase() == Phase::Expired {
                return;
            }
            let accepted = match self.core.places.take() {
                Some(place) => self.accept(place).map(|accepted| accepted.into_iter().for_each(|it| self.hire(it))),
                None => self.entrance.refuse_next().map(|client| refused.push(client)),
            };
            match accepted {
                Ok(()) | Err(AcceptError::ClientGone(_)) => {}
                Err(AcceptError::Empty | AcceptError::Exhausted(_)) => return,
            }
        }
    }

    fn refuse_held(&mut self, refused: &mut Vec<Stream>) {
        refused.extend(self.held.take().map(|held| self.entrance.refuse_held(*held)));
    }

    fn accept_all(&mut self) {
        while self.entrance.is_open() {
            if let Some(held) = self.held.take() {
                self.hire(*held);
                continue;
            }
            let Some(place) = self.core.places.take() else {
                // The backlog of the kernel is the queue now.
                self.wait_for_place();
                continue;
            };
            match self.accept(place) {
                Ok(accepted) => accepted.into_iter().for_each(|accepted| self.hire(accepted)),
                Err(AcceptError::Empty) => self.wait_for_client(),
                Err(AcceptError::ClientGone(error)) => log::debug!("a client was gone before it was accepted: {error}"),
                Err(AcceptError::Exhausted(error)) => {
                    self.entrance.warn("cannot accept for now", &error);
                    self.lack();
                    self.back_off();
                }
            }
        }
    }

    fn accept(&mut self, place: Place) -> Result<Option<Accepted>, AcceptError> {
        if self.next.is_none() {
            self.next = Some(Sleeper::new().map_err(AcceptError::Exhausted)?);
        }
        self.entrance.accept(place)
    }

    fn hire(&mut self, accepted: Accepted) {
        match self.workers.hire(accepted, &mut self.next) {
            Ok(()) => (self.short, self.backoff) = (None, FIRST_BACKOFF),
            Err(NoThread::NoRoom(accepted)) => {
                self.held = Some(accepted);
                self.lack();
                self.entrance.warn("a client waits", &"there is no address space for its thread");
                self.back_off();
            }
            Err(NoThread::Failed(error)) => {
                self.lack();
                self.core.registry.count_no_thread();
                self.entrance.warn("no thread for a connection, which is refused", &error);
            }
        }
    }

    /// Until it has found a worker for a client, no worker takes one by itself.
    fn lack(&mut self) {
        if self.short.is_none() {
            self.short = Some(self.core.places.short());
        }
    }

    /// Not marked asleep: a closing connection need not wake it, and a shutdown interrupts it all the same.
    fn wait_for_client(&mut self) {
        if let Err(error) = self.sleeper.sleep(Some(self.entrance.as_fd()), true, false, None) {
            self.entrance.warn("cannot wait for clients", &error);
            self.pause(LAST_BACKOFF);
        }
    }

    /// Blocks until a place is free.
    fn wait_for_place(&self) {
        self.entrance.say_full();
        self.sleep_until(|| self.core.places.has_place(), None);
    }

    /// Pauses, for longer each time until a connection has closed: its thread is free a moment later.
    fn back_off(&mut self) {
        let has_closed = self.pause(self.backoff);
        self.backoff = if has_closed { FIRST_BACKOFF } else { (self.backoff * 2).min(LAST_BACKOFF) };
    }

    /// Blocks for a time, or until a connection has closed, which it returns. A place that another acceptor gives back
    /// unused is no reason to try again: the two would wake each other without end.
    fn pause(&self, time: Duration) -> bool {
        let connections = self.core.places.connections();
        let has_closed = || self.core.places.connections() < connections;
        self.sleep_until(has_closed, Instant::now().checked_add(time));
        has_closed()
    }

    /// Blocks until `done`, the deadline or a shutdown. Whoever makes it done wakes those that are marked asleep.
    fn sleep_until(&self, done: impl Fn() -> bool, deadline: Option<Instant>) {
        loop {
            self.sleeper.mark_asleep();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if done() || !self.entrance.is_open() || left.is_some_and(|left| left.is_zero()) {
                return self.sleeper.mark_awake();
            }
            if let Err(error) = self.sleeper.sleep(None, false, false, left) {
                self.entrance.warn("cannot wait for a connection to close", &error);
                // Without `poll` there is nothing to wait on, and trying again at once would spin.
                thread::sleep(LAST_BACKOFF);
            }
        }
    }
}
