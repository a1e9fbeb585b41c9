//! Outcomes that a port decides itself, before the task has ended: at a deadline, or by cancelling it.

use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

use super::Port;
use crate::panic::catch;
use crate::stamp::Stamp;
use crate::task::outcome::{Finished, Outcome, Run, TaskId};
use crate::task::reply::{Message, told};

impl<T: Send + 'static, R: Send + 'static, C> Port<T, R, C> {
    /// Cancels a task; false if it is not in flight, or its outcome is here already.
    pub(crate) fn cancel(&mut self, id: TaskId) -> bool {
        id.submitter == self.address.number && self.decide(id, Outcome::Cancelled)
    }

    /// From now on it follows the deadline of a task that somebody else submitted in its name.
    pub(super) fn follow(&mut self, id: TaskId, deadline: Instant) {
        self.foreign_deadlines.insert(id, deadline);
        self.deadlines.insert((deadline, id));
    }

    /// A task of somebody else has ended.
    pub(super) fn follow_no_more(&mut self, id: TaskId) {
        if let Some(deadline) = self.foreign_deadlines.remove(&id) {
            self.deadlines.remove(&(deadline, id));
        }
    }

    /// When the next deadline of a task in flight comes.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Lets those tasks time out whose deadline has come.
    pub(crate) fn time_out(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.pop_first();
            self.decide(id, Outcome::TimedOut);
        }
    }

    /// Decides the outcome of a task in flight, wherever it is, unless that has been decided.
    pub(super) fn decide(&mut self, id: TaskId, outcome: Outcome<R>) -> bool {
        if !self.is_open(id) {
            return false;
        }
        // Struck first and looked for second; whoever moves a task, out of the queue or to the timer, does so first and
        // looks whether it was struck second.
        self.address.strike(id);
        if let Some(delayed) = self.room.timer.remove(id) {
            self.address.unstrike(id);
            self.put_decided(id, outcome, None);
            // The payload's own drop may panic.
            let _ = catch(|| drop(delayed));
            return true;
        }
        if let Some(started) = self.room.crew.claim(id) {
            self.address.unstrike(id);
            self.put_decided(id, outcome, Some((started.worker_index, started.run(Stamp::now()))));
            return true;
        }
        self.put_all_aside();
        if !self.is_open(id) {
            self.address.unstrike(id);
            return false;
        }
        // It is queued, or on its way there. Who takes it out will throw it away.
        self.put_decided(id, outcome, None);
        true
    }

    /// Whether the outcome of a task was not seen yet.
    fn is_open(&self, id: TaskId) -> bool {
        match id.submitter == self.address.number {
            true => self.flights.get(id.sequence).is_some_and(|flight| !flight.ended),
            false => self.foreign_deadlines.contains_key(&id),
        }
    }

    fn put_all_aside(&mut self) {
        while let Some(message) = self.address.messages().try_recv() {
            self.put_aside(message);
        }
    }

    pub(super) fn put_aside(&mut self, message: Message<R>) {
        if let Message::Deadline(id, deadline) = message {
            return self.follow(id, deadline);
        }
        self.note(&message);
        self.aside.push_back(message);
    }

    /// Remembers whose outcome this is, if it is one.
    pub(super) fn note(&mut self, message: &Message<R>) {
        let Some(id) = message.ends() else { return };
        if id.submitter != self.address.number {
            self.follow_no_more(id);
        } else if let Some(flight) = self.flights.get_mut(id.sequence) {
            flight.ended = true;
        }
    }

    fn put_decided(&mut self, id: TaskId, outcome: Outcome<R>, ran: Option<(u32, Run)>) {
        let kind = outcome.kind();
        self.ledger.count(kind);
        let run = ran.map_or_else(|| Run::never(Stamp::now()), |(_, run)| run);
        let worker_index = ran.map(|(worker_index, _)| worker_index);
        // After what has come before it.
        self.put_all_aside();
        self.put_aside(Message::Finished(Finished { id, outcome, is_last: true, worker_index, run }));
        fence(Ordering::SeqCst);
        let address = &*self.address;
        self.room.crew.observer.tell(|observer| observer.task_ended(&told(id, kind, None, address, ran)));
        self.room.crew.fewer_pending();
    }

    /// The user ends: cancels what is in flight, if so configured.
    pub(crate) fn end(&mut self) {
        if self.config.cancel_at_end {
            for sequence in self.flights.sequences() {
                self.decide(self.id(sequence), Outcome::Cancelled);
            }
            // Those that others submitted in its name: each has started, or will see this when it starts.
            self.address.cancel_all();
            fence(Ordering::SeqCst);
            self.room.crew.cancel_started(&self.address, &self.ledger);
        }
    }
}
