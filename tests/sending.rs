//! What is sent to clients: by whom, in what order, how much, and what becomes of it at a client that is slow.

mod common;

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use backroom::{Broadcast, ConnectionId, Limits, SendError, SendFileError, ServerHandle};
use common::house::{Conn, Guest, House, SHORT, Told, job, slow_client, small_buffers};
use common::{Client, cpu_time, events, eventually, resident_bytes, succeeds};

#[test]
fn what_task_workers_and_other_threads_send_arrives_whole_and_in_the_order_of_each() {
    const LINES: usize = 500;
    let house = House::open(|builder| builder.task_worker_num(4));
    let mut guest = house.guest();
    let speak = |speaker: usize| {
        move |server: &ServerHandle, id: ConnectionId| {
            (0..LINES).for_each(|line| server.send(id, format!("{speaker} {line}\n")).unwrap());
        }
    };
    for speaker in 0..4 {
        guest.task_then(job(speak(speaker)), |_| Ok(()));
    }
    thread::scope(|scope| {
        for speaker in 4..8 {
            let (handle, id) = (house.handle(), guest.id);
            scope.spawn(move || speak(speaker)(handle, id));
        }
    });
    let mut next = [0; 8];
    for _ in 0..8 * LINES {
        let line = guest.client.line();
        let (speaker, line) = line.split_once(' ').unwrap();
        let next = &mut next[speaker.parse::<usize>().unwrap()];
        assert_eq!(line.parse(), Ok(*next));
        *next += 1;
    }
    drop(guest);
    house.server.stop();
}

/// The line of this number: long, so that few fill an outbox.
fn long_line(number: usize) -> String {
    format!("{number:08}{}", "x".repeat(8000))
}

#[test]
fn a_broadcast_reaches_all_whole_and_in_order_beside_a_client_that_reads_nothing() {
    const CLIENTS: usize = 20;
    const ROUNDS: usize = 25;
    const LINES: usize = 10;
    let limits = Limits::new().max_outbox(LINES * 8200);
    let house = House::open(|builder| builder.limits(limits).socket_options(small_buffers()));
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| house.guest().client).collect();
    let mut deaf = house.welcome(slow_client(house.server.addr()));

    let (heard, all_of_it) = events();
    let broadcasts: Vec<Broadcast> = thread::scope(|scope| {
        for client in &mut clients {
            let heard = heard.clone();
            scope.spawn(move || {
                for line in 0..ROUNDS * LINES {
                    assert_eq!(client.line(), long_line(line));
                    if line % LINES == LINES - 1 {
                        heard.send(()).unwrap();
                    }
                }
            });
        }
        let round = |round| {
            let lines = round * LINES..(round + 1) * LINES;
            let sent: Vec<_> = lines.map(|line| house.handle().broadcast(long_line(line) + "\n")).collect();
            (0..CLIENTS).for_each(|_| all_of_it.next());
            sent
        };
        (0..ROUNDS).flat_map(round).collect()
    });
    assert!(
        broadcasts.iter().all(|broadcast| broadcast.sent + broadcast.refused.len() == CLIENTS + 1),
        "{broadcasts:?}"
    );
    assert!(broadcasts.iter().all(|broadcast| broadcast.sent >= CLIENTS), "{broadcasts:?}");
    let last = broadcasts.last().unwrap();
    assert_eq!((last.sent, &last.refused), (CLIENTS, &vec![(deaf.id, SendError::OutboxFull)]));

    // What the deaf one was sent has gaps, but what there is is whole.
    assert!(house.handle().close(deaf.id));
    let lines = deaf.client.rest();
    let sent =
        (0..).zip(&broadcasts).filter(|(_, broadcast)| broadcast.refused.is_empty()).map(|(line, _)| long_line(line));
    assert!(lines.lines().eq(sent), "{} bytes", lines.len());
    drop(clients);
    house.server.stop();
}

#[test]
fn the_bytes_of_a_broadcast_are_kept_once_however_many_take_them_late() {
    const CLIENTS: usize = 200;
    const LEN: usize = 1 << 20;
    let Some(child) = in_child!() else {
        let house = House::open(|builder| builder.socket_options(small_buffers()));
        let deaf: Vec<Guest> = (0..CLIENTS).map(|_| house.welcome(slow_client(house.server.addr()))).collect();
        let before = resident_bytes();
        assert_eq!(house.handle().broadcast(vec![b'x'; LEN]).sent, CLIENTS);
        deaf.iter().for_each(Guest::turns);
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 20 * LEN, "{grown} bytes more");
        drop(deaf);
        house.server.stop();
        return;
    };
    succeeds(child);
}

#[test]
fn a_broadcast_goes_only_to_those_that_are_wanted_and_counts_those_that_close() {
    let house = House::open(|builder| builder);
    let mut guests: Vec<Guest> = (0..3).map(|_| house.guest()).collect();
    guests[..2].iter().for_each(|guest| guest.on_worker(|conn| conn.bind("ann")));
    let of_ann = |user: &Option<Arc<str>>| user.as_deref() == Some("ann");
    let told = house.handle().broadcast_to(|info| of_ann(&info.user), "for ann\n");
    assert_eq!((told.sent, told.refused.len()), (2, 0));
    let told = house.handle().broadcast_to(|_| false, "for nobody\n");
    assert_eq!((told.sent, told.refused.len()), (0, 0));
    // This one closes, and is there until its worker comes to it.
    let gate = guests[0].keep_busy();
    assert!(house.handle().close(guests[0].id));
    let told = house.handle().broadcast("for all\n");
    assert_eq!((told.sent, told.refused), (2, vec![(guests[0].id, SendError::Closed)]));
    gate.open();
    for (guest, heard) in guests.iter_mut().zip(["for ann\n", "for ann\nfor all\n", "for all\n"]) {
        house.handle().close(guest.id);
        assert_eq!(guest.client.rest(), heard);
    }
    house.server.stop();
}

#[test]
fn a_multicast_goes_to_those_that_are_named_and_says_who_could_not_be_sent_to() {
    const LEN: usize = 256 * 1024;
    let limits = Limits::new().max_outbox(LEN);
    let house = House::open(|builder| builder.socket_options(small_buffers()).limits(limits));
    let [mut ann, mut bob, mut eve] = [(); 3].map(|()| house.guest());
    let deaf = house.welcome(slow_client(house.server.addr()));
    let gone = house.guest();
    let gone_id = gone.id;
    drop(gone);
    house.closed();
    let told = house.handle().multicast([ann.id, gone_id, eve.id], "for two\n");
    assert_eq!((told.sent, told.refused), (2, vec![(gone_id, SendError::Closed)]));
    assert_eq!([&mut ann, &mut eve].map(|guest| guest.client.line()), ["for two"; 2]);

    let members = [ann.id, deaf.id, eve.id];
    let long = "x".repeat(LEN - 1);
    eventually("more waits for one of them than may", || {
        let told = house.handle().multicast(members, format!("{long}\n"));
        assert_eq!([&mut ann, &mut eve].map(|guest| guest.client.line()), [long.as_str(); 2]);
        assert_eq!(told.sent + told.refused.len(), 3);
        told.refused == [(deaf.id, SendError::OutboxFull)]
    });
    house.handle().send(bob.id, "for bob\n").unwrap();
    assert_eq!(bob.client.line(), "for bob", "he was sent nothing before");
    drop(deaf);
    house.server.stop();
}

/// A file that is removed when this is dropped.
struct TempFile(PathBuf);

impl TempFile {
    fn of(name: &str, bytes: &[u8]) -> TempFile {
        let path = std::env::temp_dir().join(format!("backroom-sending-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        TempFile(path)
    }

    fn open(&self) -> File {
        File::open(&self.0).unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Bytes of which no two parts are alike.
fn distinct(len: usize) -> Vec<u8> {
    (0..len.div_ceil(4) as u32).flat_map(u32::to_be_bytes).take(len).collect()
}

#[test]
fn files_go_out_in_turn_with_what_else_is_sent_and_no_more_of_them_than_was_asked_for() {
    const LEN: usize = 300_000;
    #[derive(Clone, Copy)]
    enum Step {
        Bytes(&'static str),
        Part(u64, Option<u64>),
    }
    use Step::{Bytes, Part};
    const STEPS: [Step; 9] = [
        Bytes("before"),
        Part(0, Some(5)),
        Part(100, None),
        Bytes("between"),
        // Nothing, in three ways.
        Part(7, Some(0)),
        Part(LEN as u64, None),
        Part(LEN as u64, Some(0)),
        Part(LEN as u64 - 1, Some(1)),
        Bytes("after"),
    ];
    let bytes = distinct(LEN);
    let file = Arc::new(TempFile::of("turns", &bytes));
    let expected = STEPS.map(|step| match step {
        Bytes(text) => text.as_bytes(),
        Part(from, None) => &bytes[from as usize..],
        Part(from, Some(len)) => &bytes[from as usize..(from + len) as usize],
    });
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let of_task = Arc::clone(&file);
    guest.on_worker(move |conn| {
        for step in STEPS {
            match step {
                Bytes(text) => conn.send(text).unwrap(),
                Part(from, len) => conn.send_file(of_task.open(), from, len).unwrap(),
            }
        }
    });
    assert!(guest.client.bytes(expected.concat().len()) == expected.concat(), "by the connection");
    for step in STEPS {
        match step {
            Bytes(text) => house.handle().send(guest.id, text).unwrap(),
            Part(from, len) => house.handle().send_file(guest.id, file.open(), from, len).unwrap(),
        }
    }
    house.handle().close(guest.id);
    assert!(guest.client.until_closed() == (expected.concat(), false), "by the handle");
    house.server.stop();
}

#[test]
fn what_cannot_be_sent_of_a_file_is_refused_at_once() {
    let file = Arc::new(TempFile::of("refused", b"0123456789"));
    type Send<'a> = &'a mut dyn FnMut(File, u64, Option<u64>) -> Result<(), SendFileError>;
    let refuse = {
        let file = Arc::clone(&file);
        move |send: Send<'_>| {
            for (offset, len) in [(11, None), (0, Some(11)), (10, Some(1)), (5, Some(u64::MAX)), (u64::MAX, None)] {
                let refused = send(file.open(), offset, len);
                assert!(matches!(refused, Err(SendFileError::OutOfRange)), "{offset} {len:?} {refused:?}");
            }
            for other in [std::env::temp_dir(), "/dev/zero".into()] {
                assert!(matches!(send(File::open(other).unwrap(), 0, Some(1)), Err(SendFileError::NoFile)));
            }
        }
    };
    let refuse_closed = {
        let file = Arc::clone(&file);
        move |send: Send<'_>| assert!(matches!(send(file.open(), 0, Some(1)), Err(SendFileError::Closed)))
    };
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    refuse(&mut |file, offset, len| house.handle().send_file(guest.id, file, offset, len));
    let refuse_here = refuse_closed.clone();
    guest.on_worker(move |conn| {
        refuse(&mut |file, offset, len| conn.send_file(file, offset, len));
        conn.send("unharmed").unwrap();
        conn.close();
        refuse_here(&mut |file, offset, len| conn.send_file(file, offset, len));
    });
    assert_eq!(guest.client.rest(), "unharmed");
    refuse_closed(&mut |file, offset, len| house.handle().send_file(guest.id, file, offset, len));
    house.server.stop();
}

/// Sixteen times what fits, then that it does not; gives back how many that were.
fn until_refused(mut send: impl FnMut() -> Result<(), SendFileError>) -> usize {
    let mut sent = 0;
    loop {
        match send() {
            Ok(()) => sent += 1,
            Err(error) => {
                assert!(matches!(error, SendFileError::TooManyFiles), "{error:?}");
                return sent;
            }
        }
        assert!(sent <= 16);
    }
}

#[test]
fn sixteen_files_may_wait_by_either_way_and_all_of_them_arrive() {
    let file = Arc::new(TempFile::of("many", b"x"));
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let here = Arc::clone(&file);
    let gate = guest.keep_busy();
    let handle = house.handle();
    assert_eq!(until_refused(|| handle.send_file(guest.id, file.open(), 0, None)), 16);
    gate.open();
    assert_eq!(guest.client.bytes(16), [b'x'; 16]);
    let sent = guest.on_worker(move |conn| {
        let sent = until_refused(|| conn.send_file(here.open(), 0, None));
        // Bytes are not files.
        conn.send("bytes\n").unwrap();
        sent
    });
    assert_eq!(sent, 16);
    assert_eq!(guest.client.line(), "x".repeat(16) + "bytes");
    drop(guest);
    house.server.stop();
}

#[test]
fn files_from_the_handle_wait_for_a_place_among_those_that_wait_and_the_connection_stays() {
    const LEN: usize = 100_000;
    let bytes = distinct(LEN);
    let file = Arc::new(TempFile::of("places", &bytes));
    let house = House::open(|builder| builder.socket_options(small_buffers()));
    let mut guest = house.welcome(slow_client(house.server.addr()));
    let here = Arc::clone(&file);
    let sent = guest.on_worker(move |conn| until_refused(|| conn.send_file(here.open(), 0, None)));
    let sent_too = until_refused(|| house.handle().send_file(guest.id, file.open(), 0, None));
    assert_eq!((sent, sent_too), (16, 16));
    assert!(house.handle().close(guest.id));
    assert!(guest.client.until_closed() == (bytes.repeat(32), false));
    house.server.stop();
}

#[test]
fn clients_that_take_nothing_do_not_use_up_the_descriptors_of_all() {
    let file = Arc::new(TempFile::of("all", &distinct(100_000)));
    let house = House::open(|builder| builder.socket_options(small_buffers()).max_connections(10));
    let slow = house.welcome(slow_client(house.server.addr()));
    let here = Arc::clone(&file);
    assert_eq!(slow.on_worker(move |conn| until_refused(|| conn.send_file(here.open(), 0, None))), 4);
    // Of the sixteen that ten connections may have there are some for others.
    let mut other = house.guest();
    let last = || house.handle().send_file(other.id, file.open(), 99_999, None);
    last().unwrap();
    assert_eq!(other.client.bytes(1), distinct(100_000)[99_999..]);
    let more: Vec<Guest> = (0..8).map(|_| house.welcome(slow_client(house.server.addr()))).collect();
    let taken = more.iter().map(|slow| until_refused(|| house.handle().send_file(slow.id, file.open(), 0, None)));
    assert_eq!(taken.sum::<usize>(), 12);
    assert!(matches!(last(), Err(SendFileError::TooManyFiles)));
    assert!(house.handle().abort(slow.id));
    assert_eq!(house.closed(), "Aborted");
    eventually("its files are closed", || last().is_ok());
    assert_eq!(other.client.bytes(1), distinct(100_000)[99_999..]);
    drop(more);
    house.server.stop();
}

#[test]
fn what_is_empty_is_no_message_however_it_is_sent() {
    let file = TempFile::of("empty", b"");
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let (open, handle) = (file.open(), house.handle());
    handle.send(guest.id, "").unwrap();
    handle.broadcast("");
    handle.send_file(guest.id, file.open(), 0, None).unwrap();
    guest.on_worker(move |conn| {
        conn.send("").unwrap();
        conn.send_file(open, 0, None).unwrap();
        conn.send("x").unwrap();
    });
    assert_eq!(guest.client.bytes(1), b"x");
    eventually("it is counted", || guest.info().messages_sent > 0);
    assert_eq!((guest.info().messages_sent, guest.info().bytes_sent), (1, 1));
    house.server.stop();
}

#[test]
fn a_file_that_is_truncated_while_it_is_sent_closes_its_connection() {
    const LEN: usize = 4 << 20;
    let file = TempFile::of("truncated", &distinct(LEN));
    let house = House::open(|builder| builder.socket_options(small_buffers()));
    let mut guest = house.welcome(slow_client(house.server.addr()));
    house.handle().send_file(guest.id, file.open(), 0, None).unwrap();
    house.handle().send(guest.id, "never\n").unwrap();
    guest.client.bytes(1000);
    OpenOptions::new().write(true).open(&file.0).unwrap().set_len(1000).unwrap();
    let (rest, _) = guest.client.until_closed();
    assert!(rest.len() < LEN - 1000 && !rest.ends_with(b"never\n"), "{}", rest.len());
    let reason = house.closed();
    assert!(reason.starts_with("Io(") && reason.contains("shorter"), "{reason}");
    house.server.stop();
}

#[test]
fn what_a_client_took_before_its_connection_failed_is_counted() {
    let file = TempFile::of("counted", b"never");
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let (open, writable) = (file.open(), OpenOptions::new().write(true).open(&file.0).unwrap());
    guest.on_worker(move |conn| {
        conn.send("before").unwrap();
        conn.send_file(open, 0, None).unwrap();
        writable.set_len(0).unwrap();
    });
    assert_eq!(guest.client.until_closed(), (b"before".to_vec(), true));
    assert!(house.closed().starts_with("Io("));
    assert_eq!(house.handle().stats().traffic.bytes_sent, 6);
    house.server.stop();
}

#[test]
fn a_large_file_for_a_slow_client_holds_nobody_up() {
    const LEN: usize = 16 << 20;
    let bytes = distinct(LEN);
    let file = TempFile::of("large", &bytes);
    let house = House::open(|builder| builder);
    let (mut slow, mut other) = (house.guest(), house.guest());
    house.handle().send_file(slow.id, file.open(), 0, None).unwrap();
    house.handle().send(slow.id, "the end").unwrap();
    let first = slow.client.bytes(1000);
    // It is not taken yet, and finish closures run, those of its own connection too.
    for _ in 0..100 {
        other.task_then(job(|_, _| ()), |conn| Ok(conn.send("done\n")?));
        assert_eq!(other.client.line(), "done");
    }
    let (finish, finished) = events();
    slow.task_then(job(|_, _| ()), move |_| Ok(finish.send(())?));
    finished.next();
    assert!(slow.info().bytes_sent < LEN as u64, "{:?}", slow.info());
    assert_eq!(slow.info().outbox_bytes, "the end".len());
    assert!([first, slow.client.bytes(LEN - 1000)].concat() == bytes);
    assert_eq!(slow.client.bytes(7), b"the end");
    drop((slow, other));
    house.server.stop();
}

/// Sends lines of this length until the client takes no more and the outbox is congested; how many they were.
fn congest(house: &House, guest: &Guest, line: &str) -> usize {
    for lines in 1.. {
        house.handle().send(guest.id, line).unwrap();
        // One at a time, so that the outbox is not full before it is known to be congested.
        guest.turns();
        match &house.told_so_far()[..] {
            [] => {}
            told => {
                assert_eq!(told, [Told::High]);
                return lines;
            }
        }
    }
    unreachable!()
}

#[test]
fn the_watermarks_are_told_once_per_crossing() {
    let limits = Limits::new().watermarks(64 * 1024, 16 * 1024);
    let house = House::open(|builder| builder.limits(limits).socket_options(small_buffers()));
    let mut guest = house.welcome(slow_client(house.server.addr()));
    let line = "x".repeat(8191) + "\n";
    for _ in 0..3 {
        let mut lines = congest(&house, &guest, &line);
        for _ in 0..20 {
            house.handle().send(guest.id, &line).unwrap();
            guest.turns();
            lines += 1;
        }
        assert_eq!(house.told_so_far(), [], "it was told before");
        guest.client.bytes(lines * line.len());
        assert_eq!(house.told(), Told::Low);
        guest.turns();
        assert_eq!(house.told_so_far(), []);
    }
    // What the client takes at once is no congestion.
    for _ in 0..20 {
        house.handle().send(guest.id, &line).unwrap();
        guest.client.bytes(line.len());
    }
    guest.turns();
    assert_eq!(house.told_so_far(), []);
    drop(guest);
    house.server.stop();
}

#[test]
fn a_congested_connection_is_not_read_and_its_outcomes_wait_until_its_client_takes_what_waits() {
    let limits = Limits::new().watermarks(64 * 1024, 16 * 1024);
    let house = House::open(|builder| builder.limits(limits).socket_options(small_buffers()));
    let mut guest = house.welcome(slow_client(house.server.addr()));
    let line = "x".repeat(8191) + "\n";
    let lines = congest(&house, &guest, &line);

    guest.client.send("hello\n");
    let (finish, finished) = events();
    guest.task_then(job(|_, _| ()), move |_| Ok(finish.send(())?));
    eventually("the task is done", || house.handle().stats().tasks.done == 1);
    (0..5).for_each(|_| guest.turns());
    assert_eq!((guest.info().bytes_received, house.told_so_far(), finished.all_so_far()), (0, vec![], vec![]));

    guest.client.bytes(lines * line.len());
    finished.next();
    assert_eq!((house.told(), house.told()), (Told::Low, Told::Frame("hello".into())));
    drop(guest);
    house.server.stop();
}

#[test]
fn an_outbox_takes_a_message_whole_or_not_at_all_from_its_connection_and_from_the_handle() {
    const LIMIT: usize = 1000;
    fn fill(mut send: impl FnMut(&[u8]) -> Result<(), SendError>) {
        assert_eq!(send(&[b'x'; LIMIT + 1]), Err(SendError::TooLong));
        send(&[b'x'; LIMIT - 100]).unwrap();
        assert_eq!(send(&[b'y'; 101]), Err(SendError::OutboxFull));
        send(&[b'z'; 100]).unwrap();
        assert_eq!(send(b"!"), Err(SendError::OutboxFull));
        assert_eq!(send(&[b'x'; LIMIT + 1]), Err(SendError::TooLong));
    }
    let house = House::open(|builder| builder.limits(Limits::new().max_outbox(LIMIT)));
    let mut guest = house.guest();
    let whole = [[b'x'; LIMIT - 100].as_slice(), &[b'z'; 100]].concat();

    let gate = guest.keep_busy();
    fill(|bytes| house.handle().send(guest.id, bytes));
    let told = house.handle().broadcast("!");
    assert_eq!((told.sent, told.refused), (0, vec![(guest.id, SendError::OutboxFull)]));
    gate.open();
    assert_eq!(guest.client.bytes(LIMIT), whole);

    // A client that takes it makes room at once: the callback's own bytes are more than the outbox holds.
    guest.on_worker(|conn| (0..100).for_each(|_| conn.send([b'x'; LIMIT]).unwrap()));
    assert_eq!(guest.client.bytes(100 * LIMIT), [b'x'; 100 * LIMIT]);

    guest.on_worker(|conn| {
        conn.close();
        assert_eq!(conn.send("x"), Err(SendError::Closed));
        assert_eq!(conn.server().send(conn.id(), "taken, since it is not closed yet\n"), Ok(()));
    });
    assert_eq!(guest.client.rest(), "taken, since it is not closed yet\n");
    assert_eq!(house.handle().send(guest.id, "x"), Err(SendError::Closed));
    house.server.stop();
}

#[test]
fn what_one_thread_sends_arrives_in_that_order_whichever_way_it_goes() {
    const ROUNDS: usize = 200;
    let digits = Arc::new(TempFile::of("order", b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"));
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let ways: [&dyn Fn(usize); 4] = [
        &|n| house.handle().send(guest.id, format!("{n}\n")).unwrap(),
        &|n| assert_eq!(house.handle().broadcast(format!("{n}\n")).sent, 1),
        &|n| {
            let by_connection = move |conn: &mut Conn| Ok(conn.send(format!("{n}\n"))?);
            guest.remote.with_connection(guest.id, by_connection).unwrap();
        },
        &|n| house.handle().send_file(guest.id, digits.open(), n as u64 * 2, Some(2)).unwrap(),
    ];
    for round in 0..ROUNDS {
        // A few at a time, and each way after each.
        let sent = (0..10).map(|n| ways[(n + n * round / 4) % 4](n)).count();
        let heard: Vec<_> = (0..sent).map(|_| guest.client.line()).collect();
        assert_eq!(heard.concat(), "0123456789");
    }
    drop(guest);
    house.server.stop();
}

#[test]
fn however_much_a_task_sent_it_goes_before_what_its_finish_closure_sends() {
    let house = House::open(|builder| builder);
    let mut guest = house.guest();
    let chatter = || {
        job(|server, id| {
            for line in 0..500 {
                // Nothing of it becomes one with what came before.
                server.broadcast_to(|info| info.id == id, format!("{line}\n"));
            }
        })
    };
    for _ in 0..20 {
        guest.task_then(chatter(), |conn| Ok(conn.send("finished\n")?));
        for line in 0..500 {
            assert_eq!(guest.client.line(), line.to_string());
        }
        assert_eq!(guest.client.line(), "finished");
    }
    drop(guest);
    house.server.stop();
}

#[test]
fn nothing_that_a_callback_sends_comes_into_the_middle_of_a_message_from_elsewhere() {
    const LIMIT: usize = 100_000;
    let house = House::open(|builder| builder.limits(Limits::new().max_outbox(LIMIT)));
    let mut guest = house.guest();
    for _ in 0..50 {
        // The first half of the outbox is taken when the message comes, so that it does not fit at once; and there is
        // something to send before it would.
        let (handle, id) = (house.handle().clone(), guest.id);
        guest.on_worker(move |conn| {
            conn.send([b'('; LIMIT / 4]).unwrap();
            handle.send(id, [b'm'; LIMIT]).unwrap();
            conn.after(std::time::Duration::ZERO, |conn| Ok(conn.send([b')'; LIMIT / 4])?));
        });
        let heard = guest.client.bytes(LIMIT + LIMIT / 2);
        let first = heard.iter().position(|byte| *byte == b'm').unwrap();
        assert!(heard[first..first + LIMIT].iter().all(|byte| *byte == b'm'), "it was cut in two");
    }
    drop(guest);
    house.server.stop();
}

#[test]
fn a_connection_that_waits_for_its_client_costs_no_time_whatever_else_waits() {
    let Some(child) = in_child!() else {
        let file = Arc::new(TempFile::of("costs", &distinct(100_000)));
        let limits = Limits::new().max_outbox(200_000);
        let house = House::open(|builder| builder.limits(limits).socket_options(small_buffers()));
        let bytes: fn(&mut Conn, &TempFile) = |conn, _| while conn.send([b'x'; 999]).is_ok() {};
        let files: fn(&mut Conn, &TempFile) = |conn, file| while conn.send_file(file.open(), 0, None).is_ok() {};
        let deaf = [bytes, files].map(|fill| {
            let mut guest = house.welcome(slow_client(house.server.addr()));
            let (file, handle, id) = (Arc::clone(&file), house.handle(), guest.id);
            let here = Arc::clone(&file);
            guest.on_worker(move |conn| fill(conn, &here));
            guest.task_then(job(|_, _| ()), |_| Ok(()));
            // Neither has a place yet.
            handle.send_file(id, file.open(), 0, None).unwrap();
            handle.send(id, vec![b'x'; 200_000]).unwrap();
            guest.client.send("hello\n");
            guest
        });
        eventually("the tasks are done", || house.handle().stats().tasks.done == 2);
        let before = cpu_time();
        thread::sleep(3 * SHORT);
        let spent = cpu_time() - before;
        assert!(spent < SHORT / 2, "{spent:?} of {:?}", 3 * SHORT);
        deaf.iter().for_each(|guest| assert!(house.handle().abort(guest.id)));
        house.server.stop();
        return;
    };
    succeeds(child);
}

#[test]
#[cfg(target_os = "linux")]
fn a_file_whose_length_says_nothing_is_refused_and_an_empty_one_is_not() {
    let house = House::open(|builder| builder);
    let guest = house.guest();
    let send = |path: &'static str, len| {
        guest.on_worker(move |conn| {
            conn.send_file(File::open(path).unwrap(), 0, len).map_err(|error| format!("{error:?}"))
        })
    };
    assert_eq!(send("/proc/cpuinfo", None), Err("NoLength".into()));
    assert_eq!(send("/proc/self/maps", Some(10)), Err("NoLength".into()));
    assert_eq!(send("/sys/kernel/mm/transparent_hugepage/enabled", None), Err("NoLength".into()));
    let (empty, sparse) = (TempFile::of("empty", b""), TempFile::of("sparse", b""));
    OpenOptions::new().write(true).open(&sparse.0).unwrap().set_len(10_000).unwrap();
    let (empty, sparse) = (empty.open(), sparse.open());
    let mut guest = guest;
    guest.on_worker(move |conn| {
        conn.send_file(empty, 0, None).unwrap();
        conn.send_file(sparse, 0, None).unwrap();
    });
    assert_eq!(guest.client.bytes(10_000), [0; 10_000]);
    drop(guest);
    house.server.stop();
}
