//! What the fuzz targets and the benchmark of the framings reach of the library. Not part of its interface: here only
//! with the feature `internals`, and changed without notice.

use std::net::SocketAddr;

use crate::net::{Address, FrameError, Framer, Framing, Input, Proxied, ProxyHeader};

/// What a connection makes of what it reads.
#[derive(Debug, PartialEq, Eq)]
pub struct Frames {
    /// What `on_receive` is given.
    pub frames: Vec<Vec<u8>>,
    /// What comes after these.
    pub end: End,
}

/// What comes after the last whole frame.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// So many bytes of an unfinished one, or none.
    Waits(usize),
    /// One that is too long.
    TooLong,
    /// What is not of the protocol.
    Malformed,
    /// A client that speaks TLS.
    Tls,
}

/// The frames in these pieces, each of them one read or more. `None` where this framing cannot work.
pub fn frames(framing: &Framing, max_frame: usize, pieces: &[&[u8]]) -> Option<Frames> {
    if framing.problem(max_frame).is_some() {
        return None;
    }
    let mut input = Input::new(framing, max_frame);
    let mut frames = Vec::new();
    for piece in pieces {
        let mut piece = *piece;
        while !piece.is_empty() {
            // From a slice, this does not fail.
            let _ = input.fill(&mut piece);
            loop {
                match input.next_frame() {
                    Ok(Some(frame)) => frames.push(frame.to_vec()),
                    Ok(None) => break,
                    Err(error) => return Some(Frames { frames, end: end(&error) }),
                }
            }
            let (_, room) = input.size();
            assert!(room <= max_frame + 64 * 1024, "a buffer of {room} bytes for frames of {max_frame}");
        }
    }
    let (waits, _) = input.size();
    Some(Frames { frames, end: End::Waits(waits) })
}

fn end(error: &FrameError) -> End {
    match error {
        FrameError::TooLong => End::TooLong,
        FrameError::Malformed(_) => End::Malformed,
        FrameError::Tls => End::Tls,
    }
}

/// How many frames there are at the start of this input, all of which has come already.
pub fn count_frames(framing: &Framing, max_frame: usize, input: &[u8]) -> usize {
    let (mut framer, mut rest, mut count) = (Framer::new(framing, max_frame), input, 0);
    while let Ok(Some(cut)) = framer.cut(rest) {
        rest = &rest[cut.taken..];
        count += 1;
    }
    count
}

/// What a proxy's header says.
#[derive(Debug, PartialEq, Eq)]
pub enum Header {
    /// It is not whole.
    Waits,
    /// The client, and the address that it connected to.
    From(SocketAddr, SocketAddr),
    /// Nothing.
    Unknown,
    /// It is none.
    Bad,
}

/// The header in these pieces, and how many of their bytes were taken for it.
pub fn proxy_header(pieces: &[&[u8]]) -> (Header, usize) {
    let (mut header, mut taken) = (ProxyHeader::default(), 0);
    for piece in pieces {
        let mut piece = *piece;
        while !piece.is_empty() {
            let Ok(wanted) = header.wants(piece) else { return (Header::Bad, taken) };
            assert!((1..=piece.len()).contains(&wanted), "{wanted} of {} bytes", piece.len());
            taken += wanted;
            match header.take(&piece[..wanted]) {
                Ok(None) => piece = &piece[wanted..],
                Ok(Some(said)) => return (said.into(), taken),
                Err(_) => return (Header::Bad, taken),
            }
        }
    }
    (Header::Waits, taken)
}

impl From<Proxied> for Header {
    fn from(said: Proxied) -> Header {
        match said {
            Proxied::From { peer: Address::Inet(peer), local: Address::Inet(local) } => Header::From(peer, local),
            _ => Header::Unknown,
        }
    }
}
