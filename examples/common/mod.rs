//! What the example servers share.

pub(crate) mod output;

use std::panic;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use backroom::ServerHandle;
use env_logger::{Env, Target};
pub(crate) use output::say;
use output::{FlushAtEnd, STDERR};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The `main` of an example server. `RUST_LOG` says what is logged, or else `log`.
pub(crate) fn run(log: &str, serve: impl FnOnce() -> anyhow::Result<ExitCode>) -> ExitCode {
    let _flush_at_end = FlushAtEnd;
    let stderr = Target::Pipe(Box::new(STDERR.clone()));
    env_logger::Builder::from_env(Env::default().default_filter_or(log)).target(stderr).init();
    // As it comes, a panic is written to stderr by the thread that panics.
    panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    serve().unwrap_or_else(|error| {
        STDERR.line(format!("Error: {error:?}"));
        ExitCode::FAILURE
    })
}

/// SIGINT and SIGTERM. Made before anybody can connect, no signal finds the program unprepared.
pub(crate) fn signals() -> std::io::Result<Signals> {
    Signals::new([SIGINT, SIGTERM])
}

/// The first signal drains, for `patience` at most; a second one no longer waits. Says how many have come.
pub(crate) fn shut_down_at(mut signals: Signals, server: ServerHandle, mut patience: Duration) -> Arc<AtomicUsize> {
    let come = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&come);
    thread::spawn(move || {
        for _ in signals.forever() {
            count.fetch_add(1, Ordering::Relaxed);
            server.shutdown(patience);
            patience = Duration::ZERO;
        }
    });
    come
}
