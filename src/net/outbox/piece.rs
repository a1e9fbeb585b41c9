//! What an outbox does not copy.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Sink;

/// A part of what waits for a client.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Of bytes that go to this client alone.
    Own(Vec<u8>, Range<usize>),
    /// Of bytes that go to many.
    Shared(Arc<[u8]>, Range<usize>),
    File(FilePart),
}

/// So many bytes of a file, from an offset on.
#[derive(Debug)]
pub(crate) struct FilePart {
    file: File,
    offset: u64,
    len: u64,
}

impl Piece {
    pub(crate) fn shared(bytes: &Arc<[u8]>) -> Piece {
        Piece::Shared(Arc::clone(bytes), 0..bytes.len())
    }

    /// How many bytes of memory wait in it.
    pub(crate) fn memory(&self) -> usize {
        self.bytes().map_or(0, <[u8]>::len)
    }

    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Piece::Shared(..))
    }

    pub(crate) fn is_file(&self) -> bool {
        matches!(self, Piece::File(_))
    }

    pub(crate) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Piece::Own(bytes, range) => Some(&bytes[range.clone()]),
            Piece::Shared(bytes, range) => Some(&bytes[range.clone()]),
            Piece::File(_) => None,
        }
    }

    pub(crate) fn skip(&mut self, n: usize) {
        match self {
            Piece::Own(_, range) | Piece::Shared(_, range) => range.start += n,
            Piece::File(_) => {}
        }
    }
}

impl FilePart {
    pub(crate) fn new(file: File, offset: u64, len: u64) -> FilePart {
        FilePart { file, offset, len }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn send(&mut self, sink: &mut impl Sink, at_most: usize) -> io::Result<usize> {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX).min(at_most);
        let n = sink.send_file(&self.file, self.offset, len)?;
        if n == 0 {
            // The client was promised more.
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter"));
        }
        self.offset += n as u64;
        self.len -= n as u64;
        Ok(n)
    }
}
