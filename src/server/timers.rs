//! The timers of a connection: closures that run on its worker later, or again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

/// A timer of a connection, from [`after`](crate::Connection::after) or [`every`](crate::Connection::every). Of use with
/// that connection only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId(u64);

/// `C` is lent to the closures.
pub(super) struct Timers<C> {
    /// By when they are due, and in the order in which they were set.
    due: BTreeMap<(Instant, TimerId), Timer<C>>,
    /// When each is due.
    times: FxHashMap<TimerId, Instant>,
    last: u64,
    /// The one whose closure runs now, unless it has been cleared.
    running: Option<TimerId>,
}

/// A timer whose time has come.
pub(super) struct Due<C> {
    at: Instant,
    id: TimerId,
    pub(super) timer: Timer<C>,
}

pub(super) enum Timer<C> {
    Once(RunOnce<C>),
    Every(Duration, RunEach<C>),
}

type RunOnce<C> = Box<dyn FnOnce(&mut C) -> anyhow::Result<()>>;
type RunEach<C> = Box<dyn FnMut(&mut C) -> anyhow::Result<()>>;

/// A shorter period than this is taken for this.
pub(super) const SHORTEST_PERIOD: Duration = Duration::from_millis(1);

impl<C> Timers<C> {
    pub(super) fn new() -> Timers<C> {
        Timers { due: BTreeMap::new(), times: FxHashMap::default(), last: 0, running: None }
    }

    /// A time beyond the reach of the clock never comes.
    pub(super) fn set(&mut self, time: Duration, timer: Timer<C>) -> TimerId {
        self.last += 1;
        let id = TimerId(self.last);
        if let Some(due) = Instant::now().checked_add(time) {
            self.insert(due, id, timer);
        }
        id
    }

    /// Whether it was still to run, once or again.
    pub(super) fn clear(&mut self, id: TimerId) -> bool {
        if self.running == Some(id) {
            self.running = None;
            return true;
        }
        let due = self.times.remove(&id);
        due.and_then(|due| self.due.remove(&(due, id))).is_some()
    }

    fn insert(&mut self, due: Instant, id: TimerId, timer: Timer<C>) {
        self.times.insert(id, due);
        self.due.insert((due, id), timer);
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Timer<C>> + use<C> {
        self.times.clear();
        std::mem::take(&mut self.due).into_values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first_key_value().map(|(&(due, _), _)| due)
    }

    /// Takes the first that is due by now. One that runs again is to be [set again](Self::set_again) once it has run.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Due<C>> {
        let first = self.due.first_entry().filter(|first| first.key().0 <= now)?;
        let ((at, id), timer) = first.remove_entry();
        self.times.remove(&id);
        self.running = matches!(timer, Timer::Every(..)).then_some(id);
        Some(Due { at, id, timer })
    }

    /// After it has run, unless it was cleared meanwhile. Firings that were missed are left out.
    pub(super) fn set_again(&mut self, due: Due<C>) {
        if self.running.take() != Some(due.id) {
            return;
        }
        if let Timer::Every(period, _) = due.timer {
            let now = Instant::now();
            let in_time = due.at.checked_add(period).filter(|at| *at > now);
            if let Some(at) = in_time.or_else(|| now.checked_add(period)) {
                self.insert(at, due.id, due.timer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(period: Duration) -> Timer<()> {
        Timer::Every(period, Box::new(|()| Ok(())))
    }

    #[test]
    fn a_timer_that_clears_itself_does_not_run_again() {
        let mut timers = Timers::new();
        let id = timers.set(Duration::ZERO, every(Duration::ZERO));
        let due = timers.take_due(Instant::now()).unwrap();
        assert!(timers.clear(id));
        timers.set_again(due);
        assert!(timers.is_empty() && !timers.clear(id));
    }

    #[test]
    fn firings_that_were_missed_are_left_out() {
        let mut timers = Timers::new();
        timers.set(Duration::ZERO, every(Duration::from_secs(10)));
        let mut due = timers.take_due(Instant::now()).unwrap();
        due.at -= Duration::from_secs(35);
        timers.set_again(due);
        assert!(timers.next_due().unwrap() > Instant::now() + Duration::from_secs(5));
        assert_eq!(timers.due.len(), 1);
    }

    #[test]
    fn timers_due_at_once_run_in_the_order_in_which_they_were_set() {
        let mut timers = Timers::new();
        let ids: Vec<_> = (0..3).map(|_| timers.set(Duration::ZERO, every(Duration::MAX))).collect();
        let later = Instant::now();
        assert_eq!(std::iter::from_fn(|| timers.take_due(later).map(|due| due.id)).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn a_time_beyond_the_clock_never_comes() {
        let mut timers: Timers<()> = Timers::new();
        timers.set(Duration::MAX, every(Duration::MAX));
        assert!(timers.is_empty());
    }
}
