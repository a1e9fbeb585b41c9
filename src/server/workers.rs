//! The threads of the connections: one each, started when needed, kept a short while for the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use super::acceptor::{Hire, NoThread};
use super::core::Core;
use super::idle_threads::IdleThreads;
use super::service::Service;
use super::worker::{Accepted, serve};
use crate::logging::foreign;
use crate::net::Sleeper;
use crate::new_thread::NewThread;
use crate::panic::catch;
use crate::task::Wake;

/// How long a thread without a connection is kept. Where clients come and go, starting and ending threads would take more
/// time than serving them.
const IDLE_TIME: Duration = Duration::from_secs(1);

/// Finds a thread for each connection. Dropped, it sends the idle threads home.
pub(super) struct Workers<T: Send + 'static, R: Send + 'static, S> {
    service: Arc<Service<T, R, S>>,
    idle: Arc<IdleThreads<Accepted>>,
    /// How many threads were started, for their names.
    started: AtomicU64,
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> Workers<T, R, S> {
    pub(super) fn new(service: Arc<Service<T, R, S>>) -> Self {
        Workers { service, idle: Arc::new(IdleThreads::new(IDLE_TIME)), started: AtomicU64::new(0) }
    }
}

impl<T: Send + 'static, R: Send + 'static, S> Workers<T, R, S> {
    /// Whether one may become free or end.
    fn has_threads(&self) -> bool {
        // Each of them has one.
        Arc::strong_count(&self.idle) > 1
    }
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> Hire for Workers<T, R, S> {
    fn hire(&self, accepted: Accepted, sleeper: &mut Option<Sleeper>) -> Result<(), NoThread> {
        let Err(accepted) = self.idle.hand_over(accepted) else { return Ok(()) };
        let thread = match NewThread::reserve(self.service.stack_size) {
            Ok(thread) => thread,
            Err(_) if self.has_threads() => return Err(NoThread::NoRoom(Box::new(accepted))),
            Err(error) => return Err(NoThread::Failed(error)),
        };
        let sleeper = sleeper.take().map_or_else(Sleeper::new, Ok).map_err(NoThread::Failed)?;
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let worker = WorkerThread {
            counted: Counted::new(&self.service.core),
            service: Arc::clone(&self.service),
            idle: Arc::clone(&self.idle),
        };
        let run = move || worker.run(accepted, sleeper);
        thread.start(format!("br-worker-{number}"), run).map(drop).map_err(NoThread::Failed)
    }
}

impl<T: Send + 'static, R: Send + 'static, S> Drop for Workers<T, R, S> {
    fn drop(&mut self) {
        self.idle.close();
    }
}

struct WorkerThread<T: Send + 'static, R: Send + 'static, S> {
    service: Arc<Service<T, R, S>>,
    idle: Arc<IdleThreads<Accepted>>,
    /// Last, so that the thread holds nothing any more when it is no longer counted.
    counted: Counted,
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> WorkerThread<T, R, S> {
    fn run(self, first: Accepted, mut sleeper: Sleeper) {
        self.counted.core.threads.claim();
        let mut next = Some(first);
        while let Some(accepted) = next {
            let entrance = accepted.entrance.clone();
            // User code has fences of its own; this one is for what we did not think of.
            if let Err(message) = catch(|| serve(&self.service, accepted, &sleeper)) {
                log::error!("a worker panicked outside its callbacks: {}", foreign(message));
            }
            sleeper.renew();
            let waiting = entrance.upgrade().and_then(|entrance| entrance.next_waiting());
            next = waiting.or_else(|| self.idle.wait());
        }
    }
}

/// A thread that whoever shuts down has to wait for.
pub(super) struct Counted {
    core: Arc<Core>,
}

impl Counted {
    pub(super) fn new(core: &Arc<Core>) -> Counted {
        core.registry.threads().fetch_add(1, Ordering::AcqRel);
        Counted { core: Arc::clone(core) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.core.registry.threads().fetch_sub(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.core.wake();
    }
}
