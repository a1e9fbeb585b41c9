//! Requests over TLS.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use backroom::{Listener, Server, Tls};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};

use crate::Options;
use crate::shared::lines::{answer_at_once, answer_in_turn, backroom, limited_runtime, tokio};
use crate::shared::load::{self, Shape, Wire};
use crate::shared::process::ServerProcess;
use crate::shared::report::Table;

const SHAPES: [Shape; 2] = [Shape { connections: 64, in_flight: 1 }, Shape { connections: 64, in_flight: 16 }];
/// The second serves the requests of a connection one after the other, which suits clients that send them so.
const NAMES: [&str; 3] = ["backroom, TLS", "tokio-rustls, in turn", "tokio-rustls, at once"];
const STALLED: Duration = Duration::from_secs(5);

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let credentials = Credentials::make()?;
    let names = options.names(&NAMES);
    let servers = names.iter().map(|name| ServerProcess::start(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let config = credentials.client()?;
    for shape in SHAPES {
        let mut table = Table::new(&names);
        for round in 0..options.rounds {
            for turn in 0..servers.len() {
                let column = (round + turn) % servers.len();
                let measured =
                    load::measure(&servers[column], shape, options.time, |socket| over_tls(socket, &config))?;
                table.add(column, measured);
            }
        }
        println!("\nTLS 1.3, {shape}: connections × requests in flight on each");
        table.print();
    }
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

    fn client(&self) -> anyhow::Result<Arc<ClientConfig>> {
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        Ok(Arc::new(config))
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
            let tls = Tls::from_rustls(server_config()?);
            backroom(Server::builder().listen(Listener::tcp("127.0.0.1:0").tls(&tls)), threads)
        }
        "tokio-rustls, in turn" => limited_runtime(threads)?.block_on(tokio_rustls(answer_in_turn)),
        "tokio-rustls, at once" => limited_runtime(threads)?.block_on(tokio_rustls(|client| {
            let (reader, writer) = ::tokio::io::split(client);
            answer_at_once(reader, writer)
        })),
        _ => anyhow::bail!("no server is called {name:?}"),
    }
}

async fn tokio_rustls<F>(serve: impl Fn(ServerStream) -> F + Clone + Send + 'static) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send,
{
    let acceptor = tokio_rustls::TlsAcceptor::from(server_config()?);
    tokio(|client| {
        let (acceptor, serve) = (acceptor.clone(), serve.clone());
        async move {
            if let Ok(client) = acceptor.accept(client).await {
                serve(client).await;
            }
        }
    })
    .await
}

type ServerStream = tokio_rustls::server::TlsStream<::tokio::net::TcpStream>;

impl Wire for StreamOwned<ClientConnection, TcpStream> {
    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// With the handshake done.
fn over_tls(mut socket: TcpStream, config: &Arc<ClientConfig>) -> anyhow::Result<impl Wire> {
    socket.set_read_timeout(Some(STALLED))?;
    let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(tls, socket))
}
