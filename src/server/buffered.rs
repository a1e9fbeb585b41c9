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

/// The part of one connection in the sum, or of one broadcast; taken out when it is dropped.
pub(super) struct Buffered {
    by_all: Arc<BufferedByAll>,
    counted: usize,
}

/// Bytes that many connections keep, counted once for all of them.
pub(super) struct Broadcasted {
    bytes: Box<[u8]>,
    _counted: Buffered,
}

impl BufferedByAll {
    pub(super) fn new(max: usize) -> BufferedByAll {
        BufferedByAll { bytes: AtomicUsize::new(0), max }
    }

    pub(super) fn of_one(self: &Arc<Self>) -> Buffered {
        Buffered { by_all: Arc::clone(self), counted: 0 }
    }

    pub(super) fn of_all(self: &Arc<Self>, bytes: &[u8]) -> Broadcasted {
        let mut counted = self.of_one();
        counted.count(bytes.len());
        Broadcasted { bytes: bytes.into(), _counted: counted }
    }
}

impl AsRef<[u8]> for Broadcasted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Buffered {
    /// Whether the connection may go on with so many bytes, of which so many are its own: false if it is among those
    /// that keep many, and all together keep too many.
    #[inline]
    pub(super) fn may_keep(&mut self, bytes: usize, own: usize) -> bool {
        if bytes <= FREE && self.counted == 0 {
            return true;
        }
        let (keeps_many, counted) = if bytes > FREE { (true, own) } else { (false, 0) };
        if self.count(counted) <= self.by_all.max || !keeps_many {
            return true;
        }
        // It goes, and what it kept with it; nobody else must go for that.
        self.count(0);
        false
    }

    /// What all keep then.
    fn count(&mut self, bytes: usize) -> usize {
        let before = std::mem::replace(&mut self.counted, bytes);
        let all = &self.by_all.bytes;
        match bytes >= before {
            true => all.fetch_add(bytes - before, Ordering::Relaxed) + (bytes - before),
            false => all.fetch_sub(before - bytes, Ordering::Relaxed) - (before - bytes),
        }
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
        assert!(ones[0].may_keep(2 * FREE, 2 * FREE));
        assert!(!ones[1].may_keep(2 * FREE, 2 * FREE), "that makes four");
        assert!(ones[2].may_keep(FREE, FREE));
        assert!(ones[1].may_keep(0, 0));
        assert!(!ones[3].may_keep(FREE + 1, FREE + 1), "that makes three and a byte");
        drop(ones);
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_many_keep_is_counted_once_until_the_last_of_them_lets_go() {
        let all = Arc::new(BufferedByAll::new(3 * FREE));
        let mut ones: Vec<Buffered> = (0..4).map(|_| all.of_one()).collect();
        let kept = Arc::new(all.of_all(&[0; 2 * FREE]));
        assert!(ones.iter_mut().all(|one| one.may_keep(2 * FREE, 0)));
        let more = all.of_all(&[0; 2 * FREE]);
        assert!(!ones[0].may_keep(2 * FREE, 0), "that makes four");
        assert!(ones[1].may_keep(FREE, 0), "who keeps little may go on");
        drop(Arc::clone(&kept));
        assert!(!ones[0].may_keep(2 * FREE, 0), "others still keep it");
        drop(kept);
        assert!(ones[0].may_keep(2 * FREE, 0));
        drop((ones, more));
        assert_eq!(all.bytes.load(Ordering::Relaxed), 0);
    }
}
