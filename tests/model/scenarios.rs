//! What the threads do in each model.

use loom::sync::Arc;
use loom::thread;

use super::Patience;
use super::asleep::Asleep;
use super::idle::Idle;
use super::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, Ordering, fence};

/// A queue that only counts, as weak as crossbeam's at the least.
struct Tasks(AtomicUsize);

impl Tasks {
    fn push(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }

    fn take(&self) -> Option<()> {
        let mut there = self.0.load(Ordering::Acquire);
        while there > 0 {
            match self.0.compare_exchange(there, there - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(()),
                Err(now) => there = now,
            }
        }
        None
    }

    fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

struct Room {
    idle: Idle,
    shared: Tasks,
    /// Of task worker 0 alone.
    own: Tasks,
}

impl Room {
    fn new(workers: usize) -> Arc<Room> {
        let tasks = || Tasks(AtomicUsize::new(0));
        Arc::new(Room { idle: Idle::new(workers), shared: tasks(), own: tasks() })
    }

    fn push(&self) {
        self.shared.push();
        fence(Ordering::SeqCst);
        self.idle.wake_one();
    }

    fn push_own(&self) {
        self.own.push();
        fence(Ordering::SeqCst);
        self.idle.wake(0);
    }

    /// Runs one task.
    fn work(&self, index: usize) {
        if self.shared.take().is_none() {
            self.idle.wait(index, &mut Patience, || self.shared.take(), || self.shared.is_empty());
        }
        fence(Ordering::SeqCst);
    }
}

pub fn a_task_worker_that_goes_to_sleep_sees_a_task_that_is_pushed_meanwhile() {
    let room = Room::new(1);
    let worker = {
        let room = Arc::clone(&room);
        thread::spawn(move || room.work(0))
    };
    room.push();
    worker.join().unwrap();
}

pub fn of_two_task_workers_one_is_woken_for_each_task_that_is_left() {
    let room = Room::new(2);
    let workers = [0, 1].map(|index| {
        let room = Arc::clone(&room);
        thread::spawn(move || room.work(index))
    });
    room.push();
    room.push();
    for worker in workers {
        worker.join().unwrap();
    }
}

pub fn a_task_worker_is_woken_for_a_task_of_its_own_whoever_else_looks() {
    let room = Room::new(2);
    let own = {
        let room = Arc::clone(&room);
        thread::spawn(move || room.idle.wait(0, &mut Patience, || room.own.take(), || true))
    };
    let other = {
        let room = Arc::clone(&room);
        thread::spawn(move || room.work(1))
    };
    room.push_own();
    own.join().unwrap();
    room.push();
    other.join().unwrap();
}

pub fn a_connection_that_goes_to_sleep_hears_of_a_reply_that_comes_meanwhile() {
    struct Connection {
        asleep: Asleep,
        replies: Tasks,
        /// The wake-up descriptor.
        signalled: Mutex<bool>,
        poll: Condvar,
    }
    let connection = Arc::new(Connection {
        asleep: Asleep::new(),
        replies: Tasks(AtomicUsize::new(0)),
        signalled: Mutex::new(false),
        poll: Condvar::new(),
    });
    let task_worker = {
        let connection = Arc::clone(&connection);
        thread::spawn(move || {
            connection.replies.push();
            fence(Ordering::SeqCst);
            if connection.asleep.take() {
                *connection.signalled.lock() = true;
                connection.poll.notify_one();
            }
        })
    };
    while connection.replies.take().is_none() {
        connection.asleep.mark();
        if connection.replies.is_empty() {
            let mut signalled = connection.signalled.lock();
            while !*signalled {
                connection.poll.wait(&mut signalled);
            }
            *signalled = false;
        }
        connection.asleep.unmark();
    }
    task_worker.join().unwrap();
}

/// As `Crew` does it: whoever ends a task during a shutdown looks whether it was the last, and then wakes all.
pub fn task_workers_end_when_the_last_task_ends_during_a_shutdown() {
    struct Crew {
        idle: Idle,
        ending: AtomicBool,
        /// Each task worker counts the tasks it has ended; two were accepted.
        ended: [AtomicUsize; 2],
    }
    impl Crew {
        fn is_over(&self) -> bool {
            let ended: usize = self.ended.iter().map(|ended| ended.load(Ordering::Acquire)).sum();
            self.ending.load(Ordering::Relaxed) && ended == 2
        }

        fn notify(&self) {
            fence(Ordering::SeqCst);
            self.idle.wake_all();
        }

        fn end_task(&self, index: usize) {
            self.ended[index].store(1, Ordering::Release);
            fence(Ordering::SeqCst);
            if self.ending.load(Ordering::Relaxed) && self.is_over() {
                self.notify();
            }
        }
    }
    let ended = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let crew = Arc::new(Crew { idle: Idle::new(2), ending: AtomicBool::new(false), ended });
    let workers = [0, 1].map(|index| {
        let crew = Arc::clone(&crew);
        thread::spawn(move || {
            crew.end_task(index);
            crew.idle.wait(index, &mut Patience, || crew.is_over().then_some(()), || true);
        })
    });
    crew.ending.store(true, Ordering::Relaxed);
    crew.notify();
    for worker in workers {
        worker.join().unwrap();
    }
}
