//! A full queue, from where a submitter stands: whether it should pause, and how it waits for room.

use std::sync::Arc;
use std::time::Instant;

use super::{Port, WhenFull};
use crate::task::Wake;

impl<T: Send + 'static, R: Send + 'static, C> Port<T, R, C> {
    /// Whether this submitter should bring no more for now: it is at its cap in flight, or the queue was full
    /// when it submitted, and it was not called since. It is woken when that is over.
    #[inline]
    pub(crate) fn should_pause(&mut self) -> bool {
        self.hear_call();
        self.held_back.is_some() || self.counted >= self.config.max_in_flight
    }

    /// If it waits for room and is called, it goes on; and others are called while it does something else.
    #[inline]
    pub(crate) fn hear_call(&mut self) {
        if let Some(place) = self.held_back {
            self.look_for_room(place);
        }
    }

    #[cold]
    fn look_for_room(&mut self, place: usize) {
        let queue = &self.room.queue;
        let is_called = queue.waiters.is_called(place);
        // Few are called, and each may bring what one callback does, as those may who have just come.
        let has_room = queue.has_room() || is_called && !queue.is_crowded();
        if has_room || is_called {
            self.leave_line();
        }
        if is_called && !has_room {
            self.hold_back();
        }
    }

    /// Registers first and looks second; whoever drains the queue takes first and looks for us second.
    #[cold]
    pub(super) fn hold_back(&mut self) {
        if self.room.queue.has_room() {
            return;
        }
        self.held_back = Some(self.room.queue.waiters.register(Arc::clone(&self.wake)));
        if self.room.queue.has_room() {
            self.leave_line();
        }
    }

    /// Blocks until there may be room in the queue, and says how to submit then; `None` once the deadline has come.
    pub(in crate::task) fn room_by(&mut self, deadline: Instant) -> Option<WhenFull> {
        if Instant::now() >= deadline {
            return None;
        }
        let bell = self.bell.get_or_insert_default();
        let queue = &self.room.queue;
        let place = queue.waiters.register(Arc::clone(bell) as Arc<dyn Wake>);
        // A shutdown calls all who wait, and so not who registers after it has begun.
        let is_over = || queue.has_room() || queue.waiters.is_called(place) || self.room.crew.is_draining();
        let in_time = bell.wait_until(deadline, is_over);
        let is_called = queue.waiters.is_called(place);
        queue.waiters.leave(place, || queue.has_room());
        in_time.then_some(if is_called { WhenFull::RefuseInTurn } else { WhenFull::RefuseAtCap })
    }
}

impl<T, R, C> Port<T, R, C> {
    /// Waits for room in the queue no longer.
    pub(crate) fn leave_line(&mut self) {
        if let Some(place) = self.held_back.take() {
            let queue = &self.room.queue;
            queue.waiters.leave(place, || queue.has_room());
        }
    }
}
