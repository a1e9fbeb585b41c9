//! Who is called of those that wait. Not in `waiters` itself, which the models include.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Wake;
use super::waiters::Waiters;

/// Counts how often it was woken.
#[derive(Default)]
struct Counts(AtomicUsize);

impl Wake for Counts {
    fn wake(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// A line of so many, with two turns, and who was called so far.
fn line(size: usize) -> (Waiters, impl Fn() -> Vec<usize>) {
    let waiters = Waiters::new(2, 8);
    let all: Vec<_> = (0..size).map(|_| Arc::new(Counts::default())).collect();
    for (index, one) in all.iter().enumerate() {
        assert_eq!(waiters.register(Arc::clone(one) as Arc<dyn Wake>), index);
    }
    (waiters, move || {
        let called = |index: &usize| all[*index].0.load(Ordering::Relaxed) == 1;
        (0..size).filter(called).collect()
    })
}

#[test]
fn as_many_are_called_at_once_as_there_are_turns_and_each_that_leaves_has_the_next_called() {
    let (waiters, called) = line(5);
    waiters.taken(|| false);
    assert_eq!(called(), []);
    waiters.taken(|| true);
    waiters.taken(|| true);
    assert_eq!(called(), [0, 1]);
    assert!(waiters.is_called(1) && !waiters.is_called(2));
    waiters.leave(1, || true);
    assert_eq!(called(), [0, 1, 2]);
    waiters.leave(0, || false);
    assert_eq!(called(), [0, 1, 2], "there is no room any more");
    waiters.taken(|| true);
    assert_eq!(called(), [0, 1, 2, 3]);
}

#[test]
fn who_is_gone_before_it_is_called_is_left_out() {
    let (waiters, called) = line(3);
    waiters.leave(0, || true);
    waiters.leave(1, || true);
    waiters.taken(|| true);
    assert_eq!(called(), [2]);
    assert!(waiters.is_empty());
    waiters.leave(2, || true);
}

#[test]
fn a_task_worker_that_finds_nothing_calls_more_however_many_are_called() {
    let (waiters, called) = line(5);
    waiters.taken(|| true);
    waiters.starved(|| false);
    assert_eq!(called(), [0, 1]);
    waiters.starved(|| true);
    assert_eq!(called(), [0, 1, 2, 3]);
    waiters.call_all();
    assert_eq!(called(), [0, 1, 2, 3, 4]);
}

#[test]
fn who_is_called_in_the_midst_of_something_else_holds_up_nobody() {
    struct Busy;
    impl Wake for Busy {
        fn wake(&self) -> bool {
            false
        }
    }
    let waiters = Waiters::new(1, 0);
    let asleep = Arc::new(Counts::default());
    let places = [0, 1].map(|_| waiters.register(Arc::new(Busy)));
    let place = waiters.register(Arc::clone(&asleep) as Arc<dyn Wake>);
    waiters.register(Arc::new(Busy));
    waiters.taken(|| true);
    assert!(waiters.is_called(place) && !waiters.is_called(place + 1), "this one has the turn");
    assert_eq!(asleep.0.load(Ordering::Relaxed), 1);
    waiters.leave(places[1], || true);
    assert!(!waiters.is_called(place + 1), "that one had none");
    waiters.leave(place, || true);
    assert!(waiters.is_called(place + 1));
}

#[test]
fn where_there_is_no_room_for_long_one_is_called_for_every_fourth_task_that_is_taken() {
    let (waiters, called) = line(5);
    let take = |count: usize| (0..count).for_each(|_| waiters.taken(|| false));
    take(11);
    assert_eq!(called(), []);
    take(1);
    assert_eq!(called(), [0]);
    take(4);
    assert_eq!(called(), [0, 1]);
    take(40);
    assert_eq!(called(), [0, 1], "each of them has a turn still");
    waiters.leave(1, || false);
    take(4);
    assert_eq!(called(), [0, 1, 2]);
    waiters.leave(0, || true);
    assert_eq!(called(), [0, 1, 2, 3], "there is room, by which it begins anew");
    waiters.leave(2, || false);
    take(11);
    assert_eq!(called(), [0, 1, 2, 3]);
    take(1);
    assert_eq!(called(), [0, 1, 2, 3, 4]);
}
