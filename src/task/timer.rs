//! The timer thread: what is to happen later. One per pool, started when first used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;

use super::outcome::TaskId;
use super::queue::{Place, Task};
use super::repetition::Repeating;
use super::room::Room;
use crate::logging::foreign;
use crate::new_thread::NewThread;
use crate::panic::catch;
use crate::stack::{DEFAULT_STACK, with_room_for};
use crate::stats::OpenLedger;

pub(super) struct Timer<T, R> {
    state: Mutex<State<T, R>>,
    /// Something is due earlier than anything before, or the timer has closed.
    changed: Condvar,
}

struct State<T, R> {
    due: BTreeMap<Key, Due<T, R>>,
    /// Where each thing in `due` is, by [`Due::id`].
    keys: FxHashMap<TaskId, Key>,
    /// The number of the last key.
    last: u64,
    /// How many tasks are in `due`.
    tasks: usize,
    started: bool,
    closed: bool,
}

/// When something is due, and a number that makes it unique.
type Key = (Instant, u64);

pub(super) enum Due<T, R> {
    /// A task is to be queued.
    Task(Box<Task<T, R>>, Place),
    /// The next task of a repetition is to be made.
    Repetition(Box<Repeating<T, R>>),
}

impl<T, R> Due<T, R> {
    fn id(&self) -> TaskId {
        match self {
            Due::Task(task, _) => task.ticket.id,
            Due::Repetition(repeating) => repeating.id(),
        }
    }
}

/// Why something was not taken.
pub(super) enum NoTimer {
    /// It has closed.
    Closed,
    /// Its thread could not be started.
    NoThread,
}

impl<T, R> Timer<T, R> {
    pub(super) fn new() -> Timer<T, R> {
        let state = State {
            due: BTreeMap::new(),
            keys: FxHashMap::default(),
            last: 0,
            tasks: 0,
            started: false,
            closed: false,
        };
        Timer { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// How many tasks are delayed.
    pub(super) fn tasks(&self) -> usize {
        self.state.lock().tasks
    }

    /// Takes a task, or a repetition, back before its time; `None` if that has come.
    pub(super) fn remove(&self, id: TaskId) -> Option<Due<T, R>> {
        let mut state = self.state.lock();
        let key = state.keys.remove(&id)?;
        let due = state.due.remove(&key)?;
        state.tasks -= usize::from(matches!(due, Due::Task(..)));
        Some(due)
    }

    /// Takes nothing more, and hands back all that is left.
    pub(super) fn close(&self) -> impl Iterator<Item = Due<T, R>> + use<T, R> {
        let due = {
            let mut state = self.state.lock();
            state.closed = true;
            state.tasks = 0;
            state.keys.clear();
            std::mem::take(&mut state.due)
        };
        self.changed.notify_all();
        due.into_values()
    }

    /// Blocks until something is due; `None` once the timer has closed.
    fn next(&self) -> Option<(Instant, Due<T, R>)> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            match state.due.first_key_value().map(|(&(due, _), _)| due) {
                None => self.changed.wait(&mut state),
                Some(due) if due > Instant::now() => drop(self.changed.wait_until(&mut state, due)),
                Some(_) => return state.take_first(),
            }
        }
    }
}

impl<T, R> State<T, R> {
    fn take_first(&mut self) -> Option<(Instant, Due<T, R>)> {
        let ((due, _), what) = self.due.pop_first()?;
        self.keys.remove(&what.id());
        self.tasks -= usize::from(matches!(what, Due::Task(..)));
        Some((due, what))
    }
}

impl<T: Send + 'static, R: Send + 'static> Timer<T, R> {
    /// Whether it can take something; its thread is started when it first is to.
    pub(super) fn is_ready(room: &Arc<Room<T, R>>) -> Result<(), NoTimer> {
        room.timer.state.lock().make_ready(room)
    }

    /// Keeps a task until it is due.
    pub(super) fn insert(
        room: &Arc<Room<T, R>>,
        due: Instant,
        task: Box<Task<T, R>>,
        place: Place,
    ) -> Result<(), Box<Task<T, R>>> {
        let mut state = room.timer.state.lock();
        if state.make_ready(room).is_err() {
            return Err(task);
        }
        state.tasks += 1;
        room.timer.put(&mut state, due, Due::Task(task, place));
        Ok(())
    }

    /// Keeps a repetition until it is due, unless it is over.
    pub(super) fn repeat(room: &Arc<Room<T, R>>, due: Instant, what: Box<Repeating<T, R>>) -> Result<(), NoTimer> {
        let mut state = room.timer.state.lock();
        state.make_ready(room)?;
        // Whoever ends it says so first, and looks for it here second. What is not kept is dropped once the lock is not
        // held.
        if !what.is_over() {
            room.timer.put(&mut state, due, Due::Repetition(what));
        }
        Ok(())
    }

    fn put(&self, state: &mut State<T, R>, at: Instant, due: Due<T, R>) {
        state.last += 1;
        let key = (at, state.last);
        state.keys.insert(due.id(), key);
        state.due.insert(key, due);
        if state.due.first_key_value().is_some_and(|(&first, _)| first == key) {
            self.changed.notify_all();
        }
    }
}

impl<T: Send + 'static, R: Send + 'static> State<T, R> {
    fn make_ready(&mut self, room: &Arc<Room<T, R>>) -> Result<(), NoTimer> {
        if self.closed {
            return Err(NoTimer::Closed);
        }
        if !self.started {
            start(Arc::clone(room)).map_err(|_| NoTimer::NoThread)?;
            self.started = true;
        }
        Ok(())
    }
}

fn start<T: Send + 'static, R: Send + 'static>(room: Arc<Room<T, R>>) -> std::io::Result<()> {
    let run = move || {
        room.crew.threads.claim();
        let ledger = room.crew.books.open();
        // The second fence: what could panic beside a repetition's closure is what users' types do when dropped.
        while let Err(message) = catch(|| run(&room, &ledger)) {
            // A logger may panic too.
            let _ = catch(|| log::error!("the timer panicked: {}", foreign(message)));
        }
    };
    let stack_size = with_room_for(&[size_of::<T>(), size_of::<R>()], DEFAULT_STACK);
    NewThread::reserve(stack_size)?.start("br-timer".to_owned(), run).map(drop)
}

fn run<T: Send + 'static, R: Send + 'static>(room: &Arc<Room<T, R>>, ledger: &OpenLedger) {
    while let Some((due, what)) = room.timer.next() {
        match what {
            Due::Task(task, place) => room.come_due(*task, place, due, ledger),
            Due::Repetition(mut repeating) => {
                if repeating.fire(room, ledger) {
                    // Refused only once the timer has closed, which ends every repetition.
                    let _ = Timer::repeat(room, repeating.next(due), repeating);
                }
            }
        }
    }
}
