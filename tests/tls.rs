//! Listeners that speak TLS: certificates, handshakes, and everything that a plain connection promises, over records.

#![cfg(feature = "tls")]

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use backroom::{
    Broadcast, Certificate, ConnectionId, ConnectionInfo, Framing, Limits, Listener, Pem, ProxyProtocol, Server,
    ServerBuilder, SocketOptions, Tls, TlsConfig, TlsError, stage,
};
use common::{
    Client, Events, Gate, PATIENCE, Running, cpu_time, events, eventually, log_from, programs, run, run_again, succeeds,
};
use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};

/// One that issues certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate that an authority has issued.
struct Issued {
    chain: String,
    key: String,
    der: Vec<u8>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> Pem {
        Pem::text(self.0.pem())
    }

    /// For these hosts and addresses.
    fn issue(&self, names: &[&str]) -> Issued {
        self.issue_changed(names, |_| ())
    }

    fn issue_changed(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, "somebody");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { chain: certificate.pem(), key: key.serialize_pem(), der: certificate.der().to_vec() }
    }

    /// What a client knows that trusts this one.
    fn client(&self) -> ClientConfig {
        self.client_of(&[&TLS13, &TLS12], None)
    }

    fn client_of(&self, versions: &[&'static SupportedProtocolVersion], own: Option<&Issued>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots);
        let Some(own) = own else { return builder.with_no_client_auth() };
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
        builder.with_client_auth_cert(vec![own.der.clone().into()], key).unwrap()
    }
}

impl Issued {
    fn certificate(&self) -> Certificate {
        Certificate::new(Pem::text(&*self.chain), Pem::text(&*self.key))
    }
}

const HOST: &str = "server.test";

/// An authority, and a listener's TLS with a certificate of it for [`HOST`].
fn authority_and_tls() -> (Authority, Tls) {
    let authority = Authority::new("ours");
    let tls = Tls::new(TlsConfig::new(authority.issue(&[HOST]).certificate())).unwrap();
    (authority, tls)
}

/// A client that speaks lines over TLS.
struct TlsClient {
    socket: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl TlsClient {
    fn connect(addr: SocketAddr, config: impl Into<Arc<ClientConfig>>) -> TlsClient {
        TlsClient::connect_to(addr, config, HOST).unwrap()
    }

    /// Asks for a name, or for an address, and does its part of the handshake.
    fn connect_to(addr: SocketAddr, config: impl Into<Arc<ClientConfig>>, name: &str) -> io::Result<TlsClient> {
        TlsClient::over(TcpStream::connect(addr)?, config, name)
    }

    fn over(socket: TcpStream, config: impl Into<Arc<ClientConfig>>, name: &str) -> io::Result<TlsClient> {
        TlsClient::shake_hands(socket, client_connection(config, name))
    }

    fn shake_hands(mut socket: TcpStream, mut connection: ClientConnection) -> io::Result<TlsClient> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(TlsClient { socket: BufReader::new(StreamOwned::new(connection, socket)) })
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket.get_mut().write_all(bytes.as_ref()).unwrap();
        self.socket.get_mut().flush().unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.socket.read_line(&mut line).expect("an answer");
        assert!(line.ends_with('\n'), "the connection closed after {line:?}");
        line.pop();
        line
    }

    fn ask(&mut self, line: &str) -> String {
        self.send(format!("{line}\n"));
        self.line()
    }

    /// All that comes; an error where the server does not say that it is all.
    fn rest(&mut self) -> io::Result<String> {
        let mut rest = String::new();
        self.socket.read_to_string(&mut rest)?;
        Ok(rest)
    }

    /// Says that it will send no more.
    fn end_sending(&mut self) {
        self.tls().send_close_notify();
        self.socket.get_mut().flush().unwrap();
    }

    fn tls(&mut self) -> &mut ClientConnection {
        &mut self.socket.get_mut().conn
    }

    fn tcp(&self) -> &TcpStream {
        &self.socket.get_ref().sock
    }

    fn server_certificate(&mut self) -> Vec<u8> {
        self.tls().peer_certificates().unwrap()[0].to_vec()
    }
}

fn client_connection(config: impl Into<Arc<ClientConfig>>, name: &str) -> ClientConnection {
    let name = match name.parse::<IpAddr>() {
        Ok(ip) => ServerName::from(ip),
        Err(_) => ServerName::try_from(name.to_string()).unwrap(),
    };
    ClientConnection::new(config.into(), name).unwrap()
}

type Builder = ServerBuilder<Vec<u8>, Vec<u8>, (), (), stage::State>;

/// A server with a listener that speaks TLS, and one that does not.
struct Served {
    running: Running,
    /// Which connections are open,
    opened: Events<ConnectionId>,
    /// and why they closed.
    closed: Events<String>,
    /// What tasks wait for.
    gate: Gate,
}

/// Of TLS, with all the time in the world.
fn serve(tls: &Tls) -> Served {
    serve_with(tls, |builder| builder.limits(patient()))
}

fn patient() -> Limits {
    Limits::new().handshake_timeout(PATIENCE * 2)
}

/// Answers a line with itself, or with what the line asks for.
fn serve_with(tls: &Tls, configure: impl FnOnce(Builder) -> Builder) -> Served {
    let ((tell_opened, opened), (tell_closed, closed)) = (events(), events());
    let gate = Gate::default();
    let task_gate = gate.clone();
    let server = configure(Server::builder().framing(Framing::lines()))
        .listen(Listener::tcp("127.0.0.1:0").name("tls").tls(tls))
        .listen(Listener::tcp("127.0.0.1:0").name("plain"))
        .on_connect(move |conn| Ok(tell_opened.send(conn.id())?))
        .on_receive(|conn, line| {
            let answer = match line {
                b"tls" => conn.tls().map(|tls| {
                    let alpn = tls.alpn().map(String::from_utf8_lossy);
                    format!("{} {} {:?} {alpn:?}", tls.version(), tls.cipher_suite(), tls.server_name())
                }),
                b"who" => conn.tls().map(|tls| match tls.peer() {
                    Some(peer) => format!("{} {:?} {}", peer.subject, peer.names, hex(&peer.certificates[0])),
                    None => "nobody".to_string(),
                }),
                b"pause" => {
                    conn.pause();
                    return Ok(());
                }
                line if line.starts_with(b"task") => {
                    conn.task(line.to_vec())?;
                    return Ok(());
                }
                line if line.starts_with(b"x") => Some("x".repeat(ANSWER - 1)),
                line => Some(String::from_utf8_lossy(line).into_owned()),
            };
            conn.send(answer.unwrap_or_else(|| "plain".to_string()) + "\n")?;
            Ok(())
        })
        .on_task(move |_, mut line| {
            task_gate.pass();
            line.push(b'\n');
            Ok(line)
        })
        .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
        .on_close(move |_, reason| Ok(tell_closed.send(format!("{reason:?}"))?))
        .build()
        .unwrap();
    Served { running: run(server), opened, closed, gate }
}

/// How long an answer to `x` is.
const ANSWER: usize = 100 * 1024;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Served {
    fn addr(&self) -> SocketAddr {
        self.running.addr()
    }

    fn plain_addr(&self) -> SocketAddr {
        self.running.handle.local_addrs()[1].inet().unwrap()
    }

    /// One that is open, and has been heard of.
    fn client(&self, config: impl Into<Arc<ClientConfig>>) -> TlsClient {
        let client = TlsClient::connect(self.addr(), config);
        self.opened.next();
        client
    }

    /// Of the connection that is open, if it is the only one.
    fn info(&self) -> ConnectionInfo {
        self.running.handle.connections().list().pop().expect("a connection")
    }

    /// Closes the client, of which nobody has anything more to hear, and the server.
    fn stop(self, client: TlsClient) {
        drop(client);
        self.running.stop();
    }
}

/// A directory of a test, with files that are gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("backroom-tls-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_request_is_answered_over_both_versions() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    for (version, said) in [(&TLS13, "TLSv1_3 TLS13_AES_"), (&TLS12, "TLSv1_2 TLS_ECDHE_ECDSA_")] {
        let mut client = served.client(authority.client_of(&[version], None));
        assert_eq!(client.ask("hello"), "hello");
        let answer = client.ask("tls");
        assert!(answer.starts_with(said) && answer.ends_with("Some(\"server.test\") None"), "{answer}");
        assert_eq!(client.ask("who"), "nobody");
    }
    let mut plain = Client::connect(served.plain_addr());
    assert_eq!(plain.ask("tls"), "plain");
    drop(plain);
    served.running.stop();
}

#[test]
fn each_name_has_its_certificate_and_all_others_the_first() {
    let authority = Authority::new("ours");
    let [shop, mail] = ["shop.test", "mail.test"].map(|name| authority.issue(&[name]));
    let first = authority.issue(&["other.test", "127.0.0.1"]);
    let config =
        TlsConfig::new(first.certificate()).name("Shop.TEST", shop.certificate()).name("mail.test", mail.certificate());
    let served = serve(&Tls::new(config).unwrap());
    let config = Arc::new(authority.client());
    // An address is no name: such a client asks for none.
    for (name, issued, asked) in [
        ("shop.test", &shop, "Some(\"shop.test\")"),
        ("SHOP.test", &shop, "Some(\"shop.test\")"),
        ("mail.test", &mail, "Some(\"mail.test\")"),
        ("other.test", &first, "Some(\"other.test\")"),
        ("127.0.0.1", &first, "None"),
    ] {
        let mut client = TlsClient::connect_to(served.addr(), Arc::clone(&config), name).unwrap();
        assert_eq!(client.server_certificate(), issued.der, "{name}");
        let answer = client.ask("tls");
        assert!(answer.ends_with(&format!("{asked} None")), "{answer}");
    }
    served.running.stop();
}

#[test]
fn the_most_wanted_protocol_that_is_shared_is_agreed_on() {
    let authority = Authority::new("ours");
    let certificate = authority.issue(&[HOST]).certificate();
    let served = serve(&Tls::new(TlsConfig::new(certificate).alpn(["mail/2", "mail/1"])).unwrap());
    let speaks = |protocols: &[&str]| {
        let mut config = authority.client();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        TlsClient::connect_to(served.addr(), config, HOST)
    };
    for (protocols, agreed) in [
        (&["mail/1", "mail/2"][..], "Some(\"mail/2\")"),
        (&["else", "mail/1"], "Some(\"mail/1\")"),
        // One that names none may be of any.
        (&[], "None"),
    ] {
        let mut client = speaks(protocols).unwrap();
        let answer = client.ask("tls");
        assert!(answer.ends_with(agreed), "{answer}");
        served.opened.next();
        drop(client);
        assert_eq!(served.closed.next(), "Client");
    }
    let refused = speaks(&["else"]).err().unwrap();
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    assert_eq!(served.closed.next(), "TlsFailed(\"peer doesn't support any known protocol\")");
    served.running.stop();
}

/// A client certificate that says who its owner is in every way.
fn alice(authority: &Authority) -> Issued {
    authority.issue_changed(&["alice.test"], |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, "alice");
        params.subject_alt_names.push(SanType::Rfc822Name("alice@example.test".try_into().unwrap()));
        params.subject_alt_names.push(SanType::URI("https://example.test/alice".try_into().unwrap()));
        params.subject_alt_names.push(SanType::IpAddress([192, 0, 2, 1].into()));
    })
}

#[test]
fn a_client_is_known_by_its_certificate_and_when_it_comes_again_too() {
    let (authority, customers) = (Authority::new("ours"), Authority::new("of customers"));
    let config = TlsConfig::new(authority.issue(&[HOST]).certificate()).require_clients(customers.pem());
    let served = serve(&Tls::new(config).unwrap());
    let alice = alice(&customers);
    let who = format!(
        "CN=alice,O=Example {:?} {}",
        ["alice.test", "alice@example.test", "https://example.test/alice"],
        hex(&alice.der)
    );
    for version in [&TLS13, &TLS12] {
        let config = Arc::new(authority.client_of(&[version], Some(&alice)));
        for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
            let mut client = served.client(Arc::clone(&config));
            assert_eq!(client.ask("who"), who);
            assert_eq!(client.tls().handshake_kind(), Some(kind));
        }
    }
    served.running.stop();
}

#[test]
fn a_client_that_may_show_a_certificate_may_as_well_not() {
    let authority = Authority::new("ours");
    let config = TlsConfig::new(authority.issue(&[HOST]).certificate()).accept_clients(authority.pem());
    let served = serve(&Tls::new(config).unwrap());
    let alice = alice(&authority);
    assert_eq!(served.client(authority.client()).ask("who"), "nobody");
    let known = served.client(authority.client_of(&[&TLS13], Some(&alice))).ask("who");
    assert!(known.starts_with("CN=alice,O=Example "), "{known}");

    let stranger = Authority::new("another").issue(&["alice.test"]);
    let mut refused = TlsClient::connect(served.addr(), authority.client_of(&[&TLS13], Some(&stranger)));
    assert!(refused.rest().is_err());
    let closed: Vec<String> = (0..3).map(|_| served.closed.next()).filter(|reason| reason != "Client").collect();
    assert_eq!(closed, ["TlsFailed(\"invalid peer certificate: UnknownIssuer\")"]);
    served.running.stop();
}

/// Over both versions: 1.3 lets a client believe that it is through before the server has looked.
#[test]
fn a_client_without_the_right_certificate_is_turned_away_and_nobody_else_is() {
    let authority = Authority::new("ours");
    let config = TlsConfig::new(authority.issue(&[HOST]).certificate()).require_clients(authority.pem());
    let served = serve(&Tls::new(config).unwrap());
    let mut good = served.client(authority.client_of(&[&TLS13], Some(&alice(&authority))));

    let expired = authority.issue_changed(&[], |params| params.not_after = date_time_ymd(2020, 1, 1));
    let early = authority.issue_changed(&[], |params| params.not_before = date_time_ymd(2999, 1, 1));
    let stranger = Authority::new("another").issue(&[]);
    for (own, why) in [
        (None, "peer sent no certificates"),
        (Some(&stranger), "invalid peer certificate: UnknownIssuer"),
        (Some(&expired), "invalid peer certificate: certificate expired: "),
        (Some(&early), "invalid peer certificate: certificate not valid yet: "),
    ] {
        for version in [&TLS13, &TLS12] {
            let config = authority.client_of(&[version], own);
            let refused = TlsClient::connect_to(served.addr(), config, HOST).and_then(|mut client| client.rest());
            assert!(refused.is_err(), "{refused:?}");
            let closed = served.closed.next();
            assert!(closed.starts_with(&format!("TlsFailed(\"{why}")), "{closed}");
            assert_eq!(good.ask("hello"), "hello");
        }
    }
    served.stop(good);
}

#[test]
fn what_was_wrong_with_a_client_is_one_short_line_in_the_log() {
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    let log = log_from(log::LevelFilter::Info);
    let authority = Authority::new("ours");
    let config = TlsConfig::new(authority.issue(&[HOST]).certificate()).require_clients(authority.pem());
    let served = serve(&Tls::new(config).unwrap());
    let stranger = Authority::new("another").issue(&[]);
    for _ in 0..20 {
        let _ = TlsClient::connect(served.addr(), authority.client_of(&[&TLS13], Some(&stranger))).rest();
        assert!(served.closed.next().starts_with("TlsFailed"));
    }
    served.running.stop();
    let lines: Vec<String> = log.lock().iter().filter(|line| line.contains("TLS")).cloned().collect();
    assert!((1..10).contains(&lines.len()), "{lines:?}");
    let what = "TLS failed: invalid peer certificate: UnknownIssuer (0 more of the kind since the last line)";
    assert!(lines[0].starts_with("INFO connection ") && lines[0].ends_with(what), "{lines:?}");
}

#[test]
fn a_client_that_speaks_plainly_is_told_apart() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    for plain in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"hello\n", b"\0\0\0\x05hello", b"\r\n\r\n\0\r\nQUIT\n", &[b'x'; 4000]]
    {
        let mut client = Client::connect(served.addr());
        client.send(plain);
        client.rest();
        assert_eq!(served.closed.next(), "TlsFailed(\"the client does not speak TLS\")");
    }
    let mut client = served.client(authority.client());
    assert_eq!(client.ask("hello"), "hello");
    served.stop(client);
}

#[test]
fn a_client_that_says_nothing_holds_up_nobody() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(served.addr()).unwrap()).collect();
    eventually("all are accepted", || served.running.handle.stats().accepted_connections == 20);
    let mut client = served.client(authority.client());
    assert_eq!(client.ask("hello"), "hello");
    drop(silent);
    served.stop(client);
}

#[test]
fn a_client_that_does_not_come_to_the_end_of_its_handshake_is_closed() {
    let (authority, tls) = authority_and_tls();
    let time = Duration::from_millis(200);
    let served = serve_with(&tls, |builder| builder.limits(Limits::new().handshake_timeout(time)));
    let start = Instant::now();
    let silent = TcpStream::connect(served.addr()).unwrap();
    assert_eq!(served.closed.next(), "TimedOut(Handshake)");
    assert!(start.elapsed() >= time);
    drop(silent);

    // However many bytes come between.
    let mut slow = TcpStream::connect(served.addr()).unwrap();
    for byte in first_flight(authority.client()) {
        if slow.write_all(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(served.closed.next(), "TimedOut(Handshake)");
    served.running.stop();
}

/// The ClientHello.
fn first_flight(config: ClientConfig) -> Vec<u8> {
    let mut bytes = Vec::new();
    client_connection(config, HOST).write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_client_that_goes_in_the_middle_of_its_handshake_is_gone() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let hello = first_flight(authority.client());
    for sent in [0, 3, 100, hello.len()] {
        let mut client = Client::connect(served.addr());
        client.send(&hello[..sent]);
        client.end_sending();
        client.rest();
        assert_eq!(served.closed.next(), "TlsFailed(\"the client closed before the handshake was done\")");
    }
    let mut client = Client::connect(served.addr());
    client.send(&hello[..100]);
    client.reset();
    let closed = served.closed.next();
    assert!(closed.contains("ConnectionReset"), "{closed}");
    served.running.stop();
}

#[test]
fn a_handshake_may_come_byte_by_byte() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    for version in [&TLS13, &TLS12] {
        let mut socket = TcpStream::connect(served.addr()).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut connection = client_connection(authority.client_of(&[version], None), HOST);
        while connection.is_handshaking() {
            let mut bytes = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut bytes).unwrap();
            }
            for byte in bytes {
                socket.write_all(&[byte]).unwrap();
                thread::yield_now();
            }
            if connection.is_handshaking() {
                connection.read_tls(&mut (&socket).take(1)).unwrap();
                connection.process_new_packets().unwrap();
            }
        }
        let mut client = TlsClient { socket: BufReader::new(StreamOwned::new(connection, socket)) };
        assert_eq!(client.ask("hello"), "hello");
    }
    served.running.stop();
}

#[test]
fn a_proxy_says_whose_client_it_is_before_the_handshake() {
    let (authority, tls) = authority_and_tls();
    let listener = Listener::tcp("127.0.0.1:0").tls(&tls).proxy_protocol(ProxyProtocol::from(["127.0.0.1"]));
    let server = Server::builder::<(), ()>()
        .listen(listener)
        .on_receive(|conn, _| Ok(conn.send(format!("{}\n", conn.peer_addr()))?))
        .on_task(|_, ()| Ok(()))
        .build()
        .unwrap();
    let server = run(server);
    let mut socket = TcpStream::connect(server.addr()).unwrap();
    let mut connection = client_connection(authority.client(), HOST);
    // In one packet with the client's own.
    let mut bytes = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n".to_vec();
    connection.write_tls(&mut bytes).unwrap();
    socket.write_all(&bytes).unwrap();
    let mut client = TlsClient::shake_hands(socket, connection).unwrap();
    assert_eq!(client.ask("who"), "192.0.2.1:1000");
    drop(client);
    server.stop();
}

/// A certificate in two files.
fn write(issued: &Issued, chain: &Path, key: &Path) {
    fs::write(chain, &issued.chain).unwrap();
    fs::write(key, &issued.key).unwrap();
}

#[test]
fn files_that_have_changed_are_for_new_clients_once_they_are_reloaded() {
    let (authority, directory) = (Authority::new("ours"), Directory::new("reload"));
    let (chain, key) = (directory.path("chain.pem"), directory.path("key.pem"));
    let [first, second, third] = [(); 3].map(|()| authority.issue(&[HOST]));
    let config = Arc::new(authority.client());
    let meets = |served: &Served, issued: &Issued| {
        let mut client = served.client(Arc::clone(&config));
        assert_eq!(client.server_certificate(), issued.der);
        client
    };

    write(&first, &chain, &key);
    let tls = Tls::new(TlsConfig::new(Certificate::files(&chain, &key))).unwrap();
    let served = serve(&tls);
    let mut old = meets(&served, &first);
    write(&second, &chain, &key);
    meets(&served, &first);
    tls.reload().unwrap();
    let mut new = meets(&served, &second);

    // What is broken is an error, and changes nothing.
    fs::write(&chain, "-----BEGIN CERTIFICATE-----\nnonsense\n").unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::Unusable(_))));
    fs::write(&chain, &third.chain).unwrap();
    let mismatch = tls.reload().unwrap_err();
    assert!(mismatch.to_string().starts_with(&format!("{} with {}: ", chain.display(), key.display())), "{mismatch}");
    fs::remove_file(&chain).unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::Read { path, .. }) if path == chain));
    meets(&served, &second);

    tls.replace(TlsConfig::new(third.certificate())).unwrap();
    meets(&served, &third);
    assert!(tls.replace(TlsConfig::new(Certificate::files(&chain, &key))).is_err());
    // What is in memory now is what is reloaded.
    tls.reload().unwrap();
    meets(&served, &third);

    assert_eq!([old.ask("hello"), new.ask("hello")], ["hello", "hello"]);
    drop((old, new));
    served.running.stop();
}

/// A pipe stands for a file that takes long to read: the old configuration must not come after the new.
#[test]
fn a_slow_reload_does_not_undo_what_replaced_it() {
    let (authority, directory) = (Authority::new("ours"), Directory::new("slow-reload"));
    let (chain, key) = (directory.path("chain.pem"), directory.path("key.pem"));
    let [old, new] = [(); 2].map(|()| authority.issue(&[HOST]));
    write(&old, &chain, &key);
    let tls = Tls::new(TlsConfig::new(Certificate::files(&chain, &key))).unwrap();
    fs::remove_file(&chain).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &chain, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();

    thread::scope(|scope| {
        let reload = scope.spawn(|| tls.reload());
        // Opened only when the other end is.
        let mut pipe = fs::OpenOptions::new().write(true).open(&chain).unwrap();
        let replace = scope.spawn(|| tls.replace(TlsConfig::new(new.certificate())));
        thread::sleep(Duration::from_millis(100));
        pipe.write_all(old.chain.as_bytes()).unwrap();
        drop(pipe);
        reload.join().unwrap().unwrap();
        replace.join().unwrap().unwrap();
    });
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    assert_eq!(client.server_certificate(), new.der);
    served.stop(client);
}

#[test]
fn a_client_that_comes_again_is_judged_by_what_holds_by_then() {
    let authority = Authority::new("ours");
    let server = authority.issue(&[HOST]);
    let requires = |issuer: &Authority| TlsConfig::new(server.certificate()).require_clients(issuer.pem());
    let tls = Tls::new(requires(&authority)).unwrap();
    let served = serve(&tls);
    let config = Arc::new(authority.client_of(&[&TLS13], Some(&alice(&authority))));
    assert_eq!(served.client(Arc::clone(&config)).ask("hello"), "hello");
    assert_eq!(served.closed.next(), "Client");

    // It could go on with the session that it had.
    tls.replace(requires(&Authority::new("another"))).unwrap();
    assert!(TlsClient::connect(served.addr(), config).rest().is_err());
    assert_eq!(served.closed.next(), "TlsFailed(\"invalid peer certificate: UnknownIssuer\")");
    served.running.stop();
}

#[test]
fn what_cannot_be_used_is_an_error_that_says_what_and_shows_no_key() {
    let (authority, directory) = (Authority::new("ours"), Directory::new("errors"));
    let [one, other] = [(); 2].map(|()| authority.issue(&[HOST]));
    let absent = directory.path("absent.pem");
    let error = |chain: Pem, key: Pem| Tls::new(TlsConfig::new(Certificate::new(chain, key))).err().unwrap();
    let text = |text: &str| Pem::text(text);
    for (error, says) in [
        (error(Pem::file(&absent), text(&one.key)), format!("cannot read {}", absent.display())),
        (error(text(""), text(&one.key)), "a text in memory has no certificate".to_string()),
        (error(text(&one.key), text(&one.key)), "a text in memory has no certificate".to_string()),
        (error(text(&one.chain), text("")), "a text in memory: no private key: no items found".to_string()),
        (error(text(&one.chain), text(PKCS8_ENCRYPTED)), "a text in memory: the key is encrypted".to_string()),
        (error(text(&one.chain), text(PKCS1_ENCRYPTED)), "a text in memory: the key is encrypted".to_string()),
        (error(text(&one.chain), text(&other.key)), "a text in memory with a text in memory: ".to_string()),
    ] {
        assert!(error.to_string().starts_with(&says), "{error}");
    }
    let clients = TlsConfig::new(one.certificate()).require_clients(text("nothing"));
    assert_eq!(Tls::new(clients).err().unwrap().to_string(), "a text in memory has no certificate");

    for name in ["", " ", ".", "*", "*.", "a b", "shop.*.test", "*.*.test", "ümlaut.test"] {
        let named = TlsConfig::new(one.certificate()).name(name, other.certificate());
        let error = Tls::new(named).err().unwrap().to_string();
        assert_eq!(error, format!("{name:?} is no name of a host that a client could ask for"));
    }

    let tls = Tls::new(TlsConfig::new(one.certificate())).unwrap();
    assert!(!format!("{tls:?}").contains("PRIVATE"));
}

const PKCS8_ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIE\n-----END ENCRYPTED PRIVATE KEY-----\n";
const PKCS1_ENCRYPTED: &str = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n\
                               MIIE\n-----END RSA PRIVATE KEY-----\n";

#[test]
fn a_mark_of_encoding_at_the_beginning_of_a_file_does_no_harm() {
    let authority = Authority::new("ours");
    let issued = authority.issue(&[HOST]);
    let marked = |text: &str| Pem::text(format!("\u{feff}{text}"));
    let certificate = Certificate::new(marked(&issued.chain), marked(&issued.key));
    let served = serve(&Tls::new(TlsConfig::new(certificate)).unwrap());
    let mut client = served.client(authority.client());
    assert_eq!(client.ask("hello"), "hello");
    served.stop(client);
}

#[test]
fn a_name_with_a_star_is_for_all_names_of_one_more_label_that_have_none_of_their_own() {
    let authority = Authority::new("ours");
    let [star, own] = [&["*.shop.test"][..], &["own.shop.test"]].map(|names| authority.issue(names));
    let first = authority.issue(&["shop.test", "a.b.shop.test", "dotted.test"]);
    let dotted = authority.issue(&["dotted.test"]);
    let config = TlsConfig::new(first.certificate())
        .name("*.Shop.test", star.certificate())
        .name("own.shop.test", own.certificate())
        .name("dotted.test.", dotted.certificate());
    let served = serve(&Tls::new(config).unwrap());
    let config = Arc::new(authority.client());
    for (name, issued) in [
        ("any.shop.test", &star),
        ("ANY.shop.test", &star),
        ("own.shop.test", &own),
        ("shop.test", &first),
        ("a.b.shop.test", &first),
        ("dotted.test", &dotted),
    ] {
        let mut client = TlsClient::connect_to(served.addr(), Arc::clone(&config), name).unwrap();
        assert_eq!(client.server_certificate(), issued.der, "{name}");
    }
    served.running.stop();
}

#[test]
fn a_configuration_of_rustls_serves_as_it_is_and_can_be_replaced() {
    let authority = Authority::new("ours");
    let [first, second] = [(); 2].map(|()| authority.issue(&[HOST]));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![first.der.clone().into()], PrivateKeyDer::from_pem_slice(first.key.as_bytes()).unwrap())
        .unwrap();
    let tls = Tls::from_rustls(Arc::new(config));
    let served = serve(&tls);
    tls.reload().unwrap();
    let mut client = served.client(authority.client());
    assert_eq!(client.server_certificate(), first.der);
    assert!(client.ask("tls").starts_with("TLSv1_2 "));
    tls.replace(TlsConfig::new(second.certificate())).unwrap();
    let mut client = served.client(authority.client());
    assert_eq!(client.server_certificate(), second.der);
    assert!(client.ask("tls").starts_with("TLSv1_3 "));
    served.stop(client);
}

/// Whoever sees early data pass can send it again, to have a request served twice.
#[test]
fn early_data_is_not_taken_whatever_the_configuration_says() {
    let authority = Authority::new("ours");
    let own = authority.issue(&[HOST]);
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der.clone().into()], PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap())
        .unwrap();
    config.max_early_data_size = 1000;
    let config = Arc::new(config);
    let mut client = authority.client_of(&[&TLS13], None);
    client.enable_early_data = true;
    let client = Arc::new(client);

    // Another server of the same configuration promises the client that it takes some.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = other.local_addr().unwrap();
    let others = Arc::clone(&config);
    let other = thread::spawn(move || {
        let (socket, _) = other.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(others).unwrap(), socket);
        stream.write_all(b"hello\n").unwrap();
    });
    assert_eq!(TlsClient::connect(addr, Arc::clone(&client)).line(), "hello");
    other.join().unwrap();

    let served = serve(&Tls::from_rustls(config));
    let mut connection = client_connection(client, HOST);
    connection.early_data().expect("it was promised").write_all(b"early\n").unwrap();
    let socket = TcpStream::connect(served.addr()).unwrap();
    let mut client = TlsClient::shake_hands(socket, connection).unwrap();
    assert!(!client.tls().is_early_data_accepted());
    assert_eq!(client.ask("again"), "again");
    served.stop(client);
}

#[test]
fn requests_come_whole_however_they_lie_in_records() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    client.send("one\ntwo\nthree\n");
    for part in ["fo", "ur", "\nfi", "ve\n"] {
        client.send(part);
    }
    for answer in ["one", "two", "three", "four", "five"] {
        assert_eq!(client.line(), answer);
    }
    // Longer than a record can be.
    let long = "y".repeat(100_000);
    assert_eq!(client.ask(&long), long);
    served.stop(client);
}

const FRAMES: usize = 1000;

fn frames(prefix: &str) -> String {
    (0..FRAMES).map(|frame| format!("{prefix}{frame}\n")).collect()
}

/// What TLS has decrypted is not to be seen on the socket.
#[test]
fn no_frame_of_a_record_waits_for_the_next_one() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    for prefix in ["", &"long ".repeat(20)] {
        client.send(frames(prefix));
        for frame in 0..FRAMES {
            assert_eq!(client.line(), format!("{prefix}{frame}"));
        }
    }
    served.stop(client);
}

#[test]
fn no_frame_of_a_record_is_lost_while_the_queue_is_full() {
    let (authority, tls) = authority_and_tls();
    let served = serve_with(&tls, |builder| {
        builder.task_worker_num(2).queue_capacity(2).max_tasks_in_flight(3).results_in_order(true)
    });
    let mut client = served.client(authority.client());
    client.send(frames("task "));
    eventually("the cap is reached", || served.running.handle.stats().tasks.accepted == 3);
    // The client is silent from here on.
    served.gate.open();
    for frame in 0..FRAMES {
        assert_eq!(client.line(), format!("task {frame}"));
    }
    served.stop(client);
}

#[test]
fn no_frame_of_a_record_is_lost_while_the_connection_is_paused() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    client.send(format!("pause\n{}", frames("")));
    eventually("it is paused", || served.info().frames_received == 1);
    assert!(served.running.handle.resume(served.info().id));
    for frame in 0..FRAMES {
        assert_eq!(client.line(), frame.to_string());
    }
    served.stop(client);
}

#[test]
fn results_come_to_a_client_that_is_silent() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    client.send("task 1\n");
    eventually("it runs", || served.running.handle.stats().tasks.running == 1);
    served.running.handle.send(served.info().id, "news\n").unwrap();
    assert_eq!(client.line(), "news");
    served.gate.open();
    assert_eq!(client.line(), "task 1");
    served.stop(client);
}

#[test]
fn a_client_that_ends_its_half_gets_all_it_is_owed_and_is_told_that_this_is_all() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    for version in [&TLS13, &TLS12] {
        for (at_once, ends_tcp_too) in [(false, false), (true, false), (true, true)] {
            let mut client = served.client(authority.client_of(&[version], None));
            if at_once {
                client.tls().writer().write_all(b"task 1\ntask 2\nunfinished").unwrap();
            } else {
                client.send("task 1\ntask 2\nunfinished");
                eventually("it is read", || served.info().bytes_received == 24);
            }
            client.end_sending();
            if ends_tcp_too {
                client.tcp().shutdown(Shutdown::Write).unwrap();
            }
            served.gate.open();
            let mut answers: Vec<String> = client.rest().unwrap().lines().map(str::to_string).collect();
            answers.sort();
            assert_eq!(answers, ["task 1", "task 2"]);
            assert_eq!(served.closed.next(), "Client");
        }
    }
    served.running.stop();
}

#[test]
fn a_client_is_told_that_this_is_all_whoever_closes() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    assert_eq!(client.ask("hello"), "hello");
    served.running.handle.send(served.info().id, "goodbye\n").unwrap();
    assert!(served.running.handle.close(served.info().id));
    assert_eq!(client.rest().unwrap(), "goodbye\n");
    assert_eq!(served.closed.next(), "Server");

    let mut client = served.client(authority.client());
    let mut aborted = served.client(authority.client());
    assert!(served.running.handle.abort(served.info().id));
    assert!(aborted.rest().is_err());
    assert_eq!(served.closed.next(), "Aborted");

    served.running.handle.shutdown(PATIENCE);
    assert_eq!(client.rest().unwrap(), "");
    assert_eq!(served.closed.next(), "Shutdown");
    drop(client);
    served.running.ended();
}

#[test]
fn the_keys_may_change_at_any_time() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    for round in 0..100 {
        client.tls().refresh_traffic_keys().unwrap();
        // Alone, and with a request.
        if round % 2 == 0 {
            client.send("");
        }
        assert_eq!(client.ask("hello"), "hello");
    }
    served.stop(client);
}

#[test]
fn a_client_that_does_nothing_but_change_its_keys_is_closed() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    for _ in 0..1000 {
        client.tls().refresh_traffic_keys().unwrap();
        if client.socket.get_mut().flush().is_err() {
            break;
        }
    }
    let closed = served.closed.next();
    assert!(closed.starts_with("TlsFailed(\"peer misbehaved: TooManyKeyUpdateRequests"), "{closed}");
    served.stop(client);
}

#[test]
fn what_is_no_record_in_the_middle_closes_the_connection() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    // Of the right form and not to be decrypted; of no form at all.
    for (bytes, why) in [
        (&b"\x17\x03\x03\x00\x20................................"[..], "cannot decrypt peer's message"),
        (b"GET / HTTP/1.1\r\n\r\n", "the client does not speak TLS"),
    ] {
        let mut client = served.client(authority.client());
        assert_eq!(client.ask("hello"), "hello");
        client.tcp().write_all(bytes).unwrap();
        assert!(client.rest().is_err());
        assert_eq!(served.closed.next(), format!("TlsFailed({why:?})"));
    }
    served.running.stop();
}

/// Lines, each of which is answered.
fn many_lines() -> String {
    (0..3000).map(|line| format!("{line}\n")).collect()
}

#[test]
fn all_that_a_client_sent_before_it_closed_is_received_though_no_answer_can_be_sent() {
    let (authority, tls) = authority_and_tls();
    for version in [&TLS13, &TLS12] {
        let served = serve(&tls);
        let config = Arc::new(authority.client_of(&[version], None));
        let mut client = served.client(Arc::clone(&config));
        client.send(many_lines());
        drop(client);
        // With the end of the handshake come the lines and the end.
        let mut connection = client_connection(config, HOST);
        connection.writer().write_all(many_lines().as_bytes()).unwrap();
        let mut client = TlsClient::shake_hands(TcpStream::connect(served.addr()).unwrap(), connection).unwrap();
        client.socket.get_mut().flush().unwrap();
        drop(client);
        for _ in 0..2 {
            let closed = served.closed.next();
            assert!(closed.contains("BrokenPipe") || closed.contains("ConnectionReset"), "{closed}");
        }
        assert_eq!(served.running.handle.stats().traffic.frames_received, 6000);
        served.running.stop();
    }
}

#[test]
fn what_a_client_sent_before_a_record_that_is_none_is_received() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut client = served.client(authority.client());
    let mut flight = Vec::new();
    client.tls().writer().write_all(b"one\ntwo\n").unwrap();
    while client.tls().wants_write() {
        client.tls().write_tls(&mut flight).unwrap();
    }
    flight.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    client.tcp().write_all(&flight).unwrap();
    assert_eq!(served.closed.next(), "TlsFailed(\"the client does not speak TLS\")");
    assert_eq!(served.running.handle.stats().traffic.frames_received, 2);
    served.stop(client);
}

#[test]
fn what_is_unfinished_is_a_line_only_where_the_client_itself_has_ended() {
    let (authority, tls) = authority_and_tls();
    let (tell, told) = events();
    let server = Server::builder::<(), ()>()
        .framing(Framing::lines().unfinished_too())
        .listen(Listener::tcp("127.0.0.1:0").tls(&tls))
        .on_receive(move |_, line| Ok(tell.send(String::from_utf8_lossy(line).into_owned())?))
        .on_task(|_, ()| Ok(()))
        .build()
        .unwrap();
    let server = run(server);
    for version in [&TLS13, &TLS12] {
        let connect = || TlsClient::connect(server.addr(), Arc::new(authority.client_of(&[version], None)));
        let mut cut_off = connect();
        cut_off.send("delete /home\ndelete /home/x");
        cut_off.tcp().shutdown(Shutdown::Write).unwrap();
        assert_eq!(cut_off.rest().unwrap(), "");
        let mut ends = connect();
        ends.send("delete /tmp/x");
        ends.end_sending();
        assert_eq!(ends.rest().unwrap(), "");
        assert_eq!([told.next(), told.next()], ["delete /home", "delete /tmp/x"]);
    }
    assert_eq!(server.handle.stats().closed.unfinished, 2);
    server.stop();
}

#[test]
fn a_client_whose_tls_fails_after_a_pause_reads_why() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut clients: Vec<_> = (0..10).map(|_| served.client(authority.client())).collect();
    // A client counts as active for a second.
    thread::sleep(Duration::from_millis(1100));
    for client in &mut clients {
        client.tcp().write_all(&[b'x'; 1024]).unwrap();
        served.closed.next();
        // The server has seen what is wrong, and more is coming.
        for _ in 0..64 {
            client.tcp().write_all(&[b'x'; 1024]).expect("it is not reset");
        }
        let error = client.rest().unwrap_err().to_string();
        assert!(error.contains("alert"), "{error}");
    }
    drop(clients);
    served.running.stop();
}

#[test]
fn a_client_that_goes_on_sending_reads_why_tls_has_refused_it() {
    let authority = Authority::new("ours");
    let config = TlsConfig::new(authority.issue(&[HOST]).certificate()).require_clients(authority.pem());
    let served = serve(&Tls::new(config).unwrap());
    let config = Arc::new(authority.client_of(&[&TLS13], None));
    for _ in 0..10 {
        let mut client = TlsClient::connect(served.addr(), Arc::clone(&config));
        client.send([b'x'; 64 * 1024]);
        let error = client.rest().unwrap_err().to_string();
        assert!(error.contains("CertificateRequired"), "{error}");
        served.closed.next();
    }
    served.running.stop();
}

#[test]
fn a_client_that_reads_late_gets_every_byte_and_the_outbox_stays_bounded() {
    const ANSWERS: usize = 100;
    const MAX: usize = 256 * 1024;
    let (authority, tls) = authority_and_tls();
    let served = serve_with(&tls, |builder| builder.limits(patient().max_outbox(MAX)));
    for version in [&TLS13, &TLS12] {
        let mut client = served.client(authority.client_of(&[version], None));
        client.send("x\n".repeat(ANSWERS));
        eventually("no more is taken from it", || served.info().outbox_bytes > MAX / 2);
        let mut piece = vec![0; 10_000];
        let mut left = ANSWERS * ANSWER;
        while left > 0 {
            let n = client.socket.read(&mut piece).unwrap();
            left -= n;
            assert!(n > 0 && piece[..n].iter().all(|byte| matches!(byte, b'x' | b'\n')));
            assert!(served.info().outbox_bytes <= MAX);
        }
        assert_eq!(client.ask("hello"), "hello");
        drop(client);
        assert_eq!(served.closed.next(), "Client");
    }
    served.running.stop();
}

#[test]
fn a_client_that_takes_nothing_is_closed_by_the_write_timeout() {
    let (authority, tls) = authority_and_tls();
    let time = Duration::from_millis(200);
    let served = serve_with(&tls, |builder| builder.limits(patient().write_timeout(time)));
    let mut client = served.client(authority.client());
    client.send("x\n".repeat(200));
    assert_eq!(served.closed.next(), "TimedOut(Write)");
    served.stop(client);
}

/// What waits within TLS goes out bit by bit, and each bit is something that the client takes.
#[test]
fn a_client_that_takes_little_at_a_time_is_not_closed_by_the_write_timeout() {
    let (authority, tls) = authority_and_tls();
    let served = serve_with(&tls, |builder| {
        let limits = patient().write_timeout(Duration::from_millis(400));
        builder.limits(limits).socket_options(SocketOptions::new().send_buffer(4 * 1024))
    });
    let connect = |addr: SocketAddr| -> TcpStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        socket.connect(&addr.into()).unwrap();
        socket.into()
    };
    let mut plain = connect(served.plain_addr());
    plain.write_all(b"x\n").unwrap();
    take_slowly(&mut plain);

    let mut client = TlsClient::over(connect(served.addr()), authority.client(), HOST).unwrap();
    client.send("x\n");
    take_slowly(client.socket.get_mut());
    drop((plain, client));
    assert_eq!([served.closed.next(), served.closed.next()], ["Client", "Client"]);
    served.running.stop();
}

fn take_slowly(client: &mut impl Read) {
    let mut piece = [0; 2 * 1024];
    let mut left = ANSWER;
    while left > 0 {
        let n = client.read(&mut piece).expect("more of the answer");
        assert!(n > 0, "{left} bytes are missing");
        left -= n;
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_file_goes_out_in_turn_with_what_else_is_sent() {
    let (authority, tls) = authority_and_tls();
    let directory = Directory::new("send-file");
    let path = directory.path("file");
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    fs::write(&path, &content).unwrap();
    let server = Server::builder::<(), ()>()
        .listen(Listener::tcp("127.0.0.1:0").tls(&tls))
        .on_receive(move |conn, _| {
            conn.send("before")?;
            conn.send_file(fs::File::open(&path)?, 1_000, Some(2_500_000))?;
            conn.send("between")?;
            conn.send_file(fs::File::open(&path)?, 2_999_990, None)?;
            conn.send("after")?;
            conn.close();
            Ok(())
        })
        .on_task(|_, ()| Ok(()))
        .build()
        .unwrap();
    let server = run(server);
    let mut client = TlsClient::connect(server.addr(), authority.client());
    client.send("send it");
    let mut received = Vec::new();
    client.socket.read_to_end(&mut received).unwrap();
    let sent = [b"before", &content[1_000..2_501_000], b"between", &content[2_999_990..], b"after"].concat();
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    drop(client);
    server.stop();
}

#[test]
fn a_broadcast_reaches_clients_of_all_kinds() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut plain = Client::connect(served.plain_addr());
    served.opened.next();
    let mut clients = [&TLS13, &TLS12].map(|version| served.client(authority.client_of(&[version], None)));
    let news = "n".repeat(200_000);
    let Broadcast { sent, refused, .. } = served.running.handle.broadcast(format!("{news}\n"));
    assert_eq!((sent, refused), (3, vec![]));
    assert_eq!(plain.line(), news);
    for client in &mut clients {
        assert_eq!(client.line(), news);
    }
    drop((plain, clients));
    served.running.stop();
}

#[test]
fn a_shutdown_in_the_middle_of_handshakes_waits_for_none_of_them() {
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let hello = first_flight(authority.client());
    let clients: Vec<Client> = [0, 50, hello.len()]
        .map(|sent| {
            let mut client = Client::connect(served.addr());
            client.send(&hello[..sent]);
            client
        })
        .into();
    eventually("all are accepted", || served.running.handle.stats().accepted_connections == 3);
    let start = Instant::now();
    served.running.stop();
    assert!(start.elapsed() < PATIENCE / 2, "their handshakes could take far longer");
    let closed: Vec<String> = (0..3).map(|_| served.closed.next()).collect();
    assert_eq!(closed, ["Shutdown"; 3]);
    drop(clients);
}

/// Paused with frames that wait, with a client that takes nothing, and with one that has ended its half.
#[test]
fn a_connection_that_waits_costs_nothing() {
    if let Some(child) = in_child!() {
        succeeds(child);
        return;
    }
    let (authority, tls) = authority_and_tls();
    let served = serve(&tls);
    let mut paused = served.client(authority.client());
    paused.send(format!("pause\n{}", frames("")));
    eventually("it is paused", || served.info().frames_received == 1);
    let mut deaf = served.client(authority.client());
    deaf.send("x\n".repeat(200));
    eventually("it is congested", || served.info().outbox_bytes > 512 * 1024);
    let mut ended = served.client(authority.client());
    ended.send("task\n");
    ended.end_sending();
    ended.tcp().shutdown(Shutdown::Write).unwrap();
    eventually("its task runs", || served.running.handle.stats().tasks.running == 1);

    let before = cpu_time();
    thread::sleep(Duration::from_millis(500));
    let spent = cpu_time() - before;
    assert!(spent < Duration::from_millis(100), "{spent:?}");
    served.gate.open();
    drop((paused, deaf, ended));
    served.running.stop();
}

/// Certificates by the program, and the program as the client.
mod openssl {
    use super::*;

    fn openssl(directory: &Directory, args: &str) {
        let output = Command::new("openssl").args(args.split_whitespace()).current_dir(&directory.0).output().unwrap();
        assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// `NAME.pem` and `NAME.key`, issued by `ca.pem`.
    fn issue(directory: &Directory, name: &str, key: &str, subject: &str, names: &str) {
        fs::write(directory.path("names"), format!("subjectAltName={names}\n")).unwrap();
        openssl(directory, &format!("req -newkey {key} -nodes -keyout {name}.key -out {name}.csr -subj {subject}"));
        let issuer = "-CA ca.pem -CAkey ca.key -CAcreateserial";
        openssl(directory, &format!("x509 -req -in {name}.csr {issuer} -days 2 -extfile names -out {name}.pem"));
    }

    /// What the server answers to these lines.
    fn s_client(directory: &Directory, addr: SocketAddr, args: &str, lines: &[&str]) -> Vec<String> {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &addr.to_string(), "-CAfile", "ca.pem", "-verify_return_error", "-quiet"])
            .args(args.split_whitespace())
            .current_dir(&directory.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut answers = Vec::new();
        for _ in lines {
            let mut answer = String::new();
            // Empty where the connection has ended.
            stdout.read_line(&mut answer).unwrap();
            answers.push(answer.trim_end().to_string());
        }
        let _ = child.kill();
        child.wait().unwrap();
        answers
    }

    /// The least `worker_stack_size` there may be.
    #[test]
    fn a_handshake_with_keys_of_4096_bits_and_a_reported_panic_fit_on_the_least_stack() {
        if !programs(&["openssl"]) {
            return;
        }
        if let Some(child) = run_again(&format!("openssl::{}", test_name!())) {
            succeeds(child);
            return;
        }
        let directory = Directory::new("least");
        openssl(&directory, "req -x509 -newkey rsa:4096 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority");
        issue(&directory, "server", "rsa:4096", "/CN=server", "DNS:server.test");
        issue(&directory, "alice", "rsa:4096", "/CN=alice", "DNS:alice.test");
        let certificate = Certificate::files(directory.path("server.pem"), directory.path("server.key"));
        let config = TlsConfig::new(certificate).require_clients(Pem::file(directory.path("ca.pem")));
        let (tell, told) = events();
        let least = |bytes| {
            Server::builder::<(), ()>()
                .framing(Framing::lines())
                .worker_stack_size(bytes)
                .listen(Listener::tcp("127.0.0.1:0").tls(&Tls::new(config.clone()).unwrap()))
                .on_receive(|conn, _| {
                    let known = conn.tls().and_then(|tls| tls.peer()).map(|peer| peer.names.join(" "));
                    conn.send(format!("{known:?}\n"))?;
                    panic!("as the test wants: {}", conn.id())
                })
                .on_task(|_, ()| Ok(()))
                .on_close({
                    let tell = tell.clone();
                    move |_, reason| Ok(tell.send(reason.to_string())?)
                })
                .build()
        };
        const LEAST: usize = 128 * 1024;
        assert!(least(LEAST - 1).is_err());
        let server = run(least(LEAST).unwrap());
        for version in ["-tls1_3", "-tls1_2"] {
            let args = format!("{version} -servername server.test -cert alice.pem -key alice.key");
            let answers = s_client(&directory, server.addr(), &args, &["hello"]);
            assert_eq!(answers, ["Some(\"alice.test\")"]);
            let reason = told.next();
            assert!(reason.contains("as the test wants"), "{reason}");
        }
        server.stop();
    }

    #[test]
    fn openssl_is_answered_with_certificates_that_it_made() {
        if !programs(&["openssl"]) {
            return;
        }
        let directory = Directory::new("openssl");
        openssl(&directory, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=authority");
        issue(&directory, "server", "rsa:2048", "/CN=server", "DNS:server.test");
        openssl(&directory, "ecparam -name prime256v1 -out curve");
        issue(&directory, "shop", "ec:curve", "/CN=shop", "DNS:shop.test");
        issue(&directory, "alice", "rsa:2048", "/O=Example/CN=alice", "email:alice@example.test,DNS:alice.test");
        // The old forms of keys too.
        openssl(&directory, "rsa -traditional -in server.key -out server.key.1");
        openssl(&directory, "ec -in shop.key -out shop.key.1");
        for (key, begins) in [("server.key.1", "BEGIN RSA PRIVATE"), ("shop.key.1", "BEGIN EC PRIVATE")] {
            assert!(fs::read_to_string(directory.path(key)).unwrap().contains(begins));
        }

        let files = |name: &str, key: &str| Certificate::files(directory.path(name), directory.path(key));
        let config = TlsConfig::new(files("server.pem", "server.key.1"))
            .name("shop.test", files("shop.pem", "shop.key.1"))
            .accept_clients(Pem::file(directory.path("ca.pem")))
            .alpn(["mail/1"]);
        let served = serve(&Tls::new(config).unwrap());
        let addr = served.addr();

        let to = |name: &str| format!("-servername {name} -verify_hostname {name}");
        for (args, version, suite) in [
            (format!("-tls1_3 {}", to("server.test")), "TLSv1_3 ", "TLS13_"),
            (format!("-tls1_2 {}", to("server.test")), "TLSv1_2 ", "_ECDHE_RSA_"),
            (format!("-tls1_3 {}", to("shop.test")), "TLSv1_3 ", "TLS13_"),
            (format!("-tls1_2 {}", to("shop.test")), "TLSv1_2 ", "_ECDHE_ECDSA_"),
        ] {
            let answers = s_client(&directory, addr, &format!("{args} -alpn else,mail/1"), &["hello", "tls", "who"]);
            assert_eq!((&*answers[0], &*answers[2]), ("hello", "nobody"), "{args}");
            let says = &answers[1];
            assert!(says.starts_with(version) && says.contains(suite) && says.ends_with("Some(\"mail/1\")"), "{says}");
        }

        let certificate = "-cert alice.pem -key alice.key";
        for version in ["-tls1_3", "-tls1_2"] {
            let args = format!("{version} {} {certificate}", to("server.test"));
            let who = s_client(&directory, addr, &args, &["who"]).remove(0);
            let known = "CN=alice,O=Example [\"alice@example.test\", \"alice.test\"] ";
            assert!(who.starts_with(known), "{who}");
        }

        // Older than what is thought safe, and another's protocol.
        for args in ["-tls1_1 -cipher DEFAULT:@SECLEVEL=0", "-tls1_3 -alpn else"] {
            assert_eq!(s_client(&directory, addr, &format!("{args} {}", to("server.test")), &["hello"]), [""]);
        }
        let closed: Vec<String> = (0..8).map(|_| served.closed.next()).collect();
        assert_eq!(closed.iter().filter(|reason| reason.starts_with("TlsFailed")).count(), 2, "{closed:?}");
        served.running.stop();
    }
}
