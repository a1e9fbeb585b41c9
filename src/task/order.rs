//! Puts what comes in any order into the order of submission.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// Holds back what is not next. `M` is what comes for a task: several of them, perhaps, up to its end.
pub(super) struct Order<M> {
    /// The tasks that have not ended, as they were submitted.
    line: VecDeque<u64>,
    held: FxHashMap<u64, VecDeque<M>>,
    /// Let through, and not delivered yet.
    pub(super) fetched: Option<M>,
}

impl<M> Order<M> {
    pub(super) fn new() -> Order<M> {
        Order { line: VecDeque::new(), held: FxHashMap::default(), fetched: None }
    }

    /// A task takes its place at the end of the line.
    pub(super) fn join(&mut self, sequence: u64) {
        self.line.push_back(sequence);
    }

    /// Lets through what came for the first in line; keeps anything else.
    pub(super) fn admit(&mut self, sequence: u64, message: M) -> Option<M> {
        if self.line.front() == Some(&sequence) {
            return Some(message);
        }
        self.held.entry(sequence).or_default().push_back(message);
        None
    }

    /// What was kept for who is first in line now.
    pub(super) fn next(&mut self) -> Option<M> {
        self.held.get_mut(self.line.front()?)?.pop_front()
    }

    pub(super) fn has_next(&self) -> bool {
        self.fetched.is_some()
            || self.line.front().and_then(|first| self.held.get(first)).is_some_and(|held| !held.is_empty())
    }

    /// The first in line has ended.
    pub(super) fn leave(&mut self, sequence: u64) {
        if self.line.front() == Some(&sequence) {
            self.line.pop_front();
            self.held.remove(&sequence);
        }
    }

    /// Everything that is kept.
    pub(super) fn into_held(self) -> impl Iterator<Item = M> {
        self.fetched.into_iter().chain(self.held.into_values().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_in_any_order_goes_on_in_order_with_all_that_belongs_to_each() {
        let mut order = Order::new();
        (1..=3).for_each(|sequence| order.join(sequence));
        assert_eq!(order.admit(3, "3 end"), None);
        assert_eq!(order.admit(2, "2 first"), None);
        assert_eq!(order.admit(2, "2 end"), None);
        assert!(!order.has_next());
        assert_eq!(order.admit(1, "1 end"), Some("1 end"));
        order.leave(1);
        assert!(order.has_next());
        assert_eq!((order.next(), order.next(), order.next()), (Some("2 first"), Some("2 end"), None));
        order.leave(2);
        assert_eq!(order.next(), Some("3 end"));
        order.leave(3);
        assert!(!order.has_next() && order.line.is_empty() && order.held.is_empty());
    }
}
