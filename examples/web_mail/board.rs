//! What has become of each mail, and who watches that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::OnceLock;

use backroom::{Connection, Observer, OutcomeKind, SendError, ServerHandle, TaskEnded, TaskId};
use parking_lot::Mutex;
use serde::Serialize;

use crate::outgoing::Failure;

/// The user that connections are bound to which watch.
const WATCHERS: &str = "watchers";
/// So many may, since whoever posts a mail tells them all.
const MOST_WATCHERS: usize = 200;
/// So many mails are shown, the latest.
const SHOWN: usize = 200;
/// So many characters of what a mail server says.
const MAX_WHY: usize = 300;
/// How many mails that have ended are remembered.
const ENDED_KEPT: usize = 100;

thread_local! {
    /// Whether this thread is submitting a task, with the mails locked.
    static SUBMITS: Cell<bool> = const { Cell::new(false) };
    /// Tasks that ended meanwhile, on this thread.
    static ENDED_MEANWHILE: RefCell<Vec<(TaskId, OutcomeKind)>> = const { RefCell::new(Vec::new()) };
}

/// Told by the tasks what they do, and by the library how each has ended: a panic and a shutdown are ends as well.
pub(crate) struct Board {
    mails: Mutex<Mails>,
    server: OnceLock<ServerHandle>,
    /// So many mails may be under way: queued, being sent, or to be tried again.
    most: usize,
}

#[derive(Default)]
struct Mails {
    mails: BTreeMap<u64, Mail>,
    /// Of those that have not ended.
    numbers: HashMap<TaskId, u64>,
    ended: VecDeque<u64>,
    /// A shutdown has ended these before it was decided what becomes of them.
    given_up: Vec<u64>,
    /// The number of the latest.
    last: u64,
    /// Of so many a task worker has begun the first attempt. They are taken in turn, so each mail that is queued waits
    /// for as many as its number says, less these, less itself.
    begun: u64,
    /// So many are to be tried again, and may be before those as well.
    retrying: u64,
    sent: u64,
    unknown: u64,
}

/// A mail as it is shown. Nothing in it is fit for HTML; the page takes it for text.
#[derive(Clone, Serialize)]
struct Mail {
    number: u64,
    task: String,
    to: String,
    subject: String,
    #[serde(flatten)]
    state: State,
}

#[derive(Clone, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum State {
    Queued,
    Sending {
        attempt: u32,
    },
    /// An attempt has failed, and another is to come.
    Waiting {
        attempt: u32,
        why: String,
    },
    Sent,
    Failed {
        why: String,
    },
    /// The mail server may have it or not.
    Unknown {
        why: String,
    },
}

/// What has become of all mails, at the end.
pub(crate) struct Report {
    pub(crate) accepted: u64,
    pub(crate) sent: u64,
    pub(crate) unknown: u64,
    /// What the shutdown has left of those that it found, one line for each that is not sent.
    pub(crate) left: Vec<String>,
}

/// What watchers are sent: some mails, the latest of them at first, and how many have begun, and are to be tried again.
#[derive(Serialize)]
struct Event<'a> {
    mails: Vec<&'a Mail>,
    begun: u64,
    retrying: u64,
}

/// A mail that was accepted.
#[derive(Serialize)]
pub(crate) struct Receipt {
    task: String,
    number: u64,
    ahead: u64,
}

impl Board {
    pub(crate) fn new(most: usize) -> Board {
        Board { mails: Mutex::default(), server: OnceLock::new(), most }
    }

    /// Watchers are sent to by this server from now on.
    pub(crate) fn open(&self, server: &ServerHandle) {
        let _ = self.server.set(server.clone());
    }

    /// Adds a mail, unless there are as many as may be, or `submit`, which is given its number, has it refused.
    pub(crate) fn add(
        &self,
        to: String,
        subject: String,
        submit: impl FnOnce(u64) -> Option<TaskId>,
    ) -> Option<Receipt> {
        // Held meanwhile, so that the task finds the mail here however soon it begins. What ends on this thread within
        // `submit`, in a shutdown that gives up, is put aside until then.
        let mut mails = self.mails.lock();
        if mails.numbers.len() >= self.most {
            return None;
        }
        let number = mails.last + 1;
        SUBMITS.set(true);
        let submitted = submit(number);
        SUBMITS.set(false);
        let id = submitted?;
        let task = id.to_string();
        mails.last = number;
        mails.numbers.insert(id, number);
        mails.mails.insert(number, Mail { number, task: task.clone(), to, subject, state: State::Queued });
        self.publish(&mails, number);
        let ahead = number.saturating_sub(mails.begun + 1) + mails.retrying;
        drop(mails);
        for (id, how) in ENDED_MEANWHILE.take() {
            self.ended(id, how);
        }
        Some(Receipt { task, number, ahead })
    }

    pub(crate) fn attempt_begins(&self, number: u64, attempt: u32) {
        let mut mails = self.mails.lock();
        mails.begun += u64::from(attempt == 1);
        mails.set(number, State::Sending { attempt });
        self.publish(&mails, number);
    }

    /// What has come of an attempt is shown at once if there `is_another` to come, and otherwise with the end of its task.
    pub(crate) fn attempt_ended(&self, number: u64, attempt: u32, sent: &Result<(), Failure>, is_another: bool) {
        let mut mails = self.mails.lock();
        let in_short = |failure: &Failure| failure.why().chars().take(MAX_WHY).collect();
        mails.set(
            number,
            match sent {
                Ok(()) => State::Sent,
                Err(failure @ Failure::Unknown(_)) => State::Unknown { why: in_short(failure) },
                Err(failure) if is_another => State::Waiting { attempt, why: in_short(failure) },
                Err(failure) => State::Failed { why: in_short(failure) },
            },
        );
        if is_another {
            self.publish(&mails, number);
        }
    }

    pub(crate) fn report(&self) -> Report {
        let mails = self.mails.lock();
        let given_up = || mails.given_up.iter().filter_map(|number| mails.mails.get(number));
        let sending = given_up().filter(|mail| matches!(mail.state, State::Sending { .. })).count() as u64;
        let left = given_up().filter_map(Mail::not_sent).collect();
        Report { accepted: mails.last, sent: mails.sent, unknown: mails.unknown + sending, left }
    }

    /// Sends `head` and what is known, and from then on what changes; `false` if too many watch already.
    pub(crate) fn watch<T: 'static, R: 'static, S: 'static>(
        &self,
        conn: &mut Connection<T, R, S>,
        head: &[u8],
    ) -> Result<bool, SendError> {
        // Nothing changes between the two.
        let mails = self.mails.lock();
        if conn.server().connections_of(WATCHERS).len() >= MOST_WATCHERS {
            return Ok(false);
        }
        conn.send([head, mails.event(mails.latest()).as_bytes()].concat())?;
        conn.bind(WATCHERS);
        Ok(true)
    }

    /// What is known, as JSON.
    pub(crate) fn to_json(&self) -> String {
        let mails = self.mails.lock();
        mails.json(mails.latest())
    }

    /// Tells all who watch of this mail. The lock is held, so that they are told everything in its order; sending does
    /// not block. Who takes too little is dropped, and its browser comes back.
    fn publish(&self, mails: &Mails, number: u64) {
        let Some(server) = self.server.get() else { return };
        let event = mails.event(mails.mails.get(&number));
        for (id, why) in server.multicast(server.connections_of(WATCHERS), event).refused {
            if why != SendError::Closed {
                server.abort(id);
            }
        }
    }
}

impl Observer for Board {
    fn task_ended(&self, ended: &TaskEnded<'_>) {
        match SUBMITS.get() {
            true => ENDED_MEANWHILE.with_borrow_mut(|meanwhile| meanwhile.push((ended.id, ended.how))),
            false => self.ended(ended.id, ended.how),
        }
    }
}

impl Board {
    fn ended(&self, id: TaskId, how: OutcomeKind) {
        let mut mails = self.mails.lock();
        let Some(number) = mails.numbers.remove(&id) else { return };
        let Some(mail) = mails.mails.get(&number) else { return };
        // Without an attempt that has ended for good, it was a shutdown that ended the task, or a panic.
        let interrupted = |why: &str| if how == OutcomeKind::Panicked { "the task panicked" } else { why }.to_owned();
        let end = match &mail.state {
            State::Queued => State::Failed { why: interrupted("the server has shut down") },
            State::Sending { .. } => State::Unknown { why: interrupted("the server has shut down meanwhile") },
            decided_or_waiting => decided_or_waiting.clone(),
        };
        let is_given_up = how != OutcomeKind::Panicked && !mail.state.is_decided();
        mails.set(number, end);
        self.publish(&mails, number);
        if is_given_up {
            mails.given_up.push(number);
        } else {
            mails.forget_old(number);
        }
    }
}

impl State {
    fn is_decided(&self) -> bool {
        matches!(self, State::Sent | State::Failed { .. } | State::Unknown { .. })
    }
}

impl Mail {
    /// Fit for a terminal; `None` if it is sent.
    fn not_sent(&self) -> Option<String> {
        let (what, why) = match &self.state {
            State::Sent => return None,
            State::Queued => ("not sent", "there was no time left"),
            State::Waiting { why, .. } | State::Failed { why } => ("not sent", why.as_str()),
            State::Sending { .. } => ("not known whether it was delivered", "there was no time left"),
            State::Unknown { why } => ("not known whether it was delivered", why.as_str()),
        };
        Some(format!("mail {} to {:?}: {what}: {why}", self.number, self.to))
    }
}

impl Mails {
    fn set(&mut self, number: u64, state: State) {
        let Some(mail) = self.mails.get_mut(&number) else { return };
        let before = std::mem::replace(&mut mail.state, state.clone());
        if let Some(count) = self.count_of(&before) {
            *count -= 1;
        }
        if let Some(count) = self.count_of(&state) {
            *count += 1;
        }
    }

    fn count_of(&mut self, state: &State) -> Option<&mut u64> {
        match state {
            State::Waiting { .. } => Some(&mut self.retrying),
            State::Sent => Some(&mut self.sent),
            State::Unknown { .. } => Some(&mut self.unknown),
            _ => None,
        }
    }

    fn latest(&self) -> impl Iterator<Item = &Mail> {
        self.mails.values().skip(self.mails.len().saturating_sub(SHOWN))
    }

    fn event<'a>(&self, mails: impl IntoIterator<Item = &'a Mail>) -> String {
        format!("data: {}\n\n", self.json(mails))
    }

    fn json<'a>(&self, mails: impl IntoIterator<Item = &'a Mail>) -> String {
        to_json(&Event { mails: mails.into_iter().collect(), begun: self.begun, retrying: self.retrying })
    }

    fn forget_old(&mut self, ended: u64) {
        self.ended.push_back(ended);
        let forgotten = self.ended.len().saturating_sub(ENDED_KEPT);
        for oldest in self.ended.drain(..forgotten) {
            self.mails.remove(&oldest);
        }
    }
}

pub(crate) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("text and numbers can be written as JSON")
}
