//! Attempts to send mails: by the task workers of the server, and when it has ended, of what waited for another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backroom::TaskPool;
use parking_lot::Mutex;

use crate::board::Board;
use crate::outgoing::{Failure, Mail, Outgoing, Where};

/// How long the last attempts may take, after all that the server had to finish.
const LAST_ATTEMPTS_TIME: Duration = Duration::from_secs(10);

/// How mails are sent.
#[derive(Clone)]
pub(crate) struct Delivery {
    pub(crate) to: Where,
    pub(crate) board: Arc<Board>,
    pub(crate) waiting: Arc<Mutex<BTreeMap<u64, Waiting>>>,
    pub(crate) task_workers: usize,
    pub(crate) slow: Duration,
}

/// A mail that waits for another attempt.
#[derive(Clone)]
pub(crate) struct Waiting {
    mail: Mail,
    /// That failed last.
    attempt: u32,
}

/// What each task worker owns.
pub(crate) struct Postman {
    outgoing: Outgoing,
    delivery: Delivery,
    /// When its last attempt must be over, if there is to be one.
    end: Option<Instant>,
}

impl Delivery {
    pub(crate) fn postman(&self) -> anyhow::Result<Postman> {
        self.postman_until(None)
    }

    fn postman_until(&self, end: Option<Instant>) -> anyhow::Result<Postman> {
        Ok(Postman { outgoing: Outgoing::open(&self.to)?, delivery: self.clone(), end })
    }

    /// Tries all that wait for another attempt once more, now that no task worker will; until the time is over, or the
    /// second signal has come.
    pub(crate) fn try_once_more(self, signals: &AtomicUsize) -> anyhow::Result<()> {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        let end = Instant::now() + LAST_ATTEMPTS_TIME;
        let goes_on = || signals.load(Ordering::Relaxed) < 2 && Instant::now() < end;
        if waiting.is_empty() || !goes_on() {
            return Ok(());
        }
        let task_workers = self.task_workers;
        let pool = TaskPool::builder()
            .task_worker(move |_index| self.postman_until(Some(end)))
            .task_worker_num(task_workers)
            .queue_capacity(waiting.len())
            .max_tasks_in_flight(waiting.len())
            .on_task(|cx, Waiting { mail, attempt }: Waiting| cx.worker().attempt(&mail, attempt + 1, true))
            .build()?;
        let mut submitter = pool.submitter();
        for mail in waiting.into_values() {
            submitter.task_then(mail, |_, _| Ok(()))?;
        }
        while submitter.tasks_in_flight() > 0 && goes_on() {
            submitter.run_finished_for(Duration::from_millis(50));
        }
        pool.shutdown(Duration::ZERO);
        Ok(())
    }
}

impl Postman {
    pub(crate) fn attempt(&mut self, mail: &Mail, attempt: u32, is_last: bool) -> anyhow::Result<()> {
        let Delivery { board, waiting, slow, .. } = &self.delivery;
        waiting.lock().remove(&mail.number);
        board.attempt_begins(mail.number, attempt);
        thread::sleep(*slow);
        let sent = self.outgoing.send(&mail.message, self.end);
        let is_another = !is_last && matches!(sent, Err(Failure::ForNow(_)));
        if is_another {
            waiting.lock().insert(mail.number, Waiting { mail: mail.clone(), attempt });
        }
        board.attempt_ended(mail.number, attempt, &sent, is_another);
        Ok(sent?)
    }
}
