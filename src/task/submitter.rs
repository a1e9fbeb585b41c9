//! One party that hands over tasks and gets their outcomes back, each with its finish closure.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::Wake;
use super::outcome::{Finished, TaskId};
use super::queue::{Queue, Task};
use super::reply::{ReplyAddress, Ticket};
use crate::error::TaskError;
use crate::stats::{Ledger, OpenLedger};

/// Never reset, so that no two submitters of a process share a number.
static SUBMITTERS: AtomicU64 = AtomicU64::new(0);

/// Belongs to one thread. `F` is the type of the finish closures that single tasks may have.
pub(crate) struct Submitter<T, R, F> {
    number: u64,
    /// The sequence of the last accepted task.
    sequence: u64,
    in_flight: usize,
    max_in_flight: usize,
    queue: Arc<Queue<T, R>>,
    reply_to: Arc<ReplyAddress<R>>,
    wake: Arc<dyn Wake>,
    finishes: HashMap<u64, F>,
    ledger: OpenLedger,
    /// So many tasks may be submitted before it looks again how many wait.
    credit: usize,
    /// Found the queue full after submitting, has not seen room since, and waits to be woken in this round.
    held_back: Option<u64>,
}

/// When a task is refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Only far beyond the capacity of the queue and the cap in flight: the submitter is trusted to heed
    /// [`Submitter::should_pause`].
    Defer,
    /// At the queue's capacity.
    Refuse,
    /// At the queue's capacity, and at the cap in flight.
    RefuseAtCap,
}

/// Who defers may exceed its cap in flight so many times, in a callback that submits without end.
const HARD_LIMIT: usize = 4;

impl<T, R, F> Submitter<T, R, F> {
    pub(super) fn new(queue: Arc<Queue<T, R>>, wake: Arc<dyn Wake>, max_in_flight: usize, ledger: OpenLedger) -> Self {
        Submitter {
            number: SUBMITTERS.fetch_add(1, Ordering::Relaxed) + 1,
            sequence: 0,
            in_flight: 0,
            max_in_flight,
            queue,
            reply_to: Arc::new(ReplyAddress::new(Arc::clone(&wake))),
            wake,
            finishes: HashMap::new(),
            ledger,
            credit: 0,
            held_back: None,
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Hands a task over; never waits. An error hands the payload back, and takes no id.
    pub(crate) fn submit(
        &mut self,
        payload: T,
        finish: Option<F>,
        when_full: WhenFull,
        now: Instant,
    ) -> Result<TaskId, (TaskError, T)> {
        let waiting = self.look(when_full);
        if let Some(reason) = self.refusal(when_full, waiting) {
            return Err((reason, payload));
        }
        let id = TaskId { submitter: self.number, sequence: self.sequence + 1 };
        let ticket = Ticket { id, queued_at: now, reply_to: Arc::clone(&self.reply_to) };
        if let Err(task) = self.queue.push(Task { payload, ticket }, &self.ledger) {
            return Err((TaskError::ShuttingDown, task.payload));
        }
        self.sequence = id.sequence;
        self.in_flight += 1;
        if let Some(finish) = finish {
            self.finishes.insert(id.sequence, finish);
        }
        let full = waiting + 1 >= self.queue.capacity() || self.queue.is_awaited();
        if full && when_full == WhenFull::Defer && self.held_back.is_none() {
            self.hold_back();
        }
        Ok(id)
    }

    /// How many tasks wait; 0 while there is credit.
    fn look(&mut self, when_full: WhenFull) -> usize {
        if when_full == WhenFull::Defer && self.credit > 0 {
            self.credit -= 1;
            return 0;
        }
        let waiting = self.queue.len();
        self.credit = self.queue.credit(waiting);
        waiting
    }

    fn refusal(&self, when_full: WhenFull, waiting: usize) -> Option<TaskError> {
        let capacity = self.queue.capacity();
        let hard_cap = self.max_in_flight.saturating_mul(HARD_LIMIT);
        let queue_full = match when_full {
            WhenFull::Defer => waiting >= self.queue.hard_limit(),
            WhenFull::Refuse | WhenFull::RefuseAtCap => {
                waiting >= capacity || self.queue.is_awaited() && !self.queue.has_room()
            }
        };
        let at_cap = match when_full {
            WhenFull::Defer | WhenFull::Refuse => self.in_flight >= hard_cap,
            WhenFull::RefuseAtCap => self.in_flight >= self.max_in_flight,
        };
        if at_cap {
            Some(TaskError::TooManyInFlight)
        } else if queue_full {
            Some(TaskError::QueueFull)
        } else {
            None
        }
    }

    /// Whether this submitter should bring no more for now: it is at its cap in flight, or the queue was full
    /// when it submitted and has not drained to half since. It is woken when that is over.
    pub(crate) fn should_pause(&mut self) -> bool {
        if let Some(round) = self.held_back {
            if self.queue.has_room() {
                self.held_back = None;
            } else if self.queue.rounds() != round {
                self.hold_back();
            }
        }
        self.held_back.is_some() || self.in_flight >= self.max_in_flight
    }

    /// Registers first and looks second; whoever drains the queue takes first and looks for us second.
    fn hold_back(&mut self) {
        let round = self.queue.await_room(Arc::clone(&self.wake));
        self.held_back = (!self.queue.has_room()).then_some(round);
    }

    pub(crate) fn has_outcome(&self) -> bool {
        !self.reply_to.receiver().is_empty()
    }

    /// The next outcome that is here, with the finish closure its task was given.
    pub(crate) fn next_outcome(&mut self) -> Option<(Finished<R>, Option<F>)> {
        let finished = self.reply_to.receiver().try_recv().ok()?;
        Some(self.delivered(finished))
    }

    /// The next outcome, which is waited for as long as it takes. `None` if nothing is in flight.
    pub(crate) fn wait_outcome(&mut self) -> Option<(Finished<R>, Option<F>)> {
        if self.in_flight == 0 {
            return None;
        }
        let finished = self.reply_to.receiver().recv().ok()?;
        Some(self.delivered(finished))
    }

    fn delivered(&mut self, finished: Finished<R>) -> (Finished<R>, Option<F>) {
        self.in_flight -= 1;
        self.ledger.delivered.add(1);
        let finish = match self.finishes.is_empty() {
            true => None,
            false => self.finishes.remove(&finished.id.sequence),
        };
        (finished, finish)
    }
}

impl<T, R, F> Drop for Submitter<T, R, F> {
    fn drop(&mut self) {
        self.reply_to.close(&self.ledger);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patience::Patience;
    use crate::stats::Books;

    struct Nobody;

    impl Wake for Nobody {
        fn wake(&self) {}
    }

    fn submitter(queue: &Arc<Queue<u32, ()>>, books: &Arc<Books>) -> Submitter<u32, (), ()> {
        Submitter::new(Arc::clone(queue), Arc::new(Nobody), 100, books.open())
    }

    #[test]
    fn nobody_overtakes_those_who_wait_for_room() {
        let (queue, books) = (Arc::new(Queue::new(10, 2)), Arc::new(Books::default()));
        let (mut early, mut late) = (submitter(&queue, &books), submitter(&queue, &books));
        let now = Instant::now();
        while !early.should_pause() {
            early.submit(0, None, WhenFull::Defer, now).unwrap();
        }
        assert_eq!(queue.len(), 10);

        // There is a place again, but not for those who come later.
        assert!(queue.take(&mut Patience::new(), || ()).is_some());
        assert_eq!(late.submit(1, None, WhenFull::RefuseAtCap, now), Err((TaskError::QueueFull, 1)));
        late.submit(2, None, WhenFull::Defer, now).unwrap();
        assert!(late.should_pause());

        while queue.len() > 5 {
            assert!(early.should_pause() && late.should_pause());
            assert!(queue.take(&mut Patience::new(), || ()).is_some());
        }
        assert!(!early.should_pause() && !late.should_pause());
        assert!(late.submit(3, None, WhenFull::RefuseAtCap, now).is_ok());
    }
}
