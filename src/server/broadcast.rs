//! The same bytes to many connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::buffered::BufferedByAll;
use super::connection_info::ConnectionId;
use super::registry::Entry;
use crate::error::SendError;
use crate::net::SharedBytes;
use crate::new_thread::NewThread;

/// How far a [broadcast](crate::ServerHandle::broadcast) came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broadcast {
    /// How many connections it was sent to.
    pub sent: usize,
    /// The connections that it was not sent to, and why: they are closed or closing, so much waits for them already, or
    /// the message is longer than their `max_outbox`. In no order.
    pub refused: Vec<(ConnectionId, SendError)>,
}

/// For so many connections it pays to start one more thread: to send to an idle client is a system call that takes
/// longer than most.
const WORTH_A_THREAD: usize = 512;
/// Each thread takes so many at a time, so that all end together.
const BATCH: usize = 64;
/// Fewer bytes are copied for each who does not take them at once, since sharing takes memory of its own.
const WORTH_SHARING: usize = 256;
/// Of a thread that only sends.
const STACK: usize = 64 * 1024;

/// Threads that help whoever broadcasts: for all broadcasts together no more than there are further processors, since
/// any client's line may cause one.
pub(super) struct Helpers {
    free: AtomicUsize,
}

impl Helpers {
    pub(super) fn new() -> Helpers {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Helpers { free: AtomicUsize::new(processors - 1) }
    }

    /// Returns when all have it, so that what the caller sends next comes after it.
    pub(super) fn send_to_all(&self, entries: &[Arc<Entry>], bytes: &[u8], buffered: &Arc<BufferedByAll>) -> Broadcast {
        let shared = (bytes.len() >= WORTH_SHARING).then(|| Arc::new(buffered.of_all(bytes)));
        let send_to = |entry: &Arc<Entry>| match &shared {
            Some(shared) => entry.send_shared(Arc::clone(shared) as SharedBytes),
            None => entry.send(bytes),
        };
        let next = AtomicUsize::new(0);
        let send = || {
            let batches = std::iter::from_fn(|| entries.get(next.fetch_add(BATCH, Ordering::Relaxed)..));
            let entries = batches.take_while(|rest| !rest.is_empty()).flat_map(|rest| rest.iter().take(BATCH));
            entries.filter_map(|entry| Some((entry.id, send_to(entry).err()?))).collect::<Vec<_>>()
        };
        let helpers = self.take((entries.len() / WORTH_A_THREAD).saturating_sub(1));
        let refused = thread::scope(|scope| {
            // Where one cannot be started, the others do its part.
            let start = |_| {
                NewThread::reserve(STACK)
                    .and_then(|thread| thread.start_scoped("br-broadcast".to_owned(), scope, send))
                    .ok()
            };
            let threads: Vec<_> = (0..helpers).filter_map(start).collect();
            let mut refused = send();
            refused.extend(threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()));
            refused
        });
        self.free.fetch_add(helpers, Ordering::Relaxed);
        Broadcast { sent: entries.len() - refused.len(), refused }
    }

    /// So many of them, or as many as are free.
    fn take(&self, wanted: usize) -> usize {
        let fewer = |free: usize| (wanted > 0).then(|| free.saturating_sub(wanted));
        match self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer) {
            Ok(free) => free.min(wanted),
            Err(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_threads_help_than_there_are_whoever_asks() {
        let helpers = Helpers { free: AtomicUsize::new(3) };
        assert_eq!([0, 2, 9, 1].map(|wanted| helpers.take(wanted)), [0, 2, 1, 0]);
    }
}
