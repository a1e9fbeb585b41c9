//! A crossbeam channel at whose head one can look.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::channel::Channel;

/// What can wait in a lane. Who takes and who looks at the same time cannot tell otherwise which of two came first.
pub(super) trait Waits {
    fn is_before(&self, other: &Self) -> bool;
}

/// First in, first out. Whoever only looks at the head has taken it out to do so, and left it in `front`.
pub(super) struct Lane<X> {
    channel: Channel<X>,
    /// Goes before all that is in the channel.
    front: Mutex<Option<X>>,
    /// There is something in `front`, or is about to be. Set before the head is taken out of the channel, so whoever
    /// takes a later one out sees it.
    has_front: AtomicBool,
    /// There is something in `front`.
    in_front: AtomicBool,
}

impl<X: Waits> Lane<X> {
    pub(super) fn new() -> Lane<X> {
        Lane {
            channel: Channel::new(),
            front: Mutex::new(None),
            has_front: AtomicBool::new(false),
            in_front: AtomicBool::new(false),
        }
    }

    #[inline(always)]
    pub(super) fn push(&self, value: X) {
        self.channel.send(value);
    }

    #[inline]
    pub(super) fn take(&self) -> Option<X> {
        if let Some(first) = self.take_front() {
            return Some(first);
        }
        let Some(next) = self.channel.try_recv() else { return self.take_front() };
        match self.has_front.load(Ordering::Acquire) {
            false => Some(next),
            true => Some(self.exchange_front(next)),
        }
    }

    fn take_front(&self) -> Option<X> {
        if !self.has_front.load(Ordering::Acquire) {
            return None;
        }
        let mut front = self.front.lock();
        self.in_front.store(false, Ordering::Relaxed);
        self.has_front.store(false, Ordering::Release);
        front.take()
    }

    /// Somebody has looked at the head meanwhile, before or after `next` was taken.
    fn exchange_front(&self, next: X) -> X {
        match &mut *self.front.lock() {
            Some(front) if front.is_before(&next) => std::mem::replace(front, next),
            _ => next,
        }
    }

    /// Looks at the head.
    pub(super) fn peek<Y>(&self, look: impl FnOnce(&X) -> Y) -> Option<Y> {
        let mut front = self.front.lock();
        if front.is_none() {
            self.has_front.store(true, Ordering::SeqCst);
            *front = self.channel.try_recv();
            self.in_front.store(front.is_some(), Ordering::Relaxed);
            self.has_front.store(front.is_some(), Ordering::Release);
        }
        front.as_ref().map(look)
    }

    /// One more or less for a moment, while somebody begins to look; but nothing is counted where there is nothing.
    pub(super) fn len(&self) -> usize {
        self.channel.len() + usize::from(self.in_front.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Waits for u32 {
        fn is_before(&self, other: &u32) -> bool {
            self < other
        }
    }

    #[test]
    fn looking_at_the_head_changes_nothing() {
        let lane = Lane::new();
        assert_eq!(lane.peek(|n: &u32| *n), None);
        (1..=3).for_each(|n| lane.push(n));
        assert_eq!((lane.peek(|n| *n), lane.peek(|n| *n), lane.len()), (Some(1), Some(1), 3));
        let taken: Vec<u32> = std::iter::from_fn(|| lane.take()).collect();
        assert_eq!((taken, lane.len()), (vec![1, 2, 3], 0));
    }

    #[test]
    fn looking_at_an_empty_lane_counts_nothing() {
        let lane: Lane<u32> = Lane::new();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(lane.peek(|n| *n), None);
                }
            });
            let most = (0..100_000).map(|_| lane.len()).max();
            done.store(true, Ordering::Relaxed);
            assert_eq!(most, Some(0));
        });
    }

    #[test]
    fn who_takes_while_others_look_gets_everything_in_order() {
        let lane = Lane::new();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    lane.peek(|_: &u32| ());
                }
            });
            scope.spawn(|| (0..200_000).for_each(|n| lane.push(n)));
            let mut taken = Vec::new();
            while taken.len() < 200_000 {
                taken.extend(lane.take());
            }
            done.store(true, Ordering::Relaxed);
            assert!(taken.is_sorted(), "in order");
        });
    }
}
