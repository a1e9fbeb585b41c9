//! Threads without a connection, and the handing over of the next one. The last to come is the first to go: its memory is
//! still in the caches, and the others may end.
//!
//! They end one after the other. Where a thousand clients go at once, a thousand threads that end at once would hold up
//! those who stay: each takes longer over it than over a request, and most of that under a lock of the whole process.
//!
//! A rendezvous channel would do the same, but spins and yields before it sleeps, which here takes longer than serving a
//! client that asks one thing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// At least so long after one thread the next ends.
const GAP: Duration = Duration::from_micros(200);

/// `J` is the job that is handed over.
pub(super) struct IdleThreads<J> {
    /// How long one is kept.
    time: Duration,
    seats: Mutex<Seats<J>>,
}

struct Seats<J> {
    /// Those who wait, the first to have come in front.
    waiting: VecDeque<Arc<Seat<J>>>,
    closed: bool,
}

struct Seat<J> {
    since: Instant,
    /// Parked by what is the thread's own: a condition variable takes memory for each that ever waits, and keeps it.
    thread: Thread,
    turn: Mutex<Turn<J>>,
}

enum Turn<J> {
    Waits,
    /// Nobody has waited for longer: it is the next to end, then.
    EndsAt(Instant),
    Has(J),
    GoesHome,
}

impl<J> IdleThreads<J> {
    pub(super) fn new(time: Duration) -> IdleThreads<J> {
        IdleThreads { time, seats: Mutex::new(Seats { waiting: VecDeque::new(), closed: false }) }
    }

    /// Hands a job to a waiting thread; back to the caller if there is none.
    pub(super) fn hand_over(&self, job: J) -> Result<(), J> {
        let mut seats = self.seats.lock();
        let Some(seat) = seats.waiting.pop_back() else { return Err(job) };
        seat.take(Turn::Has(job));
        drop(seats);
        seat.thread.unpark();
        Ok(())
    }

    /// Blocks for the next job; `None` if the thread is to end, since its time is over or there will be no more.
    pub(super) fn wait(&self) -> Option<J> {
        let seat = {
            let mut seats = self.seats.lock();
            if seats.closed {
                return None;
            }
            let since = Instant::now();
            let turn = if seats.waiting.is_empty() { Turn::EndsAt(since + self.time) } else { Turn::Waits };
            let seat = Arc::new(Seat { since, thread: thread::current(), turn: Mutex::new(turn) });
            seats.waiting.push_back(Arc::clone(&seat));
            seat
        };
        if let Some(turn) = seat.wait() {
            return turn.job();
        }
        let next = {
            let mut seats = self.seats.lock();
            // Whoever takes a seat out gives it its turn under this lock. So there is a turn, or it is still here.
            if !seats.waiting.front().is_some_and(|first| Arc::ptr_eq(first, &seat)) {
                return std::mem::replace(&mut *seat.turn.lock(), Turn::GoesHome).job();
            }
            seats.waiting.pop_front();
            let next = seats.waiting.front().map(Arc::clone);
            if let Some(next) = &next {
                next.take(Turn::EndsAt((next.since + self.time).max(Instant::now() + GAP)));
            }
            next
        };
        if let Some(next) = next {
            next.thread.unpark();
        }
        None
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
            seat.thread.unpark();
        }
    }
}

impl<J> Seat<J> {
    fn take(&self, turn: Turn<J>) {
        *self.turn.lock() = turn;
    }

    /// `None` if its time is over.
    fn wait(&self) -> Option<Turn<J>> {
        loop {
            let end = match &mut *self.turn.lock() {
                Turn::Waits => None,
                Turn::EndsAt(end) => Some(*end),
                turn => return Some(std::mem::replace(turn, Turn::GoesHome)),
            };
            match end.map(|end| end.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(Duration::ZERO) => return None,
                Some(left) => thread::park_timeout(left),
            }
        }
    }
}

impl<J> Turn<J> {
    fn job(self) -> Option<J> {
        match self {
            Turn::Has(job) => Some(job),
            Turn::Waits | Turn::EndsAt(_) | Turn::GoesHome => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const LONG: Duration = Duration::from_secs(20);

    fn wait_for_idle(threads: &IdleThreads<usize>, count: usize) {
        while threads.seats.lock().waiting.len() < count {
            thread::yield_now();
        }
    }

    #[test]
    fn the_last_to_come_is_the_first_to_go_and_the_rest_go_home() {
        let threads = IdleThreads::new(LONG);
        thread::scope(|scope| {
            let first = scope.spawn(|| threads.wait());
            wait_for_idle(&threads, 1);
            let second = scope.spawn(|| threads.wait());
            wait_for_idle(&threads, 2);
            threads.hand_over(7).unwrap();
            assert_eq!(second.join().unwrap(), Some(7));
            threads.close();
            assert_eq!(first.join().unwrap(), None);
        });
        assert_eq!((threads.hand_over(8), threads.wait()), (Err(8), None));
    }

    #[test]
    fn threads_whose_time_is_over_end_one_after_the_other() {
        let threads: IdleThreads<usize> = IdleThreads::new(Duration::from_millis(500));
        thread::scope(|scope| {
            let all: Vec<_> = (0..50).map(|_| scope.spawn(|| threads.wait())).collect();
            wait_for_idle(&threads, 50);
            let first_ends = threads.seats.lock().waiting[0].since + threads.time;
            all.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), None));
            assert!(Instant::now() >= first_ends + 49 * GAP, "{:?}", first_ends.elapsed());
        });
        assert_eq!(threads.hand_over(1), Err(1), "nobody waits any more");
    }

    #[test]
    fn a_job_that_is_handed_over_just_as_the_time_is_over_is_not_lost() {
        let (threads, done) = (IdleThreads::new(Duration::from_micros(20)), AtomicUsize::new(0));
        let given = thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !threads.seats.lock().closed {
                        let job: Option<usize> = threads.wait();
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
