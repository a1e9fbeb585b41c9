//! How long tasks wait and run: histograms, for those who ask for them.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// How long tasks waited for a task worker, and how long they ran. From
/// [`ServerHandle::task_times`](crate::ServerHandle::task_times) and
/// [`TaskPool::task_times`](crate::TaskPool::task_times). Each attempt counts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TaskTimes {
    /// From the submission of a task, or from the moment it was delayed to, until it started.
    pub queued: Times,
    /// From the start of a task until `on_task` returned.
    pub run: Times,
}

/// A histogram of times, to within one per cent.
#[derive(Clone)]
pub struct Times(Histogram<u64>);

impl Times {
    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// The time that this share of all does not exceed: 0.5 for the median, 0.99 for the 99th percentile. Zero where
    /// there are none.
    pub fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// The mean.
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.0.mean() as u64)
    }

    /// `None` never comes, but for figures that make no histogram.
    fn new() -> Option<Times> {
        const DAY: u64 = 24 * 60 * 60 * 1_000_000_000;
        Histogram::new_with_max(DAY, 2).ok().map(Times)
    }

    fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn add(&mut self, other: &Times) {
        // All have the same bounds, so nothing can be out of them.
        let _ = self.0.add(&other.0);
    }
}

impl TaskTimes {
    fn new() -> Option<TaskTimes> {
        Some(TaskTimes { queued: Times::new()?, run: Times::new()? })
    }
}

/// The times of one pool; each task worker writes its own.
pub(crate) struct Clocks(Box<[Mutex<TaskTimes>]>);

impl Clocks {
    pub(crate) fn new(task_workers: usize) -> Option<Clocks> {
        (0..task_workers).map(|_| TaskTimes::new().map(Mutex::new)).collect::<Option<_>>().map(Clocks)
    }

    pub(crate) fn record(&self, task_worker: usize, queued: Duration, run: Duration) {
        let mut times = self.0[task_worker].lock();
        times.queued.record(queued);
        times.run.record(run);
    }

    pub(crate) fn read(&self) -> Option<TaskTimes> {
        let mut sum = TaskTimes::new()?;
        for times in &self.0 {
            let times = times.lock();
            sum.queued.add(&times.queued);
            sum.run.add(&times.run);
        }
        Some(sum)
    }
}

impl fmt::Debug for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Times")
            .field("count", &self.count())
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max())
            .finish()
    }
}
