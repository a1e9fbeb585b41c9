//! Each time a connection may take: when it is over, when it is not counted, and what is said of it.

#![allow(clippy::unit_arg)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use backroom::{
    CloseReason, Framing, LengthPrefix, LengthType, Limits, Listener, ProxyProtocol, Server, SocketOptions,
};
use common::house::{House, slow_client, small_buffers};
use common::{Client, Events, Gate, PATIENCE, Running, events, eventually, log_from, run, succeeds};

/// The time that is under test. Far more than a thread of a loaded machine waits for its turn.
const TIME: Duration = Duration::from_millis(200);

/// A server that does what the lines of its clients say.
struct Obedient {
    server: Running,
    /// What its tasks wait for.
    gate: Gate,
    /// Why connections closed.
    closed: Events<String>,
}

fn obedient(limits: Limits) -> Obedient {
    let (gate, (report, closed)) = (Gate::default(), events());
    let task_gate = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .queue_capacity(1)
        .framing(Framing::lines())
        .limits(limits)
        .socket_options(SocketOptions::new().send_buffer(64 * 1024))
        .on_receive(|conn, line| {
            match line {
                b"hush" => {}
                b"pause" => conn.pause(),
                b"protect" => conn.protect(true),
                b"task" => conn.task(()).map(|_| ())?,
                b"ask" => conn.task_then((), |conn, _| Ok(conn.send("done\n")?)).map(|_| ())?,
                b"wait" => conn.task_wait((), PATIENCE)?,
                b"much" => conn.send(vec![b'x'; MUCH])?,
                b"news" => {
                    conn.every(TIME / 8, |conn| Ok(conn.send("news\n")?));
                }
                _ => conn.send([line, b"\n"].concat())?,
            }
            Ok(())
        })
        .on_task(move |_, ()| {
            task_gate.pass();
            Ok(())
        })
        .on_close(move |_, reason| Ok(report.send(format!("{reason:?}"))?))
        .bind("127.0.0.1:0")
        .unwrap();
    Obedient { server: run(server), gate, closed }
}

/// More than the kernel takes for a client that reads nothing.
const MUCH: usize = 16 << 20;

/// None of the times ends within a test.
fn patient() -> Limits {
    Limits::new().max_outbox(MUCH)
}

/// Does this often within the time that is under test, for so many times of it.
fn often(times: u32, mut act: impl FnMut()) {
    let begun = Instant::now();
    while begun.elapsed() < TIME * times {
        act();
        thread::sleep(TIME / 8);
    }
}

#[test]
fn a_frame_that_comes_byte_by_byte_and_is_never_whole_is_closed_by_the_frame_timeout() {
    let Obedient { server, closed, .. } = obedient(patient().frame_timeout(TIME));
    let mut client = server.client();
    let begun = Instant::now();
    let mut reasons = Vec::new();
    while reasons.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it was never closed");
        let _ = client.socket.get_mut().write_all(b"x");
        thread::sleep(Duration::from_millis(3));
        reasons.extend(closed.all_so_far());
    }
    assert!(begun.elapsed() >= TIME);
    assert_eq!(reasons, ["TimedOut(Frame)"]);
    assert_eq!(server.handle.stats().closed.frame_timeout, 1);
    server.stop();
}

#[test]
fn whole_frames_may_come_slowly_one_after_the_other() {
    let Obedient { server, closed, .. } = obedient(patient().frame_timeout(TIME));
    let mut client = server.client();
    // There always is an unfinished one, and none is unfinished for long.
    client.send("x");
    often(5, || client.send("\nx"));
    assert_eq!(closed.all_so_far(), Vec::<String>::new());
    assert_eq!((client.line(), client.line()), ("x".into(), "x".into()));
    drop(client);
    server.stop();
}

/// With a `line` that has the server not read, and what `goes_on` has it read again.
fn is_excused_from_the_frame_timeout(line: &str, goes_on: impl FnOnce(&Obedient)) {
    let obedient = obedient(patient().frame_timeout(TIME));
    let mut client = obedient.server.client();
    client.send(format!("{line}\nhal"));
    eventually("the line is heard", || obedient.server.handle.stats().traffic.bytes_received > 0);
    client.send("f\n");
    thread::sleep(TIME * 2);
    goes_on(&obedient);
    assert_eq!(client.line(), "half");
    drop(client);
    obedient.server.stop();
}

#[test]
fn a_frame_is_not_late_while_its_connection_is_paused() {
    is_excused_from_the_frame_timeout("pause", |obedient| {
        let id = obedient.server.handle.connections().list()[0].id;
        assert!(obedient.server.handle.resume(id));
    });
}

#[test]
fn a_frame_is_not_late_while_the_queue_is_full() {
    is_excused_from_the_frame_timeout("task\ntask", |obedient| obedient.gate.open());
}

#[test]
fn a_frame_is_not_late_while_a_callback_keeps_its_connection_busy() {
    is_excused_from_the_frame_timeout("wait", |obedient| obedient.gate.open());
}

#[test]
fn raw_bytes_have_no_frames_that_could_be_late() {
    let server = Server::builder::<(), ()>()
        .limits(patient().frame_timeout(TIME / 4))
        .on_receive(|conn, bytes| Ok(conn.send([bytes, b"\n"].concat())?))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    for byte in ["a", "b"] {
        client.send(byte);
        assert_eq!(client.line(), byte);
        thread::sleep(TIME);
    }
    assert_eq!(server.handle.stats().connections, 1);
    drop(client);
    server.stop();
}

/// How long after now a connection is closed, and why.
fn closes(closed: &Events<String>) -> (Duration, String) {
    let begun = Instant::now();
    let reason = closed.next();
    (begun.elapsed(), reason)
}

#[test]
fn a_client_of_whom_nothing_is_heard_any_more_is_closed_by_the_idle_timeout() {
    let Obedient { server, closed, .. } = obedient(patient().idle_timeout(TIME));
    let mut soonest = Duration::MAX;
    for count in 1..=3 {
        // It neither sends nor closes, as one whose machine has lost its power.
        let _client = server.client();
        let (after, reason) = closes(&closed);
        assert_eq!(reason, "TimedOut(Idle)");
        assert_eq!(server.handle.stats().closed.idle_timeout, count);
        soonest = soonest.min(after);
    }
    assert!((TIME / 2..TIME * 4).contains(&soonest), "it took {soonest:?}");
    server.stop();
}

#[test]
fn a_connection_is_not_idle_while_bytes_go_either_way() {
    let Obedient { server, closed, .. } = obedient(patient().idle_timeout(TIME));
    let mut talks = server.client();
    often(4, || talks.send("x"));
    assert_eq!(closed.all_so_far(), Vec::<String>::new());
    drop(talks);
    assert_eq!(closed.next(), "Client");

    let mut listens = server.client();
    listens.send("news\n");
    thread::sleep(TIME * 4);
    assert_eq!(closed.all_so_far(), Vec::<String>::new());
    drop(listens);
    server.stop();
}

#[test]
fn a_client_that_says_nothing_is_closed_by_the_silence_timeout_though_it_is_sent_to() {
    let Obedient { server, closed, .. } = obedient(patient().silence_timeout(TIME));
    let mut client = server.client();
    client.send("news\n");
    let (after, reason) = closes(&closed);
    assert_eq!(reason, "TimedOut(Silence)");
    assert!(after >= TIME / 2, "after {after:?}");
    assert!(client.rest().starts_with("news\nnews\n"));
    assert_eq!(server.handle.stats().closed.silence_timeout, 1);

    let mut talks = server.client();
    often(4, || talks.send("x"));
    assert_eq!(closed.all_so_far(), Vec::<String>::new());
    drop(talks);
    server.stop();
}

#[test]
fn while_the_server_is_at_work_a_connection_is_neither_idle_nor_silent_and_its_time_begins_anew_after() {
    let excuses = |limits: Limits, timeout: &str, line: &str| {
        let Obedient { server, gate, closed } = obedient(limits);
        let mut client = server.client();
        client.send(line);
        eventually("the line is heard", || server.handle.stats().traffic.bytes_received > 0);
        // Between two of the moments at which a careless clock would look.
        thread::sleep(TIME * 5 / 2);
        assert_eq!(closed.all_so_far(), Vec::<String>::new(), "after {line:?}");
        let begun = Instant::now();
        gate.open();
        for connection in server.handle.connections() {
            server.handle.resume(connection.id);
        }
        assert_eq!(closed.next(), timeout, "after {line:?}");
        let after = begun.elapsed();
        assert!(after >= TIME, "{timeout} came {after:?} after the end of {line:?}");
        drop(client);
        server.stop();
    };
    thread::scope(|scope| {
        for line in ["task\n", "wait\n", "pause\n"] {
            scope.spawn(|| excuses(patient().idle_timeout(TIME), "TimedOut(Idle)", line));
            scope.spawn(|| excuses(patient().silence_timeout(TIME), "TimedOut(Silence)", line));
        }
    });
}

#[test]
fn what_came_while_a_connection_was_paused_counts_once_it_is_read() {
    let Obedient { server, closed, .. } = obedient(patient().idle_timeout(TIME).silence_timeout(TIME));
    let mut client = server.client();
    client.send("pause\n");
    eventually("the line is heard", || server.handle.stats().traffic.frames_received == 1);
    client.send("x\n");
    thread::sleep(TIME * 3);
    let id = server.handle.connections().list()[0].id;
    assert!(server.handle.resume(id));
    assert_eq!(client.line(), "x");
    assert!(closed.next().starts_with("TimedOut"));
    server.stop();
}

#[test]
fn a_client_that_takes_nothing_is_closed_by_the_write_timeout_and_one_that_takes_little_is_not() {
    let Obedient { server, closed, .. } = obedient(patient().write_timeout(TIME));
    let mut deaf = server.client();
    deaf.send("much\n");
    let (after, reason) = closes(&closed);
    assert_eq!(reason, "TimedOut(Write)");
    assert!(after >= TIME / 2, "after {after:?}");
    assert_eq!(server.handle.stats().closed.write_timeout, 1);

    let mut slow = server.client();
    slow.send("much\n");
    // More at a time than its own kernel may keep from the server.
    let (mut taken, mut piece) = (0, vec![0; MUCH / 20]);
    let begun = Instant::now();
    while taken < MUCH {
        slow.socket.read_exact(&mut piece[..(MUCH - taken).min(MUCH / 20)]).unwrap();
        taken += MUCH / 20;
        thread::sleep(TIME / 4);
    }
    assert!(begun.elapsed() > TIME * 2);
    drop(slow);
    assert_eq!(closed.next(), "Client");
    server.stop();
}

#[test]
fn a_client_that_never_begins_is_closed_by_the_handshake_timeout() {
    let (report, closed) = events();
    let server = Server::builder::<(), ()>()
        .listen(Listener::tcp("127.0.0.1:0").proxy_protocol(ProxyProtocol::from(["127.0.0.1"])))
        .limits(patient().handshake_timeout(TIME))
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report.send(format!("{reason:?}"))?))
        .build()
        .unwrap();
    let server = run(server);
    let begun = Instant::now();
    let mut client = server.client();
    let mut reasons = Vec::new();
    // However busily it does not.
    for byte in b"PROXY TCP4 ".iter().cycle() {
        let _ = client.socket.get_mut().write_all(&[*byte]);
        thread::sleep(TIME / 8);
        reasons.extend(closed.all_so_far());
        if !reasons.is_empty() || begun.elapsed() > PATIENCE {
            break;
        }
    }
    assert_eq!(reasons, ["TimedOut(Handshake)"]);
    assert!(begun.elapsed() >= TIME);
    assert_eq!(server.handle.stats().closed.handshake_timeout, 1);
    server.stop();
}

#[test]
fn a_connection_that_is_too_old_is_read_no_more_and_ends_once_its_task_is_delivered() {
    let Obedient { server, gate, closed } = obedient(patient().max_lifetime(TIME));
    let mut client = server.client();
    client.send("ask\n");
    thread::sleep(TIME * 2);
    client.send("late\n");
    thread::sleep(TIME);
    assert_eq!(closed.all_so_far(), Vec::<String>::new());
    gate.open();
    assert_eq!(client.rest(), "done\n");
    assert_eq!(closed.next(), "TimedOut(Lifetime)");
    let stats = server.handle.stats();
    assert_eq!((stats.traffic.frames_received, stats.closed.lifetime), (1, 1));
    server.stop();
}

/// It takes some within every write timeout, whether or not the outcome of a task waits for it.
#[test]
fn a_client_that_takes_a_little_now_and_then_does_not_outlive_its_lifetime_by_more_than_the_write_timeout() {
    for lines in ["much\n", "ask\nmuch\n"] {
        let Obedient { server, gate, closed } = obedient(patient().max_lifetime(TIME).write_timeout(TIME * 2));
        let mut client = server.client();
        client.send(lines);
        let (begun, mut taken, mut some) = (Instant::now(), 0, [0; 32 * 1024]);
        while let Ok(n @ 1..) = client.socket.read(&mut some) {
            taken += n;
            thread::sleep(TIME / 8);
        }
        assert_eq!(closed.next(), "TimedOut(Lifetime)");
        assert!(taken < MUCH && begun.elapsed() >= TIME * 3, "{taken} bytes in {:?}", begun.elapsed());
        gate.open();
        server.stop();
    }
}

/// Each of many messages that wait for it has no time of its own.
#[test]
fn what_others_have_sent_does_not_keep_a_connection_beyond_its_lifetime_either() {
    const LEN: usize = 300;
    const OUTBOX: usize = 64 * 1024;
    let limits = Limits::new().max_outbox(OUTBOX).max_lifetime(TIME).write_timeout(TIME * 2);
    let house = House::open(|builder| builder.limits(limits).socket_options(small_buffers()));
    let mut guest = house.welcome(slow_client(house.server.addr()));
    // As large as what is shared and not put together with the next; until its outbox is full, and its mailbox nearly.
    let mut sent = 0;
    eventually("it takes hardly more", || {
        while house.handle().broadcast([b'x'; LEN]).sent == 1 {
            sent += 1;
        }
        guest.info().outbox_bytes > OUTBOX * 3 / 2
    });
    thread::sleep(TIME + TIME / 2);
    // It is about to close. The outbox is taken in time, but not all of the mailbox.
    let (mut taken, mut some) = (0, [0; 1024]);
    while let Ok(n @ 1..) = guest.client.socket.read(&mut some) {
        taken += n;
        if taken > OUTBOX {
            thread::sleep(TIME / 16);
        }
    }
    assert_eq!(house.closed(), "TimedOut(Lifetime)");
    assert!(taken < sent * LEN, "it took all {taken} bytes");
    house.server.stop();
}

#[test]
fn a_connection_becomes_no_older_by_being_busy() {
    let Obedient { server, closed, .. } = obedient(patient().max_lifetime(TIME));
    let mut client = server.client();
    let (begun, mut reasons) = (Instant::now(), Vec::new());
    while reasons.is_empty() && begun.elapsed() < PATIENCE {
        let _ = client.socket.get_mut().write_all(b"hush\n");
        reasons.extend(closed.all_so_far());
    }
    assert_eq!(reasons, ["TimedOut(Lifetime)"]);
    assert!(begun.elapsed() >= TIME / 2);
    server.stop();
}

#[test]
fn who_is_protected_is_neither_idle_nor_silent_and_nothing_else() {
    let protected = |limits: Limits, line: &str, timeout: &str| {
        let Obedient { server, closed, .. } = obedient(limits.idle_timeout(TIME).silence_timeout(TIME));
        let mut client = server.client();
        client.send("protect\n");
        thread::sleep(TIME * 3);
        assert_eq!(closed.all_so_far(), Vec::<String>::new());
        client.send(line);
        assert_eq!(closed.next(), timeout);
        drop(client);
        server.stop();
    };
    thread::scope(|scope| {
        scope.spawn(|| protected(patient().frame_timeout(TIME), "hal", "TimedOut(Frame)"));
        scope.spawn(|| protected(patient().write_timeout(TIME), "much\n", "TimedOut(Write)"));
        scope.spawn(|| protected(patient().max_lifetime(TIME * 4), "", "TimedOut(Lifetime)"));
    });
}

/// A way to the server on which, from some moment on, nothing arrives any more and nobody is told: a cable is cut.
struct Cable {
    cut: Arc<AtomicBool>,
    addr: SocketAddr,
}

impl Cable {
    fn to(server: SocketAddr) -> Cable {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, cut) = (listener.local_addr().unwrap(), Arc::<AtomicBool>::default());
        let is_cut = Arc::clone(&cut);
        thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let server = TcpStream::connect(server).unwrap();
            thread::scope(|scope| {
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let is_cut = &is_cut;
                    scope.spawn(move || {
                        let (mut from, mut to, mut some) = (from, to, [0; 1024]);
                        while let Ok(n @ 1..) = from.read(&mut some) {
                            while is_cut.load(Ordering::Relaxed) {
                                thread::park();
                            }
                            let _ = to.write_all(&some[..n]);
                        }
                    });
                }
            });
        });
        Cable { cut, addr }
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

#[test]
fn who_is_cut_off_without_a_word_is_idle_in_the_end_and_takes_nothing_where_something_is_sent() {
    for (line, timeout) in [("hush\n", "TimedOut(Idle)"), ("much\n", "TimedOut(Write)")] {
        let Obedient { server, closed, .. } = obedient(patient().idle_timeout(TIME * 2).write_timeout(TIME));
        let cable = Cable::to(server.addr());
        let mut client = Client::connect(cable.addr);
        assert_eq!(client.ask("hello"), "hello");
        client.send(line);
        eventually("it has come", || server.handle.stats().traffic.frames_received == 2);
        cable.cut();
        assert_eq!(closed.next(), timeout);
        server.stop();
    }
}

#[test]
fn a_time_of_duration_max_is_never_over() {
    let never = Duration::MAX;
    let limits = patient()
        .handshake_timeout(never)
        .frame_timeout(never)
        .write_timeout(never)
        .idle_timeout(never)
        .silence_timeout(never)
        .max_lifetime(never)
        .accept_rate_per_address(10, never);
    let (gate, (report, closed)) = (Gate::default(), events());
    let server = Server::builder::<(), ()>()
        .listen(
            Listener::tcp("127.0.0.1:0")
                .proxy_protocol(ProxyProtocol::from(["127.0.0.1"]))
                .limits(limits)
                .framing(Framing::lines()),
        )
        .on_receive(|conn, _| Ok(conn.send(vec![b'x'; MUCH])?))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report.send(format!("{reason:?}"))?))
        .build()
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    for part in ["PROXY TCP4 192.0.2.1 192.0.2.2 1 2", "\r\n", "hal", "f\n"] {
        thread::sleep(TIME);
        client.send(part);
    }
    thread::sleep(TIME);
    assert_eq!(closed.all_so_far(), Vec::<String>::new());
    client.end_sending();
    assert_eq!(client.rest().len(), MUCH);
    assert_eq!(closed.next(), "Client");
    gate.open();
    server.stop();
}

#[test]
fn the_last_words_of_a_timer_reach_a_client_that_sends_meanwhile() {
    // The kernel takes it all from the server at once, and the client does not.
    const WORDS: usize = 300_000;
    let (report, closed) = events();
    let server = Server::builder::<(), ()>()
        .socket_options(SocketOptions::new().send_buffer(WORDS))
        .on_connect(move |conn| {
            conn.after(TIME / 8, |conn| {
                conn.send(vec![b'x'; WORDS])?;
                conn.close();
                Ok(())
            });
            Ok(())
        })
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, _| Ok(report.send(())?))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    closed.next();
    client.send("and another thing");
    assert_eq!(client.rest().len(), WORDS);
    drop(client);
    server.stop();
}

#[test]
fn two_thousand_clients_that_connect_at_once_are_all_served() {
    const THREADS: usize = 20;
    const EACH: usize = 100;
    common::raise_file_limit();
    let server = Server::builder::<(), ()>()
        .max_connections(THREADS * EACH)
        .framing(Framing::lines())
        .on_receive(|conn, line| Ok(conn.send([line, b"\n"].concat())?))
        .on_task(|_, ()| Ok(()))
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let start = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                let mut clients: Vec<Client> = (0..EACH).map(|_| server.client()).collect();
                for client in &mut clients {
                    assert_eq!(client.ask("x"), "x");
                }
            });
        }
    });
    let stats = server.handle.stats();
    assert_eq!((stats.accepted_connections, stats.refused.total()), ((THREADS * EACH) as u64, 0));
    server.stop();
}

#[test]
fn a_reset_in_the_middle_of_a_frame_closes_once_and_delivers_no_half_of_it() {
    let (report, heard) = events();
    let on_close = report.clone();
    let server = Server::builder::<(), ()>()
        .framing(Framing::length_prefix(LengthPrefix::new(LengthType::U32Be)))
        .on_receive(move |_, frame| Ok(report.send(String::from_utf8_lossy(frame).into_owned())?))
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| match reason {
            CloseReason::Io(error) => Ok(on_close.send(format!("{:?}", error.kind()))?),
            other => Ok(on_close.send(format!("{other:?}"))?),
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let server = run(server);
    let mut client = server.client();
    client.send(b"\0\0\0\x05whole\0\0\0\x04hal");
    assert_eq!(heard.next(), "whole");
    client.reset();
    assert_eq!(heard.next(), "ConnectionReset");
    assert_eq!(server.handle.stats().closed.io, 1);
    server.stop();
    assert_eq!(heard.all_so_far(), Vec::<String>::new());
}

/// As a browser begins: the record of a handshake, a ClientHello in it, and a random that no log should show.
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x1b[31mrandom\n\r\x00\xff\n";

#[test]
fn a_client_that_speaks_tls_to_a_plain_listener_is_told_apart_and_logged_once_in_a_short_line() {
    let Some(child) = in_child!() else {
        let logged = log_from(log::LevelFilter::Info);
        let (report, closed) = events();
        let prefixed = |length| Framing::length_prefix(LengthPrefix::new(length));
        let hasty = Limits::new().frame_timeout(Duration::from_millis(100));
        let server = Server::builder::<(), ()>()
            .listen(Listener::tcp("127.0.0.1:0").framing(Framing::lines()))
            // A frame that is too long, and one that is never whole.
            .listen(Listener::tcp("127.0.0.1:0").framing(prefixed(LengthType::U32Be)))
            .listen(Listener::tcp("127.0.0.1:0").framing(prefixed(LengthType::U16Be)).limits(hasty))
            .listen(Listener::tcp("127.0.0.1:0").framing(Framing::raw()))
            .on_receive(|conn, data| Ok(conn.send(data)?))
            .on_task(|_, ()| Ok(()))
            .on_close(move |_, reason| Ok(report.send(format!("{reason:?}"))?))
            .build()
            .unwrap();
        let addresses = server.local_addrs().to_vec();
        let server = run(server);
        let begun = Instant::now();
        for address in &addresses[..3] {
            let mut client = Client::connect(address.clone());
            client.send(CLIENT_HELLO);
            assert_eq!(client.rest(), "");
            assert_eq!(closed.next(), "UnexpectedTls");
        }
        assert_eq!(server.handle.stats().closed.unexpected_tls, 3);
        // Where bytes are awaited, they may be just that.
        let mut raw = Client::connect(addresses[3].clone());
        raw.send(CLIENT_HELLO);
        let mut echo = vec![0; CLIENT_HELLO.len()];
        raw.socket.read_exact(&mut echo).unwrap();
        assert_eq!(echo, CLIENT_HELLO);
        drop(raw);
        server.stop();

        let lines = logged.lock().clone();
        let told: Vec<_> = lines.iter().filter(|line| line.contains("speaks TLS")).collect();
        let seconds = begun.elapsed().as_secs() as usize + 1;
        assert!((1..=seconds).contains(&told.len()), "{lines:?}");
        assert!(told[0].starts_with("INFO connection "), "{told:?}");
        let escaped = |line: &&String| line.len() < 200 && line.chars().all(|c| !c.is_control());
        assert!(told.iter().all(escaped), "{told:?}");
        return;
    };
    succeeds(child);
}
