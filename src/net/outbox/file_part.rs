//! A part of a file on its way to a client, which keeps the file open until it is sent.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Sink;

/// So many bytes of a file, from an offset on.
#[derive(Debug)]
pub(crate) struct FilePart {
    file: File,
    offset: u64,
    len: u64,
    /// After the file, which is closed first.
    _permit: FilePermit,
}

impl FilePart {
    pub(crate) fn new(file: File, offset: u64, len: u64, permit: FilePermit) -> FilePart {
        FilePart { file, offset, len, _permit: permit }
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

/// How many files may wait for all clients together: clients that take nothing must not use up the descriptors of
/// the process.
#[derive(Debug)]
pub(crate) struct FileBudget {
    open: AtomicUsize,
    max: usize,
}

/// Nobody may have more than one part in so many of what is left.
const SHARE: usize = 4;

/// For one file; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct FilePermit(Arc<FileBudget>);

impl FileBudget {
    pub(crate) fn new(max: usize) -> FileBudget {
        FileBudget { open: AtomicUsize::new(0), max }
    }

    /// For a client who has so many already. The fewer are left the fewer each may have, so that those who take nothing
    /// leave some to the others.
    pub(crate) fn permit(self: &Arc<Self>, own: usize) -> Option<FilePermit> {
        let left = |open: usize| self.max.saturating_sub(open);
        let one_more = |open: usize| (own * SHARE < left(open)).then_some(open + 1);
        self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(FilePermit(Arc::clone(self)))
    }
}

impl Drop for FilePermit {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewer_are_left_the_fewer_each_may_have_and_the_last_are_for_who_has_none() {
        let budget = Arc::new(FileBudget::new(16));
        let mut permits = Vec::new();
        let mut have = [0; 12];
        for own in &mut have {
            while let Some(permit) = budget.permit(*own) {
                permits.push(permit);
                *own += 1;
            }
        }
        assert_eq!(have, [4, 3, 2, 2, 1, 1, 1, 1, 1, 0, 0, 0]);
        permits.pop();
        assert!(budget.permit(1).is_none() && budget.permit(0).is_some());
    }
}
