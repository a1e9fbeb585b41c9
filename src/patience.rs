//! Letting others run for a moment before sleeping, as long as that pays.
//!
//! What comes meanwhile costs no wake-up. But a thread that yields to somebody who computes gets the processor back
//! only at the end of their time slice, while a sleeper would be woken at once. So a thread may lose only a small
//! share of its time that way, and sleeps without yielding while it has lost more.

use std::thread;
use std::time::{Duration, Instant};

/// No yield takes so long but to somebody who computes; a shorter one is no loss.
const LONG_YIELD: Duration = Duration::from_millis(2);
/// One part in so many of the time may be lost to long yields.
const SHARE: u32 = 16;
/// A few of them at once are forgiven: on a busy machine they happen to everybody.
const FORGIVEN: Duration = Duration::from_millis(10);
/// More is not remembered, so that nobody is impatient for longer than a second after the neighbour is gone.
const REMEMBERED: Duration = Duration::from_millis(60);

pub(crate) struct Patience {
    /// Lost to long yields, less what may be lost, as of `then`.
    lost: Duration,
    then: Instant,
}

impl Patience {
    pub(crate) fn new() -> Patience {
        Patience { lost: Duration::ZERO, then: Instant::now() }
    }

    /// Yields until `ready` has something, at most so many times and about so long.
    pub(crate) fn wait<X>(&mut self, yields: usize, time: Duration, mut ready: impl FnMut() -> Option<X>) -> Option<X> {
        let begun = Instant::now();
        let mut clock = begun;
        for _ in 0..yields {
            if let Some(found) = ready() {
                return Some(found);
            }
            if self.is_spent(clock) || clock - begun > time {
                return None;
            }
            thread::yield_now();
            let before = std::mem::replace(&mut clock, Instant::now());
            self.note(clock - before);
        }
        ready()
    }

    fn is_spent(&mut self, now: Instant) -> bool {
        if self.lost.is_zero() {
            self.then = now;
            return false;
        }
        self.lost = self.lost.saturating_sub((now - self.then) / SHARE);
        self.then = now;
        self.lost > FORGIVEN
    }

    fn note(&mut self, yielded: Duration) {
        if yielded > LONG_YIELD {
            self.lost = (self.lost + yielded).min(REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(4);

    #[test]
    fn only_a_share_of_the_time_may_be_lost_to_long_yields() {
        let mut patience = Patience::new();
        let mut now = Instant::now();
        let (mut lost, mut elapsed) = (Duration::ZERO, Duration::ZERO);
        while elapsed < Duration::from_secs(10) {
            let step = if patience.is_spent(now) {
                Duration::from_millis(1)
            } else {
                patience.note(LONG);
                lost += LONG;
                LONG
            };
            now += step;
            elapsed += step;
        }
        let allowed = elapsed / SHARE;
        assert!(lost > allowed / 2 && lost < allowed + FORGIVEN + 2 * LONG, "{lost:?} of {elapsed:?}");
    }

    #[test]
    fn a_long_yield_now_and_then_and_any_number_of_short_ones_are_forgiven() {
        let mut patience = Patience::new();
        let mut now = Instant::now();
        for _ in 0..1000 {
            now += Duration::from_millis(100);
            assert!(!patience.is_spent(now));
            patience.note(LONG);
            for _ in 0..10 {
                patience.note(Duration::from_micros(1900));
                assert!(!patience.is_spent(now));
            }
        }
    }

    #[test]
    fn a_second_after_the_last_long_yield_all_is_forgiven() {
        let mut patience = Patience::new();
        let now = Instant::now();
        for _ in 0..1000 {
            patience.note(LONG);
        }
        assert!(patience.is_spent(now));
        assert!(!patience.is_spent(now + Duration::from_secs(1)));
    }

    #[test]
    fn who_has_lost_too_much_looks_once_and_does_not_yield() {
        let mut patience = Patience { lost: REMEMBERED, then: Instant::now() };
        let mut looks = 0;
        let found: Option<()> = patience.wait(1000, Duration::MAX, || {
            looks += 1;
            None
        });
        assert_eq!((found, looks), (None, 1));
    }
}
