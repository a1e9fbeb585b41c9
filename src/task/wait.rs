//! Waiting for results on the submitter's own thread.

use std::time::{Duration, Instant};

use super::flight::Finish;
use super::options::TaskOptions;
use super::outcome::Outcome;
use super::port::Port;
use super::queue::Job;
use super::reply::Message;
use crate::error::WaitError;

/// The tasks that are waited for.
struct Waited<R> {
    /// Of those that were accepted, ascending, with their place among the results.
    places: Vec<(u64, usize)>,
    results: Vec<Option<Result<R, WaitError>>>,
    /// How many have no result yet.
    open: usize,
}

impl<R> Waited<R> {
    fn place_of(&self, message: &Message<R>, submitter: u64) -> Option<usize> {
        let Message::Finished(finished) = message else { return None };
        if finished.id.submitter != submitter {
            return None;
        }
        let found = self.places.binary_search_by_key(&finished.id.sequence, |&(sequence, _)| sequence);
        found.ok().map(|found| self.places[found].1)
    }
}

impl<T: Send + 'static, R: Send + 'static, C> Port<T, R, C> {
    /// Submits tasks and blocks until all have ended, or for `timeout` in all. What comes for others meanwhile is put
    /// aside.
    pub(super) fn wait(
        &mut self,
        payloads: Vec<T>,
        options: Option<TaskOptions<T>>,
        timeout: Duration,
    ) -> Vec<Result<R, WaitError>> {
        self.forget_time();
        let mut options = options.unwrap_or_default();
        let time = options.deadline.map_or(timeout, |deadline| deadline.min(timeout));
        options.deadline = Some(time);
        let deadline = Instant::now().checked_add(time);
        let mut waited = self.submit_waited(payloads, &options);
        while waited.open > 0 {
            match self.receive(deadline) {
                Some(message) => self.sort(message, &mut waited),
                None => break,
            }
        }
        self.give_up_waiting(&mut waited);
        self.forget_time();
        let missing = || Err(WaitError::TimedOut);
        waited.results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }

    fn submit_waited(&mut self, payloads: Vec<T>, options: &TaskOptions<T>) -> Waited<R> {
        let mut waited = Waited { places: Vec::new(), results: Vec::with_capacity(payloads.len()), open: 0 };
        for payload in payloads {
            let place = waited.results.len();
            match self.submit(Job::OnTask(payload), Some(Finish::Waited), Some(options), self.when_full()) {
                Ok(id) => {
                    waited.places.push((id.sequence, place));
                    waited.results.push(None);
                    waited.open += 1;
                }
                Err((reason, _)) => waited.results.push(Some(Err(WaitError::NotAccepted(reason)))),
            }
        }
        waited
    }

    /// The next message; `None` at the deadline.
    pub(super) fn receive(&self, deadline: Option<Instant>) -> Option<Message<R>> {
        let receiver = self.address.receiver();
        match deadline {
            Some(deadline) => receiver.recv_deadline(deadline).ok(),
            None => receiver.recv().ok(),
        }
    }

    /// Keeps what is waited for, and puts anything else aside.
    fn sort(&mut self, message: Message<R>, waited: &mut Waited<R>) {
        match waited.place_of(&message, self.number()) {
            None => self.put_aside(message),
            Some(place) => self.keep(message, place, waited),
        }
    }

    fn keep(&mut self, message: Message<R>, place: usize, waited: &mut Waited<R>) {
        let Message::Finished(finished) = message else { return };
        if !finished.is_last {
            // Who waits hears of the last result only.
            return self.address.forget_result();
        }
        self.ledger.delivered.add(1);
        self.land(finished.id.sequence);
        waited.results[place] = Some(finished.into_result().map_err(WaitError::from));
        waited.open -= 1;
    }

    /// Nothing that was waited for stays in flight: what is late can never be taken for the answer to another wait.
    fn give_up_waiting(&mut self, waited: &mut Waited<R>) {
        if waited.open == 0 {
            return;
        }
        for index in 0..waited.places.len() {
            let (sequence, place) = waited.places[index];
            if waited.results[place].is_none() {
                // Either this decides it, or its outcome has come at the last moment; aside it is in both cases.
                self.decide(sequence, Outcome::TimedOut);
            }
        }
        for message in std::mem::take(&mut self.aside) {
            self.sort(message, waited);
        }
    }
}
