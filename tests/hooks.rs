//! The program's own code where a server starts and ends: it may hang or panic, and cannot wait for what waits for it.

#![allow(clippy::unit_arg)]

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use backroom::{
    Connection, Framing, JoinError, Later, Observer, Server, ServerBuilder, ServerHandle, ShutdownReport, TaskEnded,
    TaskError, TaskOptions, TaskPool, WaitError, stage,
};
use common::{Gate, PATIENCE, Running, events, eventually, run, succeeds};
use crossbeam_channel::Sender;
use parking_lot::Mutex;

/// Runs something when it is dropped.
struct OnDrop(Option<Box<dyn FnOnce() + Send>>);

impl OnDrop {
    fn new(run: impl FnOnce() + Send + 'static) -> OnDrop {
        OnDrop(Some(Box::new(run)))
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        if let Some(run) = self.0.take() {
            run();
        }
    }
}

/// Is told how tasks end.
struct Ends<F>(F);

impl<F: Fn() + Send + Sync> Observer for Ends<F> {
    fn task_ended(&self, _ended: &TaskEnded<'_>) {
        (self.0)();
    }
}

type Builder = ServerBuilder<Option<OnDrop>, (), (), (), stage::Callbacks>;

/// A server that answers a line, and whose `delayed` submits what the test wants, for much later.
fn server(configure: impl FnOnce(Builder) -> Builder, payload: impl FnOnce() -> OnDrop + Send + 'static) -> Server {
    let payload = Mutex::new(Some(payload));
    let builder = Server::builder()
        .framing(Framing::lines())
        .on_receive(move |conn: &mut Connection<Option<OnDrop>, ()>, line| {
            if line == b"delayed" {
                let payload = payload.lock().take().map(|payload| payload());
                conn.with(TaskOptions::new().after(Duration::from_secs(3600))).task_oneway(payload)?;
            }
            Ok(conn.send("ok\n")?)
        })
        .on_task(|_, _| Ok(()));
    configure(builder).bind("127.0.0.1:0").unwrap()
}

const DEADLINE: Duration = Duration::from_millis(300);
/// Half a second more than the deadline is what is promised.
const LATE: Duration = Duration::from_secs(3);

/// Shuts down, and checks that this ends in time, and names what hangs.
fn ends_in_time(running: Running, name: &str) -> ShutdownReport {
    let begun = Instant::now();
    let handle = running.handle.clone();
    let addr = running.addr();
    handle.shutdown(DEADLINE);
    let report = running.ended_with_pending();
    assert!(begun.elapsed() < DEADLINE + LATE, "{:?}", begun.elapsed());
    assert_eq!(report.hooks_running, [name], "{report:?}");
    assert_eq!(handle.wait().unwrap(), report);
    let served = TcpStream::connect(addr).and_then(|mut client| client.read(&mut [0]));
    assert!(!matches!(served, Ok(1)), "nobody is served any more");
    report
}

#[test]
fn a_hook_that_hangs_is_left_behind_at_the_deadline_and_named() {
    let gate = Gate::default();
    let held = || {
        let gate = gate.clone();
        move || gate.pass()
    };
    let hold = held();
    let starts = run(server(|builder| builder.on_start(move |_| Ok(hold())), || OnDrop(None)));
    ends_in_time(starts, "on_start");

    let hold = held();
    let before = run(server(|builder| builder.before_shutdown(move |_| Ok(hold())), || OnDrop(None)));
    assert_eq!(before.client().ask("hello"), "ok");
    ends_in_time(before, "before_shutdown");

    let hold = held();
    let after = run(server(|builder| builder.on_shutdown(move |_| Ok(hold())), || OnDrop(None)));
    ends_in_time(after, "on_shutdown");
    gate.open();
}

#[test]
fn a_shutdown_without_time_does_not_wait_for_a_hook_that_hangs_in_another_with_time() {
    let gate = Gate::default();
    let held = gate.clone();
    let running = run(server(|builder| builder.before_shutdown(move |_| Ok(held.pass())), || OnDrop(None)));
    let mut client = running.client();
    assert_eq!(client.ask("hello"), "ok");
    running.handle.shutdown(PATIENCE);
    assert_eq!(client.ask("hello"), "ok");
    let begun = Instant::now();
    running.handle.shutdown(Duration::ZERO);
    assert_eq!(running.ended().hooks_running, ["before_shutdown"]);
    assert!(begun.elapsed() < LATE, "{:?}", begun.elapsed());
    assert_eq!(client.rest(), "");
    gate.open();
}

#[test]
fn what_hangs_when_a_task_is_cancelled_is_left_behind_at_the_deadline_and_named() {
    let gate = Gate::default();
    let held = gate.clone();
    let dropped = run(server(|builder| builder, move || OnDrop::new(move || held.pass())));
    assert_eq!(dropped.client().ask("delayed"), "ok");
    ends_in_time(dropped, "cancelling");

    let held = gate.clone();
    let observer = Arc::new(Ends(move || held.pass()));
    let observed = run(server(|builder| builder.observer(observer), || OnDrop(None)));
    assert_eq!(observed.client().ask("delayed"), "ok");
    ends_in_time(observed, "cancelling");
    gate.open();
}

#[test]
fn what_hangs_when_a_task_is_given_up_is_left_behind_and_named_by_a_pool_too() {
    let (gate, working) = (Gate::default(), Gate::default());
    let pool = TaskPool::builder()
        .task_worker_num(1)
        .on_task({
            let working = working.clone();
            move |_, _payload: OnDrop| Ok(working.pass())
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task_oneway(OnDrop(None)).unwrap();
    let held = gate.clone();
    submitter.task_oneway(OnDrop::new(move || held.pass())).unwrap();
    let begun = Instant::now();
    let report = pool.shutdown(DEADLINE);
    assert!(begun.elapsed() < DEADLINE + LATE, "{:?}", begun.elapsed());
    assert_eq!((report.hooks_running, report.task_workers_running), (vec!["giving up"], 1));
    gate.open();
    working.open();
}

#[test]
fn a_logger_that_hangs_or_panics_holds_no_shutdown_up() {
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    struct Rough(Gate);
    impl log::Log for Rough {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let text = record.args().to_string();
            if text.contains("shutting down") {
                self.0.pass();
            } else {
                panic!("the logger does not like it: {text}");
            }
        }
        fn flush(&self) {}
    }
    let gate = Gate::default();
    let running = run(server(|builder| builder, || OnDrop(None)));
    log::set_boxed_logger(Box::new(Rough(gate.clone()))).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let mut client = running.client();
    assert_eq!(client.ask("hello"), "ok");
    ends_in_time(running, "before_shutdown");
    gate.open();
}

#[test]
fn a_logger_that_panics_keeps_no_hook_from_running() {
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    struct Broken;
    impl log::Log for Broken {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, _: &log::Record<'_>) {
            panic!("the logger is broken");
        }
        fn flush(&self) {}
    }
    let (tell, told) = events();
    let also_tell = tell.clone();
    let running = run(server(
        |builder| {
            builder
                .before_shutdown(move |_| Ok(tell.send("before")?))
                .on_shutdown(move |_| Ok(also_tell.send("after")?))
        },
        || OnDrop(None),
    ));
    log::set_logger(&Broken).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    running.stop();
    assert_eq!(told.all_so_far(), ["before", "after"]);
}

#[test]
fn a_reply_that_is_dropped_with_its_thread_fails_its_task_and_no_more() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<Later<()>>> = const { std::cell::RefCell::new(None) };
    }
    let (give, given) = events::<Later<()>>();
    let pool = TaskPool::builder()
        .on_task(move |cx, ()| cx.finish_later(|reply| give.send(reply).expect("the test waits")))
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    submitter.task(()).unwrap();
    let reply = given.next();
    let leave = move || {
        KEPT.set(Some(reply));
        // What the library keeps for a thread is made after that, and so is gone before it.
        let other = TaskPool::builder().on_task(|_, ()| Ok(())).build().unwrap();
        other.submitter().task_wait((), PATIENCE).unwrap();
    };
    thread::spawn(leave).join().unwrap();
    common::finish_all(&mut submitter);
    assert_eq!(pool.shutdown(PATIENCE).tasks.failed, 1);
}

/// What those who wait are told.
type Waited = Result<(), JoinError>;

fn wait(handle: &ServerHandle) -> Waited {
    handle.wait().map(drop)
}

#[test]
fn whatever_a_server_runs_cannot_wait_for_its_end_and_is_told_so_at_once() {
    let handle: Arc<OnceLock<ServerHandle>> = Arc::default();
    let (tell, told) = events::<(&str, Waited)>();
    let tell = |name: &'static str| {
        let (tell, handle) = (tell.clone(), Arc::clone(&handle));
        move || tell.send((name, wait(handle.get().expect("it is set")))).expect("the test waits")
    };
    let ended = tell("observer");
    let dropped = tell("payload");
    let (start, before, after) = (tell("on_start"), tell("before_shutdown"), tell("on_shutdown"));
    let server = server(
        |builder| {
            builder
                .observer(Arc::new(Ends(ended)))
                .on_start(move |_| Ok(start()))
                .before_shutdown(move |_| Ok(before()))
                .on_shutdown(move |_| Ok(after()))
        },
        move || OnDrop::new(dropped),
    );
    assert!(handle.set(server.handle()).is_ok());
    let running = run(server);
    assert_eq!(running.client().ask("delayed"), "ok");
    running.stop();
    let mut names = Vec::new();
    for (name, waited) in told.all_so_far() {
        assert_eq!(waited, Err(JoinError::InCallback), "{name}");
        names.push(name);
    }
    names.sort_unstable();
    assert_eq!(names, ["before_shutdown", "observer", "on_shutdown", "on_start", "payload"]);
}

#[test]
fn what_makes_repeated_payloads_and_who_finishes_a_task_later_cannot_wait_either() {
    let (tell, told) = events::<Waited>();
    let (give, given) = events::<Later<()>>();
    let (made, finished) = (tell.clone(), tell);
    let handle: Arc<OnceLock<ServerHandle>> = Arc::default();
    let (make_handle, end_handle) = (Arc::clone(&handle), Arc::clone(&handle));
    let server = Server::builder()
        .framing(Framing::lines())
        .observer(Arc::new(Ends(move || {
            // Twice: by the thread that finishes it, and of the repetition's tasks.
            let _gone = finished.send(wait(end_handle.get().expect("it is set")));
        })))
        .on_receive(move |conn: &mut Connection<bool, ()>, line| {
            if line == b"repeat" {
                let (made, handle) = (made.clone(), Arc::clone(&make_handle));
                conn.task_every(Duration::from_millis(1), move || {
                    let _gone = made.send(wait(handle.get().expect("it is set")));
                    false
                })?;
            } else {
                conn.task(true)?;
            }
            Ok(())
        })
        .on_task(move |cx, later| match later {
            true => cx.finish_later(|reply| give.send(reply).expect("the test waits")),
            false => Ok(()),
        })
        .bind("127.0.0.1:0")
        .unwrap();
    assert!(handle.set(server.handle()).is_ok());
    let running = run(server);
    let mut client = running.client();
    client.send("later\n");
    let reply = given.next();
    thread::spawn(move || reply.finish(())).join().unwrap();
    assert_eq!(told.next(), Err(JoinError::InCallback));
    client.send("repeat\n");
    (0..4).for_each(|_| assert_eq!(told.next(), Err(JoinError::InCallback)));
    drop(client);
    running.stop();
}

#[test]
fn the_timer_cannot_wait_for_tasks_of_its_own_pool() {
    let pool = Arc::new(TaskPool::builder().on_task(|_, number: u32| Ok(number)).build().unwrap());
    let (tell, told): (Sender<_>, _) = events();
    let own = Arc::downgrade(&pool);
    let mut submitter = pool.submitter();
    let repetition = submitter.task_every(Duration::from_millis(1), move || {
        if let Some(pool) = own.upgrade() {
            let mut submitter = pool.submitter();
            let options = TaskOptions::new().after(Duration::from_millis(1));
            let _gone = tell.send(submitter.with(options).task_wait(1, PATIENCE));
        }
        0
    });
    let waited = told.next();
    assert!(matches!(waited, Err(WaitError::NotAccepted(TaskError::InTask))), "{waited:?}");
    repetition.unwrap().stop();
    drop(told);
    eventually("the timer lets go of the pool", || Arc::strong_count(&pool) == 1);
}
