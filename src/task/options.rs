//! How one task is to be treated.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHasher;

/// How one task is to be treated, where it is not like all others: given to `with`, before any way of submitting.
///
/// ```
/// use std::time::Duration;
///
/// use backroom::{Priority, Retry, TaskOptions};
///
/// # fn main() -> Result<(), backroom::BindError> {
/// let server = backroom::Server::builder()
///     .on_receive(|conn, data| {
///         let careful = TaskOptions::new()
///             .priority(Priority::High)
///             .deadline(Duration::from_secs(30))
///             .retry(Retry::attempts(3).backoff(Duration::from_millis(100), Duration::from_secs(5)));
///         conn.with(careful).task(data.to_vec())?;
///         Ok(())
///     })
///     .on_task(|cx, data: Vec<u8>| Ok((cx.attempt(), data.len())))
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct TaskOptions<T> {
    worker: Chosen,
    pub(super) priority: Priority,
    pub(super) deadline: Option<Duration>,
    pub(super) after: Option<Duration>,
    pub(super) retry: Option<RetryOf<T>>,
}

/// Which task worker is to run a task.
#[derive(Clone, Copy, Debug)]
enum Chosen {
    Any,
    Index(usize),
    /// The hash of a key.
    Keyed(u64),
}

/// Which tasks go first where several wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Before all others that wait, but for the turn of others now and then.
    High,
    /// As most tasks. The default.
    #[default]
    Normal,
    /// When no others wait; but one in sixteen that a task worker takes is of these if there are any, so that none
    /// waits for ever.
    Low,
}

/// How often, and when, a task that returned an error is tried again. Any error counts unless
/// [`when`](Self::when) says otherwise; a panic is not tried again.
#[derive(Clone)]
#[must_use]
pub struct Retry {
    pub(super) attempts: u32,
    pub(super) first: Duration,
    pub(super) longest: Duration,
    pub(super) when: Option<When>,
}

type When = Arc<dyn Fn(&anyhow::Error) -> bool + Send + Sync>;

/// A retry, and how to keep the payload for it.
pub(super) struct RetryOf<T> {
    pub(super) retry: Retry,
    pub(super) clone: fn(&T) -> T,
}

impl<T> TaskOptions<T> {
    /// Like all others: any task worker, normal priority, no deadline, no delay, one attempt.
    pub fn new() -> TaskOptions<T> {
        TaskOptions { worker: Chosen::Any, priority: Priority::Normal, deadline: None, after: None, retry: None }
    }

    /// Runs on this task worker, 0 to `task_worker_num` - 1, and no other. Those of one priority run there in the order
    /// they were submitted. Where there is no such task worker, the task is refused with
    /// [`TaskError::NoSuchWorker`](crate::TaskError::NoSuchWorker). Default: whichever is free. Swoole's `$dst`.
    pub fn worker(mut self, index: usize) -> Self {
        self.worker = Chosen::Index(index);
        self
    }

    /// Runs on the task worker that this key falls to, and no other. Tasks of one key and one priority so run one after
    /// the other, in the order they were submitted unless they are delayed or tried again, and those of several keys side
    /// by side; which of these share a task worker is not told. The last of `key` and [`worker`](Self::worker) holds.
    ///
    /// ```
    /// use backroom::{TaskOptions, TaskPool};
    ///
    /// # fn main() -> anyhow::Result<()> {
    /// let pool = TaskPool::builder()
    ///     .on_task(|cx, (account, amount): (&str, i64)| Ok(format!("{account} {amount:+} on {}", cx.worker_index())))
    ///     .build()?;
    /// let mut submitter = pool.submitter();
    /// for booking in [("ann", 20), ("bob", 5), ("ann", -20)] {
    ///     submitter.with(TaskOptions::new().key(booking.0)).task(booking)?; // ann's never at once, and never reversed
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn key(mut self, key: impl Hash) -> Self {
        let mut hasher = FxHasher::default();
        key.hash(&mut hasher);
        self.worker = Chosen::Keyed(hasher.finish());
        self
    }

    /// Whether the task worker that is asked for is one of so many.
    pub(super) fn has_worker_among(&self, task_workers: usize) -> bool {
        !matches!(self.worker, Chosen::Index(index) if index >= task_workers)
    }

    /// The task worker that is to run it, of so many, unless it does not matter.
    pub(super) fn worker_among(&self, task_workers: usize) -> Option<u32> {
        match self.worker {
            Chosen::Any => None,
            Chosen::Index(index) => Some(index as u32),
            Chosen::Keyed(hash) => Some((hash % task_workers as u64) as u32),
        }
    }

    /// Whether it goes before others that wait, or after them. Default [`Priority::Normal`].
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// So long after its submission the task has [timed out](crate::Outcome::TimedOut) unless it has ended: if it has
    /// not started by then it never will, and if it is running,
    /// [`expired`](crate::TaskInfo::expired) says so to it. Default: none.
    ///
    /// The outcome is there at the deadline, even while the task still runs. It is decided by the submitter, when it
    /// next looks for outcomes; a connection does so whenever none of its callbacks runs. Where nobody will hear of it,
    /// since the task is one-way or its submitter is gone, it is decided when a task worker comes to the task, or the
    /// task returns; but in time while it is delayed or waits for its next attempt.
    pub fn deadline(mut self, time: Duration) -> Self {
        self.deadline = Some(time);
        self
    }

    /// Is not queued until so long after its submission, by a clock that only goes forward. Whether it is accepted is
    /// decided at once, as for any task; when its time has come it is queued even beyond
    /// [`queue_capacity`](crate::ServerBuilder::queue_capacity). It takes no place among `max_tasks_in_flight`, though
    /// there may be no more than four times as many of a submitter's tasks in all; and in the whole pool no more
    /// delayed ones, with those that wait for another attempt, than four times `queue_capacity` and one for each of
    /// `max_connections` (64 in a `TaskPool`). A shutdown cancels it. Default: queued at once.
    ///
    /// The first use starts the pool's timer thread.
    pub fn after(mut self, time: Duration) -> Self {
        self.after = Some(time);
        self
    }

    /// Is tried again if it fails; but not after its deadline, once a shutdown has begun, or while as many tasks as may
    /// be are [delayed](Self::after). Its payload is cloned before each attempt that may be followed by another.
    /// Default: one attempt.
    pub fn retry(mut self, retry: Retry) -> Self
    where
        T: Clone,
    {
        self.retry = Some(RetryOf { retry, clone: T::clone });
        self
    }
}

impl Retry {
    /// At most so many attempts, the first included; 0 is taken for 1. Between them 100 ms, then twice that, … up to
    /// 10 s; see [`backoff`](Self::backoff).
    pub fn attempts(attempts: u32) -> Retry {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(10));
        Retry { attempts, first, longest, when: None }
    }

    /// Waits about `first` before the second attempt, twice as long before each further one, and never more than
    /// `longest`; each time a random part of it between a half and the whole, so that tasks that failed together are
    /// not tried again together.
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        (self.first, self.longest) = (first, longest);
        self
    }

    /// Tries again only after errors of which this is true. It runs on the task worker; where it panics, the task is
    /// not tried again.
    pub fn when(mut self, is_worth_it: impl Fn(&anyhow::Error) -> bool + Send + Sync + 'static) -> Self {
        self.when = Some(Arc::new(is_worth_it));
        self
    }

    /// Whether there is another attempt after this one, counted from 1.
    pub(super) fn goes_on_after(&self, attempt: u32) -> bool {
        attempt < self.attempts
    }

    pub(super) fn is_worth_it(&self, error: &anyhow::Error) -> bool {
        self.when.as_ref().is_none_or(|when| when(error))
    }

    /// How long to wait after this attempt, with `random` from 0 to 1.
    pub(super) fn pause(&self, attempt: u32, random: f64) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let whole = self.first.saturating_mul(1 << doublings).min(self.longest);
        whole / 2 + (whole / 2).mul_f64(random)
    }
}

impl<T> Default for TaskOptions<T> {
    fn default() -> Self {
        TaskOptions::new()
    }
}

impl<T> Clone for TaskOptions<T> {
    fn clone(&self) -> Self {
        let TaskOptions { worker, priority, deadline, after, retry } = self;
        TaskOptions { worker: *worker, priority: *priority, deadline: *deadline, after: *after, retry: retry.clone() }
    }
}

impl<T> Clone for RetryOf<T> {
    fn clone(&self) -> Self {
        RetryOf { retry: self.retry.clone(), clone: self.clone }
    }
}

impl<T> fmt::Debug for TaskOptions<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TaskOptions { worker, priority, deadline, after, retry } = self;
        f.debug_struct("TaskOptions")
            .field("worker", worker)
            .field("priority", priority)
            .field("deadline", deadline)
            .field("after", after)
            .field("retry", &retry.as_ref().map(|retry| &retry.retry))
            .finish()
    }
}

impl fmt::Debug for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry").field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_the_longest_and_half_of_it_is_random() {
        let retry = Retry::attempts(100).backoff(Duration::from_millis(100), Duration::from_secs(1));
        let millis = |attempt, random| retry.pause(attempt, random).as_millis();
        assert_eq!((millis(1, 0.0), millis(1, 1.0)), (50, 100));
        assert_eq!((millis(2, 0.0), millis(2, 1.0)), (100, 200));
        assert_eq!((millis(4, 1.0), millis(5, 1.0), millis(99, 1.0)), (800, 1000, 1000));
        assert!(!retry.goes_on_after(100) && retry.goes_on_after(99));
    }
}
