//! What an outbox does not copy.

use std::ops::Range;
use std::sync::Arc;

use super::file_part::FilePart;

/// A part of what waits for a client.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Of bytes that go to this client alone.
    Own(Vec<u8>, Range<usize>),
    /// Of bytes that go to many.
    Shared(Arc<[u8]>, Range<usize>),
    File(FilePart),
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
