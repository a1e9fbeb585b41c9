//! The same bytes to many connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::registry::Entry;

/// How far a [broadcast](crate::ServerHandle::broadcast) came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broadcast {
    /// Connections that it was sent to.
    pub sent: usize,
    /// Connections that it was not: they have closed, so much waits for them already, or the message is longer than their
    /// `max_outbox`.
    pub refused: usize,
}

/// For so many connections it pays to start one more thread: to send to an idle client is a system call that takes
/// longer than most.
const WORTH_A_THREAD: usize = 512;
/// Each thread takes so many at a time, so that all end together.
const BATCH: usize = 64;
/// Of a thread that only sends.
const STACK: usize = 64 * 1024;

/// Returns when all have it, so that what the caller sends next comes after it.
pub(super) fn send_to_all(entries: &[Arc<Entry>], bytes: &[u8]) -> Broadcast {
    let bytes: Arc<[u8]> = bytes.into();
    let next = AtomicUsize::new(0);
    let send = || {
        let batches = std::iter::from_fn(|| entries.get(next.fetch_add(BATCH, Ordering::Relaxed)..));
        let entries = batches.take_while(|rest| !rest.is_empty()).flat_map(|rest| rest.iter().take(BATCH));
        entries.filter(|entry| entry.send_shared(&bytes).is_ok()).count()
    };
    let processors = || thread::available_parallelism().map_or(1, usize::from);
    let helpers = match entries.len() / WORTH_A_THREAD {
        0 => 0,
        threads => threads.min(processors() - 1),
    };
    let sent = thread::scope(|scope| {
        // Where one cannot be started, the others do its part.
        let start = |_| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, send).ok();
        let helpers: Vec<_> = (0..helpers).filter_map(start).collect();
        send() + helpers.into_iter().map(|helper| helper.join().unwrap_or(0)).sum::<usize>()
    });
    Broadcast { sent, refused: entries.len() - sent }
}
