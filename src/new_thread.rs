//! Starting a thread. Where there is too little address space for what it needs first, std panics in the new thread or
//! aborts the process. So under a limit of address space a thread starts only where there is room, and one after the
//! other, since what a thread takes at its start is not seen before.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use crossbeam_channel::{Sender, bounded};
use parking_lot::{Mutex, MutexGuard};

use crate::resources::{is_address_space_limited, stack_that_fits};

/// Held while a thread starts.
static STARTING: Mutex<()> = Mutex::new(());

/// Room for a thread.
pub(crate) struct NewThread {
    stack_size: usize,
    /// Where address space is limited.
    turn: Option<MutexGuard<'static, ()>>,
}

/// For a new thread, which says first that it runs.
pub(crate) struct HasStarted(Option<Sender<Box<u8>>>);

impl NewThread {
    /// Under a limit of address space, blocks while other threads start. An error of the kind `OutOfMemory`: there is no
    /// room.
    pub(crate) fn reserve(stack_size: usize) -> io::Result<NewThread> {
        let turn = is_address_space_limited().then(|| STARTING.lock());
        let fitting = if turn.is_some() { stack_that_fits(stack_size) } else { Some(stack_size) };
        Ok(NewThread { stack_size: fitting.ok_or_else(no_room)?, turn })
    }

    /// The same for a thread that somebody else starts, with just this stack.
    pub(crate) fn reserve_exactly(stack_size: usize) -> io::Result<NewThread> {
        let new = NewThread::reserve(stack_size)?;
        if new.stack_size == stack_size { Ok(new) } else { Err(no_room()) }
    }

    pub(crate) fn start(self, name: String, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        let builder = Builder::new().name(name).stack_size(self.stack_size);
        self.start_by(|has_started| {
            builder.spawn(move || {
                has_started.say();
                run();
            })
        })
    }

    pub(crate) fn start_scoped<'scope, X: Send + 'scope>(
        self,
        name: String,
        scope: &'scope Scope<'scope, '_>,
        run: impl FnOnce() -> X + Send + 'scope,
    ) -> io::Result<ScopedJoinHandle<'scope, X>> {
        let builder = Builder::new().name(name).stack_size(self.stack_size);
        self.start_by(|has_started| {
            builder.spawn_scoped(scope, move || {
                has_started.say();
                run()
            })
        })
    }

    /// Returns once the thread runs that `spawn` starts, if others have to wait for that.
    pub(crate) fn start_by<H, E>(self, spawn: impl FnOnce(HasStarted) -> Result<H, E>) -> Result<H, E> {
        let (started, runs) = self.turn.is_some().then(|| bounded(1)).unzip();
        let thread = spawn(HasStarted(started))?;
        let _ = runs.map(|runs| runs.recv());
        Ok(thread)
    }
}

fn no_room() -> io::Error {
    io::Error::new(io::ErrorKind::OutOfMemory, "too little address space is left for one more thread")
}

impl HasStarted {
    pub(crate) fn say(self) {
        // Allocated by the thread, so that it has taken by now what the allocator gives each.
        let _ = self.0.map(|started| started.send(Box::new(0)));
    }
}
