//! Requests over TLS, so many connections with one in flight each.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use hdrhistogram::Histogram;
use rustix::event::{Timespec, epoll};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use crate::Options;
use crate::process::ServerProcess;
use crate::report::{Answers, Measured, Table};
use crate::rivals::{answer_lines, lines, to_line, tokio, work};

const CONNECTIONS: usize = 64;
const NAMES: [&str; 2] = ["backroom, TLS", "tokio-rustls"];
const STALLED: Duration = Duration::from_secs(5);

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let credentials = Credentials::make()?;
    let names = options.names(&NAMES);
    let servers = names.iter().map(|name| ServerProcess::start(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut table = Table::new(&names);
    for round in 0..options.rounds {
        for turn in 0..servers.len() {
            let column = (round + turn) % servers.len();
            let server = &servers[column];
            load(server, &credentials, options.time / 5)?;
            table.add(column, load(server, &credentials, options.time)?);
        }
    }
    println!("\nTLS 1.3: requests over {CONNECTIONS} connections, one in flight on each");
    table.print();
    Ok(())
}

/// A certificate for localhost and its key, where the servers, which are this program's children, find them.
struct Credentials {
    directory: std::path::PathBuf,
    roots: RootCertStore,
}

fn directory(of: u32) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("backroom-bench-{of}"))
}

impl Credentials {
    fn make() -> anyhow::Result<Credentials> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        let directory = directory(std::process::id());
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("certificate"), made.cert.der())?;
        std::fs::write(directory.join("key"), made.signing_key.serialize_der())?;
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        Ok(Credentials { directory, roots })
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What both servers are given.
fn server_config() -> anyhow::Result<Arc<ServerConfig>> {
    let directory = directory(std::os::unix::process::parent_id());
    let certificate = CertificateDer::from(std::fs::read(directory.join("certificate"))?);
    let key = PrivateKeyDer::try_from(std::fs::read(directory.join("key"))?).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(Arc::new(config))
}

pub(crate) fn serve(name: &str, threads: usize) -> anyhow::Result<()> {
    match name {
        "backroom, TLS" => {
            let tls = backroom::Tls::from_rustls(server_config()?);
            let listener = backroom::Listener::tcp("127.0.0.1:0").tls(&tls);
            lines(backroom::Server::builder().listen(listener), threads)
        }
        "tokio-rustls" => tokio(threads)?.block_on(tokio_rustls()),
        _ => anyhow::bail!("no server is called {name:?}"),
    }
}

async fn tokio_rustls() -> anyhow::Result<()> {
    let acceptor = tokio_rustls::TlsAcceptor::from(server_config()?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let (client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move { answer_lines(acceptor.accept(client).await?).await });
    }
}

/// One thread, all connections in one epoll; what is measured begins after the handshakes.
fn load(server: &ServerProcess, credentials: &Credentials, time: Duration) -> anyhow::Result<Measured> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(credentials.roots.clone())
        .with_no_client_auth();
    let config = Arc::new(config);
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut clients = Vec::new();
    for index in 0..CONNECTIONS {
        let client = Client::connect(server.addr(), &config)?;
        epoll::add(&epoll, &client.socket, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
        clients.push(client);
    }
    let mut answers = Answers { count: 0, time: Duration::ZERO, latency: Histogram::new(3)? };
    let cpu_before = server.cpu_time()?;
    let start = Instant::now();
    for client in &mut clients {
        client.ask()?;
    }
    let mut events = Vec::with_capacity(CONNECTIONS);
    let mut asking = CONNECTIONS;
    while asking > 0 {
        let timeout = Timespec::try_from(STALLED)?;
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        ensure!(!events.is_empty(), "the server has answered nothing for {STALLED:?}");
        for event in events.drain(..) {
            let client = &mut clients[event.data.u64() as usize];
            let Some(took) = client.answer()? else { continue };
            if start.elapsed() < time {
                answers.count += 1;
                answers.latency.record(u64::try_from(took.as_nanos())?)?;
                client.ask()?;
            } else {
                asking -= 1;
            }
        }
    }
    answers.time = start.elapsed();
    Ok(Measured::new(&answers, server.cpu_time()? - cpu_before))
}

struct Client {
    socket: TcpStream,
    tls: ClientConnection,
    asked: u64,
    asked_at: Instant,
    answer: Vec<u8>,
}

impl Client {
    fn connect(addr: SocketAddr, config: &Arc<ClientConfig>) -> anyhow::Result<Client> {
        let mut socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(STALLED))?;
        let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        socket.set_nonblocking(true)?;
        Ok(Client { socket, tls, asked: 0, asked_at: Instant::now(), answer: Vec::new() })
    }

    fn ask(&mut self) -> anyhow::Result<()> {
        self.asked += 1;
        self.asked_at = Instant::now();
        writeln!(self.tls.writer(), "{}", self.asked)?;
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// How long it took, once it is whole.
    fn answer(&mut self) -> anyhow::Result<Option<Duration>> {
        match self.tls.read_tls(&mut self.socket) {
            Ok(n) => ensure!(n > 0, "the server closed a connection"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let here = self.tls.process_new_packets()?.plaintext_bytes_to_read();
        let had = self.answer.len();
        self.answer.resize(had + here, 0);
        self.tls.reader().read_exact(&mut self.answer[had..])?;
        if self.answer.last() != Some(&b'\n') {
            return Ok(None);
        }
        let right = work(&to_line(self.asked.to_string().as_bytes()));
        ensure!(self.answer == right.as_bytes(), "a wrong answer");
        self.answer.clear();
        Ok(Some(self.asked_at.elapsed()))
    }
}
