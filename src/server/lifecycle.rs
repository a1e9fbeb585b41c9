//! From bound to ended: the phase that every thread of a server looks at, and the waiting for it to change.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::JoinError;
use crate::stats::TaskStats;

/// How a server ended, from [`Server::run`](crate::Server::run) and
/// [`ServerHandle::wait`](crate::ServerHandle::wait).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// The books of the tasks. Nothing was lost if `tasks.abandoned` is 0.
    pub tasks: TaskStats,
    /// Task workers whose thread has not ended: it runs an abandoned task, or makes or gives up its state. Rust cannot
    /// kill a thread.
    pub task_workers_running: usize,
    /// Workers whose thread is still inside a callback.
    pub workers_running: usize,
    /// What else of the program's own code still runs, though its time is over: `on_start`, `before_shutdown` and
    /// `on_shutdown` by these names, and what belongs to tasks that were cancelled or given up (an observer, a logger,
    /// the drop of a payload) as `cancelling` and `giving up`.
    pub hooks_running: Vec<&'static str>,
}

/// What the threads of a server are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Phase {
    /// Serve.
    Serving,
    /// Read no more; finish what is in flight.
    Draining,
    /// Deliver what is there and go.
    Expired,
}

pub(super) struct Lifecycle {
    phase: AtomicU8,
    /// Something is to be done between the wish to shut down and its beginning.
    waits_to_drain: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    shutdown: Option<Shutdown>,
    end: Option<Result<ShutdownReport, JoinError>>,
}

#[derive(Clone, Copy)]
struct Shutdown {
    /// `None`: further away than the clock reaches.
    deadline: Option<Instant>,
}

impl Lifecycle {
    pub(super) fn new(waits_to_drain: bool) -> Lifecycle {
        Lifecycle {
            waits_to_drain,
            phase: AtomicU8::new(Phase::Serving as u8),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Serving,
            1 => Phase::Draining,
            _ => Phase::Expired,
        }
    }

    /// Asks for the shutdown, or brings the deadline of one that has begun forward.
    pub(super) fn begin_shutdown(&self, within: Duration) {
        let deadline = Instant::now().checked_add(within);
        let mut state = self.state.lock();
        let deadline = match state.shutdown {
            Some(Shutdown { deadline: Some(earlier) }) if deadline.is_none_or(|deadline| earlier < deadline) => {
                Some(earlier)
            }
            _ => deadline,
        };
        state.shutdown = Some(Shutdown { deadline });
        if !self.waits_to_drain {
            self.drain();
        }
        self.changed.notify_all();
    }

    /// The shutdown begins.
    pub(super) fn drain(&self) {
        self.phase.fetch_max(Phase::Draining as u8, Ordering::AcqRel);
    }

    pub(super) fn expire(&self) {
        self.phase.store(Phase::Expired as u8, Ordering::Release);
    }

    pub(super) fn wait_for_shutdown(&self) {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| state.shutdown.is_none());
    }

    /// How much of the time of a shutdown is left; `None`: no end is in sight.
    fn time_left(state: &State) -> Option<Duration> {
        let deadline = state.shutdown.and_then(|shutdown| shutdown.deadline)?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Waits until `done`, but no longer than the shutdown's deadline and `grace` from now, whichever is later.
    pub(super) fn wait_with_grace(&self, grace: Duration, done: impl Fn() -> bool) -> bool {
        let grace_ends = Instant::now().checked_add(grace);
        let mut state = self.state.lock();
        loop {
            if done() {
                return true;
            }
            let grace = grace_ends.map(|end| end.saturating_duration_since(Instant::now()));
            match Lifecycle::time_left(&state).zip(grace).map(|(left, grace)| left.max(grace)) {
                Some(Duration::ZERO) => return false,
                Some(left) => drop(self.changed.wait_for(&mut state, left)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Waits until `done`, which is asked again at each [`notify`](Self::notify), or the shutdown's deadline;
    /// says which came.
    pub(super) fn wait_until(&self, done: impl Fn() -> bool) -> bool {
        self.wait_with_grace(Duration::ZERO, done)
    }

    /// The same, but at most for `time`.
    pub(super) fn wait_at_most(&self, time: Duration, done: impl Fn() -> bool) {
        let mut state = self.state.lock();
        self.changed.wait_while_for(&mut state, |_| !done(), time);
    }

    /// Something that somebody waits for may have come.
    pub(super) fn notify(&self) {
        // Whoever waits holds the lock between asking and sleeping; taking it here, no one is missed.
        drop(self.state.lock());
        self.changed.notify_all();
    }

    /// The end; only the first one counts.
    pub(super) fn end(&self, end: Result<ShutdownReport, JoinError>) {
        self.state.lock().end.get_or_insert(end);
        self.changed.notify_all();
    }

    pub(super) fn wait_for_end(&self) -> Result<ShutdownReport, JoinError> {
        let mut state = self.state.lock();
        loop {
            if let Some(end) = &state.end {
                return end.clone();
            }
            self.changed.wait(&mut state);
        }
    }
}
