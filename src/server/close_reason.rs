//! Why a connection closed.

use std::fmt;
use std::io;

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
    /// The client closed its sending half, and all it was owed is delivered.
    Client,
    /// `close` was called, on the connection or on the server's handle.
    Server,
    /// The server shuts down.
    Shutdown,
    /// `on_connect` or `on_receive` returned this error.
    CallbackFailed(anyhow::Error),
    /// A callback panicked, with this message.
    Panicked(String),
    /// The client sent a frame longer than `max_frame`, given here in bytes.
    FrameTooLong(usize),
    /// The client took nothing of what waited for it for as long as `write_timeout`.
    WriteTimeout,
    /// The socket failed; a reset by the client is
    /// [`ConnectionReset`](std::io::ErrorKind::ConnectionReset) or
    /// [`BrokenPipe`](std::io::ErrorKind::BrokenPipe).
    Io(io::Error),
}

impl CloseReason {
    /// The client can still be told what was sent to it, and may still be sending.
    pub(super) fn is_orderly(&self) -> bool {
        !matches!(self, CloseReason::WriteTimeout | CloseReason::Io(_))
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::Client => f.write_str("closed by the client"),
            CloseReason::Server => f.write_str("closed by the server"),
            CloseReason::Shutdown => f.write_str("the server shuts down"),
            CloseReason::CallbackFailed(error) => write!(f, "a callback failed: {error:#}"),
            CloseReason::Panicked(message) => write!(f, "a callback panicked: {message}"),
            CloseReason::FrameTooLong(max) => write!(f, "a frame was longer than {max} bytes"),
            CloseReason::WriteTimeout => f.write_str("the client did not take what was sent to it in time"),
            CloseReason::Io(error) => write!(f, "the socket failed: {error}"),
        }
    }
}
