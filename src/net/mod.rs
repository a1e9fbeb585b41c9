//! Sockets and bytes. Knows neither tasks nor callbacks.

mod address;
mod framing;
mod input;
mod listener;
mod networks;
mod outbox;
mod packet_socket;
mod proxy_header;
mod quiet;
mod socket_options;
mod stream;
#[cfg(feature = "tls")]
mod tls;
mod unix_path;
mod waker;

pub use address::Address;
pub use framing::{Decoder, Frame, Framing, LengthPrefix, LengthType, Malformed};
pub use socket_options::SocketOptions;
#[cfg(feature = "tls")]
pub use tls::{Certificate, PeerIdentity, Pem, Tls, TlsConfig, TlsError, TlsInfo};

pub(crate) use framing::FrameError;
#[cfg(feature = "internals")]
pub(crate) use framing::Framer;
pub(crate) use input::Input;
pub(crate) use listener::{AcceptError, ListenSocket};
pub(crate) use networks::Networks;
pub(crate) use outbox::{Bounds, FileBudget, FilePart, MAX_FILES, Outbox, Piece, SharedBytes};
pub(crate) use packet_socket::Datagrams;
pub use packet_socket::PacketPeer;
pub(crate) use proxy_header::{BadHeader, Proxied, ProxyHeader};
pub(crate) use stream::{Parked, Stream};
#[cfg(feature = "tls")]
pub(crate) use tls::Handshake;
pub(crate) use unix_path::UnixOptions;
pub(crate) use waker::{Sleeper, Waker, wait_out};
