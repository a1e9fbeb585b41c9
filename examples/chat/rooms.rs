//! Who is in which room, and what was said there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use backroom::{ConnectionId, SendError, ServerHandle};
use parking_lot::Mutex;

/// The room everybody begins in. Its history is kept when it is empty; that of others is not.
pub(crate) const LOBBY: &str = "lobby";
/// So many names are shown where there are more.
const NAMES_SHOWN: usize = 50;
/// So many bytes of what was said before, at most: a small part of what may wait for one.
const MAX_HISTORY: usize = 32 * 1024;
/// In a room with more members, nobody wants to read who comes and goes.
const MEMBERS_ANNOUNCED: usize = 200;

/// Something that happens in a room: a task. Tasks of one room must run one after the other.
pub(crate) struct Errand {
    pub(crate) room: Arc<str>,
    pub(crate) step: Step,
}

pub(crate) enum Step {
    Enter(ConnectionId, Arc<str>),
    Say(Arc<str>, String),
    Rename(ConnectionId, Arc<str>),
    /// Shows this member who is there.
    Who(ConnectionId),
    Leave(ConnectionId),
}

pub(crate) struct Rooms {
    rooms: Mutex<HashMap<Arc<str>, Room>>,
    /// How many messages those who enter are shown.
    history: usize,
}

#[derive(Default)]
struct Room {
    members: BTreeMap<ConnectionId, Arc<str>>,
    said: VecDeque<Arc<str>>,
}

impl Rooms {
    pub(crate) fn new(history: usize) -> Rooms {
        Rooms { rooms: Mutex::default(), history }
    }

    /// Runs a task. The lock is held while a room changes, and not while anybody is sent to.
    pub(crate) fn run(&self, server: &ServerHandle, errand: Errand) {
        let Errand { room, step } = errand;
        match step {
            Step::Enter(id, name) => {
                let greeting = {
                    let mut rooms = self.rooms.lock();
                    let entered = rooms.entry(Arc::clone(&room)).or_default();
                    let greeting = entered.greeting(&room);
                    entered.members.insert(id, Arc::clone(&name));
                    greeting
                };
                show(server, id, &greeting);
                self.announce(server, &room, format!("* {name} enters\n"));
            }
            Step::Say(name, text) => {
                let line = format!("{name}: {text}\n");
                self.change(&room, |room| room.remember(&line, self.history));
                self.tell(server, &room, line);
            }
            Step::Rename(id, name) => {
                let renamed = |room: &mut Room| Some(std::mem::replace(room.members.get_mut(&id)?, Arc::clone(&name)));
                if let Some(before) = self.change(&room, renamed).flatten() {
                    self.announce(server, &room, format!("* {before} is now {name}\n"));
                }
            }
            Step::Who(id) => {
                if let Some(names) = self.change(&room, |here| here.names()) {
                    show(server, id, &format!("* in {room}: {names}\n"));
                }
            }
            Step::Leave(id) => {
                if let Some(name) = self.change(&room, |room| room.members.remove(&id)).flatten() {
                    self.announce(server, &room, format!("* {name} leaves\n"));
                }
                let mut rooms = self.rooms.lock();
                if &*room != LOBBY && rooms.get(&room).is_some_and(|room| room.members.is_empty()) {
                    rooms.remove(&room);
                }
            }
        }
    }

    /// How many are in each room, for the largest rooms.
    pub(crate) fn sizes(&self) -> Vec<(Arc<str>, usize)> {
        let mut sizes: Vec<_> =
            self.rooms.lock().iter().map(|(name, room)| (Arc::clone(name), room.members.len())).collect();
        sizes.sort_by(|(name, size), (other, others)| others.cmp(size).then_with(|| name.cmp(other)));
        sizes.truncate(NAMES_SHOWN);
        sizes
    }

    /// Whether all who are there are told who comes and goes.
    pub(crate) fn is_announced(&self, room: &Arc<str>) -> bool {
        self.change(room, |room| room.members.len()).is_some_and(|members| members <= MEMBERS_ANNOUNCED)
    }

    /// `None` where there is no such room.
    fn change<X>(&self, room: &Arc<str>, change: impl FnOnce(&mut Room) -> X) -> Option<X> {
        self.rooms.lock().get_mut(room).map(change)
    }

    fn announce(&self, server: &ServerHandle, room: &Arc<str>, line: String) {
        if self.is_announced(room) {
            self.tell(server, room, line);
        }
    }

    /// Sends to all members. Who has not taken so much of what was said before that no more may wait is dropped, since
    /// a chat with holes in it is worse than none; and who is found to be gone has left, which is said in turn.
    fn tell(&self, server: &ServerHandle, room: &Arc<str>, line: String) {
        let mut lines = VecDeque::from([line]);
        while let Some(line) = lines.pop_front() {
            let members = self.change(room, |room| room.members.keys().copied().collect::<Vec<_>>());
            for (id, why) in server.multicast(members.unwrap_or_default(), line).refused {
                if why != SendError::Closed {
                    log::info!("connection {id} takes too little of what is said, and is dropped");
                    server.abort(id);
                }
                if let Some(name) = self.change(room, |room| room.members.remove(&id)).flatten() {
                    lines.extend(self.is_announced(room).then(|| format!("* {name} leaves\n")));
                }
            }
        }
    }
}

/// Sends to one. Who takes so little that not even this may wait is about to be dropped by the next line.
fn show(server: &ServerHandle, id: ConnectionId, text: &str) {
    let _ = server.send(id, text);
}

impl Room {
    /// Where one is, with whom, and as much of what was said last as is good for somebody who has just come.
    fn greeting(&self, name: &str) -> String {
        let mut greeting = match self.members.len() {
            0 => format!("* You are in {name}, alone.\n"),
            _ => format!("* You are in {name} with {}.\n", self.names()),
        };
        let mut room_left = MAX_HISTORY;
        let fits = |line: &&Arc<str>| {
            room_left = room_left.saturating_sub(line.len());
            room_left > 0
        };
        let shown = self.said.iter().rev().take_while(fits).count();
        if shown > 0 {
            greeting.push_str("* Said before you came:\n");
            self.said.iter().skip(self.said.len() - shown).for_each(|line| greeting.push_str(line));
        }
        greeting
    }

    fn remember(&mut self, line: &str, most: usize) {
        self.said.push_back(line.into());
        while self.said.len() > most {
            self.said.pop_front();
        }
    }

    fn names(&self) -> String {
        let shown: Vec<&str> = self.members.values().map(|name| &**name).take(NAMES_SHOWN).collect();
        match self.members.len() - shown.len() {
            0 => shown.join(", "),
            more => format!("{} and {more} more", shown.join(", ")),
        }
    }
}
