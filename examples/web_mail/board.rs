//! What has become of each mail, and who watches that.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::OnceLock;

use backroom::{Connection, Observer, OutcomeKind, SendError, ServerHandle, TaskId};
use parking_lot::Mutex;
use serde::Serialize;

/// The user that connections are bound to which watch.
const WATCHERS: &str = "watchers";
/// So many may, since whoever posts a mail tells them all.
const MOST_WATCHERS: usize = 200;
/// So many mails are shown, the latest.
const SHOWN: usize = 200;
/// So many characters of what a mail server says.
const MAX_WHY: usize = 300;
/// So many that are sent, or have failed, are remembered.
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
    /// The number of the latest.
    last: u64,
    /// Of so many a task worker has begun the first attempt. They are taken in turn, so each mail that is queued waits
    /// for as many as its number says, less these, less itself.
    begun: u64,
    /// So many are to be tried again, and may be before those as well.
    retrying: u64,
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
            self.task_ended(id, how);
        }
        Some(Receipt { task, number, ahead })
    }

    pub(crate) fn attempt_begins(&self, number: u64, attempt: u32) {
        let mut mails = self.mails.lock();
        mails.begun += u64::from(attempt == 1);
        mails.set(number, State::Sending { attempt });
        self.publish(&mails, number);
    }

    /// Says why, in as many words as fit into a line or two; which is shown at once if there `is_another` to come, and with the end otherwise.
    pub(crate) fn attempt_failed(&self, number: u64, attempt: u32, why: String, is_another: bool) {
        let mut mails = self.mails.lock();
        let why = why.chars().take(MAX_WHY).collect();
        mails.set(number, State::Waiting { attempt, why });
        if is_another {
            self.publish(&mails, number);
        }
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
    fn task_ended(&self, id: TaskId, how: OutcomeKind) {
        if SUBMITS.get() {
            return ENDED_MEANWHILE.with_borrow_mut(|ended| ended.push((id, how)));
        }
        let mut mails = self.mails.lock();
        let Some(number) = mails.numbers.remove(&id) else { return };
        let why = match (how, mails.mails.get(&number).map(|mail| &mail.state)) {
            (OutcomeKind::Failed, Some(State::Waiting { why, .. })) => why.clone(),
            (OutcomeKind::Panicked, _) => "the task panicked".to_owned(),
            _ => "the server has shut down".to_owned(),
        };
        let end = if how == OutcomeKind::Done { State::Sent } else { State::Failed { why } };
        mails.set(number, end);
        self.publish(&mails, number);
        mails.forget_old(number);
    }
}

impl Mails {
    fn set(&mut self, number: u64, state: State) {
        let Some(mail) = self.mails.get_mut(&number) else { return };
        let is_retrying = |state: &State| u64::from(matches!(state, State::Waiting { .. }));
        self.retrying = self.retrying + is_retrying(&state) - is_retrying(&mail.state);
        mail.state = state;
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
