//! Where clients come in: addresses of every kind, several at once, sockets that are open already.

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backroom::{
    Address, BindError, CloseReason, Connection, Framing, Inherited, LengthPrefix, LengthType, Limits, Listener,
    ProxyProtocol, Server, ServerBuilder, SocketOptions, stage,
};
use common::{
    Client, Gate, PATIENCE, TempDir, as_child, events, eventually, has_ipv6, is_child, log_from, run, succeeds,
};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::{Domain, SockAddr, Socket, Type};

type Builder = ServerBuilder<(), (), (), (), stage::State>;

fn answer(conn: &mut Connection<(), ()>, line: &[u8]) -> anyhow::Result<()> {
    if line == b"quit" {
        conn.server().shutdown(PATIENCE);
    }
    let answer = format!("{}: {}\n", conn.listener(), String::from_utf8_lossy(line));
    Ok(conn.send(answer)?)
}

/// Answers each line with the name of its listener and the line; and ends when it is told to.
fn build(configure: impl FnOnce(Builder) -> Builder) -> Result<Server, BindError> {
    configure(Server::builder().framing(Framing::lines())).on_receive(answer).on_task(|_, ()| Ok(())).build()
}

/// Answers datagrams as well.
fn build_packets(configure: impl FnOnce(Builder) -> Builder) -> Server {
    configure(Server::builder().framing(Framing::lines()))
        .on_receive(answer)
        .on_packet(|socket, from, data| {
            let answer = format!("packet: {}", String::from_utf8_lossy(data));
            Ok(socket.send_to(from, answer)?)
        })
        .on_task(|_, ()| Ok(()))
        .build()
        .unwrap()
}

fn on(listener: impl Into<Listener>) -> Result<Server, BindError> {
    build(|builder| builder.listen(listener))
}

fn loopback() -> Listener {
    Listener::tcp("127.0.0.1:0")
}

/// One line to a Unix socket, and the answer.
fn ask(path: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

fn is_in_use(error: &BindError, address: &str) -> bool {
    let BindError::Listen { address: at, source } = error else { return false };
    at.to_string() == address && source.kind() == ErrorKind::AddrInUse
}

#[test]
fn listeners_at_once_have_each_their_framing_limits_and_name() {
    let (report, closed) = events();
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines())
        .limits(Limits::new().max_frame(20))
        .listen(loopback().name("short").limits(Limits::new().max_frame(5)))
        .listen(loopback().name("prefixed").framing(Framing::length_prefix(LengthPrefix::new(LengthType::U8))))
        .on_receive(|conn, frame| Ok(conn.send([conn.listener().as_bytes(), b": ", frame, b"\n"].concat())?))
        .on_task(|_, ()| Ok(()))
        .on_close(move |conn, reason| match reason {
            CloseReason::FrameTooLong(max) => Ok(report.send((conn.listener().to_owned(), *max))?),
            _ => Ok(()),
        })
        .bind("127.0.0.1:0")
        .unwrap();
    let addresses = server.local_addrs().to_vec();
    assert_eq!((addresses.len(), addresses[0].clone()), (3, server.local_addr()));
    let server = run(server);
    let [mut default, mut short, mut prefixed] = [0, 1, 2].map(|at| Client::connect(addresses[at].clone()));

    // The one that was given no name is called by its address.
    assert_eq!(default.ask("hello"), format!("{}: hello", addresses[0]));
    assert_eq!(short.ask("hello"), "short: hello");
    prefixed.send("\x05hello\x02\n\n");
    assert_eq!((prefixed.line(), prefixed.line()), ("prefixed: hello".into(), "prefixed: ".into()));
    assert_eq!(server.handle.connections().listener("short").count(), 1);
    let list = server.handle.connections().list();
    assert_eq!(list.iter().filter(|connection| *connection.listener == *"prefixed").count(), 1);

    default.ask("longer than five");
    short.send("longer than five\n");
    assert_eq!(closed.next(), ("short".to_owned(), 5));
    default.send("longer than even twenty\n");
    assert_eq!(closed.next(), (addresses[0].to_string(), 20));
    drop((default, short, prefixed));
    server.stop();
    for address in addresses {
        eventually("it is closed to clients", || TcpStream::connect(address.clone()).is_err());
    }
}

#[test]
fn all_listeners_share_the_places_and_each_hears_when_one_is_free() {
    let server =
        build(|builder| builder.max_connections(1).listen(loopback().name("a")).listen(loopback().name("b"))).unwrap();
    let addresses = server.local_addrs().to_vec();
    let server = run(server);
    let mut served = Client::connect(addresses[0].clone());
    assert_eq!(served.ask("x"), "a: x");
    for turn in 1..=10 {
        let mut waiting = Client::connect(addresses[turn % 2].clone());
        waiting.send("x\n");
        assert_eq!(server.handle.stats().accepted_connections, turn as u64);
        drop(served);
        assert_eq!(waiting.line(), ["a: x", "b: x"][turn % 2]);
        served = waiting;
    }
    drop(served);
    server.stop();
}

#[test]
fn a_listener_on_ipv6_is_reached_by_it() {
    if !has_ipv6(test_name!()) {
        return;
    }
    let server = on(Listener::tcp("[::1]:0").name("six")).unwrap();
    let address = server.local_addr().inet().unwrap();
    assert!(address.is_ipv6());
    let server = run(server);
    let mut client = server.client();
    assert_eq!(client.ask("x"), "six: x");
    let connection = &server.handle.connections().list()[0];
    assert_eq!(connection.peer_addr, Address::from(client.socket.get_ref().local_addr().unwrap()));
    assert_eq!(connection.local_addr, Address::from(address));
    drop(client);
    server.stop();
}

#[test]
fn a_listener_on_all_addresses_is_reached_by_ipv4_and_ipv6() {
    if !has_ipv6(test_name!()) {
        return;
    }
    let server = on(all_addresses(0, false).name("all")).unwrap();
    let port = server.local_addr().inet().unwrap().port();
    let server = run(server);
    for host in ["::1", "127.0.0.1"] {
        let mut client = Client::connect((host, port));
        assert_eq!(client.ask("x"), "all: x");
        // It is known which of its addresses the client has come to.
        let connections = server.handle.connections().list();
        let (peer, local) = (&connections[0].peer_addr, &connections[0].local_addr);
        assert_eq!([peer, local].map(|address| address.ip().unwrap().to_string()), [host, host]);
        drop(client);
        eventually("it is closed", || server.handle.stats().connections == 0);
    }
    server.stop();
}

#[test]
fn the_log_says_where_clients_can_connect_and_warns_of_those_who_speak_openly_over_a_network() {
    let Some(child) = in_child!() else {
        let logged = log_from(log::LevelFilter::Info);
        let directory = TempDir::new(test_name!());
        let server = build_packets(|builder| {
            builder
                .listen(loopback())
                .listen(Listener::tcp("0.0.0.0:0").name("open"))
                .listen(Listener::unix(directory.join("socket")))
                .listen_udp("127.0.0.1:0")
        });
        let addresses = server.local_addrs().to_vec();
        drop(server);
        let lines = logged.lock().clone();
        for address in &addresses {
            assert!(
                lines.iter().any(|line| line.starts_with("INFO ") && line.contains(&address.to_string())),
                "{lines:?}"
            );
        }
        let warnings: Vec<_> = lines.iter().filter(|line| line.starts_with("WARN ")).collect();
        let says = "is not of this machine alone, and its clients speak without TLS";
        assert_eq!(warnings, [&format!("WARN {} {says}", addresses[1])]);
        return;
    };
    succeeds(child);
}

#[test]
fn a_listener_on_all_addresses_of_ipv6_only_leaves_those_of_ipv4_to_others() {
    if !has_ipv6(test_name!()) {
        return;
    }
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    assert!(is_in_use(&on(all_addresses(port, false)).unwrap_err(), &format!("[::]:{port}")));
    let server = run(on(all_addresses(port, true).name("six")).unwrap());
    assert_eq!(Client::connect(("::1", port)).ask("x"), "six: x");
    let four = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    assert_eq!(other.accept().unwrap().1, four.local_addr().unwrap());
    server.stop();
}

fn all_addresses(port: u16, only_v6: bool) -> Listener {
    Listener::tcp(("::", port)).socket_options(SocketOptions::new().only_v6(only_v6))
}

#[test]
fn a_unix_socket_serves_is_of_its_owner_alone_and_is_removed_at_the_end() {
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let server = on(Listener::unix(&path)).unwrap();
    assert_eq!(server.local_addr().path(), Some(&*path));
    let metadata = fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let server = run(server);
    assert_eq!(ask(&path, "x"), format!("unix:{}: x", path.display()));
    server.stop();
    assert!(!path.exists());

    drop(on(Listener::unix(&path)).unwrap());
    assert!(!path.exists(), "nor does one that has never run leave its file");
}

#[test]
fn a_unix_socket_is_of_those_it_was_made_for() {
    let directory = TempDir::new(test_name!());
    for mode in [0o666, 0o660, 0o600] {
        let path = directory.join("socket");
        let _server = on(Listener::unix(&path).mode(mode)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
    }
    let path = directory.join("owned");
    let owned = on(Listener::unix(&path).owner(Some(1), Some(2)));
    if rustix::process::geteuid().is_root() {
        let _server = owned.unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.permissions().mode() & 0o777), (1, 2, 0o600));
    } else {
        assert!(matches!(owned, Err(BindError::Listen { source, .. }) if source.kind() == ErrorKind::PermissionDenied));
        assert!(!path.exists(), "a file that could not be given away is not left");
    }
}

/// What a server leaves that was killed. It never listens, since a child that is just being started may keep it open.
fn leave_stale(path: &Path) {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
}

#[test]
fn a_stale_unix_socket_is_taken_over() {
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    leave_stale(&path);
    let server = run(on(Listener::unix(&path).name("new")).unwrap());
    assert_eq!(ask(&path, "x"), "new: x");
    server.stop();
}

#[test]
fn a_unix_socket_that_somebody_listens_on_is_not_taken_over() {
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let first = run(on(Listener::unix(&path).name("first")).unwrap());
    let error = on(Listener::unix(&path).name("second")).unwrap_err();
    assert!(is_in_use(&error, &format!("unix:{}", path.display())), "{error:?}");
    assert_eq!(ask(&path, "x"), "first: x");
    first.stop();

    // Nor is one that is too busy to be connected to.
    let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    busy.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        match client.connect(&SockAddr::unix(&path).unwrap()) {
            Ok(()) => waiting.push(client),
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert!(on(Listener::unix(&path)).is_err());
    assert!(path.exists());
}

#[test]
fn a_directory_that_somebody_keeps_locked_is_not_waited_for_without_end() {
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let locked = fs::File::open(path.parent().unwrap()).unwrap();
    flock(&locked, FlockOperation::LockExclusive).unwrap();
    let begun = Instant::now();
    let BindError::Listen { source, .. } = on(Listener::unix(&path)).unwrap_err() else { panic!("another error") };
    assert_eq!(source.to_string(), "another process keeps its directory locked");
    assert!(begun.elapsed() < PATIENCE && !path.exists());
    drop(locked);
    assert!(on(Listener::unix(&path)).is_ok());
}

#[test]
fn a_file_that_is_no_socket_is_not_removed() {
    let directory = TempDir::new(test_name!());
    let (file, folder) = (directory.join("file"), directory.join("folder"));
    fs::write(&file, "precious").unwrap();
    fs::create_dir(&folder).unwrap();
    for path in [&file, &folder] {
        let error = on(Listener::unix(path)).unwrap_err();
        assert!(is_in_use(&error, &format!("unix:{}", path.display())), "{error:?}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(folder.is_dir());
    let nowhere = on(Listener::unix(directory.join("not/there"))).unwrap_err();
    assert!(matches!(nowhere, BindError::Listen { source, .. } if source.kind() == ErrorKind::NotFound));
}

#[test]
fn a_file_that_another_server_has_put_in_its_place_is_not_removed_at_the_end() {
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let first = run(on(Listener::unix(&path)).unwrap());
    fs::remove_file(&path).unwrap();
    let second = run(on(Listener::unix(&path).name("second")).unwrap());
    first.stop();
    assert_eq!(ask(&path, "x"), "second: x");
    second.stop();
    assert!(!path.exists());
}

#[test]
fn of_servers_that_begin_on_one_path_at_once_exactly_one_wins() {
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let (address, arrived, begun) = (format!("unix:{}", path.display()), AtomicUsize::new(0), Instant::now());
    // Two meet by spinning, since a barrier lets one go after the other.
    let meet = || {
        let both = arrived.fetch_add(1, Ordering::AcqRel) / 2 * 2 + 2;
        while arrived.load(Ordering::Acquire) < both {
            thread::yield_now();
        }
    };
    let over = AtomicBool::new(false);
    // How each of them ended. What is wrong is said when no other waits for its turn any more.
    let begin = |is_first: bool| {
        let mut ends = Vec::new();
        loop {
            if is_first {
                leave_stale(&path);
                over.store(begun.elapsed() > Duration::from_secs(1), Ordering::Release);
            }
            meet();
            if over.load(Ordering::Acquire) {
                return ends;
            }
            let built = build(|builder| builder.task_worker_num(1).listen(Listener::unix(&path)));
            meet();
            ends.push(built.map(drop));
            meet();
        }
    };
    let (first, second) = thread::scope(|scope| {
        let (first, second) = (scope.spawn(|| begin(true)), scope.spawn(|| begin(false)));
        (first.join().unwrap(), second.join().unwrap())
    });
    for (round, ends) in first.into_iter().zip(second).enumerate() {
        match ends {
            (Err(lost), Ok(())) | (Ok(()), Err(lost)) if is_in_use(&lost, &address) => {}
            wrong => panic!("in round {round}: {wrong:?}"),
        }
    }
}

#[test]
fn sockets_that_are_open_already_are_listened_on() {
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    // This one waits since before there was a server.
    let mut early = Client::connect(address);
    let server = build(|builder| builder.listen(Listener::from(tcp).name("tcp")).listen(unix)).unwrap();
    assert_eq!(server.local_addrs(), [Address::from(address), Address::Unix(Some(path.as_path().into()))]);
    let server = run(server);
    assert_eq!(early.ask("x"), "tcp: x");
    assert_eq!(ask(&path, "x"), format!("unix:{}: x", path.display()));
    server.stop();
    assert!(path.exists(), "the file of a socket that was handed in is not the server's");
}

#[test]
fn an_open_socket_that_cannot_listen_is_an_error() {
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(peer.local_addr().unwrap()).unwrap();
    let error = on(TcpListener::from(OwnedFd::from(connected))).unwrap_err();
    assert!(matches!(error, BindError::OpenSocket(_)), "{error:?}");
    assert_eq!(error.to_string(), "cannot listen on a socket that was handed in");
}

/// Starts the child part of a test as systemd starts a service: with these as its descriptors 3 and 4.
fn activate(test: &str, first: impl Into<OwnedFd>, second: impl Into<OwnedFd>, pid: &str) -> Child {
    let moved = "exec 3<&0 4<&1 0</dev/null 1>&2";
    let script =
        format!("{moved}; export LISTEN_FDS=2 LISTEN_PID={pid} LISTEN_FDNAMES='unknown:the second'; exec \"$@\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script, "sh"]).arg(std::env::current_exe().unwrap());
    let mut command = as_child(shell, test);
    command.stdin(first.into()).stdout(second.into()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The process that the shell becomes.
const ITSELF: &str = "$$";

/// In the child: serves on what it was given, until it is told to quit.
fn serve_inherited(count: usize) {
    let listeners = Inherited::take().unwrap().listeners;
    assert_eq!(listeners.len(), count);
    assert!(Inherited::take().unwrap().listeners.is_empty(), "they are handed over once");
    let number = |(number, listener): (usize, Listener)| listener.name(format!("inherited {number}"));
    let listeners = listeners.into_iter().enumerate().map(number);
    build(|builder| listeners.fold(builder, Builder::listen)).unwrap().run().unwrap();
}

#[test]
fn sockets_that_a_supervisor_has_opened_are_inherited_in_their_order() {
    if is_child() {
        return serve_inherited(2);
    }
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let (unix, tcp) = (UnixListener::bind(&path).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = tcp.local_addr().unwrap();
    let child = activate(test_name!(), unix, tcp, ITSELF);
    assert_eq!(ask(&path, "x"), "inherited 0: x");
    assert_eq!(Client::connect(address).ask("quit"), "inherited 1: quit");
    succeeds(child);
}

#[test]
fn inherited_udp_sockets_serve_too_and_listeners_have_the_names_they_were_given() {
    if is_child() {
        let Inherited { listeners, udp, .. } = Inherited::take().unwrap();
        assert_eq!((listeners.len(), udp.len()), (1, 1));
        let all = |builder| listeners.into_iter().fold(builder, Builder::listen);
        let server = build_packets(|builder| udp.into_iter().fold(all(builder), Builder::listen_udp_socket));
        server.run().unwrap();
        return;
    }
    let (udp, tcp) = (UdpSocket::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (udp_address, tcp_address) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let child = activate(test_name!(), udp, tcp, ITSELF);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"x", udp_address).unwrap();
    let mut answer = [0; 16];
    let n = client.recv(&mut answer).unwrap();
    assert_eq!(&answer[..n], b"packet: x");
    assert_eq!(Client::connect(tcp_address).ask("quit"), "the second: quit");
    succeeds(child);
}

#[test]
fn an_inherited_descriptor_that_is_no_socket_is_an_error() {
    if is_child() {
        assert!(Inherited::take().is_err());
        return;
    }
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    succeeds(activate(test_name!(), fs::File::open("/dev/null").unwrap(), tcp, ITSELF));
}

#[test]
fn sockets_that_were_meant_for_another_process_are_not_inherited() {
    if is_child() {
        return assert!(Inherited::take().unwrap().listeners.is_empty());
    }
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    succeeds(activate(test_name!(), listen(), listen(), "1"));
}

/// The server's end of a connection, by way of this process's own descriptors.
fn accepted(client: &TcpStream) -> Socket {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let numbers = descriptors.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap());
    let sockets = numbers.filter_map(|number| pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).ok());
    // Both, since clients of different servers may have the same port.
    let ends = (client.local_addr().ok(), client.peer_addr().ok());
    let is_it = |socket: &Socket| {
        let end = |address: std::io::Result<SockAddr>| address.ok().and_then(|address| address.as_socket());
        (end(socket.peer_addr()), end(socket.local_addr())) == ends
    };
    sockets.map(Socket::from).find(is_it).expect("the socket that was accepted")
}

#[test]
fn what_the_kernel_is_told_holds_for_the_sockets_of_clients() {
    // Alone, since it opens all sockets of its process a second time.
    let Some(child) = in_child!() else {
        let seconds = Duration::from_secs;
        let options = SocketOptions::new()
            .nodelay(false)
            .keepalive(seconds(30), seconds(5), 3)
            .user_timeout(seconds(20))
            .receive_buffer(20_000)
            .send_buffer(30_000);
        let tcp = || TcpListener::bind("127.0.0.1:0").unwrap();
        let server = build(|builder| {
            builder
                .socket_options(SocketOptions::new().no_keepalive())
                .listen(loopback().socket_options(options.clone()))
                .listen(Listener::from(tcp()).socket_options(options))
                .listen(loopback().socket_options(SocketOptions::new()))
                .listen(loopback())
        });
        let server = server.unwrap();
        let addresses = server.local_addrs().to_vec();
        let server = run(server);
        let mut clients: Vec<Client> = addresses.into_iter().map(Client::connect).collect();
        clients.iter_mut().for_each(|client| drop(client.ask("x")));
        let sockets: Vec<Socket> = clients.iter().map(|client| accepted(client.socket.get_ref())).collect();

        let keepalive = |socket: &Socket| {
            let times = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
            socket.keepalive().unwrap().then_some((times.0, times.1, socket.tcp_keepalive_retries().unwrap()))
        };
        for socket in &sockets[..2] {
            assert!(!socket.tcp_nodelay().unwrap());
            assert_eq!(keepalive(socket), Some((seconds(30), seconds(5), 3)));
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(seconds(20)));
        }
        // Linux doubles what it is told. What comes before binding is not for a socket that is bound already.
        let buffers = |socket: &Socket| (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap());
        assert_eq!(buffers(&sockets[0]), (40_000, 60_000));
        assert!(buffers(&sockets[1]).0 > 40_000);
        // The defaults, of the library and then of this builder.
        assert_eq!(keepalive(&sockets[2]), Some((seconds(60), seconds(10), 6)));
        assert_eq!(sockets[2].tcp_user_timeout().unwrap().unwrap_or_default(), Duration::ZERO);
        assert!(sockets[2].tcp_nodelay().unwrap() && sockets[3].tcp_nodelay().unwrap());
        assert_eq!(keepalive(&sockets[3]), None);
        drop((clients, sockets));
        server.stop();
        return;
    };
    succeeds(child);
}

#[cfg(feature = "tcp-extras")]
#[test]
fn a_client_that_says_nothing_is_kept_back_by_the_kernel_where_accepting_is_deferred() {
    let options = SocketOptions::new().defer_accept(Duration::from_secs(60));
    let server = run(on(loopback().name("deferred").socket_options(options)).unwrap());
    let mut silent = Client::connect(server.addr());
    let mut other = Client::connect(server.addr());
    assert_eq!(other.ask("x"), "deferred: x");
    // It came before the other.
    assert_eq!(server.handle.stats().accepted_connections, 1);
    assert_eq!(silent.ask("y"), "deferred: y");
    drop((silent, other));
    server.stop();
}

#[test]
fn servers_that_reuse_a_port_share_its_clients_and_others_do_not_get_it() {
    let options = || SocketOptions::new().reuse_port(true);
    let first = on(loopback().name("first").socket_options(options())).unwrap();
    let address = first.local_addr().inet().unwrap();
    let second = on(Listener::tcp(address).name("second").socket_options(options())).unwrap();
    assert!(is_in_use(&on(Listener::tcp(address)).unwrap_err(), &address.to_string()));
    let (first, second) = (run(first), run(second));
    let answers: HashSet<String> = (0..64).map(|_| Client::connect(address).ask("x")).collect();
    assert_eq!(answers, ["first: x", "second: x"].map(String::from).into());
    first.stop();
    assert_eq!(Client::connect(address).ask("x"), "second: x");
    second.stop();
}

#[test]
fn no_more_clients_wait_in_the_kernel_than_the_backlog_says() {
    let server = on(loopback().name("few").socket_options(SocketOptions::new().backlog(1))).unwrap();
    let address = server.local_addr().inet().unwrap();
    let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
    // Bound and not running. Linux lets one more wait than it was told.
    let waiting = [connect().unwrap(), connect().unwrap()];
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::TimedOut);
    let server = run(server);
    eventually("those that waited are served", || server.handle.stats().accepted_connections == 2);
    drop(waiting);
    assert_eq!(server.client().ask("x"), "few: x");
    server.stop();
}

#[test]
fn a_restarted_server_takes_its_port_back_from_connections_that_are_still_ending() {
    let first = on(loopback()).unwrap();
    let address = first.local_addr().inet().unwrap();
    let first = run(first);
    let mut client = first.client();
    client.send("quit\n");
    // The server has closed first, so its end is the one in TIME_WAIT.
    client.rest();
    drop(client);
    first.ended();
    eventually("its port is free", || on(Listener::tcp(address)).is_ok());
    let stubborn = SocketOptions::new().reuse_address(false);
    assert!(is_in_use(&on(Listener::tcp(address).socket_options(stubborn)).unwrap_err(), &address.to_string()));
}

#[test]
fn a_server_without_a_listener_is_an_error() {
    let error = build(|builder| builder).unwrap_err();
    assert!(matches!(error, BindError::NoListener));
    assert_eq!(error.to_string(), "no listener was given");
}

#[test]
fn a_callback_is_required_only_where_something_comes_that_it_is_for() {
    let missing = |bound: Result<Server, BindError>| match bound {
        Err(BindError::Missing(callback)) => Some(callback),
        Err(other) => panic!("{other:?}"),
        Ok(_) => None,
    };
    let builder = || Server::builder::<(), ()>().on_task(|_, ()| Ok(()));
    let udp = "127.0.0.1:0";
    assert_eq!(missing(builder().bind("127.0.0.1:0")), Some("on_receive"));
    assert_eq!(missing(builder().listen_udp(udp).build()), Some("on_packet"));
    assert_eq!(missing(builder().on_receive(|_, _| Ok(())).listen_udp(udp).bind("127.0.0.1:0")), Some("on_packet"));
    assert_eq!(missing(builder().on_packet(|_, _, _| Ok(())).listen_udp(udp).bind("127.0.0.1:0")), Some("on_receive"));
    assert_eq!(missing(builder().on_packet(|_, _, _| Ok(())).listen_udp(udp).build()), None);
    assert_eq!(missing(builder().on_receive(|_, _| Ok(())).bind("127.0.0.1:0")), None);
    let no_task = Server::builder::<(), ()>().on_packet(|_, _, _| Ok(())).listen_udp(udp).build();
    assert_eq!(missing(no_task), Some("on_task"));
}

#[test]
fn an_address_that_cannot_be_listened_on_is_named_and_gives_back_what_was_opened_before() {
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap();
    let error = build(|builder| builder.listen(Listener::unix(&path)).listen(Listener::tcp(taken)));
    let error = error.unwrap_err();
    assert!(is_in_use(&error, &taken.to_string()), "{error:?}");
    assert_eq!(error.to_string(), format!("cannot listen on {taken}"));
    assert!(!path.exists());

    let udp_holder = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = udp_holder.local_addr().unwrap();
    let udp = Server::builder::<(), ()>().on_task(|_, ()| Ok(())).on_packet(|_, _, _| Ok(())).listen_udp(taken);
    assert!(is_in_use(&udp.build().unwrap_err(), &taken.to_string()));
    let unknown = on(Listener::tcp("127.0.0.1:notaport")).unwrap_err();
    assert_eq!(unknown.to_string(), "cannot resolve \"127.0.0.1:notaport\"");
}

#[test]
fn of_several_addresses_the_first_that_can_be_listened_on_is_taken() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let addresses = [holder.local_addr().unwrap(), SocketAddr::from((Ipv4Addr::LOCALHOST, 0))];
    let server = on(Listener::tcp(&addresses[..]).name("second")).unwrap();
    assert_ne!(server.local_addr(), addresses[0].into());
    let none: &[SocketAddr] = &[];
    assert!(matches!(on(Listener::tcp(none)), Err(BindError::Resolve { .. })));
}

#[test]
fn what_cannot_work_of_a_listener_is_an_error_that_names_it() {
    let problem = |listener: Listener| on(listener).unwrap_err().to_string();
    assert_eq!(problem(loopback().limits(Limits::new().max_frame(0))), "max_frame: 0 is less than 1");
    assert_eq!(problem(loopback().framing(Framing::fixed(0))), "framing: a fixed size of 0");
    assert_eq!(problem(loopback().socket_options(SocketOptions::new().backlog(0))), "socket_options: a backlog of 0");
    let second = Duration::from_secs(1);
    let short = second - Duration::from_millis(1);
    for (idle, interval, probes, part) in [
        (short, second, 1, "the times"),
        (second, short, 1, "the times"),
        (32_768 * second, second, 1, "the times"),
        (second, 32_768 * second, 1, "the times"),
        (second, second, 0, "the probes"),
        (second, second, 128, "the probes"),
    ] {
        let options = SocketOptions::new().keepalive(idle, interval, probes);
        let problem = problem(loopback().socket_options(options));
        assert!(problem.starts_with(&format!("socket_options: {part} of a keepalive are from 1 ")), "{problem}");
    }
    let longest = SocketOptions::new().keepalive(32_767 * second, 32_767 * second, 127);
    assert!(on(loopback().socket_options(longest)).is_ok());
    assert_eq!(
        problem(loopback().proxy_protocol(ProxyProtocol::from(["10.0.0.0/33"]))),
        "proxy_protocol: \"10.0.0.0/33\" is neither an address nor a network"
    );
}

#[test]
fn what_a_client_of_a_unix_socket_has_sent_is_served_though_it_is_gone() {
    const LINES: u64 = 50;
    let directory = TempDir::new(test_name!());
    let path = directory.join("socket");
    let gate = Gate::default();
    let (task_gate, (report, closed)) = (gate.clone(), events());
    let server = Server::builder()
        .framing(Framing::lines())
        .max_tasks_in_flight(2)
        .on_receive(|conn, _| {
            conn.task(())?;
            Ok(())
        })
        .on_task(move |_, ()| {
            task_gate.pass();
            Ok(())
        })
        .on_close(move |_, reason| Ok(report.send(format!("{reason:?}"))?))
        .listen(Listener::unix(&path))
        .build();
    let server = run(server.unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all("x\n".repeat(LINES as usize).as_bytes()).unwrap();
    drop(client);
    // Its worker does not read now, and knows that the client is gone.
    eventually("two are in flight", || server.handle.stats().tasks.accepted == 2);
    gate.open();
    assert_eq!(closed.next(), "Client");
    let report = server.stop();
    assert_eq!((report.tasks.delivered, report.tasks.orphaned), (LINES, 0));
}

/// Why there is no server there.
fn unix_error(path: &Path) -> Option<String> {
    let server = Server::builder::<(), ()>()
        .listen(Listener::unix(path))
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .build();
    server.err().map(|error| format!("{:#}", anyhow::Error::from(error)))
}

#[test]
fn an_abstract_name_is_refused_by_name() {
    let error = unix_error(Path::new("\0backroom")).unwrap();
    assert!(error.contains("abstract names are not supported"), "{error}");
}

#[test]
fn clients_of_a_unix_socket_are_behind_no_proxy() {
    let dir = TempDir::new(test_name!());
    let listener = Listener::unix(dir.join("socket")).proxy_protocol(ProxyProtocol::from(["127.0.0.1"]));
    let server = Server::builder::<(), ()>().listen(listener).on_receive(|_, _| Ok(())).on_task(|_, ()| Ok(())).build();
    let error = server.err().unwrap().to_string();
    assert!(error.starts_with("proxy_protocol: "), "{error}");
}

#[test]
fn a_relative_path_is_removed_though_the_program_has_gone_elsewhere() {
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    let dir = TempDir::new(test_name!());
    let file = dir.join("socket");
    std::env::set_current_dir(file.parent().unwrap()).unwrap();
    let server = Server::builder::<(), ()>()
        .listen(Listener::unix("socket"))
        .on_receive(|_, _| Ok(()))
        .on_task(|_, ()| Ok(()))
        .build()
        .unwrap();
    assert!(file.exists());
    std::env::set_current_dir("/").unwrap();
    drop(server);
    assert!(!file.exists());
}

#[test]
fn a_directory_that_may_be_written_to_and_not_read_has_room_for_a_socket_but_none_is_taken_over_there() {
    use std::os::unix::process::CommandExt;

    const NOBODY: u32 = 65534;
    if is_child() {
        let dir = TempDir::new(test_name!());
        let blind = dir.join("blind");
        fs::create_dir(&blind).unwrap();
        fs::set_permissions(&blind, fs::Permissions::from_mode(0o311)).unwrap();
        assert_eq!(unix_error(&blind.join("socket")), None);
        // Nobody listens there, and nobody can be sure of it.
        drop(UnixListener::bind(blind.join("stale")).unwrap());
        let error = unix_error(&blind.join("stale")).unwrap();
        assert!(error.contains("may not be read"), "{error}");
        fs::set_permissions(&blind, fs::Permissions::from_mode(0o755)).unwrap();
        return;
    }
    let mut command = as_child(Command::new(std::env::current_exe().unwrap()), test_name!());
    if rustix::process::geteuid().is_root() {
        // Who may read everything.
        command.uid(NOBODY);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_server_that_is_full_and_a_name_of_which_one_address_is_taken_are_in_the_log() {
    let Some(child) = in_child!() else {
        let logged = log_from(log::LevelFilter::Info);
        let two = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from(([127, 0, 0, 2], 0))];
        let server = Server::builder::<(), ()>()
            .listen(Listener::tcp(&two[..]).name("the door"))
            .max_connections(2)
            .limits(Limits::new().max_connections_per_address(1))
            .on_receive(|conn, data| Ok(conn.send(data)?))
            .on_task(|_, ()| Ok(()))
            .build()
            .unwrap();
        let server = run(server);
        let _first = server.client();
        // Another warning of the same listener, within the same second.
        assert_eq!(server.client().rest(), "");
        let last = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        last.bind(&two[1].into()).unwrap();
        last.connect(&server.addr().into()).unwrap();
        let full = "WARN the door: all 2 connections that there may be (max_connections) are open";
        eventually("it says so", || logged.lock().iter().any(|line| line.starts_with(full)));
        let others = "is listened on at 127.0.0.1, and not at [127.0.0.2]";
        assert!(logged.lock().iter().any(|line| line.contains(others)), "{:?}", logged.lock());
        server.stop();
        return;
    };
    succeeds(child);
}
