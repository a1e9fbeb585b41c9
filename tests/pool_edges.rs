//! The back room without a socket, where its features meet: deadlines, order, further tasks, states, shutdowns.

#![allow(clippy::unit_arg, reason = "one-line callbacks")]

mod common;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use backroom::{
    Finished, Later, Observer, OutcomeKind, Priority, Retry, Submitter, TaskEnded, TaskError, TaskFailure, TaskId,
    TaskOptions, TaskPool, WaitError,
};
use common::{Gate, PATIENCE, assert_balanced, ends, events, eventually, finish_all, finish_until, heard, log_from};
use crossbeam_channel::Sender;
use parking_lot::Mutex;

/// Time enough for a task to start, and for a test to look.
const SOON: Duration = Duration::from_millis(300);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// It came when it was due, and not much later.
fn assert_came_at(due: Duration, start: Instant) {
    let elapsed = start.elapsed();
    assert!(elapsed >= due && elapsed < due + PATIENCE / 3, "due after {due:?}, came after {elapsed:?}");
}

#[test]
fn a_task_whose_reply_was_taken_away_times_out_at_its_deadline_and_to_finish_it_then_is_late() {
    let (sender, replies) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |cx, ()| cx.finish_later(|reply: Later<u32>| sender.send(reply).unwrap()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let (outcomes, soon) = (heard(), TaskOptions::new().deadline(SOON));
    let start = Instant::now();
    submitter.with(soon.clone()).task_then((), ends(&outcomes)).unwrap();
    let reply = replies.next();
    assert!(!reply.cancelled());
    finish_until(&mut submitter, &outcomes, 1);
    assert_came_at(SOON, start);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::TimedOut]);
    assert!(reply.cancelled(), "whoever has the reply can see it");
    let tasks = pool.stats();
    assert_eq!((tasks.timed_out, tasks.pending, tasks.to_be_finished_later, tasks.late), (1, 0, 0, 0));
    reply.finish(1);
    let tasks = pool.stats();
    assert_eq!((tasks.timed_out, tasks.done, tasks.late), (1, 0, 1));
    assert_eq!(submitter.run_finished(), 0, "nobody hears of it again");

    // Where nobody follows the task, whoever finishes it too late learns nothing, and the books do.
    submitter.with(soon).task_oneway(()).unwrap();
    let (submitted, reply) = (Instant::now(), replies.next());
    eventually("its deadline has passed", || submitted.elapsed() >= SOON);
    reply.finish(2);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.timed_out, tasks.done, tasks.late, tasks.one_way), (2, 0, 2, 1));
    assert_balanced(&tasks);
}

#[test]
fn a_closure_that_runs_past_its_deadline_times_out_then_and_its_finish_closure_hears_of_it() {
    let pool = TaskPool::<(), ()>::builder().task_worker_num(1).on_task(|_cx, ()| Ok(())).build().unwrap();
    let mut submitter = pool.submitter();
    let (sender, started) = events();
    let (gate, results) = (Gate::default(), heard());
    let slow = gate.clone();
    let work = move || {
        sender.send(()).unwrap();
        slow.pass();
        "too late"
    };
    let kept = Rc::clone(&results);
    let finish = move |_: &mut Submitter<_, _>, result| Ok(kept.borrow_mut().push(result));
    let start = Instant::now();
    submitter.with(TaskOptions::new().deadline(SOON)).run(work, finish).unwrap();
    started.next();
    finish_until(&mut submitter, &results, 1);
    assert_came_at(SOON, start);
    assert!(matches!(results.borrow()[..], [Err(TaskFailure::TimedOut)]), "{results:?}");
    let tasks = pool.stats();
    assert_eq!((tasks.timed_out, tasks.running, tasks.task_workers_busy), (1, 0, 1), "it runs still");
    gate.open();
    submitter.task_wait((), PATIENCE).expect("the task worker is free again");
    assert_eq!((results.borrow().len(), submitter.run_finished()), (1, 0), "what it returned is nobody's");
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.timed_out, tasks.done, tasks.late, tasks.delivered), (1, 1, 1, 2));
    assert_balanced(&tasks);
}

#[test]
fn a_task_that_waits_for_its_next_attempt_times_out_at_its_deadline_and_not_at_that_attempt() {
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |_cx, payload: Arc<()>| {
            counted.fetch_add(1, Ordering::Relaxed);
            drop(payload);
            Err::<(), _>(anyhow!("not this time"))
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let (outcomes, payload) = (heard(), Arc::new(()));
    let tomorrow = TaskOptions::new().retry(Retry::attempts(3).backoff(DAY, DAY));
    let start = Instant::now();
    submitter.with(tomorrow.clone().deadline(SOON)).task_then(Arc::clone(&payload), ends(&outcomes)).unwrap();
    eventually("it waits for its second attempt", || pool.stats().delayed == 1);
    finish_until(&mut submitter, &outcomes, 1);
    assert_came_at(SOON, start);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::TimedOut]);
    let tasks = pool.stats();
    assert_eq!((tasks.timed_out, tasks.retried, tasks.delayed, tasks.pending), (1, 1, 0, 0));
    assert_eq!(Arc::strong_count(&payload), 1, "nobody keeps its payload for an attempt that will not come");

    // Who waits for such a task waits no longer than the time given.
    let start = Instant::now();
    let waited = submitter.with(tomorrow).task_wait(Arc::clone(&payload), SOON);
    assert!(matches!(waited, Err(WaitError::TimedOut)), "{waited:?}");
    assert_came_at(SOON, start);
    assert_eq!((attempts.load(Ordering::Relaxed), Arc::strong_count(&payload)), (2, 1));
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.timed_out, tasks.retried, tasks.failed, tasks.late), (2, 2, 0, 0));
    assert_balanced(&tasks);
}

/// With one task worker they are cancelled, or time out, while they are queued; with more, while they run.
#[test]
fn a_task_that_is_cancelled_and_one_that_times_out_keep_their_places_in_the_order() {
    for task_workers in [1, 4] {
        let (sender, started) = events();
        let pool = TaskPool::builder()
            .task_worker_num(task_workers)
            .results_in_order(true)
            .on_task(move |_cx, (number, gate): (u32, Option<Gate>)| {
                sender.send(number)?;
                Ok(gate.inspect(Gate::pass).map_or((), drop))
            })
            .build()
            .unwrap();
        let mut submitter = pool.submitter();
        let (gate, order) = (Gate::default(), heard());
        let mut ids = Vec::new();
        for number in 1..=6 {
            let order = Rc::clone(&order);
            let finish = move |_: &mut Submitter<_, _>, done: Finished<()>| {
                Ok(order.borrow_mut().push((number, done.outcome().kind())))
            };
            let options = match number {
                4 => TaskOptions::new().deadline(SOON),
                _ => TaskOptions::new(),
            };
            let gate = [1, 3, 4].contains(&number).then(|| gate.clone());
            ids.push(submitter.with(options).task_then((number, gate), finish).unwrap());
        }
        if task_workers == 1 {
            assert_eq!(started.next(), 1);
        } else {
            eventually("those that are not held up have ended", || pool.stats().done == 3);
        }
        assert!(submitter.cancel(ids[2]));
        let start = Instant::now();
        while pool.stats().timed_out == 0 {
            assert!(start.elapsed() < PATIENCE);
            submitter.run_finished_for(SOON);
        }
        assert_eq!(pool.stats().cancelled, 1);
        assert_eq!((submitter.run_finished(), order.borrow().len()), (0, 0), "the first holds all others back");
        gate.open();
        finish_all(&mut submitter);
        let (done, cancelled, timed_out) = (OutcomeKind::Done, OutcomeKind::Cancelled, OutcomeKind::TimedOut);
        assert_eq!(*order.borrow(), [(1, done), (2, done), (3, cancelled), (4, timed_out), (5, done), (6, done)]);
        assert_balanced(&pool.shutdown(PATIENCE).tasks);
    }
}

#[test]
fn a_further_task_with_options_is_heard_by_the_first_submitter_and_treated_as_they_say() {
    #[derive(Clone)]
    enum What {
        First,
        Pinned,
        Delayed(Instant),
        Fails,
    }
    let (sender, ids) = events();
    let (finishing, finished) = events();
    let pool = TaskPool::builder()
        .task_worker_num(3)
        .on_task(move |cx, what: What| {
            match what {
                What::First => {
                    let retry = Retry::attempts(3).backoff(Duration::from_millis(1), Duration::from_millis(1));
                    let delayed = What::Delayed(Instant::now());
                    sender.send(cx.task_with(&TaskOptions::new().worker(2), What::Pinned)?)?;
                    sender.send(cx.task_with(&TaskOptions::new().after(SOON), delayed)?)?;
                    sender.send(cx.task_with(&TaskOptions::new().retry(retry), What::Fails)?)?;
                }
                What::Fails if cx.attempt() < 3 => bail!("not this time"),
                What::Delayed(submitted) => assert!(submitted.elapsed() >= SOON),
                What::Pinned | What::Fails => {}
            }
            Ok((what, cx.worker_index(), cx.attempt()))
        })
        .on_finish(move |submitter, done| {
            assert_ne!(done.id().submitter(), submitter.number(), "it is numbered where it was submitted");
            let (id, queued) = (done.id(), done.time_queued());
            let (what, worker, attempt) = done.into_result()?;
            match what {
                What::First => unreachable!("it has a closure of its own"),
                What::Pinned => assert_eq!(worker, 2),
                What::Delayed(_) => assert!(queued < SOON, "the delay is not time in the queue: {queued:?}"),
                What::Fails => assert_eq!(attempt, 3),
            }
            Ok(finishing.send(id)?)
        })
        .build()
        .unwrap();
    let (mut first, mut other) = (pool.submitter(), pool.submitter());
    first.task_then(What::First, |_, done| Ok(assert!(done.into_result().is_ok()))).unwrap();
    let ids = [ids.next(), ids.next(), ids.next()];
    assert_eq!(ids.map(|id| id.sequence()), [1, 2, 3]);
    finish_all(&mut first);
    let mut finished = finished.all_so_far();
    finished.sort();
    assert_eq!(finished, ids);
    assert_eq!((other.tasks_in_flight(), other.run_finished()), (0, 0), "it is none of theirs");
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.delivered, tasks.retried, tasks.finish_errors), (4, 4, 2, 0), "{tasks:?}");
    assert_balanced(&tasks);
}

#[test]
fn a_task_stays_with_its_task_worker_when_it_is_delayed_repeated_or_tried_again() {
    let (sender, ran_on) = events();
    let pool = TaskPool::builder()
        .task_worker_num(3)
        .on_task(move |cx, attempts: u32| {
            sender.send(cx.worker_index())?;
            anyhow::ensure!(cx.attempt() >= attempts, "again");
            Ok(())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let last = TaskOptions::new().worker(2);
    let again = Retry::attempts(3).backoff(Duration::from_millis(1), Duration::from_millis(1));
    submitter.with(last.clone().retry(again)).task(3).unwrap();
    submitter.with(last.clone().after(Duration::from_millis(1))).task(1).unwrap();
    finish_all(&mut submitter);
    assert_eq!([ran_on.next(), ran_on.next(), ran_on.next(), ran_on.next()], [2; 4]);
    let repetition = submitter.with(last).task_every(Duration::from_millis(1), || 1).unwrap();
    assert_eq!([ran_on.next(), ran_on.next(), ran_on.next()], [2; 3]);
    repetition.stop();
    finish_all(&mut submitter);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);
}

#[test]
fn a_wait_ends_in_time_though_results_and_progress_keep_coming() {
    let pool = TaskPool::builder()
        .task_worker_num(2)
        .on_task(|cx, pause: Duration| {
            while pause.is_zero() && !cx.cancelled() {
                let _ = cx.finish(());
                cx.progress(1, 2);
            }
            Ok(thread::sleep(pause))
        })
        .on_progress(|_, _, _| Ok(()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let start = Instant::now();
    let waited = submitter.task_wait(Duration::ZERO, SOON);
    assert!(matches!(waited, Err(WaitError::TimedOut)), "{waited:?}");
    assert_came_at(SOON, start);

    // Each takes a moment, and all together much longer than there is.
    let start = Instant::now();
    let results = submitter.task_wait_multi(vec![Duration::from_micros(50); 100_000], SOON);
    assert_came_at(SOON, start);
    assert!(
        results.iter().any(Result::is_ok)
            && matches!(results.last(), Some(Err(WaitError::TimedOut | WaitError::NotAccepted(_))))
    );
    let done = pool.stats().done;
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert!(tasks.done <= done + 2, "those that had not started never do: {done} then, and {tasks:?}");
    assert_balanced(&tasks);
}

#[test]
fn without_time_nobody_waits() {
    let pool = TaskPool::builder().task_worker_num(1).on_task(|_cx, gate: Gate| Ok(gate.pass())).build().unwrap();
    let (mut submitter, gate) = (pool.submitter(), Gate::default());
    submitter.task(gate.clone()).unwrap();
    // Were each to yield for a moment, they would take seconds together.
    let start = Instant::now();
    for _ in 0..100_000 {
        assert_eq!(submitter.run_finished_for(Duration::ZERO), 0);
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(matches!(submitter.task_wait(gate.clone(), Duration::ZERO), Err(WaitError::TimedOut)));
    gate.open();
    finish_all(&mut submitter);
    assert_eq!(pool.shutdown(PATIENCE).tasks.done, 1);
}

#[test]
fn a_delayed_task_that_nobody_follows_ends_at_its_deadline() {
    let pool = TaskPool::builder().on_task(|_cx, ()| Ok(())).build().unwrap();
    let mut submitter = pool.submitter();
    let late = TaskOptions::new().after(DAY).deadline(SOON);
    let start = Instant::now();
    submitter.with(late.clone()).task_oneway(()).unwrap();
    submitter.with(late).task(()).unwrap();
    drop(submitter);
    eventually("both have timed out", || pool.stats().timed_out == 2);
    assert_came_at(SOON, start);
    let tasks = pool.stats();
    assert_eq!((tasks.delayed, tasks.one_way, tasks.orphaned), (0, 1, 1));
}

#[test]
fn a_task_fails_at_once_where_there_is_no_room_for_it_to_wait_for_another_attempt() {
    let pool = TaskPool::builder().queue_capacity(1).on_task(|_cx, ()| Err::<(), _>(anyhow!("no"))).build().unwrap();
    let mut submitter = pool.submitter();
    let later = TaskOptions::new().after(DAY);
    while submitter.with(later.clone()).task(()).is_ok() {}
    let again = TaskOptions::new().retry(Retry::attempts(2).backoff(DAY, DAY));
    assert!(matches!(submitter.with(again).task_wait((), PATIENCE), Err(WaitError::Failed(_))));
    assert_eq!(pool.stats().retried, 0);
}

#[test]
fn a_further_one_way_task_with_options_runs_as_they_say_and_nobody_hears_of_it() {
    let (sender, ran) = events();
    let pool = TaskPool::builder()
        .task_worker_num(2)
        .on_task(move |cx, is_first: bool| {
            if is_first {
                let elsewhere = TaskOptions::new().worker(1 - cx.worker_index()).priority(Priority::Low);
                cx.task_oneway_with(&elsewhere, false)?;
                cx.task_oneway_with(&elsewhere.after(Duration::from_millis(1)), false)?;
            } else {
                sender.send(cx.worker_index())?;
            }
            Ok(cx.worker_index())
        })
        .on_finish(|_, done| panic!("nobody is to hear of {done:?}"))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let worker = submitter.task_wait(true, PATIENCE).unwrap();
    assert_eq!([ran.next(), ran.next()], [1 - worker; 2]);
    eventually("both have ended", || pool.stats().one_way == 2);
    assert_eq!((submitter.tasks_in_flight(), submitter.run_finished()), (0, 0));
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.accepted, tasks.done, tasks.delivered, tasks.orphaned), (3, 3, 1, 0));
    assert_balanced(&tasks);
}

#[test]
fn a_task_is_refused_further_ones_where_its_submitter_has_too_many_to_hear_of() {
    let (sender, told) = events();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .max_tasks_in_flight(2)
        .on_task(move |cx, name: &'static str| {
            if name == "first" {
                let further: Vec<u64> = (0..8).map_while(|_| cx.task("further").ok()).map(|id| id.sequence()).collect();
                let refused = [
                    cx.task("one too many").unwrap_err(),
                    cx.task_with(&TaskOptions::new().worker(0), "pinned").unwrap_err(),
                    cx.task_with(&TaskOptions::new().after(DAY), "tomorrow").unwrap_err(),
                ];
                // Of this one it does not hear.
                let oneway = cx.task_oneway("one-way")?.sequence();
                sender.send((further, refused.map(|error| (error.reason(), error.into_payload())), oneway))?;
            }
            Ok(())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    // Once it has heard of them, there is room again.
    for first in [1, 10] {
        submitter.task("first").unwrap();
        let (further, refused, oneway) = told.next();
        assert_eq!(further, (first..first + 8).collect::<Vec<_>>());
        assert_eq!(refused, ["one too many", "pinned", "tomorrow"].map(|name| (TaskError::TooManyInFlight, name)));
        assert_eq!(oneway, first + 8, "a refused task takes no id");
        finish_all(&mut submitter);
    }
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.accepted, tasks.done, tasks.delivered, tasks.one_way), (20, 20, 18, 2));
    assert_balanced(&tasks);
}

#[test]
fn a_task_is_refused_further_ones_during_a_shutdown() {
    let (sender, refused) = events();
    let gate = Gate::default();
    let slow = gate.clone();
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(move |cx, name: &'static str| {
            assert_eq!(name, "first");
            slow.pass();
            let soon = TaskOptions::new().after(Duration::from_millis(1));
            for error in [
                cx.task("a").unwrap_err(),
                cx.task_oneway("b").unwrap_err(),
                cx.task_with(&soon, "c").unwrap_err(),
                cx.task_oneway_with(&TaskOptions::new().worker(0), "d").unwrap_err(),
            ] {
                sender.send((error.reason(), error.into_payload()))?;
            }
            Ok(())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let outcomes = heard();
    submitter.with(TaskOptions::new().after(DAY)).task_then("tomorrow", ends(&outcomes)).unwrap();
    submitter.task_then("first", ends(&outcomes)).unwrap();
    eventually("it runs", || pool.stats().running == 1);
    let shutdown = thread::spawn(|| pool.shutdown(PATIENCE));
    // A shutdown cancels what is delayed, so it has begun now.
    finish_until(&mut submitter, &outcomes, 1);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::Cancelled]);
    gate.open();
    for name in ["a", "b", "c", "d"] {
        assert_eq!(refused.next(), (TaskError::ShuttingDown, name));
    }
    let report = shutdown.join().unwrap();
    assert_eq!((report.tasks.accepted, report.tasks.done, report.tasks.cancelled), (2, 1, 1), "{report:?}");
    assert_eq!(report.task_workers_running, 0);
    finish_all(&mut submitter);
    assert_eq!(*outcomes.borrow(), [OutcomeKind::Cancelled, OutcomeKind::Done]);
}

#[test]
fn the_stop_hook_gets_states_that_are_renewed_or_end_and_none_that_a_panic_has_left() {
    struct State {
        number: usize,
        dropped: Sender<usize>,
    }
    impl Drop for State {
        fn drop(&mut self) {
            let _ = self.dropped.send(self.number);
        }
    }
    let (dropping, dropped) = events();
    let (stopping, stopped) = events();
    let made = AtomicUsize::new(0);
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .task_worker(move |_| Ok(State { number: made.fetch_add(1, Ordering::Relaxed), dropped: dropping.clone() }))
        .task_worker_stop(move |index, state: State| stopping.send((index, state.number)).unwrap())
        .on_task(|cx, panics: bool| {
            if panics {
                std::panic::resume_unwind(Box::new("in a task"));
            }
            Ok(cx.worker().number)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let mut number = || submitter.task_wait(false, PATIENCE).unwrap();
    assert_eq!(number(), 0);
    pool.recycle();
    assert_eq!((stopped.next(), dropped.next()), ((0, 0), 0));
    assert_eq!(number(), 1);
    let panicked = submitter.task_wait(true, PATIENCE);
    assert!(matches!(panicked, Err(WaitError::Panicked(_))), "{panicked:?}");
    assert_eq!(dropped.next(), 1, "a state that a panic has left half changed is dropped");
    assert_eq!(submitter.task_wait(false, PATIENCE).unwrap(), 2);
    assert_eq!(stopped.all_so_far(), [], "and nobody is given it");
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((stopped.all_so_far(), dropped.all_so_far()), (vec![(0, 2)], vec![2]));
    assert_eq!((tasks.recycled, tasks.panicked, tasks.done), (1, 1, 3));
    assert_balanced(&tasks);
}

#[test]
fn a_stop_hook_that_panics_is_logged_and_its_task_worker_goes_on() {
    if let Some(child) = in_child!() {
        common::succeeds(child);
        return;
    }
    let logged = log_from(log::LevelFilter::Warn);
    let made = AtomicUsize::new(0);
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .task_worker(move |_| Ok(made.fetch_add(1, Ordering::Relaxed)))
        .task_worker_stop(|_, state: usize| std::panic::resume_unwind(Box::new(format!("cannot close {state}"))))
        .on_task(|cx, ()| Ok(*cx.worker()))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    assert_eq!(submitter.task_wait((), PATIENCE).unwrap(), 0);
    pool.recycle();
    eventually("it has renewed its state", || pool.stats().recycled == 1);
    assert_eq!(submitter.task_wait((), PATIENCE).unwrap(), 1);
    let report = pool.shutdown(PATIENCE);
    assert_eq!((report.tasks.done, report.tasks.panicked, report.task_workers_running), (2, 0, 0));
    assert_balanced(&report.tasks);
    let lines = logged.lock().clone();
    for state in 0..2 {
        let about = |line: &&String| line.starts_with("WARN task worker 0: ") && line.contains("cannot close");
        let told = lines.iter().filter(about).filter(|line| line.ends_with(&format!("cannot close {state}")));
        assert_eq!(told.count(), 1, "{lines:?}");
    }
}

#[test]
fn a_state_that_cannot_be_renewed_is_tried_for_while_the_others_serve_and_is_fresh_at_last() {
    let (sender, failures) = events();
    let (is_down, made) = (Arc::new(AtomicBool::new(false)), AtomicUsize::new(0));
    let down = Arc::clone(&is_down);
    let pool = TaskPool::builder()
        .task_worker_num(2)
        .task_worker(move |index| {
            if index == 0 && down.load(Ordering::Relaxed) {
                sender.send(())?;
                bail!("the database is down");
            }
            Ok(made.fetch_add(1, Ordering::Relaxed))
        })
        .on_task(|cx, ()| Ok((cx.worker_index(), *cx.worker())))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let old = [0, 1].map(|worker| submitter.with(TaskOptions::new().worker(worker)).task_wait((), PATIENCE).unwrap());
    assert_eq!((old[0].1.max(old[1].1), pool.stats().state_failures), (1, 0));

    is_down.store(true, Ordering::Relaxed);
    pool.recycle();
    failures.next();
    eventually("it is counted", || pool.stats().state_failures >= 1);
    let own = heard();
    let kept = Rc::clone(&own);
    let finish =
        move |_: &mut Submitter<_, _>, done: Finished<(usize, usize)>| Ok(kept.borrow_mut().push(done.into_result()?));
    submitter.with(TaskOptions::new().worker(0)).task_then((), finish).unwrap();
    for _ in 0..100 {
        assert_eq!(submitter.task_wait((), PATIENCE).unwrap().0, 1, "the other serves");
    }
    failures.next();
    submitter.run_finished();
    assert!(own.borrow().is_empty(), "what is for that task worker waits");

    is_down.store(false, Ordering::Relaxed);
    finish_until(&mut submitter, &own, 1);
    eventually("both have had their turn", || pool.stats().recycled == 2);
    let other = submitter.with(TaskOptions::new().worker(1)).task_wait((), PATIENCE).unwrap();
    let mut fresh = [own.borrow()[0], other];
    fresh.sort_by_key(|state| state.1);
    assert_eq!([fresh[0].1, fresh[1].1], [2, 3], "fresh states: {fresh:?}");
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!(tasks.state_failures, 2 + failures.all_so_far().len() as u64);
    assert_eq!((tasks.recycled, tasks.done, tasks.abandoned), (2, 104, 0));
    assert_balanced(&tasks);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Accepted(TaskId),
    Started(TaskId, usize),
    Ended(TaskId, OutcomeKind),
    WorkerStarted(usize),
    WorkerStopped(usize),
    WorkerPanicked(usize),
}

struct Watcher(Sender<Told>);

impl Observer for Watcher {
    fn task_accepted(&self, id: TaskId) {
        self.0.send(Told::Accepted(id)).unwrap();
    }

    fn task_started(&self, id: TaskId, worker_index: usize) {
        self.0.send(Told::Started(id, worker_index)).unwrap();
    }

    fn task_ended(&self, ended: &TaskEnded<'_>) {
        self.0.send(Told::Ended(ended.id, ended.how)).unwrap();
    }

    fn task_worker_started(&self, worker_index: usize) {
        self.0.send(Told::WorkerStarted(worker_index)).unwrap();
    }

    fn task_worker_stopped(&self, worker_index: usize) {
        self.0.send(Told::WorkerStopped(worker_index)).unwrap();
    }

    fn task_worker_panicked(&self, worker_index: usize, message: &str) {
        assert_eq!(message, "at once");
        self.0.send(Told::WorkerPanicked(worker_index)).unwrap();
    }
}

#[test]
fn an_observer_of_a_pool_is_told_of_its_tasks_and_task_workers() {
    let (sender, told) = events();
    let pool = TaskPool::builder()
        .task_worker_num(2)
        .observer(Arc::new(Watcher(sender)))
        .on_task(|cx, what: &'static str| match what {
            "again" if cx.attempt() < 2 => bail!("not this time"),
            "fail" => bail!("never"),
            "panic" => std::panic::resume_unwind(Box::new("at once")),
            _ => Ok(()),
        })
        .build()
        .unwrap();
    let mut started = [told.next(), told.next()];
    started.sort_by_key(|told| *told == Told::WorkerStarted(1));
    assert_eq!(started, [Told::WorkerStarted(0), Told::WorkerStarted(1)]);

    let mut submitter = pool.submitter();
    let mut submit = |options: TaskOptions<_>, what| submitter.with(options.worker(1)).task(what).unwrap();
    let retry = Retry::attempts(2).backoff(Duration::from_millis(1), Duration::from_millis(1));
    let done = submit(TaskOptions::new(), "work");
    let failed = submit(TaskOptions::new(), "fail");
    let again = submit(TaskOptions::new().retry(retry), "again");
    let cancelled = submit(TaskOptions::new().after(DAY), "cancel");
    let panicked = submit(TaskOptions::new(), "panic");
    let oneway = submitter.with(TaskOptions::new().worker(1)).task_oneway("work").unwrap();
    assert!(submitter.cancel(cancelled));
    let refused = submitter.with(TaskOptions::new().worker(2)).task("work");
    assert_eq!(refused, Err(TaskError::NoSuchWorker), "and of what was not accepted nobody is told");
    finish_all(&mut submitter);
    assert_balanced(&pool.shutdown(PATIENCE).tasks);

    let told = told.all_so_far();
    // Of different tasks it may be told in any order, since that happens on different threads.
    let about = |task: TaskId| {
        let is_about = move |told: &&Told| match **told {
            Told::Accepted(id) | Told::Started(id, _) | Told::Ended(id, _) => id == task,
            _ => false,
        };
        told.iter().filter(is_about).copied().collect::<Vec<_>>()
    };
    let run = |id, how| vec![Told::Accepted(id), Told::Started(id, 1), Told::Ended(id, how)];
    assert_eq!(about(done), run(done, OutcomeKind::Done));
    assert_eq!(about(failed), run(failed, OutcomeKind::Failed));
    assert_eq!(about(panicked), run(panicked, OutcomeKind::Panicked));
    assert_eq!(about(oneway), run(oneway, OutcomeKind::Done));
    assert_eq!(about(cancelled), [Told::Accepted(cancelled), Told::Ended(cancelled, OutcomeKind::Cancelled)]);
    let twice = [Told::Accepted(again), Told::Started(again, 1), Told::Started(again, 1)];
    assert_eq!(about(again), [&twice[..], &[Told::Ended(again, OutcomeKind::Done)]].concat());

    let workers = |worker: usize| {
        let is_about = move |told: &&Told| {
            [Told::WorkerStarted(worker), Told::WorkerStopped(worker), Told::WorkerPanicked(worker)].contains(told)
        };
        told.iter().filter(is_about).copied().collect::<Vec<_>>()
    };
    assert_eq!(workers(0), [Told::WorkerStopped(0)]);
    let renewed = [Told::WorkerPanicked(1), Told::WorkerStopped(1), Told::WorkerStarted(1), Told::WorkerStopped(1)];
    assert_eq!(workers(1), renewed);
    assert_eq!(told.len(), 6 * 3 + 5, "and of nothing else: {told:?}");
}

#[test]
fn the_drain_deadline_of_a_pool_ends_a_wait() {
    for by_drop in [false, true] {
        let (gate, deadline) = (Gate::default(), Duration::from_millis(50));
        let (sender, started) = events();
        let slow = gate.clone();
        let pool = TaskPool::builder()
            .task_worker_num(1)
            .drain_timeout(deadline)
            .on_task(move |_cx, ()| {
                sender.send(())?;
                Ok(slow.pass())
            })
            .build()
            .unwrap();
        let pool = Mutex::new(Some(pool));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut submitter = pool.lock().as_ref().unwrap().submitter();
                let results = submitter.task_wait_multi(vec![(); 2], Duration::MAX);
                (results, submitter.tasks_in_flight(), submitter.task_wait((), Duration::MAX))
            });
            started.next();
            eventually("one runs and one waits", || pool.lock().as_ref().unwrap().stats().pending == 2);
            let (start, pool) = (Instant::now(), pool.lock().take().unwrap());
            if by_drop {
                drop(pool);
            } else {
                let report = pool.shutdown(deadline);
                assert_eq!((report.tasks.abandoned, report.tasks.pending, report.task_workers_running), (2, 0, 1));
            }
            let (results, in_flight, another) = waiting.join().unwrap();
            assert_came_at(deadline, start);
            assert!(matches!(results[..], [Err(WaitError::Abandoned), Err(WaitError::Abandoned)]), "{results:?}");
            assert_eq!(in_flight, 0);
            assert!(matches!(another, Err(WaitError::NotAccepted(TaskError::ShuttingDown))), "{another:?}");
        });
        gate.open();
        assert_eq!(started.all_so_far(), [], "what was queued never ran");
    }
}

#[test]
fn delayed_tasks_that_are_cancelled_before_they_are_due_never_run_and_end_at_once() {
    let (sender, ran) = events();
    let pool = TaskPool::builder().task_worker_num(1).on_task(move |_cx, name| Ok(sender.send(name)?)).build().unwrap();
    let mut submitter = pool.submitter();
    let outcomes = heard();
    let delay = Duration::from_millis(700);
    let cancelled: Vec<TaskId> = (0..10)
        .map(|number| {
            // One of them is waited for by the timer's thread itself, since it is the next.
            let options = TaskOptions::new().after(delay + Duration::from_millis(number));
            submitter.with(options).task_then("cancelled", ends(&outcomes)).unwrap()
        })
        .collect();
    let later = TaskOptions::new().after(delay + Duration::from_millis(50));
    submitter.with(later).task_then("the one that stays", ends(&outcomes)).unwrap();
    assert_eq!(pool.stats().delayed, 11);
    for id in cancelled {
        assert!(submitter.cancel(id));
    }
    let tasks = pool.stats();
    assert_eq!((tasks.delayed, tasks.cancelled, tasks.pending), (1, 10, 1));
    assert_eq!(submitter.run_finished(), 10, "none of their outcomes waits for the time that the task was delayed to");
    assert_eq!(*outcomes.borrow(), [OutcomeKind::Cancelled; 10]);
    // It is due after all others, and there is one task worker, so they would have run before it.
    assert_eq!(ran.next(), "the one that stays");
    finish_all(&mut submitter);
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!(ran.all_so_far(), [""; 0]);
    assert_eq!((tasks.cancelled, tasks.done, tasks.late, tasks.delivered), (10, 1, 0, 11));
    assert_balanced(&tasks);
}
