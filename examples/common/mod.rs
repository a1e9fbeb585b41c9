//! What the example servers share.

use std::thread;
use std::time::Duration;

use backroom::ServerHandle;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// SIGINT and SIGTERM. Made before anybody can connect, no signal finds the program unprepared.
pub(crate) fn signals() -> std::io::Result<Signals> {
    Signals::new([SIGINT, SIGTERM])
}

/// The first signal drains, for `patience` at most; a second one no longer waits.
pub(crate) fn shut_down_at(mut signals: Signals, server: ServerHandle, mut patience: Duration) {
    thread::spawn(move || {
        for _ in signals.forever() {
            server.shutdown(patience);
            patience = Duration::ZERO;
        }
    });
}
