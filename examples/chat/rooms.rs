//! Who is in which room, and what was said there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;

use backroom::{ConnectionId, ServerHandle};
use parking_lot::Mutex;

/// The room everybody begins in. Its history is kept when it is empty; that of others is not.
pub(crate) const LOBBY: &str = "lobby";
/// So many names are shown where there are more.
const NAMES_SHOWN: usize = 50;
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
                let greeting = self.change(&room, |entered| {
                    let greeting = entered.greeting(&room);
                    entered.members.insert(id, Arc::clone(&name));
                    greeting
                });
                // Who is gone meanwhile has an errand that leaves behind this one.
                let _ = server.send(id, greeting);
                self.announce(server, &room, &format!("* {name} enters\n"));
            }
            Step::Say(name, text) => {
                let line = format!("{name}: {text}\n");
                self.change(&room, |room| room.remember(&line, self.history));
                self.tell(server, &room, &line);
            }
            Step::Rename(id, name) => {
                let before = self.change(&room, |room| room.members.insert(id, Arc::clone(&name)));
                if let Some(before) = before {
                    self.announce(server, &room, &format!("* {before} is now {name}\n"));
                }
            }
            Step::Who(id) => {
                let who = self.change(&room, |here| format!("* in {room}: {}\n", here.names()));
                let _ = server.send(id, who);
            }
            Step::Leave(id) => {
                if let Some(name) = self.change(&room, |room| room.members.remove(&id)) {
                    self.announce(server, &room, &format!("* {name} leaves\n"));
                }
                self.rooms.lock().retain(|name, room| &**name == LOBBY || !room.members.is_empty());
            }
        }
    }

    /// How many are in each room.
    pub(crate) fn sizes(&self) -> Vec<(Arc<str>, usize)> {
        let mut sizes: Vec<_> =
            self.rooms.lock().iter().map(|(name, room)| (Arc::clone(name), room.members.len())).collect();
        sizes.sort();
        sizes
    }

    fn change<X>(&self, room: &Arc<str>, change: impl FnOnce(&mut Room) -> X) -> X {
        change(self.rooms.lock().entry(Arc::clone(room)).or_default())
    }

    fn announce(&self, server: &ServerHandle, room: &Arc<str>, line: &str) {
        if self.change(room, |room| room.members.len()) <= MEMBERS_ANNOUNCED {
            self.tell(server, room, line);
        }
    }

    /// Sends to all members. Who has not taken so much of what was said before that no more may wait is dropped, since
    /// a chat with holes in it is worse than none.
    fn tell(&self, server: &ServerHandle, room: &Arc<str>, line: &str) {
        let members: Vec<_> = self.change(room, |room| room.members.keys().copied().collect());
        for slow in server.multicast(members, line).refused {
            if server.abort(slow) {
                log::info!("connection {slow} takes too little of what is said, and is dropped");
            }
        }
    }
}

impl Room {
    fn greeting(&self, name: &str) -> String {
        let mut greeting = match self.members.len() {
            0 => format!("* You are in {name}, alone.\n"),
            _ => format!("* You are in {name} with {}.\n", self.names()),
        };
        if !self.said.is_empty() {
            let _ = writeln!(greeting, "* Said before you came:");
            self.said.iter().for_each(|line| greeting.push_str(line));
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
