//! The way from the rest of the program to one connection: what to send, what to run, and the wish to close.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::tally::Tally;
use crate::error::SendError;
use crate::net::{Parked, Piece, Waker};

/// What other threads have for one connection. Its worker, which alone touches the socket, takes it out, in the order in
/// which it came.
pub(super) struct Mailbox {
    waker: Arc<Waker>,
    max_bytes: usize,
    mail: Mutex<Mail>,
    /// Something is in `mail`; spares the worker the lock.
    any: AtomicBool,
}

#[derive(Default)]
struct Mail {
    items: VecDeque<Item>,
    /// How many bytes of memory wait in `items`, and how many of these are no bytes.
    bytes: usize,
    others: usize,
    /// Close the connection once the items are seen to; at once, and without flushing.
    close: bool,
    abort: bool,
    /// The worker takes no more.
    sealed: bool,
    /// The socket, while the worker sleeps and has nothing to send: whoever sends then writes by itself, as far as the
    /// client takes it, which spares waking the worker. This lock is what makes one writer of them all.
    parked: Option<Parked>,
}

/// One thing for the worker to see to.
pub(super) enum Item {
    /// So many messages in one.
    Send(Piece, u64),
    Visit(Visit),
    /// Read, or do not.
    Pause(bool),
}

/// Runs on the connection's worker, and is given its `Connection`.
pub(super) type Visit = Box<dyn FnOnce(&mut dyn Any) -> anyhow::Result<()> + Send>;

/// What the worker has taken out.
pub(super) enum Taken {
    Item(Item),
    Close,
    Abort,
}

/// So many visits, files and the like may wait.
const MAX_OTHERS: usize = 1024;

impl Mailbox {
    pub(super) fn new(waker: Arc<Waker>, max_bytes: usize) -> Mailbox {
        Mailbox { waker, max_bytes, mail: Mutex::new(Mail::default()), any: AtomicBool::new(false) }
    }

    /// Takes all of `bytes` for the worker to send, or none.
    pub(super) fn send(&self, bytes: &[u8], tally: &Tally) -> Result<(), SendError> {
        {
            let mut mail = self.mail.lock();
            mail.check(bytes.len(), self.max_bytes)?;
            let bytes = &bytes[mail.write_parked(bytes, tally)..];
            if bytes.is_empty() {
                return Ok(());
            }
            mail.bytes += bytes.len();
            match mail.items.back_mut() {
                Some(Item::Send(Piece::Own(last, range), messages)) => {
                    last.extend_from_slice(bytes);
                    range.end = last.len();
                    *messages += 1;
                }
                _ => mail.items.push_back(Item::Send(Piece::Own(bytes.to_vec(), 0..bytes.len()), 1)),
            }
            self.any.store(true, Ordering::Relaxed);
        }
        self.waker.wake();
        Ok(())
    }

    /// The same with a piece, which is not copied.
    pub(super) fn send_piece(&self, mut piece: Piece, tally: &Tally) -> Result<(), SendError> {
        {
            let mut mail = self.mail.lock();
            mail.check(piece.memory(), self.max_bytes)?;
            if let Some(bytes) = piece.bytes() {
                let written = mail.write_parked(bytes, tally);
                piece.skip(written);
                if piece.memory() == 0 {
                    return Ok(());
                }
            }
            if piece.is_file() {
                mail.count_other().map_err(|_| SendError::OutboxFull)?;
            }
            mail.bytes += piece.memory();
            mail.items.push_back(Item::Send(piece, 1));
            self.any.store(true, Ordering::Relaxed);
        }
        self.waker.wake();
        Ok(())
    }

    /// Has the worker see to something that is not sending: what `item` makes of this. An error hands it back.
    pub(super) fn put<X>(&self, x: X, item: impl FnOnce(X) -> Item) -> Result<(), (NotPut, X)> {
        {
            let mut mail = self.mail.lock();
            if mail.is_closed() {
                return Err((NotPut::Closed, x));
            }
            if mail.count_other().is_err() {
                return Err((NotPut::Full, x));
            }
            mail.items.push_back(item(x));
            self.any.store(true, Ordering::Relaxed);
        }
        self.waker.wake();
        Ok(())
    }

    /// Asks the worker to flush and close; `false` if it does so already.
    pub(super) fn close(&self) -> bool {
        self.end(|mail| mail.close = true)
    }

    /// Asks the worker to close at once; `false` if it has closed, or closes already.
    pub(super) fn abort(&self) -> bool {
        self.end(|mail| {
            mail.abort = true;
            mail.items.clear();
        })
    }

    fn end(&self, how: impl FnOnce(&mut Mail)) -> bool {
        {
            let mut mail = self.mail.lock();
            if mail.sealed || mail.abort {
                return false;
            }
            let first = !mail.close;
            how(&mut mail);
            if !first && !mail.abort {
                return false;
            }
            self.any.store(true, Ordering::Relaxed);
        }
        self.waker.wake();
        true
    }

    /// Whether there is mail, and room for any of it.
    #[inline]
    pub(super) fn has_mail(&self, room: usize) -> bool {
        room > 0 && self.any.load(Ordering::Relaxed)
    }

    /// Takes the next item, or as many of its bytes as there is room for.
    pub(super) fn take(&self, room: usize) -> Option<Taken> {
        if !self.has_mail(room) {
            return None;
        }
        let mut mail = self.mail.lock();
        if mail.abort {
            return Some(Taken::Abort);
        }
        let Some(item) = mail.items.pop_front() else {
            // What asks for the end stays, and so does the mark.
            self.any.store(mail.close, Ordering::Relaxed);
            return mail.close.then_some(Taken::Close);
        };
        let item = match item {
            Item::Send(mut piece, messages) if piece.memory() > room => {
                let first = piece.split_to(room);
                mail.items.push_front(Item::Send(piece, 0));
                Item::Send(first, messages)
            }
            item => item,
        };
        match &item {
            Item::Send(piece, _) if !piece.is_file() => mail.bytes -= piece.memory(),
            _ => mail.others -= 1,
        }
        self.any.store(!mail.items.is_empty() || mail.close, Ordering::Relaxed);
        Some(Taken::Item(item))
    }

    /// Leaves the socket here until [`unpark`](Self::unpark).
    pub(super) fn park(&self, socket: Parked) {
        self.mail.lock().parked = Some(socket);
    }

    /// From here on only the worker writes to its socket.
    pub(super) fn unpark(&self) {
        self.mail.lock().parked = None;
    }

    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// From here on, whoever sends is told that the connection is closed. Returns what was accepted before.
    pub(super) fn seal(&self) -> VecDeque<Item> {
        let mut mail = self.mail.lock();
        mail.sealed = true;
        std::mem::take(&mut mail.items)
    }

    /// How many bytes wait for the worker.
    pub(super) fn bytes(&self) -> usize {
        self.mail.lock().bytes
    }
}

/// Why an item was not taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NotPut {
    Closed,
    Full,
}

impl Mail {
    fn is_closed(&self) -> bool {
        self.close || self.abort || self.sealed
    }

    fn check(&self, len: usize, max_bytes: usize) -> Result<(), SendError> {
        if self.is_closed() {
            Err(SendError::Closed)
        } else if len > max_bytes {
            Err(SendError::TooLong)
        } else if len > max_bytes - self.bytes {
            Err(SendError::OutboxFull)
        } else {
            Ok(())
        }
    }

    /// How many of these bytes the client has taken already.
    fn write_parked(&self, bytes: &[u8], tally: &Tally) -> usize {
        // What waits comes first.
        let Some(socket) = self.parked.as_ref().filter(|_| self.items.is_empty()) else { return 0 };
        let written = socket.write(bytes);
        if written > 0 {
            tally.sent(written, Instant::now());
        }
        if written == bytes.len() {
            // The worker counts what it is left.
            tally.messages_sent.add(1);
        }
        written
    }

    fn count_other(&mut self) -> Result<(), NotPut> {
        if self.others >= MAX_OTHERS {
            return Err(NotPut::Full);
        }
        self.others += 1;
        Ok(())
    }
}
