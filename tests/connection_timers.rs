//! The timers of a connection.

mod common;

use std::cell::Cell;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::house::{Conn, House, SHORT, Told, job};
use common::{Gate, PATIENCE, events, eventually, log_from, succeeds};
use crossbeam_channel::Sender;

const TICK: Duration = Duration::from_millis(10);

#[test]
fn a_closure_runs_once_and_after_its_time() {
    let house = House::open(|builder| builder);
    let guest = house.guest();
    let (report, ran) = events();
    let set = Instant::now();
    guest.on_worker(move |conn| {
        for (name, times) in [("late", 3), ("soon", 1), ("later", 2), ("never", u32::MAX)] {
            let report = report.clone();
            conn.after(SHORT * times, move |_| Ok(report.send((name, Instant::now()))?));
        }
    });
    for (name, times) in [("soon", 1), ("later", 2), ("late", 3)] {
        let (ran, at) = ran.next();
        assert_eq!(ran, name);
        assert!(at - set >= SHORT * times, "{name}: {:?}", at - set);
        // Not exactly, on a machine that has much to do.
        assert!(at - set < SHORT * times + PATIENCE / 6, "{name}: {:?}", at - set);
    }
    guest.turns();
    assert_eq!(ran.all_so_far(), []);
    drop(guest);
    house.server.stop();
}

#[test]
fn a_period_repeats_its_closure_and_leaves_out_what_it_missed() {
    const BLOCKED: u32 = 10;
    let house = House::open(|builder| builder);
    let guest = house.guest();
    let (report, ran) = events();
    let set = Instant::now();
    guest.on_worker(move |conn| {
        let mut firings = 0;
        conn.every(TICK, move |_| {
            report.send(Instant::now())?;
            firings += 1;
            if firings == 3 {
                std::thread::sleep(TICK * BLOCKED);
            }
            Ok(())
        });
    });
    for firing in 1..=10 {
        let earliest = TICK * if firing <= 3 { firing } else { firing + BLOCKED };
        let at = ran.next() - set;
        assert!(at >= earliest, "firing {firing} after {at:?}");
    }
    drop(guest);
    house.server.stop();
}

#[test]
fn a_period_of_nothing_is_taken_for_a_millisecond() {
    let house = House::open(|builder| builder);
    let guest = house.guest();
    let (report, ran) = events();
    let set = Instant::now();
    guest.on_worker(move |conn| {
        conn.every(Duration::ZERO, move |_| Ok(report.send(Instant::now())?));
    });
    for firing in 1..=50 {
        assert!(ran.next() - set >= Duration::from_millis(firing));
    }
    drop(guest);
    house.server.stop();
}

#[test]
fn clearing_a_timer_says_whether_it_would_have_run() {
    let house = House::open(|builder| builder);
    let guest = house.guest();
    let (report, results) = events();
    guest.on_worker(move |conn| {
        let tell = report.clone();
        let pending = conn.after(PATIENCE, |_| panic!("it was cleared"));
        assert!(conn.clear_timer(pending));
        assert!(!conn.clear_timer(pending), "once is enough");

        let other = conn.every(PATIENCE, |_| panic!("it was cleared"));
        let own = Rc::new(Cell::new(None));
        let id = Rc::clone(&own);
        own.set(Some(conn.after(Duration::ZERO, move |conn| {
            // Itself, which runs for the only time, and another.
            tell.send(("once", conn.clear_timer(id.get().unwrap())))?;
            tell.send(("another", conn.clear_timer(other)))?;
            Ok(())
        })));
        let own = Rc::new(Cell::new(None));
        let id = Rc::clone(&own);
        own.set(Some(conn.every(TICK, move |conn| {
            let own = id.get().unwrap();
            report.send(("itself", conn.clear_timer(own)))?;
            report.send(("itself again", conn.clear_timer(own)))?;
            let report = report.clone();
            conn.after(3 * TICK, move |conn| Ok(report.send(("itself later", conn.clear_timer(own)))?));
            Ok(())
        })));
    });
    for expected in
        [("once", false), ("another", true), ("itself", true), ("itself again", false), ("itself later", false)]
    {
        assert_eq!(results.next(), expected);
    }
    guest.turns();
    assert_eq!(results.all_so_far(), [], "it has cleared itself");
    drop(guest);
    house.server.stop();
}

#[test]
fn a_frame_or_a_visit_may_clear_a_timer_that_ticks() {
    let house = House::open(|builder| builder);
    let guest = house.guest();
    let (report, ticks) = events();
    let timer = guest.on_worker(move |conn| conn.every(Duration::ZERO, move |_| Ok(report.send(())?)));
    (0..3).for_each(|_| ticks.next());
    assert!(guest.on_worker(move |conn| conn.clear_timer(timer)));
    ticks.all_so_far();
    guest.turns();
    assert_eq!(ticks.all_so_far(), []);
    drop(guest);
    house.server.stop();
}

/// Says when it is dropped.
struct Dropped(Sender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn timers_keep_no_connection_open_and_are_dropped_unrun_with_it() {
    let house = House::open(|builder| builder);
    let ends: [fn(&mut Conn); 3] = [|_| (), |conn| conn.close(), |conn| conn.abort()];
    for end in ends {
        let (report, dropped) = events();
        let guest = house.guest();
        guest.on_worker(move |conn| {
            let held = Rc::new(Dropped(report));
            let also = Rc::clone(&held);
            conn.after(PATIENCE, move |_| panic!("it holds {}", Rc::strong_count(&held)));
            conn.every(PATIENCE, move |_| panic!("it holds {}", Rc::strong_count(&also)));
            end(conn);
        });
        // Where the server does not close, the client does.
        drop(guest);
        dropped.next();
    }
    let mut reasons = [house.closed(), house.closed(), house.closed()];
    reasons.sort();
    assert_eq!(reasons, ["Aborted", "Client", "Server"]);
    house.server.stop();
}

#[test]
fn a_timer_that_closes_its_connection_is_the_last_thing_that_runs() {
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    guest.on_worker(|conn| {
        conn.after(TICK, |conn| {
            conn.send("time is over\n")?;
            conn.close();
            Ok(())
        });
        conn.after(TICK, |_| panic!("it is closed"));
        conn.every(TICK, |_| panic!("it is closed"));
    });
    assert_eq!(guest.client.rest(), "time is over\n");
    assert_eq!(house.told(), Told::Closed("Server".into()));
    house.server.stop();
}

#[test]
fn timers_run_while_the_client_is_silent_and_while_tasks_are_in_flight_and_may_submit_tasks() {
    let house = House::open(|builder| builder.task_worker_num(2));
    let mut guest = house.guest();
    let gate = Gate::default();
    let held = gate.clone();
    guest.task_then(job(move |_, _| held.pass()), |conn| Ok(conn.send("the slow one\n")?));
    guest.on_worker(|conn| {
        conn.every(TICK, |conn| {
            conn.task_then(job(|_, _| ()), |conn, _| Ok(conn.send("tick\n")?))?;
            Ok(())
        });
    });
    (0..5).for_each(|_| assert_eq!(guest.client.line(), "tick"));
    gate.open();
    while guest.client.line() == "tick" {}
    assert_eq!(guest.client.line(), "tick", "and goes on");
    drop(guest);
    house.server.stop();
}

#[test]
fn neither_do_frames_without_end_hold_timers_up_nor_timers_frames() {
    let house = House::open(|builder| builder);
    let guest = house.guest();
    let mut socket = guest.client.socket.get_ref().try_clone().unwrap();
    let (report, ticks) = events();
    let done = Gate::default();
    let stop = done.clone();
    let flood = std::thread::spawn(move || {
        let lines = "x\n".repeat(10_000);
        while socket.write_all(lines.as_bytes()).is_ok() {}
        stop.pass();
    });
    guest.on_worker(move |conn| {
        // Slower than its period, so that one is always due.
        conn.every(Duration::ZERO, move |_| {
            std::thread::sleep(Duration::from_millis(2));
            Ok(report.send(())?)
        });
    });
    for _ in 0..20 {
        // Not those that are here already.
        let _ = (ticks.all_so_far(), house.told_so_far());
        ticks.next();
        assert_eq!(house.told(), Told::Frame("x".into()));
    }
    house.handle().abort(guest.id);
    done.open();
    flood.join().unwrap();
    house.server.stop();
}

#[test]
fn an_error_of_a_timer_is_logged_and_a_panic_closes_its_connection_and_no_other() {
    let Some(child) = in_child!() else {
        let logged = log_from(log::LevelFilter::Warn);
        let house = House::open(|builder| builder);
        let (mut guest, mut other) = (house.guest(), house.guest());
        guest.on_worker(|conn| {
            conn.every(TICK, |conn| {
                conn.send("tick\n")?;
                anyhow::bail!("the clock is wrong")
            });
        });
        // It goes on all the same.
        (0..3).for_each(|_| assert_eq!(guest.client.line(), "tick"));
        let lines = logged.lock().join("\n");
        assert!(lines.contains("a timer failed: the clock is wrong"), "{lines}");

        guest.on_worker(|conn| {
            conn.after(TICK, |_| panic!("the clock fell down"));
        });
        assert_eq!(house.told(), Told::Closed("Panicked(\"the clock fell down\")".into()));
        other.on_worker(|conn| conn.send("well\n").unwrap());
        assert_eq!(other.client.line(), "well");
        drop((guest, other));
        house.server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn a_timer_does_not_make_a_client_that_was_active_a_moment_ago_an_idle_one() {
    let house = House::open(|builder| builder);
    // Again if the machine took longer than the client may.
    eventually("it was in time", || {
        let mut guest = house.guest();
        guest.client.send("hello\n");
        assert_eq!(house.told(), Told::Frame("hello".into()));
        let begun = Instant::now();
        guest.on_worker(|conn| {
            conn.after(TICK, |conn| {
                conn.send("bye\n")?;
                conn.close();
                Ok(())
            });
        });
        assert_eq!(guest.client.rest(), "bye\n");
        assert_eq!(house.told(), Told::Closed("Server".into()));
        // It may still send for a second, and is not reset for it.
        let taken = (0..10).all(|_| guest.client.socket.get_mut().write_all(b"too late\n").is_ok());
        let in_time = begun.elapsed() < Duration::from_millis(900);
        assert!(taken || !in_time);
        in_time
    });
    house.server.stop();
}
