//! The way from the rest of the program to one connection: what to send, what to run, and the wish to close.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::tally::Tally;
use crate::error::SendError;
use crate::net::{MAX_FILES, Outbox, Parked, Piece, Waker};
use crate::panic::drop_fenced;

/// What other threads have for one connection. Its worker, which alone touches the socket, takes it out, in the order in
/// which it came.
pub(super) struct Mailbox {
    waker: Arc<Waker>,
    max_bytes: usize,
    mail: Mutex<Mail>,
    next: NextNeed,
}

/// What the next item needs of the outbox; spares the worker the lock.
struct NextNeed(AtomicUsize);

#[derive(Clone, Copy)]
enum Need {
    Bytes(usize),
    PlaceForFile,
}

impl NextNeed {
    const NO_ITEM: usize = usize::MAX;
    const FILE: usize = usize::MAX - 1;

    /// `None`: there is no item.
    fn set(&self, need: Option<Need>) {
        let code = match need {
            None => Self::NO_ITEM,
            Some(Need::PlaceForFile) => Self::FILE,
            Some(Need::Bytes(bytes)) => bytes,
        };
        self.0.store(code, Ordering::Relaxed);
    }

    #[inline]
    fn get(&self) -> Option<Need> {
        match self.0.load(Ordering::Relaxed) {
            Self::NO_ITEM => None,
            Self::FILE => Some(Need::PlaceForFile),
            bytes => Some(Need::Bytes(bytes)),
        }
    }
}

impl Need {
    #[inline]
    fn fits(self, outbox: &Outbox) -> bool {
        match self {
            Need::Bytes(bytes) => bytes <= outbox.room(),
            Need::PlaceForFile => outbox.has_place_for_file(),
        }
    }
}

#[derive(Default)]
struct Mail {
    items: VecDeque<Item>,
    /// How many bytes of memory wait in `items`, how many files, and how many of what is neither.
    bytes: usize,
    files: usize,
    others: usize,
    /// Close the connection once the items are seen to; at once, and without flushing.
    close: bool,
    abort: bool,
    /// Nothing can be sent any more. What is not sending goes on.
    unsendable: bool,
    /// The worker takes no more, and flushes what it has.
    sealed: bool,
    /// It has done that.
    ended: bool,
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

/// So many visits and the like may wait.
const MAX_OTHERS: usize = 1024;

impl Mailbox {
    pub(super) fn new(waker: Arc<Waker>, max_bytes: usize) -> Mailbox {
        Mailbox {
            waker,
            max_bytes,
            mail: Mutex::new(Mail::default()),
            next: NextNeed(AtomicUsize::new(NextNeed::NO_ITEM)),
        }
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
            self.tell_next(&mail);
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
                    // Nothing is left of it, or there never was; it would take no room, and so without end.
                    return Ok(());
                }
            }
            if piece.is_file() && mail.files >= MAX_FILES {
                return Err(SendError::OutboxFull);
            }
            mail.bytes += piece.memory();
            mail.files += usize::from(piece.is_file());
            mail.items.push_back(Item::Send(piece, 1));
            self.tell_next(&mail);
        }
        self.waker.wake();
        Ok(())
    }

    /// A place for something that is not sending. Nobody else can put anything there meanwhile.
    pub(super) fn place(&self) -> Result<MailPlace<'_>, NotPut> {
        let mail = self.mail.lock();
        if mail.is_closed() {
            return Err(NotPut::Closed);
        }
        if mail.others >= MAX_OTHERS {
            return Err(NotPut::Full);
        }
        Ok(MailPlace { mailbox: self, mail })
    }

    /// Has the worker read, or not.
    pub(super) fn pause(&self, pause: bool) -> bool {
        self.place().map(|place| place.put(Item::Pause(pause))).is_ok()
    }

    /// Asks the worker to flush and close; `false` if it does so already.
    pub(super) fn close(&self) -> bool {
        {
            let mut mail = self.mail.lock();
            if mail.is_closed() {
                return false;
            }
            mail.close = true;
            self.tell_next(&mail);
        }
        self.waker.wake();
        true
    }

    /// Asks the worker to close at once, even if it is flushing; `false` if it has closed, or was asked to before.
    pub(super) fn abort(&self) -> bool {
        let unwanted = {
            let mut mail = self.mail.lock();
            if mail.abort || mail.ended {
                return false;
            }
            mail.abort = true;
            self.tell_next(&mail);
            mail.clear()
        };
        self.waker.wake();
        unwanted.into_iter().for_each(drop_fenced);
        true
    }

    fn tell_next(&self, mail: &Mail) {
        self.next.set(mail.need());
    }

    /// Whether there is mail, and room for the next of it.
    #[inline]
    pub(super) fn has_mail_for(&self, outbox: &Outbox) -> bool {
        self.next.get().is_some_and(|need| need.fits(outbox))
    }

    /// Whether there is mail, and no room for the next of it.
    #[inline]
    pub(super) fn waits_for(&self, outbox: &Outbox) -> bool {
        self.next.get().is_some_and(|need| !need.fits(outbox))
    }

    /// How many items there are now.
    pub(super) fn len(&self) -> usize {
        match self.next.get() {
            None => 0,
            // One for what asks for the end.
            Some(_) => self.mail.lock().items.len() + 1,
        }
    }

    /// Takes the next item, if the outbox has room for it: a message goes there whole, so that nothing else comes into
    /// the middle of it.
    pub(super) fn take(&self, outbox: &Outbox) -> Option<Taken> {
        if !self.has_mail_for(outbox) {
            return None;
        }
        let mut mail = self.mail.lock();
        // It may have grown.
        self.tell_next(&mail);
        if !self.has_mail_for(outbox) {
            return None;
        }
        if mail.abort {
            return Some(Taken::Abort);
        }
        // What asks for the end stays.
        let Some(item) = mail.items.pop_front() else { return mail.close.then_some(Taken::Close) };
        match &item {
            Item::Send(piece, _) if piece.is_file() => mail.files -= 1,
            Item::Send(piece, _) => mail.bytes -= piece.memory(),
            _ => mail.others -= 1,
        }
        self.tell_next(&mail);
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

    /// From here on, a send is an error: the connection is closed. Returns what was to be sent.
    pub(super) fn stop_sending(&self) -> VecDeque<Item> {
        let mut mail = self.mail.lock();
        mail.unsendable = true;
        let (unsent, others) = mail.clear().into_iter().partition(|item| matches!(item, Item::Send(..)));
        mail.items = others;
        mail.others = mail.items.len();
        self.tell_next(&mail);
        unsent
    }

    /// From here on, nothing is taken: the connection is closed. Returns what was accepted before.
    pub(super) fn seal(&self) -> VecDeque<Item> {
        let mut mail = self.mail.lock();
        mail.sealed = true;
        mail.clear()
    }

    /// Whether the worker was asked to close at once.
    pub(super) fn is_aborted(&self) -> bool {
        self.mail.lock().abort
    }

    /// From here on, whoever aborts is told that the connection is closed. Returns whether somebody has before.
    pub(super) fn end(&self) -> bool {
        let mut mail = self.mail.lock();
        mail.ended = true;
        mail.abort
    }

    /// How many bytes wait for the worker, and of them those that only this connection keeps.
    pub(super) fn all_and_own_bytes(&self) -> (usize, usize) {
        let own = |item: &Item| match item {
            Item::Send(piece, _) if !piece.is_shared() => piece.memory(),
            _ => 0,
        };
        let mail = self.mail.lock();
        (mail.bytes, mail.items.iter().map(own).sum())
    }

    /// How many files wait for the worker.
    pub(super) fn files(&self) -> usize {
        self.mail.lock().files
    }

    /// How many bytes wait for the worker.
    pub(super) fn bytes(&self) -> usize {
        self.mail.lock().bytes
    }
}

/// In a mailbox, which is locked while there is one.
pub(super) struct MailPlace<'a> {
    mailbox: &'a Mailbox,
    mail: MutexGuard<'a, Mail>,
}

impl MailPlace<'_> {
    /// Has the worker see to this.
    pub(super) fn put(mut self, item: Item) {
        self.mail.others += 1;
        self.mail.items.push_back(item);
        self.mailbox.tell_next(&self.mail);
        drop(self.mail);
        self.mailbox.waker.wake();
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
        if self.is_closed() || self.unsendable {
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
        if written > 0 && written == bytes.len() {
            // The worker counts what it is left.
            tally.messages_sent.add(1);
        }
        written
    }

    /// What the outbox must have before the next item is taken.
    fn need(&self) -> Option<Need> {
        match self.items.front() {
            _ if self.abort => Some(Need::Bytes(0)),
            Some(Item::Send(piece, _)) if piece.is_file() => Some(Need::PlaceForFile),
            Some(Item::Send(piece, _)) => Some(Need::Bytes(piece.memory())),
            None if !self.close => None,
            _ => Some(Need::Bytes(0)),
        }
    }

    /// Takes all items, to be dropped where no lock is held: they have users' closures in them.
    fn clear(&mut self) -> VecDeque<Item> {
        (self.bytes, self.files, self.others) = (0, 0, 0);
        std::mem::take(&mut self.items)
    }
}
