//! What comes back to a port: outcomes, results and progress, each with what is to run for it.

use std::time::{Duration, Instant};

use super::Port;
use crate::error::TaskFailure;
use crate::patience::Patience;
use crate::task::flight::{Each, Finish, Flight, Then};
use crate::task::outcome::{Finished, Progress, Returned, TaskId};
use crate::task::reply::Message;

/// Whoever waits while task workers have enough to do lets half of what is in flight gather, up to so many messages: on
/// their heels, each message would cost both sides the cache lines that the other one writes.
const GATHERED: usize = 128;

impl<T: Send + 'static, R: Send + 'static, C> Port<T, R, C> {
    /// Whether there may be something to deliver.
    pub(crate) fn has_message(&self) -> bool {
        !self.aside.is_empty()
            || !self.address.messages().is_empty()
            || self.order.as_ref().is_some_and(|order| order.has_next())
    }

    /// More messages than this cannot be here, but for those of progress and of deadlines.
    pub(crate) fn most_messages(&self) -> usize {
        self.in_flight() + self.address.results()
    }

    /// Whether nothing can come any more: nothing is in flight, and the pool has begun to end.
    pub(crate) fn is_over(&self) -> bool {
        self.in_flight() == 0 && self.room.crew.is_draining() && !self.has_message()
    }

    /// Blocks until a message is here, a deadline of a task in flight has come, nothing can come any more, or it is `end`.
    /// Call it when there is none.
    pub(crate) fn wait_for_message(&mut self, now: Instant, end: Instant) {
        let until = self.next_deadline().map_or(end, |deadline| deadline.min(end));
        let (messages, queue) = (self.address.messages(), &self.room.queue);
        let enough = (self.in_flight() / 2).min(GATHERED);
        let is_here = || {
            let here = messages.len();
            (here > 0 && (here >= enough || queue.is_empty())).then_some(())
        };
        let time = until.saturating_duration_since(now).min(Patience::HOT);
        if self.patience.wait(usize::MAX, time, is_here).is_none() {
            let messages = self.address.messages();
            let message = match self.in_flight() {
                // Only a repetition could bring something, and none does once the pool has begun to end.
                0 => messages.recv_before(self.room.crew.drained(), until),
                _ => messages.recv_by(Some(until)),
            };
            if let Some(message) = message {
                self.put_aside(message);
            }
        }
    }

    /// The next message; `None` at the deadline, until which there is so much time left.
    pub(super) fn receive(&mut self, deadline: Option<Instant>, left: Duration) -> Option<Message<R>> {
        let messages = self.address.messages();
        self.patience.wait(usize::MAX, left.min(Patience::HOT), || (!messages.is_empty()).then_some(()));
        messages.recv_by(deadline)
    }

    /// Settles what comes next, if anything is here: what its task has done before it gave this has happened by now.
    #[inline]
    pub(crate) fn fetch(&mut self) -> bool {
        match &self.order {
            None => return self.has_message(),
            Some(order) if order.fetched.is_some() => return true,
            Some(_) => {}
        }
        let next = self.next_in_order();
        let is_here = next.is_some();
        if let Some(order) = &mut self.order {
            order.fetched = next;
        }
        is_here
    }

    #[inline]
    fn next_message(&mut self) -> Option<Message<R>> {
        match self.aside.is_empty() {
            true => self.address.messages().try_recv(),
            false => self.aside.pop_front(),
        }
    }

    fn next_in_order(&mut self) -> Option<Message<R>> {
        loop {
            if let Some(message) = self.order.as_mut().and_then(|order| order.next()) {
                return Some(message);
            }
            let message = self.next_message()?;
            self.note(&message);
            let in_line = message.task().filter(|id| self.is_in_line(*id));
            match (&mut self.order, in_line) {
                (Some(order), Some(id)) => match order.admit(id.sequence, message) {
                    Some(message) => return Some(message),
                    None => continue,
                },
                _ => return Some(message),
            }
        }
    }

    fn is_in_line(&self, id: TaskId) -> bool {
        id.submitter == self.address.number && self.flights.get(id.sequence).is_some_and(|flight| !flight.is_apart())
    }

    /// Settles something that came of a task; what is to run for it, if anything is.
    #[inline]
    fn finish_for(&mut self, finished: &Finished<R>) -> Option<Finish<R, C>> {
        match (finished.is_last, finished.id.submitter == self.address.number) {
            (true, true) => {
                self.ledger.delivered.add(1);
                self.land(finished.id.sequence)
            }
            (true, false) => {
                self.ledger.delivered.add(1);
                self.address.forget_foreign();
                self.follow_no_more(finished.id);
                Some(Finish::ForAll)
            }
            (false, is_own) => {
                self.address.forget_result();
                if !is_own {
                    return Some(Finish::ForAll);
                }
                let flight = self.flights.get_mut(finished.id.sequence)?;
                if flight.is_for_all() {
                    return Some(Finish::ForAll);
                }
                // Others asked for the outcome only.
                flight.each().map(|each| Finish::Each(each.take()))
            }
        }
    }

    fn closure_for(&mut self, id: TaskId) -> Option<Closure<C>> {
        self.ledger.delivered.add(1);
        match self.land(id.sequence)? {
            Finish::Closure(then) => Some(then),
            _ => None,
        }
    }

    fn progress_of(&mut self, id: TaskId) -> Option<Progress> {
        self.address.forget_told(id);
        self.room.crew.progress(id)
    }

    fn put_back(&mut self, id: TaskId, closure: Each<R, C>) {
        if id.submitter != self.address.number {
            return;
        }
        if let Some(each) = self.flights.get_mut(id.sequence).and_then(Flight::each) {
            *each = Some(closure);
        }
    }
}

impl<T: Send + 'static, R: Send + 'static, C> Port<T, R, C> {
    /// Delivers what was fetched: settles it, and runs what is to run for it; `None` if that is nothing. `port` is where
    /// `user` has this port.
    // A result is moved from the channel to the closure that is given it, and nowhere else: it may be large.
    #[inline]
    pub(crate) fn deliver(
        user: &mut C,
        port: impl Fn(&mut C) -> &mut Self,
        callbacks: &TaskCallbacks<R, C>,
    ) -> Option<anyhow::Result<()>> {
        let TaskCallbacks { on_finish, on_progress } = callbacks;
        let own = port(user);
        let message = match &mut own.order {
            None => own.next_message()?,
            Some(order) => order.fetched.take()?,
        };
        match message {
            Message::Finished(finished) => match own.finish_for(&finished)? {
                Finish::ForAll => match on_finish {
                    Some(on_finish) => Some(on_finish(user, finished)),
                    None => {
                        own.address.note_unheard(&Message::Finished(finished));
                        Some(Ok(()))
                    }
                },
                Finish::Then(then) => Some(then(user, finished)),
                Finish::Each(each) => {
                    let (mut each, id, is_last) = (each?, finished.id, finished.is_last);
                    let returned = each(user, finished);
                    if !is_last {
                        port(user).put_back(id, each);
                    }
                    Some(returned)
                }
                // It has not returned.
                Finish::Closure(then) => Some(then(user, Err(finished.into_result().err()?))),
                Finish::Waited => None,
            },
            Message::Returned(id, returned) => Some(own.closure_for(id)?(user, Ok(returned))),
            Message::Progress(id) => {
                let progress = own.progress_of(id)?;
                Some(on_progress.as_ref().map_or(Ok(()), |on_progress| on_progress(user, id, progress)))
            }
            Message::Deadline(id, deadline) => {
                own.follow(id, deadline);
                None
            }
        }
    }
}

/// What runs for tasks that have no closure of their own, for each who submits.
pub(crate) struct TaskCallbacks<R, C> {
    pub(crate) on_finish: Option<OnFinish<R, C>>,
    pub(crate) on_progress: Option<OnProgress<C>>,
}

impl<R, C> Default for TaskCallbacks<R, C> {
    fn default() -> Self {
        TaskCallbacks { on_finish: None, on_progress: None }
    }
}

/// What is given what a closure has returned that was run as a task.
type Closure<C> = Then<Result<Returned, TaskFailure>, C>;
type OnFinish<R, C> = Box<dyn Fn(&mut C, Finished<R>) -> anyhow::Result<()> + Send + Sync>;
type OnProgress<C> = Box<dyn Fn(&mut C, TaskId, Progress) -> anyhow::Result<()> + Send + Sync>;
