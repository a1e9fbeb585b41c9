//! Clients that are refused at a shutdown, and are given time to notice that: closed at once, with something of theirs
//! unread, they would be told by a reset.

use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::core::Core;
use super::lifecycle::Phase;
use super::worker::is_transient;
use crate::net::{Sleeper, Stream, wait_out};

/// How long they have.
const TIME: Duration = Duration::from_secs(1);
/// How much of what they send is read at once.
const PIECE: usize = 16 * 1024;

/// Blocks until all have closed too, or their time or that of the shutdown is over, of which the sleeper is told.
pub(super) fn let_notice(mut clients: Vec<Stream>, core: &Core, sleeper: &Sleeper) {
    let end = Instant::now() + TIME;
    clients.iter().for_each(Stream::shutdown_write);
    let mut piece = vec![0; PIECE];
    while !clients.is_empty() && core.lifecycle.phase() != Phase::Expired {
        let Ok(left) = Timespec::try_from(end.saturating_duration_since(Instant::now())) else { return };
        let mut fds = vec![PollFd::from_borrowed_fd(sleeper.as_fd(), PollFlags::IN)];
        fds.extend(clients.iter().map(|client| PollFd::new(client, PollFlags::IN)));
        match poll(&mut fds, Some(&left)) {
            Err(error) if wait_out(error) => continue,
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            sleeper.clear();
        }
        let mut ready = ready.into_iter().skip(1);
        clients.retain(|client| {
            let is_ready = ready.next().unwrap_or(false);
            !is_ready || client.raw().read(&mut piece).map_or_else(|error| is_transient(&error), |n| n > 0)
        });
    }
}
