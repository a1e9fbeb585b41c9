//! TLS: what a listener needs to speak it, and one client's session.

mod config;
mod info;
mod session;

pub use config::{Certificate, Pem, Tls, TlsConfig, TlsError};
pub use info::{PeerIdentity, TlsInfo};

pub(crate) use session::{Handshake, Session};
