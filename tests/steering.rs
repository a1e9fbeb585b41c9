//! Connections that are paused, closed, aborted and visited, by their own callbacks and from elsewhere.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use backroom::{CloseReason, Framing, Limits, SendError, Server, ServerHandle};
use common::house::{Conn, House, SHORT, Told, job, slow_client, small_buffers};
use common::{cpu_time, events, eventually, log_from, run, succeeds};
use crossbeam_channel::Sender;

fn frame(line: &str) -> Told {
    Told::Frame(line.into())
}

#[test]
fn a_connection_paused_in_on_connect_is_not_read_until_it_is_resumed() {
    let house = House::open_with(|builder| builder, |conn| conn.pause());
    let mut guest = house.guest();
    guest.client.send("hello\n");
    guest.turns();
    assert_eq!((guest.info().bytes_received, house.told_so_far()), (0, vec![]));
    // Everything else goes on.
    house.handle().send(guest.id, "mail\n").unwrap();
    guest.task_then(job(|_, _| ()), |conn| Ok(conn.send("finished\n")?));
    let heard = (guest.client.line(), guest.client.line());
    assert_eq!(heard, ("mail".into(), "finished".into()));
    guest.turns();
    assert_eq!((guest.info().bytes_received, house.told_so_far()), (0, vec![]));

    assert!(house.handle().resume(guest.id));
    assert_eq!(house.told(), frame("hello"));
    drop(guest);
    house.server.stop();
}

#[test]
fn frames_that_are_here_when_a_callback_pauses_wait_for_a_timer_or_a_finish_closure_that_resumes() {
    let (report, reported) = events();
    let frames = report.clone();
    let server = Server::builder()
        .framing(Framing::lines())
        .on_task(|_, ()| Ok(()))
        .on_receive(move |conn, line| {
            frames.send(String::from_utf8_lossy(line).into_owned())?;
            conn.pause();
            let report = report.clone();
            let resume = move |conn: &mut backroom::Connection<_, _>| {
                report.send("resumed".into())?;
                conn.resume();
                Ok(())
            };
            match line {
                b"timer" => drop(conn.after(Duration::from_millis(1), resume)),
                _ => drop(conn.task_then((), move |conn, _| resume(conn))?),
            }
            Ok(())
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    // All in one read, so that it is not the socket where they wait.
    client.send("timer\ntask\n".repeat(100));
    for _ in 0..100 {
        for kind in ["timer", "task"] {
            assert_eq!((reported.next(), reported.next()), (kind.to_owned(), "resumed".to_owned()));
        }
    }
    drop(client);
    server.stop();
}

#[test]
fn the_handle_pauses_and_resumes_in_turn_with_what_it_sends() {
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let handle = house.handle();
    for round in 0..20 {
        let line = round.to_string();
        assert!(handle.pause(guest.id));
        handle.send(guest.id, "paused\n").unwrap();
        assert_eq!(guest.client.line(), "paused");
        guest.client.send(format!("{line}\n"));
        guest.turns();
        assert_eq!(house.told_so_far(), []);
        assert!(handle.resume(guest.id));
        assert_eq!(house.told(), frame(&line));
    }
    // Only its last word counts.
    let gate = guest.keep_busy();
    assert!(handle.pause(guest.id) && handle.resume(guest.id) && handle.pause(guest.id) && handle.resume(guest.id));
    gate.open();
    guest.client.send("again\n");
    assert_eq!(house.told(), frame("again"));

    assert!(handle.close(guest.id));
    assert!(!handle.pause(guest.id) && !handle.resume(guest.id));
    drop(guest);
    house.server.stop();
}

#[test]
fn a_paused_connection_costs_no_time_whatever_its_client_sends_also_when_it_is_reset() {
    let Some(child) = in_child!() else {
        let costs_nothing = || {
            let before = cpu_time();
            thread::sleep(3 * SHORT);
            let spent = cpu_time() - before;
            assert!(spent < SHORT / 2, "{spent:?} of {:?}", 3 * SHORT);
        };
        let house = House::open(|builder| builder);
        let mut guest = house.guest();
        guest.on_worker(|conn| conn.pause());
        guest.client.send("x\n".repeat(1000));
        guest.turns();
        costs_nothing();

        guest.client.reset();
        eventually("it is noticed", || house.handle().send(guest.id, "?") == Err(SendError::Closed));
        costs_nothing();
        assert_eq!(house.told_so_far(), []);
        house.handle().resume(guest.id);
        (0..1000).for_each(|_| assert_eq!(house.told(), Told::Frame("x".into())));
        let closed = house.closed();
        assert!(closed.starts_with("Io("), "{closed}");
        house.server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn a_paused_connection_whose_client_has_sent_nothing_more_notices_a_reset_at_once() {
    let house = House::open(|builder| builder);
    let guest = house.guest();
    guest.on_worker(|conn| conn.pause());
    guest.client.reset();
    let closed = house.told();
    assert!(matches!(&closed, Told::Closed(reason) if reason.starts_with("Io(")), "{closed:?}");
    house.server.stop();
}

#[test]
fn close_flushes_what_was_sent_before_it_whichever_way_and_however_slow_the_client_is() {
    const PART: usize = 200_000;
    let house = House::open(|builder| builder.socket_options(small_buffers()));
    let mut guest = house.welcome(slow_client(house.server.addr()));
    let gate = guest.keep_busy();
    let (handle, id) = (house.handle(), guest.id);
    handle.send(id, vec![b'a'; PART]).unwrap();
    assert_eq!(handle.broadcast(vec![b'b'; PART]).sent, 1);
    let by_connection = |conn: &mut Conn| Ok(conn.send(vec![b'c'; PART])?);
    guest.remote.with_connection(id, by_connection).unwrap();
    assert!(handle.close(id));
    assert!(!handle.close(id), "it is closing");
    assert_eq!(handle.send(id, "too late"), Err(SendError::Closed));
    gate.open();
    let everything = guest.client.until_closed();
    assert!(everything == ("abc".bytes().flat_map(|byte| vec![byte; PART]).collect(), false));
    assert_eq!(house.told_so_far().last(), Some(&Told::Closed("Server".into())));
    house.server.stop();
}

#[test]
fn abort_in_a_callback_resets_and_loses_what_was_not_taken() {
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    guest.on_worker(|conn| {
        conn.send("never").unwrap();
        // The stronger one holds.
        conn.close();
        conn.abort();
        conn.close();
        assert_eq!(conn.send("never"), Err(SendError::Closed));
    });
    assert_eq!(guest.client.until_closed(), (vec![], true));
    assert_eq!(house.told(), Told::Closed("Aborted".into()));
    assert!(!house.handle().abort(guest.id), "it is closed");
    house.server.stop();
}

#[test]
fn a_callback_that_aborts_and_then_fails_has_aborted() {
    let (report, closed) = events();
    let server = Server::builder::<(), ()>()
        .on_receive(|conn, _| {
            conn.abort();
            Ok(conn.send("nobody is there")?)
        })
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report.send(matches!(reason, CloseReason::Aborted))?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send("x");
    assert_eq!(client.until_closed(), (vec![], true));
    assert!(closed.next());
    server.stop();
}

#[test]
fn an_abort_from_the_handle_overtakes_the_mail_that_waits() {
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let gate = guest.keep_busy();
    let (handle, id) = (house.handle(), guest.id);
    handle.send(id, "never").unwrap();
    handle.broadcast("never");
    let (ran, runs) = events();
    guest.remote.with_connection(id, move |_| Ok(ran.send(())?)).unwrap();
    assert!(handle.close(id));
    assert!(handle.abort(id), "it is only closing");
    assert!(!handle.abort(id) && !handle.close(id));
    assert_eq!(handle.send(id, "never"), Err(SendError::Closed));
    assert_eq!(guest.info().outbox_bytes, 0);
    gate.open();
    assert_eq!(guest.client.until_closed(), (vec![], true));
    assert_eq!(house.told(), Told::Closed("Aborted".into()));
    assert_eq!(runs.all_so_far(), []);
    house.server.stop();
}

#[test]
fn a_client_that_takes_nothing_is_aborted_at_once_though_its_outbox_is_full() {
    // Far more than the kernel takes, also later.
    const OUTBOX: usize = 200_000;
    let limits = Limits::new().max_outbox(OUTBOX);
    let house = House::open(|builder| builder.limits(limits).socket_options(small_buffers()));
    for closing in [false, true] {
        let guest = house.welcome(slow_client(house.server.addr()));
        let (handle, id) = (house.handle(), guest.id);
        guest.on_worker(|conn| while conn.send([b'x'; 1000]).is_ok() {});
        if closing {
            guest.on_worker(|conn| conn.close());
            eventually("it flushes", || handle.send(id, "x") == Err(SendError::Closed));
        } else {
            handle.send(id, vec![b'x'; OUTBOX]).unwrap();
            eventually("the mail waits too", || guest.info().outbox_bytes > OUTBOX);
        }
        assert!(handle.abort(id));
        assert_eq!(house.closed(), "Aborted");
    }
    house.server.stop();
}

#[test]
fn a_visit_runs_on_the_worker_of_its_connection_and_in_turn() {
    let house = House::open(|builder| builder);
    let (guest, mut other) = (house.guest(), house.guest());
    let (theirs, ours) = (other.id, guest.id);
    // From the worker of one connection to that of another, and back.
    let (report, visits) = events();
    guest.on_worker(move |conn| {
        let remote = conn.remote();
        for number in 0..100 {
            let (report, back) = (report.clone(), remote.clone());
            let there = move |conn: &mut Conn| {
                let there = (conn.id(), thread::current().name().map(str::to_owned));
                conn.send(format!("{number}\n"))?;
                let here = move |conn: &mut Conn| {
                    let here = (conn.id(), thread::current().name().map(str::to_owned));
                    Ok(report.send((number, there, here))?)
                };
                Ok(back.with_connection(ours, here)?)
            };
            remote.with_connection(theirs, there).unwrap();
        }
    });
    let name = |conn: &mut Conn| (conn.id(), thread::current().name().map(str::to_owned));
    let (here, there) = (guest.on_worker(name), other.on_worker(name));
    assert_ne!(here.1, there.1);
    for number in 0..100 {
        assert_eq!(other.client.line(), number.to_string());
        assert_eq!(visits.next(), (number, there.clone(), here.clone()));
    }
    drop((guest, other));
    house.server.stop();
}

#[test]
fn a_visit_that_fails_is_logged_and_one_that_panics_closes_its_connection_and_no_other() {
    let Some(child) = in_child!() else {
        let logged = log_from(log::LevelFilter::Warn);
        let house = House::open(|builder| builder);
        let (guest, mut other) = (house.guest(), house.guest());
        let fail = |_: &mut Conn| Err(anyhow::anyhow!("no such room"));
        guest.remote.with_connection(guest.id, fail).unwrap();
        guest.turns();
        let lines = logged.lock().join("\n");
        assert!(lines.contains("a closure from elsewhere failed: no such room"), "{lines}");
        assert_eq!(house.told_so_far(), []);

        guest.remote.with_connection(guest.id, |_: &mut Conn| panic!("the house is haunted")).unwrap();
        assert_eq!(house.told(), Told::Closed("Panicked(\"the house is haunted\")".into()));
        other.on_worker(|conn| conn.send("well\n").unwrap());
        assert_eq!(other.client.line(), "well");
        drop((guest, other));
        house.server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn a_visit_to_a_connection_that_is_closed_or_closing_or_was_never_there_is_handed_back() {
    let (house, elsewhere) = (House::open(|builder| builder), House::open(|builder| builder));
    let (guest, stranger) = (house.guest(), elsewhere.guest());
    let refused = |id| {
        let text = String::from("what it holds");
        let error = guest.remote.with_connection(id, move |conn| Ok(conn.send(text)?)).unwrap_err();
        assert!(!error.is_full());
        assert_eq!(error.to_string(), "the connection is closed");
        error.into_closure()
    };
    drop(refused(stranger.id));
    let gate = guest.keep_busy();
    assert!(house.handle().close(guest.id));
    drop(refused(guest.id));
    gate.open();
    assert_eq!(house.closed(), "Server");
    // What is handed back can be used again.
    let closure = refused(guest.id);
    let mut last = house.guest();
    last.remote.with_connection(last.id, closure).unwrap();
    assert_eq!(last.client.bytes(13), b"what it holds");
    drop((guest, stranger, last));
    house.server.stop();
    elsewhere.server.stop();
}

#[test]
fn as_many_visits_as_may_wait_do_and_the_next_is_handed_back() {
    const VISITS: usize = 1024;
    let house = House::open(|builder| builder);
    let guest = house.guest();
    let gate = guest.keep_busy();
    let (report, runs) = events();
    let visit = |number: usize| {
        let report = report.clone();
        guest.remote.with_connection(guest.id, move |_| Ok(report.send(number)?))
    };
    (0..VISITS).for_each(|number| visit(number).unwrap());
    let error = visit(VISITS).unwrap_err();
    assert!(error.is_full());
    assert!(!house.handle().pause(guest.id), "it would wait among them");
    // What is sent has a bound of its own.
    house.handle().send(guest.id, "bytes").unwrap();
    gate.open();
    (0..VISITS).for_each(|number| assert_eq!(runs.next(), number));
    guest.remote.with_connection(guest.id, error.into_closure()).unwrap();
    assert_eq!(runs.next(), VISITS);
    drop(guest);
    house.server.stop();
}

/// Uses the server when it is dropped, and says so.
struct Dropped(ServerHandle, Sender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        for connection in self.0.connections() {
            let _closed = self.0.send(connection.id, "dropped");
        }
        self.1.send(()).unwrap();
    }
}

#[test]
fn visits_that_a_closing_connection_does_not_come_to_are_dropped_unrun_and_with_no_lock_held() {
    let house = House::open(|builder| builder);
    let ran = Arc::new(AtomicUsize::new(0));
    let ends: [fn(&mut Conn); 5] = [
        |conn| conn.close(),
        |conn| conn.abort(),
        |conn| assert!(conn.server().close(conn.id())),
        |conn| assert!(conn.server().abort(conn.id())),
        |_| panic!("this closes it too"),
    ];
    for (number, end) in ends.into_iter().enumerate() {
        let (report, dropped) = events();
        let guest = house.guest();
        let gate = guest.keep_busy();
        let run = move |conn: &mut Conn| {
            end(conn);
            Ok(())
        };
        guest.remote.with_connection(guest.id, run).unwrap();
        for _ in 0..10 {
            let (ran, dropped) = (Arc::clone(&ran), Dropped(house.handle().clone(), report.clone()));
            let visit = move |_: &mut Conn| {
                let _dropped = &dropped;
                ran.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            guest.remote.with_connection(guest.id, visit).unwrap();
        }
        gate.open();
        (0..10).for_each(|_| dropped.next());
        // A close from the handle comes after what was there before it.
        let expected = if number >= 2 { 10 } else { 0 };
        assert_eq!(ran.load(Ordering::Relaxed), expected, "{number}");
        house.closed();
        drop(guest);
        eventually("it is gone", || house.handle().connections().count() == 0);
    }
    house.server.stop();
}
