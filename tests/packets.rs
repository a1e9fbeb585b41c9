//! Datagrams: received on threads of their own, answered at once or by tasks, and none of it disturbed by what goes
//! wrong with another.

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use backroom::{
    Finished, Framing, Listener, PacketPeer, PacketSocket, Server, ServerBuilder, SocketOptions, TaskOptions, stage,
};
use common::{
    Client, Events, Gate, PATIENCE, Program, Running, TempDir, events, eventually, has_ipv6, log_from, programs, run,
    succeeds,
};

type Builder = ServerBuilder<String, String, (), (), stage::State>;

const LOOPBACK: &str = "127.0.0.1:0";

/// Says how its task ended to whoever asked.
fn tell(
    from: PacketPeer,
) -> impl FnOnce(&mut PacketSocket<String, String>, Finished<String>) -> anyhow::Result<()> + 'static {
    move |socket, done| Ok(socket.send_to(from, format!("{:?}", done.outcome()))?)
}

/// Echoes packets, but those that ask for something else.
fn obedient(gate: &Gate, configure: impl FnOnce(Builder) -> Builder) -> Running {
    let gate = gate.clone();
    let server = configure(Server::builder())
        .framing(Framing::lines())
        .on_receive(|conn, line| Ok(conn.send([line, b"\n"].concat())?))
        .on_packet(|socket, from, data| {
            match data {
                b"fail" => anyhow::bail!("as was asked"),
                b"panic" => panic!("as was asked"),
                b"finish: fail" => drop(socket.task_then("x".into(), |_, _| anyhow::bail!("as was asked")).ok()),
                b"finish: panic" => drop(socket.task_then("x".into(), |_, _| panic!("as was asked")).ok()),
                b"one way" => drop(socket.task_oneway("one way".into()).ok()),
                b"too large" => {
                    let refused = socket.send_to(from, vec![0; 100_000]).unwrap_err();
                    socket.send_to(from, refused.kind().to_string())?;
                }
                _ => match data.strip_prefix(b"task: ") {
                    Some(task) => drop(socket.task_then(String::from_utf8_lossy(task).into(), tell(from)).ok()),
                    None => socket.send_to(from, data)?,
                },
            }
            Ok(())
        })
        .on_task(move |_, data| {
            gate.pass();
            Ok(data)
        })
        .build()
        .unwrap();
    run(server)
}

fn echo() -> Running {
    let gate = Gate::default();
    gate.open();
    obedient(&gate, |builder| builder.listen_udp(LOOPBACK))
}

/// A client of one server; it hears nobody else.
struct Asker(UdpSocket);

impl Asker {
    fn of(server: SocketAddr) -> Asker {
        let host = if server.is_ipv6() { "[::1]:0" } else { LOOPBACK };
        let socket = UdpSocket::bind(host).unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Asker(socket)
    }

    fn send(&self, packet: impl AsRef<[u8]>) {
        self.0.send(packet.as_ref()).unwrap();
    }

    fn hear(&self) -> Vec<u8> {
        let mut buffer = vec![0; 70_000];
        let len = self.0.recv(&mut buffer).expect("an answer");
        buffer.truncate(len);
        buffer
    }

    fn ask(&self, packet: &str) -> String {
        self.send(packet);
        String::from_utf8(self.hear()).unwrap()
    }
}

/// A packet is counted once it is sent, which may be after it is heard.
fn is_counted(server: &Running, received: u64, sent: u64) {
    eventually("all packets are counted", || {
        let stats = server.handle.stats();
        (stats.packets_received, stats.packets_sent) == (received, sent)
    });
}

#[test]
fn a_packet_is_answered_from_the_socket_that_it_came_to() {
    let gate = Gate::default();
    let server =
        obedient(&gate, |builder| builder.listen_udp(LOOPBACK).listen_udp(LOOPBACK).listen(Listener::tcp(LOOPBACK)));
    // Listeners first, and then packet sockets.
    let addresses = server.handle.local_addrs().to_vec();
    assert_eq!((addresses.len(), server.handle.local_addr()), (3, addresses[0].clone()));
    assert_eq!(Client::connect(addresses[0].clone()).ask("x"), "x");
    for address in &addresses[1..] {
        assert_eq!(Asker::of(address.inet().unwrap()).ask("hello"), "hello");
    }
    is_counted(&server, 2, 2);
    assert_eq!(server.handle.stats().accepted_connections, 1);
    server.stop();
}

#[test]
fn packets_come_by_ipv6_too() {
    if !has_ipv6(test_name!()) {
        return;
    }
    let gate = Gate::default();
    let server = obedient(&gate, |builder| builder.listen_udp("[::1]:0"));
    assert_eq!(Asker::of(server.addr()).ask("hello"), "hello");
    server.stop();
}

#[test]
fn a_socket_that_is_bound_already_is_received_on() {
    let socket = UdpSocket::bind(LOOPBACK).unwrap();
    let asker = Asker::of(socket.local_addr().unwrap());
    // It waits since before there was a server.
    asker.send("early");
    let server = obedient(&Gate::default(), |builder| builder.listen_udp_socket(socket));
    assert_eq!(asker.hear(), b"early");
    server.stop();
}

#[test]
fn the_outcome_of_a_task_goes_to_whoever_asked() {
    let gate = Gate::default();
    let server = obedient(&gate, |builder| builder.listen_udp(LOOPBACK));
    let askers: Vec<Asker> = (0..10).map(|_| Asker::of(server.addr())).collect();
    for (number, asker) in askers.iter().enumerate() {
        asker.send(format!("task: {number}"));
    }
    // Nobody waits for them.
    assert_eq!(askers[0].ask("hello"), "hello");
    gate.open();
    for (number, asker) in askers.iter().enumerate() {
        assert_eq!(asker.hear(), format!("Done({number:?})", number = number.to_string()).as_bytes());
    }
    let tasks = server.stop().tasks;
    assert_eq!((tasks.accepted, tasks.delivered), (10, 10));
}

#[test]
fn a_one_way_task_runs_and_nobody_hears_of_it() {
    let gate = Gate::default();
    gate.open();
    let server = obedient(&gate, |builder| builder.listen_udp(LOOPBACK));
    Asker::of(server.addr()).send("one way");
    eventually("it has run", || server.handle.stats().tasks.done == 1);
    let report = server.stop();
    assert_eq!((report.tasks.one_way, report.tasks.delivered), (1, 0));
}

#[test]
fn tasks_of_a_packet_socket_have_options_closures_and_an_early_end() {
    let gate = Gate::default();
    let task_gate = gate.clone();
    let server = Server::builder()
        .task_worker_num(1)
        .on_packet(move |socket: &mut PacketSocket<String, String>, from, _| {
            socket.with(TaskOptions::new().deadline(Duration::from_millis(1))).task_then("late".into(), tell(from))?;
            let cancelled = socket.task_then("cancelled".into(), tell(from))?;
            assert!(socket.cancel(cancelled));
            assert_eq!(socket.tasks_in_flight(), 2);
            socket.run(|| 6 * 7, move |socket, ran| Ok(socket.send_to(from, format!("{}", ran?))?))?;
            Ok(())
        })
        .on_task(move |_, data| {
            task_gate.pass();
            Ok(data)
        })
        .listen_udp(LOOPBACK)
        .build()
        .unwrap();
    let server = run(server);
    let asker = Asker::of(server.addr());
    let mut heard = vec![asker.ask("x"), String::from_utf8(asker.hear()).unwrap()];
    heard.sort();
    assert_eq!(heard, ["Cancelled", "TimedOut"]);
    gate.open();
    assert_eq!(asker.hear(), b"42");
    server.stop();
}

#[test]
fn the_rest_of_the_program_sends_packets_by_the_handle() {
    let server = echo();
    let asker = Asker::of(server.addr());
    server.handle.send_to(asker.0.local_addr().unwrap(), "news").unwrap();
    assert_eq!(asker.hear(), b"news");
    assert_eq!(server.handle.stats().packets_sent, 1);
    let six: SocketAddr = "[::1]:9".parse().unwrap();
    assert_eq!(server.handle.send_to(six, "x").unwrap_err().kind(), ErrorKind::AddrNotAvailable);
    server.stop();
}

#[test]
fn a_handle_that_outlives_its_server_keeps_no_port() {
    let server = echo();
    let (handle, address) = (server.handle.clone(), server.addr());
    assert_eq!(Asker::of(address).ask("x"), "x");
    server.stop();
    eventually("its port is free", || UdpSocket::bind(address).is_ok());
    assert!(handle.send_to(address, "x").is_err());
    let stats = handle.stats();
    assert_eq!((stats.packets_received, stats.packets_sent), (1, 1));
}

#[test]
fn packets_may_be_empty_and_they_may_be_large() {
    let server = echo();
    let asker = Asker::of(server.addr());
    let large: Vec<u8> = (0..60_000).map(|at| (at % 251) as u8).collect();
    for packet in [&[][..], &large, b"x"] {
        asker.send(packet);
        assert_eq!(asker.hear(), packet);
    }
    assert_ne!(asker.ask("too large"), "too large");
    assert_eq!(asker.ask("x"), "x");
    is_counted(&server, 5, 5);
    server.stop();
}

#[test]
fn what_goes_wrong_with_one_packet_harms_no_other() {
    let server = echo();
    let asker = Asker::of(server.addr());
    for trouble in ["fail", "panic", "finish: fail", "finish: panic"] {
        asker.send(trouble);
        assert_eq!(asker.ask("x"), "x", "after {trouble:?}");
        assert_eq!(asker.ask("task: x"), "Done(\"x\")", "after {trouble:?}");
    }
    eventually("both are counted", || server.handle.stats().tasks.finish_errors == 2);
    server.stop();
}

#[test]
fn while_the_queue_is_full_packets_stay_with_the_kernel() {
    const PACKETS: u64 = 100;
    let gate = Gate::default();
    let server = obedient(&gate, |builder| builder.task_worker_num(1).queue_capacity(4).listen_udp(LOOPBACK));
    let asker = Asker::of(server.addr());
    for number in 0..PACKETS {
        asker.send(format!("task: {number}"));
    }
    eventually("the queue has been full", || server.handle.stats().tasks.accepted >= 4);
    // They are all here, and nothing but the queue keeps them from being received.
    thread::sleep(Duration::from_millis(100));
    let stats = server.handle.stats();
    assert!(stats.packets_received < 10, "{stats:?}");
    assert_eq!(stats.packets_received, stats.tasks.accepted);

    gate.open();
    for number in 0..PACKETS {
        assert_eq!(asker.hear(), format!("Done({:?})", number.to_string()).as_bytes());
    }
    assert_eq!(server.handle.stats().packets_received, PACKETS);
    server.stop();
}

/// Nothing that is in flight would wake it: only the room in the queue does.
#[test]
fn a_socket_that_was_held_back_receives_again_as_soon_as_there_is_room() {
    const ROUNDS: u64 = 300;
    const PACKETS: u64 = 12;
    let gate = Gate::default();
    gate.open();
    let server = obedient(&gate, |builder| builder.task_worker_num(2).queue_capacity(1).listen_udp(LOOPBACK));
    let asker = Asker::of(server.addr());
    for round in 1..=ROUNDS {
        (0..PACKETS).for_each(|_| asker.send("one way"));
        eventually("all are received", || server.handle.stats().packets_received == round * PACKETS);
    }
    server.stop();
}

#[test]
fn a_shutdown_delivers_what_is_in_flight_and_receives_no_more() {
    let gate = Gate::default();
    let server = obedient(&gate, |builder| builder.listen_udp(LOOPBACK));
    let asker = Asker::of(server.addr());
    asker.send("task: last");
    eventually("it runs", || server.handle.stats().tasks.running == 1);
    server.handle.shutdown(PATIENCE);
    asker.send("too late");
    gate.open();
    assert_eq!(asker.hear(), b"Done(\"last\")");
    let handle = server.handle.clone();
    let report = server.ended();
    assert_eq!((report.tasks.delivered, report.tasks.abandoned, report.workers_running), (1, 0, 0));
    assert_eq!(handle.stats().packets_received, 1);
}

#[test]
fn what_a_shutdown_gives_up_is_told_to_whoever_asked() {
    let gate = Gate::default();
    let server = obedient(&gate, |builder| builder.listen_udp(LOOPBACK));
    let asker = Asker::of(server.addr());
    asker.send("task: endless");
    eventually("it runs", || server.handle.stats().tasks.running == 1);
    let report = server.stop_within(Duration::from_millis(50));
    assert_eq!((report.tasks.abandoned, report.workers_running), (1, 0));
    assert_eq!(asker.hear(), b"Abandoned");
    gate.open();
}

#[test]
fn that_nobody_is_there_to_be_told_stops_no_socket() {
    let Some(child) = in_child!() else {
        let logged = log_from(log::LevelFilter::Debug);
        let gone = UdpSocket::bind(LOOPBACK).unwrap();
        let nobody = gone.local_addr().unwrap();
        // A socket that is connected is told what became of its packets; others are not.
        let connected = UdpSocket::bind(LOOPBACK).unwrap();
        connected.connect(nobody).unwrap();
        let connected_addr = connected.local_addr().unwrap();
        let server = obedient(&Gate::default(), |builder| builder.listen_udp_socket(connected).listen_udp(LOOPBACK));
        drop(gone);
        for _ in 0..100 {
            // The error of an earlier one may be reported here, or to the socket's own thread.
            let _ = server.handle.send_to(nobody, "anybody?");
        }
        eventually("its thread is told", || {
            let _ = server.handle.send_to(nobody, "anybody?");
            logged.lock().iter().any(|line| line.starts_with("DEBUG packet socket: Connection refused"))
        });
        let back = UdpSocket::bind(nobody).unwrap();
        back.connect(connected_addr).unwrap();
        assert_eq!(Asker(back).ask("hello"), "hello");

        let other = server.handle.local_addrs()[1].inet().unwrap();
        Asker::of(other).send("for one who does not wait");
        assert_eq!(Asker::of(other).ask("hello"), "hello");
        server.stop();
        return;
    };
    succeeds(child);
}

/// What `socat` hears on this address after it has said a line.
fn socat(address: &str) -> String {
    let mut socat = Command::new("socat");
    let Program(child) = &mut Program::start(socat.args(["-", address]).stdin(Stdio::piped()).stdout(Stdio::piped()));
    child.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    answer
}

#[test]
fn socat_is_answered_by_udp_and_on_a_unix_socket() {
    if !programs(&["socat"]) {
        return;
    }
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let server = obedient(&Gate::default(), |builder| builder.listen_udp(LOOPBACK).listen(Listener::unix(&path)));
    let udp = server.handle.local_addrs()[1].inet().unwrap();
    assert_eq!(socat(&format!("UDP4:{udp}")), "hello\n");
    assert_eq!(socat(&format!("UNIX-CONNECT:{}", path.display())), "hello\n");
    server.stop();
}

/// Who has asked, and where.
type Asked = (SocketAddr, Option<SocketAddr>);

/// A server of packets that says who has asked it, and answers at once, by a task, and by its handle.
fn three_answers(listens_at: &[&str]) -> (Running, Events<Asked>) {
    let (tell, told) = events();
    let mut builder = Server::builder();
    for address in listens_at {
        builder = builder.listen_udp(*address);
    }
    let server = builder
        .on_packet(move |socket, from, _| {
            tell.send((from.addr(), from.local_addr()))?;
            socket.send_to(from, "at once")?;
            socket.task_then((), move |socket, _| {
                socket.send_to(from, "by a task")?;
                Ok(socket.server().send_to(from, "by the handle")?)
            })?;
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .build()
        .unwrap();
    (run(server), told)
}

/// Asks there, and checks that all answers come from there, to a socket that takes nothing else.
fn ask_at(server: SocketAddr, told: &Events<Asked>) {
    let ip = if server.is_ipv4() { "127.0.0.1" } else { "::1" };
    let client = UdpSocket::bind((ip, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect(server).unwrap();
    client.send(b"hello").unwrap();
    assert_eq!(told.next(), (client.local_addr().unwrap(), Some(server)));
    for expected in ["at once", "by a task", "by the handle"] {
        let mut answer = [0; 99];
        let len = client.recv(&mut answer).unwrap();
        assert_eq!(String::from_utf8_lossy(&answer[..len]), expected, "from {server}");
    }
}

#[test]
fn what_was_sent_to_all_is_answered_too() {
    for listens_at in ["0.0.0.0:0", "[::]:0"] {
        if listens_at.starts_with('[') && !has_ipv6(test_name!()) {
            continue;
        }
        let (server, told) = three_answers(&[listens_at]);
        let port = server.handle.local_addrs()[0].inet().unwrap().port();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_broadcast(true).unwrap();
        client.send_to(b"hello", ("127.255.255.255", port)).unwrap();
        let (from, at) = told.next();
        assert_eq!((from, at), (client.local_addr().unwrap(), Some(([127, 0, 0, 1], port).into())), "{listens_at}");
        for expected in ["at once", "by a task", "by the handle"] {
            let mut answer = [0; 99];
            let (len, by) = client.recv_from(&mut answer).unwrap();
            assert_eq!((&answer[..len], by.port()), (expected.as_bytes(), port), "{listens_at}");
        }
        server.stop();
    }
}

#[test]
fn a_socket_of_ipv6_alone_is_not_chosen_for_a_client_that_uses_ipv4() {
    if !has_ipv6(test_name!()) {
        return;
    }
    let server = Server::builder::<(), ()>()
        .socket_options(SocketOptions::new().only_v6(true))
        .listen_udp("[::]:0")
        .listen_udp("0.0.0.0:0")
        .on_packet(|_, _, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .build()
        .unwrap();
    let server = run(server);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    server.handle.send_to(client.local_addr().unwrap(), "news").unwrap();
    let mut news = [0; 4];
    let (_, by) = client.recv_from(&mut news).unwrap();
    assert_eq!((&news, by.port()), (b"news", server.handle.local_addrs()[1].inet().unwrap().port()));
    server.stop();
}

#[test]
fn an_answer_leaves_from_the_address_that_was_asked_whichever_the_socket_has() {
    let (server, told) = three_answers(&["0.0.0.0:0", "127.0.0.3:0"]);
    let ports: Vec<u16> = server.handle.local_addrs().iter().map(|address| address.inet().unwrap().port()).collect();
    for ip in ["127.0.0.1", "127.0.0.2", "127.9.9.9"] {
        ask_at((ip.parse::<IpAddr>().unwrap(), ports[0]).into(), &told);
    }
    // Another socket of the same family is the one that was asked.
    ask_at((IpAddr::from([127, 0, 0, 3]), ports[1]).into(), &told);
    server.stop();
}

#[test]
fn a_socket_of_both_families_answers_from_the_address_that_was_asked_and_knows_clients_by_their_own() {
    if !has_ipv6(test_name!()) {
        return;
    }
    let (server, told) = three_answers(&["[::]:0"]);
    let port = server.addr().port();
    for ip in ["127.0.0.1", "127.0.0.2", "::1"] {
        ask_at((ip.parse::<IpAddr>().unwrap(), port).into(), &told);
    }
    // Somebody who has not asked, by a plain address.
    let client = UdpSocket::bind(LOOPBACK).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    server.handle.send_to(client.local_addr().unwrap(), "unasked").unwrap();
    let mut answer = [0; 99];
    let (len, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!((&answer[..len], from), (&b"unasked"[..], (IpAddr::from([127, 0, 0, 1]), port).into()));
    server.stop();
}
