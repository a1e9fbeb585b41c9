//! What one connection has done, for others to read: counters and times with one writer, its worker.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::stats::Traffic;
use crate::stamp::Stamp;
use crate::stats::Counter;

pub(super) struct Tally {
    pub(super) connected_at: Instant,
    received_at: AtomicU64,
    sent_at: AtomicU64,
    pub(super) bytes_received: Counter,
    pub(super) bytes_sent: Counter,
    pub(super) frames_received: Counter,
    pub(super) messages_sent: Counter,
    pub(super) tasks_in_flight: AtomicUsize,
    pub(super) outbox_bytes: AtomicUsize,
}

impl Tally {
    pub(super) fn new(now: Instant) -> Tally {
        let stamp = Stamp::from(now).nanos();
        Tally {
            connected_at: now,
            received_at: AtomicU64::new(stamp),
            sent_at: AtomicU64::new(stamp),
            bytes_received: Counter::default(),
            bytes_sent: Counter::default(),
            frames_received: Counter::default(),
            messages_sent: Counter::default(),
            tasks_in_flight: AtomicUsize::new(0),
            outbox_bytes: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(super) fn received(&self, bytes: usize, now: Instant) {
        self.bytes_received.add(bytes as u64);
        self.received_at.store(Stamp::from(now).nanos(), Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn sent(&self, bytes: usize, now: Instant) {
        self.bytes_sent.add(bytes as u64);
        self.sent_at.store(Stamp::from(now).nanos(), Ordering::Relaxed);
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            bytes_received: self.bytes_received.get(),
            bytes_sent: self.bytes_sent.get(),
            frames_received: self.frames_received.get(),
            messages_sent: self.messages_sent.get(),
        }
    }

    /// When something was last received, or the client connected.
    pub(super) fn received_at(&self) -> Instant {
        Stamp::from_nanos(self.received_at.load(Ordering::Relaxed)).instant()
    }

    /// When the client last took something, or connected.
    pub(super) fn sent_at(&self) -> Instant {
        Stamp::from_nanos(self.sent_at.load(Ordering::Relaxed)).instant()
    }
}
