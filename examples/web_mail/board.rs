//! What has become of each mail, and who watches that.

use std::collections::{BTreeMap, VecDeque};

use backroom::{Connection, SendError, ServerHandle, TaskId};
use parking_lot::Mutex;
use serde::Serialize;

/// The user that connections are bound to which watch.
const WATCHERS: &str = "watchers";
/// So many mails that are sent, or have failed, are shown.
const ENDED_SHOWN: usize = 100;

#[derive(Default)]
pub(crate) struct Board(Mutex<Mails>);

#[derive(Default)]
struct Mails {
    mails: BTreeMap<u64, Mail>,
    ended: VecDeque<u64>,
    /// The number of the latest.
    last: u64,
    /// Of so many a task worker has begun the first attempt. They are taken in turn, so each mail that is queued waits
    /// for as many as its number says, less these, less itself.
    begun: u64,
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
pub(crate) enum State {
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

/// What watchers are sent: some mails, all of them at first, and how many have begun.
#[derive(Serialize)]
struct Event<'a> {
    mails: Vec<&'a Mail>,
    begun: u64,
}

/// A mail that was accepted.
#[derive(Serialize)]
pub(crate) struct Receipt {
    task: String,
    number: u64,
    ahead: u64,
}

pub(crate) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("text and numbers can be written as JSON")
}

impl Board {
    /// Adds a mail if `submit`, which is given its number, has it accepted.
    pub(crate) fn add<E>(
        &self,
        server: &ServerHandle,
        to: String,
        subject: String,
        submit: impl FnOnce(u64) -> Result<TaskId, E>,
    ) -> Result<Receipt, E> {
        // Held meanwhile, so that the task finds the mail here however soon it begins.
        let mut mails = self.0.lock();
        let number = mails.last + 1;
        let task = submit(number)?.to_string();
        mails.last = number;
        mails.mails.insert(number, Mail { number, task: task.clone(), to, subject, state: State::Queued });
        mails.publish(server, number);
        Ok(Receipt { task, number, ahead: number - mails.begun - 1 })
    }

    pub(crate) fn set(&self, server: &ServerHandle, number: u64, state: State) {
        let mut mails = self.0.lock();
        if matches!(state, State::Sending { attempt: 1 }) {
            mails.begun += 1;
        }
        let has_ended = matches!(state, State::Sent | State::Failed { .. });
        if let Some(mail) = mails.mails.get_mut(&number) {
            mail.state = state;
        }
        mails.publish(server, number);
        if has_ended {
            mails.forget_old(number);
        }
    }

    /// Sends `head` and all that is known, and from then on what changes.
    pub(crate) fn watch<T: 'static, R: 'static, S: 'static>(
        &self,
        conn: &mut Connection<T, R, S>,
        head: &[u8],
    ) -> Result<(), SendError> {
        // Nothing changes between the two.
        let mails = self.0.lock();
        conn.send([head, mails.event(mails.mails.values()).as_bytes()].concat())?;
        conn.bind(WATCHERS);
        Ok(())
    }

    /// All that is known, as JSON.
    pub(crate) fn to_json(&self) -> String {
        let mails = self.0.lock();
        mails.json(mails.mails.values())
    }
}

impl Mails {
    /// Tells all who watch of this mail. The lock is held, so that they are told everything in its order; nobody waits
    /// for them, since sending does not block. Who takes too little is dropped, and its browser comes back.
    fn publish(&self, server: &ServerHandle, number: u64) {
        let event = self.event(self.mails.get(&number));
        for slow in server.multicast(server.connections_of(WATCHERS), event).refused {
            server.abort(slow);
        }
    }

    fn event<'a>(&self, mails: impl IntoIterator<Item = &'a Mail>) -> String {
        format!("data: {}\n\n", self.json(mails))
    }

    fn json<'a>(&self, mails: impl IntoIterator<Item = &'a Mail>) -> String {
        let event = Event { mails: mails.into_iter().collect(), begun: self.begun };
        to_json(&event)
    }

    fn forget_old(&mut self, ended: u64) {
        self.ended.push_back(ended);
        let forgotten = self.ended.len().saturating_sub(ENDED_SHOWN);
        for oldest in self.ended.drain(..forgotten) {
            self.mails.remove(&oldest);
        }
    }
}
