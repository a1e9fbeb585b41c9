//! What the threads do in each model.

use loom::sync::Arc;
use loom::thread;

use super::asleep::Asleep;
use super::idle::Idle;
use super::renewals::Renewals;
use super::sync::{AtomicBool, AtomicUsize, Condvar, Mutex, Ordering, fence};
use super::waiters::Waiters;
use super::{Patience, Wake};

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

/// What a thread sleeps on until it is signalled.
struct Signal {
    signalled: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    fn new() -> Signal {
        Signal { signalled: Mutex::new(false), changed: Condvar::new() }
    }

    fn wait(&self) {
        let mut signalled = self.signalled.lock();
        while !*signalled {
            self.changed.wait(&mut signalled);
        }
        *signalled = false;
    }
}

impl Wake for Signal {
    fn wake(&self) -> bool {
        *self.signalled.lock() = true;
        self.changed.notify_one();
        true
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
        poll: Signal,
    }
    let connection =
        Arc::new(Connection { asleep: Asleep::new(), replies: Tasks(AtomicUsize::new(0)), poll: Signal::new() });
    let task_worker = {
        let connection = Arc::clone(&connection);
        thread::spawn(move || {
            connection.replies.push();
            fence(Ordering::SeqCst);
            if connection.asleep.take() {
                connection.poll.wake();
            }
        })
    };
    while connection.replies.take().is_none() {
        connection.asleep.mark();
        if connection.replies.is_empty() {
            connection.poll.wait();
        }
        connection.asleep.unmark();
    }
    task_worker.join().unwrap();
}

/// As `Port` and `TaskWorker` do it: one task waits, and there is room once it is taken.
pub fn a_submitter_that_waits_for_room_hears_of_a_task_that_is_taken_meanwhile() {
    struct Queue {
        waiters: Waiters,
        tasks: Tasks,
    }
    let queue = Arc::new(Queue { waiters: Waiters::new(1, 0), tasks: Tasks(AtomicUsize::new(1)) });
    let worker = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            queue.tasks.take();
            queue.waiters.taken(|| queue.tasks.is_empty());
        })
    };
    let signal = std::sync::Arc::new(Signal::new());
    let place = queue.waiters.register(std::sync::Arc::clone(&signal) as std::sync::Arc<dyn Wake>);
    if !queue.tasks.is_empty() {
        signal.wait();
    }
    queue.waiters.leave(place, || queue.tasks.is_empty());
    worker.join().unwrap();
}

/// Of two that wait one is called at a time, and each that leaves has the other called, whenever it looks.
pub fn of_two_submitters_that_wait_for_room_both_hear_of_one_task_that_is_taken() {
    struct Queue {
        waiters: Waiters,
        tasks: Tasks,
    }
    let queue = Arc::new(Queue { waiters: Waiters::new(1, 0), tasks: Tasks(AtomicUsize::new(1)) });
    let waits = |queue: &Queue| {
        let signal = std::sync::Arc::new(Signal::new());
        let place = queue.waiters.register(std::sync::Arc::clone(&signal) as std::sync::Arc<dyn Wake>);
        if !queue.tasks.is_empty() {
            signal.wait();
        }
        queue.waiters.leave(place, || queue.tasks.is_empty());
    };
    let other = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || waits(&queue))
    };
    let worker = {
        let queue = Arc::clone(&queue);
        thread::spawn(move || {
            queue.tasks.take();
            queue.waiters.taken(|| queue.tasks.is_empty());
        })
    };
    waits(&queue);
    other.join().unwrap();
    worker.join().unwrap();
}

pub fn a_task_worker_is_woken_for_its_turn_to_renew_its_state_when_another_has_had_it() {
    struct Crew {
        idle: Idle,
        renewals: Renewals,
    }
    impl Crew {
        fn work_until_renewed(&self, index: usize) {
            let takes_turn = || self.renewals.takes_turn(index).then_some(());
            self.idle.wait(index, &mut Patience, takes_turn, || true);
            self.renewals.begin(index);
            self.renewals.done(index, |other| self.idle.wake(other));
        }
    }
    let crew = Arc::new(Crew { idle: Idle::new(2), renewals: Renewals::new(2) });
    let workers = [0, 1].map(|index| {
        let crew = Arc::clone(&crew);
        thread::spawn(move || crew.work_until_renewed(index))
    });
    crew.renewals.tell_all(|index| crew.idle.wake(index));
    for worker in workers {
        worker.join().unwrap();
    }
}

/// The end of a crew, as `Crew` has it.
struct Ending {
    idle: Idle,
    draining: AtomicBool,
    ending: AtomicBool,
    accepted: AtomicUsize,
    /// Each task worker counts the tasks it has ended.
    ended: [AtomicUsize; 2],
}

impl Ending {
    fn new(accepted: usize) -> Arc<Ending> {
        Arc::new(Ending {
            idle: Idle::new(2),
            draining: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            accepted: AtomicUsize::new(accepted),
            ended: [AtomicUsize::new(0), AtomicUsize::new(0)],
        })
    }

    fn is_over(&self) -> bool {
        let ended: usize = self.ended.iter().map(|ended| ended.load(Ordering::Acquire)).sum();
        self.ending.load(Ordering::Relaxed) && ended == self.accepted.load(Ordering::Acquire)
    }

    fn notify(&self) {
        fence(Ordering::SeqCst);
        self.idle.wake_all();
    }

    fn fewer_pending(&self) {
        fence(Ordering::SeqCst);
        if self.ending.load(Ordering::Relaxed) && self.is_over() {
            self.notify();
        }
    }

    fn end_task(&self, index: usize) {
        self.ended[index].store(1, Ordering::Release);
        self.fewer_pending();
    }

    fn wait_for_end(&self, index: usize) {
        self.idle.wait(index, &mut Patience, || self.is_over().then_some(()), || true);
    }

    fn tell_to_end(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.ending.store(true, Ordering::Relaxed);
        self.notify();
    }
}

/// Whoever ends a task during a shutdown looks whether it was the last, and then wakes all.
pub fn task_workers_end_when_the_last_task_ends_during_a_shutdown() {
    let crew = Ending::new(2);
    let workers = [0, 1].map(|index| {
        let crew = Arc::clone(&crew);
        thread::spawn(move || {
            crew.end_task(index);
            crew.wait_for_end(index);
        })
    });
    crew.tell_to_end();
    for worker in workers {
        worker.join().unwrap();
    }
}

/// Who submits counts its task first and looks second whether a shutdown has begun; if so, it takes the task back.
pub fn task_workers_end_though_a_submitter_was_refused_meanwhile() {
    let crew = Ending::new(0);
    let worker = {
        let crew = Arc::clone(&crew);
        thread::spawn(move || crew.wait_for_end(0))
    };
    let submitter = {
        let crew = Arc::clone(&crew);
        thread::spawn(move || {
            crew.accepted.store(1, Ordering::Release);
            fence(Ordering::SeqCst);
            match crew.draining.load(Ordering::Relaxed) {
                true => {
                    crew.accepted.store(0, Ordering::Release);
                    crew.fewer_pending();
                }
                // Some task worker runs it.
                false => crew.end_task(1),
            }
        })
    };
    crew.tell_to_end();
    worker.join().unwrap();
    submitter.join().unwrap();
}
