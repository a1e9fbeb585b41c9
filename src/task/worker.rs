//! One of the crew: it runs tasks until it is told to end, whatever a task does.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::context::{TaskContext, TaskInfo};
use super::crew::{Crew, Ending, Started, in_time};
use super::later::TakenAway;
use super::options::RetryOf;
use super::outcome::{Ended, Outcome, OutcomeKind, TaskId};
use super::pool::Hooks;
use super::port::far;
use super::queue::{Extra, Job, Place, Seat, Task};
use super::reply::told;
use super::room::{Room, new_number};
use super::unheard::Named;
use crate::logging::foreign;
use crate::panic::catch;
use crate::patience::Patience;
use crate::stamp::Stamp;
use crate::stats::OpenLedger;
use crate::times::Clocks;

/// A worker state that cannot be made again is tried again after this, then twice this, …
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

pub(super) struct TaskWorker<T, R, W, O> {
    pub(super) index: usize,
    pub(super) room: Arc<Room<T, R>>,
    pub(super) hooks: Arc<Hooks<T, R, W, O>>,
    pub(super) origin: O,
    /// How many tasks it runs before it renews its state, and so many more at random.
    pub(super) max_tasks: Option<(u64, u64)>,
    pub(super) clocks: Option<Arc<Clocks>>,
}

/// Why a task worker left its loop.
enum Left {
    ToldToEnd,
    ToRenew,
    TaskPanicked,
}

/// What there is to do next.
enum Next<T, R> {
    Run(Task<T, R>),
    Leave(Left),
}

/// A task that has started and has yet to be run.
struct Ready<T> {
    job: Job<T>,
    extra: Option<Box<Extra<T>>>,
}

/// Where a task worker says that it has made its state, or why not.
pub(super) type Starting = Sender<Result<(), (usize, anyhow::Error)>>;

impl<T: Send + 'static, R: Send + 'static, W, O: Clone> TaskWorker<T, R, W, O> {
    /// Makes the state, says so, and runs until it is over.
    pub(super) fn run(self, starting: &Starting) {
        self.room.crew.threads.claim();
        name_thread(self.index);
        let _left = LeavesCrew { crew: Arc::clone(&self.room.crew), index: self.index };
        let ledger = Rc::new(self.room.crew.books.open());
        let mut state = match self.make() {
            Ok(state) => {
                ledger.serving.set(1);
                let _ = starting.send(Ok(()));
                Some(state)
            }
            Err(error) => {
                let _ = starting.send(Err((self.index, error)));
                None
            }
        };
        let number = new_number();
        let sequence = Cell::new(0);
        // Kept, so that no lane is forgotten when the state is renewed.
        let mut seat = Seat::new(self.index);
        while let Some(worker) = state {
            self.room.crew.observer.tell(|observer| observer.task_worker_started(self.index));
            let info = TaskInfo {
                id: TaskId { submitter: 0, sequence: 0 },
                attempt: 1,
                is_last_attempt: true,
                deadline: None,
                submitter: 0,
                worker_index: self.index,
                origin: self.origin.clone(),
                room: Arc::clone(&self.room),
                number,
                sequence: sequence.clone(),
                ledger: Rc::clone(&ledger),
            };
            let mut context = TaskContext { worker, info };
            // The second fence: what could panic beside `on_task` is what users' types do when dropped.
            let left = catch(|| self.work(&mut context, &mut seat, &ledger)).unwrap_or_else(|message| {
                self.end_panicked(&context.info, &message, &ledger);
                Left::TaskPanicked
            });
            let TaskContext { worker, info } = context;
            sequence.set(info.sequence.get());
            drop(info);
            self.room.crew.renewals.begin(self.index);
            ledger.serving.set(0);
            self.stop(worker, &left);
            state = match left {
                Left::ToldToEnd => None,
                Left::ToRenew | Left::TaskPanicked => self.make_again(&ledger),
            };
            if matches!(left, Left::ToRenew) && state.is_some() {
                ledger.recycled.add(1);
            }
            ledger.serving.set(u64::from(state.is_some()));
            self.room.crew.renewed(self.index);
        }
    }

    /// Runs tasks until told to end or to renew its state, or until one panics.
    fn work(&self, context: &mut TaskContext<T, R, W, O>, seat: &mut Seat, ledger: &OpenLedger) -> Left {
        // One task's end is the next one's start, unless there was a wait between them.
        let mut clock: Option<Stamp> = None;
        let queue = &self.room.queue;
        let mut patience = Patience::new();
        let mut left_to_run =
            self.max_tasks.map_or(u64::MAX, |(tasks, grace)| tasks.saturating_add(fastrand::u64(0..=grace)));
        loop {
            let task = match queue.take(seat) {
                Some(task) => task,
                None => {
                    clock = None;
                    match self.wait(seat, &mut patience) {
                        Next::Run(task) => task,
                        Next::Leave(left) => return left,
                    }
                }
            };
            queue.taken();
            let started = clock.unwrap_or_else(Stamp::now);
            let queued_at = task.ticket.queued_at;
            let Some(ready) = self.begin(context, task, started, ledger) else { continue };
            let (ended, panicked) = self.run_ready(context, ready, ledger);
            if let Some(clocks) = &self.clocks {
                clocks.record(self.index, started.since(queued_at), ended.since(started));
            }
            if panicked {
                return Left::TaskPanicked;
            }
            clock = Some(ended);
            left_to_run -= 1;
            if left_to_run == 0 || self.room.crew.renewals.takes_turn(self.index) {
                return Left::ToRenew;
            }
        }
    }

    /// Blocks until there is something to do.
    fn wait(&self, seat: &mut Seat, patience: &mut Patience) -> Next<T, R> {
        let Room { queue, crew, .. } = &*self.room;
        let look = || {
            // First, since who offered the turn may have woken nobody else.
            if !crew.is_over() && crew.renewals.takes_turn(self.index) {
                return Some(Next::Leave(Left::ToRenew));
            }
            match queue.take(seat) {
                Some(task) => Some(Next::Run(task)),
                None => {
                    queue.starved();
                    crew.is_over().then_some(Next::Leave(Left::ToldToEnd))
                }
            }
        };
        crew.idle.wait(self.index, patience, look, || queue.is_empty())
    }

    /// Shows that the task has started, unless it is not to.
    fn begin(
        &self,
        context: &mut TaskContext<T, R, W, O>,
        task: Task<T, R>,
        started: Stamp,
        ledger: &OpenLedger,
    ) -> Option<Ready<T>> {
        let Task { job, ticket, extra } = task;
        let (attempt, deadline) = extra.as_ref().map_or((1, None), |extra| (extra.attempt, extra.deadline));
        let info = &mut context.info;
        (info.id, info.submitter) = (ticket.id, ticket.reply_to.number);
        (info.attempt, info.deadline) = (attempt, deadline);
        info.is_last_attempt = extra.as_ref().is_none_or(|extra| extra.other_attempt().is_none());

        let crew = &self.room.crew;
        let worker_index = self.index as u32;
        let look_closer = crew.start(self.index, Started { ticket, worker_index, started, deadline, progress: None });
        let not_to_run = match deadline {
            Some(deadline) if Stamp::from(deadline) <= started => Some(Outcome::TimedOut),
            _ if look_closer && crew.is_to_cancel(self.index) => Some(Outcome::Cancelled),
            _ if look_closer && crew.is_expired() => Some(Outcome::Abandoned),
            _ => None,
        };
        if look_closer && crew.take_if_decided(self.index) {
            // Its submitter, or a shutdown, has seen to the outcome.
        } else if let Some(outcome) = not_to_run {
            if let Ending::Decided(decided) = crew.end(self.index, Ended::Task(outcome), None, ledger) {
                crew.announce(decided, ledger);
            }
        } else {
            crew.observer.tell(|observer| observer.task_started(info.id, self.index));
            return Some(Ready { job, extra });
        }
        // Their own drop may panic.
        let _ = catch(|| drop((job, extra)));
        None
    }

    /// Runs a task and sends its outcome. When it ended, and whether it may have left the state half changed.
    fn run_ready(&self, context: &mut TaskContext<T, R, W, O>, ready: Ready<T>, ledger: &OpenLedger) -> (Stamp, bool) {
        let Ready { job, mut extra } = ready;
        let touches_state = matches!(job, Job::OnTask(_));
        // For the next attempt, if there is one.
        let mut kept = None;
        ledger.running.set(1);
        let returned = catch(|| match job {
            Job::OnTask(payload) => {
                kept = extra.as_ref().and_then(|extra| extra.keep(&payload));
                (self.hooks.on_task)(context, payload).map(|result| Ended::Task(Outcome::Done(result)))
            }
            Job::Closure(closure) => Ok(Ended::Closure(closure())),
        });
        let ended = Stamp::now();
        ledger.running.set(0);

        let mut panic_message = None;
        let outcome = match returned {
            Ok(Ok(ended)) => ended,
            Ok(Err(error)) => match (&mut kept, &mut extra) {
                _ if error.is::<TakenAway>() => Ended::Task(Outcome::Failed(error)),
                (Some(_), Some(next)) if self.is_worth_another(next, &error, ended) => {
                    self.tell_of_attempt(context, &error, Some(ended));
                    let before = next.last_error.replace(error);
                    let _ = catch(|| drop(before));
                    if let Some(payload) = kept {
                        self.try_again_later(payload, extra, ledger);
                    }
                    return (ended, false);
                }
                _ => {
                    self.tell_of_attempt(context, &error, None);
                    Ended::Task(Outcome::Failed(error))
                }
            },
            Err(message) => {
                panic_message = Some((self.name(context.info.id), foreign(&message)));
                Ended::Task(Outcome::Panicked(message))
            }
        };
        self.finish(context.info.deadline, outcome, ended, ledger);
        // Their own drop may panic, and is nothing to the state.
        if kept.is_some() || extra.is_some() {
            let _ = catch(|| drop((kept, extra)));
        }
        if let Some((name, message)) = &panic_message {
            self.log_panic(name, message);
            self.room.crew.observer.tell(|observer| observer.task_worker_panicked(self.index, message));
        }
        (ended, panic_message.is_some() && touches_state)
    }

    fn finish(&self, deadline: Option<Instant>, outcome: Ended<R>, ended: Stamp, ledger: &OpenLedger) {
        let (outcome, mut too_late) = in_time(deadline, outcome, ended);
        let crew = &self.room.crew;
        let why = crew.why(&outcome);
        match crew.end(self.index, outcome, Some(ended), ledger) {
            Ending::Decided(decided) => crew.announce(decided.because(why), ledger),
            Ending::Later => too_late = None,
            Ending::Late(outcome) => too_late = too_late.or(Some(outcome)),
        }
        if let Some(outcome) = too_late {
            ledger.late.add(1);
            // A result's own drop may panic.
            let _ = catch(|| drop(outcome));
        }
    }

    /// What panicked was beside the task itself; its outcome must not be lost with it.
    fn end_panicked(&self, info: &TaskInfo<T, R, O>, message: &str, ledger: &OpenLedger) {
        ledger.running.set(0);
        let name = self.name(info.id);
        let panicked = Ended::Task(Outcome::Panicked(message.to_owned()));
        if let Ending::Decided(decided) = self.room.crew.end(self.index, panicked, None, ledger) {
            self.room.crew.announce(decided.because(Some(message.to_owned())), ledger);
        }
        self.log_panic(&name, &foreign(message));
    }

    fn is_worth_another(&self, extra: &Extra<T>, error: &anyhow::Error, now: Stamp) -> bool {
        let has_time = extra.deadline.is_none_or(|deadline| Stamp::from(deadline) > now);
        // The last is users' code, which may panic: then it is not.
        has_time
            && !self.room.crew.is_draining()
            && !self.room.has_many_delayed()
            && extra.retry.as_ref().is_some_and(|retry| catch(|| retry.retry.is_worth_it(error)).unwrap_or(false))
    }

    /// Logs that an attempt has failed, and tells the observer if there will be another after this one, which ended then.
    #[cold]
    fn tell_of_attempt(&self, context: &TaskContext<T, R, W, O>, error: &anyhow::Error, another_after: Option<Stamp>) {
        let (info, crew) = (&context.info, &self.room.crew);
        let is_observed = another_after.is_some() && crew.observer.is_there();
        if !is_observed && !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let Some(reply_to) = crew.reply_address(self.index) else { return };
        // The text of an error is users' code, and so is the logger.
        let Ok(why) = catch(|| format!("{error:#}")) else { return };
        let name = Named { id: info.id, of: reply_to.label.as_ref() };
        let _ = catch(|| log::debug!("{name}: attempt {} failed: {}", info.attempt, foreign(&why)));
        if is_observed {
            let run = another_after.and_then(|ended| crew.run_of(self.index, ended));
            let ran = run.map(|run| (self.index as u32, run));
            let ended = told(info.id, OutcomeKind::Failed, Some(&why), &reply_to, ran);
            crew.observer.tell(|observer| observer.attempt_failed(&ended, info.attempt));
        }
    }

    /// Has the timer queue the task for its next attempt, unless somebody has decided its outcome.
    fn try_again_later(&self, payload: T, extra: Option<Box<Extra<T>>>, ledger: &OpenLedger) {
        let Some(Started { ticket, .. }) = self.room.crew.withdraw(self.index) else {
            ledger.late.add(1);
            return drop(catch(|| drop((payload, extra))));
        };
        ledger.retried.add(1);
        let now = Instant::now();
        let mut task = Box::new(Task { job: Job::OnTask(payload), ticket, extra });
        let (due, place) =
            task.extra.as_mut().map_or((now, Place::default()), |extra| (extra.next_attempt(now), extra.place));
        self.room.delay(task, place, due, ledger);
    }

    fn make(&self) -> anyhow::Result<W> {
        catch(|| (self.hooks.state.make)(self.index))
            .unwrap_or_else(|message| Err(anyhow::anyhow!("it panicked: {message}")))
    }

    /// Makes a fresh state, for as long as it takes; the others serve meanwhile.
    fn make_again(&self, ledger: &OpenLedger) -> Option<W> {
        let mut retry = FIRST_RETRY;
        loop {
            // Fenced, since an error's text is users' code too, and so is the logger.
            if let Ok(Some(state)) = catch(|| self.try_to_make(retry, ledger)) {
                return Some(state);
            }
            if self.room.crew.is_over_within(retry) {
                return None;
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    fn try_to_make(&self, retry: Duration, ledger: &OpenLedger) -> Option<W> {
        let error = match self.make() {
            Ok(state) => return Some(state),
            Err(error) => error,
        };
        ledger.state_failures.add(1);
        let error = foreign(format_args!("{error:#}"));
        log::error!("task worker {}: its state cannot be made again, next try in {retry:?}: {error}", self.index);
        None
    }

    /// Gives the state up: to the stop hook, but for one that a panic may have left half changed.
    fn stop(&self, state: W, left: &Left) {
        let stopped = match (left, &self.hooks.state.stop) {
            (Left::ToldToEnd | Left::ToRenew, Some(stop)) => catch(|| stop(self.index, state)),
            _ => catch(|| drop(state)),
        };
        if let Err(message) = stopped {
            log::warn!("task worker {}: panicked when it gave its state up: {}", self.index, foreign(message));
        }
        self.room.crew.observer.tell(|observer| observer.task_worker_stopped(self.index));
    }

    /// The task that runs, for the log.
    fn name(&self, id: TaskId) -> String {
        let reply_to = self.room.crew.reply_address(self.index);
        let of = reply_to.as_ref().and_then(|reply_to| reply_to.label.as_ref());
        Named { id, of }.to_string()
    }

    fn log_panic(&self, name: &str, message: &str) {
        if let Some(held_back) = self.room.crew.panic_log.permit() {
            // A logger may panic too.
            let _ = catch(|| log::error!("{name} panicked: {message} ({held_back} more panics since the last line)"));
        }
    }
}

impl<T> Extra<T> {
    /// Counts an attempt that has failed, and says when the next one is due.
    fn next_attempt(&mut self, now: Instant) -> Instant {
        let pause = self.retry.as_ref().map(|retry| retry.retry.pause(self.attempt, fastrand::f64()));
        self.attempt += 1;
        far(now, pause.unwrap_or_default())
    }

    /// How the task goes on if this attempt fails, if there may be another.
    fn other_attempt(&self) -> Option<&RetryOf<T>> {
        self.retry.as_ref().filter(|retry| retry.retry.goes_on_after(self.attempt))
    }

    /// A copy of the payload for the next attempt, if there may be one.
    fn keep(&self, payload: &T) -> Option<T> {
        Some((self.other_attempt()?.clone)(payload))
    }
}

/// As the system shows it, which has room for 15 bytes. All threads of the pool have the same name otherwise.
fn name_thread(index: usize) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Ok(name) = std::ffi::CString::new(format!("br-task-{index}")) {
        let _ = rustix::thread::set_name(&name);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = index;
}

/// Says that a loop has ended, however it did.
struct LeavesCrew<R> {
    crew: Arc<Crew<R>>,
    index: usize,
}

impl<R> Drop for LeavesCrew<R> {
    fn drop(&mut self) {
        self.crew.renewed(self.index);
        self.crew.left();
    }
}
