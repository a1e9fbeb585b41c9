//! What a client may do, and how long it may take: the limits of a listener's connections.

use std::time::Duration;

use crate::config::{Unworkable, at_least};
use crate::net::Bounds;

/// The limits and timeouts of a connection; for all listeners by [`limits`](crate::ServerBuilder::limits), or for one by
/// [its own](crate::Listener::limits). All are on by default.
///
/// | limit | default | beyond it |
/// | --- | --- | --- |
/// | [`max_frame`](Self::max_frame) | 256 KiB | [`CloseReason::FrameTooLong`](crate::CloseReason::FrameTooLong) |
/// | [`max_outbox`](Self::max_outbox) | 1 MiB, twice | [`SendError::OutboxFull`](crate::SendError::OutboxFull) |
/// | [`watermarks`](Self::watermarks) | 512 and 256 KiB | not read, outcomes wait, [`on_high_watermark`](crate::ServerBuilder::on_high_watermark) |
/// | [`max_connections_per_address`](Self::max_connections_per_address) | a quarter of `max_connections` | closed at once, counted |
/// | [`accept_rate_per_address`](Self::accept_rate_per_address) | 1,000 within 10 s | closed at once, counted |
/// | [`handshake_timeout`](Self::handshake_timeout) | 10 s | [`Timeout::Handshake`](crate::Timeout::Handshake) |
/// | [`frame_timeout`](Self::frame_timeout) | 30 s | [`Timeout::Frame`](crate::Timeout::Frame) |
/// | [`write_timeout`](Self::write_timeout) | 30 s | [`Timeout::Write`](crate::Timeout::Write) |
/// | [`idle_timeout`](Self::idle_timeout) | 10 minutes | [`Timeout::Idle`](crate::Timeout::Idle) |
/// | [`silence_timeout`](Self::silence_timeout) | 1 hour | [`Timeout::Silence`](crate::Timeout::Silence) |
/// | [`half_closed_time`](Self::half_closed_time) | 0 | [`CloseReason::Client`](crate::CloseReason::Client) |
/// | [`max_lifetime`](Self::max_lifetime) | 24 hours | [`Timeout::Lifetime`](crate::Timeout::Lifetime) |
///
/// A timeout of `Duration::MAX` never comes, and a count of `usize::MAX` is no limit. docs/LIMITS.md has these and the
/// limits of the whole server in one table.
///
/// ```
/// use std::time::Duration;
///
/// use backroom::{Limits, Listener, Server};
///
/// # fn main() -> Result<(), backroom::BindError> {
/// let limits = Limits::new().max_frame(4 * 1024).idle_timeout(Duration::from_secs(60));
/// let server = Server::builder::<(), ()>()
///     .limits(limits.clone())
///     .listen(Listener::tcp("127.0.0.1:0").name("admin").limits(limits.idle_timeout(Duration::MAX)))
///     .on_receive(|_conn, _data| Ok(()))
///     .on_task(|_cx, ()| Ok(()))
///     .bind("127.0.0.1:0")?;
/// # drop(server);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Limits {
    pub(crate) max_frame: usize,
    max_outbox: usize,
    /// `None`: a half and a quarter of `max_outbox`.
    watermarks: Option<(usize, usize)>,
    /// `None`: a quarter of `max_connections`, and none for loopback addresses.
    pub(crate) max_connections_per_address: Option<usize>,
    /// `None`: the default, and none for loopback addresses.
    pub(crate) accept_rate_per_address: Option<(usize, Duration)>,
    pub(crate) handshake_timeout: Duration,
    pub(crate) frame_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) silence_timeout: Duration,
    pub(crate) max_lifetime: Duration,
    pub(crate) half_closed_time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_frame: 256 * 1024,
            max_outbox: 1024 * 1024,
            watermarks: None,
            max_connections_per_address: None,
            accept_rate_per_address: None,
            handshake_timeout: Duration::from_secs(10),
            frame_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(10 * 60),
            silence_timeout: Duration::from_secs(60 * 60),
            max_lifetime: Duration::from_secs(24 * 60 * 60),
            half_closed_time: Duration::ZERO,
        }
    }
}

impl Limits {
    /// The defaults.
    pub fn new() -> Limits {
        Limits::default()
    }

    /// The longest frame, in bytes: without its delimiter, with its length prefix, with all that a
    /// [`Decoder`](crate::Decoder) takes for it. A longer one closes its connection, as soon as it is known to be. Raw
    /// chunks are cut to it. At least 1; default 256 KiB. Swoole's
    /// `package_max_length`, there 2 MiB.
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.max_frame = bytes;
        self
    }

    /// How many bytes may wait for one client to take them, sent from its own callbacks and again as many
    /// sent from elsewhere; beyond it `send` refuses. At least 1; default 1 MiB. Swoole's `socket_buffer_size`. Files do
    /// not count; 16 of them may wait, and again as many sent from elsewhere.
    pub fn max_outbox(mut self, bytes: usize) -> Self {
        self.max_outbox = bytes;
        self
    }

    /// Once more than `high` bytes wait in the outbox the connection is congested, until it is down to `low`: it is not
    /// read, its outcomes wait, and [`on_high_watermark`](crate::ServerBuilder::on_high_watermark) and
    /// [`on_low_watermark`](crate::ServerBuilder::on_low_watermark) are told. So a finish closure can always send what
    /// is between `high` and `max_outbox`, but at a shutdown's deadline. `low` is at most `high`, and that at most
    /// `max_outbox`; default: a quarter and a half of that. Swoole's `buffer_high_watermark` and
    /// `buffer_low_watermark`.
    pub fn watermarks(mut self, high: usize, low: usize) -> Self {
        self.watermarks = Some((high, low));
        self
    }

    /// How many connections one address may have open on this listener at once; one more is closed at once. An IPv6
    /// address counts with its /64 network, which commonly is one customer's. Behind a proxy, the
    /// [client's own](crate::ProxyProtocol) address counts. At least 1; default: a quarter of
    /// [`max_connections`](crate::ServerBuilder::max_connections), and no limit for loopback addresses; a value set here
    /// holds for those too.
    pub fn max_connections_per_address(mut self, connections: usize) -> Self {
        self.max_connections_per_address = Some(connections);
        self
    }

    /// How many connections of one address are accepted on this listener within a time, on average and at once; one more
    /// is closed at once. Addresses count as for
    /// [`max_connections_per_address`](Self::max_connections_per_address). At least 1 and 1 ms; default 1,000 within
    /// 10 s, and no limit for loopback addresses; a value set here holds for those too.
    pub fn accept_rate_per_address(mut self, connections: usize, within: Duration) -> Self {
        self.accept_rate_per_address = Some((connections, within));
        self
    }

    /// How long a client may take from its connection to the end of its TLS handshake and its proxy's header, where
    /// there are any. Default 10 s.
    pub fn handshake_timeout(mut self, time: Duration) -> Self {
        self.handshake_timeout = time;
        self
    }

    /// How long a frame may take from its first byte to its last, however many come between. While the server does not
    /// read, that is not counted. Default 30 s; raw bytes have no frames.
    pub fn frame_timeout(mut self, time: Duration) -> Self {
        self.frame_timeout = time;
        self
    }

    /// How long a client may take nothing of what waits for it. Default 30 s. Swoole's `send_timeout`.
    pub fn write_timeout(mut self, time: Duration) -> Self {
        self.write_timeout = time;
        self
    }

    /// How long nothing may go either way, while no task is in flight. Default 10 minutes. Swoole's `max_idle_time`.
    pub fn idle_timeout(mut self, time: Duration) -> Self {
        self.idle_timeout = time;
        self
    }

    /// How long a client may send nothing, whatever is sent to it, while no task is in flight: the time in which it must
    /// give a sign of life. Default 1 hour. Swoole's `heartbeat_idle_time`.
    pub fn silence_timeout(mut self, time: Duration) -> Self {
        self.silence_timeout = time;
        self
    }

    /// How old a connection may become: then it is read no more, and closed once its outcomes are delivered and flushed.
    /// Default 24 hours.
    pub fn max_lifetime(mut self, time: Duration) -> Self {
        self.max_lifetime = time;
        self
    }

    /// How long a client that has closed its sending half, and to which no outcome is owed any more, is kept for what
    /// timers, the handle and one-way tasks may still send to it. Default 0: it is closed at once.
    pub fn half_closed_time(mut self, time: Duration) -> Self {
        self.half_closed_time = time;
        self
    }

    pub(crate) fn bounds(&self) -> Bounds {
        let (high, low) = self.watermarks.unwrap_or((self.max_outbox / 2, self.max_outbox / 4));
        Bounds { limit: self.max_outbox, high, low }
    }

    pub(crate) fn check(&self) -> Result<(), Unworkable> {
        at_least("max_frame", self.max_frame, 1)?;
        at_least("max_outbox", self.max_outbox, 1)?;
        at_least("max_connections_per_address", self.max_connections_per_address.unwrap_or(1), 1)?;
        if let Some((connections, within)) = self.accept_rate_per_address {
            at_least("accept_rate_per_address", connections, 1)?;
            if within < Duration::from_millis(1) {
                return Err(Unworkable::new("accept_rate_per_address", "within less than 1 ms"));
            }
        }
        let Bounds { limit, high, low } = self.bounds();
        if low > high || high > limit {
            let problem = format!("{high} and {low}, where low is above high or high above max_outbox");
            return Err(Unworkable::new("watermarks", problem));
        }
        let times = [
            ("handshake_timeout", self.handshake_timeout),
            ("frame_timeout", self.frame_timeout),
            ("write_timeout", self.write_timeout),
            ("idle_timeout", self.idle_timeout),
            ("silence_timeout", self.silence_timeout),
            ("max_lifetime", self.max_lifetime),
        ];
        match times.into_iter().find(|(_, time)| time.is_zero()) {
            Some((field, _)) => Err(Unworkable::new(field, "it is zero")),
            None => Ok(()),
        }
    }
}
