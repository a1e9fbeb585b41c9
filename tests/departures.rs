//! The end of a connection: what came before it is received, and what was sent last is delivered or known to be lost.

#![allow(clippy::unit_arg)]

mod common;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backroom::{
    CloseReason, Connection, ConnectionId, Framing, Limits, Listener, OutcomeKind, SendError, Server, ServerBuilder,
    Timeout, WhenQueueFull, stage,
};
use common::house::{House, Told, slow_client, small_buffers};
use common::{Client, Events, Gate, PATIENCE, Running, TempDir, assert_balanced, events, eventually, run};
use crossbeam_channel::Sender;

type Builder = ServerBuilder<String, String, (), (), stage::Callbacks>;
type Conn = Connection<String, String>;

/// A server that is asked for lines, over TCP and over a Unix socket.
struct Lines {
    server: Running,
    received: Arc<AtomicUsize>,
    closed: Events<CloseKind>,
    greeted: Events<ConnectionId>,
    dir: TempDir,
}

/// What can be compared of a reason.
#[derive(Debug, PartialEq, Eq)]
enum CloseKind {
    Client,
    Server,
    CallbackFailed,
    TimedOut(Timeout),
    Io(io::ErrorKind),
    Other(String),
}

impl CloseKind {
    fn of(reason: &CloseReason) -> CloseKind {
        match reason {
            CloseReason::Client => CloseKind::Client,
            CloseReason::Server => CloseKind::Server,
            CloseReason::CallbackFailed(_) => CloseKind::CallbackFailed,
            CloseReason::TimedOut(timeout) => CloseKind::TimedOut(*timeout),
            CloseReason::Io(error) => CloseKind::Io(error.kind()),
            other => CloseKind::Other(other.to_string()),
        }
    }

    fn is_gone(&self) -> bool {
        matches!(self, CloseKind::Io(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset))
    }
}

impl Lines {
    fn open(
        test: &str,
        greeting: impl Fn(&mut Conn) -> anyhow::Result<()> + Send + Sync + 'static,
        answer: impl Fn(&mut Conn, &[u8]) -> anyhow::Result<()> + Send + Sync + 'static,
        configure: impl FnOnce(Builder) -> Builder,
    ) -> Lines {
        let dir = TempDir::new(test);
        let received = Arc::new(AtomicUsize::new(0));
        let ((tell, closed), (greet, greeted)) = (events(), events());
        let count = Arc::clone(&received);
        let builder = Server::builder()
            .framing(Framing::lines())
            .listen(Listener::tcp("127.0.0.1:0"))
            .listen(Listener::unix(dir.join("lines")))
            .on_connect(move |conn: &mut Conn| {
                greet.send(conn.id())?;
                greeting(conn)
            })
            .on_receive(move |conn, line| {
                count.fetch_add(1, Ordering::SeqCst);
                answer(conn, line)
            })
            .on_task(|_cx, line: String| Ok(line))
            .on_finish(|conn, done| Ok(conn.send(done.into_result()? + "\n")?))
            .on_close(move |_conn, reason| Ok(tell.send(CloseKind::of(reason))?));
        let server = run(configure(builder).build().unwrap());
        Lines { server, received, closed, greeted, dir }
    }

    /// A client over each transport.
    fn clients(&self) -> [Box<dyn Peer>; 2] {
        let tcp = TcpStream::connect(self.server.addr()).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        let unix = UnixStream::connect(self.dir.join("lines")).unwrap();
        unix.set_read_timeout(Some(PATIENCE)).unwrap();
        [Box::new(tcp), Box::new(unix)]
    }

    fn received(&self) -> usize {
        self.received.swap(0, Ordering::SeqCst)
    }
}

trait Peer: Read + Write + Send {
    /// Returns once something is here, which stays unread: with it, closing is a reset.
    fn wait_unread(&self);
}

impl Peer for TcpStream {
    fn wait_unread(&self) {
        assert_eq!(self.peek(&mut [0]).unwrap(), 1);
    }
}

impl Peer for UnixStream {
    fn wait_unread(&self) {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        assert_eq!(poll(&mut fds, None).unwrap(), 1);
    }
}

const LINES: usize = 3000;

fn lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

#[test]
fn all_that_a_client_sent_before_it_closed_is_received_though_no_answer_can_be_sent() {
    let gate = Gate::default();
    let held = gate.clone();
    let site = Lines::open(
        "all_sent",
        move |_| Ok(held.pass()),
        |conn, line| Ok(conn.send([line, b"\n"].concat())?),
        |builder| builder,
    );
    for mut client in site.clients() {
        client.write_all(&lines(LINES)).unwrap();
        drop(client);
    }
    gate.open();
    for _ in 0..2 {
        let reason = site.closed.next();
        assert!(reason.is_gone(), "{reason:?}");
    }
    assert_eq!(site.received(), 2 * LINES);
    assert_eq!(site.server.handle.stats().closed.undelivered, 2);
    site.server.stop();
}

#[test]
fn all_is_received_of_a_client_that_resets_while_its_tasks_hold_the_reading_back() {
    for when_full in [WhenQueueFull::Defer, WhenQueueFull::Refuse] {
        let gate = Gate::default();
        let held = gate.clone();
        let (run, done) = events();
        let site = Lines::open(
            "held_back",
            |conn| Ok(conn.send("hello\n")?),
            move |conn, line| {
                let (held, run, line) = (held.clone(), run.clone(), String::from_utf8_lossy(line).into_owned());
                conn.run(
                    move || {
                        held.pass();
                        run.send(line).expect("the test waits");
                    },
                    |conn, _| Ok(conn.send("done\n")?),
                )?;
                Ok(())
            },
            |builder| builder.max_tasks_in_flight(2).queue_capacity(4).task_worker_num(1).when_queue_full(when_full),
        );
        for mut client in site.clients() {
            client.wait_unread();
            client.write_all(&lines(50)).unwrap();
        }
        gate.open();
        let mut ran: Vec<usize> = (0..100).map(|_| done.next().parse().unwrap()).collect();
        ran.sort_unstable();
        assert_eq!(ran, (0..50).flat_map(|n| [n, n]).collect::<Vec<_>>());
        for _ in 0..2 {
            let reason = site.closed.next();
            assert!(reason.is_gone(), "{reason:?}");
        }
        assert_eq!(site.received(), 100);
        site.server.stop();
    }
}

#[test]
fn all_is_received_of_a_client_that_resets_while_its_connection_is_paused() {
    let site = Lines::open(
        "paused",
        |conn| {
            conn.pause();
            Ok(conn.send("hello\n")?)
        },
        |conn, line| Ok(conn.send(line)?),
        |builder| builder,
    );
    let ids: Vec<_> = site
        .clients()
        .into_iter()
        .map(|mut client| {
            client.wait_unread();
            client.write_all(&lines(LINES)).unwrap();
            site.greeted.next()
        })
        .collect();
    for id in ids {
        // The worker has noticed that the client is gone, and waits all the same.
        eventually("nothing can be sent any more", || site.server.handle.send(id, "?") == Err(SendError::Closed));
        assert_eq!(site.received(), 0);
        assert!(site.server.handle.resume(id));
        let reason = site.closed.next();
        assert!(reason.is_gone(), "{reason:?}");
        assert_eq!(site.received(), LINES);
    }
    site.server.stop();
}

#[test]
fn a_paused_connection_whose_client_is_gone_is_idle() {
    let site = Lines::open(
        "paused_idle",
        |conn| {
            conn.pause();
            Ok(conn.send("hello\n")?)
        },
        |_, _| Ok(()),
        |builder| builder.limits(Limits::new().idle_timeout(Duration::from_millis(200))),
    );
    for client in site.clients() {
        client.wait_unread();
        drop(client);
        let reason = site.closed.next();
        assert!(reason.is_gone() || reason == CloseKind::TimedOut(Timeout::Idle), "{reason:?}");
    }
    site.server.stop();
}

#[test]
fn a_callback_that_fails_by_itself_closes_the_connection_of_a_client_that_is_gone_too() {
    let site = Lines::open(
        "fails",
        |conn| {
            conn.pause();
            Ok(conn.send("hello\n")?)
        },
        |conn, line| {
            let _ = conn.send("?");
            Ok(anyhow::ensure!(line != b"stop", "told to stop"))
        },
        |builder| builder,
    );
    for mut client in site.clients() {
        client.wait_unread();
        client.write_all(&lines(2500)).unwrap();
        client.write_all(b"stop\n").unwrap();
        client.write_all(&lines(100)).unwrap();
    }
    for id in [site.greeted.next(), site.greeted.next()] {
        eventually("nothing can be sent any more", || site.server.handle.send(id, "?") == Err(SendError::Closed));
        site.server.handle.resume(id);
        assert_eq!(site.closed.next(), CloseKind::CallbackFailed);
        assert_eq!(site.received(), 2501);
    }
    site.server.stop();
}

#[test]
fn a_client_that_only_shuts_down_its_receiving_half_is_heard_until_it_ends() {
    let site = Lines::open("deaf", |_| Ok(()), |conn, line| Ok(conn.send(line)?), |builder| builder);
    let mut client = UnixStream::connect(site.dir.join("lines")).unwrap();
    client.shutdown(Shutdown::Read).unwrap();
    for round in 1..=3 {
        client.write_all(&lines(100)).unwrap();
        eventually("all lines are received", || site.received.load(Ordering::SeqCst) == round * 100);
    }
    drop(client);
    let reason = site.closed.next();
    assert!(reason.is_gone(), "{reason:?}");
    site.server.stop();
}

#[test]
fn everything_but_sending_goes_on_for_a_client_that_is_gone() {
    let house = House::open_with(
        |builder| builder.limits(Limits::new().max_frame(1 << 20)),
        |conn| {
            conn.pause();
            conn.send("hello\n").unwrap();
        },
    );
    let mut guest = house.guest();
    guest.client.socket.get_ref().wait_unread();
    guest.client.send("one\ntwo\n");
    let (id, remote, client) = (guest.id, guest.remote.clone(), guest.client);
    let _ = client.socket.into_inner();
    eventually("nothing can be sent any more", || house.handle().send(id, "?") == Err(SendError::Closed));
    assert_eq!(house.handle().broadcast("?").refused, [(id, SendError::Closed)]);
    let (tell, told) = events();
    remote
        .with_connection(id, move |conn| {
            assert_eq!(conn.send("?"), Err(SendError::Closed));
            let later = tell.clone();
            conn.after(Duration::from_millis(1), move |conn| {
                later.send("timer")?;
                let finish = later.clone();
                conn.task_then(common::house::job(|_, _| ()), move |conn, done| {
                    assert_eq!(done.outcome().kind(), OutcomeKind::Done);
                    finish.send("finish")?;
                    Ok(conn.resume())
                })?;
                Ok(())
            });
            Ok(tell.send("visit")?)
        })
        .unwrap();
    assert_eq!([told.next(), told.next(), told.next()], ["visit", "timer", "finish"]);
    assert_eq!([house.told(), house.told()], ["one", "two"].map(|line| Told::Frame(line.into())));
    let reason = house.closed();
    assert!(reason.starts_with("Io("), "{reason}");
    let tasks = house.server.stop().tasks;
    assert_balanced(&tasks);
    assert_eq!((tasks.done, tasks.delivered, tasks.finish_errors), (1, 1, 0));
}

/// What is sent last does not fit into the buffers of the kernel.
const LONG: usize = 8 << 20;

/// A server whose clients are sent that when they ask for it, and closed.
fn long_goodbye(
    test: &str,
    send: impl Fn(&mut Conn) -> anyhow::Result<()> + Send + Sync + 'static,
    configure: impl FnOnce(Builder) -> Builder,
) -> Lines {
    Lines::open(
        test,
        |_| Ok(()),
        move |conn, _| {
            send(conn)?;
            Ok(conn.close())
        },
        |builder| {
            let limits = Limits::new().max_outbox(2 * LONG).write_timeout(Duration::from_millis(300));
            configure(builder.limits(limits).socket_options(small_buffers()))
        },
    )
}

#[test]
fn a_close_whose_last_bytes_are_not_taken_says_so_and_ends_with_a_reset() {
    let site = long_goodbye("not_taken", |conn| Ok(conn.send(vec![b'x'; LONG])?), |builder| builder);
    let mut client = slow_client(site.server.addr());
    client.send("send\n");
    assert_eq!(site.closed.next(), CloseKind::TimedOut(Timeout::Write));
    let (bytes, is_reset) = client.until_closed();
    assert!(is_reset && bytes.len() < LONG, "{} bytes, reset: {is_reset}", bytes.len());
    let closed = site.server.handle.stats().closed;
    assert_eq!((closed.write_timeout, closed.server, closed.undelivered, closed.total()), (1, 0, 1, 1));
    site.server.stop();
}

#[test]
fn a_close_whose_file_has_become_shorter_says_so_and_ends_with_a_reset() {
    let dir = TempDir::new("shorter_file");
    let path = dir.join("file");
    fs::write(&path, vec![b'x'; LONG]).unwrap();
    let opened = path.clone();
    let site =
        long_goodbye("shorter", move |conn| Ok(conn.send_file(File::open(&opened)?, 0, None)?), |builder| builder);
    let mut client = slow_client(site.server.addr());
    client.send("send\n");
    client.bytes(1);
    File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
    let (bytes, is_reset) = client.until_closed();
    assert!(is_reset && bytes.len() < LONG, "{} bytes, reset: {is_reset}", bytes.len());
    assert_eq!(site.closed.next(), CloseKind::Io(io::ErrorKind::UnexpectedEof));
    let closed = site.server.handle.stats().closed;
    assert_eq!((closed.io, closed.server, closed.undelivered), (1, 0, 1));
    site.server.stop();
}

#[test]
fn what_came_before_a_file_failed_is_received_and_then_the_client_is_closed() {
    let dir = TempDir::new("failed_file");
    let path = dir.join("file");
    fs::write(&path, vec![b'x'; LONG]).unwrap();
    let opened = path.clone();
    let site = Lines::open(
        "failed",
        |_| Ok(()),
        move |conn, line| match line {
            b"file" => Ok(conn.send_file(File::open(&opened)?, 0, None)?),
            line => Ok(conn.send(line)?),
        },
        |builder| builder.socket_options(small_buffers()),
    );
    let mut client = slow_client(site.server.addr());
    client.send("file\n");
    client.bytes(1);
    File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
    client.send(lines(10));
    let (_, is_reset) = client.until_closed();
    assert!(is_reset);
    assert_eq!(site.closed.next(), CloseKind::Io(io::ErrorKind::UnexpectedEof));
    assert_eq!(site.received(), 11);
    site.server.stop();
}

#[test]
fn an_abort_and_the_deadline_of_a_shutdown_cut_a_close_short_and_are_counted_so() {
    let patient = |builder: Builder| {
        let limits = Limits::new().max_outbox(2 * LONG).write_timeout(PATIENCE);
        builder.limits(limits)
    };
    let site = long_goodbye("cut_short", |conn| Ok(conn.send(vec![b'x'; LONG])?), patient);
    let mut aborted = slow_client(site.server.addr());
    aborted.send("send\n");
    aborted.bytes(1);
    site.server.handle.abort(site.greeted.next());
    assert_eq!(site.closed.next(), CloseKind::Other("aborted by the server".into()));
    assert!(aborted.until_closed().1);

    let mut late = slow_client(site.server.addr());
    late.send("send\n");
    late.bytes(1);
    let Lines { server, closed, .. } = site;
    let handle = server.handle.clone();
    server.stop_within(Duration::from_millis(100));
    assert_eq!(closed.next(), CloseKind::Other("the server shuts down".into()));
    assert!(late.until_closed().1);
    assert_eq!(handle.stats().closed.undelivered, 2);
}

#[test]
fn who_gets_everything_is_not_counted_as_undelivered() {
    let site = long_goodbye("everything", |conn| Ok(conn.send(vec![b'x'; LONG])?), |builder| builder);
    let mut client = slow_client(site.server.addr());
    client.send("send\n");
    let (bytes, is_reset) = client.until_closed();
    assert_eq!((bytes.len(), is_reset), (LONG, false));
    assert_eq!(site.closed.next(), CloseKind::Server);
    assert_eq!(site.server.handle.stats().closed.undelivered, 0);
    site.server.stop();
}

/// A server with such limits that says by which time a client is closed.
fn timed(test: &str, limits: Limits, tell: Sender<Timeout>) -> Lines {
    let say = move |conn: &mut Conn, timeout: Timeout| {
        tell.send(timeout)?;
        Ok(conn.send(format!("closed by {timeout:?}\n"))?)
    };
    Lines::open(test, |_| Ok(()), |conn, line| Ok(conn.send(line)?), |builder| builder.limits(limits).on_timeout(say))
}

#[test]
fn a_connection_that_a_timeout_closes_may_say_something_last() {
    let short = Duration::from_millis(150);
    for (limits, timeout, says) in [
        (Limits::new().frame_timeout(short), Timeout::Frame, "half a line"),
        (Limits::new().idle_timeout(short), Timeout::Idle, ""),
        (Limits::new().silence_timeout(short), Timeout::Silence, ""),
        (Limits::new().max_lifetime(short), Timeout::Lifetime, ""),
    ] {
        let (tell, told) = events();
        let site = timed("may_say", limits, tell);
        let mut client = site.server.client();
        client.send(says);
        assert_eq!(client.rest(), format!("closed by {timeout:?}\n"));
        assert_eq!((told.next(), site.closed.next()), (timeout, CloseKind::TimedOut(timeout)));
        site.server.stop();
    }
}

#[test]
fn a_client_that_takes_nothing_is_told_nothing_when_that_closes_it() {
    let (tell, told) = events();
    let limits = Limits::new().max_outbox(2 * LONG).write_timeout(Duration::from_millis(150));
    let say = move |_: &mut Conn, timeout| Ok(tell.send(timeout)?);
    let site = Lines::open(
        "takes_nothing",
        |_| Ok(()),
        |conn, _| Ok(conn.send(vec![b'x'; LONG])?),
        |builder| builder.limits(limits).socket_options(small_buffers()).on_timeout(say),
    );
    let mut client = slow_client(site.server.addr());
    client.send("send\n");
    assert_eq!(site.closed.next(), CloseKind::TimedOut(Timeout::Write));
    assert_eq!(told.all_so_far(), []);
    site.server.stop();
}

#[test]
fn last_words_that_fail_or_panic_or_abort_still_end_the_connection() {
    type Say = fn(&mut Conn) -> anyhow::Result<()>;
    let limits = Limits::new().idle_timeout(Duration::from_millis(50));
    let ends: [(Say, CloseKind); 3] = [
        (|_| anyhow::bail!("no words"), CloseKind::TimedOut(Timeout::Idle)),
        (|_| panic!("no words"), CloseKind::Other("a callback panicked: no words".into())),
        (|conn| Ok(conn.abort()), CloseKind::Other("aborted by the server".into())),
    ];
    for (end, reason) in ends {
        let say = move |conn: &mut Conn, _| end(conn);
        let site =
            Lines::open("last", |_| Ok(()), |_, _| Ok(()), |builder| builder.limits(limits.clone()).on_timeout(say));
        let mut client = site.server.client();
        assert_eq!(client.rest(), "");
        assert_eq!(site.closed.next(), reason);
        site.server.stop();
    }
}

/// A server that refuses the first line, and closes.
fn refusing(test: &str) -> Lines {
    let refuse = |conn: &mut Conn, _: &[u8]| {
        conn.send("no\n")?;
        Ok(conn.close())
    };
    Lines::open(test, |_| Ok(()), refuse, |builder| builder)
}

#[test]
fn a_client_that_pauses_while_it_still_sends_reads_the_answer_all_the_same() {
    let site = refusing("pauses");
    for mut client in site.clients() {
        client.write_all(b"begin\n").unwrap();
        // The pauses are what is tested.
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(400));
            client.write_all(&[b'x'; 100_000]).unwrap();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "no\n");
    }
    site.server.stop();
}

#[test]
fn a_client_that_never_stops_sending_is_not_drained_for_ever() {
    let site = refusing("never_stops");
    let mut client = TcpStream::connect(site.server.addr()).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"begin\n").unwrap();
    let piece = vec![b'x'; 1 << 20];
    let sent = (0..200).take_while(|_| client.write_all(&piece).is_ok()).count();
    assert!((32..200).contains(&sent), "{sent} MiB were taken");
    let start = Instant::now();
    site.server.stop();
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_client_that_sends_nothing_more_holds_its_thread_for_a_moment_only() {
    let site = refusing("a_moment");
    let mut client: Client = site.server.client();
    client.send("begin\n");
    assert_eq!(client.line(), "no");
    let start = Instant::now();
    eventually("the place is free", || site.server.handle.stats().connections == 0);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    site.server.stop();
}

#[test]
fn a_client_that_has_closed_its_sending_half_is_kept_as_long_as_that_is_wanted() {
    let limits = |time| Limits::new().half_closed_time(time);
    let later = |conn: &mut Conn, _: &[u8]| {
        conn.after(Duration::from_millis(50), |conn| Ok(conn.send("by a timer\n")?));
        let (server, id) = (conn.server().clone(), conn.id());
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            server.send(id, "by the handle\n")
        });
        Ok(())
    };
    let ask = |limits: Limits| {
        let site = Lines::open("half", |_| Ok(()), later, |builder| builder.limits(limits));
        let mut client = site.server.client();
        client.send("hello\n");
        client.end_sending();
        let begun = Instant::now();
        let said = client.rest();
        assert_eq!(site.closed.next(), CloseKind::Client);
        site.server.stop();
        (said, begun.elapsed())
    };
    assert_eq!(ask(limits(Duration::ZERO)).0, "");
    let (said, time) = ask(limits(Duration::from_millis(400)));
    assert_eq!(said, "by a timer\nby the handle\n");
    assert!(time >= Duration::from_millis(350), "{time:?}");
}

#[test]
fn a_client_that_is_gone_altogether_is_not_kept() {
    let limits = Limits::new().half_closed_time(PATIENCE);
    let site = Lines::open("gone", |_| Ok(()), |_, _| Ok(()), |builder| builder.limits(limits));
    let client = UnixStream::connect(site.dir.join("lines")).unwrap();
    drop(client);
    assert_eq!(site.closed.next(), CloseKind::Client);
    site.server.stop();
}

#[test]
fn a_paused_connection_that_cannot_be_sent_anything_is_idle() {
    let dir = TempDir::new("paused_file");
    let path = dir.join("file");
    fs::write(&path, vec![b'x'; LONG]).unwrap();
    let opened = path.clone();
    let site = Lines::open(
        "paused_failed",
        |_| Ok(()),
        move |conn, _| {
            conn.pause();
            Ok(conn.send_file(File::open(&opened)?, 0, None)?)
        },
        |builder| {
            builder.socket_options(small_buffers()).limits(Limits::new().idle_timeout(Duration::from_millis(300)))
        },
    );
    let mut client = slow_client(site.server.addr());
    client.send("send\n");
    client.bytes(1);
    File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
    assert!(client.until_closed().1);
    assert_eq!(site.closed.next(), CloseKind::Io(io::ErrorKind::UnexpectedEof));
    site.server.stop();
}
