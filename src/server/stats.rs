//! What the front of house has done: the snapshot users see.

use std::time::SystemTime;

use super::close_reason::{CloseReason, Timeout};
use crate::stats::TaskStats;

/// What a server has done and is doing, from [`ServerHandle::stats`](crate::ServerHandle::stats).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// When the server was bound. Swoole's `start_time`.
    pub started_at: SystemTime,
    /// Connections that are open or closing: the places taken of `max_connections`.
    pub connections: usize,
    /// Connections accepted since the start, those refused afterwards included.
    pub accepted_connections: u64,
    /// Connections that were accepted and then closed at once, by what refused them.
    pub refused: RefusedStats,
    /// Connections that had a worker and are closed, by why.
    pub closed: ClosedStats,
    /// What went over all connections.
    pub traffic: Traffic,
    /// Datagrams that came to the packet sockets.
    pub packets_received: u64,
    /// Datagrams that were sent from them.
    pub packets_sent: u64,
    /// The tasks.
    pub tasks: TaskStats,
}

/// Connections that were closed before they had a worker, by what refused them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedStats {
    /// No thread could be started.
    pub no_thread: u64,
    /// [`max_connections_per_address`](crate::Limits::max_connections_per_address). A client behind a proxy is counted
    /// as [closed](ClosedStats::too_many_of_address).
    pub too_many_of_address: u64,
    /// [`accept_rate_per_address`](crate::Limits::accept_rate_per_address). A client behind a proxy is counted as
    /// [closed](ClosedStats::too_fast_of_address).
    pub too_fast_of_address: u64,
    /// They waited in the kernel's backlog when the server shut down, and there was no place for them.
    pub shutdown: u64,
}

impl RefusedStats {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.no_thread + self.too_many_of_address + self.too_fast_of_address + self.shutdown
    }
}

/// Closed connections, by their [`CloseReason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClosedStats {
    /// [`CloseReason::Client`].
    pub client: u64,
    /// [`CloseReason::Server`].
    pub server: u64,
    /// [`CloseReason::Aborted`].
    pub aborted: u64,
    /// [`CloseReason::Shutdown`].
    pub shutdown: u64,
    /// [`CloseReason::CallbackFailed`].
    pub callback_failed: u64,
    /// [`CloseReason::Panicked`], and where `session` or what makes a decoder panicked.
    pub panicked: u64,
    /// [`CloseReason::FrameTooLong`].
    pub frame_too_long: u64,
    /// [`CloseReason::Malformed`].
    pub malformed: u64,
    /// [`Timeout::Handshake`].
    pub handshake_timeout: u64,
    /// [`Timeout::Frame`].
    pub frame_timeout: u64,
    /// [`Timeout::Write`].
    pub write_timeout: u64,
    /// [`Timeout::Idle`].
    pub idle_timeout: u64,
    /// [`Timeout::Silence`].
    pub silence_timeout: u64,
    /// [`Timeout::Lifetime`].
    pub lifetime: u64,
    /// [`CloseReason::TlsFailed`].
    pub tls_failed: u64,
    /// [`CloseReason::UnexpectedTls`].
    pub unexpected_tls: u64,
    /// [`CloseReason::BadProxyHeader`].
    pub bad_proxy_header: u64,
    /// [`CloseReason::TooManyOfAddress`].
    pub too_many_of_address: u64,
    /// [`CloseReason::TooFastOfAddress`].
    pub too_fast_of_address: u64,
    /// [`CloseReason::Overloaded`].
    pub overloaded: u64,
    /// [`CloseReason::Io`].
    pub io: u64,
    /// Of all these, connections whose client did not get all that it was sent: [`CloseReason::Io`] and
    /// [`Timeout::Write`] for the most part.
    pub undelivered: u64,
    /// Of all these, connections whose client ended in the middle of a frame, which was dropped.
    pub unfinished: u64,
}

/// What is counted of a connection that has closed, whatever the reason.
#[derive(Clone, Copy, Default)]
pub(super) struct ClosedBeside {
    pub(super) undelivered: bool,
    pub(super) unfinished: bool,
}

impl ClosedStats {
    pub(super) fn count(&mut self, reason: &CloseReason, beside: ClosedBeside) {
        self.undelivered += u64::from(beside.undelivered);
        self.unfinished += u64::from(beside.unfinished);
        let counter = match reason {
            CloseReason::Client => &mut self.client,
            CloseReason::Server => &mut self.server,
            CloseReason::Aborted => &mut self.aborted,
            CloseReason::Shutdown => &mut self.shutdown,
            CloseReason::CallbackFailed(_) => &mut self.callback_failed,
            CloseReason::Panicked(_) => &mut self.panicked,
            CloseReason::FrameTooLong(_) => &mut self.frame_too_long,
            CloseReason::Malformed(_) => &mut self.malformed,
            CloseReason::TimedOut(Timeout::Handshake) => &mut self.handshake_timeout,
            CloseReason::TimedOut(Timeout::Frame) => &mut self.frame_timeout,
            CloseReason::TimedOut(Timeout::Write) => &mut self.write_timeout,
            CloseReason::TimedOut(Timeout::Idle) => &mut self.idle_timeout,
            CloseReason::TimedOut(Timeout::Silence) => &mut self.silence_timeout,
            CloseReason::TimedOut(Timeout::Lifetime) => &mut self.lifetime,
            CloseReason::TlsFailed(_) => &mut self.tls_failed,
            CloseReason::UnexpectedTls => &mut self.unexpected_tls,
            CloseReason::BadProxyHeader(_) => &mut self.bad_proxy_header,
            CloseReason::TooManyOfAddress => &mut self.too_many_of_address,
            CloseReason::TooFastOfAddress => &mut self.too_fast_of_address,
            CloseReason::Overloaded => &mut self.overloaded,
            CloseReason::Io(_) => &mut self.io,
        };
        *counter += 1;
    }

    /// All of them, each counted once.
    pub fn total(&self) -> u64 {
        let ClosedStats {
            client,
            server,
            aborted,
            shutdown,
            callback_failed,
            panicked,
            frame_too_long,
            malformed,
            handshake_timeout,
            frame_timeout,
            write_timeout,
            idle_timeout,
            silence_timeout,
            lifetime,
            tls_failed,
            unexpected_tls,
            bad_proxy_header,
            too_many_of_address,
            too_fast_of_address,
            overloaded,
            io,
            undelivered: _,
            unfinished: _,
        } = self;
        let by_somebody = client + server + aborted + shutdown + callback_failed + panicked;
        let by_time = handshake_timeout + frame_timeout + write_timeout + idle_timeout + silence_timeout + lifetime;
        let by_bytes = frame_too_long + malformed + tls_failed + unexpected_tls + bad_proxy_header;
        by_somebody + by_time + by_bytes + too_many_of_address + too_fast_of_address + overloaded + io
    }
}

/// Bytes and what they are made of, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Bytes that have come, those of TLS not counted. Swoole's `total_recv_bytes`.
    pub bytes_received: u64,
    /// Bytes that clients have taken. Swoole's `total_send_bytes`.
    pub bytes_sent: u64,
    /// Frames handed to `on_receive`. Swoole's `request_count`.
    pub frames_received: u64,
    /// Messages sent: calls of `send` and the like, each client of a broadcast counted. Swoole's `response_count`.
    pub messages_sent: u64,
}

impl Traffic {
    pub(super) fn add(&mut self, other: &Traffic) {
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
        self.frames_received += other.frames_received;
        self.messages_sent += other.messages_sent;
    }
}
