//! The hooks beside the callbacks.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::logging::{LogLimit, foreign};
use crate::own_threads::OwnThreads;
use crate::panic::catch;
use crate::server::{CloseReason, ConnectionInfo};
use crate::task::{OutcomeKind, TaskId};

/// How a task ended, or one attempt at it: what an [`Observer`] is told.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct TaskEnded<'a> {
    /// The id that `task` returned to its submitter.
    pub id: TaskId,
    /// How it ended.
    pub how: OutcomeKind,
    /// Why it failed or panicked: the error with its causes, or the message of the panic. It may contain what a client
    /// has sent.
    pub error: Option<&'a str>,
    /// The number of who was to hear of it: of a connection, that in its [`ConnectionId`](crate::ConnectionId).
    pub submitter: u64,
    /// Who that is, in words: `connection 17 from 127.0.0.1:4711`, say; `None` of a [`Submitter`](crate::Submitter).
    pub of: Option<&'a dyn fmt::Display>,
    /// The index of the task worker that ran it; `None` where it was not running.
    pub worker_index: Option<usize>,
    /// How long it waited for a task worker. Zero where it never ran.
    pub time_queued: Duration,
    /// How long it ran. Zero where it never ran.
    pub time_run: Duration,
}

impl fmt::Debug for TaskEnded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskEnded { id, how, error, worker_index, .. } = self;
        f.debug_struct("TaskEnded")
            .field("id", id)
            .field("how", how)
            .field("error", error)
            .field("worker_index", worker_index)
            .finish_non_exhaustive()
    }
}

/// Is told what happens, to count it, trace it, or log it. Every method does nothing unless it is written; the form is
/// that of r2d2's `HandleEvent`.
///
/// The methods run on the thread where it happens, which waits for them: they should be quick. Of one task they come in
/// the order accepted, started, ended, but for one that is cancelled, times out or is abandoned just as it starts. One may
/// run within a call that submits, cancels or shuts down, so hold no lock over these that an observer takes. A
/// panic in one is logged and goes no further. Given to the builder by `observer`.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use std::sync::Arc;
///
/// use backroom::{Observer, OutcomeKind, TaskEnded};
///
/// #[derive(Default)]
/// struct Failures(AtomicU64);
///
/// impl Observer for Failures {
///     fn task_ended(&self, ended: &TaskEnded<'_>) {
///         if ended.how != OutcomeKind::Done {
///             self.0.fetch_add(1, Ordering::Relaxed);
///         }
///     }
/// }
///
/// # fn main() -> Result<(), backroom::BindError> {
/// let failures = Arc::new(Failures::default());
/// let server = backroom::Server::builder::<(), ()>()
///     .observer(Arc::clone(&failures))
///     .on_receive(|conn, _data| {
///         conn.task(())?;
///         Ok(())
///     })
///     .on_task(|_cx, ()| anyhow::bail!("no luck"))
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
pub trait Observer: Send + Sync {
    /// A task was accepted.
    fn task_accepted(&self, id: TaskId) {
        let _ = id;
    }

    /// A task worker begins to run a task; again for each attempt.
    fn task_started(&self, id: TaskId, worker_index: usize) {
        let _ = (id, worker_index);
    }

    /// An attempt at a task has failed, the one of this number, and there will be another.
    fn attempt_failed(&self, ended: &TaskEnded<'_>, attempt: u32) {
        let _ = (ended, attempt);
    }

    /// The outcome of a task is decided, which happens once.
    fn task_ended(&self, ended: &TaskEnded<'_>) {
        let _ = ended;
    }

    /// A task worker has made its state: at the start, after a panic, or when it was recycled.
    fn task_worker_started(&self, worker_index: usize) {
        let _ = worker_index;
    }

    /// A task worker has given its state up: at the end, to be recycled, or after a panic.
    fn task_worker_stopped(&self, worker_index: usize) {
        let _ = worker_index;
    }

    /// A task panicked, with this message. Its task worker makes a fresh state, unless the task was a closure.
    fn task_worker_panicked(&self, worker_index: usize, message: &str) {
        let _ = (worker_index, message);
    }

    /// A client has connected, and its worker begins; told too of one whose TLS handshake or proxy's header has failed,
    /// which is closed at once.
    fn connection_opened(&self, connection: &ConnectionInfo) {
        let _ = connection;
    }

    /// A connection has closed, after its `on_close`.
    fn connection_closed(&self, connection: &ConnectionInfo, reason: &CloseReason) {
        let _ = (connection, reason);
    }
}

/// Who observes, if anybody does. A clone tells the same.
#[derive(Clone, Default)]
pub(crate) struct MaybeObserver(Option<Arc<Fenced>>);

struct Fenced {
    observer: Arc<dyn Observer>,
    /// An observer runs as code of these, and cannot wait for them.
    threads: OwnThreads,
    log: LogLimit,
}

impl MaybeObserver {
    /// Of a server or pool that has these threads.
    pub(crate) fn new(observer: Option<Arc<dyn Observer>>, threads: &OwnThreads) -> MaybeObserver {
        let fenced = |observer| Fenced { observer, threads: threads.clone(), log: LogLimit::default() };
        MaybeObserver(observer.map(|observer| Arc::new(fenced(observer))))
    }

    pub(crate) fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// A panic there goes no further. Hold no lock.
    #[inline]
    pub(crate) fn tell(&self, what: impl FnOnce(&dyn Observer)) {
        if let Some(fenced) = self.0.as_deref() {
            fenced.tell(what);
        }
    }
}

impl Fenced {
    fn tell(&self, what: impl FnOnce(&dyn Observer)) {
        let _lent = self.threads.lend();
        let Err(message) = catch(|| what(&*self.observer)) else { return };
        if let Some(held_back) = self.log.permit() {
            let message = foreign(message);
            // A logger may panic too.
            let _ =
                catch(|| log::error!("an observer panicked: {message} ({held_back} more panics since the last line)"));
        }
    }
}
