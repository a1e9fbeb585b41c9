//! What a connection's tasks can be told beside the first server's: order, waiting, deadlines, cancelling, progress.

#![allow(clippy::unit_arg, reason = "one-line callbacks")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use backroom::{
    CloseReason, ConnectionInfo, Framing, Later, NotFinished, Observer, Outcome, Priority, Retry, Server, TaskEnded,
    TaskError, TaskId, TaskOptions, WaitError,
};
use common::house::SHORT;
use common::{Gate, PATIENCE, events, eventually, log_from, run, succeeds};
use crossbeam_channel::Sender;
use parking_lot::Mutex;

#[test]
fn pipelined_requests_are_answered_in_order_whatever_the_order_of_completion() {
    let server = Server::builder()
        .task_worker_num(4)
        .framing(Framing::lines())
        .results_in_order(true)
        .on_receive(|conn, line| {
            conn.task(std::str::from_utf8(line)?.parse::<u64>()?)?;
            Ok(())
        })
        .on_task(|_, number| {
            thread::sleep(Duration::from_micros(number * 7919 % 500));
            Ok(number)
        })
        .on_finish(|conn, done| Ok(conn.send(format!("{}\n", done.into_result()?))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send((0..1000).map(|number| format!("{number}\n")).collect::<String>());
    for number in 0..1000 {
        assert_eq!(client.line(), number.to_string());
    }
    drop(client);
    server.stop();
}

#[test]
fn what_was_sent_is_flushed_before_a_wait_and_what_comes_meanwhile_is_delivered_after() {
    let gate = Gate::default();
    let slow = gate.clone();
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task("aside")?;
            conn.send("before\n")?;
            let waited = conn.task_wait("waited", PATIENCE)?;
            conn.send(format!("{waited}\n"))?;
            let also = conn.with(TaskOptions::new().priority(Priority::High)).task_wait("also", PATIENCE)?;
            Ok(conn.send(format!("{also}\n"))?)
        })
        .on_task(move |_, what| {
            if what == "waited" {
                slow.pass();
            }
            Ok(what)
        })
        .on_finish(|conn, done| {
            let again = conn.task_wait("again", PATIENCE)?;
            Ok(conn.send(format!("{} {again}\n", done.into_result()?))?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("go\n");
    // It comes while the worker waits.
    assert_eq!(client.line(), "before");
    gate.open();
    assert_eq!([client.line(), client.line(), client.line()], ["waited", "also", "aside again"]);
    drop(client);
    server.stop();
}

#[test]
fn what_was_sent_before_a_wait_for_several_tasks_is_written_before_it() {
    let gate = Gate::default();
    let slow = gate.clone();
    let server = Server::builder()
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.send("before\n")?;
            let results = conn.task_wait_multi(vec![1, 2, 3], PATIENCE);
            let numbers: Vec<u32> = results.into_iter().collect::<Result<_, _>>()?;
            Ok(conn.send(format!("{numbers:?}\n"))?)
        })
        .on_task(move |_, number| {
            slow.pass();
            Ok(number)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("go\n");
    assert_eq!(client.line(), "before");
    gate.open();
    assert_eq!(client.line(), "[1, 2, 3]");
    drop(client);
    server.stop();
}

#[test]
fn a_connection_hears_each_result_of_a_task_and_none_of_a_one_way_task() {
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_task(|cx, pages: u32| {
            (1..pages).try_for_each(|page| Ok::<_, anyhow::Error>(drop(cx.finish(page))))?;
            Ok(pages)
        })
        .on_receive(|conn, _| {
            conn.task_oneway(7)?;
            let mut heard = Vec::new();
            conn.task_each(3, move |conn, done| {
                let is_last = done.is_last();
                heard.push(done.into_result()?);
                Ok(if is_last {
                    conn.send(format!("{heard:?}\n"))?
                })
            })?;
            Ok(())
        })
        .on_finish(|conn, _| Ok(conn.send("nobody should hear this\n")?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("go\n");
    // Half closed, the connection stays until it has heard of its tasks.
    client.end_sending();
    assert_eq!(client.rest(), "[1, 2, 3]\n");
    let tasks = server.stop().tasks;
    assert_eq!((tasks.one_way, tasks.delivered, tasks.orphaned), (1, 1, 0));
}

#[test]
fn a_shutdowns_deadline_ends_a_wait() {
    let (sender, ended) = events();
    let gate = Gate::default();
    let endless = gate.clone();
    let server = Server::builder()
        .on_receive(move |conn, _| {
            sender.send(None)?;
            let result = conn.task_wait((), Duration::MAX);
            Ok(sender.send(Some(matches!(result, Err(WaitError::Abandoned))))?)
        })
        .on_task(move |_, ()| {
            endless.pass();
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("go");
    assert_eq!(ended.next(), None);
    eventually("the task runs", || server.handle.stats().tasks.running == 1);
    let start = Instant::now();
    let report = server.stop_within(Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!((ended.next(), report.tasks.abandoned), (Some(true), 1));
    gate.open();
}

#[test]
fn a_connection_hears_of_a_deadline_when_it_comes() {
    let gate = Gate::default();
    let endless = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            let soon = TaskOptions::new().deadline(Duration::from_millis(300));
            conn.with(soon).task(line.to_vec())?;
            Ok(())
        })
        .on_task(move |_, line| {
            endless.pass();
            Ok(line)
        })
        .on_finish(|conn, done| Ok(conn.send(format!("{:?} {:?}\n", done.outcome().kind(), done.worker_index()))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    let start = Instant::now();
    client.send("running\nqueued\n");
    let mut lines = [client.line(), client.line()];
    assert!(start.elapsed() >= Duration::from_millis(300));
    lines.sort();
    assert_eq!(lines, ["TimedOut None", "TimedOut Some(0)"]);
    gate.open();
    drop(client);
    let tasks = server.stop().tasks;
    assert_eq!((tasks.timed_out, tasks.late), (2, 1));
}

#[test]
fn a_connection_that_sleeps_hears_of_the_deadlines_of_tasks_that_its_tasks_submitted() {
    let gate = Gate::default();
    let blocking = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(move |cx, line| {
            let soon = TaskOptions::new().deadline(Duration::from_millis(200));
            cx.task_with(&soon, line)?;
            Ok(blocking.pass())
        })
        .on_finish(|conn, done| Ok(conn.send(format!("{:?}\n", done.outcome().kind()))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    // The only task worker is busy until the gate opens.
    assert_eq!(client.ask("go"), "TimedOut");
    gate.open();
    assert_eq!(client.line(), "Done");
    drop(client);
    server.stop();
}

#[test]
fn a_connection_that_closes_cancels_its_tasks_if_so_configured() {
    for cancel in [true, false] {
        let (sender, ran) = events();
        let (told, was_told) = events();
        let gate = Gate::default();
        let slow = gate.clone();
        let server = Server::builder()
            .task_worker_num(1)
            .framing(Framing::lines())
            .cancel_on_close(cancel)
            .on_receive(|conn, line| {
                conn.task(line.to_vec())?;
                Ok(())
            })
            .on_task(move |cx, _| {
                sender.send(())?;
                slow.pass();
                Ok(told.send(cx.cancelled())?)
            })
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        let mut client = server.client();
        client.send("running\nqueued\n");
        ran.next();
        eventually("both are accepted", || server.handle.stats().tasks.accepted == 2);
        client.reset();
        eventually("it is gone", || server.handle.stats().connections == 0);
        let tasks = server.handle.stats().tasks;
        let cancelled = if cancel { 2 } else { 0 };
        assert_eq!((tasks.cancelled, tasks.orphaned), (cancelled, cancelled));
        gate.open();
        let tasks = server.stop().tasks;
        assert_eq!((tasks.done, tasks.orphaned, tasks.late), (2 - cancelled, 2, cancelled / 2));
        assert_eq!(ran.all_so_far().len(), if cancel { 0 } else { 1 });
        assert_eq!(was_told.all_so_far(), if cancel { vec![true] } else { vec![false; 2] });
    }
}

#[test]
fn a_connection_that_closes_cancels_its_tasks_wherever_they_are_but_for_one_way_ones() {
    const LONG: Duration = Duration::from_secs(86_400);
    let gate = Gate::default();
    let slow = gate.clone();
    let taken = Arc::new(Mutex::new(Vec::new()));
    let takes = Arc::clone(&taken);
    let server = Server::builder()
        .task_worker_num(2)
        .framing(Framing::lines())
        .cancel_on_close(true)
        .on_task(move |cx, what: &'static str| match what {
            "retried" => bail!("again"),
            "taken" => cx.finish_later(|reply| takes.lock().push(reply)),
            "submits" => {
                // One for the other task worker, and two that wait.
                cx.task("runs")?;
                cx.task("waits")?;
                cx.task_oneway("nobody's")?;
                Ok(slow.pass())
            }
            "runs" => Ok(slow.pass()),
            _ => Ok(()),
        })
        .on_receive(|conn, _line| {
            conn.with(TaskOptions::new().after(LONG)).task("delayed")?;
            conn.with(TaskOptions::new().retry(Retry::attempts(2).backoff(LONG, LONG))).task("retried")?;
            conn.task("taken")?;
            conn.task("submits")?;
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("all of it\n");
    let tasks = || server.handle.stats().tasks;
    eventually("all are where they should be", || {
        let tasks = tasks();
        (tasks.delayed, tasks.to_be_finished_later, tasks.running, tasks.queued) == (2, 1, 2, 2)
    });
    client.reset();
    eventually("it is gone", || server.handle.stats().connections == 0);
    assert_eq!((tasks().cancelled, tasks().running, tasks().delayed), (5, 0, 0));
    gate.open();
    taken.lock().drain(..).for_each(|reply: Later<()>| reply.finish(()));
    let tasks = server.stop().tasks;
    assert_eq!((tasks.cancelled, tasks.done, tasks.one_way, tasks.late), (6, 1, 1, 3));
}

#[test]
fn a_task_can_be_cancelled_by_its_id_in_another_callback() {
    let gate = Gate::default();
    let slow = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .session(|_| None::<TaskId>)
        .on_receive(|conn, line| match line {
            b"cancel" => {
                let id = conn.session().unwrap();
                let cancelled = conn.cancel(id);
                Ok(conn.send(format!("{cancelled}\n"))?)
            }
            line => {
                let id = conn.task(line.to_vec())?;
                *conn.session_mut() = Some(id);
                Ok(())
            }
        })
        .on_task(move |_, _| {
            slow.pass();
            Ok(())
        })
        .on_finish(|conn, done| Ok(conn.send(format!("{:?}\n", done.outcome().kind()))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("task\ncancel\n");
    assert_eq!([client.line(), client.line()], ["true", "Cancelled"]);
    assert_eq!(client.ask("cancel"), "false");
    gate.open();
    drop(client);
    server.stop();
}

#[test]
fn a_connection_is_told_of_progress_and_can_read_it() {
    let (step, steps) = crossbeam_channel::bounded::<()>(0);
    let server = Server::builder()
        .framing(Framing::lines())
        .session(|_| None::<TaskId>)
        .on_receive(|conn, line| match line {
            b"how far" => {
                let progress = conn.session().and_then(|id| conn.progress(id));
                let shown = progress.map_or("?".to_owned(), |progress| format!("{}/{}", progress.done, progress.total));
                Ok(conn.send(format!("{shown}\n"))?)
            }
            _ => {
                *conn.session_mut() = Some(conn.task(())?);
                Ok(())
            }
        })
        .on_task(move |cx, ()| {
            for done in 1..=3 {
                cx.progress(done, 3);
                steps.recv()?;
            }
            Ok(())
        })
        .on_progress(|conn, _, progress| Ok(conn.send(format!("told {}/{}\n", progress.done, progress.total))?))
        .on_finish(|conn, _| Ok(conn.send("done\n")?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("how far"), "?");
    client.send("go\n");
    for done in 1..=3 {
        assert_eq!(client.line(), format!("told {done}/3"));
        assert_eq!(client.ask("how far"), format!("{done}/3"));
        step.send(()).unwrap();
    }
    assert_eq!(client.line(), "done");
    drop(client);
    server.stop();
}

#[test]
fn outcomes_of_further_tasks_come_to_the_connection_that_began_even_after_its_client_has_ended_sending() {
    let server = Server::builder()
        .on_receive(|conn, data| {
            conn.task(data.len())?;
            Ok(())
        })
        .on_task(|cx, depth| {
            let connection = cx.connection_id();
            if depth > 0 {
                cx.task(depth - 1).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
            Ok((connection, depth))
        })
        .on_finish(|conn, done| {
            let (connection, depth) = done.into_result()?;
            assert_eq!(connection, conn.id(), "wherever it was submitted");
            Ok(conn.send(format!("{depth}\n"))?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("12345");
    client.end_sending();
    let mut depths: Vec<String> = client.rest().lines().map(str::to_owned).collect();
    depths.sort();
    assert_eq!(depths, ["0", "1", "2", "3", "4", "5"]);
    server.stop();
}

#[test]
fn a_closure_runs_as_a_task_of_a_connection() {
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            let (number, worker) = (std::str::from_utf8(line)?.parse::<u32>()?, thread::current().id());
            let work = move || {
                assert_ne!(thread::current().id(), worker);
                assert_ne!(number, 13, "an unlucky number");
                vec![number; 2]
            };
            conn.run(work, move |conn, result| {
                assert_eq!(thread::current().id(), worker);
                Ok(match result {
                    Ok(numbers) => conn.send(format!("{numbers:?}\n"))?,
                    Err(failure) => conn.send(format!("{}\n", failure.to_string().lines().next().unwrap()))?,
                })
            })?;
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("7"), "[7, 7]");
    assert!(client.ask("13").starts_with("the task panicked: "));
    drop(client);
    assert_eq!(server.stop().tasks.panicked, 1);
}

#[test]
fn delayed_tasks_neither_stop_the_reading_nor_outlast_a_shutdown() {
    let server = Server::builder()
        .framing(Framing::lines())
        .max_tasks_in_flight(2)
        .on_receive(|conn, line| match line {
            b"ping" => Ok(conn.send("pong\n")?),
            _ => {
                for _ in 0..6 {
                    conn.with(TaskOptions::new().after(Duration::from_secs(3600))).task(())?;
                }
                Ok(())
            }
        })
        .on_task(|_, ()| Ok(()))
        .on_finish(|conn, done| Ok(conn.send(format!("{:?}\n", done.outcome().kind()))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("go\n");
    assert_eq!(client.ask("ping"), "pong");
    assert_eq!(server.handle.stats().tasks.delayed, 6);
    server.handle.shutdown(PATIENCE);
    assert_eq!(client.rest(), "Cancelled\n".repeat(6));
    assert_eq!(server.stop().tasks.cancelled, 6);
}

#[test]
fn a_repetition_ends_with_its_connection() {
    let closure = Arc::new(());
    let held = Arc::clone(&closure);
    let server = Server::builder()
        .on_receive(move |conn, _| {
            let held = Arc::clone(&held);
            conn.task_every(Duration::from_millis(1), move || drop(Arc::clone(&held)))?;
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .on_finish(|conn, done| {
            assert_ne!(done.id().submitter(), conn.id().number());
            Ok(conn.send("tick\n")?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("go");
    assert_eq!([client.line(), client.line(), client.line()], ["tick"; 3]);
    client.end_sending();
    client.rest();
    eventually("the connection is gone", || server.handle.stats().connections == 0);
    // The builder's callback has one, and nobody else.
    eventually("the repetition is gone", || Arc::strong_count(&closure) == 2);
    server.stop();
}

#[test]
fn the_parts_of_a_connection_can_submit_with_options() {
    let server = Server::builder()
        .framing(Framing::lines())
        .session(|_| vec!["greeting"])
        .on_receive(|conn, _| {
            let (session, link) = conn.parts();
            for word in session.iter() {
                link.with(TaskOptions::new().worker(1)).task_then(*word, |conn, done| {
                    let worker = done.worker_index();
                    Ok(conn.send(format!("{} {worker:?}\n", done.into_result()?))?)
                })?;
                assert_eq!(link.with(TaskOptions::new().worker(9)).task(word), Err(TaskError::NoSuchWorker));
            }
            Ok(())
        })
        .on_task(|_, word: &'static str| Ok(word))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("go"), "greeting Some(1)");
    drop(client);
    server.stop();
}

#[test]
fn task_workers_are_recycled_by_the_handle_and_their_times_are_kept() {
    let stopped = Arc::new(AtomicUsize::new(0));
    let stopping = Arc::clone(&stopped);
    let server = Server::builder()
        .task_worker_num(2)
        .task_times(true)
        .framing(Framing::lines())
        .task_worker(Ok)
        .task_worker_stop(move |_, _| {
            stopping.fetch_add(1, Ordering::Relaxed);
        })
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(|cx, ()| Ok(*cx.worker() == cx.worker_index()))
        .on_finish(|conn, done| Ok(conn.send(format!("{}\n", done.into_result()?))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("a"), "true");
    server.handle.recycle();
    eventually("both are recycled", || server.handle.stats().tasks.recycled == 2);
    assert_eq!(client.ask("b"), "true");
    eventually("both tasks are recorded", || server.handle.task_times().unwrap().run.count() == 2);
    drop(client);
    server.stop();
    assert_eq!(stopped.load(Ordering::Relaxed), 4);
}

struct Watcher(Sender<String>);

impl Observer for Watcher {
    fn task_accepted(&self, id: TaskId) {
        self.0.send(format!("accepted {}", id.sequence())).unwrap();
    }

    fn task_started(&self, id: TaskId, worker_index: usize) {
        self.0.send(format!("started {} on {worker_index}", id.sequence())).unwrap();
    }

    fn task_ended(&self, ended: &TaskEnded<'_>) {
        self.0.send(format!("ended {}: {:?}", ended.id.sequence(), ended.how)).unwrap();
    }

    fn task_worker_started(&self, worker_index: usize) {
        self.0.send(format!("task worker {worker_index} started")).unwrap();
    }

    fn task_worker_stopped(&self, worker_index: usize) {
        self.0.send(format!("task worker {worker_index} stopped")).unwrap();
    }

    fn task_worker_panicked(&self, worker_index: usize, message: &str) {
        self.0.send(format!("task worker {worker_index} panicked: {message}")).unwrap();
    }

    fn connection_opened(&self, connection: &ConnectionInfo) {
        assert!(connection.peer_addr.ip().is_some_and(|ip| ip.is_loopback()));
        self.0.send("opened".to_owned()).unwrap();
    }

    fn connection_closed(&self, _: &ConnectionInfo, reason: &CloseReason) {
        self.0.send(format!("closed: {reason}")).unwrap();
    }
}

#[test]
fn an_observer_is_told_all_that_happens() {
    let (sender, told) = events();
    let server = Server::builder()
        .task_worker_num(1)
        .observer(Arc::new(Watcher(sender)))
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(|_, line: Vec<u8>| match &line[..] {
            b"panic" => std::panic::resume_unwind(Box::new("at once")),
            b"fail" => bail!("no"),
            _ => Ok(()),
        })
        .on_finish(|conn, _| Ok(conn.send("ended\n")?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    for line in ["work", "fail", "panic"] {
        client.ask(line);
    }
    drop(client);
    eventually("the connection is gone", || server.handle.stats().connections == 0);
    server.stop();
    let mut told = told.all_so_far();
    assert_eq!((told.remove(0), told.remove(0)), ("task worker 0 started".to_owned(), "opened".to_owned()));
    let rest = told.split_off(9);
    let sequence = |number, how| {
        [format!("accepted {number}"), format!("started {number} on 0"), format!("ended {number}: {how}")]
    };
    assert_eq!(told, [sequence(1, "Done"), sequence(2, "Failed"), sequence(3, "Panicked")].concat());
    for expected in ["task worker 0 panicked: at once", "closed: closed by the client"] {
        assert_eq!(rest.iter().filter(|told| *told == expected).count(), 1, "{rest:?}");
    }
    assert_eq!(rest.last().unwrap(), "task worker 0 stopped");
}

#[test]
fn an_observer_that_panics_harms_nobody() {
    struct Clumsy;
    impl Observer for Clumsy {
        fn task_started(&self, _: TaskId, _: usize) {
            std::panic::resume_unwind(Box::new("oops"));
        }

        fn task_ended(&self, _: &TaskEnded<'_>) {
            std::panic::resume_unwind(Box::new("oops"));
        }

        fn connection_opened(&self, _: &ConnectionInfo) {
            std::panic::resume_unwind(Box::new("oops"));
        }
    }
    let server = Server::builder()
        .observer(Arc::new(Clumsy))
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .on_finish(|conn, done| {
            assert!(matches!(done.outcome(), Outcome::Done(())));
            Ok(conn.send("done\n")?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!([client.ask("a"), client.ask("b")], ["done", "done"]);
    drop(client);
    assert_eq!(server.stop().tasks.done, 2);
}

#[test]
fn results_for_a_client_that_does_not_read_are_refused_and_those_that_were_taken_arrive() {
    const RESULTS: usize = 20_000;
    const MAX_RESULTS: usize = 8;
    const SIZE: usize = 16 * 1024;
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    let (sender, ended) = events();
    let delivered = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&delivered);
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .max_results(MAX_RESULTS)
        .on_receive(|conn, line| {
            conn.task(line == b"many")?;
            Ok(())
        })
        .on_task(move |cx, many| {
            if many {
                let mut taken = Vec::new();
                for number in 0..RESULTS {
                    match cx.finish(format!("{number:<SIZE$}")) {
                        Ok(()) => taken.push(number),
                        Err(error) => {
                            assert_eq!(error.reason(), NotFinished::TooMany);
                            assert!(error.into_result().starts_with(&number.to_string()), "it is handed back");
                        }
                    }
                }
                sender.send(taken)?;
            }
            Ok("last".to_owned())
        })
        .on_finish(move |conn, done| {
            counting.fetch_add(usize::from(!done.is_last()), Ordering::Relaxed);
            Ok(conn.send(format!("{}\n", done.into_result()?))?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    let mut other = server.client();
    assert_eq!(other.ask("one"), "last");
    // Once it has read, there is room again.
    for round in 1..=2 {
        let (before, delivered_before) = (common::resident_bytes(), delivered.load(Ordering::Relaxed));
        client.send("many\n");
        // The task has gone on to its end, though nobody reads.
        let taken = ended.next();
        let grown = common::resident_bytes().saturating_sub(before);
        assert_eq!(other.ask("one"), "last", "and its task worker serves others");
        // All together were 320 MiB. What is taken fills the outbox, and what the kernel holds.
        assert!(grown < 8 << 20, "{grown} bytes in round {round}");
        assert!(taken.len() >= 2 * MAX_RESULTS && taken.len() < RESULTS / 4, "{} were taken", taken.len());
        let waiting = taken.len() - (delivered.load(Ordering::Relaxed) - delivered_before);
        assert!(waiting <= MAX_RESULTS, "{waiting} wait to be delivered");

        for number in taken {
            assert_eq!(client.line().trim_end(), number.to_string());
        }
        assert_eq!(client.line(), "last");
    }
    drop((client, other));
    let tasks = server.stop().tasks;
    assert_eq!((tasks.done, tasks.finish_errors, tasks.delivered), (5, 0, 5));
}

#[test]
fn pipelined_requests_that_are_cancelled_or_time_out_are_answered_at_their_place() {
    let gate = Gate::default();
    let slow = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .results_in_order(true)
        .session(|_| None::<TaskId>)
        .on_receive(|conn, line| {
            if line == b"cancel" {
                let id = conn.session().unwrap();
                let cancelled = conn.cancel(id);
                return Ok(conn.send(format!("{cancelled}\n"))?);
            }
            let options = match line {
                b"urgent" => TaskOptions::new().deadline(Duration::from_millis(200)),
                _ => TaskOptions::new(),
            };
            let name = String::from_utf8(line.to_vec())?;
            let finish_name = name.clone();
            let id = conn.with(options).task_then(name, move |conn, done| {
                Ok(conn.send(format!("{finish_name} {:?}\n", done.outcome().kind()))?)
            })?;
            if line == b"unwanted" {
                *conn.session_mut() = Some(id);
            }
            Ok(())
        })
        .on_task(move |_, name: String| {
            Ok(if name == "first" {
                slow.pass()
            })
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("first\nunwanted\nsecond\nurgent\nlast\n");
    assert_eq!(client.ask("cancel"), "true");
    eventually("one has timed out", || server.handle.stats().tasks.timed_out == 1);
    let tasks = server.handle.stats().tasks;
    assert_eq!((tasks.cancelled, tasks.delivered), (1, 0), "the first holds all others back");
    gate.open();
    for answer in ["first Done", "unwanted Cancelled", "second Done", "urgent TimedOut", "last Done"] {
        assert_eq!(client.line(), answer);
    }
    drop(client);
    assert_eq!(server.stop().tasks.delivered, 5);
}

/// A deadline before which a task starts, on a busy machine too.
const LATE: Duration = Duration::from_secs(1);

/// Tasks that fail in each way, asked for by a line; of none does a closure hear.
fn failing(observer: Arc<impl Observer + 'static>) -> Server {
    Server::builder()
        .task_worker_num(1)
        .observer(observer)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            let line = String::from_utf8_lossy(line).into_owned();
            let options = TaskOptions::new();
            match &*line {
                "one-way" => conn.task_oneway(line)?,
                "late" => conn.with(options.deadline(LATE)).task_oneway(line)?,
                "late, heard" => conn.with(options.deadline(LATE)).task(line)?,
                "twice" => {
                    let pause = Duration::from_millis(1);
                    conn.with(options.retry(Retry::attempts(2).backoff(pause, pause))).task(line)?
                }
                "orphan" => {
                    conn.close();
                    conn.task(line)?
                }
                _ => conn.task(line)?,
            };
            Ok(())
        })
        .on_task(|cx, line: String| -> anyhow::Result<()> {
            if line.starts_with("late") {
                thread::sleep(LATE + SHORT);
            }
            if line == "postponed" {
                let why = format!("{line}: no\x1b luck");
                return cx.finish_later(|reply| reply.fail(anyhow::anyhow!(why)));
            }
            bail!("{line}: no\x1b luck")
        })
        .bind("127.0.0.1:0")
        .unwrap()
}

#[test]
fn a_failure_that_no_closure_hears_is_a_warning_that_names_task_connection_and_address() {
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    let log = log_from(log::LevelFilter::Debug);
    struct Silent;
    impl Observer for Silent {}
    for (line, how) in [
        ("plain", "failed: plain: no\\u{1b} luck"),
        ("one-way", "failed: one-way: no\\u{1b} luck"),
        ("orphan", "failed: orphan: no\\u{1b} luck"),
        ("twice", "failed: twice: no\\u{1b} luck"),
        ("postponed", "failed: postponed: no\\u{1b} luck"),
        ("late", "did not end by its deadline"),
        ("late, heard", "did not end by its deadline"),
    ] {
        // Each with a log of its own, since one line a second is all there is.
        let server = run(failing(Arc::new(Silent)));
        let mut client = server.client();
        let address = client.socket.get_ref().local_addr().unwrap();
        client.send(format!("{line}\n"));
        let id = || server.handle.stats().tasks.outcomes();
        eventually("it has ended", || id() == 1);
        let is_it = |logged: &String| {
            logged.starts_with("WARN task ")
                && logged.contains(&format!(" from {address} {how}; nobody hears of it (0 more"))
        };
        eventually("there is a line", || log.lock().iter().any(is_it));
        let attempts = if line == "twice" { 2 } else { usize::from(!line.starts_with("late")) };
        let is_attempt = |logged: &&String| logged.starts_with("DEBUG task ") && logged.contains(&address.to_string());
        let attempted = log
            .lock()
            .iter()
            .filter(is_attempt)
            .filter(|line| line.contains("attempt") || line.contains("failed later"))
            .count();
        assert!(attempted >= attempts, "{attempted} of {line}");
        drop(client);
        server.stop();
    }
}

#[test]
fn an_observer_is_told_why_a_task_failed_for_whom_and_in_which_attempt() {
    struct Teller(Sender<String>);
    impl Observer for Teller {
        fn attempt_failed(&self, ended: &TaskEnded<'_>, attempt: u32) {
            let of = ended.of.map(ToString::to_string);
            let ran = ended.time_run > Duration::ZERO;
            let line = format!("attempt {attempt} {:?} {of:?} {:?} {ran}", ended.error, ended.worker_index);
            self.0.send(line).unwrap();
        }

        fn task_ended(&self, ended: &TaskEnded<'_>) {
            let of = ended.of.map(ToString::to_string);
            let ran = ended.time_run > Duration::ZERO;
            self.0.send(format!("{:?} {:?} {of:?} {:?} {ran}", ended.how, ended.error, ended.worker_index)).unwrap();
            assert_eq!(ended.submitter, ended.id.submitter());
        }
    }
    let (tell, told) = events();
    let server = run(failing(Arc::new(Teller(tell))));
    let mut client = server.client();
    let address = client.socket.get_ref().local_addr().unwrap();
    eventually("it is known", || {
        server.handle.stats().connections == 1 && !server.handle.connections().list().is_empty()
    });
    let id = server.handle.connections().list()[0].id;
    let of = format!("Some(\"connection {id} from {address}\")");
    client.send("twice\nlate\n");
    let error = "Some(\"twice: no\\u{1b} luck\")";
    let mut heard = [told.next(), told.next(), told.next()];
    heard.sort_unstable();
    let failed = format!("Failed {error} {of} Some(0) true");
    let late = format!("TimedOut None {of} Some(0) true");
    let mut expected = [failed, late, format!("attempt 1 {error} {of} Some(0) true")];
    expected.sort_unstable();
    assert_eq!(heard, expected);
    drop(client);
    server.stop();
}
