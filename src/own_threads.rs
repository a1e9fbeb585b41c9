//! Which threads run code of one server or pool, its users' callbacks included: such a thread cannot wait for it.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// The threads of one server or pool. A clone is of the same.
#[derive(Clone)]
pub(crate) struct OwnThreads {
    number: u64,
    /// That of the server which the pool belongs to.
    outer: Option<u64>,
}

static NUMBERS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whose code this thread is inside. Of several at once, where a callback of one calls another.
    static INSIDE: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// `None` where the thread ends and its own values are dropped, one of which may be a task's reply.
fn change<X>(change: impl FnOnce(&mut Vec<u64>) -> X) -> Option<X> {
    INSIDE.try_with(|inside| change(&mut inside.borrow_mut())).ok()
}

impl OwnThreads {
    pub(crate) fn new() -> OwnThreads {
        OwnThreads { number: NUMBERS.fetch_add(1, Ordering::Relaxed), outer: None }
    }

    /// Of a pool that belongs to a server: its threads are the server's too.
    pub(crate) fn of_pool_in(server: &OwnThreads) -> OwnThreads {
        OwnThreads { outer: Some(server.number), ..OwnThreads::new() }
    }

    /// This thread is one of them until it ends.
    pub(crate) fn claim(&self) {
        change(|inside| inside.extend(self.numbers()));
    }

    /// Whether this thread is one of them.
    pub(crate) fn have_this(&self) -> bool {
        change(|inside| inside.contains(&self.number)).unwrap_or(false)
    }

    /// This thread, whichever it is, is one of them until what this returns is dropped.
    pub(crate) fn lend(&self) -> Lent {
        let before = change(|inside| {
            let before = inside.len();
            inside.extend(self.numbers());
            before
        });
        Lent { before }
    }

    fn numbers(&self) -> impl Iterator<Item = u64> {
        [self.number].into_iter().chain(self.outer)
    }
}

/// Dropped in the reverse order, since nobody keeps one for longer than a call.
#[must_use]
pub(crate) struct Lent {
    before: Option<usize>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.before.map(|before| change(|inside| inside.truncate(before)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_one_of_all_whose_code_it_is_inside_and_of_no_others() {
        let (server, other) = (OwnThreads::new(), OwnThreads::new());
        let pool = OwnThreads::of_pool_in(&server);
        assert!(!server.have_this() && !pool.have_this());
        server.claim();
        let lent = other.lend();
        let lent_again = pool.lend();
        assert!(server.have_this() && other.have_this() && pool.have_this());
        drop(lent_again);
        assert!(server.have_this() && other.have_this() && !pool.have_this());
        drop(lent);
        assert!(server.have_this() && !other.have_this());
    }

    #[test]
    fn the_threads_of_a_pool_are_those_of_its_server_but_not_the_other_way_round() {
        let server = OwnThreads::new();
        let pool = OwnThreads::of_pool_in(&server);
        let lent = pool.lend();
        assert!(server.have_this() && pool.have_this());
        drop(lent);
        let lent = server.lend();
        assert!(server.have_this() && !pool.have_this());
        drop(lent);
    }
}
