//! Moments in eight bytes, for what goes from thread to thread with every task.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Nanoseconds since the first that was asked for, of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(u64);

static FIRST: OnceLock<Instant> = OnceLock::new();

impl Stamp {
    pub(crate) fn now() -> Stamp {
        Stamp::from(Instant::now())
    }

    pub(crate) fn nanos(self) -> u64 {
        self.0
    }

    pub(crate) fn from_nanos(nanos: u64) -> Stamp {
        Stamp(nanos)
    }

    pub(crate) fn instant(self) -> Instant {
        // No stamp was made without a first.
        *FIRST.get_or_init(Instant::now) + Duration::from_nanos(self.0)
    }

    /// Zero if that came later.
    pub(crate) fn since(self, earlier: Stamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl From<Instant> for Stamp {
    #[inline]
    fn from(instant: Instant) -> Stamp {
        let since = instant.saturating_duration_since(*FIRST.get_or_init(|| instant));
        // Enough for five centuries.
        Stamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_as_far_apart_as_the_instants_they_are_of() {
        // No instant from before the first.
        Stamp::now();
        let now = Instant::now();
        let later = now + Duration::from_millis(1500);
        let (first, second) = (Stamp::from(now), Stamp::from(later));
        assert!(first < second);
        assert_eq!(second.instant(), later);
        assert_eq!((second.since(first), first.since(second)), (Duration::from_millis(1500), Duration::ZERO));
    }
}
