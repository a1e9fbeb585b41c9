//! All the ways of submitting a task.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::BeforeWait;
use super::flight::Finish;
use super::options::TaskOptions;
use super::outcome::{Finished, Returned, TaskId};
use super::port::{Port, WhenFull, far};
use super::queue::Job;
use super::repetition::{Keeper, Repeating, Repetition};
use super::room::new_number;
use super::timer::Timer;
use crate::error::{TaskError, TaskFailure, TryTaskError, WaitError};

/// All the ways of submitting a task, with [options](TaskOptions). From `with` of a connection or a
/// [`Submitter`](crate::Submitter), which have the same methods for tasks without; `C` is which of them.
#[must_use]
pub struct With<'a, T, R, C> {
    port: &'a mut Port<T, R, C>,
    options: Option<TaskOptions<T>>,
    /// What is to be done before the thread blocks.
    before_wait: Option<&'a mut dyn BeforeWait>,
}

impl<'a, T, R, C> With<'a, T, R, C> {
    pub(crate) fn new(
        port: &'a mut Port<T, R, C>,
        options: Option<TaskOptions<T>>,
        before_wait: Option<&'a mut dyn BeforeWait>,
    ) -> Self {
        With { port, options, before_wait }
    }
}

impl<T: Send + 'static, R: Send + 'static, C> With<'_, T, R, C> {
    /// Hands a task to the task workers and returns its id at once; its outcome comes to `on_finish`. See
    /// [`Connection::task`](crate::Connection::task).
    pub fn task(self, data: T) -> Result<TaskId, TaskError> {
        self.submit(&mut Some(Job::OnTask(data)), Some(Finish::ForAll))
    }

    /// A task with a finish closure of its own for its outcome. See
    /// [`Connection::task_then`](crate::Connection::task_then).
    pub fn task_then<F>(self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnOnce(&mut C, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        self.submit(&mut Some(Job::OnTask(data)), Some(Finish::Then(Box::new(finish))))
    }

    /// A task with a finish closure of its own for each of its results, the outcome last. See
    /// [`Connection::task_each`](crate::Connection::task_each).
    pub fn task_each<F>(self, data: T, finish: F) -> Result<TaskId, TaskError>
    where
        F: FnMut(&mut C, Finished<R>) -> anyhow::Result<()> + 'static,
    {
        self.submit(&mut Some(Job::OnTask(data)), Some(Finish::Each(Some(Box::new(finish)))))
    }

    /// A task of whose outcome nobody hears. See [`Connection::task_oneway`](crate::Connection::task_oneway).
    pub fn task_oneway(self, data: T) -> Result<TaskId, TaskError> {
        self.submit(&mut Some(Job::OnTask(data)), None)
    }

    /// A task that is refused where the queue is full, with an error that hands the payload back. See
    /// [`Connection::try_task`](crate::Connection::try_task).
    pub fn try_task(self, data: T) -> Result<TaskId, TryTaskError<T>> {
        let With { port, options, .. } = self;
        let mut job = Some(Job::OnTask(data));
        port.submit(&mut job, Some(Finish::ForAll), options.as_ref(), WhenFull::RefuseAtCap)
            .map_err(|reason| TryTaskError::new(reason, Job::payload_of(job)))
    }

    /// Runs a closure as a task, and `finish` with what it returned. See [`Connection::run`](crate::Connection::run).
    /// With a [retry](TaskOptions::retry) it is refused: a closure can be run once only.
    pub fn run<X, W, F>(self, work: W, finish: F) -> Result<TaskId, TaskError>
    where
        X: Send + 'static,
        W: FnOnce() -> X + Send + 'static,
        F: FnOnce(&mut C, Result<X, TaskFailure>) -> anyhow::Result<()> + 'static,
    {
        if self.options.as_ref().is_some_and(|options| options.retry.is_some()) {
            return Err(TaskError::RunsOnce);
        }
        let work = move || Box::new(work()) as Returned;
        let finish = move |user: &mut C, returned: Result<Returned, TaskFailure>| {
            let returned = returned.map(|returned| returned.downcast::<X>());
            match returned {
                Ok(Ok(returned)) => finish(user, Ok(*returned)),
                Err(failure) => finish(user, Err(failure)),
                // It is what `work` made.
                Ok(Err(_)) => Ok(()),
            }
        };
        let finish = Finish::Closure(Box::new(finish));
        self.submit(&mut Some(Job::Closure(Box::new(work))), Some(finish))
    }

    /// Submits a task and blocks until it has ended. See
    /// [`Connection::task_wait`](crate::Connection::task_wait).
    pub fn task_wait(self, data: T, timeout: Duration) -> Result<R, WaitError> {
        let With { port, options, before_wait } = self;
        before_wait.into_iter().for_each(BeforeWait::before_wait);
        port.wait(data, options, timeout)
    }

    /// Submits tasks and blocks until all have ended. See
    /// [`Connection::task_wait_multi`](crate::Connection::task_wait_multi).
    pub fn task_wait_multi(self, data: Vec<T>, timeout: Duration) -> Vec<Result<R, WaitError>> {
        let With { port, options, before_wait } = self;
        before_wait.into_iter().for_each(BeforeWait::before_wait);
        port.wait_for_all(data, options, timeout)
    }

    /// Submits a task again and again. See [`Connection::task_every`](crate::Connection::task_every). With
    /// [`after`](TaskOptions::after), the first comes after that time instead of `period`.
    pub fn task_every<F>(self, period: Duration, make: F) -> Result<Repetition, TaskError>
    where
        F: FnMut() -> T + Send + 'static,
    {
        let With { port, options, .. } = self;
        let room = Arc::clone(&port.room);
        let mut options = options.unwrap_or_default();
        if !port.open {
            return Err(TaskError::ShuttingDown);
        }
        if !options.has_worker_among(room.crew.size()) {
            return Err(TaskError::NoSuchWorker);
        }
        if !port.may_repeat() {
            return Err(TaskError::TooManyInFlight);
        }
        let first = far(Instant::now(), options.after.take().unwrap_or(period));
        let keeper = Arc::downgrade(&room) as Weak<dyn Keeper>;
        let reply_to = Arc::clone(&port.address);
        let (repeating, handle) = Repeating::new(new_number(), period, Box::new(make), options, reply_to, keeper);
        let (id, ended) = (repeating.id(), repeating.ended());
        Timer::repeat(&room, first, Box::new(repeating))?;
        port.keep_repetition(id, ended);
        Ok(handle)
    }

    /// Waits for room in the queue, if there is none.
    pub(crate) fn wait_for_room(self, data: T, timeout: Duration) -> Result<TaskId, TryTaskError<T>> {
        let With { port, options, .. } = self;
        let mut job = Some(Job::OnTask(data));
        let deadline = far(Instant::now(), timeout);
        let mut when_full = WhenFull::RefuseAtCap;
        loop {
            let reason = match port.submit(&mut job, Some(Finish::ForAll), options.as_ref(), when_full) {
                Ok(id) => return Ok(id),
                Err(reason) => reason,
            };
            let may_wait = reason == TaskError::QueueFull && port.may_wait();
            match may_wait.then(|| port.room_by(deadline)).flatten() {
                Some(how) => when_full = how,
                None => return Err(TryTaskError::new(reason, Job::payload_of(job))),
            }
            port.look_whether_open();
        }
    }

    #[inline(always)]
    fn submit(self, job: &mut Option<Job<T>>, heard: super::port::Heard<R, C>) -> Result<TaskId, TaskError> {
        let when_full = self.port.when_full();
        self.port.submit(job, heard, self.options.as_ref(), when_full)
    }
}

impl<T, R, C> fmt::Debug for With<'_, T, R, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("With").field("options", &self.options).finish_non_exhaustive()
    }
}
