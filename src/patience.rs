//! Letting others run for a moment before sleeping, as long as that pays.
//!
//! What comes meanwhile costs no wake-up. But a thread that yields to somebody who computes gets the processor back
//! only at the end of their time slice, while a sleeper would be woken at once. So a thread may lose only a small
//! share of its time that way, and sleeps without yielding while it has lost more. Yields to many threads that yield
//! as well take long too, but are not lost: it is their turn.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Hardly a yield takes so long but to somebody who computes, for whom Linux has time slices of 1.4 ms and up.
const LONG_YIELD: Duration = Duration::from_millis(1);
/// And so much longer for each thread that yields: as long as a worker takes over a batch, or longer.
const TURN: Duration = Duration::from_micros(50);
/// About one part in so many of the time may be lost to long yields.
const SHARE: u32 = 16;
/// A few of them at once are forgiven: on a busy machine they happen to everybody.
const FORGIVEN: Duration = Duration::from_millis(10);
/// More is not remembered, so that nobody is impatient for longer than a second after the neighbour is gone. So a
/// yield that takes longer than this costs more than the share.
const REMEMBERED: Duration = Duration::from_millis(60);

/// How many threads of this process yield now.
static YIELDING: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Patience {
    /// Lost to long yields, less what may be lost, as of `then`.
    lost: Duration,
    then: Instant,
}

impl Patience {
    /// How long a thread with nothing to do lets others run before it sleeps: about what waking it costs. Who waits for
    /// each answer before it asks again finds it awake.
    pub(crate) const HOT: Duration = Duration::from_micros(50);

    pub(crate) fn new() -> Patience {
        Patience { lost: Duration::ZERO, then: Instant::now() }
    }

    /// Yields until `ready` has something, at most so many times and about so long.
    pub(crate) fn wait<X>(&mut self, yields: usize, time: Duration, mut ready: impl FnMut() -> Option<X>) -> Option<X> {
        let found = ready();
        if found.is_some() {
            return found;
        }
        let begun = Instant::now();
        self.regain(begun);
        if self.is_spent() {
            return None;
        }
        YIELDING.fetch_add(1, Ordering::Relaxed);
        let found = self.yield_until(yields, begun, time, ready);
        YIELDING.fetch_sub(1, Ordering::Relaxed);
        found
    }

    fn yield_until<X>(
        &mut self,
        yields: usize,
        begun: Instant,
        time: Duration,
        mut ready: impl FnMut() -> Option<X>,
    ) -> Option<X> {
        let mut clock = begun;
        for _ in 0..yields {
            thread::yield_now();
            let before = std::mem::replace(&mut clock, Instant::now());
            self.lose(clock - before, YIELDING.load(Ordering::Relaxed));
            let found = ready();
            if found.is_some() || clock - begun > time || self.is_spent() {
                return found;
            }
        }
        None
    }

    fn regain(&mut self, now: Instant) {
        self.lost = self.lost.saturating_sub((now - self.then) / SHARE);
        self.then = now;
    }

    fn is_spent(&self) -> bool {
        self.lost > FORGIVEN
    }

    fn lose(&mut self, yielded: Duration, yielding: usize) {
        let turns = TURN.saturating_mul(u32::try_from(yielding).unwrap_or(u32::MAX));
        if yielded > LONG_YIELD.saturating_add(turns) {
            self.lost = (self.lost + yielded).min(REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(4);
    const SHORT: Duration = Duration::from_micros(900);

    #[test]
    fn only_a_share_of_the_time_may_be_lost_to_long_yields() {
        let mut patience = Patience::new();
        let mut now = Instant::now();
        let (mut lost, mut elapsed) = (Duration::ZERO, Duration::ZERO);
        while elapsed < Duration::from_secs(10) {
            patience.regain(now);
            let step = if patience.is_spent() {
                Duration::from_millis(1)
            } else {
                patience.lose(LONG, 1);
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
            patience.regain(now);
            assert!(!patience.is_spent());
            patience.lose(LONG, 1);
            for _ in 0..10 {
                patience.lose(SHORT, 1);
                assert!(!patience.is_spent());
            }
        }
    }

    #[test]
    fn yields_to_many_who_yield_as_well_are_not_lost() {
        let mut patience = Patience::new();
        for _ in 0..1000 {
            patience.lose(LONG, 100);
        }
        assert!(!patience.is_spent());
    }

    #[test]
    fn who_yields_is_counted_among_those_who_do() {
        let mut counts = Vec::new();
        let found: Option<()> = Patience::new().wait(1, Duration::ZERO, || {
            counts.push(YIELDING.load(Ordering::Relaxed));
            None
        });
        assert_eq!((found, counts.len()), (None, 2));
        assert!(counts[1] >= 1, "after the yield: {counts:?}");
    }

    #[test]
    fn a_second_after_the_last_long_yield_all_is_forgiven() {
        let mut patience = Patience::new();
        let now = Instant::now();
        for _ in 0..1000 {
            patience.lose(LONG, 1);
        }
        patience.regain(now);
        assert!(patience.is_spent());
        patience.regain(now + Duration::from_secs(1));
        assert!(!patience.is_spent());
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
