//! Clients that only listen: what is sent to them from elsewhere goes out without their worker, and nothing else differs.

#![allow(clippy::unit_arg)]

mod common;

use std::io::Read;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use backroom::{ConnectionId, Framing, Limits, Remote, SendError, Server, Timeout};
use common::{Client, Events, Running, events, eventually, run, succeeds};

type Conn = Remote<(), ()>;

struct House {
    server: Running,
    connected: Events<(ConnectionId, Conn)>,
    closed: Events<String>,
}

fn house(limits: Limits) -> House {
    let (report, connected) = events();
    let (report_close, closed) = events();
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines())
        .limits(limits)
        .on_connect(move |conn| Ok(report.send((conn.id(), conn.remote()))?))
        .on_receive(|conn, line| Ok(conn.send([line, b"\n"].concat())?))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report_close.send(format!("{reason:?}"))?))
        .bind("127.0.0.1:0")
        .unwrap();
    House { server: run(server), connected, closed }
}

/// Who has asked something.
fn house_with_a_client() -> (House, Client, ConnectionId) {
    let house = house(Limits::new());
    let mut client = house.server.client();
    assert_eq!(client.ask("hello"), "hello");
    let (id, _) = house.connected.next();
    (house, client, id)
}

/// Longer than a worker with nothing to do keeps its buffers, and its socket to itself.
fn wait_until_idle() {
    thread::sleep(Duration::from_millis(1300));
}

/// How often the worker threads of this process have gone to sleep.
fn sleeps_of_workers() -> u64 {
    let mut sleeps = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let read = |file| std::fs::read_to_string(path.join(file)).unwrap_or_default();
        if read("comm").starts_with("br-worker-") {
            let status = read("status");
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            sleeps += line.trim().parse::<u64>().unwrap();
        }
    }
    sleeps
}

#[test]
fn their_worker_sleeps_on_while_they_are_sent_to() {
    let Some(child) = in_child!() else {
        let (house, mut client, id) = house_with_a_client();
        wait_until_idle();
        let (sleeps, before) = (sleeps_of_workers(), house.server.handle.connection(id).unwrap());
        for number in 0..100 {
            house.server.handle.send(id, format!("{number}\n")).unwrap();
            house.server.handle.broadcast(format!("and {number}\n"));
        }
        // What is empty is no message.
        house.server.handle.send(id, "").unwrap();
        for number in 0..100 {
            assert_eq!((client.line(), client.line()), (number.to_string(), format!("and {number}")));
        }
        assert_eq!(sleeps_of_workers(), sleeps);
        let after = house.server.handle.connection(id).unwrap();
        assert_eq!(after.messages_sent - before.messages_sent, 200);
        assert_eq!(after.bytes_sent - before.bytes_sent, 290 + 690);
        assert!(after.sent_at > before.sent_at && after.received_at == before.received_at);
        // Its worker is there again when it is needed.
        assert_eq!(client.ask("hello"), "hello");
        house.server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn their_worker_sleeps_on_though_they_are_sent_to_without_pause() {
    let Some(child) = in_child!() else {
        let (house, mut client, id) = house_with_a_client();
        let sleeps = sleeps_of_workers();
        for number in 0..1000 {
            house.server.handle.send(id, format!("{number}\n")).unwrap();
            assert_eq!(client.line(), number.to_string());
        }
        // Until it sleeps again after the first of them, each may wake it.
        let slept = sleeps_of_workers() - sleeps;
        assert!(slept < 50, "it was woken {slept} times");
        house.server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn what_one_thread_sends_them_keeps_its_order_whoever_writes_it() {
    let house = house(Limits::new());
    let mut client = house.server.client();
    let (id, remote) = house.connected.next();
    wait_until_idle();
    for number in 0..300 {
        match number % 3 {
            0 => house.server.handle.send(id, format!("{number}\n")).unwrap(),
            1 => drop(house.server.handle.broadcast(format!("{number}\n"))),
            _ => remote.with_connection(id, move |conn| Ok(conn.send(format!("{number}\n"))?)).unwrap(),
        }
    }
    for number in 0..300 {
        assert_eq!(client.line(), number.to_string());
    }
    house.server.stop();
}

#[test]
fn one_that_takes_nothing_is_bounded_and_closed_like_any_other() {
    let house = house(Limits::new().max_outbox(100_000).write_timeout(Duration::from_millis(300)));
    let mut deaf = house.server.client();
    let (id, _) = house.connected.next();
    wait_until_idle();
    let message = vec![b'x'; 50_000];
    let (mut sent, mut refused) = (0, 0);
    // The kernel may take more of it after a while.
    eventually("it is closed", || match house.server.handle.send(id, &message) {
        Ok(()) => {
            sent += message.len();
            assert!(sent < 100_000_000, "it takes without end");
            false
        }
        Err(SendError::OutboxFull) => {
            refused += 1;
            false
        }
        Err(_) => true,
    });
    assert!(refused > 0);
    assert_eq!(house.closed.next(), format!("TimedOut({:?})", Timeout::Write));
    // What it was sent before is whole as far as it goes.
    let mut taken = Vec::new();
    let _ = deaf.socket.read_to_end(&mut taken);
    assert!(!taken.is_empty() && taken.len() <= sent && taken.iter().all(|byte| *byte == b'x'));
    house.server.stop();
}

#[test]
fn one_that_is_gone_is_found_out_by_what_is_sent_to_it() {
    let house = house(Limits::new());
    let client: Client = house.server.client();
    let (id, _) = house.connected.next();
    wait_until_idle();
    client.reset();
    eventually("it is closed", || house.server.handle.send(id, "x").is_err());
    assert!(house.closed.next().starts_with("Io("));
    house.server.stop();
}

#[test]
fn one_that_is_closed_right_after_it_was_sent_to_is_given_time_to_take_that() {
    let house = house(Limits::new());
    let mut client = house.server.client();
    let (id, remote) = house.connected.next();
    remote.with_connection(id, |conn| Ok(conn.pause())).unwrap();
    wait_until_idle();
    // Nobody reads this; a socket that is closed at once answers it with a reset.
    client.send("unread");
    house.server.handle.send(id, "the last").unwrap();
    assert!(house.server.handle.close(id));
    assert_eq!(house.closed.next(), "Server");
    let mut rest = Vec::new();
    client.socket.read_to_end(&mut rest).expect("no reset");
    assert_eq!(rest, b"the last");
    drop(client);
    house.server.stop();
}

/// So many that several threads send to them.
#[test]
fn each_of_a_thousand_is_told_everything_once_and_in_order() {
    const CLIENTS: usize = 1100;
    let Some(child) = in_child!() else {
        common::raise_file_limit();
        let house = house(Limits::new());
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| house.server.client()).collect();
        clients.iter().for_each(|_| drop(house.connected.next()));
        let mut broadcast = |numbers: Range<usize>| {
            for number in numbers.clone() {
                let told = house.server.handle.broadcast(format!("{number}\n"));
                assert_eq!((told.sent, told.refused), (CLIENTS, vec![]));
            }
            for client in &mut clients {
                numbers.clone().for_each(|number| assert_eq!(client.line(), number.to_string()));
            }
        };
        broadcast(0..20);
        wait_until_idle();
        broadcast(20..40);
        // Several at once: each comes whole, and once, and in its own order.
        thread::scope(|scope| {
            for voice in ["a", "b", "c"] {
                let handle = &house.server.handle;
                scope.spawn(move || {
                    for number in 0..10 {
                        assert_eq!(handle.broadcast(format!("{voice}{number}\n")).sent, CLIENTS);
                    }
                });
            }
        });
        for client in &mut clients {
            let lines: Vec<String> = (0..30).map(|_| client.line()).collect();
            for voice in ["a", "b", "c"] {
                let own = lines.iter().filter(|line| line.starts_with(voice));
                assert!(
                    own.eq((0..10).map(|number| format!("{voice}{number}")).collect::<Vec<_>>().iter()),
                    "{lines:?}"
                );
            }
        }
        drop(clients);
        house.server.stop();
        return;
    };
    succeeds(child);
}
