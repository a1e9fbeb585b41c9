//! The front of house: accepts clients, gives each a worker, and ends in good order. Knows tasks only through a
//! `Port` and the pool it comes from.

mod acceptor;
mod builder;
mod close_reason;
mod connection;
mod handle;
mod lifecycle;
mod link;
mod mailbox;
mod registry;
mod service;
mod settings;
mod worker;
mod workers;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use acceptor::{Acceptor, Hire};
use builder::{OnShutdown, OnStart};
use handle::Core;

pub use builder::{ServerBuilder, stage};
pub use close_reason::CloseReason;
pub use connection::Connection;
pub use handle::ServerHandle;
pub use lifecycle::ShutdownReport;
pub use link::Link;
pub use registry::{ConnectionId, ConnectionInfo};

use crate::error::{JoinError, RunError};
use crate::logging::foreign;
use crate::net::{Listener, Sleeper, Waker};
use crate::panic::catch;
use crate::stats::TaskStats;
use crate::task::{Pool, Wake};
use crate::times::TaskTimes;

/// After the deadline, how long the abandoned outcomes may take to be delivered.
const GRACE: Duration = Duration::from_millis(250);

/// A server that is bound to its address and has its task workers; [`run`](Self::run) serves.
///
/// Dropped without having run, it gives back its port and its threads.
#[must_use]
pub struct Server {
    core: Arc<Core>,
    acceptor: Acceptor,
    acceptor_waker: Arc<Waker>,
    back_room: Arc<dyn BackRoom>,
    on_start: Option<OnStart>,
    on_shutdown: Option<OnShutdown>,
    /// Last, so that those who wait for the end hear of it when all is gone.
    ending: Ending,
}

/// What a server needs of its task pool, whatever the types of its tasks.
trait BackRoom: Send + Sync {
    fn drain(&self);
    fn end(&self);
    fn loops(&self) -> usize;
    fn is_at_rest(&self) -> bool;
    fn abandon(&self);
    fn recycle(&self);
    fn stats(&self) -> TaskStats;
    fn times(&self) -> Option<TaskTimes>;
}

impl<T: Send + 'static, R: Send + 'static> BackRoom for Pool<T, R> {
    fn drain(&self) {
        Pool::drain(self);
    }

    fn end(&self) {
        Pool::end(self);
    }

    fn loops(&self) -> usize {
        Pool::loops(self)
    }

    fn is_at_rest(&self) -> bool {
        Pool::is_at_rest(self)
    }

    fn abandon(&self) {
        Pool::abandon(self);
    }

    fn recycle(&self) {
        Pool::recycle(self);
    }

    fn stats(&self) -> TaskStats {
        Pool::stats(self)
    }

    fn times(&self) -> Option<TaskTimes> {
        Pool::times(self)
    }
}

/// A server that ends without a report never ran.
struct Ending(Arc<Core>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lifecycle.end(Err(JoinError::NeverRan));
    }
}

impl Wake for Waker {
    fn wake(&self) {
        self.wake_fenced();
    }
}

impl Server {
    /// A server to be put together.
    pub fn builder<T, R>() -> ServerBuilder<T, R> {
        ServerBuilder::new()
    }

    fn new(
        core: Arc<Core>,
        listener: Listener,
        sleeper: Sleeper,
        hire: Hire,
        back_room: Arc<dyn BackRoom>,
        on_start: Option<OnStart>,
        on_shutdown: Option<OnShutdown>,
    ) -> Server {
        Server {
            acceptor_waker: Arc::clone(sleeper.waker()),
            acceptor: Acceptor::new(Arc::clone(&core), listener, sleeper, hire),
            back_room,
            on_start,
            on_shutdown,
            ending: Ending(Arc::clone(&core)),
            core,
        }
    }

    /// A handle to this server, for other threads.
    pub fn handle(&self) -> ServerHandle {
        ServerHandle { core: Arc::clone(&self.core) }
    }

    /// The address the server listens on, with the port it got where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.handle().local_addr()
    }

    /// Serves until [`ServerHandle::shutdown`] is called and its work is done; blocks for all that time. What is not
    /// done at the shutdown's deadline has some 250 ms more to be delivered as abandoned; then `on_shutdown` runs.
    pub fn run(self) -> Result<ShutdownReport, RunError> {
        let handle = self.handle();
        // `_ending` comes first, so that it is dropped last.
        let Server { ending: _ending, core, acceptor, acceptor_waker, back_room, on_start, on_shutdown } = self;
        if let Some(on_start) = on_start {
            core.catch_callback(|| on_start(&handle))
                .unwrap_or_else(|message| Err(anyhow::anyhow!("it panicked: {message}")))
                .map_err(RunError::OnStart)?;
        }
        let acceptor = thread::Builder::new()
            .name("backroom-acceptor".to_owned())
            .spawn(move || run_acceptor(acceptor))
            .map_err(RunError::Acceptor)?;

        core.lifecycle.wait_for_shutdown();
        log::info!("shutting down");
        acceptor_waker.interrupt();
        if acceptor.join().is_err() {
            log::error!("the acceptor panicked");
        }
        let report = drain(&core, &*back_room);
        drop(back_room);

        if let Some(on_shutdown) = on_shutdown {
            match core.catch_callback(|| on_shutdown(&report)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => log::error!("on_shutdown failed: {}", foreign(format_args!("{error:#}"))),
                Err(message) => log::error!("on_shutdown panicked: {}", foreign(message)),
            }
        }
        core.lifecycle.end(Ok(report));
        Ok(report)
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}

/// What could panic in it is a logger; it goes on all the same.
fn run_acceptor(mut acceptor: Acceptor) {
    while catch(|| acceptor.run()).is_err() {}
}

/// Waits for the connections to finish and close, then for the tasks that nobody waits for any more; at the
/// deadline gives up what is left.
fn drain(core: &Core, back_room: &dyn BackRoom) -> ShutdownReport {
    let workers = || core.registry.threads().load(Ordering::Acquire);
    let task_workers = || back_room.loops();

    back_room.drain();
    core.registry.wake_all();
    let in_time = core.lifecycle.wait_until(|| workers() == 0) && {
        back_room.end();
        core.lifecycle.wait_until(|| back_room.is_at_rest())
    };
    // In time, this refuses and gives up what no one can have submitted any more: nothing.
    back_room.abandon();
    if !in_time {
        core.lifecycle.expire();
        core.registry.wake_all();
        back_room.end();
        core.lifecycle.wait_at_most(GRACE, || workers() == 0 && task_workers() == 0);
    }

    let tasks = back_room.stats();
    let report = ShutdownReport { tasks, task_workers_running: task_workers(), workers_running: workers() };
    log::info!(
        "shut down: {} tasks accepted, {} abandoned; {} task workers and {} workers still run",
        tasks.accepted,
        tasks.abandoned,
        report.task_workers_running,
        report.workers_running
    );
    report
}
