//! Users' code on a thread of its own, for those who must not wait for it longer than they may.

use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use parking_lot::Mutex;

use crate::new_thread::NewThread;
use crate::own_threads::OwnThreads;
use crate::panic::catch;
use crate::stack::DEFAULT_STACK;

/// Runs `code`, and then `notify`; what it returns, or the message of its panic, comes by the channel. Where no thread can
/// be started it runs here, and is waited for.
pub(crate) fn aside<X: Send + 'static>(
    threads: &OwnThreads,
    code: impl FnOnce() -> X + Send + 'static,
    notify: impl FnOnce() + Send + 'static,
) -> Receiver<Result<X, String>> {
    let (sender, receiver) = bounded(1);
    let threads = threads.clone();
    let run = move || {
        let _lent = threads.lend();
        // The caller may have stopped waiting.
        let _ = sender.send(catch(code));
        notify();
    };
    // A thread that cannot be started drops what it was to run.
    let run = Arc::new(Mutex::new(Some(run)));
    let kept = Arc::clone(&run);
    let take = move || run.lock().take();
    let start =
        |thread: NewThread| thread.start("br-hook".to_owned(), move || take().into_iter().for_each(|run| run()));
    if NewThread::reserve(DEFAULT_STACK).and_then(start).is_err() {
        let run = kept.lock().take();
        if let Some(run) = run {
            run();
        }
    }
    receiver
}
