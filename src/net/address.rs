//! Where a client or a listener is.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

use socket2::SockAddr;

/// The address of a client or of a listener: of the internet, or of a Unix socket.
///
/// Where std wants an internet address, as `TcpStream::connect` does, it can be given; that is an error for a Unix
/// socket. An IPv4 client of a socket that is for IPv6 too has its IPv4 address.
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
    Inet(SocketAddr),
    /// The path of a Unix socket. Most clients have none.
    Unix(Option<Arc<Path>>),
}

impl Address {
    pub(super) fn of(addr: &SockAddr) -> Address {
        match addr.as_socket() {
            Some(addr) => addr.into(),
            None => Address::Unix(addr.as_pathname().map(Arc::from)),
        }
    }

    /// The IP address and the port, unless it is a Unix socket.
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Address::Inet(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }

    /// The IP address, unless it is a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        self.inet().map(|address| address.ip())
    }

    /// The path of a Unix socket that has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Address::Unix(path) => path.as_deref(),
            Address::Inet(_) => None,
        }
    }
}

impl From<SocketAddr> for Address {
    /// One of IPv4 that is written as IPv6, as `::ffff:192.0.2.1`, becomes what it is.
    fn from(address: SocketAddr) -> Address {
        match address.ip().to_canonical() {
            IpAddr::V4(ip) => Address::Inet((ip, address.port()).into()),
            IpAddr::V6(_) => Address::Inet(address),
        }
    }
}

impl ToSocketAddrs for Address {
    type Iter = std::option::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        match self {
            Address::Inet(address) => address.to_socket_addrs(),
            Address::Unix(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a Unix socket")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(address) => address.fmt(f),
            Address::Unix(Some(path)) => write!(f, "unix:{}", path.display()),
            Address::Unix(None) => f.write_str("unix:"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
