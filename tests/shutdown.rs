//! Shutdown loses nothing it accepted, ends by its deadline, and says what it left.

mod common;

use std::io::{BufRead, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backroom::{CloseReason, Framing, JoinError, Limits, Outcome, Server, SocketOptions, TaskError};
use common::{Client, Gate, PATIENCE, assert_balanced, events, eventually, run};

fn echo(task: impl Fn(&[u8]) + Send + Sync + 'static) -> Server {
    Server::builder()
        .task_worker_num(2)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(move |_, mut line| {
            task(&line);
            line.push(b'\n');
            Ok(line)
        })
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .bind("127.0.0.1:0")
        .unwrap()
}

#[test]
fn shutdown_under_load_two_hundred_times_loses_nothing_it_accepted() {
    const CLIENTS: usize = 4;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..200 {
        let server = run(echo(|_| ()));
        let answered = Arc::new(AtomicU64::new(0));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (client, answered) = (server.client(), Arc::clone(&answered));
                thread::spawn(move || talk_until_closed(client, &answered))
            })
            .collect();
        // A moment that differs each time, counted in answers and not in time.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let moment = random % 300;
        eventually("answers come", || answered.load(Ordering::Relaxed) >= moment);

        let report = server.stop();
        let received: u64 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert_eq!(report.tasks.orphaned, 0);
        assert_eq!(report.tasks.accepted, received, "every accepted task was answered, and the client got it");
    }
}

#[test]
fn resets_and_deadlines_at_any_moment_leave_no_task_without_one_outcome() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..200 {
        // Too slow for all to be done by the deadline.
        let server = run(echo(|_| thread::sleep(Duration::from_micros(50))));
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let (before_reset, deadline) = (random % 40, Duration::from_micros(random / 40 % 3000));
        let received = thread::scope(|scope| {
            // Before the shutdown, after which nobody can connect.
            let mut client = server.client();
            let stays = scope.spawn(move || {
                // Refused, where it was not accepted before the shutdown.
                let _ = client.socket.get_mut().write_all("x\n".repeat(200).as_bytes());
                client.rest().matches('\n').count() as u64
            });
            let resets = scope.spawn(|| {
                let mut client = server.client();
                client.send("x\n".repeat(40));
                for _ in 0..before_reset {
                    client.line();
                }
                client.reset();
                before_reset
            });
            let reset = resets.join().unwrap();
            server.handle.shutdown(deadline);
            reset + stays.join().unwrap()
        });
        let tasks = server.ended().tasks; // which balance
        assert!(received <= tasks.delivered, "{received} answers, {tasks:?}");
    }
}

/// Sends without end and reads until the server closes; returns how many answers came.
fn talk_until_closed(client: Client, answered: &AtomicU64) -> u64 {
    let mut writer = client.socket.get_ref().try_clone().unwrap();
    let writing = thread::spawn(move || {
        let mut line = 0u64;
        while writer.write_all(format!("{line}\n").as_bytes()).is_ok() {
            line += 1;
        }
    });
    let (mut reader, mut line, mut lines) = (client.socket, String::new(), 0);
    while matches!(reader.read_line(&mut line), Ok(1..)) {
        assert!(line.ends_with('\n'), "half an answer: {line:?}");
        line.clear();
        lines += 1;
        answered.fetch_add(1, Ordering::Relaxed);
    }
    let _ = reader.get_ref().shutdown(std::net::Shutdown::Both);
    writing.join().unwrap();
    lines
}

#[test]
fn a_draining_server_finishes_delivers_and_refuses_what_is_new() {
    let (gate, started) = (Gate::default(), Gate::default());
    let (task_gate, task_started) = (gate.clone(), started.clone());
    let (report, refused) = events();
    let (close_report, closed) = events();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(move |_, mut line| {
            task_started.open();
            task_gate.pass();
            line.push(b'\n');
            Ok(line)
        })
        .on_finish(move |conn, done| {
            conn.send(done.into_result()?)?;
            Ok(report.send(conn.task(Vec::new()))?)
        })
        .on_close(move |_, reason| Ok(close_report.send(matches!(reason, CloseReason::Shutdown))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("a\nb\n");
    started.pass();
    eventually("both are accepted", || server.handle.stats().tasks.accepted == 2);
    server.handle.shutdown(PATIENCE);
    eventually("the port is closed", || TcpStream::connect(server.addr()).is_err());
    gate.open();
    assert_eq!(client.rest(), "a\nb\n");
    assert_eq!((refused.next(), refused.next()), (Err(TaskError::ShuttingDown), Err(TaskError::ShuttingDown)));
    // The look at the port may have been a client too, that has closed.
    while !closed.next() {}
    assert_eq!(server.stop().tasks.delivered, 2);
}

#[test]
fn a_client_that_is_gone_before_the_shutdown_does_not_take_its_tasks_with_it() {
    let gate = Gate::default();
    let task_gate = gate.clone();
    let server = run(echo(move |_| task_gate.pass()));
    let mut client = server.client();
    client.send("a\nb\nc\n");
    eventually("all are accepted", || server.handle.stats().tasks.accepted == 3);
    client.reset();
    eventually("the connection is closed", || server.handle.stats().connections == 0);
    server.handle.shutdown(PATIENCE);
    gate.open();
    let tasks = server.stop().tasks;
    assert_eq!((tasks.done, tasks.orphaned), (3, 3));
}

#[test]
fn an_endless_task_is_abandoned_at_the_deadline_and_its_client_is_told() {
    let (gate, started) = (Gate::default(), Gate::default());
    let (task_gate, task_started) = (gate.clone(), started.clone());
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(move |_, ()| {
            task_started.open();
            task_gate.pass();
            Ok(())
        })
        .on_finish(|conn, done| {
            let abandoned = matches!(done.outcome(), Outcome::Abandoned);
            conn.send(format!("abandoned: {abandoned}, worker: {:?}\n", done.worker_index()))?;
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let handle = server.handle.clone();
    let mut client = server.client();
    client.send("endless\nnever started\n");
    started.pass();
    eventually("both are accepted", || handle.stats().tasks.accepted == 2);

    let deadline = Duration::from_millis(200);
    let start = Instant::now();
    let report = server.stop_within(deadline);
    let took = start.elapsed();
    assert!(took >= deadline && took < deadline + Duration::from_secs(1), "it took {took:?}");
    assert_eq!((report.tasks.abandoned, report.task_workers_running, report.workers_running), (2, 1, 0));
    let mut answers: Vec<String> = client.rest().lines().map(str::to_owned).collect();
    answers.sort();
    assert_eq!(answers, ["abandoned: true, worker: None", "abandoned: true, worker: Some(0)"]);

    // What it returns at last is late, and nothing else.
    gate.open();
    eventually("the task returns", || handle.stats().tasks.late == 1);
    let tasks = handle.stats().tasks;
    assert_balanced(&tasks);
    assert_eq!((tasks.done, tasks.abandoned), (0, 2));
}

#[test]
fn a_callback_that_does_not_return_is_left_behind_at_the_deadline() {
    let (gate, reached) = (Gate::default(), Gate::default());
    let (hold, reach) = (gate.clone(), reached.clone());
    let server = Server::builder()
        .on_receive(move |_, _| {
            reach.open();
            hold.pass();
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x");
    reached.pass();
    let report = server.stop_within(Duration::from_millis(50));
    assert_eq!((report.workers_running, report.task_workers_running), (1, 0));
    gate.open();
}

#[test]
fn a_second_shutdown_brings_the_deadline_forward_and_never_back() {
    let gate = Gate::default();
    let task_gate = gate.clone();
    let server = run(echo(move |_| task_gate.pass()));
    let mut client = server.client();
    client.send("x\n");
    eventually("it runs", || server.handle.stats().tasks.running == 1);
    server.handle.shutdown(Duration::MAX);
    server.handle.shutdown(Duration::ZERO);
    server.handle.shutdown(PATIENCE);
    let report = server.ended();
    assert_eq!(report.tasks.abandoned, 1);
    gate.open();
}

#[test]
fn a_callback_may_begin_the_shutdown_but_not_wait_for_it() {
    for place in ["start", "connect", "receive", "task", "finish", "close"] {
        let (report, waited) = events();
        let stop = move |here: &str, handle: &backroom::ServerHandle| {
            if here == place {
                handle.shutdown(PATIENCE);
                let _ = report.send(handle.wait());
            }
        };
        let (at_start, at_connect, at_receive) = (stop.clone(), stop.clone(), stop.clone());
        let (at_task, at_finish, at_close) = (stop.clone(), stop.clone(), stop);
        let server = Server::builder()
            .on_start(move |handle| {
                at_start("start", handle);
                Ok(())
            })
            .on_connect(move |conn| {
                at_connect("connect", conn.server());
                Ok(())
            })
            .on_receive(move |conn, _| {
                conn.task(())?;
                at_receive("receive", conn.server());
                Ok(())
            })
            .on_task(move |cx, ()| {
                at_task("task", cx.server());
                Ok(())
            })
            .on_finish(move |conn, _| {
                at_finish("finish", conn.server());
                conn.close();
                Ok(())
            })
            .on_close(move |conn, _| {
                at_close("close", conn.server());
                Ok(())
            })
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        let handle = server.handle.clone();
        // At "start" the port may be closed already.
        let client = TcpStream::connect(server.addr());
        if let Ok(mut client) = client {
            let _ = client.write_all(b"x");
        }
        assert_eq!(waited.next(), Err(JoinError::InCallback), "{place}");
        let report = server.ended();
        assert_eq!(handle.wait(), Ok(report), "elsewhere the same report is had");
    }
}

#[test]
fn on_shutdown_runs_once_when_all_has_ended() {
    let (report, seen) = events();
    let server = Server::builder()
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .on_shutdown(move |done| Ok(report.send(done.clone())?))
        .bind("127.0.0.1:0")
        .unwrap();
    let done = run(server).stop();
    assert_eq!(seen.all_so_far(), [done]);
}

#[test]
fn a_server_that_never_runs_gives_back_its_port_and_its_threads() {
    let (made, dropped) = (Arc::new(()), Gate::default());
    let state = Arc::clone(&made);
    let server = Server::builder()
        .task_worker_num(3)
        .task_worker(move |_| Ok(Arc::clone(&state)))
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let (handle, addr) = (server.handle(), server.local_addr());
    let waiting = thread::spawn({
        let (handle, dropped) = (handle.clone(), dropped.clone());
        move || {
            let ended = handle.wait();
            dropped.open();
            ended
        }
    });
    drop(server);
    dropped.pass();
    assert_eq!(waiting.join().unwrap(), Err(JoinError::NeverRan));
    assert_eq!(handle.wait(), Err(JoinError::NeverRan));
    assert_eq!(Arc::strong_count(&made), 1, "the threads and their states are gone");
    drop(TcpListener::bind(addr).expect("the port is free"));
}

#[test]
fn a_shutdown_before_the_run_ends_it_at_once() {
    let server = echo(|_| ());
    server.handle().shutdown(PATIENCE);
    assert_balanced(&server.run().unwrap().tasks);
}

#[test]
fn idle_connections_do_not_hold_a_shutdown_up() {
    let server = run(echo(|_| ()));
    let mut clients: Vec<Client> = (0..50).map(|_| server.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask("x"), "x");
    }
    // Their clients were active a moment ago and do not close, so each is given a second to; all at once.
    let start = Instant::now();
    server.stop();
    assert!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
}

#[test]
fn a_task_worker_without_a_state_does_not_hold_a_shutdown_up() {
    let up = Arc::new(AtomicU64::new(1));
    let is_up = Arc::clone(&up);
    let server = Server::builder()
        .task_worker_num(1)
        .task_worker(move |_| {
            anyhow::ensure!(is_up.load(Ordering::Relaxed) == 1, "the database is down");
            Ok(())
        })
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(|_, ()| -> anyhow::Result<()> { panic!("a bug") })
        .on_finish(|conn, _| Ok(conn.send("panicked\n")?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    up.store(0, Ordering::Relaxed);
    let mut client = server.client();
    assert_eq!(client.ask("x"), "panicked");
    eventually("it cannot be made again", || server.handle.stats().tasks.state_failures > 0);
    drop(client);
    let report = server.stop_within(Duration::MAX);
    assert_eq!((report.tasks.panicked, report.task_workers_running), (1, 0));
}

#[test]
fn a_client_that_never_stops_sending_does_not_hold_its_connection_open() {
    let server = Server::builder()
        .framing(Framing::lines())
        .limits(Limits::new().max_frame(10))
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut flooder = server.client();
    let flooding = thread::spawn(move || {
        let block = [b'x'; 4096];
        while flooder.socket.get_mut().write_all(&block).is_ok() {}
    });
    eventually("it was accepted", || server.handle.stats().accepted_connections == 1);
    eventually("it is closed", || server.handle.stats().connections == 0);
    flooding.join().unwrap();
    server.stop();
}

#[test]
fn on_start_that_fails_has_given_everything_back_when_that_is_known() {
    let server = Server::builder()
        .on_start(|_| anyhow::bail!("no luck"))
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let (handle, addr) = (server.handle(), server.local_addr());
    let running = thread::spawn(|| server.run());
    assert_eq!(handle.wait(), Err(JoinError::NeverRan));
    drop(TcpListener::bind(addr).expect("the port is free"));
    assert!(running.join().unwrap().is_err());
}

#[test]
fn threads_and_descriptors_are_where_they_were_after_a_shutdown() {
    let Some(child) = in_child!() else {
        let (threads, files) = (common::threads(), common::open_files());
        for _ in 0..3 {
            let server = run(echo(|_| ()));
            let mut clients: Vec<Client> = (0..20).map(|_| server.client()).collect();
            for client in &mut clients {
                assert_eq!(client.ask("x"), "x");
            }
            server.stop();
        }
        // A thread that has said that it ends may take a moment to be gone.
        eventually("the threads are gone", || common::threads() == threads);
        assert_eq!(common::open_files(), files);
        return;
    };
    common::succeeds(child);
}

#[test]
fn before_a_shutdown_begins_everything_still_serves_and_can_be_told() {
    let (report, told) = events();
    let server = Server::builder()
        .framing(Framing::lines())
        .before_shutdown(move |handle| {
            handle.broadcast("goodbye\n");
            Ok(report.send(Client::connect(handle.local_addr()).ask("one"))?)
        })
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(|_cx, line: Vec<u8>| Ok(line.len()))
        .on_finish(|conn, done| Ok(conn.send(format!("{}\n", done.into_result()?))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("four"), "4");
    server.handle.shutdown(PATIENCE);
    assert_eq!(client.line(), "goodbye");
    assert_eq!(told.next(), "3", "a new client, and a new task");
    assert_eq!(client.rest(), "");
    server.stop();
}

/// One place, and clients that wait for it in the kernel's backlog.
#[test]
fn clients_that_wait_for_a_place_when_a_shutdown_begins_are_refused_in_order() {
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines())
        .max_connections(1)
        .on_receive(|conn, line| Ok(conn.send([line, b"\n"].concat())?))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut first = server.client();
    assert_eq!(first.ask("first"), "first");
    let mut waiting: Vec<Client> = (0..20).map(|_| server.client()).collect();
    // Unread, this would be answered by a reset if it were closed at once.
    waiting.iter_mut().for_each(|client| client.send("hello\n"));
    server.handle.shutdown(PATIENCE);
    for client in &mut waiting {
        let (bytes, is_reset) = client.until_closed();
        assert!(!is_reset, "after {bytes:?}");
    }
    assert_eq!(server.handle.stats().refused.shutdown, 20);
    drop(waiting);
    drop(first);
    server.ended();
}

#[test]
fn a_client_in_the_backlog_when_a_shutdown_begins_is_answered_what_it_has_asked() {
    let gate = Gate::default();
    let held = gate.clone();
    let server = Server::builder()
        .framing(Framing::lines())
        .max_tasks_in_flight(2)
        .results_in_order(true)
        .session(move |_| held.pass())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(|_, mut line: Vec<u8>| {
            line.push(b'\n');
            Ok(line)
        })
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .bind("127.0.0.1:0")
        .unwrap();
    let addr = server.local_addr();
    let handle = server.handle();
    // Before it runs: what comes meanwhile waits in the backlog.
    let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(&addr)).collect();
    // More than is read at once.
    let lines: String = (0..1000).map(|line| format!("{line}\n")).collect();
    clients.iter_mut().for_each(|client| client.send(&lines));
    handle.shutdown(PATIENCE);
    gate.open();
    let server = run(server);
    for client in &mut clients {
        let (bytes, is_reset) = client.until_closed();
        assert_eq!((String::from_utf8(bytes).unwrap(), is_reset), (lines.clone(), false));
    }
    drop(clients);
    server.ended();
}

#[test]
fn of_two_servers_on_one_port_one_may_end_and_no_client_that_waits_is_reset() {
    let bind = |addr: &str| {
        Server::builder::<(), ()>()
            .framing(Framing::lines())
            .socket_options(SocketOptions::new().reuse_port(true))
            .on_receive(|conn, line| Ok(conn.send([line, b"\n"].concat())?))
            .on_task(|_, ()| Ok(()))
            .bind(addr)
            .unwrap()
    };
    let stays = run(bind("127.0.0.1:0"));
    let addr = stays.addr();
    for _ in 0..10 {
        let goes = bind(&addr.to_string());
        // The kernel shares them out. Those of `goes` wait in its backlog, since it runs only when its shutdown has begun.
        let mut clients: Vec<Client> = (0..64).map(|_| Client::connect(addr)).collect();
        clients.iter_mut().for_each(|client| client.send("x\n"));
        goes.handle().shutdown(PATIENCE);
        let goes = run(goes);
        clients.iter_mut().for_each(|client| assert_eq!(client.line(), "x"));
        assert!(goes.handle.stats().accepted_connections > 0);
        goes.ended();
    }
    stays.stop();
}
