#![no_main]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use backroom::internals::{Header, proxy_header};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Case<'a> {
    splits: Vec<u16>,
    begins: Begins,
    input: &'a [u8],
}

/// So that it is not left to chance.
#[derive(Arbitrary, Debug)]
enum Begins {
    Somehow,
    LikeVersion1,
    LikeVersion2,
    /// With a whole header.
    V4 {
        addresses: [Ipv4Addr; 2],
        ports: [u16; 2],
        extensions: Option<u16>,
    },
    V6 {
        addresses: [Ipv6Addr; 2],
        ports: [u16; 2],
        extensions: Option<u16>,
    },
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const MAX_V1: usize = 107;
const MAX_V2: usize = 4096;

fuzz_target!(|case: Case| {
    let (begins, says) = case.begins.written();
    let input = [&begins[..], case.input].concat();

    let (said, taken) = proxy_header(&[&input]);
    for pieces in [common::split(&input, &case.splits), input.chunks(1).collect()] {
        let (in_pieces, taken_then) = proxy_header(&pieces);
        assert_eq!(in_pieces, said);
        // What is none may be known to be none sooner or later.
        assert!(said == Header::Bad || taken_then == taken, "{taken_then} and {taken}");
    }

    let is_v1 = input.first() == Some(&b'P');
    assert!(taken <= if is_v1 { MAX_V1 } else { MAX_V2 }, "{taken} bytes");
    if let Some((peer, local)) = says {
        let expected = if begins.len() > MAX_V2 { Header::Bad } else { Header::From(peer, local) };
        assert_eq!(said, expected);
    }
    match said {
        Header::Bad => {}
        // All there is belongs to it, and has no end.
        Header::Waits => {
            assert_eq!(taken, input.len());
            assert!(end(&input).is_none_or(|end| end > input.len()), "{}", input.escape_ascii());
        }
        Header::Unknown | Header::From(..) => {
            assert_eq!(end(&input), Some(taken));
            assert!(input.starts_with(if is_v1 { b"PROXY " } else { SIGNATURE }));
        }
    }
});

/// Where a header ends that begins like this, if that can be known.
fn end(input: &[u8]) -> Option<usize> {
    match input.first()? {
        b'P' => Some(input.iter().position(|byte| *byte == b'\n')? + 1),
        _ => Some(16 + usize::from(*input.get(14)?) * 256 + usize::from(*input.get(15)?)),
    }
}

impl Begins {
    /// And who is whose client, if it says so.
    fn written(&self) -> (Vec<u8>, Option<(SocketAddr, SocketAddr)>) {
        let (name, family, [peer, local], [from, to], extensions) = match *self {
            Begins::Somehow => return (Vec::new(), None),
            Begins::LikeVersion1 => return (b"PROXY ".to_vec(), None),
            Begins::LikeVersion2 => return (SIGNATURE.to_vec(), None),
            Begins::V4 { addresses, ports, extensions } => ("TCP4", 0x11, addresses.map(IpAddr::V4), ports, extensions),
            Begins::V6 { addresses, ports, extensions } => ("TCP6", 0x21, addresses.map(IpAddr::V6), ports, extensions),
        };
        let header = match extensions {
            None => format!("PROXY {name} {peer} {local} {from} {to}\r\n").into_bytes(),
            Some(extensions) => {
                let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
                let extensions = vec![0; usize::from(extensions % 8192)];
                let body = [octets(peer), octets(local), ports, extensions].concat();
                [SIGNATURE, &[0x21, family], &(body.len() as u16).to_be_bytes(), &body].concat()
            }
        };
        // One of IPv4 may be written as IPv6.
        let [peer, local] = [peer, local].map(|ip| ip.to_canonical());
        (header, Some((SocketAddr::new(peer, from), SocketAddr::new(local, to))))
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
