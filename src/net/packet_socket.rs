//! A UDP socket, never blocking, that knows to which of its addresses each datagram was sent.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::socket_options::SocketOptions;

/// The sender of a datagram, and the address that it was sent to: an answer leaves from there.
///
/// Made from a plain [`SocketAddr`] it is somebody who has sent nothing yet; the system chooses the address then.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketPeer {
    addr: SocketAddr,
    local_addr: Option<SocketAddr>,
}

impl PacketPeer {
    /// The address of the sender; of one that uses IPv4 its IPv4 address, whatever the socket listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address that the datagram was sent to; where it was sent to all or to a group, this machine's own, if the
    /// system says which.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }
}

impl From<SocketAddr> for PacketPeer {
    fn from(addr: SocketAddr) -> PacketPeer {
        PacketPeer { addr: canonical(addr), local_addr: None }
    }
}

impl fmt::Display for PacketPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

impl fmt::Debug for PacketPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr.fmt(f)
    }
}

/// One of IPv4 that is written as IPv6, as `::ffff:192.0.2.1`, becomes what it is.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => (ip, addr.port()).into(),
        IpAddr::V6(_) => addr,
    }
}

/// As a socket of IPv6 wants it.
fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped(), addr.port()).into(),
        IpAddr::V6(_) => addr,
    }
}

pub(crate) struct Datagrams {
    socket: UdpSocket,
    local_addr: SocketAddr,
    /// It has several addresses, and the kernel says which of them each datagram was sent to.
    tells_destination: bool,
    /// It is of IPv6, and of IPv4 too.
    is_dual: bool,
}

impl Datagrams {
    pub(crate) fn bind(addr: SocketAddr, options: &SocketOptions) -> io::Result<Datagrams> {
        let domain = Domain::for_address(addr);
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        options.apply_to_datagrams(&socket, domain)?;
        socket.bind(&addr.into())?;
        Datagrams::open(socket.into())
    }

    /// One that is bound already.
    pub(crate) fn open(socket: UdpSocket) -> io::Result<Datagrams> {
        socket.set_nonblocking(true)?;
        let local_addr = socket.local_addr()?;
        let tells_destination = local_addr.ip().is_unspecified() && destination::ask_for(&socket, local_addr)?;
        let is_dual = local_addr.is_ipv6() && local_addr.ip().is_unspecified() && !SockRef::from(&socket).only_v6()?;
        Ok(Datagrams { socket, local_addr, tells_destination, is_dual })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, PacketPeer)> {
        let (len, from, to) = match self.tells_destination {
            true => destination::receive(&self.socket, buffer)?,
            false => {
                let (len, from) = self.socket.recv_from(buffer)?;
                (len, from, Some(self.local_addr.ip()))
            }
        };
        let local_addr = to.map(|ip| canonical((ip, self.local_addr.port()).into()));
        Ok((len, PacketPeer { addr: canonical(from), local_addr }))
    }

    pub(crate) fn send_to(&self, peer: PacketPeer, bytes: &[u8]) -> io::Result<()> {
        let is_v6 = self.local_addr.is_ipv6();
        let addr = if is_v6 { mapped(peer.addr) } else { peer.addr };
        let from = peer.local_addr.filter(|local| self.tells_destination && local.port() == self.local_addr.port());
        match from {
            Some(from) => destination::send(&self.socket, addr, if is_v6 { mapped(from) } else { from }, bytes),
            None => self.socket.send_to(bytes, addr).map(drop),
        }
    }

    /// Whether datagrams of this peer come here, as far as one can tell.
    pub(crate) fn is_asked_by(&self, peer: PacketPeer) -> bool {
        let own = canonical(self.local_addr);
        peer.local_addr.is_some_and(|local| {
            local.port() == own.port() && (own.ip() == local.ip() || own.ip().is_unspecified() && self.reaches(local))
        })
    }

    /// Whether it can send to an address of that family.
    pub(crate) fn reaches(&self, addr: SocketAddr) -> bool {
        self.is_dual || self.local_addr.is_ipv4() == addr.is_ipv4()
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Datagrams with the address of this machine that they were sent to, or are to leave from.
#[cfg(any(target_os = "linux", target_os = "android"))]
mod destination {
    use std::io::{self, IoSlice, IoSliceMut};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
    use std::os::fd::AsRawFd;

    use nix::cmsg_space;
    use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
    use nix::sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    };

    /// Has the kernel tell it.
    pub(super) fn ask_for(socket: &UdpSocket, local_addr: SocketAddr) -> io::Result<bool> {
        match local_addr {
            SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => {
                setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
                // For those who use IPv4. Where they cannot come here, it may not be to be had.
                let _ = setsockopt(socket, sockopt::Ipv4PacketInfo, &true);
            }
        }
        Ok(true)
    }

    pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
        let mut slices = [IoSliceMut::new(buffer)];
        let mut room = cmsg_space!(in6_pktinfo, in_pktinfo);
        let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut room), MsgFlags::empty())?;
        // What was sent to all or to a group is answered from this machine's own address. For IPv4 the kernel says which
        // that is; one that uses it on a socket of IPv6 is told both ways.
        let (mut v4, mut v6) = (None, None);
        for said in message.cmsgs()? {
            match said {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    v4 = Some(Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr)).into());
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    v6 = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr)).filter(|ip| !ip.is_multicast()).map(IpAddr::from);
                }
                _ => {}
            }
        }
        let to = v4.or(v6);
        let from = message.address.as_ref().and_then(socket_addr).ok_or(io::ErrorKind::InvalidData)?;
        Ok((message.bytes, from, to))
    }

    pub(super) fn send(socket: &UdpSocket, to: SocketAddr, from: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let (slices, to) = ([IoSlice::new(bytes)], SockaddrStorage::from(to));
        let send = |said: ControlMessage<'_>| {
            sendmsg(socket.as_raw_fd(), &slices, &[said], MsgFlags::empty(), Some(&to)).map(drop)
        };
        match from.ip() {
            IpAddr::V4(ip) => send(ControlMessage::Ipv4PacketInfo(&in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: in_addr { s_addr: ip.to_bits().to_be() },
                ipi_addr: in_addr { s_addr: 0 },
            })),
            IpAddr::V6(ip) => send(ControlMessage::Ipv6PacketInfo(&in6_pktinfo {
                ipi6_addr: in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: 0,
            })),
        }
        .map_err(io::Error::from)
    }

    fn socket_addr(storage: &SockaddrStorage) -> Option<SocketAddr> {
        let v4 = storage.as_sockaddr_in().map(|addr| SocketAddr::V4((*addr).into()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|addr| SocketAddr::V6((*addr).into())))
    }
}

/// Elsewhere the system chooses.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod destination {
    use std::io;
    use std::net::{IpAddr, SocketAddr, UdpSocket};

    pub(super) fn ask_for(_socket: &UdpSocket, _local_addr: SocketAddr) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
        let (len, from) = socket.recv_from(buffer)?;
        Ok((len, from, None))
    }

    pub(super) fn send(socket: &UdpSocket, to: SocketAddr, _from: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        socket.send_to(bytes, to).map(drop)
    }
}
