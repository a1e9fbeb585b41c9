//! Wakes a thread that sleeps in `poll`, at the cost of a system call only when it does sleep.
//!
//! The thread that sleeps owns the [`Sleeper`]; everyone else has the [`Waker`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::asleep::Asleep;

/// How long to wait before `poll` is tried again, where the kernel had no memory for it.
const SHORT_OF_MEMORY: Duration = Duration::from_millis(10);
/// How often a signal is tried.
const ATTEMPTS: usize = 1000;

/// The side of those who wake.
pub(crate) struct Waker {
    asleep: Asleep,
    /// Empty once the sleeper is gone, so that a task that outlives its connection holds no file descriptor.
    wake_fd: Mutex<Option<Arc<WakeFd>>>,
}

impl Waker {
    /// Wakes the sleeper if it is asleep, or about to be. Call it after what it shall see was pushed.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        self.wake_fenced();
    }

    /// The same for a caller that has put a full fence between its push and this; and whether it slept.
    pub(crate) fn wake_fenced(&self) -> bool {
        let slept = self.asleep.take();
        if slept {
            self.interrupt();
        }
        slept
    }

    /// Ends the sleeper's next `poll`, marked asleep or not.
    pub(crate) fn interrupt(&self) {
        if let Some(wake_fd) = &*self.wake_fd.lock() {
            wake_fd.signal();
        }
    }
}

/// The side of the one thread that sleeps.
pub(crate) struct Sleeper {
    waker: Arc<Waker>,
    wake_fd: Arc<WakeFd>,
}

/// What ended a sleep.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ready {
    pub(crate) readable: bool,
    /// Hang-up or error; `poll` reports them even when nothing was asked of it.
    pub(crate) hung_up: bool,
    pub(crate) timed_out: bool,
}

impl Sleeper {
    pub(crate) fn new() -> io::Result<Sleeper> {
        let wake_fd = Arc::new(WakeFd::new()?);
        let waker = Waker { asleep: Asleep::new(), wake_fd: Mutex::new(Some(Arc::clone(&wake_fd))) };
        Ok(Sleeper { waker: Arc::new(waker), wake_fd })
    }

    pub(crate) fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    /// The same descriptor with a new waker: those who have the old one wake nobody any more. What they did before may
    /// still end one sleep, with nothing ready.
    pub(crate) fn renew(&mut self) {
        *self.waker.wake_fd.lock() = None;
        let wake_fd = Mutex::new(Some(Arc::clone(&self.wake_fd)));
        self.waker = Arc::new(Waker { asleep: Asleep::new(), wake_fd });
    }

    /// From here on a [`Waker::wake`] ends the next sleep. Look once more at everything before sleeping.
    pub(crate) fn mark_asleep(&self) {
        self.waker.asleep.mark();
    }

    /// Takes the mark back, for the one who found something while looking.
    pub(crate) fn mark_awake(&self) {
        self.waker.asleep.unmark();
    }

    /// Blocks until `source` is ready for what is asked of it, a wake-up, or the timeout. The sleeper is
    /// awake when this returns. A signal ends it early, with nothing ready; so does a kernel that is short of memory.
    pub(crate) fn sleep(
        &self,
        source: Option<BorrowedFd<'_>>,
        read: bool,
        write: bool,
        timeout: Option<Duration>,
    ) -> io::Result<Ready> {
        let mut asked = PollFlags::empty();
        asked.set(PollFlags::IN, read);
        asked.set(PollFlags::OUT, write);
        let wake = PollFd::from_borrowed_fd(self.wake_fd.as_fd(), PollFlags::IN);
        // Too far away for a timespec is as good as never.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());

        let (slept, woken, got) = match source {
            Some(source) => {
                let mut fds = [wake, PollFd::from_borrowed_fd(source, asked)];
                let slept = poll(&mut fds, timeout.as_ref());
                (slept, !fds[0].revents().is_empty(), fds[1].revents())
            }
            None => {
                let mut fds = [wake];
                let slept = poll(&mut fds, timeout.as_ref());
                (slept, !fds[0].revents().is_empty(), PollFlags::empty())
            }
        };
        self.mark_awake();
        let timed_out = match slept {
            Ok(events) => events == 0,
            Err(error) if wait_out(error) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        };
        if woken {
            self.wake_fd.clear();
        }
        Ok(Ready {
            readable: got.contains(PollFlags::IN),
            hung_up: got.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
            timed_out,
        })
    }
}

impl Sleeper {
    /// Forgets a wake-up, for one who polls the descriptor beside others.
    pub(crate) fn clear(&self) {
        self.wake_fd.clear();
    }
}

/// Readable once it is woken or interrupted.
impl AsFd for Sleeper {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd.as_fd()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        *self.waker.wake_fd.lock() = None;
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
use event_fd::WakeFd;
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
use socket_pair::WakeFd;

#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
mod event_fd {
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::thread;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::Errno;

    pub(super) struct WakeFd(OwnedFd);

    impl WakeFd {
        pub(super) fn new() -> io::Result<WakeFd> {
            Ok(WakeFd(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
        }

        /// Where the counter is full the sleeper wakes all the same. Otherwise no signal may be lost: it would sleep on.
        pub(super) fn signal(&self) {
            for _ in 0..super::ATTEMPTS {
                match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
                    Ok(_) | Err(Errno::AGAIN) => return,
                    Err(_) => thread::yield_now(),
                }
            }
        }

        /// Fails only where another wake-up was not pending after all.
        pub(super) fn clear(&self) {
            let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
        }
    }

    impl AsFd for WakeFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

/// Where there is no eventfd; compiled for the tests everywhere, so that it cannot rot.
#[cfg(any(test, not(any(target_os = "linux", target_os = "android", target_os = "freebsd"))))]
mod socket_pair {
    use std::io::{self, Read, Write};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    use std::thread;

    pub(super) struct WakeFd {
        reader: UnixStream,
        writer: UnixStream,
    }

    impl WakeFd {
        pub(super) fn new() -> io::Result<WakeFd> {
            let (reader, writer) = UnixStream::pair()?;
            reader.set_nonblocking(true)?;
            writer.set_nonblocking(true)?;
            Ok(WakeFd { reader, writer })
        }

        /// Where the buffer is full the sleeper wakes all the same. Otherwise no signal may be lost: it would sleep on.
        pub(super) fn signal(&self) {
            for _ in 0..super::ATTEMPTS {
                match (&self.writer).write(&[1]) {
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => thread::yield_now(),
                    _ => return,
                }
            }
        }

        pub(super) fn clear(&self) {
            let mut sink = [0u8; 64];
            while matches!((&self.reader).read(&mut sink), Ok(n) if n == sink.len()) {}
        }
    }

    impl AsFd for WakeFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.reader.as_fd()
        }
    }
}

/// Waits until a failed `poll` may be tried again; `false` where it may not.
pub(crate) fn wait_out(error: Errno) -> bool {
    match error {
        Errno::INTR => true,
        // The kernel has no memory for it just now, and nothing to wait on where it would say that it has again.
        Errno::AGAIN | Errno::NOMEM => {
            thread::sleep(SHORT_OF_MEMORY);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    #[test]
    fn a_wake_before_the_sleep_is_not_lost() {
        let sleeper = Sleeper::new().unwrap();
        sleeper.mark_asleep();
        sleeper.waker().wake();
        let start = std::time::Instant::now();
        sleeper.sleep(None, false, false, LONG).unwrap();
        assert!(start.elapsed() < Duration::from_secs(10), "the sleep must end by the wake-up, not by its timeout");
    }

    #[test]
    fn an_awake_sleeper_costs_no_signal() {
        let sleeper = Sleeper::new().unwrap();
        sleeper.waker().wake();
        let mut fds = [PollFd::from_borrowed_fd(sleeper.wake_fd.as_fd(), PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap(), 0);
    }

    #[test]
    fn a_waker_that_outlives_its_sleeper_wakes_nobody_and_holds_no_descriptor() {
        let sleeper = Sleeper::new().unwrap();
        let waker = Arc::clone(sleeper.waker());
        sleeper.mark_asleep();
        drop(sleeper);
        waker.wake();
        waker.interrupt();
        assert!(waker.wake_fd.lock().is_none());
    }

    #[test]
    fn a_renewed_sleeper_hears_its_new_waker_and_not_the_old_one() {
        let mut sleeper = Sleeper::new().unwrap();
        let old = Arc::clone(sleeper.waker());
        old.interrupt();
        sleeper.renew();
        assert!(!sleeper.sleep(None, false, false, LONG).unwrap().timed_out);
        old.interrupt();
        sleeper.mark_asleep();
        old.wake();
        assert!(sleeper.sleep(None, false, false, Some(Duration::from_millis(1))).unwrap().timed_out);
        sleeper.mark_asleep();
        sleeper.waker().wake();
        assert!(!sleeper.sleep(None, false, false, LONG).unwrap().timed_out);
    }

    #[test]
    fn the_socket_pair_signals_and_clears_like_an_eventfd() {
        let wake_fd = socket_pair::WakeFd::new().unwrap();
        let pending = |timeout| {
            let mut fds = [PollFd::from_borrowed_fd(wake_fd.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: timeout, tv_nsec: 0 })).unwrap() == 1
        };
        assert!(!pending(0));
        for _ in 0..200 {
            wake_fd.signal();
        }
        assert!(pending(20));
        wake_fd.clear();
        assert!(!pending(0));
    }
}
