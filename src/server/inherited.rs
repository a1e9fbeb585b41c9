//! Sockets that were opened before this process began.

use std::env;
use std::io;
use std::net::UdpSocket;

use listenfd::ListenFd;

use super::listener::Listener;

/// The sockets that whoever started this process has opened for it, as systemd does: socket activation.
///
/// ```no_run
/// use backroom::{Inherited, Server};
///
/// # fn main() -> anyhow::Result<()> {
/// let inherited = Inherited::take()?;
/// let builder = inherited.listeners.into_iter().fold(Server::builder::<(), ()>(), |builder, listener| {
///     builder.listen(listener)
/// });
/// let server = inherited.udp.into_iter().fold(builder, |builder, socket| builder.listen_udp_socket(socket))
///     .on_receive(|conn, data| Ok(conn.send(data)?))
///     .on_packet(|socket, from, data| Ok(socket.send_to(from, data)?))
///     .on_task(|_cx, ()| Ok(()))
///     .build()?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Inherited {
    /// Those of TCP and Unix sockets, in their order, with the [names](Listener::name) that they were given:
    /// systemd's `FileDescriptorName`.
    pub listeners: Vec<Listener>,
    /// Those of UDP, in their order.
    pub udp: Vec<UdpSocket>,
}

/// What systemd calls a socket that was given no name.
const NO_NAME: &str = "unknown";

impl Inherited {
    /// Takes what the environment's `LISTEN_FDS` speaks of, if it is for this process. They are handed over once: a
    /// second call finds none, since it changes the environment. Call it at the beginning of `main`, before there are
    /// threads that could read that.
    ///
    /// An error where a descriptor is none of these.
    pub fn take() -> io::Result<Inherited> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(|name| Some(name).filter(|name| !name.is_empty() && *name != NO_NAME));
        let mut sockets = ListenFd::from_env();
        let mut inherited = Inherited::default();
        for index in 0..sockets.len() {
            let name = names.next().flatten();
            let tcp = sockets.take_tcp_listener(index).map(|socket| socket.map(Listener::from));
            let unix = |_| sockets.take_unix_listener(index).map(|socket| socket.map(Listener::from));
            match tcp.or_else(unix) {
                Ok(listener) => {
                    inherited.listeners.extend(listener.map(|listener| match name {
                        Some(name) => listener.name(name),
                        None => listener,
                    }));
                }
                Err(error) => inherited.udp.extend(sockets.take_udp_socket(index).map_err(|_| error)?),
            }
        }
        Ok(inherited)
    }
}
