//! The header with which a proxy says where its client comes from: versions 1 and 2 of the PROXY protocol.

use std::net::SocketAddr;

use ppp::{v1, v2};

use super::address::Address;

/// "PROXY TCP6 …\r\n" is no longer than this.
const MAX_V1: usize = 107;
const V1_UNKNOWN: &[u8] = b"PROXY UNKNOWN";
/// Where version 2 has its version and command, and then its family and transport.
const V2_COMMAND: usize = 12;
const V2_LOCAL: u8 = 0x20;
const V2_PROXY: u8 = 0x21;
const V2_INET: u8 = 1;
const V2_INET6: u8 = 2;
/// Signature, version, family and length of version 2.
const V2_START: usize = 16;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Addresses take up to 216 bytes; the rest are extensions, which nobody needs here.
const MAX_V2: usize = 4096;

/// A header of which not all has come.
#[derive(Default)]
pub(crate) struct ProxyHeader {
    bytes: Vec<u8>,
}

/// What the header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Proxied {
    /// The client and the address it connected to.
    From { peer: Address, local: Address },
    /// The proxy speaks for itself, or does not know.
    Unknown,
}

/// Why it is none.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadHeader(pub(crate) &'static str);

impl ProxyHeader {
    /// How many of these bytes, which come next, belong to the header; the rest are the client's own. All of them, if
    /// the header does not end here.
    pub(crate) fn wants(&self, next: &[u8]) -> Result<usize, BadHeader> {
        let have = self.bytes.len();
        match self.bytes.first().or(next.first()) {
            None => Ok(0),
            Some(b'P') => match next.iter().position(|byte| *byte == b'\n') {
                Some(at) if have + at < MAX_V1 => Ok(at + 1),
                None if have + next.len() < MAX_V1 => Ok(next.len()),
                _ => Err(BadHeader("a header of version 1 without end")),
            },
            Some(b'\r') => Ok(self.v2_len()?.saturating_sub(have).min(next.len())),
            Some(_) => Err(BadHeader("no header")),
        }
    }

    /// Takes bytes that it wants. `None`: it is not whole yet.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<Option<Proxied>, BadHeader> {
        self.bytes.extend_from_slice(bytes);
        match &self.bytes[..] {
            [b'P', .., b'\n'] => self.read_v1().map(Some),
            [b'P', ..] => Ok(None),
            [b'\r', ..] if !V2_SIGNATURE.starts_with(&self.bytes[..self.bytes.len().min(V2_SIGNATURE.len())]) => {
                Err(BadHeader("no header"))
            }
            [b'\r', ..] if self.bytes.len() >= V2_START && self.bytes.len() >= self.v2_len()? => {
                self.read_v2().map(Some)
            }
            _ => Ok(None),
        }
    }

    /// As far as it is known.
    fn v2_len(&self) -> Result<usize, BadHeader> {
        let Some([high, low]) = self.bytes.get(V2_START - 2..V2_START) else { return Ok(V2_START) };
        match V2_START + usize::from(u16::from_be_bytes([*high, *low])) {
            len if len <= MAX_V2 => Ok(len),
            _ => Err(BadHeader("a header of version 2 that is too long")),
        }
    }

    fn read_v1(&self) -> Result<Proxied, BadHeader> {
        // Whatever follows is to be ignored.
        if self.bytes.ends_with(b"\r\n") && matches!(self.bytes.strip_prefix(V1_UNKNOWN), Some([b' ' | b'\r', ..])) {
            return Ok(Proxied::Unknown);
        }
        let header = v1::Header::try_from(&self.bytes[..]);
        let header = header.map_err(|_| BadHeader("a malformed header of version 1"))?;
        Ok(match header.addresses {
            v1::Addresses::Tcp4(a) => {
                from((a.source_address, a.source_port), (a.destination_address, a.destination_port))
            }
            v1::Addresses::Tcp6(a) => {
                from((a.source_address, a.source_port), (a.destination_address, a.destination_port))
            }
            v1::Addresses::Unknown => Proxied::Unknown,
        })
    }

    fn read_v2(&self) -> Result<Proxied, BadHeader> {
        // A check of the proxy's own, or a family that says nothing to us: whatever follows is to be ignored.
        let (command, family) = (self.bytes[V2_COMMAND], self.bytes[V2_COMMAND + 1]);
        if command == V2_LOCAL || command == V2_PROXY && !(V2_INET..=V2_INET6).contains(&(family >> 4)) {
            return Ok(Proxied::Unknown);
        }
        let header = v2::Header::try_from(&self.bytes[..]);
        let header = header.map_err(|_| BadHeader("a malformed header of version 2"))?;
        Ok(match header.addresses {
            v2::Addresses::IPv4(a) => {
                from((a.source_address, a.source_port), (a.destination_address, a.destination_port))
            }
            v2::Addresses::IPv6(a) => {
                from((a.source_address, a.source_port), (a.destination_address, a.destination_port))
            }
            v2::Addresses::Unix(_) | v2::Addresses::Unspecified => Proxied::Unknown,
        })
    }
}

fn from(peer: impl Into<SocketAddr>, local: impl Into<SocketAddr>) -> Proxied {
    Proxied::From { peer: peer.into().into(), local: local.into().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The header that comes in these chunks, and what is left of them for the client's own protocol.
    fn read(chunks: &[&[u8]]) -> Result<(Option<Proxied>, Vec<u8>), BadHeader> {
        let mut header = ProxyHeader::default();
        let mut rest: Vec<u8> = Vec::new();
        let mut said = None;
        for chunk in chunks {
            rest.extend_from_slice(chunk);
            while said.is_none() && !rest.is_empty() {
                let wanted = header.wants(&rest)?;
                assert!(wanted > 0, "it would wait for ever");
                said = header.take(&rest.drain(..wanted).collect::<Vec<_>>())?;
            }
        }
        Ok((said, rest))
    }

    fn v2(family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[0x21, family][..], &length, body].concat()
    }

    fn is_from(peer: &str, local: &str) -> Option<Proxied> {
        Some(from(peer.parse::<SocketAddr>().unwrap(), local.parse::<SocketAddr>().unwrap()))
    }

    #[test]
    fn both_versions_say_where_the_client_comes_from_and_leave_what_follows() {
        let one = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\nhello\n";
        let two = [v2(0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 3, 232, 1, 187]), b"hello\n".to_vec()].concat();
        for input in [&one[..], &two] {
            let (said, rest) = read(&[input]).unwrap();
            assert_eq!(said, is_from("192.0.2.1:1000", "192.0.2.2:443"));
            assert_eq!(rest, b"hello\n");
        }
        let six = b"PROXY TCP6 2001:db8::1 2001:db8::2 1000 443\r\n";
        assert_eq!(read(&[six]).unwrap().0, is_from("[2001:db8::1]:1000", "[2001:db8::2]:443"));
        let mapped = b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1000 443\r\n";
        assert_eq!(
            read(&[mapped]).unwrap().0.unwrap(),
            Proxied::From {
                peer: Address::Inet("192.0.2.1:1000".parse().unwrap()),
                local: Address::Inet("192.0.2.2:443".parse().unwrap()),
            }
        );
    }

    #[test]
    fn a_proxy_that_does_not_know_says_so() {
        let long = b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:f::1 65535 65535\r\n";
        for unknown in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN 1 2 3 4 5\r\n", long] {
            assert_eq!(read(&[unknown]).unwrap().0, Some(Proxied::Unknown));
        }
        assert!(read(&[b"PROXY UNKNOWNS\r\n"]).is_err());
        // What is said of addresses does not count there: none, too little, of any family.
        for (family, body) in [(0, &[][..]), (0x11, &[]), (0x21, &[1, 2, 3]), (0xF1, &[1; 40])] {
            let mut local = v2(family, body);
            local[12] = 0x20;
            assert_eq!(read(&[&local, b"rest"]).unwrap(), (Some(Proxied::Unknown), b"rest".to_vec()));
        }
        // A family that means nothing here, and one that is no client's of ours.
        for (family, body) in [(0x41, &[1; 20][..]), (0xF2, &[]), (0x31, &[0; 216]), (0, &[1, 2])] {
            assert_eq!(read(&[&v2(family, body), b"rest"]).unwrap(), (Some(Proxied::Unknown), b"rest".to_vec()));
        }
    }

    #[test]
    fn a_header_is_bounded_and_begins_as_one() {
        let long = [&b"PROXY TCP4 "[..], &[b'1'; 200]].concat();
        assert!(read(&[&long]).is_err());
        assert!(read(&[&v2(0x11, &[0; 5000])]).is_err());
        assert!(read(&[b"GET / HTTP/1.1\r\n"]).is_err());
        assert!(read(&[b"\r\n\r\nGET"]).is_err());
        assert!(read(&[b"PROXY TCP4 nobody nowhere 1 2\r\n"]).is_err());
        assert!(read(&[&v2(0x11, &[192, 0])]).is_err());
    }

    proptest! {
        #[test]
        fn any_split_of_the_header_says_the_same(
            version_2 in any::<bool>(),
            splits in proptest::collection::vec(0usize..60, 0..8),
        ) {
            let input = match version_2 {
                true => [v2(0x11, &[192, 0, 2, 1, 192, 0, 2, 2, 3, 232, 1, 187, 4, 0, 0]), b"rest".to_vec()].concat(),
                false => b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\nrest".to_vec(),
            };
            let mut splits: Vec<usize> = splits.into_iter().map(|at| at.min(input.len())).collect();
            splits.extend([0, input.len()]);
            splits.sort_unstable();
            let chunks: Vec<&[u8]> = splits.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            let (said, rest) = read(&chunks).unwrap();
            prop_assert_eq!(said, is_from("192.0.2.1:1000", "192.0.2.2:443"));
            prop_assert_eq!(rest, b"rest");
        }

        #[test]
        fn no_input_makes_it_panic_or_grow(input in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'P'), any::<u8>()], 0..300)) {
            let _ = read(&[&input]);
            let _ = read(&[&[&V2_SIGNATURE[..], &input].concat()]);
            let _ = read(&[&[b"PROXY ", &input[..]].concat()]);
        }
    }
}
