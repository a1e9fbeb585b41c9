//! What is known of connections from outside: their ids, what each has done, and how to ask for some of them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::registry::Registry;
use crate::net::Address;

/// The name of a connection. Never used twice in the life of a process, so that what comes late for one
/// cannot reach another. (Swoole's is the file descriptor, which is.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(super) u64);

impl ConnectionId {
    /// The number, which is also the [`submitter`](crate::TaskId::submitter) of the connection's tasks.
    pub fn number(&self) -> u64 {
        self.0
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionId({})", self.0)
    }
}

/// A connection that is open, at one moment; from [`ServerHandle::connections`](crate::ServerHandle::connections).
/// Swoole's `getClientInfo`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its id.
    pub id: ConnectionId,
    /// The address of the client.
    pub peer_addr: Address,
    /// The address the client connected to.
    pub local_addr: Address,
    /// The name of the listener it came in by.
    pub listener: Arc<str>,
    /// Who it was [bound](crate::Connection::bind) to.
    pub user: Option<Arc<str>>,
    /// When it began.
    pub connected_at: Instant,
    /// When something was last received from the client; at first, when it began.
    pub received_at: Instant,
    /// When the client last took something; at first, when it began.
    pub sent_at: Instant,
    /// How many bytes have come, those of TLS not counted.
    pub bytes_received: u64,
    /// How many bytes the client has taken.
    pub bytes_sent: u64,
    /// How many frames were handed to `on_receive`.
    pub frames_received: u64,
    /// How many messages were sent: calls of `send` and the like, from wherever.
    pub messages_sent: u64,
    /// How many of its tasks have no outcome delivered yet, when its worker last went to sleep.
    pub tasks_in_flight: usize,
    /// How many bytes wait for the client to take them: those from elsewhere, and those of its outbox when its worker
    /// last went to sleep.
    pub outbox_bytes: usize,
    /// It is exempt from [`idle_timeout`](crate::Limits::idle_timeout) and
    /// [`silence_timeout`](crate::Limits::silence_timeout).
    pub protected: bool,
}

/// The connections that are open, all or some of them: a list to be asked for, from
/// [`ServerHandle::connections`](crate::ServerHandle::connections).
///
/// ```
/// use std::time::Duration;
///
/// # let server = backroom::Server::builder::<(), ()>()
/// #     .on_receive(|_conn, _data| Ok(()))
/// #     .on_task(|_cx, ()| Ok(()))
/// #     .bind("127.0.0.1:0")?;
/// # let handle = server.handle();
/// // Ten at a time, those that have been silent for a minute.
/// let mut page = handle.connections().silent_for(Duration::from_secs(60)).limit(10).list();
/// while let Some(last) = page.last() {
///     for connection in &page {
///         println!("{} from {}", connection.id, connection.peer_addr);
///     }
///     page = handle.connections().silent_for(Duration::from_secs(60)).after(last.id).limit(10).list();
/// }
/// # Ok::<(), backroom::BindError>(())
/// ```
#[must_use]
pub struct Connections<'a> {
    registry: &'a Registry,
    after: Option<ConnectionId>,
    limit: usize,
    listener: Option<String>,
    user: Option<String>,
    silent_for: Option<Duration>,
}

impl<'a> Connections<'a> {
    pub(super) fn of(registry: &'a Registry) -> Connections<'a> {
        Connections { registry, after: None, limit: usize::MAX, listener: None, user: None, silent_for: None }
    }

    /// Only those whose id is greater: the page after one that ends with this.
    pub fn after(mut self, id: ConnectionId) -> Self {
        self.after = Some(id);
        self
    }

    /// At most so many.
    pub fn limit(mut self, connections: usize) -> Self {
        self.limit = connections;
        self
    }

    /// Only those that came in by this listener.
    pub fn listener(mut self, name: impl Into<String>) -> Self {
        self.listener = Some(name.into());
        self
    }

    /// Only those that are [bound](crate::Connection::bind) to this user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Only those whose client has sent nothing for so long. Swoole's `heartbeat(false)`.
    pub fn silent_for(mut self, time: Duration) -> Self {
        self.silent_for = Some(time);
        self
    }

    /// The list, by ascending id, and so by age. Takes a lock that connections take when they open and close.
    pub fn list(self) -> Vec<ConnectionInfo> {
        let now = Instant::now();
        let wanted = |info: &ConnectionInfo| {
            self.listener.as_deref().is_none_or(|name| *name == *info.listener)
                && self.silent_for.is_none_or(|time| now.saturating_duration_since(info.received_at) >= time)
        };
        self.registry.list(self.after, self.limit, self.user.as_deref(), wanted)
    }

    /// How many there are.
    pub fn count(self) -> usize {
        self.list().len()
    }
}

impl IntoIterator for Connections<'_> {
    type Item = ConnectionInfo;
    type IntoIter = std::vec::IntoIter<ConnectionInfo>;

    fn into_iter(self) -> Self::IntoIter {
        self.list().into_iter()
    }
}

impl fmt::Debug for Connections<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("after", &self.after).field("limit", &self.limit).finish_non_exhaustive()
    }
}
