//! Bytes on their way to a client: gathered during a batch, written in one go, bounded.

mod file_part;
mod piece;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::time::Instant;

pub(crate) use file_part::{FileBudget, FilePart};
pub(crate) use piece::{Piece, SharedBytes};

/// A buffer this large or larger is given back once it is empty.
const KEEP: usize = 64 * 1024;
/// So many pieces go into one write.
const SLICES: usize = 16;
/// A piece that nobody else has, and that is smaller, is copied rather than kept as it is.
const COPIED: usize = 16 * 1024;
/// One flush writes about so much at most, so that what else the worker has to do has its turn.
const MAX_FLUSH: usize = 4 * 1024 * 1024;
/// So much of a file goes into one write, so that no connection is at it for long.
const FILE_STEP: usize = 1024 * 1024;
/// So many files may wait: each is an open descriptor.
pub(crate) const MAX_FILES: usize = 16;

/// What takes the bytes.
pub(crate) trait Sink: Write {
    /// Writes from a file, as `write` does from a slice; 0 is the end of the file.
    fn send_file(&mut self, file: &File, offset: u64, len: usize) -> io::Result<usize>;

    /// How many bytes have gone out of those that it keeps for itself. While these become more the client takes some,
    /// even where nothing new fits yet.
    fn moved(&self) -> u64 {
        0
    }
}

/// In the order in which it goes out: `queue`, then `bytes`.
pub(crate) struct Outbox {
    /// What is not copied: bytes that others have too, and files; and what was sent before these.
    queue: VecDeque<Piece>,
    /// Small messages, one after the other.
    bytes: Vec<u8>,
    /// How many of `bytes` are written already.
    written: usize,
    /// How many bytes wait in `queue`; those of files take no memory and do not count.
    queued: usize,
    /// Of these, those that others have too, which take no memory of this connection's.
    shared: usize,
    files: usize,
    bounds: Bounds,
    congested: bool,
    /// All is written, but the sink has not got rid of it yet.
    in_sink: bool,
    /// How far the sink had come when it was found blocked.
    moved: u64,
    blocked_since: Option<Instant>,
}

/// In bytes that wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) limit: usize,
    /// More than this is congestion,
    pub(crate) high: usize,
    /// until it is down to this.
    pub(crate) low: usize,
}

/// It does not fit; nothing of it was taken.
#[derive(Debug)]
pub(crate) struct OutboxFull;

impl Outbox {
    pub(crate) fn new(bounds: Bounds) -> Outbox {
        Outbox {
            queue: VecDeque::new(),
            bytes: Vec::new(),
            written: 0,
            queued: 0,
            shared: 0,
            files: 0,
            bounds,
            congested: false,
            in_sink: false,
            moved: 0,
            blocked_since: None,
        }
    }

    /// Takes all of `bytes`, or none.
    #[inline]
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), OutboxFull> {
        if bytes.len() > self.room() {
            return Err(OutboxFull);
        }
        if self.written > 0 && self.bytes.len() + bytes.len() > self.bytes.capacity() {
            self.bytes.drain(..self.written);
            self.written = 0;
        }
        self.bytes.extend_from_slice(bytes);
        self.congested |= self.len() > self.bounds.high;
        Ok(())
    }

    /// Takes a piece as it is, uncopied, or not at all.
    pub(crate) fn push_piece(&mut self, piece: Piece) -> Result<(), OutboxFull> {
        if let Piece::Own(bytes, range) = &piece {
            if range.len() < COPIED {
                return self.push(&bytes[range.clone()]);
            }
        }
        let (len, is_file) = (piece.memory(), piece.is_file());
        if len > self.room() || is_file && !self.has_place_for_file() {
            return Err(OutboxFull);
        }
        if len == 0 && !is_file {
            // Nothing could ever be written of it.
            return Ok(());
        }
        if self.written < self.bytes.len() {
            let bytes = std::mem::take(&mut self.bytes);
            let range = std::mem::take(&mut self.written)..bytes.len();
            self.queued += range.len();
            self.queue.push_back(Piece::Own(bytes, range));
        }
        self.queued += len;
        self.shared += if piece.is_shared() { len } else { 0 };
        self.files += usize::from(is_file);
        self.queue.push_back(piece);
        self.congested |= self.len() > self.bounds.high;
        Ok(())
    }

    /// Writes what the client takes without blocking, and returns how much that was. What it does not take stays.
    pub(crate) fn flush(&mut self, sink: &mut impl Sink) -> io::Result<usize> {
        let mut flushed = 0;
        while !self.is_written() {
            match self.write(sink) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    flushed += n;
                    self.blocked_since = None;
                    if flushed >= MAX_FLUSH && !self.is_written() {
                        return Ok(flushed);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.block(sink.moved());
                    return Ok(flushed);
                }
                // An error comes again, and what was written before it is to be known.
                Err(_) if flushed > 0 => return Ok(flushed),
                Err(error) => return Err(error),
            }
        }
        self.written = 0;
        self.bytes.clear();
        if self.bytes.capacity() >= KEEP {
            self.bytes = Vec::new();
        }
        self.congested = false;
        self.flush_sink(sink)?;
        Ok(flushed)
    }

    fn flush_sink(&mut self, sink: &mut impl Sink) -> io::Result<()> {
        match sink.flush() {
            Ok(()) => (self.in_sink, self.blocked_since) = (false, None),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.in_sink = true;
                self.block(sink.moved());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn write(&mut self, sink: &mut impl Sink) -> io::Result<usize> {
        match self.queue.front_mut() {
            None => {
                let n = sink.write(&self.bytes[self.written..])?;
                self.written += n;
                Ok(n)
            }
            Some(Piece::File(part)) => {
                let n = part.send(sink, FILE_STEP)?;
                if part.is_empty() {
                    self.queue.pop_front();
                    self.files -= 1;
                }
                Ok(n)
            }
            Some(_) => {
                let n = self.write_pieces(sink)?;
                self.advance(n);
                Ok(n)
            }
        }
    }

    /// The pieces up to the next file, and the bytes behind them if there is none.
    fn write_pieces(&self, sink: &mut impl Sink) -> io::Result<usize> {
        let mut slices = std::array::from_fn::<_, SLICES, _>(|_| IoSlice::new(&[]));
        let before_file = self.queue.iter().map_while(Piece::bytes);
        let behind = (self.files == 0).then_some(&self.bytes[self.written..]);
        let mut count = 0;
        for (slice, bytes) in slices.iter_mut().zip(before_file.chain(behind)) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        sink.write_vectored(&slices[..count])
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.queue.front_mut().filter(|piece| !piece.is_file() && written > 0) {
            let n = piece.memory().min(written);
            piece.skip(n);
            written -= n;
            self.queued -= n;
            self.shared -= if piece.is_shared() { n } else { 0 };
            if piece.memory() == 0 {
                self.queue.pop_front();
            }
        }
        self.written += written;
    }

    fn block(&mut self, moved: u64) {
        if self.blocked_since.is_none() || self.moved != moved {
            (self.blocked_since, self.moved) = (Some(Instant::now()), moved);
        }
        self.congested &= self.len() > self.bounds.low;
    }

    fn is_written(&self) -> bool {
        self.queue.is_empty() && self.written == self.bytes.len()
    }

    /// How many bytes wait, those of files aside.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.queued + self.bytes.len() - self.written
    }

    /// How many of these only this connection keeps.
    #[inline]
    pub(crate) fn own_len(&self) -> usize {
        self.len() - self.shared
    }

    /// Nothing waits, in the sink neither.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.is_written() && !self.in_sink
    }

    pub(crate) fn limit(&self) -> usize {
        self.bounds.limit
    }

    /// How many bytes still fit.
    pub(crate) fn room(&self) -> usize {
        self.bounds.limit.saturating_sub(self.len())
    }

    pub(crate) fn files(&self) -> usize {
        self.files
    }

    #[inline]
    pub(crate) fn has_place_for_file(&self) -> bool {
        self.files < MAX_FILES
    }

    /// The high watermark was passed, and the low one has not been reached since.
    #[inline]
    pub(crate) fn is_congested(&self) -> bool {
        self.congested
    }

    /// Since when the client has taken nothing of what waits for it.
    #[inline]
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since
    }

    /// Forgets what waits: nobody will take it.
    pub(crate) fn discard(&mut self) {
        *self = Outbox::new(self.bounds);
    }

    /// Gives the memory of an empty outbox back.
    pub(crate) fn release(&mut self) {
        if self.is_written() {
            self.bytes = Vec::new();
            self.written = 0;
            self.queue = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests;
