//! Waiting for results on the submitter's own thread.

use std::time::{Duration, Instant};

use super::Port;
use crate::error::{TaskError, WaitError};
use crate::panic::catch;
use crate::stamp::Stamp;
use crate::task::flight::Finish;
use crate::task::options::TaskOptions;
use crate::task::outcome::{Finished, Outcome};
use crate::task::queue::Job;
use crate::task::reply::Message;

/// The tasks that are waited for.
struct Waited<'a, R> {
    /// The sequences of those that were accepted, ascending, with their place among the results.
    places: &'a mut [(u64, usize)],
    accepted: usize,
    results: &'a mut [Option<Result<Finished<R>, TaskError>>],
    /// How many have no result yet.
    open: usize,
}

impl<R> Waited<'_, R> {
    fn places(&self) -> &[(u64, usize)] {
        &self.places[..self.accepted]
    }

    fn place_of(&self, message: &Message<R>, submitter: u64) -> Option<usize> {
        let id = match message {
            Message::Progress(id) => *id,
            _ => message.task()?,
        };
        if id.submitter != submitter {
            return None;
        }
        let places = self.places();
        let found = places.binary_search_by_key(&id.sequence, |&(sequence, _)| sequence);
        found.ok().map(|found| places[found].1)
    }
}

fn result_of<R>(finished: Option<Result<Finished<R>, TaskError>>) -> Result<R, WaitError> {
    match finished {
        Some(Ok(finished)) => finished.into_result().map_err(WaitError::from),
        Some(Err(reason)) => Err(WaitError::NotAccepted(reason)),
        None => Err(WaitError::TimedOut),
    }
}

impl<T: Send + 'static, R: Send + 'static, C> Port<T, R, C> {
    /// Submits a task and blocks until it has ended, or for `timeout`.
    pub(in crate::task) fn wait(
        &mut self,
        payload: T,
        options: Option<TaskOptions<T>>,
        timeout: Duration,
    ) -> Result<R, WaitError> {
        let mut job = Some(Job::OnTask(payload));
        let (mut places, mut results) = ([(0, 0)], [None]);
        let waited = Waited { places: &mut places, accepted: 0, results: &mut results, open: 0 };
        self.wait_for(waited, options, timeout, |port, options, waited| {
            port.submit_waited(&mut job, 0, options, waited)
        });
        let [result] = results;
        result_of(result)
    }

    /// The same for several, for `timeout` in all.
    pub(in crate::task) fn wait_for_all(
        &mut self,
        payloads: Vec<T>,
        options: Option<TaskOptions<T>>,
        timeout: Duration,
    ) -> Vec<Result<R, WaitError>> {
        let mut places = vec![(0, 0); payloads.len()];
        let mut results: Vec<_> = payloads.iter().map(|_| None).collect();
        let waited = Waited { places: &mut places, accepted: 0, results: &mut results, open: 0 };
        self.wait_for(waited, options, timeout, |port, options, waited| {
            for (place, payload) in payloads.into_iter().enumerate() {
                port.submit_waited(&mut Some(Job::OnTask(payload)), place, options, waited);
            }
        });
        results.into_iter().map(result_of).collect()
    }

    /// What comes for others meanwhile is put aside.
    fn wait_for(
        &mut self,
        mut waited: Waited<'_, R>,
        options: Option<TaskOptions<T>>,
        timeout: Duration,
        submit: impl FnOnce(&mut Self, Option<&TaskOptions<T>>, &mut Waited<'_, R>),
    ) {
        if !self.may_wait() {
            return waited.results.fill_with(|| Some(Err(TaskError::InTask)));
        }
        let now = Instant::now();
        self.now = Some(Stamp::from(now));
        // The time is not made a deadline of the tasks', which would cost them memory: its end ends them as well.
        let own = options.as_ref().and_then(|options| options.deadline);
        let time = own.map_or(timeout, |deadline| deadline.min(timeout));
        let deadline = now.checked_add(time);
        submit(self, options.as_ref(), &mut waited);
        let mut left = time;
        while waited.open > 0 && !left.is_zero() {
            match self.receive(deadline, left) {
                Some(message) => self.sort(message, &mut waited),
                None => break,
            }
            if waited.open > 0 {
                left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            }
        }
        self.give_up_waiting(&mut waited);
        self.forget_time();
    }

    fn submit_waited(
        &mut self,
        job: &mut Option<Job<T>>,
        place: usize,
        options: Option<&TaskOptions<T>>,
        waited: &mut Waited<'_, R>,
    ) {
        match self.submit(job, Some(Finish::Waited), options, self.when_full()) {
            Ok(id) => {
                waited.places[waited.accepted] = (id.sequence, place);
                waited.accepted += 1;
                waited.open += 1;
            }
            Err(reason) => waited.results[place] = Some(Err(reason)),
        }
    }

    /// Keeps what is waited for, and puts anything else aside.
    fn sort(&mut self, message: Message<R>, waited: &mut Waited<'_, R>) {
        let Some(place) = waited.place_of(&message, self.number()) else { return self.put_aside(message) };
        match message {
            Message::Finished(finished) => self.keep(finished, place, waited),
            // Who waits looks no further than to its end.
            Message::Progress(id) => self.address.forget_told(id),
            message => self.put_aside(message),
        }
    }

    fn keep(&mut self, finished: Finished<R>, place: usize, waited: &mut Waited<'_, R>) {
        if !finished.is_last {
            // Who waits hears of the last result only. This one's drop may panic.
            self.address.forget_result();
            let _ = catch(|| drop(finished));
            return;
        }
        self.ledger.delivered.add(1);
        self.land(finished.id.sequence);
        waited.results[place] = Some(Ok(finished));
        waited.open -= 1;
    }

    /// Nothing that was waited for stays in flight: what is late can never be taken for the answer to another wait.
    fn give_up_waiting(&mut self, waited: &mut Waited<'_, R>) {
        if waited.open == 0 {
            return;
        }
        for index in 0..waited.accepted {
            let (sequence, place) = waited.places[index];
            if waited.results[place].is_none() {
                // Either this decides it, or its outcome has come at the last moment; aside it is in both cases.
                self.decide(self.id(sequence), Outcome::TimedOut);
            }
        }
        for message in std::mem::take(&mut self.aside) {
            self.sort(message, waited);
        }
    }
}
