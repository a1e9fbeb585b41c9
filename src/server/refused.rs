//! Clients that are refused at a shutdown, and are given time to notice that: closed at once, with something of theirs
//! unread, they would be told by a reset.

use std::io::Read;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::core::Core;
use super::lifecycle::Phase;
use crate::net::Stream;

/// How long they have.
const TIME: Duration = Duration::from_secs(1);
/// How much of what they send is read at once.
const PIECE: usize = 16 * 1024;

/// Blocks until all have closed too, or their time or that of the shutdown is over.
pub(super) fn let_notice(mut clients: Vec<Stream>, core: &Core) {
    let end = Instant::now() + TIME;
    clients.iter().for_each(Stream::shutdown_write);
    let mut piece = vec![0; PIECE];
    while !clients.is_empty() && core.lifecycle.phase() != Phase::Expired {
        let Ok(left) = Timespec::try_from(end.saturating_duration_since(Instant::now())) else { return };
        let mut fds: Vec<_> = clients.iter().map(|client| PollFd::new(client, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return,
            Ok(_) => {}
            Err(_) => return,
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        clients.retain(|client| {
            let is_ready = ready.next().unwrap_or(false);
            !is_ready || client.raw().read(&mut piece).is_ok_and(|n| n > 0)
        });
    }
}
