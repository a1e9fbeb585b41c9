//! A connection without its session.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use super::connection::Connection;
use super::handle::ServerHandle;
use super::registry::ConnectionId;
use crate::error::{SendError, TaskError, TryTaskError};
use crate::net::{Outbox, Stream};
use crate::task::{BeforeWait, Finished, Port, Progress, TaskId, TaskOptions, With};

/// A connection without its session: the client's socket on one side, the back room on the other. From
/// [`Connection::parts`].
pub struct Link<T, R, S = ()> {
    pub(super) id: ConnectionId,
    pub(super) wire: Wire,
    /// Closed once the worker knows of a shutdown.
    pub(super) port: Port<T, R, Connection<T, R, S>>,
    pub(super) server: ServerHandle,
    pub(super) state: LinkState,
}

/// The way to the client.
pub(super) struct Wire {
    pub(super) stream: Stream,
    pub(super) outbox: Outbox,
}

/// Whether there is anyone to send to.
pub(super) enum LinkState {
    Open,
    /// `close` was called.
    Closing,
    /// A write failed while a callback ran.
    Broken(io::Error),
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
        self.id
    }

    /// The address of the client.
    pub fn peer_addr(&self) -> SocketAddr {
        self.wire.stream.peer_addr()
    }

    /// The address the client connected to.
    pub fn local_addr(&self) -> SocketAddr {
        self.wire.stream.local_addr()
    }

    /// The server.
    pub fn server(&self) -> &ServerHandle {
        &self.server
    }

    /// Sends bytes to the client; see [`Connection::send`].
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        let bytes = bytes.as_ref();
        if !matches!(self.state, LinkState::Open) {
            return Err(SendError::Closed);
        }
        if bytes.len() > self.wire.outbox.limit() {
            return Err(SendError::TooLong);
        }
        if self.wire.outbox.push(bytes).is_err() {
            self.write_through()?;
            return self.wire.outbox.push(bytes).map_err(|_| SendError::OutboxFull);
        }
        if self.wire.outbox.len() >= WRITE_THROUGH {
            self.write_through()?;
        }
        Ok(())
    }

    /// Closes this connection once what was sent is flushed; see [`Connection::close`].
    pub fn close(&mut self) {
        if matches!(self.state, LinkState::Open) {
            self.state = LinkState::Closing;
        }
    }

    fn write_through(&mut self) -> Result<(), SendError> {
        self.wire.flush().map_err(|error| {
            self.state = LinkState::Broken(error);
            SendError::Closed
        })
    }
}

impl Wire {
    /// Writes what the client takes now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self.outbox.is_empty() {
            true => Ok(()),
            false => self.outbox.flush(&mut self.stream),
        }
    }
}

impl BeforeWait for Wire {
    fn before_wait(&mut self) {
        // If the connection is broken, the worker will find out.
        let _ = self.flush();
    }
}

impl<T, R, S> fmt::Debug for Link<T, R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("id", &self.id).field("peer_addr", &self.peer_addr()).finish_non_exhaustive()
    }
}
