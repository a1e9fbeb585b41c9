//! What the kernel is told about a socket.

use std::io;
#[cfg(feature = "tcp-extras")]
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Socket, TcpKeepalive};

/// The options of a listener's socket, and of those of its clients. What does not concern a kind of socket is ignored:
/// a Unix socket has no keepalive.
///
/// ```
/// use std::time::Duration;
///
/// use backroom::SocketOptions;
///
/// let options = SocketOptions::new().backlog(4_096).reuse_port(true).user_timeout(Duration::from_secs(20));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct SocketOptions {
    pub(crate) backlog: u32,
    reuse_address: bool,
    reuse_port: bool,
    only_v6: Option<bool>,
    nodelay: bool,
    keepalive: Option<Keepalive>,
    user_timeout: Option<Duration>,
    #[cfg(feature = "tcp-extras")]
    extras: TcpExtras,
    receive_buffer: Option<usize>,
    send_buffer: Option<usize>,
}

/// Linux counts milliseconds in 31 bits.
const LONGEST_USER_TIMEOUT: Duration = Duration::from_secs(24 * 24 * 60 * 60);
/// What Linux takes, and likewise 127 probes.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);

#[derive(Clone, Copy, Debug)]
struct Keepalive {
    idle: Duration,
    interval: Duration,
    probes: u32,
}

/// Set on a listener; both `None` by default.
#[cfg(feature = "tcp-extras")]
#[derive(Clone, Copy, Debug, Default)]
struct TcpExtras {
    defer_accept: Option<Duration>,
    fast_open: Option<u32>,
}

impl Default for SocketOptions {
    fn default() -> SocketOptions {
        SocketOptions {
            backlog: 1024,
            reuse_address: true,
            reuse_port: false,
            only_v6: None,
            nodelay: true,
            keepalive: Some(Keepalive { idle: Duration::from_secs(60), interval: Duration::from_secs(10), probes: 6 }),
            user_timeout: None,
            #[cfg(feature = "tcp-extras")]
            extras: TcpExtras::default(),
            receive_buffer: None,
            send_buffer: None,
        }
    }
}

impl SocketOptions {
    /// The defaults.
    pub fn new() -> SocketOptions {
        SocketOptions::default()
    }

    /// How many clients may wait in the kernel to be accepted. At least 1; default 1,024, cut by the kernel to its
    /// `somaxconn`. Swoole's `backlog`, there 512.
    pub fn backlog(mut self, clients: u32) -> Self {
        self.backlog = clients;
        self
    }

    /// Whether a restarted server takes its port back from connections in TIME_WAIT: `SO_REUSEADDR`. Default true.
    pub fn reuse_address(mut self, reuse: bool) -> Self {
        self.reuse_address = reuse;
        self
    }

    /// Whether several sockets, of several processes too, may listen on the same port and share its clients:
    /// `SO_REUSEPORT`. Default false. Swoole's `enable_reuse_port`.
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// Whether a socket on an IPv6 address takes no IPv4 clients: `IPV6_V6ONLY`. With false, `[::]` is for both.
    /// Default: the system's, which on Linux is false unless `bindv6only` says otherwise.
    pub fn only_v6(mut self, only: bool) -> Self {
        self.only_v6 = Some(only);
        self
    }

    /// Whether what is written goes out at once: `TCP_NODELAY`. Default true, since answers are written in batches
    /// already. Swoole's `open_tcp_nodelay`.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// Has the kernel ask a client that has sent nothing for `idle` whether it is there, again every `interval`, and
    /// reset the connection when `probes` have had no answer. `SO_KEEPALIVE` with its three times, in whole seconds.
    /// From 1 s to 32,767 s, and from 1 to 127. Default: 60 s, 10 s, 6. Swoole's `tcp_keepidle`, `tcp_keepinterval` and `tcp_keepcount`.
    pub fn keepalive(mut self, idle: Duration, interval: Duration, probes: u32) -> Self {
        self.keepalive = Some(Keepalive { idle, interval, probes });
        self
    }

    /// The kernel asks nobody. Swoole's default.
    pub fn no_keepalive(mut self) -> Self {
        self.keepalive = None;
        self
    }

    /// How long sent bytes may stay unacknowledged before the kernel resets the connection: `TCP_USER_TIMEOUT`. Default:
    /// the kernel's, some 15 minutes. At most 24 days. Linux only. Swoole's `tcp_user_timeout`.
    pub fn user_timeout(mut self, time: Duration) -> Self {
        self.user_timeout = Some(time);
        self
    }

    /// Has the kernel keep a client back until it has sent something, or for about so long, in whole seconds:
    /// `TCP_DEFER_ACCEPT`. For protocols in which clients speak first. Default: it does not. Linux only; needs the feature
    /// `tcp-extras`. Swoole's `tcp_defer_accept`.
    #[cfg(feature = "tcp-extras")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tcp-extras")))]
    pub fn defer_accept(mut self, time: Duration) -> Self {
        self.extras.defer_accept = Some(time);
        self
    }

    /// Lets clients that were here before send their first bytes with the connection itself, so many of them at once
    /// before that is proved: `TCP_FASTOPEN`. Linux must allow it to servers too: bit 2 of `net.ipv4.tcp_fastopen`.
    /// Default: they may not. Linux only; needs the feature `tcp-extras`. Swoole's `tcp_fastopen`.
    #[cfg(feature = "tcp-extras")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tcp-extras")))]
    pub fn fast_open(mut self, clients: u32) -> Self {
        self.extras.fast_open = Some(clients);
        self
    }

    /// The kernel's buffer for what a client has sent, in bytes; it doubles and bounds the value: `SO_RCVBUF`. Default:
    /// the kernel's, which adapts.
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// The kernel's buffer for what is sent to a client, in bytes; it doubles and bounds the value: `SO_SNDBUF`.
    /// Default: the kernel's, which adapts.
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = Some(bytes);
        self
    }

    /// Before the socket is bound.
    pub(super) fn apply_to_unbound(&self, socket: &Socket, domain: Domain) -> io::Result<()> {
        if domain != Domain::UNIX {
            socket.set_reuse_address(self.reuse_address)?;
            socket.set_reuse_port(self.reuse_port)?;
        }
        if let (Domain::IPV6, Some(only_v6)) = (domain, self.only_v6) {
            socket.set_only_v6(only_v6)?;
        }
        self.apply_buffers(socket)
    }

    /// The same for a UDP socket. There, `SO_REUSEADDR` would let others take its packets.
    pub(super) fn apply_to_datagrams(&self, socket: &Socket, domain: Domain) -> io::Result<()> {
        socket.set_reuse_port(self.reuse_port)?;
        if let (Domain::IPV6, Some(only_v6)) = (domain, self.only_v6) {
            socket.set_only_v6(only_v6)?;
        }
        self.apply_buffers(socket)
    }

    /// To a listener before it listens: on Linux the sockets of its clients inherit this, which spares a system call for
    /// each. Elsewhere, to each of them.
    pub(super) fn apply_to_listener(&self, socket: &Socket, is_tcp: bool) -> io::Result<()> {
        #[cfg(all(feature = "tcp-extras", any(target_os = "linux", target_os = "android")))]
        if is_tcp {
            self.extras.apply(socket)?;
        }
        self.apply_to_stream(socket, is_tcp)
    }

    /// What holds for a client's socket.
    pub(super) fn apply_to_stream(&self, socket: &Socket, is_tcp: bool) -> io::Result<()> {
        if !is_tcp {
            return Ok(());
        }
        socket.set_tcp_nodelay(self.nodelay)?;
        if let Some(Keepalive { idle, interval, probes }) = self.keepalive {
            let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if self.user_timeout.is_some() {
            socket.set_tcp_user_timeout(self.user_timeout)?;
        }
        Ok(())
    }

    fn apply_buffers(&self, socket: &Socket) -> io::Result<()> {
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(bytes) = self.send_buffer {
            socket.set_send_buffer_size(bytes)?;
        }
        Ok(())
    }

    /// Why these options cannot work, if they cannot.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        let second = Duration::from_secs(1);
        let in_bounds = |time: Duration| (second..=LONGEST_KEEPALIVE).contains(&time);
        match &self.keepalive {
            _ if self.backlog == 0 => Some("a backlog of 0"),
            _ if self.user_timeout.is_some_and(|time| time > LONGEST_USER_TIMEOUT) => {
                Some("a user_timeout is at most 24 days")
            }
            Some(Keepalive { idle, interval, .. }) if !in_bounds(*idle) || !in_bounds(*interval) => {
                Some("the times of a keepalive are from 1 s to 32,767 s")
            }
            Some(Keepalive { probes, .. }) if !(1..=127).contains(probes) => {
                Some("the probes of a keepalive are from 1 to 127")
            }
            _ => None,
        }
    }
}

#[cfg(all(feature = "tcp-extras", any(target_os = "linux", target_os = "android")))]
impl TcpExtras {
    fn apply(self, socket: &Socket) -> io::Result<()> {
        use uapi::c::{IPPROTO_TCP, TCP_DEFER_ACCEPT, TCP_FASTOPEN, c_int};

        let set = |option, value: u64| {
            let value = c_int::try_from(value).unwrap_or(c_int::MAX);
            uapi::setsockopt(socket.as_raw_fd(), IPPROTO_TCP, option, &value).map_err(io::Error::from)
        };
        if let Some(time) = self.defer_accept {
            set(TCP_DEFER_ACCEPT, time.as_secs().max(1))?;
        }
        match self.fast_open {
            Some(clients) => set(TCP_FASTOPEN, clients.into()),
            None => Ok(()),
        }
    }
}

#[cfg(all(test, feature = "tcp-extras", target_os = "linux"))]
mod tests {
    use super::*;
    use socket2::{Protocol, Type};

    #[test]
    fn the_extras_reach_the_socket() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let options = SocketOptions::new().defer_accept(Duration::from_secs(3)).fast_open(17);
        options.apply_to_listener(&socket, true).unwrap();
        let get = |option| {
            let mut value = uapi::c::c_int::default();
            uapi::getsockopt(socket.as_raw_fd(), uapi::c::IPPROTO_TCP, option, &mut value).unwrap();
            value
        };
        // The kernel counts in retransmissions, and rounds up.
        assert!((3..=7).contains(&get(uapi::c::TCP_DEFER_ACCEPT)));
        assert_eq!(get(uapi::c::TCP_FASTOPEN), 17);
    }
}
