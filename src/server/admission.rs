//! How many connections one address may have, and how fast it may make them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::limits::Limits;
use crate::net::Address;

/// The default of `accept_rate_per_address`.
const RATE: (usize, Duration) = (1000, Duration::from_secs(10));
/// A longer time is taken for this, which the clock surely reaches.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// With fewer addresses nobody looks for those that could be forgotten.
const FEW: usize = 1024;

/// Of one listener.
pub(super) struct Admission {
    max_open: usize,
    /// From one connection to the next, on average, and how far ahead of that an address may be.
    interval: Duration,
    burst: Duration,
    /// The limits were not set, so they are not for addresses of this machine.
    spares_loopback: (bool, bool),
    addresses: Mutex<Addresses>,
}

#[derive(Default)]
struct Addresses {
    known: HashMap<IpAddr, Visitor>,
    /// At so many, those that could be forgotten are looked for.
    sweep_at: usize,
}

struct Visitor {
    open: usize,
    /// When its next connection would be due if they came evenly: the generic cell rate algorithm.
    due: Instant,
}

/// A connection that is counted with its address, until this is dropped.
pub(super) struct Admitted {
    admission: Arc<Admission>,
    address: IpAddr,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    TooMany,
    TooFast,
}

impl Admission {
    pub(super) fn new(limits: &Limits, max_connections: usize) -> Admission {
        let (connections, within) = limits.accept_rate_per_address.unwrap_or(RATE);
        let within = within.min(LONGEST);
        Admission {
            max_open: limits.max_connections_per_address.unwrap_or((max_connections / 4).max(1)),
            interval: within / u32::try_from(connections).unwrap_or(u32::MAX),
            burst: within,
            spares_loopback: (limits.max_connections_per_address.is_none(), limits.accept_rate_per_address.is_none()),
            addresses: Mutex::default(),
        }
    }

    /// Counts one more connection from there. `None` where none are counted: those of a Unix socket.
    pub(super) fn admit(self: &Arc<Self>, address: &Address, now: Instant) -> Result<Option<Admitted>, Refusal> {
        let Some(ip) = address.ip().map(|ip| ip.to_canonical()) else { return Ok(None) };
        let (spare_count, spare_rate) = match self.spares_loopback {
            spared if ip.is_loopback() => spared,
            _ => (false, false),
        };
        if spare_count && spare_rate {
            return Ok(None);
        }
        let key = network(ip);
        let mut addresses = self.addresses.lock();
        addresses.sweep(now);
        let visitor = addresses.known.entry(key).or_insert(Visitor { open: 0, due: now });
        if !spare_count && visitor.open >= self.max_open {
            return Err(Refusal::TooMany);
        }
        let due = visitor.due.max(now) + self.interval;
        if !spare_rate && due > now + self.burst {
            return Err(Refusal::TooFast);
        }
        visitor.due = due;
        visitor.open += 1;
        Ok(Some(Admitted { admission: Arc::clone(self), address: key }))
    }
}

impl Addresses {
    /// Forgets who has no connection and could make as many as anybody.
    fn sweep(&mut self, now: Instant) {
        if self.known.len() >= self.sweep_at.max(FEW) {
            self.known.retain(|_, visitor| visitor.open > 0 || visitor.due > now);
            self.sweep_at = self.known.len() * 2;
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(visitor) = self.admission.addresses.lock().known.get_mut(&self.address) {
            visitor.open -= 1;
        }
    }
}

/// An IPv4 address, or the /64 network of an IPv6 address: what one customer commonly has.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(ip: &str) -> Address {
        Address::Inet((ip.parse::<IpAddr>().unwrap(), 1).into())
    }

    fn admission(limits: Limits) -> Arc<Admission> {
        Arc::new(Admission::new(&limits, 40))
    }

    #[test]
    fn an_address_has_a_quarter_of_all_places_and_gets_them_back() {
        let (admission, now) = (admission(Limits::new()), Instant::now());
        let admit = |ip| admission.admit(&from(ip), now);
        let mut open: Vec<_> = (0..10).map(|_| admit("192.0.2.1").unwrap()).collect();
        assert_eq!(admit("192.0.2.1").err(), Some(Refusal::TooMany));
        assert_eq!(admit("::ffff:192.0.2.1").err(), Some(Refusal::TooMany));
        assert!(admit("192.0.2.2").is_ok());
        open.pop();
        assert!(admit("192.0.2.1").is_ok());
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_address() {
        let (admission, now) = (admission(Limits::new().max_connections_per_address(1)), Instant::now());
        let _open = admission.admit(&from("2001:db8::1"), now).unwrap();
        assert_eq!(admission.admit(&from("2001:db8::2"), now).err(), Some(Refusal::TooMany));
        assert!(admission.admit(&from("2001:db8:0:1::1"), now).is_ok());
    }

    #[test]
    fn loopback_is_spared_unless_the_limit_was_set() {
        let now = Instant::now();
        let default = admission(Limits::new());
        let open: Vec<_> = (0..2000).map(|_| default.admit(&from("127.0.0.1"), now).unwrap()).collect();
        assert!(open.iter().all(Option::is_none));
        let set = admission(Limits::new().max_connections_per_address(1));
        let _open = set.admit(&from("127.0.0.1"), now).unwrap();
        assert_eq!(set.admit(&from("127.0.0.1"), now).err(), Some(Refusal::TooMany));
    }

    #[test]
    fn connections_may_come_at_once_or_evenly_but_not_faster() {
        let admission = admission(Limits::new().accept_rate_per_address(10, Duration::from_secs(1)));
        let start = Instant::now();
        let mut admitted = 0;
        for millisecond in 0..10_000 {
            let now = start + Duration::from_millis(millisecond);
            admitted += u32::from(admission.admit(&from("192.0.2.1"), now).is_ok());
        }
        assert!((105..=110).contains(&admitted), "{admitted}");
    }

    #[test]
    fn addresses_that_are_gone_are_forgotten() {
        let (admission, start) = (admission(Limits::new()), Instant::now());
        for n in 0..100_000u32 {
            let ip = IpAddr::from(n.to_be_bytes()).to_string();
            drop(admission.admit(&from(&ip), start + Duration::from_millis(n.into())));
        }
        assert!(admission.addresses.lock().known.len() <= 2 * FEW);
    }
}
