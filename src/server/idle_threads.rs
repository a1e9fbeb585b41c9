//! Threads without a connection, and the handing over of the next one. The last to come is the first to go: its memory is
//! still in the caches, and the others may end.
//!
//! A rendezvous channel would do the same, but spins and yields before it sleeps, which here takes longer than serving a
//! client that asks one thing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// `J` is the job that is handed over.
pub(super) struct IdleThreads<J> {
    most: usize,
    seats: Mutex<Seats<J>>,
}

struct Seats<J> {
    waiting: Vec<Arc<Seat<J>>>,
    closed: bool,
}

struct Seat<J> {
    turn: Mutex<Turn<J>>,
    changed: Condvar,
}

enum Turn<J> {
    Waits,
    Has(J),
    GoesHome,
}

impl<J> IdleThreads<J> {
    /// For at most so many threads.
    pub(super) fn new(most: usize) -> IdleThreads<J> {
        IdleThreads { most, seats: Mutex::new(Seats { waiting: Vec::new(), closed: false }) }
    }

    /// Hands a job to a waiting thread; back to the caller if there is none.
    pub(super) fn hand_over(&self, job: J) -> Result<(), J> {
        let mut seats = self.seats.lock();
        let Some(seat) = seats.waiting.pop() else { return Err(job) };
        seat.take(Turn::Has(job));
        drop(seats);
        seat.changed.notify_one();
        Ok(())
    }

    /// Blocks for the next job; `None` if there are enough idle threads, the time is over, or there will be no more.
    pub(super) fn wait(&self, time: Duration) -> Option<J> {
        let seat = Arc::new(Seat { turn: Mutex::new(Turn::Waits), changed: Condvar::new() });
        {
            let mut seats = self.seats.lock();
            if seats.closed || seats.waiting.len() >= self.most {
                return None;
            }
            seats.waiting.push(Arc::clone(&seat));
        }
        if let Some(turn) = seat.wait_until(Instant::now() + time) {
            return turn.job();
        }
        // Whoever takes a seat out gives it its turn under this lock. So from here on there is a turn, or there is none.
        self.seats.lock().waiting.retain(|waiting| !Arc::ptr_eq(waiting, &seat));
        std::mem::replace(&mut *seat.turn.lock(), Turn::GoesHome).job()
    }

    /// Nobody waits from here on.
    pub(super) fn close(&self) {
        let mut seats = self.seats.lock();
        seats.closed = true;
        let waiting = std::mem::take(&mut seats.waiting);
        for seat in &waiting {
            seat.take(Turn::GoesHome);
        }
        drop(seats);
        for seat in waiting {
            seat.changed.notify_one();
        }
    }
}

impl<J> Seat<J> {
    fn take(&self, turn: Turn<J>) {
        *self.turn.lock() = turn;
    }

    /// `None` if the time is over.
    fn wait_until(&self, deadline: Instant) -> Option<Turn<J>> {
        let mut turn = self.turn.lock();
        while matches!(*turn, Turn::Waits) {
            if self.changed.wait_until(&mut turn, deadline).timed_out() && matches!(*turn, Turn::Waits) {
                return None;
            }
        }
        Some(std::mem::replace(&mut *turn, Turn::GoesHome))
    }
}

impl<J> Turn<J> {
    fn job(self) -> Option<J> {
        match self {
            Turn::Has(job) => Some(job),
            Turn::Waits | Turn::GoesHome => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    const LONG: Duration = Duration::from_secs(20);

    fn wait_for_idle(threads: &IdleThreads<usize>, count: usize) {
        while threads.seats.lock().waiting.len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn the_last_to_come_is_the_first_to_go_and_the_rest_go_home() {
        let threads = IdleThreads::new(10);
        thread::scope(|scope| {
            let first = scope.spawn(|| threads.wait(LONG));
            wait_for_idle(&threads, 1);
            let second = scope.spawn(|| threads.wait(LONG));
            wait_for_idle(&threads, 2);
            threads.hand_over(7).unwrap();
            assert_eq!(second.join().unwrap(), Some(7));
            threads.close();
            assert_eq!(first.join().unwrap(), None);
        });
        assert_eq!((threads.hand_over(8), threads.wait(LONG)), (Err(8), None));
    }

    #[test]
    fn no_more_threads_wait_than_may_and_none_for_longer() {
        let threads: IdleThreads<usize> = IdleThreads::new(0);
        assert_eq!(threads.wait(LONG), None);
        let threads: IdleThreads<usize> = IdleThreads::new(1);
        assert_eq!(threads.wait(Duration::from_millis(1)), None);
        assert_eq!(threads.hand_over(1), Err(1), "nobody waits any more");
    }

    #[test]
    fn a_job_that_is_handed_over_just_as_the_time_is_over_is_not_lost() {
        let (threads, done) = (IdleThreads::new(4), AtomicUsize::new(0));
        let given = thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !threads.seats.lock().closed {
                        let job: Option<usize> = threads.wait(Duration::from_micros(20));
                        done.fetch_add(job.map_or(0, |_| 1), Ordering::Relaxed);
                    }
                });
            }
            let given = (0..20_000).filter(|job| threads.hand_over(*job).is_ok()).count();
            threads.close();
            given
        });
        assert_eq!(done.load(Ordering::Relaxed), given);
    }
}
