//! What Swoole's documentation promises of tasks, kept here.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use backroom::{Finished, Framing, Outcome, Server, Submitter, TaskPool, WaitError};
use common::{Gate, PATIENCE, assert_balanced, events, eventually, run};

#[test]
fn tasks_for_one_sleeping_task_worker_are_all_accepted_and_run_first_in_first_out() {
    const TASKS: u64 = 2048;
    let (sender, started) = events();
    let gate = Gate::default();
    let asleep = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .max_tasks_in_flight(TASKS as usize)
        .on_receive(|conn, _| {
            for number in 0..TASKS {
                let id = conn.task(number)?;
                assert_eq!((id.submitter(), id.sequence()), (conn.id().number(), number + 1), "no gaps");
            }
            Ok(conn.send("accepted\n")?)
        })
        .on_task(move |_, number: u64| {
            asleep.pass();
            Ok(sender.send(number)?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("go"), "accepted");
    let tasks = server.handle.stats().tasks;
    assert_eq!((tasks.accepted, tasks.pending), (TASKS, TASKS));
    gate.open();
    drop(client);
    assert_eq!(server.stop().tasks.done, TASKS);
    assert_eq!(started.all_so_far(), (0..TASKS).collect::<Vec<_>>());
}

#[test]
fn two_of_three_task_workers_busy_are_one_idle_in_the_stats() {
    let pool = TaskPool::builder()
        .task_worker_num(3)
        .on_task(|_cx, gate: Gate| {
            gate.pass();
            Ok(())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let gate = Gate::default();
    submitter.task(gate.clone()).unwrap();
    submitter.task(gate.clone()).unwrap();
    eventually("both have started", || pool.stats().task_workers_busy == 2);
    let tasks = pool.stats();
    assert_eq!((tasks.task_workers_idle, tasks.running, tasks.queued), (1, 2, 0));
    gate.open();
    assert_balanced(&{
        while submitter.tasks_in_flight() > 0 {
            submitter.run_finished_for(PATIENCE);
        }
        pool.shutdown(PATIENCE).tasks
    });
}

#[test]
fn after_a_task_that_panics_the_same_task_worker_serves_the_next() {
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task(|cx, panics: bool| match panics {
            true => std::panic::resume_unwind(Box::new("thrown")),
            false => Ok((cx.worker_index(), thread::current().id())),
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let before = submitter.task_wait(false, PATIENCE).unwrap();
    let thrown = submitter.task_wait(true, PATIENCE);
    assert!(matches!(thrown, Err(WaitError::Panicked(message)) if message == "thrown"));
    assert_eq!(submitter.task_wait(false, PATIENCE).unwrap(), before);
}

#[test]
fn a_wait_that_times_out_does_not_take_the_answer_of_the_next() {
    let gate = Gate::default();
    let slow = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_task(move |_, line: Vec<u8>| {
            if line == b"slow" {
                slow.pass();
            }
            Ok(line)
        })
        .on_receive(|conn, line| {
            let time = if line == b"slow" { Duration::from_millis(50) } else { PATIENCE };
            let answer = match conn.task_wait(line.to_vec(), time) {
                Ok(line) => format!("{}\n", String::from_utf8_lossy(&line)),
                Err(WaitError::TimedOut) => "timed out\n".to_owned(),
                Err(error) => format!("{error}\n"),
            };
            Ok(conn.send(answer)?)
        })
        .on_finish(|_, _| panic!("a wait never calls on_finish"))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    // It may be timed out before it starts, and then never runs.
    while server.handle.stats().tasks.task_workers_busy == 0 {
        assert_eq!(client.ask("slow"), "timed out");
    }
    client.send("next\n");
    eventually("the next waits behind it", || server.handle.stats().tasks.queued == 1);
    // The late answer comes during that wait.
    gate.open();
    assert_eq!([client.line(), client.ask("again")], ["next", "again"]);
    drop(client);
    assert_eq!(server.stop().tasks.late, 1);
}

#[test]
fn one_slow_task_of_five_leaves_four_results_and_one_timeout_in_place() {
    let pool = TaskPool::builder()
        .task_worker_num(5)
        .on_task(|cx, number: u32| {
            while number == 2 && !cx.cancelled() {
                thread::yield_now();
            }
            Ok(number)
        })
        .build()
        .unwrap();
    let results = pool.submitter().task_wait_multi((0..5).collect(), Duration::from_millis(300));
    let results: Vec<Option<u32>> = results
        .into_iter()
        .map(|result| match result {
            Ok(number) => Some(number),
            Err(WaitError::TimedOut) => None,
            Err(error) => panic!("{error}"),
        })
        .collect();
    assert_eq!(results, [Some(0), Some(1), None, Some(3), Some(4)]);
}

#[test]
fn payloads_and_results_of_any_size_arrive_intact() {
    let pool = TaskPool::builder()
        .on_task(|_cx, mut bytes: Vec<u8>| {
            bytes.reverse();
            Ok(bytes)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    // Around the 8 KiB from which Swoole goes through a file, and far beyond.
    for size in [0, 1, 8151, 8152, 8153, 8180, 65_536, 1 << 20, 8 << 20] {
        let bytes: Vec<u8> = (0..size).map(|index| (index * 31 % 251) as u8).collect();
        let mut result = submitter.task_wait(bytes.clone(), PATIENCE).unwrap();
        result.reverse();
        assert!(result == bytes, "{size} bytes");
    }
}

#[test]
fn results_match_requests_under_64_concurrent_submitters() {
    const SUBMITTERS: u64 = 64;
    const TASKS: u64 = 200;
    let pool = TaskPool::builder().task_worker_num(4).on_task(|_cx, number: u64| Ok(number * 3 + 1)).build().unwrap();
    thread::scope(|scope| {
        for own in 0..SUBMITTERS {
            let pool = &pool;
            scope.spawn(move || {
                let mut submitter = pool.submitter();
                let mut waited = 0;
                for number in (0..TASKS).map(|task| own * TASKS + task) {
                    if number % 10 == 0 {
                        assert_eq!(submitter.task_wait(number, PATIENCE).unwrap(), number * 3 + 1);
                        waited += 1;
                        continue;
                    }
                    let finish = move |_: &mut Submitter<_, _>, done: Finished<u64>| {
                        assert_eq!(done.into_result().unwrap(), number * 3 + 1);
                        Ok(())
                    };
                    while submitter.task_then(number, finish).is_err() {
                        submitter.run_finished_for(PATIENCE);
                    }
                }
                let mut finished = 0;
                while submitter.tasks_in_flight() > 0 {
                    finished += submitter.run_finished_for(PATIENCE);
                }
                assert!(finished as u64 + waited <= TASKS);
            });
        }
    });
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.delivered), (SUBMITTERS * TASKS, SUBMITTERS * TASKS));
    assert_balanced(&tasks);
}

#[test]
fn recycling_after_200_tasks_runs_and_finishes_all_of_4000() {
    let states = Arc::new(AtomicUsize::new(0));
    let made = Arc::clone(&states);
    let pool = TaskPool::builder()
        .task_worker_num(2)
        .task_max_request(200)
        .task_worker(move |_| {
            made.fetch_add(1, Ordering::Relaxed);
            Ok(0u64)
        })
        .on_task(|cx, number: u64| {
            *cx.worker() += 1;
            assert!(*cx.worker() <= 300, "the limit, and half of it for grace");
            Ok(number)
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let mut finished = 0;
    for number in 0..4000 {
        submitter.task(number).unwrap();
        finished += submitter.run_finished();
    }
    while finished < 4000 {
        finished += submitter.run_finished_for(PATIENCE);
    }
    let tasks = pool.shutdown(PATIENCE).tasks;
    assert_eq!((tasks.done, tasks.delivered, tasks.abandoned), (4000, 4000, 0));
    // The last ones may have ended just as their limit came.
    assert!((13..=22).contains(&states.load(Ordering::Relaxed)), "{states:?}");
    assert!((11..=20).contains(&tasks.recycled), "{tasks:?}");
    assert_balanced(&tasks);
}

#[test]
fn tasks_outlive_their_connection() {
    let gate = Gate::default();
    let (sender, ran) = events();
    let slow = gate.clone();
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(move |cx, line: Vec<u8>| {
            slow.pass();
            sender.send((cx.connection_id(), line))?;
            Ok(())
        })
        .on_finish(|_, _| panic!("nobody is there"))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("one\ntwo\n");
    eventually("both are accepted", || server.handle.stats().tasks.accepted == 2);
    let id = server.handle.connections().list()[0].id;
    client.reset();
    eventually("the connection is gone", || server.handle.stats().connections == 0);
    gate.open();
    let mut lines: Vec<_> = [ran.next(), ran.next()].into_iter().map(|(from, line)| (from == id, line)).collect();
    lines.sort();
    assert_eq!(lines, [(true, b"one".to_vec()), (true, b"two".to_vec())]);
    assert_eq!(server.stop().tasks.orphaned, 2);
}

#[test]
fn a_finish_closure_may_submit_the_next_task_10_000_deep_without_growing_the_stack() {
    fn next(submitter: &mut Submitter<u32, u32>, done: Finished<u32>) -> anyhow::Result<()> {
        match done.into_result()? {
            0 => Ok(()),
            left => {
                submitter.task_then(left - 1, next)?;
                Ok(())
            }
        }
    }
    let pool = TaskPool::builder().task_worker_num(1).on_task(|_cx, left: u32| Ok(left)).build().unwrap();
    // A frame of 10,000 nested calls does not fit.
    let small = thread::Builder::new().stack_size(64 * 1024);
    thread::scope(|scope| {
        let deep = || {
            let mut submitter = pool.submitter();
            submitter.task_then(10_000, next).unwrap();
            while submitter.tasks_in_flight() > 0 {
                submitter.run_finished_for(PATIENCE);
            }
        };
        small.spawn_scoped(scope, deep).unwrap();
    });
    assert_eq!(pool.shutdown(PATIENCE).tasks.done, 10_001);
}

#[test]
fn so_many_finishes_and_a_return_are_one_more_call_of_on_finish() {
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task(3u32)?;
            Ok(())
        })
        .on_task(|cx, count| {
            for number in 0..count {
                cx.finish(number)?;
            }
            Ok(count)
        })
        .on_finish(|conn, done| {
            let is_last = done.is_last();
            Ok(conn.send(format!("{} {is_last}\n", done.into_result()?))?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("go\n");
    let lines: Vec<String> = (0..4).map(|_| client.line()).collect();
    assert_eq!(lines, ["0 false", "1 false", "2 false", "3 true"]);
    drop(client);
    server.stop();
}

#[test]
fn a_task_that_fails_or_panics_finishes_too_unlike_swooles() {
    let pool = TaskPool::builder()
        .on_task(|_cx, panics: bool| match panics {
            true => std::panic::resume_unwind(Box::new("thrown")),
            false => Err::<(), _>(anyhow::anyhow!("returned")),
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let mut outcomes = HashMap::new();
    for panics in [true, false] {
        outcomes.insert(panics, submitter.task_wait(panics, PATIENCE).unwrap_err().to_string());
    }
    assert_eq!(outcomes[&true], "the task panicked: thrown");
    assert_eq!(outcomes[&false], "the task failed");
    let finish = |_: &mut Submitter<_, _>, done: Finished<()>| {
        assert!(matches!(done.outcome(), Outcome::Failed(error) if error.to_string() == "returned"));
        Ok(())
    };
    submitter.task_then(false, finish).unwrap();
    while submitter.tasks_in_flight() > 0 {
        submitter.run_finished_for(PATIENCE);
    }
}
