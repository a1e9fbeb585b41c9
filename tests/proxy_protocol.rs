//! Clients that come by way of a proxy, which says in a header whose they are: by hand, and by HAProxy.

mod common;

use std::io::BufReader;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use backroom::{Address, Framing, Limits, Listener, ProxyProtocol, Server};
use common::{Client, Events, PATIENCE, Program, Running, TempDir, events, eventually, has_ipv6, programs, run};
use socket2::{Domain, Socket, Type};

const PROXY: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Another address of this machine, which no proxy is at.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

const V1: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n";
const V1_SIX: &[u8] = b"PROXY TCP6 2001:db8::1 2001:db8::2 1000 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Command, family with protocol, and body.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, body].concat()
}

/// From an address of 192.0.2.0/24, port 1000, to 192.0.2.2, port 443.
fn v2_from(host: u8) -> Vec<u8> {
    v2(0x21, 0x11, &[192, 0, 2, host, 192, 0, 2, 2, 3, 232, 1, 187])
}

/// Answers each line with where its client is, where it has come to, and the line.
struct Telling {
    server: Running,
    /// Where connections came from, and why they closed.
    told: Events<String>,
}

fn telling(listener: Listener, limits: Limits) -> Telling {
    let (report, told) = events();
    let connected = report.clone();
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines())
        .session(|peer: &Address| peer.clone())
        .listen(listener.limits(limits).proxy_protocol(ProxyProtocol::from([PROXY.to_string()])))
        .on_connect(move |conn| {
            let _nobody_asks = connected.send(conn.peer_addr().to_string());
            Ok(())
        })
        .on_receive(|conn, line| {
            assert_eq!(conn.session(), conn.peer_addr());
            let answer = format!("{} {}: {}\n", conn.peer_addr(), conn.local_addr(), line.escape_ascii());
            Ok(conn.send(answer)?)
        })
        .on_task(|_, ()| Ok(()))
        .on_close(move |_, reason| Ok(report.send(format!("{reason:?}"))?))
        .build()
        .unwrap();
    Telling { server: run(server), told }
}

fn on_loopback() -> Telling {
    telling(Listener::tcp("127.0.0.1:0"), Limits::new())
}

/// A client at that address of this machine.
fn client_at(host: Ipv4Addr, server: &Running) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((host, 0)).into()).unwrap();
    socket.connect(&server.addr().into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    Client { socket: BufReader::new(socket.into()) }
}

/// Where the socket itself says that the client is, and has come to.
fn own_addresses(client: &Client) -> String {
    let socket = client.socket.get_ref();
    format!("{} {}", socket.local_addr().unwrap(), socket.peer_addr().unwrap())
}

const PROXIED: &str = "192.0.2.1:1000 192.0.2.2:443: hello";

#[test]
fn either_version_says_in_any_split_whose_client_it_is() {
    let Telling { server, .. } = on_loopback();
    let with_extension = v2(0x21, 0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 3, 232, 1, 187, 4, 0, 1, 0]);
    for header in [V1, &v2_from(1), &with_extension] {
        let input = [header, b"hello\n"].concat();
        let mut clients: Vec<Client> = (0..=input.len()).map(|_| server.client()).collect();
        for (split, client) in clients.iter_mut().enumerate() {
            client.send(&input[..split]);
        }
        // Or the kernel would put together what belongs together.
        thread::sleep(Duration::from_millis(50));
        for (split, client) in clients.iter_mut().enumerate() {
            client.send(&input[split..]);
            assert_eq!(client.line(), PROXIED, "split after {split} bytes");
        }
    }
    server.stop();
}

#[test]
fn a_header_may_come_byte_by_byte() {
    let Telling { server, .. } = on_loopback();
    let mut clients = [(); 2].map(|()| server.client());
    let inputs = [V1, &v2_from(1)].map(|header| [header, b"hello\n"].concat());
    for at in 0..inputs[0].len().max(inputs[1].len()) {
        for (client, input) in clients.iter_mut().zip(&inputs) {
            client.send(input.get(at..=at).unwrap_or_default());
        }
        thread::sleep(Duration::from_millis(1));
    }
    for client in &mut clients {
        assert_eq!(client.line(), PROXIED);
    }
    drop(clients);
    server.stop();
}

#[test]
fn what_comes_behind_a_header_at_once_is_not_lost() {
    const LINES: usize = 1_000;
    let Telling { server, .. } = on_loopback();
    for header in [V1, &v2_from(1)] {
        let mut client = server.client();
        client.send([header, &b"hello\n".repeat(LINES)].concat());
        for _ in 0..LINES {
            assert_eq!(client.line(), PROXIED);
        }
    }
    server.stop();
}

#[test]
fn a_client_of_a_proxy_is_known_by_its_own_address_everywhere() {
    let Telling { server, told } = on_loopback();
    let mut client = server.client();
    client.send([V1_SIX, b"hello\n"].concat());
    assert_eq!(client.line(), "[2001:db8::1]:1000 [2001:db8::2]:443: hello");
    assert_eq!(told.next(), "[2001:db8::1]:1000");
    let connection = &server.handle.connections().list()[0];
    let addresses = (connection.peer_addr.to_string(), connection.local_addr.to_string());
    assert_eq!(addresses, ("[2001:db8::1]:1000".to_owned(), "[2001:db8::2]:443".to_owned()));
    drop(client);
    server.stop();
}

#[test]
fn a_proxy_that_speaks_for_itself_keeps_the_address_of_its_socket() {
    let Telling { server, .. } = on_loopback();
    let unix = v2(0x21, 0x31, &[0; 216]);
    for header in
        [b"PROXY UNKNOWN\r\n", &v2(0x20, 0, &[])[..], &v2(0x20, 0x11, &v2_from(1)[16..]), &v2(0x21, 0, &[]), &unix]
    {
        let mut client = server.client();
        client.send([header, b"hello\n"].concat());
        assert_eq!(client.line(), format!("{}: hello", own_addresses(&client)), "{}", header.escape_ascii());
    }
    server.stop();
}

#[test]
fn a_proxy_must_say_whose_client_it_is() {
    let Telling { server, told } = on_loopback();
    let long = v2(0x21, 0x11, &[0; 5_000]);
    let endless = [b"PROXY TCP4 ", &[b'1'; 1_000][..]].concat();
    for (input, reason) in [
        (&b"hello\n"[..], "no header"),
        (b"\r\n\r\nhello\n", "no header"),
        (b"PROXY TCP4 nobody nowhere 1 2\r\n", "a malformed header of version 1"),
        (&endless, "a header of version 1 without end"),
        (&v2(0x21, 0x11, &[192, 0]), "a malformed header of version 2"),
        (&long, "a header of version 2 that is too long"),
        (b"", "the connection was closed before it"),
        (b"PROXY", "the connection was closed before it"),
    ] {
        let mut client = server.client();
        client.send(input);
        if reason.contains("closed") {
            client.end_sending();
        }
        assert_eq!(client.rest(), "", "{}", input.escape_ascii());
        // Nothing was heard of it before.
        assert_eq!(told.next(), format!("BadProxyHeader({reason:?})"), "{}", input.escape_ascii());
    }
    let stats = server.handle.stats();
    assert_eq!((stats.closed.bad_proxy_header, stats.traffic.frames_received), (8, 0));
    server.stop();
}

#[test]
fn from_elsewhere_a_header_is_only_bytes_of_the_protocol() {
    let Telling { server, .. } = on_loopback();
    let mut client = client_at(ELSEWHERE, &server);
    client.send(V1);
    let line = V1.strip_suffix(b"\n").unwrap().escape_ascii();
    assert_eq!(client.line(), format!("{}: {line}", own_addresses(&client)));
    drop(client);
    server.stop();
}

#[test]
fn a_proxy_is_known_by_its_ipv4_address_on_a_listener_for_both() {
    if !has_ipv6(test_name!()) {
        return;
    }
    let Telling { server, .. } = telling(Listener::tcp("[::]:0"), Limits::new());
    let mut client = Client::connect((PROXY, server.addr().port()));
    client.send([V1, b"hello\n"].concat());
    assert_eq!(client.line(), PROXIED);
    drop(client);
    server.stop();
}

#[test]
fn a_header_that_never_comes_is_waited_for_as_long_as_the_handshake_timeout_says() {
    let limits = Limits::new().handshake_timeout(Duration::from_millis(100));
    let Telling { server, told } = telling(Listener::tcp("127.0.0.1:0"), limits);
    for input in [&b""[..], b"PROXY TCP4 192.0.2.1 ", &v2_from(1)[..20]] {
        let mut client = server.client();
        client.send(input);
        assert_eq!(told.next(), "TimedOut(Handshake)");
        assert_eq!(client.rest(), "");
    }
    assert_eq!(server.handle.stats().closed.handshake_timeout, 3);
    server.stop();
}

#[test]
fn nothing_is_for_a_client_whose_header_is_awaited() {
    let Telling { server, told } = on_loopback();
    let mut client = server.client();
    client.send(&V1[..10]);
    eventually("it is accepted", || server.handle.stats().accepted_connections == 1);
    let broadcast = server.handle.broadcast("for those who are here\n");
    assert_eq!((broadcast.sent, broadcast.refused.len(), server.handle.connections().count()), (0, 0, 0));
    client.send(&V1[10..]);
    assert_eq!(told.next(), "192.0.2.1:1000");
    assert_eq!(server.handle.broadcast("for those who are here now\n").sent, 1);
    assert_eq!(client.line(), "for those who are here now");
    drop(client);
    server.stop();
}

#[test]
fn a_shutdown_does_not_wait_for_a_header() {
    let limits = Limits::new().handshake_timeout(Duration::MAX);
    let Telling { server, told } = telling(Listener::tcp("127.0.0.1:0"), limits);
    let mut client = server.client();
    client.send("PROXY");
    eventually("it is accepted", || server.handle.stats().accepted_connections == 1);
    server.stop();
    assert_eq!(told.next(), "Shutdown");
    assert_eq!(client.rest(), "");
}

/// Clients of a proxy, from these hosts of 192.0.2.0/24, one after the other; and whether each is served, or why not.
fn come(Telling { server, told }: &Telling, hosts: &[u8]) -> (Vec<Client>, Vec<String>) {
    let come = |host: &u8| {
        let mut client = server.client();
        client.send([&v2_from(*host)[..], b"hello\n"].concat());
        let told = told.next();
        // Who is served has connected; of the others it is only heard that they are closed.
        if told == format!("192.0.2.{host}:1000") {
            assert!(client.line().ends_with(": hello"));
            return (client, "served".to_owned());
        }
        assert_eq!(client.rest(), "");
        (client, told)
    };
    hosts.iter().map(come).unzip()
}

#[test]
fn behind_a_proxy_the_connections_of_each_client_are_counted_by_its_own_address() {
    let telling = telling(Listener::tcp("127.0.0.1:0"), Limits::new().max_connections_per_address(2));
    let (mut clients, outcomes) = come(&telling, &[1, 1, 1, 2, 2, 2, 3]);
    let too_many = "TooManyOfAddress";
    assert_eq!(outcomes, ["served", "served", too_many, "served", "served", too_many, "served"]);
    let Telling { server, told } = &telling;
    let stats = server.handle.stats();
    assert_eq!((stats.closed.too_many_of_address, stats.refused.total()), (2, 0));

    // Who closes gives the place back.
    drop(clients.remove(0));
    assert_eq!(told.next(), "Client");
    eventually("its place is free", || server.handle.stats().connections == 4);
    let (last, outcomes) = come(&telling, &[1]);
    assert_eq!(outcomes, ["served"]);

    // Elsewhere there is no proxy, so a refused client never becomes a connection.
    let mut others = [(); 3].map(|()| client_at(ELSEWHERE, server));
    assert_eq!(others[2].rest(), "");
    assert_eq!(server.handle.stats().refused.too_many_of_address, 1);
    drop((clients, last, others));
    telling.server.stop();
}

#[test]
fn behind_a_proxy_each_client_has_a_pace_of_its_own() {
    let limits = Limits::new().accept_rate_per_address(2, Duration::from_secs(600));
    let telling = telling(Listener::tcp("127.0.0.1:0"), limits);
    let (clients, outcomes) = come(&telling, &[1, 1, 1, 2, 2, 2, 3]);
    let too_fast = "TooFastOfAddress";
    assert_eq!(outcomes, ["served", "served", too_fast, "served", "served", too_fast, "served"]);
    let stats = telling.server.handle.stats();
    assert_eq!((stats.closed.too_fast_of_address, stats.refused.total()), (2, 0));
    let mut others = [(); 3].map(|()| client_at(ELSEWHERE, &telling.server));
    assert_eq!(others[2].rest(), "");
    assert_eq!(telling.server.handle.stats().refused.too_fast_of_address, 1);
    drop((clients, others));
    telling.server.stop();
}

/// HAProxy in front of a server, on a socket that it inherits, so its clients need not wait for it.
fn haproxy(directory: &TempDir, server: SocketAddr, how: &str) -> (Program, SocketAddr) {
    let config = directory.join(how);
    let text = format!(
        "defaults
            mode tcp
            timeout connect 30s
            timeout client 30s
            timeout server 30s
        listen front
            bind fd@0
            server back {server} {how}\n"
    );
    std::fs::write(&config, text).unwrap();
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = front.local_addr().unwrap();
    let mut command = Command::new("haproxy");
    (Program::start(command.args(["-db", "-f"]).arg(config).stdin(OwnedFd::from(front))), address)
}

#[test]
fn haproxy_says_whose_clients_it_has() {
    if !programs(&["haproxy"]) {
        return;
    }
    let directory = TempDir::new(test_name!());
    let Telling { server, .. } = on_loopback();
    for how in ["send-proxy", "send-proxy-v2"] {
        let (_haproxy, front) = haproxy(&directory, server.addr(), how);
        for _ in 0..10 {
            let mut client = Client::connect(front);
            client.send("hello\n");
            assert_eq!(client.line(), format!("{}: hello", own_addresses(&client)), "by {how}");
        }
    }
    server.stop();
}
