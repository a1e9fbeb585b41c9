//! How many bytes all connections together keep: what clients have not taken, and frames that are not whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Of all connections of a server.
pub(super) struct BufferedByAll {
    bytes: AtomicUsize,
    max: usize,
}

/// What one connection keeps. So much is nobody's business: it spares most connections the common counter.
const FREE: usize = 128 * 1024;

/// The part of one connection in the sum; taken out when it is dropped.
pub(super) struct Buffered {
    by_all: Arc<BufferedByAll>,
    counted: usize,
}

impl BufferedByAll {
    pub(super) fn new(max: usize) -> BufferedByAll {
        BufferedByAll { bytes: AtomicUsize::new(0), max }
    }

    pub(super) fn of_one(self: &Arc<Self>) -> Buffered {
        Buffered { by_all: Arc::clone(self), counted: 0 }
    }
}

impl Buffered {
    /// Whether the connection may go on with so many bytes: false if it is among those that keep many, and all together
    /// keep too many.
    #[inline]
    pub(super) fn may_keep(&mut self, bytes: usize) -> bool {
        if bytes <= FREE && self.counted == 0 {
            return true;
        }
        self.count(if bytes <= FREE { 0 } else { bytes })
    }

    fn count(&mut self, bytes: usize) -> bool {
        let before = std::mem::replace(&mut self.counted, bytes);
        let all = if bytes >= before {
            self.by_all.bytes.fetch_add(bytes - before, Ordering::Relaxed) + (bytes - before)
        } else {
            self.by_all.bytes.fetch_sub(before - bytes, Ordering::Relaxed) - (before - bytes)
        };
        if bytes == 0 || all <= self.by_all.max {
            return true;
        }
        // It goes, and what it kept with it; nobody else must go for that.
        self.by_all.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.counted = 0;
        false
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.count(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_keep_much_are_counted_and_only_they_must_go() {
        let all = Arc::new(BufferedByAll::new(3 * FREE));
        let mut ones: Vec<Buffered> = (0..4).map(|_| all.of_one()).collect();
        assert!(ones[0].may_keep(2 * FREE));
        assert!(!ones[1].may_keep(2 * FREE), "that makes four");
        assert!(ones[2].may_keep(FREE));
        assert!(ones[1].may_keep(0));
        assert!(!ones[3].may_keep(FREE + 1), "that makes three and a byte");
        drop(ones);
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }
}
