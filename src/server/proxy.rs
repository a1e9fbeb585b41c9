//! Which proxies are believed.

use crate::config::Unworkable;
use crate::net::Networks;

/// From where clients come by way of a proxy that says, in a header before anything else, whose client it is: the PROXY
/// protocol of HAProxy, versions 1 and 2. For [`Listener::proxy_protocol`](crate::Listener::proxy_protocol).
///
/// A connection from one of these networks must begin with the header, within
/// [`handshake_timeout`](crate::Limits::handshake_timeout); its [`peer_addr`](crate::Connection::peer_addr) is what the
/// header says. From anywhere else none is looked for, so nobody can claim another's address.
///
/// ```
/// use backroom::{Listener, ProxyProtocol};
///
/// let listener = Listener::tcp("127.0.0.1:0").proxy_protocol(ProxyProtocol::from(["10.0.0.0/8", "127.0.0.1"]));
/// # let _ = listener;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ProxyProtocol {
    networks: Vec<String>,
}

impl ProxyProtocol {
    /// From these networks, each an address or one with the length of its prefix. One that is neither is an error of
    /// `bind`, and so is a listener on a Unix socket, whose clients have no address.
    pub fn from(networks: impl IntoIterator<Item = impl Into<String>>) -> ProxyProtocol {
        ProxyProtocol { networks: networks.into_iter().map(Into::into).collect() }
    }

    pub(super) fn networks(self) -> Result<Networks, Unworkable> {
        Networks::parse(self.networks)
            .map_err(|text| Unworkable::new("proxy_protocol", format!("{text:?} is neither an address nor a network")))
    }
}
