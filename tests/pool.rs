//! The back room without a socket: what a task can be told, and what becomes of it.

#![allow(clippy::unit_arg, reason = "one-line callbacks")]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use backroom::{
    BuildError, Finished, Later, NotFinished, Outcome, OutcomeKind, Priority, ReplyDropped, Retry, Submitter,
    TaskError, TaskFailure, TaskOptions, TaskPool, WaitError,
};
use common::{
    Gate, PATIENCE, assert_balanced, ends, events, eventually, finish_all, finish_until, heard, resident_bytes,
    succeeds,
};
use parking_lot::Mutex;

type Job = Box<dyn FnOnce() -> u32 + Send>;

/// A pool whose tasks are closures, so that each test can say what a task does.
fn pool(task_workers: usize) -> TaskPool<Job, u32> {
    TaskPool::builder().task_worker_num(task_workers).on_task(|_cx, job: Job| Ok(job())).build().unwrap()
}

#[test]
fn finish_closures_run_on_the_submitters_thread_when_it_asks_for_them() {
    let pool = pool(2);
    let mut submitter = pool.submitter();
    let (here, sum) = (thread::current().id(), Rc::new(Cell::new(0)));
    for number in 1..=10 {
        let sum = Rc::clone(&sum);
        let finish = move |_: &mut Submitter<_, _>, done: Finished<u32>| {
            assert_eq!(thread::current().id(), here);
            sum.set(sum.get() + done.into_result()?);
            Ok(())
        };
        submitter.task_then(Box::new(move || number), finish).unwrap();
    }
    eventually("all have ended", || pool.stats().done == 10);
    assert_eq!((sum.get(), submitter.tasks_in_flight()), (0, 10));
    assert_eq!(submitter.run_finished(), 10);
    assert_eq!((sum.get(), submitter.tasks_in_flight()), (55, 0));
    let start = Instant::now();
    assert_eq!(submitter.run_finished_for(Duration::from_millis(5)), 0);
    assert!(start.elapsed() >= Duration::from_millis(5), "it waits as well where nothing is in flight");
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn on_finish_hears_of_tasks_without_a_closure_of_their_own_and_an_error_of_it_is_counted() {
    let (sender, finished) = events();
    let pool = TaskPool::builder()
        .on_task(|_cx, number: u32| Ok(number))
        .on_finish(move |submitter, done| {
            sender.send((submitter.number(), done.into_result()?)).unwrap();
            bail!("and that is an error")
        })
        .build()
        .unwrap();
    let (mut first, mut second) = (pool.submitter(), pool.submitter());
    first.task(1).unwrap();
    second.task(2).unwrap();
    finish_all(&mut second);
    finish_all(&mut first);
    assert_eq!(finished.next(), (second.number(), 2));
    assert_eq!(finished.next(), (first.number(), 1));
    assert_ne!(first.number(), second.number());
    assert_eq!((pool.stats().delivered, pool.stats().finish_errors), (2, 2));
}

#[test]
fn a_one_way_task_runs_and_is_counted_and_nobody_hears_of_it() {
    let pool = TaskPool::builder()
        .on_task(|cx, ()| {
            assert_eq!(cx.finish(()).unwrap_err().reason(), NotFinished::Unheard);
            Ok(())
        })
        .on_finish(|_, _| panic!("nobody hears of it"))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let id = submitter.task_oneway(()).unwrap();
    assert_eq!((submitter.tasks_in_flight(), submitter.cancel(id)), (0, false));
    eventually("it has run", || pool.stats().done == 1);
    assert_eq!(submitter.run_finished(), 0);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.one_way, tasks.delivered, tasks.orphaned), (1, 1, 0, 0));
    assert_balanced(&tasks);
}

#[test]
fn tasks_for_a_chosen_task_worker_run_there_in_order_and_others_are_not_stuck_behind_it() {
    let pool = TaskPool::builder()
        .task_worker_num(3)
        .on_task(|cx, gate: Option<Gate>| {
            gate.inspect(Gate::pass);
            Ok(cx.worker_index())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    let order = heard();
    for number in 0..100 {
        let order = Rc::clone(&order);
        let gate = (number == 0).then(|| gate.clone());
        let finish = move |_: &mut Submitter<_, _>, done: Finished<usize>| {
            assert_eq!((done.worker_index(), done.into_result()?), (Some(2), 2));
            order.borrow_mut().push(number);
            Ok(())
        };
        submitter.with(TaskOptions::new().worker(2)).task_then(gate, finish).unwrap();
    }
    // Task worker 2 is held up, and the others are free.
    for _ in 0..100 {
        assert!(submitter.task_wait(None, PATIENCE).unwrap() < 2);
    }
    assert_eq!(pool.stats().queued, 99);
    gate.open();
    finish_all(&mut submitter);
    assert_eq!(*order.borrow(), (0..100).collect::<Vec<_>>());
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_task_worker_that_does_not_exist_is_an_error_that_hands_the_payload_back() {
    let pool = TaskPool::builder().task_worker_num(2).on_task(|_cx, text: String| Ok(text)).build().unwrap();
    let mut submitter = pool.submitter();
    let nobody = TaskOptions::new().worker(2);
    let refused = submitter.with(nobody.clone()).try_task("mine".to_owned()).unwrap_err();
    assert_eq!((refused.reason(), refused.into_payload()), (TaskError::NoSuchWorker, "mine".to_owned()));
    assert_eq!(submitter.with(nobody.clone()).task(String::new()), Err(TaskError::NoSuchWorker));
    let every = submitter.with(nobody).task_every(Duration::from_secs(1), String::new);
    assert_eq!(every.unwrap_err(), TaskError::NoSuchWorker);
    assert_eq!(pool.stats().accepted, 0);
    assert_eq!(submitter.task(String::new()).unwrap().sequence(), 1, "a refused task takes no id");
}

#[test]
fn higher_priorities_go_first_and_lower_ones_are_not_starved() {
    let (sender, started) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |_cx, (gate, priority): (Option<Gate>, Priority)| {
            gate.inspect(Gate::pass);
            Ok(sender.send(priority)?)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    submitter.task((Some(gate.clone()), Priority::Normal)).unwrap();
    eventually("the first one runs", || pool.stats().running == 1);
    for priority in [Priority::Low, Priority::Normal, Priority::High] {
        for _ in 0..100 {
            submitter.with(TaskOptions::new().priority(priority)).task((None, priority)).unwrap();
        }
    }
    let stats = pool.stats();
    assert_eq!((stats.queued_high, stats.queued_normal, stats.queued_low, stats.queued), (100, 100, 100, 300));
    gate.open();
    finish_all(&mut submitter);
    let order: Vec<Priority> = started.all_so_far().into_iter().skip(1).collect();
    let before_all_high_are_done = &order[..order.iter().rposition(|&priority| priority == Priority::High).unwrap()];
    let count = |of| before_all_high_are_done.iter().filter(|&&priority| priority == of).count();
    assert!(order[..7].iter().all(|&priority| priority == Priority::High), "{order:?}");
    assert!((4..=8).contains(&count(Priority::Low)), "{order:?}");
    assert!((4..=8).contains(&count(Priority::Normal)), "{order:?}");
}

#[test]
fn the_capacity_of_the_queue_spans_all_lanes() {
    let pool = TaskPool::builder()
        .task_worker_num(2)
        .queue_capacity(6)
        .on_task(|_cx, gate: Gate| Ok(gate.pass()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    for _ in 0..2 {
        submitter.task(gate.clone()).unwrap();
    }
    eventually("both run", || pool.stats().running == 2);
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        let options = TaskOptions::new().priority(priority);
        submitter.with(options.clone()).task(gate.clone()).unwrap();
        submitter.with(options.worker(1)).task(gate.clone()).unwrap();
    }
    assert_eq!(submitter.task(gate.clone()), Err(TaskError::QueueFull));
    let refused = submitter.with(TaskOptions::new().priority(Priority::High)).try_task(gate.clone()).unwrap_err();
    assert_eq!(refused.reason(), TaskError::QueueFull);
    gate.open();
    finish_all(&mut submitter);
    assert_eq!(pool.stats().done, 8);
}

#[test]
fn task_within_waits_for_room_and_gives_the_payload_back_when_there_is_none_in_time() {
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .queue_capacity(2)
        .on_task(|_cx, (gate, number): (Gate, u32)| {
            gate.pass();
            Ok(number)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    submitter.task((gate.clone(), 0)).unwrap();
    eventually("it runs", || pool.stats().running == 1);
    submitter.task((gate.clone(), 1)).unwrap();
    submitter.task((gate.clone(), 2)).unwrap();
    let start = Instant::now();
    let refused = submitter.task_within((gate.clone(), 3), Duration::from_millis(30)).unwrap_err();
    assert!(start.elapsed() >= Duration::from_millis(30));
    assert_eq!((refused.reason(), refused.into_payload().1), (TaskError::QueueFull, 3));

    let opener = gate.clone();
    let waiting = thread::spawn(move || {
        thread::yield_now();
        opener.open();
    });
    submitter.task_within((gate, 4), PATIENCE).unwrap();
    waiting.join().unwrap();
    finish_all(&mut submitter);
    assert_eq!(pool.stats().done, 4);
}

#[test]
fn task_within_ends_when_the_pool_shuts_down() {
    let gate = Gate::default();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .queue_capacity(1)
        .on_task(|_cx, gate: Gate| Ok(gate.pass()))
        .build()
        .unwrap();
    let shared = Mutex::new(Some(pool));
    let (sender, events) = events();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut submitter = shared.lock().as_ref().unwrap().submitter();
            submitter.task(gate.clone()).unwrap();
            eventually("it runs", || shared.lock().as_ref().unwrap().stats().running == 1);
            submitter.task(gate.clone()).unwrap();
            sender.send(()).unwrap();
            submitter.task_within(gate.clone(), PATIENCE).unwrap_err().reason()
        });
        events.next();
        let pool = shared.lock().take().unwrap();
        assert_eq!(pool.shutdown(Duration::ZERO).tasks.abandoned, 2);
        assert_eq!(waiting.join().unwrap(), TaskError::ShuttingDown);
    });
    gate.open();
}

#[test]
fn a_task_that_has_not_started_by_its_deadline_times_out_then_and_never_runs() {
    let pool = pool(1);
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    let ran = Arc::new(AtomicUsize::new(0));
    let blocking = gate.clone();
    submitter.task(Box::new(move || (blocking.pass(), 0).1)).unwrap();
    let outcomes = heard();
    let runs = Arc::clone(&ran);
    let start = Instant::now();
    let soon = TaskOptions::new().deadline(Duration::from_millis(20));
    let job: Job = Box::new(move || runs.fetch_add(1, Ordering::Relaxed) as u32);
    submitter.with(soon).task_then(job, ends(&outcomes)).unwrap();
    // It is told at the deadline, though the task worker is busy for longer.
    finish_until(&mut submitter, &outcomes, 1);
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(*outcomes.borrow(), [OutcomeKind::TimedOut]);
    assert_eq!((pool.stats().timed_out, pool.stats().queued), (1, 0));
    gate.open();
    finish_all(&mut submitter);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((ran.load(Ordering::Relaxed), tasks.done, tasks.timed_out, tasks.late), (0, 1, 1, 0));
    assert_balanced(&tasks);
}

#[test]
fn a_task_that_runs_past_its_deadline_times_out_then_and_is_told_so() {
    let (sender, told) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |cx, gate: Gate| {
            assert!(!cx.expired() && !cx.cancelled());
            gate.pass();
            sender.send((cx.expired(), cx.cancelled()))?;
            Ok(())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    let outcomes = heard();
    submitter
        .with(TaskOptions::new().deadline(Duration::from_millis(200)))
        .task_then(gate.clone(), ends(&outcomes))
        .unwrap();
    finish_until(&mut submitter, &outcomes, 1);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::TimedOut]);
    gate.open();
    assert_eq!(told.next(), (true, true));
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.timed_out, tasks.late), (0, 1, 1));
    assert_balanced(&tasks);
}

#[test]
fn a_task_that_a_task_submitted_times_out_at_its_deadline_whether_it_runs_or_is_queued() {
    let gate = Gate::default();
    let blocking = gate.clone();
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&outcomes);
    let pool = TaskPool::builder()
        .task_worker_num(2)
        .on_task(move |cx, submits: bool| {
            if submits {
                let soon = TaskOptions::new().deadline(Duration::from_millis(200));
                (0..2).try_for_each(|_| cx.task_with(&soon, false).map(drop))?;
            }
            Ok(blocking.pass())
        })
        .on_finish(move |_, done| Ok(told.lock().push((done.outcome().kind(), done.worker_index().is_some()))))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task(true).unwrap();
    // The gate is closed until both were heard of: one runs by then, and one is queued.
    while outcomes.lock().len() < 2 {
        assert_ne!(submitter.run_finished_for(PATIENCE), 0, "{:?}", outcomes.lock());
    }
    outcomes.lock().sort_by_key(|outcome| outcome.1);
    assert_eq!(*outcomes.lock(), [(OutcomeKind::TimedOut, false), (OutcomeKind::TimedOut, true)]);
    gate.open();
    finish_all(&mut submitter);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.timed_out, tasks.late, tasks.delivered), (1, 2, 1, 3));
    assert_balanced(&tasks);
}

#[test]
fn a_repeated_task_times_out_at_its_deadline_while_the_task_workers_are_busy() {
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&outcomes);
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(|_cx, gate: Option<Gate>| Ok(gate.iter().for_each(Gate::pass)))
        .on_finish(move |_, done| Ok(told.lock().push(done.outcome().kind())))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    submitter.task(Some(gate.clone())).unwrap();
    let soon = TaskOptions::new().deadline(Duration::from_millis(5));
    let repetition = submitter.with(soon).task_every(Duration::from_millis(1), || None).unwrap();
    while outcomes.lock().is_empty() {
        assert_ne!(submitter.run_finished_for(PATIENCE), 0);
    }
    assert_eq!(*outcomes.lock(), [OutcomeKind::TimedOut]);
    // It still lies in the queue, and no other comes on top of it.
    assert_eq!(submitter.run_finished_for(Duration::from_millis(50)), 0);
    repetition.stop();
    gate.open();
    finish_all(&mut submitter);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_deadline_holds_where_the_submitter_never_looks() {
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(|cx, ()| {
            while !cx.expired() {
                thread::yield_now();
            }
            Ok(())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    for millis in [200, 1] {
        submitter.with(TaskOptions::new().deadline(Duration::from_millis(millis))).task_oneway(()).unwrap();
    }
    eventually("both have timed out", || pool.stats().timed_out == 2);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.timed_out, tasks.one_way, tasks.late), (2, 2, 1));
    assert_balanced(&tasks);
}

#[test]
fn a_delayed_task_waits_for_its_time_and_is_counted_as_delayed() {
    let pool = pool(1);
    let mut submitter = pool.submitter();
    let order = heard();
    let start = Instant::now();
    for (name, delay) in [("late", 500), ("soon", 250)] {
        let order = Rc::clone(&order);
        let finish = move |_: &mut Submitter<_, _>, done: Finished<u32>| {
            assert!(start.elapsed() >= Duration::from_millis(delay));
            assert!(done.time_queued() < Duration::from_millis(200), "the delay is not time in the queue: {done:?}");
            order.borrow_mut().push(name);
            Ok(())
        };
        let options = TaskOptions::new().after(Duration::from_millis(delay));
        submitter.with(options).task_then(Box::new(|| 0), finish).unwrap();
    }
    let stats = pool.stats();
    assert_eq!((stats.accepted, stats.pending, stats.delayed, stats.queued), (2, 2, 2, 0));
    finish_all(&mut submitter);
    assert_eq!(*order.borrow(), ["soon", "late"]);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_delayed_task_can_be_cancelled_and_lets_go_of_its_payload_at_once() {
    let pool = pool(1);
    let mut submitter = pool.submitter();
    let outcomes = heard();
    let payload = Arc::new(());
    let held = Arc::clone(&payload);
    let tomorrow = TaskOptions::new().after(Duration::from_secs(24 * 60 * 60));
    let id = submitter.with(tomorrow).task_then(Box::new(move || (drop(held), 0).1), ends(&outcomes)).unwrap();
    assert!(submitter.cancel(id));
    assert_eq!((Arc::strong_count(&payload), pool.stats().delayed), (1, 0));
    assert!(!submitter.cancel(id), "once");
    finish_all(&mut submitter);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::Cancelled]);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_repetition_fires_again_and_again_until_it_is_stopped() {
    let (sender, finished) = events();
    let pool = TaskPool::builder()
        .on_task(|_cx, number: u32| Ok(number))
        .on_finish(move |_, done| Ok(sender.send((done.id(), done.into_result()?))?))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let (mut made, closure) = (0, Arc::new(()));
    let held = Arc::clone(&closure);
    let repetition = submitter
        .task_every(Duration::from_millis(2), move || {
            let _ = &held;
            made += 1;
            made
        })
        .unwrap();
    for expected in 1..=5 {
        let (id, number) = loop {
            match finished.all_so_far().first() {
                Some(&first) => break first,
                None => drop(submitter.run_finished_for(PATIENCE)),
            }
        };
        assert!(number >= expected, "{number}");
        assert_eq!((id.submitter(), id.sequence()), (repetition.number(), u64::from(number)));
    }
    repetition.stop();
    // It may be firing just now; then nobody has the closure any more that could make another.
    eventually("the closure is gone", || Arc::strong_count(&closure) == 1);
    assert_balanced_after(pool, submitter);
}

/// Drops the submitter first, so that what it has not heard is orphaned.
fn assert_balanced_after<T: Send, R: Send>(pool: TaskPool<T, R>, submitter: Submitter<T, R>) {
    drop(submitter);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_repetition_ends_with_its_submitter_and_with_a_panic_in_its_closure() {
    let pool = TaskPool::builder().on_task(|_cx, ()| Ok(())).build().unwrap();
    let held = Arc::new(());
    let (mut first, mut second) = (pool.submitter(), pool.submitter());
    let (one, other) = (Arc::clone(&held), Arc::clone(&held));
    first.task_every(Duration::from_millis(1), move || drop(Arc::clone(&one))).unwrap();
    second
        .task_every(Duration::from_millis(1), move || {
            drop(Arc::clone(&other));
            panic!("a closure that makes no payload")
        })
        .unwrap();
    eventually("the second is gone", || Arc::strong_count(&held) == 2);
    drop(first);
    eventually("the first is gone", || Arc::strong_count(&held) == 1);
    second.task_wait((), PATIENCE).expect("the timer lives");
    assert_balanced_after(pool, second);
}

#[test]
fn tasks_of_one_key_run_in_the_order_they_were_submitted_and_those_of_many_on_all_task_workers() {
    const KEYS: usize = 40;
    let pool = TaskPool::builder()
        .task_worker_num(3)
        .on_task(|cx, (key, number): (usize, usize)| Ok((cx.worker_index(), key, number)))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let ran = heard();
    for number in 0..50 {
        for key in 0..KEYS {
            let ran = Rc::clone(&ran);
            let keyed = TaskOptions::new().worker(99).key(format!("room {key}"));
            let finish = move |_: &mut _, done: Finished<_>| Ok(ran.borrow_mut().push(done.into_result()?));
            submitter.with(keyed).task_then((key, number), finish).unwrap();
        }
    }
    finish_all(&mut submitter);
    let ran = ran.borrow();
    let mut workers = BTreeSet::new();
    for key in 0..KEYS {
        let of_key: Vec<_> = ran.iter().filter(|ran| ran.1 == key).collect();
        assert!(of_key.iter().map(|ran| ran.2).eq(0..50), "{of_key:?}");
        assert!(of_key.iter().all(|ran| ran.0 == of_key[0].0), "{of_key:?}");
        workers.insert(of_key[0].0);
    }
    assert_eq!(workers.len(), 3, "each has some of so many keys");
    pool.shutdown(PATIENCE);
}

#[test]
fn a_task_that_fails_is_tried_again_with_a_copy_of_its_payload() {
    let copies = Arc::new(AtomicU32::new(0));
    struct Payload(Arc<AtomicU32>);
    impl Clone for Payload {
        fn clone(&self) -> Payload {
            self.0.fetch_add(1, Ordering::Relaxed);
            Payload(Arc::clone(&self.0))
        }
    }
    let pool = TaskPool::builder()
        .on_task(|cx, _: Payload| match (cx.attempt(), cx.is_last_attempt()) {
            (3, true) => Ok(3),
            (attempt, true) => Err(anyhow!("attempt {attempt}, the last")),
            (attempt, false) => Err(anyhow!("attempt {attempt}")),
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let short = Duration::from_millis(1);
    let retry = |attempts| TaskOptions::new().retry(Retry::attempts(attempts).backoff(short, short));
    assert_eq!(submitter.with(retry(3)).task_wait(Payload(Arc::clone(&copies)), PATIENCE).unwrap(), 3);
    assert_eq!(copies.load(Ordering::Relaxed), 2, "none for the last attempt");
    let failed = submitter.with(retry(2)).task_wait(Payload(Arc::clone(&copies)), PATIENCE);
    assert!(matches!(failed, Err(WaitError::Failed(error)) if error.to_string() == "attempt 2, the last"));
    let failed = submitter.task_wait(Payload(Arc::clone(&copies)), PATIENCE);
    assert!(matches!(failed, Err(WaitError::Failed(error)) if error.to_string() == "attempt 1, the last"));
    assert_eq!(copies.load(Ordering::Relaxed), 3, "none where no retry is set");
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.accepted, tasks.done, tasks.failed, tasks.retried), (3, 1, 2, 3));
    assert_balanced(&tasks);
}

#[test]
fn only_errors_that_are_worth_it_are_tried_again_and_no_panics() {
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&attempts);
    let pool = TaskPool::builder()
        .on_task(move |_cx, what: &'static str| {
            counted.fetch_add(1, Ordering::Relaxed);
            match what {
                "panic" => panic!("no use"),
                what => Err::<(), _>(anyhow!(what)),
            }
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let retry =
        Retry::attempts(2).backoff(Duration::from_millis(1), Duration::from_millis(1)).when(|error| {
            match error.to_string().as_str() {
                "transient" => true,
                "confusing" => panic!("who knows"),
                _ => false,
            }
        });
    let options = TaskOptions::new().retry(retry);
    let mut attempts_of = |what| {
        let before = attempts.load(Ordering::Relaxed);
        submitter.with(options.clone()).task_wait(what, PATIENCE).unwrap_err();
        attempts.load(Ordering::Relaxed) - before
    };
    assert_eq!([attempts_of("transient"), attempts_of("permanent"), attempts_of("confusing")], [2, 1, 1]);
    assert_eq!(attempts_of("panic"), 1);
}

#[test]
fn a_shutdown_cancels_what_is_delayed_and_ends_what_waits_for_its_next_attempt_with_its_last_error() {
    let pool = TaskPool::builder().on_task(|_cx, ()| Err::<(), _>(anyhow!("the disk is full"))).build().unwrap();
    let mut submitter = pool.submitter();
    let day = Duration::from_secs(24 * 60 * 60);
    let outcomes = Rc::new(RefCell::new(Vec::new()));
    for options in [TaskOptions::new().after(day), TaskOptions::new().retry(Retry::attempts(2).backoff(day, day))] {
        let outcomes = Rc::clone(&outcomes);
        let finish = move |_: &mut Submitter<_, _>, done: Finished<()>| {
            outcomes.borrow_mut().push(done.into_result().unwrap_err());
            Ok(())
        };
        submitter.with(options).task_then((), finish).unwrap();
    }
    eventually("the second has failed once", || pool.stats().retried == 1 && pool.stats().delayed == 2);
    let report = pool.shutdown(PATIENCE);
    assert_eq!((report.tasks.cancelled, report.tasks.failed), (1, 1));
    assert_eq!(submitter.task(()), Err(TaskError::ShuttingDown));
    finish_all(&mut submitter);
    let outcomes = outcomes.borrow();
    assert!(outcomes.iter().any(|failure| matches!(failure, TaskFailure::Cancelled)));
    let last_error =
        |failure: &TaskFailure| matches!(failure, TaskFailure::Failed(e) if e.to_string() == "the disk is full");
    assert!(outcomes.iter().any(last_error), "{outcomes:?}");
}

#[test]
fn a_task_that_is_cancelled_before_it_starts_never_runs_and_one_that_runs_is_told() {
    let (sender, told) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |cx, gate: Gate| {
            sender.send(cx.cancelled())?;
            gate.pass();
            Ok(sender.send(cx.cancelled())?)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let (gate, outcomes) = (Gate::default(), heard());
    let running = submitter.task_then(gate.clone(), ends(&outcomes)).unwrap();
    let queued = submitter.task_then(gate.clone(), ends(&outcomes)).unwrap();
    assert!(!told.next(), "it runs");
    assert!(submitter.cancel(queued) && submitter.cancel(running));
    assert!(!submitter.cancel(queued) && !submitter.cancel(running));
    // Both outcomes are here while the task still runs.
    assert_eq!(submitter.run_finished(), 2);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::Cancelled; 2]);
    gate.open();
    assert!(told.next());
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.cancelled, tasks.done, tasks.late), (2, 0, 1));
    assert!(told.all_so_far().is_empty(), "the second never ran");
    assert_balanced(&tasks);
}

#[test]
fn a_task_that_has_ended_cannot_be_cancelled() {
    let pool = pool(1);
    let (mut submitter, mut other) = (pool.submitter(), pool.submitter());
    let outcomes = heard();
    let id = submitter.task_then(Box::new(|| 0), ends(&outcomes)).unwrap();
    assert!(!other.cancel(id), "it is not theirs");
    eventually("it has ended", || pool.stats().done == 1);
    assert!(!submitter.cancel(id));
    finish_all(&mut submitter);
    assert!(!submitter.cancel(id));
    assert_eq!(*outcomes.borrow(), [OutcomeKind::Done]);
}

#[test]
fn a_wait_that_times_out_has_a_late_result_discarded_and_the_next_wait_gets_its_own() {
    let pool = pool(1);
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    let slow = gate.clone();
    let job: Job = Box::new(move || (slow.pass(), 1).1);
    let timed_out = submitter.task_wait(job, Duration::from_millis(200));
    assert!(matches!(timed_out, Err(WaitError::TimedOut)));
    gate.open();
    assert_eq!(submitter.task_wait(Box::new(|| 2), PATIENCE).unwrap(), 2);
    assert_eq!((submitter.tasks_in_flight(), submitter.run_finished()), (0, 0));
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.timed_out, tasks.late, tasks.delivered), (1, 1, 1, 2));
    assert_balanced(&tasks);
}

#[test]
fn what_comes_for_others_during_a_wait_is_put_aside_and_delivered_after() {
    let pool = pool(1);
    let mut submitter = pool.submitter();
    let order = heard();
    for number in 1..=3 {
        let order = Rc::clone(&order);
        let finish = move |submitter: &mut Submitter<Job, u32>, done: Finished<u32>| {
            let number = done.into_result()?;
            // A wait inside a finish closure waits for its own task and nothing else.
            let answer = submitter.task_wait(Box::new(move || number * 10), PATIENCE)?;
            order.borrow_mut().push((number, answer));
            Ok(())
        };
        submitter.task_then(Box::new(move || number), finish).unwrap();
    }
    assert_eq!(submitter.task_wait(Box::new(|| 7), PATIENCE).unwrap(), 7);
    assert!(order.borrow().is_empty(), "nothing is delivered inside a wait");
    finish_all(&mut submitter);
    assert_eq!(*order.borrow(), [(1, 10), (2, 20), (3, 30)]);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_wait_has_one_deadline_for_all_and_keeps_every_place() {
    let pool = pool(6);
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    let jobs = (0..6u32).map(|number| {
        let gate = gate.clone();
        let job: Job = match number {
            2 | 4 => Box::new(move || (gate.pass(), number).1),
            3 => Box::new(|| std::panic::resume_unwind(Box::new("number 3"))),
            _ => Box::new(move || number),
        };
        job
    });
    let start = Instant::now();
    let results = submitter.task_wait_multi(jobs.collect(), Duration::from_millis(500));
    assert!(start.elapsed() >= Duration::from_millis(500) && start.elapsed() < Duration::from_millis(900));
    gate.open();
    let shown: Vec<String> = results
        .into_iter()
        .map(|result| match result {
            Ok(number) => number.to_string(),
            Err(WaitError::TimedOut) => "timed out".to_owned(),
            Err(error) => error.to_string(),
        })
        .collect();
    assert_eq!(shown, ["0", "1", "timed out", "the task panicked: number 3", "timed out", "5"]);
    assert!(submitter.task_wait_multi(Vec::new(), PATIENCE).is_empty());
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn waits_that_are_refused_say_so_in_their_place() {
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .queue_capacity(2)
        .on_task(|_cx, (gate, number): (Gate, u32)| {
            gate.pass();
            Ok(number)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    submitter.task((gate.clone(), 0)).unwrap();
    eventually("it runs", || pool.stats().running == 1);
    let opener = gate.clone();
    let opening = thread::spawn(move || opener.open());
    let mut payloads: Vec<_> = (1..=2).map(|number| (gate.clone(), number)).collect();
    payloads.extend((3..=500).map(|number| (gate.clone(), number)));
    let results = submitter.task_wait_multi(payloads, PATIENCE);
    opening.join().unwrap();
    assert_eq!(results.len(), 500);
    for (result, number) in results.into_iter().zip(1..) {
        match result {
            Ok(result) => assert_eq!(result, number),
            Err(WaitError::NotAccepted(TaskError::QueueFull)) => {}
            Err(error) => panic!("{number}: {error:?}"),
        }
    }
}

#[test]
fn a_task_may_give_many_results_and_its_return_value_comes_last() {
    let pool = TaskPool::builder()
        .max_results(3)
        .on_task(|cx, count: u32| {
            for number in 1..count {
                if let Err(error) = cx.finish(number) {
                    assert_eq!((error.reason(), error.into_result()), (NotFinished::TooMany, number));
                }
            }
            Ok(count)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let results = heard();
    let each = Rc::clone(&results);
    let finish = move |_: &mut Submitter<_, _>, done: Finished<u32>| {
        let is_last = done.is_last();
        each.borrow_mut().push((done.into_result()?, is_last));
        Ok(())
    };
    submitter.task_each(10, finish).unwrap();
    eventually("it has ended", || pool.stats().done == 1);
    finish_all(&mut submitter);
    assert_eq!(*results.borrow(), [(1, false), (2, false), (3, false), (10, true)], "no more than three wait");

    // Then there is room again; and a closure for the outcome hears of nothing else.
    let outcomes = heard();
    submitter.task_then(3, ends(&outcomes)).unwrap();
    finish_all(&mut submitter);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::Done]);
    assert_eq!(submitter.task_wait(3, PATIENCE).unwrap(), 3);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn progress_is_one_cell_that_the_submitter_reads_and_is_told_of() {
    let (sender, told) = events();
    let (step, steps) = crossbeam_channel::bounded::<()>(0);
    let pool = TaskPool::builder()
        .on_task(move |cx, ()| {
            for done in 1..=1000 {
                cx.progress(done, 1000);
            }
            steps.recv()?;
            cx.progress(1000, 1001);
            steps.recv()?;
            Ok(())
        })
        .on_progress(move |_, id, progress| Ok(sender.send((id, progress.done, progress.total))?))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let id = submitter.task(()).unwrap();
    eventually("it is at the end", || submitter.progress(id).is_some_and(|progress| progress.done == 1000));
    assert_eq!(submitter.run_finished_for(PATIENCE), 1, "one message for all of it");
    assert_eq!(told.all_so_far(), [(id, 1000, 1000)]);
    step.send(()).unwrap();
    submitter.run_finished_for(PATIENCE);
    assert_eq!(told.all_so_far(), [(id, 1000, 1001)]);
    step.send(()).unwrap();
    finish_all(&mut submitter);
    assert_eq!(submitter.progress(id), None);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_reply_that_was_taken_away_finishes_the_task_from_any_thread() {
    let (sender, replies) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |cx, ()| cx.finish_later(|reply| sender.send(reply).unwrap()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let results = Rc::new(RefCell::new(Vec::new()));
    for _ in 0..4 {
        let results = Rc::clone(&results);
        let finish = move |_: &mut Submitter<_, _>, done: Finished<u32>| {
            results.borrow_mut().push(done.into_outcome());
            Ok(())
        };
        submitter.task_then((), finish).unwrap();
    }
    let [first, second, third, fourth] = [replies.next(), replies.next(), replies.next(), replies.next()];
    eventually("the task worker is free again", || pool.stats().task_workers_idle == 1);
    let stats = pool.stats();
    assert_eq!((stats.pending, stats.to_be_finished_later, stats.running, stats.queued), (4, 4, 0, 0));
    thread::spawn(move || first.finish(1)).join().unwrap();
    second.fail(anyhow!("two"));
    drop(third);
    assert!(!fourth.cancelled() && submitter.cancel(fourth.id()) && fourth.cancelled());
    fourth.finish(4);
    finish_all(&mut submitter);
    let results = results.take();
    assert!(matches!(results[0], Outcome::Done(1)), "{results:?}");
    assert!(matches!(&results[1], Outcome::Failed(error) if error.to_string() == "two"));
    assert!(matches!(&results[2], Outcome::Failed(error) if error.is::<ReplyDropped>()));
    assert!(matches!(results[3], Outcome::Cancelled));
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.failed, tasks.cancelled, tasks.late), (1, 2, 1, 1));
    assert_balanced(&tasks);
}

#[test]
fn a_shutdown_waits_for_replies_that_were_taken_away_and_abandons_them_at_its_deadline() {
    let (sender, replies) = events();
    let pool = TaskPool::builder()
        .on_task(move |cx, ()| cx.finish_later(|reply| sender.send(reply).unwrap()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task(()).unwrap();
    submitter.task(()).unwrap();
    let (in_time, too_late) = (replies.next(), replies.next());
    let finishing = thread::spawn(move || in_time.finish(()));
    let report = pool.shutdown(Duration::from_millis(50));
    finishing.join().unwrap();
    assert_eq!((report.tasks.done, report.tasks.abandoned, report.task_workers_running), (1, 1, 0));
    too_late.finish(());
    finish_all(&mut submitter);
}

#[test]
fn results_come_in_the_order_of_submission_where_that_is_asked_for() {
    let pool = TaskPool::builder()
        .task_worker_num(4)
        .results_in_order(true)
        .on_task(|cx, (number, gate): (u32, Option<Gate>)| {
            if number % 3 == 0 {
                cx.finish(number + 1000)?;
            }
            gate.inspect(Gate::pass);
            Ok(number)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let (gate, order) = (Gate::default(), heard());
    for number in 0..200 {
        let order = Rc::clone(&order);
        let gate = (number == 0).then(|| gate.clone());
        let each = move |_: &mut Submitter<_, _>, done: Finished<u32>| {
            order.borrow_mut().push(done.into_result()?);
            Ok(())
        };
        submitter.task_each((number, gate), each).unwrap();
    }
    eventually("all but the first have ended", || pool.stats().done == 199);
    // What is waited for has no place in the order, or this would wait for ever.
    assert_eq!(submitter.task_wait((7, None), PATIENCE).unwrap(), 7);
    submitter.run_finished();
    assert_eq!(*order.borrow(), [1000], "the first goes on, and holds all others back");
    gate.open();
    finish_all(&mut submitter);
    let expected: Vec<u32> =
        (0..200).flat_map(|number| (number % 3 == 0).then_some(number + 1000).into_iter().chain([number])).collect();
    assert_eq!(*order.borrow(), expected);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_closure_runs_as_a_task_and_its_panic_leaves_the_state_alone() {
    let states = Arc::new(AtomicUsize::new(0));
    let made = Arc::clone(&states);
    let pool = TaskPool::<(), ()>::builder()
        .task_worker_num(1)
        .task_worker(move |_| Ok(made.fetch_add(1, Ordering::Relaxed)))
        .on_task(|_cx, ()| Ok(()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let results = Rc::new(RefCell::new(Vec::new()));
    let keep = |results: &Rc<RefCell<Vec<Result<String, TaskFailure>>>>| {
        let results = Rc::clone(results);
        move |_: &mut Submitter<(), ()>, result| {
            results.borrow_mut().push(result);
            Ok(())
        }
    };
    submitter.run(|| "text".to_owned(), keep(&results)).unwrap();
    submitter.run(|| panic!("in a closure"), keep(&results)).unwrap();
    let id = submitter
        .with(TaskOptions::new().after(Duration::from_secs(3600)))
        .run(|| "never".to_owned(), keep(&results))
        .unwrap();
    assert!(submitter.cancel(id));
    let retry = TaskOptions::new().retry(Retry::attempts(2));
    assert_eq!(submitter.with(retry).run(|| (), |_, _| Ok(())), Err(TaskError::RunsOnce));
    finish_all(&mut submitter);
    let mut results = results.take();
    results.sort_by_key(|result| format!("{result:?}"));
    assert!(matches!(&results[0], Err(TaskFailure::Cancelled)), "{results:?}");
    assert!(matches!(&results[1], Err(TaskFailure::Panicked(message)) if message == "in a closure"));
    assert!(matches!(&results[2], Ok(text) if text == "text"));
    assert_eq!(states.load(Ordering::Relaxed), 1);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_task_may_submit_further_tasks_and_is_refused_at_once_where_the_queue_is_full() {
    let (sender, refused) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .queue_capacity(3)
        .on_task(move |cx, depth: u32| {
            if depth == 0 {
                for _ in 0..5 {
                    if let Err(error) = cx.task(1) {
                        sender.send((error.reason(), error.into_payload())).unwrap();
                    }
                }
                assert_eq!(cx.task_with(&TaskOptions::new().worker(7), 1).unwrap_err().reason(), TaskError::QueueFull);
            }
            Ok(depth)
        })
        .on_finish(|_, _| Ok(()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task(0).unwrap();
    assert_eq!([refused.next(), refused.next()], [(TaskError::QueueFull, 1); 2]);
    eventually("all have ended", || pool.stats().done == 4);
    assert_eq!(submitter.tasks_in_flight(), 4, "it hears of those that its task submitted");
    finish_all(&mut submitter);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.accepted, tasks.delivered), (4, 4));
    assert_balanced(&tasks);
}

#[test]
fn further_tasks_have_ids_of_their_task_worker_without_gaps() {
    let (sender, ids) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |cx, depth: u32| {
            if depth > 0 {
                sender.send(cx.task(depth - 1)?)?;
                sender.send(cx.task_oneway(0)?)?;
            }
            Ok(())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task(3).unwrap();
    finish_all(&mut submitter);
    eventually("all have ended", || pool.stats().pending == 0);
    let ids = ids.all_so_far();
    assert!(ids.iter().all(|id| id.submitter() == ids[0].submitter() && id.submitter() != submitter.number()));
    assert_eq!(ids.iter().map(|id| id.sequence()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn states_are_renewed_after_so_many_tasks_and_the_stop_hook_gets_the_old_one() {
    let (made, stopped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (making, stopping) = (Arc::clone(&made), Arc::clone(&stopped));
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .task_max_request(10)
        .task_max_request_grace(0)
        .task_worker(move |_| {
            making.fetch_add(1, Ordering::Relaxed);
            Ok(0u32)
        })
        .task_worker_stop(move |_, ran: u32| {
            assert!(ran <= 10);
            stopping.fetch_add(1, Ordering::Relaxed);
        })
        .on_task(|cx, ()| {
            *cx.worker() += 1;
            Ok(*cx.worker())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let counts: Vec<u32> = (0..25).map(|_| submitter.task_wait((), PATIENCE).unwrap()).collect();
    let expected: Vec<u32> = (1..=10).chain(1..=10).chain(1..=5).collect();
    assert_eq!(counts, expected);
    assert_eq!((made.load(Ordering::Relaxed), pool.stats().recycled), (3, 2));
    pool.shutdown(PATIENCE);
    assert_eq!(stopped.load(Ordering::Relaxed), 3, "and the last one at the end");
}

#[test]
fn the_grace_spreads_the_renewals() {
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .task_max_request(5)
        .task_max_request_grace(100)
        .task_worker(|_| Ok(0u32))
        .on_task(|cx, ()| {
            *cx.worker() += 1;
            Ok(*cx.worker())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let mut lives = Vec::new();
    let mut last = 0;
    while lives.len() < 8 {
        let count = submitter.task_wait((), PATIENCE).unwrap();
        if count == 1 && last > 0 {
            lives.push(last);
        }
        last = count;
    }
    assert!(lives.iter().all(|life| (5..=105).contains(life)), "{lives:?}");
    assert!(lives.iter().any(|life| *life != lives[0]), "at random: {lives:?}");
}

#[test]
fn recycling_on_demand_renews_one_state_after_the_other_and_loses_nothing() {
    let (sender, events) = events();
    let (starting, stopping) = (sender.clone(), sender);
    let pool = TaskPool::builder()
        .task_worker_num(3)
        .task_worker(move |index| Ok(starting.send(("start", index))?))
        .task_worker_stop(move |index, ()| stopping.send(("stop", index)).unwrap())
        .on_task(|_cx, ()| Ok(()))
        .build()
        .unwrap();
    for _ in 0..3 {
        assert_eq!(events.next().0, "start");
    }
    let mut submitter = pool.submitter();
    for _ in 0..100 {
        submitter.task(()).unwrap();
    }
    pool.recycle();
    let mut renewed = [false; 3];
    for _ in 0..3 {
        let (stopped, started) = (events.next(), events.next());
        assert_eq!((stopped.0, started), ("stop", ("start", stopped.1)), "no two at the same time");
        assert!(!std::mem::replace(&mut renewed[stopped.1], true), "each once");
    }
    finish_all(&mut submitter);
    eventually("all three are counted", || pool.stats().recycled == 3);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!(tasks.done, 100);
    assert_balanced(&tasks);
}

#[test]
fn a_busy_task_worker_holds_up_no_other_that_is_to_be_recycled() {
    let (sender, events) = events();
    let stopping = sender.clone();
    let gate = Gate::default();
    let pool = TaskPool::builder()
        .task_worker_num(3)
        .task_worker(move |index| Ok(sender.send(("start", index))?))
        .task_worker_stop(move |index, ()| stopping.send(("stop", index)).unwrap())
        .on_task(|_cx, gate: Gate| Ok(gate.pass()))
        .build()
        .unwrap();
    (0..3).for_each(|_| assert_eq!(events.next().0, "start"));
    let mut submitter = pool.submitter();
    submitter.with(TaskOptions::new().worker(0)).task(gate.clone()).unwrap();
    eventually("it is busy", || pool.stats().task_workers_busy == 1);
    pool.recycle();
    let mut idle_ones = [0; 2];
    for renewed in &mut idle_ones {
        let (stopped, started) = (events.next(), events.next());
        assert_eq!((stopped.0, started), ("stop", ("start", stopped.1)));
        *renewed = stopped.1;
    }
    idle_ones.sort_unstable();
    assert_eq!(idle_ones, [1, 2]);
    gate.open();
    assert_eq!([events.next(), events.next()], [("stop", 0), ("start", 0)]);
}

#[test]
fn a_recycle_that_comes_while_a_state_is_made_has_it_made_once_more() {
    let (sender, made) = events();
    let gate = Gate::default();
    let (slow, count) = (gate.clone(), AtomicU32::new(0));
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .task_worker(move |_index| {
            let number = count.fetch_add(1, Ordering::Relaxed);
            sender.send(number)?;
            Ok(if number == 1 {
                slow.pass()
            })
        })
        .on_task(|_cx, ()| Ok(()))
        .build()
        .unwrap();
    assert_eq!(made.next(), 0);
    pool.recycle();
    assert_eq!(made.next(), 1);
    // What it reads while it makes the second may be out of date now.
    pool.recycle();
    gate.open();
    assert_eq!(made.next(), 2);
}

#[test]
fn as_many_tasks_as_are_delayed_at_most_are_a_reason_that_nobody_waits_for() {
    let pool = TaskPool::builder().queue_capacity(1).on_task(|_cx, ()| Ok(())).build().unwrap();
    let mut submitter = pool.submitter();
    let tomorrow = TaskOptions::new().after(Duration::from_secs(86_400));
    let refused = (0..1000).find_map(|_| submitter.with(tomorrow.clone()).task(()).err());
    assert_eq!(refused, Some(TaskError::TooManyDelayed));
    let refused = submitter.with(tomorrow).task_within((), PATIENCE).unwrap_err();
    assert_eq!(refused.reason(), TaskError::TooManyDelayed);
    submitter.task_within((), PATIENCE).expect("the queue is empty");
}

#[test]
fn progress_that_nobody_looks_at_takes_no_memory() {
    let Some(child) = in_child!() else {
        let pool = TaskPool::builder()
            .task_worker_num(1)
            .on_task(|cx, fails: u32| {
                cx.progress(1, 2);
                anyhow::ensure!(cx.attempt() > fails, "again");
                Ok(())
            })
            .on_progress(|_, _, _| Ok(()))
            .build()
            .unwrap();
        let mut submitter = pool.submitter();
        let mut done = 0;
        let mut say_much = |times: u32| {
            (0..times).for_each(|_| submitter.task_wait(0, PATIENCE).unwrap());
            let again = Retry::attempts(u32::MAX).backoff(Duration::ZERO, Duration::ZERO);
            submitter.with(TaskOptions::new().retry(again)).task(times).unwrap();
            done += u64::from(times) + 1;
            eventually("it has tried often enough", || pool.stats().done == done);
        };
        say_much(1_000);
        let before = resident_bytes();
        say_much(50_000);
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 2 << 20, "{grown} bytes");
        return;
    };
    succeeds(child);
}

#[test]
fn a_repetition_that_is_stopped_while_it_makes_its_task_submits_none_and_lets_go() {
    let pool = TaskPool::builder().on_task(|_cx, ()| Ok(())).build().unwrap();
    let mut submitter = pool.submitter();
    let handle: Arc<Mutex<Option<backroom::Repetition>>> = Arc::default();
    let (own, held) = (Arc::clone(&handle), Arc::new(()));
    let holds = Arc::clone(&held);
    let soon = TaskOptions::new().after(Duration::from_millis(1));
    let mut locked = handle.lock();
    let make = move || own.lock().iter().for_each(|repetition| (repetition.stop(), &holds).0);
    *locked = Some(submitter.with(soon).task_every(Duration::from_secs(86_400), make).unwrap());
    drop(locked);
    eventually("the closure is dropped", || Arc::strong_count(&held) == 1);
    assert_eq!(pool.stats().accepted, 0);
}

#[test]
fn a_submitter_has_only_so_many_repetitions_until_some_are_stopped() {
    let pool = TaskPool::builder().max_tasks_in_flight(2).on_task(|_cx, ()| Ok(())).build().unwrap();
    let mut submitter = pool.submitter();
    let mut repeat = || submitter.task_every(Duration::from_secs(86_400), || ());
    let mut repetitions: Vec<_> = (0..8).map(|_| repeat().unwrap()).collect();
    assert_eq!(repeat().unwrap_err(), TaskError::TooManyInFlight);
    // Whether or not its handle is kept.
    repetitions.pop().unwrap().stop();
    repetitions[0].stop();
    repetitions.push(repeat().unwrap());
    repetitions.push(repeat().unwrap());
    assert_eq!(repeat().unwrap_err(), TaskError::TooManyInFlight);
}

#[test]
fn a_task_cannot_wait_for_its_own_pool_even_through_a_submitter() {
    static POOL: std::sync::OnceLock<TaskPool<u32, u32>> = std::sync::OnceLock::new();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(|_cx, depth| {
            if depth == 0 {
                return Ok(0);
            }
            let mut submitter = POOL.get().unwrap().submitter();
            let refused = submitter.task_wait(0, Duration::MAX);
            assert!(matches!(refused, Err(WaitError::NotAccepted(TaskError::InTask))), "{refused:?}");
            let refused = submitter.task_wait_multi(vec![0, 0], Duration::MAX);
            assert!(matches!(refused[..], [Err(WaitError::NotAccepted(_)), Err(WaitError::NotAccepted(_))]));
            submitter.task(0)?;
            assert_eq!(submitter.run_finished_for(Duration::MAX), 0);
            Ok(1)
        })
        .build()
        .unwrap();
    let pool = POOL.get_or_init(|| pool);
    let mut submitter = pool.submitter();
    assert_eq!(submitter.task_wait(1, PATIENCE).unwrap(), 1);
}

#[test]
fn dropping_the_pool_drains_it() {
    let (sender, ran) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |_cx, number: u32| {
            thread::sleep(Duration::from_millis(1));
            Ok(sender.send(number)?)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    for number in 0..20 {
        submitter.task(number).unwrap();
    }
    drop(pool);
    assert_eq!(ran.all_so_far(), (0..20).collect::<Vec<_>>());
    assert_eq!(submitter.task(0), Err(TaskError::ShuttingDown));
    assert_eq!(submitter.run_finished(), 20, "their outcomes can still be heard");
}

#[test]
fn dropping_the_pool_waits_no_longer_than_its_drain_timeout() {
    let gate = Gate::default();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .drain_timeout(Duration::from_millis(20))
        .on_task(|_cx, gate: Gate| Ok(gate.pass()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let outcomes = heard();
    submitter.task_then(gate.clone(), ends(&outcomes)).unwrap();
    submitter.task_then(gate.clone(), ends(&outcomes)).unwrap();
    eventually("it runs", || pool.stats().running == 1);
    let start = Instant::now();
    drop(pool);
    assert!(start.elapsed() < Duration::from_secs(10));
    finish_all(&mut submitter);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::Abandoned; 2]);
    gate.open();
}

#[test]
fn what_cannot_work_is_an_error_of_build_that_names_the_field() {
    let problem = |built: Result<TaskPool<(), ()>, BuildError>| match built {
        Err(BuildError::Config { field, .. }) => field,
        Err(BuildError::Missing(callback)) => callback,
        other => panic!("{other:?}"),
    };
    let builder = || TaskPool::<(), ()>::builder().on_task(|_cx, ()| Ok(()));
    assert_eq!(problem(TaskPool::builder().build()), "on_task");
    assert_eq!(problem(builder().task_worker_num(0).build()), "task_worker_num");
    assert_eq!(problem(builder().queue_capacity(0).build()), "queue_capacity");
    assert_eq!(problem(builder().max_tasks_in_flight(0).build()), "max_tasks_in_flight");
    assert_eq!(problem(builder().task_max_request(0).build()), "task_max_request");
    assert_eq!(problem(builder().task_worker_stack_size(1).build()), "task_worker_stack_size");
    let state = TaskPool::<(), ()>::builder().task_worker(|index| match index {
        2 => Err(anyhow!("no connection")),
        _ => Ok(()),
    });
    let built = state.on_task(|_cx, ()| Ok(())).build();
    assert!(matches!(built, Err(BuildError::TaskWorkerState { worker_index: 2, .. })), "{built:?}");
}

#[test]
fn times_are_kept_where_that_is_asked_for() {
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .task_times(true)
        .on_task(|_cx, ()| Ok(thread::sleep(Duration::from_millis(5))))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    for _ in 0..4 {
        submitter.task(()).unwrap();
    }
    finish_all(&mut submitter);
    eventually("all are recorded", || pool.task_times().unwrap().run.count() == 4);
    let times = pool.task_times().unwrap();
    assert!(times.run.quantile(0.0) >= Duration::from_micros(4900) && times.run.max() < PATIENCE, "{times:?}");
    assert!(times.queued.max() >= Duration::from_millis(10), "the last waited for three others: {times:?}");
    assert!(TaskPool::builder().on_task(|_cx, ()| Ok(())).build().unwrap().task_times().is_none());
}

#[test]
fn the_oldest_queued_task_is_seen_and_looking_changes_no_order() {
    let (sender, started) = events();
    let gate = Gate::default();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |_cx, (gate, number): (Option<Gate>, u32)| {
            gate.inspect(Gate::pass);
            Ok(sender.send(number)?)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task((Some(gate.clone()), 0)).unwrap();
    eventually("it runs", || pool.stats().running == 1);
    assert_eq!(pool.stats().oldest_queued, None);
    let before = Instant::now();
    for number in 1..1000 {
        submitter.task((None, number)).unwrap();
    }
    thread::sleep(Duration::from_millis(5)); // the time that is asked for next
    let oldest = pool.stats().oldest_queued.unwrap();
    assert!(oldest >= Duration::from_millis(5) && oldest <= before.elapsed(), "{oldest:?}");
    gate.open();
    eventually("all have run, looked at all the time", || pool.stats().pending == 0);
    assert_eq!(started.all_so_far(), (0..1000).collect::<Vec<_>>());
}

#[test]
fn a_million_queued_tasks_hold_no_more_than_200_bytes_each_beside_their_payload() {
    const TASKS: usize = 1_000_000;
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    let gate = Gate::default();
    let blocked = gate.clone();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .queue_capacity(TASKS + 1)
        .max_tasks_in_flight(TASKS + 1)
        .on_task(move |_cx, number: u64| {
            blocked.pass();
            Ok(number)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let before = resident_bytes();
    for number in 0..TASKS {
        submitter.task(number as u64).unwrap();
    }
    let each = (resident_bytes() - before) / TASKS;
    assert!(each <= 200 + size_of::<u64>(), "{each} bytes");
    println!("{each} bytes each");
    gate.open();
    finish_all(&mut submitter);
    assert_eq!(pool.stats().done, TASKS as u64);
}

/// Says when it is dropped, by a panic.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !thread::panicking() {
            std::panic::resume_unwind(Box::new("dropped"));
        }
    }
}

#[test]
fn payloads_and_results_that_panic_when_dropped_cost_no_task_its_outcome() {
    #[derive(Clone)]
    struct Payload(#[allow(dead_code, reason = "it is there to be dropped")] Arc<Bomb>);
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .max_results(1)
        .on_task(|cx, (what, _payload): (&'static str, Payload)| match what {
            "fail" => bail!("no"),
            "results" => {
                let _ = cx.finish(None);
                Ok(None)
            }
            "late" => {
                while !cx.cancelled() {
                    thread::yield_now();
                }
                Ok(Some(Bomb))
            }
            _ => Ok(None),
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let outcomes = heard();
    let payload = || Payload(Arc::new(Bomb));
    let once = || TaskOptions::new().retry(Retry::attempts(2).when(|_| false));
    submitter.with(once()).task_then(("fail", payload()), ends(&outcomes)).unwrap();
    finish_until(&mut submitter, &outcomes, 1);
    let delayed = TaskOptions::new().after(Duration::from_secs(3600));
    let id = submitter.with(delayed).task_then(("never", payload()), ends(&outcomes)).unwrap();
    assert!(submitter.cancel(id));
    finish_until(&mut submitter, &outcomes, 2);
    let late = submitter.task_wait(("late", payload()), Duration::from_millis(100));
    assert!(matches!(late, Err(WaitError::TimedOut)));
    drop(submitter.task_wait(("results", payload()), PATIENCE));
    // Its payload's last owner is the task, whose frame it panics in.
    assert_eq!(outcomes.borrow()[1], OutcomeKind::Cancelled);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.accepted, tasks.cancelled, tasks.timed_out, tasks.pending), (4, 1, 1, 0), "{tasks:?}");
    assert_balanced(&tasks);
}

#[test]
fn a_gap_of_one_way_tasks_takes_no_memory() {
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    let gate = Gate::default();
    let pool = TaskPool::builder()
        .queue_capacity(1_000_000)
        .on_task(|_cx, gate: Option<Gate>| Ok(gate.inspect(Gate::pass).is_some()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task(Some(gate.clone())).unwrap();
    let oneway = |submitter: &mut Submitter<_, _>, count: u32| {
        for _ in 0..count {
            while submitter.task_oneway(None).is_err() {
                thread::yield_now();
            }
        }
    };
    oneway(&mut submitter, 1000);
    eventually("all but one have run", || pool.stats().pending == 1);
    let before = resident_bytes();
    for _ in 0..100 {
        oneway(&mut submitter, 20_000);
        eventually("all but one have run", || pool.stats().pending == 1);
    }
    submitter.task_wait(None, PATIENCE).unwrap();
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 20 << 20, "{grown} bytes for two million one-way tasks");
    gate.open();
    finish_all(&mut submitter);
}

#[test]
fn a_task_workers_own_tasks_of_every_priority_have_their_turn() {
    let (sender, ran) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |_cx, (gate, what): (Option<Gate>, _)| {
            gate.inspect(Gate::pass);
            Ok(sender.send(what)?)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    submitter.task_oneway((Some(gate.clone()), (false, Priority::Normal))).unwrap();
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        let options = TaskOptions::new().priority(priority);
        for number in 0..3000 {
            submitter.with(options.clone()).task_oneway((None, (false, priority))).unwrap();
            if number < 10 {
                submitter.with(options.clone().worker(0)).task_oneway((None, (true, priority))).unwrap();
            }
        }
    }
    gate.open();
    eventually("all have run", || pool.stats().pending == 0);
    let ran = ran.all_so_far();
    for priority in [Priority::High, Priority::Normal, Priority::Low] {
        let last = ran.iter().rposition(|&what| what == (true, priority)).unwrap();
        assert!(last < 1000, "the last one of its own, {priority:?}, was number {last}");
    }
}

#[test]
fn a_shutdown_at_any_moment_beside_submitters_that_cancel_leaves_each_task_one_outcome() {
    for round in 0..150u64 {
        let pool = TaskPool::builder()
            .task_worker_num(2)
            .on_task(|cx, number: u64| {
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(number % 50) {
                    thread::yield_now();
                }
                match number % 7 {
                    0 => cx.finish_later(|reply| drop(thread::spawn(move || reply.finish(number)))),
                    _ => Ok(number),
                }
            })
            .build()
            .unwrap();
        let shared = Mutex::new(Some(pool));
        let both_are_there = Barrier::new(3);
        let submit_until_shutdown = || {
            let mut submitter = shared.lock().as_ref().unwrap().submitter();
            both_are_there.wait();
            let ends: Rc<RefCell<HashMap<_, u32>>> = Rc::default();
            let mut ids = Vec::new();
            for number in 0.. {
                let heard = Rc::clone(&ends);
                let note = move |_: &mut Submitter<_, _>, done: Finished<u64>| {
                    *heard.borrow_mut().entry(done.id()).or_default() += 1;
                    Ok(())
                };
                let options = match number % 5 {
                    0 => TaskOptions::new().deadline(Duration::from_micros(number % 300)),
                    1 => TaskOptions::new().after(Duration::from_micros(number % 300)),
                    _ => TaskOptions::new(),
                };
                match submitter.with(options).task_then(number, note) {
                    Ok(id) => ids.push(id),
                    Err(TaskError::ShuttingDown) => break,
                    Err(_) => drop(submitter.run_finished_for(Duration::from_micros(100))),
                }
                if number % 3 == 0 {
                    submitter.cancel(ids[ids.len() * 7 / 8]);
                }
                if number % 4 == 0 {
                    submitter.run_finished();
                }
            }
            for id in &ids {
                submitter.cancel(*id);
            }
            finish_all(&mut submitter);
            assert!(ids.iter().all(|id| ends.borrow().get(id) == Some(&1)), "each once");
            ids.len() as u64
        };
        let (accepted, report) = thread::scope(|scope| {
            let submitters = [scope.spawn(submit_until_shutdown), scope.spawn(submit_until_shutdown)];
            both_are_there.wait();
            thread::sleep(Duration::from_micros(round * 13 % 700));
            let pool = shared.lock().take().unwrap();
            let report = pool.shutdown(Duration::from_micros(round * 101 % 2000));
            let accepted: u64 = submitters.into_iter().map(|submitter| submitter.join().unwrap()).sum();
            (accepted, report)
        });
        assert_eq!((report.tasks.accepted, report.tasks.outcomes()), (accepted, accepted), "{report:?}");
    }
}

#[test]
fn a_reply_that_a_task_worker_keeps_is_finished_by_its_stop_hook_at_a_shutdown() {
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .task_worker(|_| Ok(Vec::new()))
        .task_worker_stop(|_, replies: Vec<Later<u32>>| {
            for (reply, number) in replies.into_iter().zip(0..) {
                reply.finish(number);
            }
        })
        .on_task(|cx, ()| {
            let (kept, task) = cx.parts();
            task.finish_later(|reply| kept.push(reply))
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task(()).unwrap();
    submitter.task(()).unwrap();
    let start = Instant::now();
    let report = pool.shutdown(PATIENCE);
    assert!(start.elapsed() < PATIENCE / 2);
    assert_eq!((report.tasks.done, report.tasks.abandoned), (2, 0));
    finish_all(&mut submitter);
}

#[test]
fn a_task_whose_reply_is_taken_away_is_not_tried_again_nor_late() {
    let pool =
        TaskPool::builder().on_task(|cx, ()| cx.finish_later(|reply| reply.finish(cx.attempt()))).build().unwrap();
    let mut submitter = pool.submitter();
    let retry = Retry::attempts(3).when(|error| panic!("nobody asks about {error}"));
    assert_eq!(submitter.with(TaskOptions::new().retry(retry)).task_wait((), PATIENCE).unwrap(), 1);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.late, tasks.retried), (1, 0, 0));
}

#[test]
fn run_finished_inside_a_finish_closure_does_nothing() {
    let pool = pool(1);
    let mut submitter = pool.submitter();
    let order = heard();
    for number in 0..3 {
        let order = Rc::clone(&order);
        let each = move |submitter: &mut Submitter<Job, u32>, _: Finished<u32>| {
            assert_eq!(submitter.run_finished() + submitter.run_finished_for(PATIENCE), 0);
            Ok(order.borrow_mut().push(number))
        };
        submitter.task_each(Box::new(|| 0), each).unwrap();
    }
    finish_all(&mut submitter);
    assert_eq!(*order.borrow(), [0, 1, 2]);
}

#[test]
fn a_stopped_repetition_lets_go_of_its_closure_at_once() {
    let pool = TaskPool::builder().on_task(|_cx, ()| Ok(())).build().unwrap();
    let mut submitter = pool.submitter();
    let held = Arc::new(());
    let day = Duration::from_secs(24 * 60 * 60);
    let mut every = || {
        let held = Arc::clone(&held);
        submitter.task_every(day, move || drop(Arc::clone(&held))).unwrap()
    };
    let (first, _second) = (every(), every());
    assert_eq!(Arc::strong_count(&held), 3);
    first.stop();
    assert_eq!(Arc::strong_count(&held), 2);
    drop(submitter);
    assert_eq!(Arc::strong_count(&held), 1, "and so does one whose submitter is gone");
}

#[test]
fn who_waits_with_nothing_in_flight_waits_no_longer_than_until_the_pool_ends() {
    let shared = Mutex::new(Some(TaskPool::builder().on_task(|_, ()| Ok(())).build().unwrap()));
    let mut late = shared.lock().as_ref().unwrap().submitter();
    let (sender, waits) = events();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut submitter = shared.lock().as_ref().unwrap().submitter();
            sender.send(()).unwrap();
            submitter.run_finished_for(Duration::MAX)
        });
        waits.next();
        // It waits, or is about to.
        shared.lock().take().unwrap().shutdown(PATIENCE);
        assert_eq!(waiting.join().unwrap(), 0);
    });
    assert_eq!(late.run_finished_for(Duration::MAX), 0);
}

#[test]
fn the_tasks_of_a_repetition_do_not_overlap_however_long_they_take() {
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let pool = TaskPool::builder()
        .task_worker_num(4)
        .on_task(move |_, ()| {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(10));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let repetition = submitter.task_every(Duration::from_millis(1), || ()).unwrap();
    let mut heard = 0;
    while heard < 5 {
        heard += submitter.run_finished_for(PATIENCE);
        assert!(submitter.tasks_in_flight() <= 1);
    }
    repetition.stop();
    finish_all(&mut submitter);
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}
