//! A panic stays where it happened, wherever it happens. A binary of its own, because it silences the panic hook.

mod common;

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use anyhow::bail;
use backroom::{BindError, CloseReason, Framing, Outcome, Server};
use common::{Gate, events, eventually, run};

fn silence_panics() {
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| std::panic::set_hook(Box::new(|_| ())));
}

/// Panics again when it is dropped, and so does what it panics with.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::panic_any(Bomb);
    }
}

#[test]
fn a_hundred_thousand_panics_in_a_row_leave_the_pool_as_it_was() {
    const PANICS: u64 = 100_000;
    silence_panics();
    let server = Server::builder()
        .task_worker_num(2)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(|_, line| match &line[..] {
            b"panic" => panic!("again"),
            _ => Ok(line),
        })
        .on_finish(|conn, done| {
            let answer: &[u8] = match done.outcome() {
                Outcome::Panicked(message) if message == "again" => b"panicked\n",
                Outcome::Done(_) => b"done\n",
                _ => b"?\n",
            };
            Ok(conn.send(answer)?)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("x"), "done");
    let (threads, files) = (common::threads(), common::open_files());
    for _ in 0..PANICS / 100 {
        client.send("panic\n".repeat(100));
        for _ in 0..100 {
            assert_eq!(client.line(), "panicked");
        }
    }
    assert_eq!(client.ask("x"), "done");
    // Other tests of this binary run beside this one, so what it leaks would be many.
    assert!(common::threads() < threads + 100);
    assert!(common::open_files() < files + 100);
    drop(client);
    let tasks = server.stop().tasks;
    assert_eq!((tasks.panicked, tasks.done), (PANICS, 2));
}

#[test]
fn a_panic_payload_that_panics_when_dropped_is_an_outcome_like_any_other() {
    silence_panics();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .on_receive(|conn, line| {
            conn.task(line == b"bomb")?;
            Ok(())
        })
        .on_task(|_, bomb| {
            if bomb {
                std::panic::panic_any(Bomb);
            }
            Ok(())
        })
        .on_finish(|conn, done| Ok(conn.send(if done.result().is_some() { "done\n" } else { "panicked\n" })?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    for _ in 0..10 {
        assert_eq!(client.ask("bomb"), "panicked");
        assert_eq!(client.ask("x"), "done");
    }
    drop(client);
    server.stop();
}

#[test]
fn results_payloads_and_states_that_panic_when_dropped_unbalance_no_books() {
    silence_panics();
    let gate = Gate::default();
    let task_gate = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .session(|_| Bomb)
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(move |_, ()| {
            task_gate.pass();
            Ok(Bomb)
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x\n".repeat(20));
    eventually("all are accepted", || server.handle.stats().tasks.accepted == 20);
    // The connection is gone before its results are there, and each of them panics in whoever drops it.
    client.reset();
    eventually("the connection is closed", || server.handle.stats().connections == 0);
    gate.open();
    let tasks = server.stop().tasks;
    assert_eq!((tasks.done, tasks.orphaned), (20, 20));
}

#[test]
fn a_panic_in_a_callback_closes_that_connection_and_tells_on_close_once() {
    silence_panics();
    for place in ["connect", "receive", "finish", "finish closure"] {
        let (report, closed) = events();
        let clients = AtomicU32::new(0);
        let server = Server::builder()
            .framing(Framing::lines())
            .on_connect(move |_| {
                let first = clients.fetch_add(1, Ordering::Relaxed) == 0;
                assert!(!(first && place == "connect"), "in connect");
                Ok(())
            })
            .on_receive(move |conn, line| {
                assert!(!(line == b"panic" && place == "receive"), "in receive");
                conn.send("sent before\n")?;
                match (place, line) {
                    ("finish closure", b"panic") => conn.task_then(true, |_, _| panic!("in finish closure"))?,
                    _ => conn.task(line == b"panic")?,
                };
                Ok(())
            })
            .on_task(|_, panics| Ok(panics))
            .on_finish(|conn, done| {
                assert!(!done.into_result()?, "in finish");
                Ok(conn.send("ok\n")?)
            })
            .on_close(move |conn, reason| Ok(report.send((conn.id(), reason.to_string()))?))
            .bind("127.0.0.1:0")
            .unwrap();
        let server = run(server);
        let mut unlucky = server.client();
        let _ = std::io::Write::write_all(unlucky.socket.get_mut(), b"panic\n");
        let expected = if place.starts_with("finish") { "sent before\n" } else { "" };
        assert_eq!(unlucky.rest(), expected, "what was sent before the panic is flushed");
        drop(unlucky);
        assert_eq!(closed.next().1, format!("a callback panicked: in {place}"));

        let mut other = server.client();
        assert_eq!((other.ask("x"), other.line()), ("sent before".into(), "ok".into()));
        drop(other);
        assert_eq!(closed.next().1, "closed by the client");
        server.stop();
        assert_eq!(closed.all_so_far(), []);
    }
}

#[test]
fn a_panic_in_session_closes_that_connection_and_nothing_else() {
    silence_panics();
    let clients = AtomicU32::new(0);
    let server = Server::builder()
        .session(move |_| assert!(clients.fetch_add(1, Ordering::Relaxed) > 0, "the first client"))
        .on_receive(|conn, data| Ok(conn.send(data)?))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    assert_eq!(server.client().rest(), "");
    assert_eq!(server.client().ask("x"), "x");
    server.stop();
}

#[test]
fn a_panic_in_on_close_or_on_shutdown_goes_no_further() {
    silence_panics();
    let server = Server::builder()
        .on_receive(|conn, data| Ok(conn.send(data)?))
        .on_task(|_, ()| Ok(()))
        .on_close(|_, _| panic!("in on_close"))
        .on_shutdown(|_| panic!("in on_shutdown"))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    for _ in 0..3 {
        assert_eq!(server.client().ask("x"), "x");
    }
    server.stop();
}

#[test]
fn a_close_reason_whose_text_panics_still_reaches_on_close() {
    silence_panics();
    let (report, closed) = events();
    let server = Server::builder()
        .on_receive(|_, _| Err(Unspeakable.into()))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report.send(matches!(reason, CloseReason::CallbackFailed(_)))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x");
    assert_eq!(client.rest(), "");
    assert!(closed.next());
    drop(client);
    server.stop();
}

#[test]
fn on_start_that_fails_or_panics_is_an_error_from_run() {
    silence_panics();
    let start = |panics: bool| {
        let server = Server::builder()
            .on_start(move |_| if panics { panic!("a bug") } else { bail!("no luck") })
            .on_receive(|_, _| Ok(()))
            .on_task(|_, ()| Ok(()))
            .bind("127.0.0.1:0")
            .unwrap();
        let handle = server.handle();
        let error = anyhow::Error::from(server.run().unwrap_err());
        assert!(handle.wait().is_err());
        format!("{error:#}")
    };
    assert_eq!(start(false), "on_start failed: no luck");
    assert_eq!(start(true), "on_start failed: it panicked: a bug");
}

#[test]
fn a_task_worker_whose_state_cannot_be_made_is_an_error_from_bind_and_leaves_no_thread() {
    silence_panics();
    let made = Arc::new(());
    let bind = |panics: bool| {
        let state = Arc::clone(&made);
        Server::builder()
            .task_worker_num(4)
            .task_worker(move |index| match index {
                2 if panics => panic!("a bug"),
                2 => bail!("no database"),
                _ => Ok(Arc::clone(&state)),
            })
            .on_receive(|_, _| Ok(()))
            .on_task(|_, ()| Ok(()))
            .bind("127.0.0.1:0")
            .err()
            .unwrap()
    };
    let error = bind(false);
    assert!(matches!(error, BindError::TaskWorkerState { worker_index: 2, .. }));
    assert_eq!(format!("{:#}", anyhow::Error::from(error)), "cannot make the state of task worker 2: no database");
    assert_eq!(
        format!("{:#}", anyhow::Error::from(bind(true))),
        "cannot make the state of task worker 2: it panicked: a bug"
    );
    assert_eq!(Arc::strong_count(&made), 1, "the threads and their states are gone");
}

/// An error whose text panics.
#[derive(Debug)]
struct Unspeakable;

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("no text");
    }
}

impl std::error::Error for Unspeakable {}

#[test]
fn errors_whose_text_panics_take_no_task_worker_and_no_server_with_them() {
    silence_panics();
    let made = Arc::new(AtomicU32::new(0));
    let making = Arc::clone(&made);
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .task_worker(move |_| match making.fetch_add(1, Ordering::Relaxed) {
            1 => Err(Unspeakable.into()),
            _ => Ok(()),
        })
        .on_receive(|conn, line| {
            conn.task(line == b"panic")?;
            Ok(())
        })
        .on_task(|_, panics| {
            assert!(!panics, "a bug");
            Ok(())
        })
        .on_finish(|conn, done| {
            conn.send("finished\n")?;
            match done.result() {
                Some(()) => Ok(()),
                None => Err(Unspeakable.into()),
            }
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    // The finish closure's error closes its connection, by the panic of its text.
    let mut client = server.client();
    client.send("panic\n");
    assert_eq!(client.rest(), "finished\n");
    // The state could not be made at the first try, whose error has no text; then it could.
    assert_eq!(server.client().ask("x"), "finished");
    assert_eq!(made.load(Ordering::Relaxed), 3);
    server.stop();
}

#[test]
fn after_a_panic_the_state_is_fresh() {
    silence_panics();
    let server = Server::builder()
        .task_worker_num(1)
        .framing(Framing::lines())
        .task_worker(|_| Ok(0u32))
        .on_receive(|conn, line| {
            conn.task(line == b"panic")?;
            Ok(())
        })
        .on_task(|cx, panics| {
            assert!(!panics, "a bug");
            *cx.worker() += 1;
            Ok(*cx.worker())
        })
        .on_finish(|conn, done| Ok(conn.send(format!("{:?}\n", done.result()))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    let answers = ["x", "x", "panic", "x"].map(|line| client.ask(line));
    assert_eq!(answers, ["Some(1)", "Some(2)", "None", "Some(1)"]);
    drop(client);
    server.stop();
}

#[test]
fn a_state_that_cannot_be_made_again_is_tried_for_while_the_others_serve() {
    silence_panics();
    let attempts = Arc::new(AtomicUsize::new(0));
    let (up, made) = (Arc::new(AtomicU32::new(1)), Arc::clone(&attempts));
    let is_up = Arc::clone(&up);
    let server = Server::builder()
        .task_worker_num(2)
        .framing(Framing::lines())
        .task_worker(move |_| {
            made.fetch_add(1, Ordering::Relaxed);
            match is_up.load(Ordering::Relaxed) {
                0 => bail!("the database is down"),
                _ => Ok(0u32),
            }
        })
        .on_receive(|conn, line| {
            conn.task(line.to_vec())?;
            Ok(())
        })
        .on_task(|cx, line| {
            *cx.worker() += 1;
            match &line[..] {
                b"panic" => panic!("a bug"),
                _ => Ok(*cx.worker()),
            }
        })
        .on_finish(|conn, done| Ok(conn.send(format!("{:?}\n", done.result()))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    up.store(0, Ordering::Relaxed);
    assert_eq!(client.ask("panic"), "None");
    eventually("the failure is counted", || server.handle.stats().tasks.state_failures >= 1);
    let tasks = server.handle.stats().tasks;
    assert_eq!((tasks.task_workers_idle, tasks.task_workers_busy, tasks.task_workers_renewing), (1, 0, 1));
    // One task worker is left, with the state it had.
    let counts: Vec<String> = (0..10).map(|_| client.ask("x")).collect();
    assert!(counts.iter().all(|count| count.starts_with("Some(")), "{counts:?}");

    up.store(1, Ordering::Relaxed);
    eventually("it is made at last", || attempts.load(Ordering::Relaxed) >= 4);
    drop(client);
    let tasks = server.stop().tasks;
    assert_eq!((tasks.panicked, tasks.done), (1, 10));
}
