//! Why a connection closed.

use std::fmt;
use std::io;

use crate::net::Malformed;

/// Why a connection closed: what `on_close` is told.
///
/// ```
/// use backroom::CloseReason;
///
/// # fn main() -> Result<(), backroom::BindError> {
/// let server = backroom::Server::builder::<(), ()>()
///     .on_receive(|_conn, _data| Ok(()))
///     .on_task(|_cx, ()| Ok(()))
///     .on_close(|conn, reason| {
///         match reason {
///             CloseReason::Client | CloseReason::Shutdown => {}
///             other => eprintln!("connection {} of {}: {other}", conn.id(), conn.peer_addr()),
///         }
///         Ok(())
///     })
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// The client closed its sending half, and all it was owed is delivered. Over TLS also where it did not announce that
    /// (`close_notify`), so a protocol should say itself where its messages end.
    Client,
    /// `close` was called, on the connection or on the server's handle, and all that was sent before was written. Where
    /// it could not be, the reason says why: [`Io`](Self::Io) or a [timeout](Timeout::Write).
    Server,
    /// `abort` was called, on the connection or on the server's handle.
    Aborted,
    /// The server shuts down.
    Shutdown,
    /// `on_connect` or `on_receive` returned this error.
    CallbackFailed(anyhow::Error),
    /// A callback panicked, with this message.
    Panicked(String),
    /// The client sent a frame longer than `max_frame`, given here in bytes.
    FrameTooLong(usize),
    /// What the client sent is not of the protocol: a [`Decoder`](crate::Decoder) said so, or a length is impossible.
    Malformed(Malformed),
    /// A time was over. Which one says the timeout.
    TimedOut(Timeout),
    /// TLS with the client failed, for this reason: it speaks no TLS, say, or its certificate has expired.
    TlsFailed(String),
    /// The client speaks TLS, and this listener does not. Known only where frames are awaited: raw bytes, and those of a
    /// [`Decoder`](crate::Decoder), may be just that.
    UnexpectedTls,
    /// A proxy did not say, as it should have, whose client it is.
    BadProxyHeader(&'static str),
    /// The client's address has as many connections as
    /// [`max_connections_per_address`](crate::Limits::max_connections_per_address) allows. Only behind a proxy; others
    /// never become a connection.
    TooManyOfAddress,
    /// The client's address connects faster than
    /// [`accept_rate_per_address`](crate::Limits::accept_rate_per_address) allows. Only behind a proxy, likewise.
    TooFastOfAddress,
    /// All connections together keep more than [`max_buffered`](crate::ServerBuilder::max_buffered), and this one is
    /// among those that keep much.
    Overloaded,
    /// The client cannot be sent anything more: it has reset the connection
    /// ([`ConnectionReset`](std::io::ErrorKind::ConnectionReset)) or has closed it altogether before all was sent
    /// ([`BrokenPipe`](std::io::ErrorKind::BrokenPipe)), the socket failed, or a file that was being sent. What the
    /// client had sent until then was received.
    Io(io::Error),
}

/// Which time was over; each is one of [`Limits`](crate::Limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Timeout {
    /// [`handshake_timeout`](crate::Limits::handshake_timeout).
    Handshake,
    /// [`frame_timeout`](crate::Limits::frame_timeout).
    Frame,
    /// [`write_timeout`](crate::Limits::write_timeout).
    Write,
    /// [`idle_timeout`](crate::Limits::idle_timeout).
    Idle,
    /// [`silence_timeout`](crate::Limits::silence_timeout).
    Silence,
    /// [`max_lifetime`](crate::Limits::max_lifetime).
    Lifetime,
}

impl CloseReason {
    /// The client can still be told what was sent to it, and may still be sending.
    pub(super) fn is_orderly(&self) -> bool {
        use CloseReason::{
            Aborted, BadProxyHeader, Io, Overloaded, TimedOut, TlsFailed, TooFastOfAddress, TooManyOfAddress,
        };
        !matches!(
            self,
            Aborted
                | TimedOut(Timeout::Write | Timeout::Handshake)
                | TlsFailed(_)
                | BadProxyHeader(_)
                | TooManyOfAddress
                | TooFastOfAddress
                | Overloaded
                | Io(_)
        )
    }

    /// Nothing has failed until now.
    pub(super) fn is_planned(&self) -> bool {
        use CloseReason::{Client, Server, Shutdown, TimedOut};
        matches!(self, Client | Server | Shutdown | TimedOut(_))
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Client => f.write_str("closed by the client"),
            CloseReason::Server => f.write_str("closed by the server"),
            CloseReason::Aborted => f.write_str("aborted by the server"),
            CloseReason::Shutdown => f.write_str("the server shuts down"),
            CloseReason::CallbackFailed(error) => write!(f, "a callback failed: {error:#}"),
            CloseReason::Panicked(message) => write!(f, "a callback panicked: {message}"),
            CloseReason::FrameTooLong(max) => write!(f, "a frame was longer than {max} bytes"),
            CloseReason::Malformed(malformed) => write!(f, "the client broke the protocol: {malformed}"),
            CloseReason::TimedOut(timeout) => timeout.fmt(f),
            CloseReason::TlsFailed(reason) => write!(f, "TLS failed: {reason}"),
            CloseReason::UnexpectedTls => f.write_str("the client speaks TLS, and this listener does not"),
            CloseReason::BadProxyHeader(reason) => write!(f, "a proxy did not say whose client it is: {reason}"),
            CloseReason::TooManyOfAddress => f.write_str("the client's address has too many connections"),
            CloseReason::TooFastOfAddress => f.write_str("the client's address connects too often"),
            CloseReason::Overloaded => f.write_str("the server keeps too much for slow clients, and this is one"),
            CloseReason::Io(error) => write!(f, "the socket failed: {error}"),
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Timeout::Handshake => "handshake_timeout: the client did not get as far as its first frame in time",
            Timeout::Frame => "frame_timeout: a frame was not whole in time",
            Timeout::Write => "write_timeout: the client did not take what was sent to it in time",
            Timeout::Idle => "idle_timeout: nothing went either way for too long",
            Timeout::Silence => "silence_timeout: the client sent nothing for too long",
            Timeout::Lifetime => "max_lifetime: the connection is too old",
        })
    }
}
