//! What an outbox does not copy.

use std::ops::Range;
use std::sync::Arc;

use super::file_part::FilePart;

/// Bytes that go to many, and whatever must know when the last of them has it.
pub(crate) type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A part of what waits for a client.
pub(crate) enum Piece {
    /// Of bytes that go to this client alone.
    Own(Vec<u8>, Range<usize>),
    /// Of bytes that go to many.
    Shared(SharedBytes, Range<usize>),
    File(FilePart),
}

impl Piece {
    pub(crate) fn shared(bytes: SharedBytes) -> Piece {
        let len = (*bytes).as_ref().len();
        Piece::Shared(bytes, 0..len)
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
            Piece::Shared(bytes, range) => Some(&(**bytes).as_ref()[range.clone()]),
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
