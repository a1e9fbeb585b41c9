//! Where clients come in: addresses, sockets that are open already, and what holds for the clients of each.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use socket2::Socket;

use super::admission::Admission;
use super::limits::Limits;
use super::proxy::ProxyProtocol;
use crate::config::{ListenerConfig, Unworkable};
use crate::error::BindError;
#[cfg(feature = "tls")]
use crate::net::Tls;
use crate::net::{Address, Framing, ListenSocket, Networks, SocketOptions, UnixOptions};

/// A place where clients come in, for [`listen`](crate::ServerBuilder::listen). What is not set here is as the builder
/// has it.
///
/// ```
/// use backroom::{Framing, Listener, Server};
///
/// # fn main() -> Result<(), backroom::BindError> {
/// # let directory = std::env::temp_dir().join(format!("backroom-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory).unwrap();
/// # let path = directory.join("admin.sock");
/// let server = Server::builder::<(), ()>()
///     .listen(Listener::tcp("127.0.0.1:0").framing(Framing::lines()))
///     .listen(Listener::unix(path).mode(0o660).name("admin"))
///     .on_receive(|conn, data| match conn.listener() {
///         "admin" => Ok(conn.send(format!("{:?}\n", conn.server().stats()))?),
///         _ => Ok(conn.send(data)?),
///     })
///     .on_task(|_cx, ()| Ok(()))
///     .build()?;
/// # drop(server);
/// # std::fs::remove_dir(&directory).unwrap();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Listener {
    at: At,
    name: Option<String>,
    framing: Option<Framing>,
    limits: Option<Limits>,
    socket_options: Option<SocketOptions>,
    proxy: Option<ProxyProtocol>,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

#[derive(Debug)]
enum At {
    Tcp(TcpAddresses),
    Unix(UnixOptions),
    Open(Socket),
}

/// What a name has been resolved to, or why it has not.
#[derive(Debug)]
pub(super) struct TcpAddresses {
    text: String,
    resolved: io::Result<Vec<SocketAddr>>,
}

impl TcpAddresses {
    pub(super) fn of(address: impl ToSocketAddrs + fmt::Debug) -> TcpAddresses {
        let resolved = address.to_socket_addrs().map(Iterator::collect);
        TcpAddresses { text: format!("{address:?}"), resolved }
    }

    /// What `open` makes of the first address that it can.
    pub(super) fn first<X>(self, mut open: impl FnMut(SocketAddr) -> io::Result<X>) -> Result<X, BindError> {
        let TcpAddresses { text, resolved } = self;
        let unresolved = |text, source| BindError::Resolve { address: text, source };
        let addresses: Vec<SocketAddr> = match resolved {
            Ok(addresses) => addresses,
            Err(error) => return Err(unresolved(text, error)),
        };
        let mut failed = None;
        for &address in &addresses {
            match open(address) {
                Ok(opened) => {
                    log_others(&text, address, &addresses);
                    return Ok(opened);
                }
                Err(source) => failed = Some(BindError::Listen { address: address.into(), source }),
            }
        }
        let none = || unresolved(text, io::Error::new(io::ErrorKind::NotFound, "it has no addresses"));
        Err(failed.unwrap_or_else(none))
    }
}

/// A name such as `localhost` may have an address of each family, of which only one is taken.
fn log_others(name: &str, taken: SocketAddr, addresses: &[SocketAddr]) {
    let others: Vec<_> = addresses.iter().map(SocketAddr::ip).filter(|ip| *ip != taken.ip()).collect();
    if !others.is_empty() {
        log::info!("{name} is listened on at {}, and not at {others:?}: give each a listener of its own", taken.ip());
    }
}

impl Listener {
    /// On a TCP address. A name is resolved here, which may block; that it cannot be is an error of `build`. Where it has
    /// several addresses, as `localhost` may, the first that can be listened on is taken, which the log says; `[::]` is
    /// for IPv4 too, unless
    /// [`only_v6`](SocketOptions::only_v6) says otherwise.
    pub fn tcp(address: impl ToSocketAddrs + fmt::Debug) -> Listener {
        Listener::at(At::Tcp(TcpAddresses::of(address)))
    }

    /// On the path of a Unix socket. A socket file that is there and refuses to be connected to is stale, and replaced;
    /// anything else there is an error. The file is removed at shutdown. Put it into a directory that
    /// nobody else may read or write: who can write there could replace the file, and who can read it could lock it, for
    /// which `build` waits for a second and then errs.
    pub fn unix(path: impl Into<PathBuf>) -> Listener {
        Listener::at(At::Unix(UnixOptions { path: path.into(), mode: 0o600, owner: (None, None) }))
    }

    fn at(at: At) -> Listener {
        Listener {
            at,
            name: None,
            framing: None,
            limits: None,
            socket_options: None,
            proxy: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// What its connections call it: [`listener`](crate::Connection::listener). Default: its address.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How the bytes of its connections are cut into frames.
    pub fn framing(mut self, framing: Framing) -> Self {
        self.framing = Some(framing);
        self
    }

    /// What its clients may do, and how long they may take.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// What the kernel is told about its socket and those of its clients. Where the socket is open already, what comes
    /// before binding is left as it is.
    pub fn socket_options(mut self, options: SocketOptions) -> Self {
        self.socket_options = Some(options);
        self
    }

    /// Of a Unix socket: who may connect. Default 0o600, its owner. Others are ignored.
    pub fn mode(mut self, mode: u32) -> Self {
        if let At::Unix(options) = &mut self.at {
            options.mode = mode;
        }
        self
    }

    /// Of a Unix socket: the user and the group whose it is, by number; `None` leaves it as it is, which is the default.
    pub fn owner(mut self, user: Option<u32>, group: Option<u32>) -> Self {
        if let At::Unix(options) = &mut self.at {
            options.owner = (user, group);
        }
        self
    }

    /// Has clients that come by way of a proxy begin with a header that says where they come from. Default: none does.
    pub fn proxy_protocol(mut self, proxies: ProxyProtocol) -> Self {
        self.proxy = Some(proxies);
        self
    }

    /// Its clients speak TLS. Default: they speak plainly.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(mut self, tls: &Tls) -> Self {
        self.tls = Some(tls.clone());
        self
    }

    /// Begins to listen.
    pub(super) fn open(self, defaults: &ListenerConfig, max_connections: usize) -> Result<OpenListener, BindError> {
        let options = self.socket_options.unwrap_or_else(|| defaults.socket_options.clone());
        let framing = self.framing.unwrap_or_else(|| defaults.framing.clone());
        let limits = self.limits.unwrap_or_else(|| defaults.limits.clone());
        let config = ListenerConfig { framing, limits, socket_options: options };
        config.check()?;
        let ListenerConfig { framing, limits, socket_options: options } = config;
        let proxies = self.proxy.map(ProxyProtocol::networks).transpose()?;
        let is_unix = match &self.at {
            At::Unix(_) => true,
            At::Open(socket) => socket.local_addr().is_ok_and(|address| address.is_unix()),
            At::Tcp(_) => false,
        };
        if proxies.is_some() && is_unix {
            return Err(
                Unworkable::new("proxy_protocol", "clients of a Unix socket have no address to be believed").into()
            );
        }
        let socket = match self.at {
            At::Tcp(addresses) => addresses.first(|address| ListenSocket::tcp(address, &options))?,
            At::Unix(unix) => ListenSocket::unix(&unix, &options).map_err(|source| BindError::Listen {
                address: Address::Unix(Some(unix.path.as_path().into())),
                source,
            })?,
            At::Open(socket) => ListenSocket::open(socket, &options).map_err(BindError::OpenSocket)?,
        };
        let name = self.name.unwrap_or_else(|| socket.local_addr().to_string());
        let settings = ListenerSettings {
            name: Arc::from(name),
            admission: Arc::new(Admission::new(&limits, max_connections)),
            framing,
            limits,
            proxies,
            #[cfg(feature = "tls")]
            tls: self.tls,
        };
        Ok(OpenListener { socket, settings: Arc::new(settings) })
    }
}

/// One that listens.
pub(super) struct OpenListener {
    pub(super) socket: ListenSocket,
    pub(super) settings: Arc<ListenerSettings>,
}

/// What holds for the connections of one listener.
pub(super) struct ListenerSettings {
    pub(super) name: Arc<str>,
    pub(super) framing: Framing,
    pub(super) limits: Limits,
    pub(super) admission: Arc<Admission>,
    /// From where clients come by way of a proxy.
    pub(super) proxies: Option<Networks>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Tls>,
}

impl OpenListener {
    /// Says in the log that it is there, and where it is open to more than it should be.
    pub(super) fn announce(&self, max_connections: usize) {
        let (name, address) = (&self.settings.name, self.socket.local_addr());
        log::info!("listening on {address} ({name}), for at most {max_connections} connections");
        if address.ip().is_some_and(|ip| !ip.is_loopback()) && !self.settings.speaks_tls() {
            log::warn!("{address} is not of this machine alone, and its clients speak without TLS");
        }
    }
}

impl ListenerSettings {
    fn speaks_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }

    /// Something comes before the client's first frame.
    pub(super) fn needs_opening(&self) -> bool {
        self.proxies.is_some() || self.speaks_tls()
    }

    /// Whether it must say whose client it is.
    pub(super) fn is_proxy(&self, peer: &Address) -> bool {
        self.proxies.as_ref().zip(peer.ip()).is_some_and(|(proxies, ip)| proxies.contains(ip))
    }
}

impl From<TcpListener> for Listener {
    /// One that is open and bound already. Its [backlog](SocketOptions::backlog) is set anew, and with it what its
    /// clients' sockets inherit: no delay, keepalive and user timeout.
    fn from(socket: TcpListener) -> Listener {
        Listener::at(At::Open(socket.into()))
    }
}

impl From<UnixListener> for Listener {
    /// One that is open and bound already. Its file is not removed at shutdown.
    fn from(socket: UnixListener) -> Listener {
        Listener::at(At::Open(socket.into()))
    }
}
