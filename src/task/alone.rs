//! The back room without a socket, as far as its benchmark needs it. Not part of the public face.

use std::sync::Arc;
use std::time::Instant;

use super::pool::{PoolConfig, TaskPool};
use super::submitter::{Submitter, WhenFull};
use super::{Finished, TaskContext, Wake};
use crate::stats::Books;

/// A pool whose tasks take and return a number.
#[expect(missing_debug_implementations)]
pub struct Pool(TaskPool<u64, u64>);

/// One thread's way into the pool.
#[expect(missing_debug_implementations)]
pub struct Caller(Submitter<u64, u64, ()>);

/// A caller sleeps on its reply channel, which wakes it by itself.
struct OnTheChannel;

impl Wake for OnTheChannel {
    fn wake(&self) {}
}

impl Pool {
    /// A pool of so many threads that run `task`.
    pub fn start(threads: usize, task: impl Fn(u64) -> u64 + Send + Sync + 'static) -> Pool {
        let config =
            PoolConfig { task_worker_num: threads, queue_capacity: 10_000, submitters: 1, stack_size: 64 * 1024 };
        let on_task = move |_: &mut TaskContext<(), ()>, number| Ok(task(number));
        let started =
            TaskPool::start(config, Arc::new(Books::default()), |_| Ok(()), on_task, (), Arc::new(OnTheChannel));
        match started {
            Ok(pool) => Pool(pool),
            Err(error) => panic!("no pool: {error:?}"),
        }
    }

    /// A way in for one thread.
    pub fn caller(&self) -> Caller {
        Caller(self.0.submitter(Arc::new(OnTheChannel), 1_000_000))
    }
}

impl Caller {
    /// Hands a number over.
    pub fn submit(&mut self, number: u64, now: Instant) {
        let submitted = self.0.submit(number, None, WhenFull::Defer, now);
        assert!(submitted.is_ok(), "refused");
    }

    /// Blocks until a result is there.
    pub fn wait(&mut self) -> Option<u64> {
        let (finished, _): (Finished<u64>, _) = self.0.wait_outcome()?;
        finished.into_result().ok()
    }
}
