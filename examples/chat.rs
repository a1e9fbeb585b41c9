//! A chat with rooms: `cargo run --release --example chat`, then `nc 127.0.0.1 9502` in two terminals.
//!
//! Whoever says something only hands it over: a task sends it to the members of the room, however many they are. All
//! tasks of one room run on the same task worker, one after the other, so that everybody there reads the same things
//! in the same order, and what was said before they came just once. A member who takes too little of it is dropped,
//! and holds up nobody.
//!
//! With `--features tls` it speaks TLS as well: `--tls-listen 127.0.0.1:9503`, and
//! `openssl s_client -quiet -connect 127.0.0.1:9503`.

mod common;
#[path = "chat/rooms.rs"]
mod rooms;
#[cfg(feature = "tls")]
#[path = "chat/tls.rs"]
mod tls;

use std::collections::HashSet;
use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use backroom::{CloseReason, Framing, Limits, Listener, Server, TaskError, TaskOptions};
use clap::Parser;
use common::say;
use parking_lot::Mutex;
use rooms::{Errand, LOBBY, Rooms, Step};

/// A chat with rooms, for nc and openssl s_client
#[derive(Parser)]
#[command(name = "chat", args_override_self = true)]
struct Options {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:9502")]
    listen: String,
    #[cfg(feature = "tls")]
    #[command(flatten)]
    tls: tls::TlsOptions,
    /// How many threads send what is said
    #[arg(long, default_value_t = 4)]
    task_workers: usize,
    /// How many messages those who enter a room are shown
    #[arg(long, default_value_t = 20)]
    history: usize,
    /// How many bytes may wait for a member before it is dropped
    #[arg(long, default_value_t = 256 * 1024)]
    max_outbox: usize,
}

/// What all connections and all tasks have in common.
struct Chat {
    /// In small letters, since nobody should be mistaken for another.
    names: Mutex<HashSet<String>>,
    rooms: Rooms,
}

/// The session: who a connection is, and where.
struct Guest {
    chat: Arc<Chat>,
    name: Arc<str>,
    room: Arc<str>,
}

type Connection = backroom::Connection<Errand, (), Guest>;

impl Chat {
    /// Gives the old name back and takes the new one, unless somebody has it.
    fn rename(&self, from: &str, to: &str) -> bool {
        let (from, to) = (from.to_lowercase(), to.to_lowercase());
        let mut names = self.names.lock();
        if from == to {
            return true;
        }
        let is_free = names.insert(to);
        if is_free {
            names.remove(&from);
        }
        is_free
    }
}

const MAX_LINE: usize = 4 * 1024;
const MAX_NAME: usize = 24;
const DRAIN_TIME: Duration = Duration::from_secs(5);

const HELP: &str = "\
* /join ROOM   go to another room
* /nick NAME   be called something else
* /who         who is here
* /rooms       which rooms there are
* /quit        leave
* Everything else is said to all in the room.
";

fn main() -> ExitCode {
    common::run("warn,chat=info", serve)
}

fn serve() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let signals = common::signals()?;
    let server = build(&options)?;
    for address in server.local_addrs() {
        say!("listening on {address}");
    }
    common::shut_down_at(signals, server.handle(), DRAIN_TIME);
    server.run()?;
    Ok(ExitCode::SUCCESS)
}

fn build(options: &Options) -> anyhow::Result<Server> {
    let chat = Arc::new(Chat { names: Mutex::default(), rooms: Rooms::new(options.history) });
    let chat_of_tasks = Arc::clone(&chat);
    // People listen for hours; the kernel's keepalive finds those whose machine is gone.
    let patient = Limits::new()
        .max_frame(MAX_LINE)
        .max_outbox(options.max_outbox)
        .idle_timeout(Duration::MAX)
        .silence_timeout(Duration::MAX);
    let builder = Server::builder()
        .session(move |_peer| Guest { chat: Arc::clone(&chat), name: "".into(), room: LOBBY.into() })
        .task_worker(move |_index| Ok(Arc::clone(&chat_of_tasks)))
        .task_worker_num(options.task_workers)
        .framing(Framing::lines())
        .limits(patient)
        .listen(Listener::tcp(options.listen.as_str()));
    #[cfg(feature = "tls")]
    let builder = match options.tls.listener()? {
        Some(listener) => builder.listen(listener),
        None => builder,
    };
    let server = builder
        .on_connect(welcome)
        .on_receive(|conn, line| match clean(line).as_str() {
            "" => Ok(()),
            line => match line.strip_prefix('/') {
                Some(command) => obey(conn, command),
                None => submit(conn, Step::Say(Arc::clone(&conn.session().name), line.to_owned())),
            },
        })
        .on_task(|cx, errand| {
            let (chat, task) = cx.parts();
            chat.rooms.run(task.server(), errand);
            Ok(())
        })
        .before_shutdown(|server| {
            server.broadcast("* The server closes. Goodbye.\n");
            Ok(())
        })
        .on_close(leave)
        .build()?;
    Ok(server)
}

fn welcome(conn: &mut Connection) -> anyhow::Result<()> {
    let name: Arc<str> = format!("guest-{}", conn.id()).into();
    conn.session_mut().name = Arc::clone(&name);
    conn.send(format!("* Welcome, {name}. /help says what there is beside talking.\n"))?;
    submit(conn, Step::Enter(conn.id(), name))
}

fn leave(conn: &mut Connection, _reason: &CloseReason) -> anyhow::Result<()> {
    let guest = conn.session();
    guest.chat.names.lock().remove(&guest.name.to_lowercase());
    submit(conn, Step::Leave(conn.id())).or_else(|error| match error.downcast_ref() {
        Some(TaskError::ShuttingDown) => Ok(()),
        _ => Err(error),
    })
}

fn obey(conn: &mut Connection, command: &str) -> anyhow::Result<()> {
    let (command, rest) = command.split_once(' ').unwrap_or((command, ""));
    match command {
        "join" => join(conn, rest.trim()),
        "nick" => rename(conn, rest.trim()),
        "who" => submit(conn, Step::Who(conn.id())),
        "rooms" => {
            let rooms = conn.session().chat.rooms.sizes().into_iter().fold(String::new(), |mut lines, (room, size)| {
                let _ = writeln!(lines, "* {room}: {size}");
                lines
            });
            Ok(conn.send(rooms)?)
        }
        "help" => Ok(conn.send(HELP)?),
        "quit" => {
            conn.send("* Goodbye.\n")?;
            conn.close();
            Ok(())
        }
        _ => Ok(conn.send("* That is no command; /help lists them.\n")?),
    }
}

fn join(conn: &mut Connection, room: &str) -> anyhow::Result<()> {
    let Some(room) = fit_for_a_name(room) else {
        return Ok(conn.send(format!("* A room is called by 1 to {MAX_NAME} letters, digits, - and _.\n"))?);
    };
    let room = room.to_lowercase();
    if room == *conn.session().room {
        return Ok(conn.send(format!("* You are in {room} already.\n"))?);
    }
    // The tasks of two rooms run beside one another, and nobody is to read what is said in both. What is typed meanwhile is
    // said where one goes.
    let left = std::mem::replace(&mut conn.session_mut().room, room.into());
    let leave = Errand { room: Arc::clone(&left), step: Step::Leave(conn.id()) };
    conn.with(TaskOptions::new().key(&left)).task_then(leave, |conn, _| {
        conn.resume();
        submit(conn, Step::Enter(conn.id(), Arc::clone(&conn.session().name)))
    })?;
    conn.pause();
    Ok(())
}

fn rename(conn: &mut Connection, name: &str) -> anyhow::Result<()> {
    let Some(name) = fit_for_a_name(name).filter(|name| !name.to_lowercase().starts_with("guest-")) else {
        let fit = format!("* A name has 1 to {MAX_NAME} letters, digits, - and _, and does not begin with guest-.\n");
        return Ok(conn.send(fit)?);
    };
    let guest = conn.session_mut();
    if !guest.chat.rename(&guest.name, name) {
        return Ok(conn.send(format!("* Somebody is called {name} already.\n"))?);
    }
    guest.name = name.into();
    if !guest.chat.rooms.is_announced(&guest.room) {
        conn.send(format!("* You are now {name}\n"))?;
    }
    submit(conn, Step::Rename(conn.id(), Arc::clone(&conn.session().name)))
}

/// Has it happen in the room of this guest, after all that was submitted for there before.
fn submit(conn: &mut Connection, step: Step) -> anyhow::Result<()> {
    let room = Arc::clone(&conn.session().room);
    conn.with(TaskOptions::new().key(&room)).task(Errand { room, step })?;
    Ok(())
}

/// Text for the terminals of others, without what would make these do something, or show it in another order or place.
fn clean(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line).replace('\t', " ");
    let moves_text =
        |char| matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{206f}');
    text.trim_end().chars().filter(|&char| !char.is_control() && !moves_text(char)).collect()
}

fn fit_for_a_name(name: &str) -> Option<&str> {
    let is_fit = |char: char| char.is_alphanumeric() || char == '-' || char == '_';
    ((1..=MAX_NAME).contains(&name.chars().count()) && name.chars().all(is_fit)).then_some(name)
}
