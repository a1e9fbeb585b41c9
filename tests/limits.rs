//! Full queues, full outboxes, too many clients: each bounded, and each slowing down only who caused it.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backroom::{
    BindError, CloseReason, Framing, Limits, Priority, SendError, Server, ServerBuilder, SocketOptions, TaskError,
    TaskOptions, WhenQueueFull, stage,
};
use common::house::{slow_client, small_buffers};
use common::{Client, Events, Gate, PATIENCE, Running, events, eventually, run};

type Builder = ServerBuilder<Vec<u8>, Vec<u8>, (), (), stage::State>;

/// Answers `ping` at once, and any other line once the gate is open.
fn gated(gate: &Gate, configure: impl FnOnce(Builder) -> Builder) -> Running {
    let gate = gate.clone();
    let server = configure(Server::builder().framing(Framing::lines()))
        .on_receive(|conn, line| {
            match line {
                b"ping" => conn.send("pong\n")?,
                _ => {
                    conn.task(line.to_vec())?;
                }
            }
            Ok(())
        })
        .on_task(move |_, mut line| {
            gate.pass();
            line.push(b'\n');
            Ok(line)
        })
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .bind("127.0.0.1:0")
        .unwrap();
    run(server)
}

/// Writes lines from another thread until all are taken; they may have to wait.
fn flood(client: &Client, lines: usize) -> thread::JoinHandle<()> {
    let mut socket = client.socket.get_ref().try_clone().unwrap();
    thread::spawn(move || {
        for line in 0..lines {
            socket.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
    })
}

fn all_answers(client: &mut Client, lines: usize) {
    let mut seen = vec![false; lines];
    for _ in 0..lines {
        let line: usize = client.line().parse().unwrap();
        assert!(!std::mem::replace(&mut seen[line], true), "answered twice");
    }
}

#[test]
fn a_flood_over_the_queue_capacity_is_deferred_and_nothing_is_lost() {
    const LINES: usize = 20_000;
    let gate = Gate::default();
    let server = gated(&gate, |builder| builder.task_worker_num(1).queue_capacity(10).max_tasks_in_flight(5_000));
    let mut flooder = server.client();
    let writing = flood(&flooder, LINES);
    eventually("the queue is full", || server.handle.stats().tasks.accepted >= 10);

    // The others are served meanwhile: the flooder is not read, and nobody waits for the queue.
    let mut other = server.client();
    for _ in 0..100 {
        assert_eq!(other.ask("ping"), "pong");
    }
    let accepted = server.handle.stats().tasks.accepted;
    assert!((10..=11).contains(&accepted), "ten wait, and one runs or was among them: {accepted}");

    gate.open();
    all_answers(&mut flooder, LINES);
    writing.join().unwrap();
    drop((flooder, other));
    let tasks = server.stop().tasks;
    assert_eq!((tasks.accepted, tasks.delivered), (LINES as u64, LINES as u64));
}

#[test]
fn many_connections_at_a_full_queue_all_go_on_once_it_drains() {
    const CLIENTS: usize = 16;
    const LINES: usize = 500;
    let gate = Gate::default();
    let server = gated(&gate, |builder| builder.task_worker_num(2).queue_capacity(3));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = server.client();
                let writing = flood(&client, LINES);
                all_answers(&mut client, LINES);
                writing.join().unwrap();
            });
        }
        eventually("the queue is full", || server.handle.stats().tasks.accepted >= 3);
        gate.open();
    });
    assert_eq!(server.stop().tasks.delivered, (CLIENTS * LINES) as u64);
}

#[test]
fn who_waits_for_room_and_is_gone_is_closed() {
    let (first, rest) = (Gate::default(), Gate::default());
    let (pass_first, pass_rest) = (first.clone(), rest.clone());
    let server = run(Server::builder()
        .framing(Framing::lines())
        .task_worker_num(1)
        .queue_capacity(1)
        .on_receive(|conn, line| {
            let priority = if line == b"urgent" { Priority::High } else { Priority::Normal };
            conn.with(TaskOptions::new().priority(priority)).task(line.to_vec())?;
            Ok(())
        })
        .on_task(move |_, line| {
            match &line[..] {
                b"urgent" => {}
                b"first" => pass_first.pass(),
                _ => pass_rest.pass(),
            }
            Ok([&line[..], b"\n"].concat())
        })
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .bind("127.0.0.1:0")
        .unwrap());
    let ask = |line: &str, accepted| {
        let mut client = server.client();
        client.send(format!("{line}\n"));
        eventually("it is accepted", || server.handle.stats().tasks.accepted == accepted);
        client
    };
    let others = [("first", 1), ("second", 2), ("third", 3)].map(|(line, accepted)| ask(line, accepted));
    let mut gone = ask("urgent", 4);
    first.open();
    assert_eq!(gone.line(), "urgent");
    drop(gone);
    // While the queue is as full as before.
    eventually("it is closed", || server.handle.stats().closed.client == 1);
    assert_eq!(server.handle.stats().tasks.queued, 1);
    rest.open();
    drop(others);
    server.stop();
}

/// However many others come, bring one task each, and so keep the queue fuller than half.
#[test]
fn who_waits_for_room_goes_on_though_others_always_take_it() {
    const LINES: usize = 30;
    let server = run(Server::builder()
        .framing(Framing::lines())
        .task_worker_num(1)
        .queue_capacity(4)
        .on_receive(|conn, line| conn.task(line.to_vec()).map(|_| ()).map_err(Into::into))
        .on_task(|_, line| {
            // Slower than those who come.
            thread::sleep(Duration::from_millis(1));
            Ok([&line[..], b"\n"].concat())
        })
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .bind("127.0.0.1:0")
        .unwrap());
    let (is_done, start) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
                    assert_eq!(server.client().ask("once"), "once");
                }
            });
        }
        eventually("the queue is full", || server.handle.stats().tasks.queued > 4);
        let mut client = server.client();
        let writing = flood(&client, LINES);
        all_answers(&mut client, LINES);
        is_done.store(true, Ordering::Relaxed);
        writing.join().unwrap();
    });
    assert!(start.elapsed() < PATIENCE, "only when no others came any more");
    server.stop();
}

#[test]
fn a_connection_at_its_cap_in_flight_receives_nothing_but_hears_of_everything_else() {
    let gate = Gate::default();
    let server = gated(&gate, |builder| builder.task_worker_num(1).max_tasks_in_flight(3));
    let mut client = server.client();
    client.send("0\n1\n2\n3\n4\nping\n");
    eventually("the cap is reached", || server.handle.stats().tasks.accepted == 3);
    // Replies, and what others send, still come; the ping behind the cap does not.
    let id = server.handle.connections().list()[0].id;
    server.handle.send(id, "news\n").unwrap();
    assert_eq!(client.line(), "news");
    assert_eq!(server.handle.stats().tasks.accepted, 3);
    gate.open();
    let mut answers: Vec<String> = (0..6).map(|_| client.line()).collect();
    answers.sort();
    assert_eq!(answers, ["0", "1", "2", "3", "4", "pong"]);
    drop(client);
    server.stop();
}

#[test]
fn a_callback_that_submits_without_end_is_refused_at_four_times_the_cap() {
    let gate = Gate::default();
    let task_gate = gate.clone();
    let (report, accepted) = events();
    let server = Server::builder()
        .max_tasks_in_flight(10)
        .on_receive(move |conn, _| {
            let error = loop {
                if let Err(error) = conn.task(()) {
                    break error;
                }
            };
            Ok(report.send((error, conn.tasks_in_flight()))?)
        })
        .on_task(move |_, ()| {
            task_gate.pass();
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x");
    assert_eq!(accepted.next(), (TaskError::TooManyInFlight, 40));
    gate.open();
    drop(client);
    assert_eq!(server.stop().tasks.accepted, 40);
}

#[test]
fn connections_that_come_and_go_cannot_fill_the_queue_without_end() {
    let gate = Gate::default();
    let server = gated(&gate, |builder| builder.task_worker_num(1).queue_capacity(5).max_connections(10));
    for round in 1..=100 {
        let mut client = server.client();
        let before = server.handle.stats().tasks.accepted;
        client.send("x\n");
        client.end_sending();
        eventually("its line is accepted, or refused and the connection closed", || {
            let stats = server.handle.stats();
            stats.accepted_connections == round && (stats.tasks.accepted > before || stats.connections == 0)
        });
        client.reset();
        eventually("it is closed", || server.handle.stats().connections == 0);
    }
    gate.open();
    let tasks = server.stop().tasks;
    // Four times the capacity, and one for each connection there may be, wait; one runs.
    assert!((30..=31).contains(&tasks.accepted), "{tasks:?}");
    assert_eq!(tasks.orphaned, tasks.accepted);
}

#[test]
fn a_client_that_pipelines_much_and_reads_late_gets_every_answer() {
    const LINES: usize = 64;
    const LEN: usize = 200 * 1024;
    let gate = Gate::default();
    let server = gated(&gate, |builder| builder);
    let mut client = server.client();
    let mut socket = client.socket.get_ref().try_clone().unwrap();
    let writing = thread::spawn(move || {
        for _ in 0..LINES {
            socket.write_all(&[[b'x'; LEN].as_slice(), b"\n"].concat()).unwrap();
        }
    });
    // All results come at once, more than an outbox and the kernel's buffers hold together.
    eventually("all lines are accepted", || server.handle.stats().tasks.accepted == LINES as u64);
    gate.open();
    eventually("all tasks are done", || server.handle.stats().tasks.done == LINES as u64);
    for _ in 0..LINES {
        assert_eq!(client.line().len(), LEN);
    }
    writing.join().unwrap();
    assert_eq!(server.handle.stats().tasks.finish_errors, 0);
    drop(client);
    server.stop();
}

/// Each finish closure submits the next task, so that there is always an outcome to deliver.
fn endless_chains(report: crossbeam_channel::Sender<String>) -> Server {
    Server::builder()
        .framing(Framing::lines())
        .limits(Limits::new().write_timeout(Duration::from_millis(200)))
        .on_receive(|conn, line| {
            match line {
                b"ping" => conn.send("pong\n")?,
                _ => {
                    for _ in 0..60 {
                        conn.task(line.to_vec())?;
                    }
                }
            }
            Ok(())
        })
        .on_task(|_, line| Ok(line))
        .on_finish(|conn, done| {
            let line = done.into_result()?;
            if line == b"talk" {
                conn.send([b'x'; 100])?;
            }
            conn.task(line)?;
            Ok(())
        })
        .on_close(move |_, reason| Ok(report.send(format!("{reason:?}"))?))
        .bind("127.0.0.1:0")
        .unwrap()
}

#[test]
fn a_connection_that_is_never_done_still_hears_its_client() {
    let (report, closed) = events();
    let server = run(endless_chains(report));
    let mut client = server.client();
    client.send("chain\n");
    for _ in 0..20 {
        assert_eq!(client.ask("ping"), "pong");
    }
    client.reset();
    assert!(closed.next().starts_with("Io("), "it notices that the client is gone");

    let mut deaf = server.client();
    deaf.send("talk\n");
    assert_eq!(closed.next(), "TimedOut(Write)", "and that one takes nothing");
    server.stop();
}

#[test]
fn who_would_rather_be_refused_at_a_full_queue_is() {
    let gate = Gate::default();
    let task_gate = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .queue_capacity(2)
        .when_queue_full(WhenQueueFull::Refuse)
        .framing(Framing::lines())
        .on_receive(|conn, _| {
            let answer = match conn.task(()) {
                Ok(_) => "accepted\n",
                Err(TaskError::QueueFull) => "busy\n",
                Err(other) => return Err(other.into()),
            };
            Ok(conn.send(answer)?)
        })
        .on_task(move |_, ()| {
            task_gate.pass();
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("x"), "accepted");
    eventually("the first task runs", || server.handle.stats().tasks.running == 1);
    assert_eq!(
        [client.ask("x"), client.ask("x"), client.ask("x"), client.ask("x")],
        ["accepted", "accepted", "busy", "busy"]
    );
    gate.open();
    drop(client);
    assert_eq!(server.stop().tasks.accepted, 3);
}

#[test]
fn a_task_worker_never_waits_for_a_connection() {
    let (blocked, reached) = (Gate::default(), Gate::default());
    let (hold, reach) = (blocked.clone(), reached.clone());
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(|_, line| Ok(line))
        .on_finish(move |conn, done| {
            let mut line = done.into_result()?;
            if line == b"hold" {
                reach.open();
                hold.pass();
            }
            line.push(b'\n');
            Ok(conn.send(line)?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut held = server.client();
    held.send("hold\n".repeat(50));
    reached.pass();
    // The only task worker has gone on, though the first connection takes none of its outcomes.
    let mut other = server.client();
    for _ in 0..200 {
        assert_eq!(other.ask("x"), "x");
    }
    blocked.open();
    for _ in 0..50 {
        assert_eq!(held.line(), "hold");
    }
    drop((held, other));
    server.stop();
}

/// The median and the 99th percentile.
fn pings(client: &mut Client, mut go_on: impl FnMut() -> bool) -> (Duration, Duration) {
    let (mut pings, begun) = (Vec::new(), Instant::now());
    while go_on() {
        let start = Instant::now();
        assert!(start - begun < PATIENCE, "it never came to an end");
        assert_eq!(client.ask("ping"), "pong");
        pings.push(start.elapsed());
    }
    pings.sort();
    (pings[pings.len() / 2], pings[pings.len() * 99 / 100])
}

/// Sends until the socket takes no more for a moment; it never reads.
fn stuff(socket: &mut TcpStream) {
    socket.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    while socket.write_all(&[b'\n'; 4096]).is_ok() {}
}

#[test]
fn a_client_that_never_reads_is_closed_by_the_write_timeout_and_nobody_else_notices() {
    const OUTBOX: usize = 256 * 1024;
    let (report, closed) = events();
    let server = Server::builder()
        .framing(Framing::lines())
        .limits(Limits::new().max_outbox(OUTBOX).write_timeout(Duration::from_millis(300)))
        .on_receive(|conn, line| {
            match line {
                b"ping" => conn.send("pong\n")?,
                _ => {
                    conn.task(())?;
                }
            }
            Ok(())
        })
        .on_task(|_, ()| Ok(vec![b'x'; 4096]))
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .on_close(move |_, reason| Ok(report.send(format!("{reason:?}"))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut other = server.client();
    let quiet = pings(&mut other, {
        let mut count = 0;
        move || {
            count += 1;
            count <= 500
        }
    });

    let mut deaf = TcpStream::connect(server.addr()).unwrap();
    stuff(&mut deaf);
    let mut reasons = Vec::new();
    let busy = pings(&mut other, || {
        // At least one ping, however long the machine took to get here.
        let go_on = reasons.is_empty();
        reasons.extend(closed.all_so_far());
        go_on
    });
    assert_eq!(reasons, ["TimedOut(Write)"]);
    // Median and p99, with what a machine of two cores that also runs the other tests needs.
    let unmoved = |busy: Duration, quiet: Duration| busy < quiet * 2 + Duration::from_millis(20);
    assert!(unmoved(busy.0, quiet.0) && unmoved(busy.1, quiet.1), "pings took {busy:?} instead of {quiet:?}");
    drop((deaf, other));
    server.stop();
}

#[test]
fn an_outbox_takes_a_message_whole_or_not_at_all() {
    let (report, sent) = events();
    let server = Server::builder()
        .limits(Limits::new().max_outbox(1000))
        .on_receive(move |conn, _| {
            assert_eq!(conn.send([b'x'; 1001]), Err(SendError::TooLong));
            let mut messages = 0;
            let error = loop {
                match conn.send([b'x'; 100]) {
                    Ok(()) => messages += 1,
                    Err(error) => break error,
                }
            };
            conn.close();
            Ok(report.send((messages, error))?)
        })
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("go");
    let (messages, error) = sent.next();
    assert_eq!(error, SendError::OutboxFull);
    assert_eq!(client.rest().len(), messages * 100);
    server.stop();
}

#[test]
fn beyond_the_maximum_of_connections_clients_wait_in_the_backlog_until_one_closes() {
    let gate = Gate::default();
    gate.open();
    let server = gated(&gate, |builder| builder.max_connections(2));
    let (mut first, mut second) = (server.client(), server.client());
    assert_eq!((first.ask("ping"), second.ask("ping")), ("pong".into(), "pong".into()));

    let mut third = server.client();
    third.send("ping\n");
    third.socket.get_ref().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let error = third.socket.get_mut().read(&mut [0]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
    assert_eq!(server.handle.stats().connections, 2);

    drop(first);
    third.socket.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(third.line(), "pong");
    drop((second, third));
    assert_eq!(server.handle.stats().refused.total(), 0);
    server.stop();
}

#[test]
fn two_thousand_clients_at_once_are_all_served_by_a_hundred_workers() {
    const CLIENTS: usize = 2_000;
    common::raise_file_limit();
    let gate = Gate::default();
    gate.open();
    let server =
        gated(&gate, |builder| builder.max_connections(100).socket_options(SocketOptions::new().backlog(4096)));
    // All are connected before the first is closed, so most wait in the backlog, and then for one another.
    let clients: Vec<Client> = (0..CLIENTS).map(|_| server.client()).collect();
    assert!(server.handle.stats().connections <= 100);
    for mut client in clients {
        assert_eq!(client.ask("x"), "x");
    }
    assert_eq!(server.handle.stats().accepted_connections, CLIENTS as u64);
    eventually("all are closed", || server.handle.stats().connections == 0);
    server.stop();
}

#[test]
fn what_cannot_work_is_an_error_from_bind_that_names_it() {
    let bind = |configure: fn(Builder) -> Builder| {
        let bound = configure(Server::builder())
            .on_receive(|conn, data| {
                conn.task(data.to_vec())?;
                Ok(())
            })
            .on_task(|_, data| Ok(data))
            .bind("127.0.0.1:0");
        bound.expect_err("an error").to_string()
    };
    assert_eq!(bind(|builder| builder.task_worker_num(0)), "task_worker_num: 0 is less than 1");
    assert!(bind(|builder| builder.task_worker_num(1_000_000)).starts_with("task_worker_num: "));
    assert_eq!(bind(|builder| builder.queue_capacity(0)), "queue_capacity: 0 is less than 1");
    assert_eq!(bind(|builder| builder.max_tasks_in_flight(0)), "max_tasks_in_flight: 0 is less than 1");
    assert_eq!(bind(|builder| builder.max_connections(0)), "max_connections: 0 is less than 1");
    assert_eq!(bind(|builder| builder.limits(Limits::new().max_frame(0))), "max_frame: 0 is less than 1");
    assert_eq!(bind(|builder| builder.limits(Limits::new().max_outbox(0))), "max_outbox: 0 is less than 1");
    assert_eq!(
        bind(|builder| builder.socket_options(SocketOptions::new().backlog(0))),
        "socket_options: a backlog of 0"
    );
    assert!(bind(|builder| builder.worker_stack_size(1)).starts_with("worker_stack_size: "));
    let too_long = |builder: Builder| {
        builder.socket_options(SocketOptions::new().user_timeout(Duration::from_secs(25 * 24 * 60 * 60)))
    };
    assert_eq!(bind(too_long), "socket_options: a user_timeout is at most 24 days");
    assert!(bind(|builder| builder.task_worker_stack_size(1)).starts_with("task_worker_stack_size: "));
    assert_eq!(bind(|builder| builder.max_buffered(0)), "max_buffered: 0 is less than 1");
    for (problem, set) in [
        (
            "handshake_timeout: it is zero",
            (|limits, time| limits.handshake_timeout(time)) as fn(Limits, Duration) -> Limits,
        ),
        ("frame_timeout: it is zero", |limits, time| limits.frame_timeout(time)),
        ("write_timeout: it is zero", |limits, time| limits.write_timeout(time)),
        ("idle_timeout: it is zero", |limits, time| limits.idle_timeout(time)),
        ("silence_timeout: it is zero", |limits, time| limits.silence_timeout(time)),
        ("max_lifetime: it is zero", |limits, time| limits.max_lifetime(time)),
        ("max_connections_per_address: 0 is less than 1", |limits, _| limits.max_connections_per_address(0)),
        ("accept_rate_per_address: 0 is less than 1", |limits, _| limits.accept_rate_per_address(0, PATIENCE)),
        ("accept_rate_per_address: within less than 1 ms", |limits, time| limits.accept_rate_per_address(1, time)),
        ("watermarks: 1 and 2, where low is above high or high above max_outbox", |limits, _| limits.watermarks(1, 2)),
        ("watermarks: 11 and 2, where low is above high or high above max_outbox", |limits, _| {
            limits.watermarks(11, 2).max_outbox(10)
        }),
    ] {
        let bound = Server::builder::<(), ()>()
            .limits(set(Limits::new(), Duration::ZERO))
            .on_receive(|_, _| Ok(()))
            .on_task(|_, ()| Ok(()))
            .bind("127.0.0.1:0");
        assert_eq!(bound.expect_err("an error").to_string(), problem);
    }
    assert_eq!(
        bind(|builder| builder.framing(Framing::delimiter("123456789"))),
        "framing: a delimiter must have 1 to 8 bytes"
    );
}

#[test]
fn a_callback_that_is_missing_is_an_error_from_bind() {
    let no_receive = Server::builder::<(), ()>().on_task(|_, ()| Ok(())).bind("127.0.0.1:0");
    assert_eq!(no_receive.err().unwrap().to_string(), "on_receive is not set");
    let no_task = Server::builder::<(), ()>().on_receive(|_, _| Ok(())).bind("127.0.0.1:0");
    assert_eq!(no_task.err().unwrap().to_string(), "on_task is not set");
}

#[test]
fn an_address_that_cannot_be_bound_is_named() {
    let bind =
        |address: &str| Server::builder::<(), ()>().on_receive(|_, _| Ok(())).on_task(|_, ()| Ok(())).bind(address);
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let error = bind(&taken).err().unwrap();
    assert_eq!(error.to_string(), format!("cannot listen on {taken}"));
    assert!(matches!(error, BindError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse));

    let elsewhere = bind("192.0.2.1:9501").err().unwrap();
    assert_eq!(elsewhere.to_string(), "cannot listen on 192.0.2.1:9501");
    let nowhere = bind("127.0.0.1:notaport").err().unwrap();
    assert_eq!(nowhere.to_string(), "cannot resolve \"127.0.0.1:notaport\"");
}

#[test]
fn a_frame_over_the_maximum_closes_its_connection_with_a_clear_reason() {
    let (report, closed) = events();
    let server = Server::builder()
        .framing(Framing::delimiter("\r\n"))
        .limits(Limits::new().max_frame(100))
        .on_receive(|conn, data| Ok(conn.send([data, b"\n"].concat())?))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| {
            let limit = match reason {
                CloseReason::FrameTooLong(limit) => Some(*limit),
                _ => None,
            };
            Ok(report.send((limit, reason.to_string()))?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    for flood in ["x".repeat(103), "x".repeat(1_000_000), "x".repeat(101) + "\r\n"] {
        let mut client = server.client();
        let line = "y".repeat(100);
        assert_eq!(client.ask(&format!("{line}\r")), line);
        let _ = client.socket.get_mut().write_all(flood.as_bytes());
        assert_eq!(client.rest(), "");
        assert_eq!(closed.next(), (Some(100), "a frame was longer than 100 bytes".to_owned()));
    }
    server.stop();
}

#[test]
fn raw_chunks_are_no_longer_than_a_frame_may_be_and_lose_nothing() {
    let (report, chunks) = events();
    let server = Server::builder()
        .limits(Limits::new().max_frame(100))
        .on_receive(move |_, chunk| Ok(report.send(chunk.to_vec())?))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let sent: Vec<u8> = (0..1000).map(|at| (at % 251) as u8).collect();
    server.client().send(&sent);
    let mut received = Vec::new();
    while received.len() < sent.len() {
        let chunk = chunks.next();
        assert!((1..=100).contains(&chunk.len()));
        received.extend(chunk);
    }
    assert_eq!(received, sent);
    server.stop();
}

#[test]
fn half_a_frame_then_nothing_disturbs_nobody_and_ends_at_the_shutdown() {
    let gate = Gate::default();
    gate.open();
    let server = gated(&gate, |builder| builder);
    let mut half = server.client();
    half.send("hal");
    let mut other = server.client();
    assert_eq!(other.ask("x"), "x");
    assert_eq!(server.stop().tasks.accepted, 1);
    assert_eq!((half.rest(), other.rest()), (String::new(), String::new()));
}

#[test]
fn garbage_is_just_bytes() {
    let gate = Gate::default();
    gate.open();
    let server = gated(&gate, |builder| builder.limits(Limits::new().max_frame(4096)));
    let mut state = 1u64;
    for _ in 0..50 {
        let mut client = server.client();
        let garbage: Vec<u8> = (0..5000)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            })
            .collect();
        let _ = client.socket.get_mut().write_all(&garbage);
        let _ = client.socket.get_ref().shutdown(std::net::Shutdown::Write);
        client.rest();
    }
    assert_eq!(server.client().ask("x"), "x");
    server.stop();
}

#[test]
fn when_all_connections_keep_too_much_those_that_keep_most_close_and_the_others_serve() {
    const MAX: usize = 4 * 1024 * 1024;
    let (report, closed) = events();
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines())
        .max_buffered(MAX)
        .on_receive(|conn, line| match line {
            b"ping" => Ok(conn.send("pong\n")?),
            // Far more than the kernel takes for a client that reads nothing.
            _ => {
                while conn.send([b'x'; 100_000]).is_ok() {}
                Ok(())
            }
        })
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report.send(matches!(reason, CloseReason::Overloaded))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut modest = server.client();
    let mut deaf: Vec<Client> = (0..8).map(|_| server.client()).collect();
    for client in &mut deaf {
        client.send("more\n");
    }
    assert!(closed.next(), "the first that does not fit");
    assert_eq!(modest.ask("ping"), "pong");
    eventually("the rest fits", || {
        let open = server.handle.connections().list();
        open.iter().map(|connection| connection.outbox_bytes).sum::<usize>() <= MAX
    });
    assert!(server.handle.stats().connections > 1, "those that fit stay");
    assert!(server.handle.stats().closed.overloaded >= 1);
    drop(deaf);
    server.stop_within(PATIENCE);
}

/// A server whose connections together may keep so much, and whether each that closes did so for that.
fn keeping(max_buffered: usize, limits: Limits) -> (Running, Events<bool>) {
    let (report, closed) = events();
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines())
        .max_buffered(max_buffered)
        .limits(limits)
        .socket_options(small_buffers())
        .on_receive(|conn, _| Ok(conn.send("pong\n")?))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report.send(matches!(reason, CloseReason::Overloaded))?))
        .bind("127.0.0.1:0")
        .unwrap();
    (run(server), closed)
}

#[test]
fn frames_that_are_not_whole_count_with_what_all_connections_keep() {
    const FRAME: usize = 1 << 20;
    let (server, closed) = keeping(4 * FRAME, Limits::new().max_frame(2 * FRAME));
    let mut modest = server.client();
    let unfinished = |mut client: Client| {
        // The last of them are not read to their end.
        let _ = client.socket.get_mut().write_all(&vec![b'x'; FRAME]);
        client
    };
    let clients: Vec<Client> = (0..8).map(|_| unfinished(server.client())).collect();
    assert!(closed.next());
    assert_eq!(modest.ask("ping"), "pong");
    drop(clients);
    server.stop();
}

/// Clients that read nothing, once the server knows of them.
fn deaf_clients(count: usize, server: &Running) -> Vec<Client> {
    let deaf = (0..count).map(|_| slow_client(server.addr())).collect();
    eventually("they are known", || server.handle.connections().count() == count);
    deaf
}

#[test]
fn what_others_send_a_client_counts_with_what_all_connections_keep() {
    const OUTBOX: usize = 1 << 20;
    // More than eight outboxes, and less than those with their mailboxes, which may leave half a message of room.
    let (server, closed) = keeping(10 * OUTBOX, Limits::new().max_outbox(OUTBOX));
    let deaf = deaf_clients(8, &server);
    let is_full = |id| {
        while server.handle.send(id, vec![b'x'; OUTBOX / 2]).is_ok() {}
        // Gone by now, or nothing more fits into either.
        server.handle.connection(id).is_none_or(|connection| connection.outbox_bytes > OUTBOX * 5 / 4)
    };
    for connection in server.handle.connections().list() {
        eventually("it takes no more", || is_full(connection.id));
    }
    assert!(closed.next());
    drop(deaf);
    server.stop();
}

#[test]
fn what_is_broadcast_counts_once_for_all_who_keep_it() {
    const OUTBOX: usize = 1 << 20;
    // More than what fits into the outbox and the mailbox of one, and less than into those of three.
    let (server, closed) = keeping(5 * OUTBOX, Limits::new().max_outbox(OUTBOX));
    let deaf = deaf_clients(8, &server);
    eventually("none of them takes more", || server.handle.broadcast(vec![b'x'; OUTBOX / 2]).refused.len() == 8);
    assert_eq!(server.client().ask("ping"), "pong");
    assert!(!closed.next(), "who has said ping");
    drop(deaf);
    (0..8).for_each(|_| assert!(!closed.next(), "it is its client that closed it"));

    // Those that stall one after the other keep each another part of what is said.
    let mut deaf = Vec::new();
    while closed.all_so_far().is_empty() && deaf.len() < 8 {
        deaf.push(slow_client(server.addr()));
        eventually("it is known", || server.handle.connections().count() == deaf.len());
        let newest = server.handle.connections().list().pop().unwrap().id;
        // Gone by now, or hardly anything more fits into its outbox and its mailbox.
        eventually("it takes no more", || {
            server.handle.broadcast(vec![b'x'; OUTBOX / 2]);
            server.handle.connection(newest).is_none_or(|connection| connection.outbox_bytes > OUTBOX * 5 / 4)
        });
    }
    assert!(deaf.len() >= 2 && server.handle.stats().closed.overloaded >= 1, "{}", deaf.len());
    drop(deaf);
    server.stop();
}
