//! A connection without its session.

use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connection::Connection;
use super::connection_info::{ConnectionId, ConnectionInfo};
use super::handle::ServerHandle;
use super::registry::Registered;
use super::remote::Remote;
use super::timers::{SHORTEST_PERIOD, Timer, TimerId, Timers};
use crate::error::{SendError, SendFileError, TaskError, TryTaskError};
#[cfg(feature = "tls")]
use crate::net::TlsInfo;
use crate::net::{Address, FileBudget, FilePart, Outbox, Piece, Stream};
use crate::panic::drop_fenced;
use crate::task::{BeforeWait, Finished, Port, Progress, TaskId, TaskOptions, With};

/// A connection without its session: the client's socket on one side, the back room on the other. From
/// [`Connection::parts`].
pub struct Link<T, R, S = ()> {
    pub(super) wire: Wire,
    pub(super) registered: Registered,
    /// Closed once the worker knows of a shutdown. Apart from the rest, since the stack of a worker is put together from
    /// whole pages, and this would take one more.
    pub(super) port: Box<Port<T, R, Connection<T, R, S>>>,
    pub(super) server: ServerHandle,
    pub(super) state: LinkState,
    /// Nothing is read, because a callback said so.
    pub(super) paused: bool,
    pub(super) timers: Timers<Connection<T, R, S>>,
}

/// The way to the client.
pub(super) struct Wire {
    pub(super) stream: Stream,
    pub(super) outbox: Outbox,
    /// Written, and not counted yet.
    pub(super) flushed: usize,
    /// Taken for sending, and not counted yet.
    pub(super) messages: u64,
    /// Why nothing can be sent any more. What the client has sent before is received all the same.
    pub(super) broken: Option<io::Error>,
    /// The callback that runs was refused to send because of that.
    pub(super) refused: bool,
    /// The client does not get all that was taken for sending.
    pub(super) is_short: bool,
}

/// Whether there is anyone to send to.
pub(super) enum LinkState {
    Open,
    /// `close` was called.
    Closing,
    /// `abort` was called.
    Aborting,
    Closed,
}

/// `send` does not gather more than this before it writes.
const WRITE_THROUGH: usize = 64 * 1024;

impl<T: Send + 'static, R: Send + 'static, S> Link<T, R, S> {
    /// How many tasks have no outcome delivered yet; see [`Connection::tasks_in_flight`].
    pub fn tasks_in_flight(&self) -> usize {
        self.port.in_flight()
    }

    /// All the ways of submitting a task, with options; see [`Connection::with`].
    pub fn with(&mut self, options: TaskOptions<T>) -> With<'_, T, R, Connection<T, R, S>> {
        With::new(&mut self.port, Some(options), Some(&mut self.wire))
    }

    pub(super) fn plain(&mut self) -> With<'_, T, R, Connection<T, R, S>> {
        With::new(&mut self.port, None, Some(&mut self.wire))
    }

    /// Hands a task to the task workers; see [`Connection::task`].
    pub fn task(&mut self, data: T) -> Result<TaskId, TaskError> {
        self.plain().task(data)
    }

    /// Hands over a task with a finish closure of its own; see [`Connection::task_then`].
    pub fn task_then<F>(&mut self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnOnce(&mut Connection<T, R, S>, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        self.plain().task_then(data, finish)
    }

    /// Hands over a task unless the queue is full; see [`Connection::try_task`].
    pub fn try_task(&mut self, data: T) -> Result<TaskId, TryTaskError<T>> {
        self.plain().try_task(data)
    }

    /// Cancels a task; see [`Connection::cancel`].
    pub fn cancel(&mut self, task: TaskId) -> bool {
        self.port.cancel(task)
    }

    /// How far a task has come; see [`Connection::progress`].
    pub fn progress(&self, task: TaskId) -> Option<Progress> {
        self.port.progress(task)
    }
}

impl<T, R, S> Link<T, R, S> {
    /// The id of this connection.
    pub fn id(&self) -> ConnectionId {
        self.registered.entry().id
    }

    /// The address of the client.
    pub fn peer_addr(&self) -> &Address {
        &self.registered.entry().peer_addr
    }

    /// The address the client connected to.
    pub fn local_addr(&self) -> &Address {
        &self.registered.entry().local_addr
    }

    /// The name of the listener the client came in by; see [`Connection::listener`].
    pub fn listener(&self) -> &str {
        &self.registered.entry().listener
    }

    /// What TLS knows of the client; see [`Connection::tls`].
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(&self) -> Option<TlsInfo<'_>> {
        self.wire.stream.tls_info()
    }

    /// What is known of this connection from outside; see [`Connection::info`].
    pub fn info(&self) -> ConnectionInfo {
        self.registered.entry().info()
    }

    /// The server.
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// A handle for running closures on the workers of other connections; see [`Connection::remote`].
    pub fn remote(&self) -> Remote<T, R, S> {
        Remote::new(&self.server)
    }

    /// Sends bytes to the client; see [`Connection::send`].
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        let bytes = bytes.as_ref();
        if !self.may_send() {
            return Err(SendError::Closed);
        }
        if bytes.len() > self.wire.outbox.limit() {
            return Err(SendError::TooLong);
        }
        if self.wire.outbox.push(bytes).is_err() {
            self.wire.flush();
            if !self.may_send() {
                return Err(SendError::Closed);
            }
            self.wire.outbox.push(bytes).map_err(|_| SendError::OutboxFull)?;
        }
        self.wire.messages += u64::from(!bytes.is_empty());
        if self.wire.outbox.len() >= WRITE_THROUGH {
            self.wire.flush();
            if !self.may_send() {
                return Err(SendError::Closed);
            }
        }
        Ok(())
    }

    /// Sends a part of a file to the client; see [`Connection::send_file`].
    pub fn send_file(&mut self, file: File, offset: u64, len: Option<u64>) -> Result<(), SendFileError> {
        if !self.may_send() {
            return Err(SendFileError::Closed);
        }
        if let Some(part) = file_part(&self.server.core.registry.files, self.wire.outbox.files(), file, offset, len)? {
            self.wire.outbox.push_piece(Piece::File(part)).map_err(|_| SendFileError::TooManyFiles)?;
            self.wire.messages += 1;
        }
        Ok(())
    }

    /// Reads no more from the client; see [`Connection::pause`].
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Reads again; see [`Connection::resume`].
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Closes this connection once what was sent is flushed; see [`Connection::close`].
    pub fn close(&mut self) {
        if matches!(self.state, LinkState::Open) {
            self.state = LinkState::Closing;
        }
    }

    /// Closes this connection with a reset; see [`Connection::abort`].
    pub fn abort(&mut self) {
        if matches!(self.state, LinkState::Open | LinkState::Closing) {
            self.state = LinkState::Aborting;
        }
    }

    /// Says whose connection this is; see [`Connection::bind`].
    pub fn bind(&mut self, user: impl Into<Arc<str>>) {
        self.registered.bind(Some(user.into()));
    }

    /// Says that this is nobody's connection; see [`Connection::unbind`].
    pub fn unbind(&mut self) {
        self.registered.bind(None);
    }

    /// Whose connection this is, if [`bind`](Self::bind) has said so.
    pub fn user(&self) -> Option<Arc<str>> {
        self.registered.entry().user()
    }

    /// Exempts this connection from closing because nothing happens; see [`Connection::protect`].
    pub fn protect(&mut self, protect: bool) {
        self.registered.entry().protected.store(protect, Ordering::Relaxed);
    }

    /// Runs a closure later; see [`Connection::after`].
    pub fn after<F>(&mut self, time: Duration, run: F) -> TimerId
    where
        F: FnOnce(&mut Connection<T, R, S>) -> anyhow::Result<()> + 'static,
    {
        self.timers.set(time, Timer::Once(Box::new(run)))
    }

    /// Runs a closure again and again; see [`Connection::every`].
    pub fn every<F>(&mut self, period: Duration, run: F) -> TimerId
    where
        F: FnMut(&mut Connection<T, R, S>) -> anyhow::Result<()> + 'static,
    {
        let period = period.max(SHORTEST_PERIOD);
        self.timers.set(period, Timer::Every(period, Box::new(run)))
    }

    /// Clears a timer; see [`Connection::clear_timer`].
    pub fn clear_timer(&mut self, timer: TimerId) -> bool {
        self.timers.clear(timer)
    }

    #[inline]
    fn may_send(&mut self) -> bool {
        self.wire.refused |= self.wire.broken.is_some();
        matches!(self.state, LinkState::Open) && self.wire.broken.is_none()
    }
}

impl Wire {
    pub(super) fn new(stream: Stream, outbox: Outbox) -> Wire {
        Wire { stream, outbox, flushed: 0, messages: 0, broken: None, refused: false, is_short: false }
    }

    /// What others send, for which there is room.
    pub(super) fn push(&mut self, piece: Piece, messages: u64) {
        self.messages += messages;
        if self.broken.is_some() {
            self.is_short = true;
            drop_fenced(piece);
        } else {
            self.is_short |= self.outbox.push_piece(piece).is_err();
        }
    }

    /// Writes what the client takes now.
    pub(super) fn flush(&mut self) {
        if self.broken.is_some() || self.outbox.is_empty() && !self.stream.wants_write() {
            return;
        }
        match self.outbox.flush(&mut self.stream) {
            Ok(flushed) => self.flushed += flushed,
            Err(error) => self.break_off(error),
        }
    }

    /// From here on nothing is sent; what waits is lost.
    pub(super) fn break_off(&mut self, error: io::Error) {
        self.is_short |= !self.outbox.is_empty();
        self.outbox.discard();
        self.broken.get_or_insert(error);
    }

    /// More has failed than the client's receiving half: the connection, or a file that was sent. So nothing that the client
    /// sends from now on is received; after `BrokenPipe` alone it may go on sending.
    pub(super) fn has_failed(&self) -> bool {
        self.broken.as_ref().is_some_and(|error| error.kind() != io::ErrorKind::BrokenPipe)
    }
}

/// The part of the file, for a client for whom so many wait; `None` if it is empty.
pub(super) fn file_part(
    budget: &Arc<FileBudget>,
    waiting: usize,
    file: File,
    offset: u64,
    len: Option<u64>,
) -> Result<Option<FilePart>, SendFileError> {
    let metadata = file.metadata().map_err(SendFileError::Io)?;
    if !metadata.is_file() {
        return Err(SendFileError::NoFile);
    }
    if has_false_length(&file, &metadata) {
        return Err(SendFileError::NoLength);
    }
    let rest = metadata.len().checked_sub(offset).ok_or(SendFileError::OutOfRange)?;
    match len.unwrap_or(rest) {
        0 => Ok(None),
        len if len <= rest => {
            let permit = budget.permit(waiting).ok_or(SendFileError::TooManyFiles)?;
            Ok(Some(FilePart::new(file, offset, len, permit)))
        }
        _ => Err(SendFileError::OutOfRange),
    }
}

/// Files of the kernel's own hold something else than their length says: those of /proc claim to be empty, those of
/// /sys to be a page long. Where nothing of a file is on a disk, its last byte tells, or the first if there is none.
fn has_false_length(file: &File, metadata: &Metadata) -> bool {
    let (len, mut byte) = (metadata.len(), [0]);
    let has_last = metadata.blocks() == 0 && file.read_at(&mut byte, len.saturating_sub(1)).is_ok_and(|n| n > 0);
    metadata.blocks() == 0 && has_last != (len > 0)
}

impl BeforeWait for Wire {
    fn before_wait(&mut self) {
        self.flush();
    }
}

impl<T, R, S> fmt::Debug for Link<T, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id()).field("peer_addr", &self.peer_addr()).finish_non_exhaustive()
    }
}
