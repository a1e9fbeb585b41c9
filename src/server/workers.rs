//! The threads of the connections: one each, started when needed, kept a short while for the next one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::handle::Core;
use super::service::Service;
use super::worker::{Accepted, serve};
use crate::logging::foreign;
use crate::panic::catch;
use crate::task::Wake;

/// How many threads without a connection are kept, and how long.
const MAX_IDLE: usize = 16;
const IDLE_TIME: Duration = Duration::from_secs(1);

/// Finds a thread for each connection. Dropped, it sends the idle threads home.
pub(super) struct Workers<T: Send + 'static, R: Send + 'static, S> {
    service: Arc<Service<T, R, S>>,
    /// A rendezvous: a connection goes through only if an idle thread stands at the other end.
    to_idle: Sender<Accepted>,
    from_acceptor: Receiver<Accepted>,
    idle: Arc<AtomicUsize>,
    /// How many threads were started, for their names.
    started: AtomicU64,
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> Workers<T, R, S> {
    pub(super) fn new(service: Arc<Service<T, R, S>>) -> Self {
        let (to_idle, from_acceptor) = crossbeam_channel::bounded(0);
        Workers { service, to_idle, from_acceptor, idle: Arc::default(), started: AtomicU64::new(0) }
    }

    /// Gives the connection to a thread. Where none can be started, it is closed.
    pub(super) fn hire(&self, accepted: Accepted) -> io::Result<()> {
        let Err(refused) = self.to_idle.try_send(accepted) else { return Ok(()) };
        let accepted = refused.into_inner();
        let number = self.started.fetch_add(1, Ordering::Relaxed) + 1;
        let worker = WorkerThread {
            counted: Counted::new(&self.service.core),
            service: Arc::clone(&self.service),
            from_acceptor: self.from_acceptor.clone(),
            idle: Arc::clone(&self.idle),
        };
        thread::Builder::new()
            .name(format!("backroom-worker-{number}"))
            .stack_size(self.service.config.connections.worker_stack_size)
            .spawn(move || worker.run(accepted))?;
        Ok(())
    }
}

struct WorkerThread<T: Send + 'static, R: Send + 'static, S> {
    service: Arc<Service<T, R, S>>,
    from_acceptor: Receiver<Accepted>,
    idle: Arc<AtomicUsize>,
    /// Last, so that the thread holds nothing any more when it is no longer counted.
    counted: Counted,
}

impl<T: Send + 'static, R: Send + 'static, S: 'static> WorkerThread<T, R, S> {
    fn run(self, first: Accepted) {
        self.counted.core.claim_thread();
        let mut next = Some(first);
        while let Some(accepted) = next {
            // User code has fences of its own; this one is for what we did not think of.
            if let Err(message) = catch(|| serve(&self.service, accepted)) {
                log::error!("a worker panicked outside its callbacks: {}", foreign(message));
            }
            next = self.wait_for_next();
        }
    }

    fn wait_for_next(&self) -> Option<Accepted> {
        let others = self.idle.fetch_add(1, Ordering::Relaxed);
        let next = match others < MAX_IDLE {
            true => self.from_acceptor.recv_timeout(IDLE_TIME).ok(),
            false => None,
        };
        self.idle.fetch_sub(1, Ordering::Relaxed);
        next
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
