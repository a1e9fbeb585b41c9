//! Letting others run for a moment before sleeping, as long as that pays.
//!
//! What comes meanwhile costs no wake-up. But a thread that yields to somebody who computes gets the processor back
//! only at the end of their time slice, while a sleeper would be woken at once. So who has waited that long twice in a
//! row sleeps without yielding for a while.

use std::thread;
use std::time::{Duration, Instant};

/// No yield takes so long but to somebody who computes.
const LONG_YIELD: Duration = Duration::from_millis(2);
const FIRST_COLD: Duration = Duration::from_millis(100);
const LAST_COLD: Duration = Duration::from_secs(3);

#[derive(Default)]
pub(crate) struct Patience {
    long_yields_in_a_row: u32,
    cold_for: Duration,
    cold_until: Option<Instant>,
}

impl Patience {
    /// Yields until `ready` has something, at most so many times and about so long.
    pub(crate) fn wait<X>(&mut self, yields: usize, time: Duration, mut ready: impl FnMut() -> Option<X>) -> Option<X> {
        let begun = Instant::now();
        if self.cold_until.is_some_and(|until| begun < until) {
            return ready();
        }
        let mut clock = begun;
        for _ in 0..yields {
            if let Some(found) = ready() {
                return Some(found);
            }
            thread::yield_now();
            let before = std::mem::replace(&mut clock, Instant::now());
            self.note(clock - before, clock);
            if clock - begun > time || self.cold_until.is_some() {
                break;
            }
        }
        ready()
    }

    fn note(&mut self, yielded: Duration, now: Instant) {
        self.cold_until = None;
        if yielded < LONG_YIELD {
            self.long_yields_in_a_row = 0;
            self.cold_for = Duration::ZERO;
            return;
        }
        self.long_yields_in_a_row += 1;
        if self.long_yields_in_a_row >= 2 {
            self.cold_for = (self.cold_for * 2).clamp(FIRST_COLD, LAST_COLD);
            self.cold_until = Some(now + self.cold_for);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(4);
    const SHORT: Duration = Duration::from_micros(1);

    #[test]
    fn one_long_yield_is_forgiven_and_two_in_a_row_are_not() {
        let (mut patience, now) = (Patience::default(), Instant::now());
        for yielded in [LONG, SHORT, LONG, SHORT] {
            patience.note(yielded, now);
            assert_eq!(patience.cold_until, None);
        }
        patience.note(LONG, now);
        patience.note(LONG, now);
        assert_eq!(patience.cold_until, Some(now + FIRST_COLD));
        // Warm again, but nothing has changed: the next time is longer.
        patience.note(LONG, now);
        assert_eq!(patience.cold_until, Some(now + 2 * FIRST_COLD));
        patience.note(SHORT, now);
        assert_eq!(patience.cold_until, None);
        patience.note(LONG, now);
        assert_eq!(patience.cold_until, None);
    }

    #[test]
    fn who_is_cold_looks_once_and_does_not_yield() {
        let mut patience =
            Patience { cold_until: Some(Instant::now() + Duration::from_secs(60)), ..Patience::default() };
        let mut looks = 0;
        let found: Option<()> = patience.wait(1000, Duration::MAX, || {
            looks += 1;
            None
        });
        assert_eq!((found, looks), (None, 1));
    }
}
