//! What comes back to a port: outcomes, results and progress, each with what is to run for it.

use std::time::{Duration, Instant};

use super::Port;
use crate::patience::Patience;
use crate::task::flight::{Delivery, Each, Finish, Flight, What};
use crate::task::outcome::{Finished, Progress, Returned, TaskId};
use crate::task::reply::Message;

/// Whoever waits while task workers have enough to do lets half of what is in flight gather, up to so many messages: on
/// their heels, each message would cost both sides the cache lines that the other one writes.
const GATHERED: usize = 128;

impl<T: Send + 'static, R: Send + 'static, C> Port<T, R, C> {
    /// Whether there may be something to deliver.
    pub(crate) fn has_message(&self) -> bool {
        !self.aside.is_empty()
            || !self.address.receiver().is_empty()
            || self.order.as_ref().is_some_and(|order| order.has_next())
    }

    /// More messages than this cannot be here, but for those of progress and of deadlines.
    pub(crate) fn most_messages(&self) -> usize {
        self.in_flight() + self.address.results()
    }

    /// Blocks until a message is here, a deadline of a task in flight has come, or it is `end`. Call it when there is
    /// none.
    pub(crate) fn wait_for_message(&mut self, now: Instant, end: Instant) {
        let until = self.next_deadline().map_or(end, |deadline| deadline.min(end));
        let (receiver, queue) = (self.address.receiver(), &self.room.queue);
        let enough = (self.in_flight() / 2).min(GATHERED);
        let is_here = || {
            let here = receiver.len();
            (here > 0 && (here >= enough || queue.is_empty())).then_some(())
        };
        let time = until.saturating_duration_since(now).min(Patience::HOT);
        if self.patience.wait(usize::MAX, time, is_here).is_none() {
            if let Some(message) = self.sleep(Some(until)) {
                self.put_aside(message);
            }
        }
    }

    /// The next message; `None` at the deadline, until which there is so much time left.
    pub(super) fn receive(&mut self, deadline: Option<Instant>, left: Duration) -> Option<Message<R>> {
        let receiver = self.address.receiver();
        let here = self.patience.wait(usize::MAX, left.min(Patience::HOT), || receiver.try_recv().ok());
        here.or_else(|| self.sleep(deadline))
    }

    /// The same without yielding before.
    fn sleep(&self, deadline: Option<Instant>) -> Option<Message<R>> {
        let receiver = self.address.receiver();
        match deadline {
            Some(deadline) => receiver.recv_deadline(deadline).ok(),
            None => receiver.recv().ok(),
        }
    }

    /// The next thing that is here, with what is to run for it.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Delivery<R, C>> {
        while self.fetch() {
            let delivery = self.fetched();
            if delivery.is_some() {
                return delivery;
            }
        }
        None
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

    /// What was fetched, with what is to run for it; `None` if that is nothing.
    #[inline]
    pub(crate) fn fetched(&mut self) -> Option<Delivery<R, C>> {
        let message = match &mut self.order {
            None => self.next_message()?,
            Some(order) => order.fetched.take()?,
        };
        self.deliver(message)
    }

    #[inline]
    fn next_message(&mut self) -> Option<Message<R>> {
        match self.aside.is_empty() {
            true => self.address.receiver().try_recv().ok(),
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

    #[inline]
    fn deliver(&mut self, message: Message<R>) -> Option<Delivery<R, C>> {
        let what = match message {
            Message::Finished(finished) if finished.is_last => self.deliver_outcome(finished),
            Message::Finished(finished) => self.deliver_result(finished),
            Message::Returned(id, returned) => self.deliver_returned(id, returned),
            Message::Progress(id) => {
                self.address.forget_told(id);
                self.room.crew.progress(id).map(|progress| What::Progress(id, progress))
            }
            Message::Deadline(id, deadline) => {
                self.follow(id, deadline);
                None
            }
        };
        what.map(Delivery)
    }

    #[inline]
    fn deliver_outcome(&mut self, finished: Finished<R>) -> Option<What<R, C>> {
        self.ledger.delivered.add(1);
        if finished.id.submitter != self.address.number {
            self.address.forget_foreign();
            self.follow_no_more(finished.id);
            return Some(What::ForAll(finished));
        }
        match self.land(finished.id.sequence)? {
            Finish::ForAll => Some(What::ForAll(finished)),
            Finish::Then(then) => Some(What::Then(then, finished)),
            Finish::Each(each) => Some(What::Each(each?, finished)),
            // It has not returned.
            Finish::Closure(then) => Some(What::Closure(then, Err(finished.into_result().err()?))),
            Finish::Waited => None,
        }
    }

    fn deliver_returned(&mut self, id: TaskId, returned: Returned) -> Option<What<R, C>> {
        self.ledger.delivered.add(1);
        match self.land(id.sequence)? {
            Finish::Closure(then) => Some(What::Closure(then, Ok(returned))),
            _ => None,
        }
    }

    fn deliver_result(&mut self, finished: Finished<R>) -> Option<What<R, C>> {
        self.address.forget_result();
        if finished.id.submitter != self.address.number {
            return Some(What::ForAll(finished));
        }
        let flight = self.flights.get_mut(finished.id.sequence)?;
        if flight.is_for_all() {
            return Some(What::ForAll(finished));
        }
        // Others asked for the outcome only.
        flight.each()?.take().map(|each| What::Each(each, finished))
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
    /// Runs what is to run for a delivery. `port` is where `user` has this port.
    #[inline]
    pub(crate) fn run(
        delivery: Delivery<R, C>,
        user: &mut C,
        port: impl Fn(&mut C) -> &mut Self,
        callbacks: &TaskCallbacks<R, C>,
    ) -> anyhow::Result<()> {
        let TaskCallbacks { on_finish, on_progress } = callbacks;
        match delivery.0 {
            What::ForAll(finished) => on_finish.as_ref().map_or(Ok(()), |on_finish| on_finish(user, finished)),
            What::Then(then, finished) => then(user, finished),
            What::Closure(then, returned) => then(user, returned),
            What::Each(mut each, finished) => {
                let (id, is_last) = (finished.id, finished.is_last);
                let returned = each(user, finished);
                if !is_last {
                    port(user).put_back(id, each);
                }
                returned
            }
            What::Progress(id, progress) => {
                on_progress.as_ref().map_or(Ok(()), |on_progress| on_progress(user, id, progress))
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

type OnFinish<R, C> = Box<dyn Fn(&mut C, Finished<R>) -> anyhow::Result<()> + Send + Sync>;
type OnProgress<C> = Box<dyn Fn(&mut C, TaskId, Progress) -> anyhow::Result<()> + Send + Sync>;
