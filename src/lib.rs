//! An embeddable TCP server for programs that do not use async: a request never waits for slow work.
//!
//! Each connection has a worker thread of its own. What is slow, a mail to send or a file to convert, its callback
//! hands over as a [task](Connection::task) to a fixed pool of task workers, and goes on at once. The result comes back
//! to the very worker that asked, where a finish closure runs. The model is the task system of Swoole's server.
//!
//! ```
//! use backroom::Server;
//!
//! fn main() -> anyhow::Result<()> {
//!     let address = "127.0.0.1:9501";
//! #   let address = "127.0.0.1:0";
//!     Server::builder()
//!         .task_worker_num(4)
//!         .on_receive(|conn, data| {
//!             let id = conn.task(String::from_utf8_lossy(data).into_owned())?;
//!             println!("Dispatched async task: id={id}");
//!             Ok(())
//!         })
//!         .on_task(|cx, data| {
//!             println!("New async task [id={}]", cx.id());
//!             Ok(format!("{data} -> OK"))
//!         })
//!         .on_finish(|conn, done| {
//!             println!("Async task [{}] finished: {}", done.id(), done.into_result()?);
//! #           conn.server().shutdown(std::time::Duration::from_secs(10));
//!             Ok(())
//!         })
//! #       .on_start(|server| {
//! #           use std::io::Write;
//! #           Ok(std::net::TcpStream::connect(server.local_addr())?.write_all(b"a mail")?)
//! #       })
//!         .bind(address)?
//!         .run()?;
//!     Ok(())
//! }
//! ```
//!
//! What a task is given, `T`, and what it returns, `R`, are inferred from the closures.
//!
//! # The way of a request
//!
//! ```text
//!             ┌──────── worker of connection 17 (one thread) ─────────┐
//!  client ──▶ │ socket ▶ framing ▶ on_receive ── task(data) ──────────┼──▶ task queue (crossbeam MPMC)
//!             │                                                       │        │    one of task_worker_num threads
//!  client ◀── │ socket ◀ outbox ◀ on_finish ◀── outcome ◀─────────────┼── reply channel ◀─ on_task(cx, data) ◀─┘
//!             └───────────────────────────────────────────────────────┘
//! ```
//!
//! All callbacks of a connection run on its worker, one at a time, so what belongs to a connection needs no lock. Data
//! moves from owner to owner and is never serialised.
//!
//! # Sessions
//!
//! What belongs to a connection is its session. It is made on the connection's worker and never leaves it, so it needs no
//! lock and need not be `Send`. It is set before the callbacks that use it, since they know it by its type.
//!
//! ```
//! use std::io::{BufRead, BufReader, Write};
//! use std::net::TcpStream;
//!
//! use backroom::{Framing, Server};
//!
//! # fn main() -> anyhow::Result<()> {
//! let server = Server::builder::<(), ()>()
//!     .session(|_peer| 0u32) // how many lines this client has sent
//!     .framing(Framing::lines())
//!     .on_receive(|conn, line| {
//!         *conn.session_mut() += 1;
//!         let answer = format!("line {} has {} bytes\n", conn.session(), line.len());
//!         Ok(conn.send(answer)?)
//!     })
//!     .on_task(|_cx, ()| Ok(()))
//!     .bind("127.0.0.1:0")?;
//!
//! let (addr, handle) = (server.local_addr(), server.handle());
//! let running = std::thread::spawn(|| server.run());
//!
//! let mut client = BufReader::new(TcpStream::connect(addr)?);
//! client.get_mut().write_all(b"hello\nworlds\n")?;
//! let mut answers = String::new();
//! client.read_line(&mut answers)?;
//! client.read_line(&mut answers)?;
//! assert_eq!(answers, "line 1 has 5 bytes\nline 2 has 6 bytes\n");
//! # drop(client);
//! # handle.shutdown(std::time::Duration::from_secs(10));
//! # running.join().unwrap()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Task workers with a connection of their own
//!
//! Slow work mostly talks to somebody: a database, a mail server. Each task worker makes what it needs for that once, on
//! its own thread, and keeps it; after a panic, and when it is [recycled](ServerHandle::recycle), it makes it anew. So
//! four task workers have four connections to the database, however many clients there are.
//!
//! ```
//! use std::io::{BufRead, BufReader, Write};
//! use std::net::TcpStream;
//!
//! use backroom::{Framing, Server};
//!
//! # fn main() -> anyhow::Result<()> {
//! # let store = std::net::TcpListener::bind("127.0.0.1:0")?;
//! # let store_address = store.local_addr()?;
//! # std::thread::spawn(move || for client in store.incoming().flatten() {
//! #     std::thread::spawn(move || {
//! #         let mut answers = client.try_clone().unwrap();
//! #         BufReader::new(client).lines().map_while(Result::ok).for_each(|key| writeln!(answers, "<{key}>").unwrap());
//! #     });
//! # });
//! let server = Server::builder()
//!     .task_worker(move |_index| Ok(BufReader::new(TcpStream::connect(store_address)?)))
//!     .task_worker_num(4)
//!     .framing(Framing::lines())
//!     .on_receive(|conn, key| {
//!         conn.task(String::from_utf8(key.to_vec())?)?;
//!         Ok(())
//!     })
//!     .on_task(|cx, key| {
//!         let store = cx.worker();
//!         writeln!(store.get_mut(), "{key}")?;
//!         let mut value = String::new();
//!         store.read_line(&mut value)?;
//!         Ok(value)
//!     })
//!     .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
//!     .bind("127.0.0.1:0")?;
//! # let (addr, handle) = (server.local_addr(), server.handle());
//! # let running = std::thread::spawn(|| server.run());
//! # let mut client = BufReader::new(TcpStream::connect(addr)?);
//! # client.get_mut().write_all(b"k\n")?;
//! # let mut answer = String::new();
//! # client.read_line(&mut answer)?;
//! # assert_eq!(answer, "<k>\n");
//! # drop(client);
//! # handle.shutdown(std::time::Duration::from_secs(10));
//! # running.join().unwrap()?;
//! # Ok(())
//! # }
//! ```
//!
//! # How a task ends, and who hears of it
//!
//! Every accepted task has exactly one [`Outcome`]: it returned a result or an error, it panicked, its deadline came
//! first, it was cancelled, or a shutdown gave it up. Unless the task is one-way, the outcome reaches the finish
//! closure as a [`Finished`]; where the connection is gone by then, it is counted as orphaned. What comes after the
//! outcome is decided, such as the result of a task that was cancelled while it ran, is counted as late and is nothing
//! else.
//!
//! `on_finish` is for all tasks; a task may bring [a finish closure of its own](Connection::task_then) instead, which
//! stays on the connection's thread and may hold what is not `Send`. Where such a closure inside `on_receive` needs to
//! know the result's type, `on_task` comes first, with the type of its payload written out:
//!
//! ```
//! use backroom::{Framing, Outcome, Server};
//!
//! # use std::io::{Read, Write};
//! # fn main() -> anyhow::Result<()> {
//! let server = Server::builder()
//!     .framing(Framing::lines())
//!     .on_task(|_cx, number: i64| number.checked_mul(1 << 62).ok_or_else(|| anyhow::anyhow!("too large")))
//!     .on_receive(|conn, line| {
//!         let asked = String::from_utf8_lossy(line).into_owned();
//!         let number = asked.parse()?;
//!         conn.task_then(number, move |conn, done| {
//!             let answer = match done.into_outcome() {
//!                 Outcome::Done(product) => format!("{asked} becomes {product}\n"),
//!                 Outcome::Failed(error) => format!("{asked} does not work: {error}\n"),
//!                 other => format!("{asked} has ended otherwise: {other:?}\n"),
//!             };
//!             Ok(conn.send(answer)?)
//!         })?;
//!         Ok(())
//!     })
//!     .bind("127.0.0.1:0")?;
//! # let (addr, handle) = (server.local_addr(), server.handle());
//! # let running = std::thread::spawn(|| server.run());
//! # let mut client = std::net::TcpStream::connect(addr)?;
//! # client.write_all(b"2\n")?;
//! # client.shutdown(std::net::Shutdown::Write)?;
//! # let mut answer = String::new();
//! # client.read_to_string(&mut answer)?;
//! # assert_eq!(answer, "2 does not work: too large\n");
//! # handle.shutdown(std::time::Duration::from_secs(10));
//! # running.join().unwrap()?;
//! # Ok(())
//! # }
//! ```
//!
//! Results come in the order in which tasks end, and not in that of the requests, unless
//! [`results_in_order`](ServerBuilder::results_in_order) is set.
//!
//! # Tasks that are not like all others
//!
//! [`TaskOptions`] say which task worker runs a task, or that all of one [key](TaskOptions::key) run in order; with what
//! priority, until when, how much later, and how often it is tried. [`with`](Connection::with) takes them before any way
//! of submitting. A running task sees them as [`attempt`](TaskInfo::attempt) and [`expired`](TaskInfo::expired), and learns
//! from [`cancelled`](TaskInfo::cancelled) that nobody waits for it any more, because of a
//! [`cancel`](Connection::cancel), say.
//!
//! A task can give [results before its last](TaskInfo::finish), say [how far it has come](TaskInfo::progress), submit
//! [further tasks](TaskInfo::task), and [give its reply away](TaskInfo::finish_later) to whatever will know the result.
//! It cannot wait for another task: if all task workers did, none would be left to run it.
//!
//! # Waiting
//!
//! Where an answer cannot go on without a result, [`task_wait`](Connection::task_wait) blocks the connection's own
//! worker, and nobody else's. [`task_wait_multi`](Connection::task_wait_multi) waits for several, with one deadline, and
//! has a place for each result.
//!
//! ```
//! use std::time::Duration;
//!
//! use backroom::Server;
//!
//! # use std::io::{Read, Write};
//! # fn main() -> anyhow::Result<()> {
//! let server = Server::builder()
//!     .on_task(|_cx, part: &'static str| Ok(format!("<{part}>")))
//!     .on_receive(|conn, _request| {
//!         let parts = conn.task_wait_multi(vec!["head", "body"], Duration::from_secs(5));
//!         for part in parts {
//!             match part {
//!                 Ok(part) => conn.send(part)?,
//!                 Err(why) => conn.send(format!("(left out: {why})"))?,
//!             }
//!         }
//!         conn.close();
//!         Ok(())
//!     })
//!     .bind("127.0.0.1:0")?;
//! # let (addr, handle) = (server.local_addr(), server.handle());
//! # let running = std::thread::spawn(|| server.run());
//! # let mut client = std::net::TcpStream::connect(addr)?;
//! # client.write_all(b"?")?;
//! # let mut answer = String::new();
//! # client.read_to_string(&mut answer)?;
//! # assert_eq!(answer, "<head><body>");
//! # handle.shutdown(Duration::from_secs(10));
//! # running.join().unwrap()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where clients come in
//!
//! A [`Listener`] is a TCP address, a Unix socket, or a socket that is open already; a server has as many as it is given
//! by [`listen`](ServerBuilder::listen), each with its own [`Framing`], [`Limits`], [`SocketOptions`] and TLS. What comes
//! is cut into frames: lines, length-prefixed, or as a [`Decoder`] of yours says. With the feature `tls`, a listener
//! speaks TLS by rustls. One that a proxy stands in front of believes its [header](ProxyProtocol). Datagrams
//! come to [`on_packet`](ServerBuilder::on_packet).
//!
//! ```
//! use backroom::{Framing, Listener, Server};
//!
//! # fn main() -> anyhow::Result<()> {
//! let server = Server::builder::<(), ()>()
//!     .listen(Listener::tcp("127.0.0.1:0").framing(Framing::lines()))
//!     .listen(Listener::tcp("127.0.0.1:0").framing(Framing::fixed(8)).name("eights"))
//!     .listen_udp("127.0.0.1:0")
//!     .on_receive(|conn, data| Ok(conn.send(format!("{}: {} bytes\n", conn.listener(), data.len()))?))
//!     .on_packet(|socket, from, data| Ok(socket.send_to(from, data)?))
//!     .on_task(|_cx, ()| Ok(()))
//!     .build()?;
//! assert_eq!(server.local_addrs().len(), 3);
//! # use std::io::{BufRead, BufReader, Write};
//! # let eights = std::net::TcpStream::connect(&server.local_addrs()[1])?;
//! # let handle = server.handle();
//! # let running = std::thread::spawn(|| server.run());
//! # let mut client = BufReader::new(eights);
//! # client.get_mut().write_all(b"12345678")?;
//! # let mut answer = String::new();
//! # client.read_line(&mut answer)?;
//! # assert_eq!(answer, "eights: 8 bytes\n");
//! # drop(client);
//! # handle.shutdown(std::time::Duration::from_secs(10));
//! # running.join().unwrap()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Sending, and reaching other connections
//!
//! A callback [sends](Connection::send) to its own client; tasks and other threads send [by id](ServerHandle::send), to
//! [several](ServerHandle::multicast), or to [all at once](ServerHandle::broadcast).
//! [`Remote::with_connection`] runs a closure on the worker of another
//! connection, where its session is. [`ServerHandle::connections`] lists them, and
//! [`connections_of`](ServerHandle::connections_of) finds those that are [bound](Connection::bind) to a user.
//! [`after`](Connection::after) and [`every`](Connection::every) run closures later. `examples/chat.rs` is a chat made of
//! these.
//!
//! # Limits
//!
//! [`task`](Connection::task) never blocks. When as many tasks wait as
//! [`queue_capacity`](ServerBuilder::queue_capacity) allows, the connection that submitted receives no further frame until
//! half of them are done and it is its turn: a flooding client is slowed down by TCP, and everything else on that
//! connection goes on. The same holds at [`max_tasks_in_flight`](ServerBuilder::max_tasks_in_flight), until one is done.
//! Who would rather be refused says so with [`when_queue_full`](ServerBuilder::when_queue_full), or uses
//! [`try_task`](Connection::try_task), whose error hands the payload back.
//!
//! A client that takes too little, sends too slowly, too much or nothing at all runs into one of the [`Limits`], which
//! closes its connection and no other; [`on_close`](ServerBuilder::on_close) is told which. docs/LIMITS.md has all limits
//! in one table.
//!
//! ```
//! use std::time::Duration;
//!
//! use backroom::{CloseReason, Framing, Limits, Server};
//!
//! # use std::io::{Read, Write};
//! # fn main() -> anyhow::Result<()> {
//! # let (told, reasons) = std::sync::mpsc::channel();
//! let server = Server::builder::<(), ()>()
//!     .queue_capacity(1_000)
//!     .max_connections(500)
//!     .framing(Framing::lines())
//!     .limits(Limits::new().max_frame(16).idle_timeout(Duration::from_secs(60)))
//!     .on_receive(|conn, _line| Ok(conn.send("thank you\n")?))
//!     .on_task(|_cx, ()| Ok(()))
//!     .on_close(move |conn, reason| {
//!         if let CloseReason::FrameTooLong(most) = reason {
//!             println!("{} has sent more than {most} bytes without an end", conn.peer_addr());
//!         }
//! #       told.send(reason.to_string())?;
//!         Ok(())
//!     })
//!     .bind("127.0.0.1:0")?;
//! # let (addr, handle) = (server.local_addr(), server.handle());
//! # let running = std::thread::spawn(|| server.run());
//! # std::net::TcpStream::connect(addr)?.write_all(&[b'x'; 100])?;
//! # assert!(reasons.recv()?.contains("16"));
//! # handle.shutdown(Duration::from_secs(10));
//! # running.join().unwrap()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Shutdown
//!
//! [`ServerHandle::shutdown`] begins it, from any thread and any callback: accept no more, read no more, finish what is
//! in flight, deliver the outcomes, flush, close; what is delayed is cancelled. [`Server::run`] then returns a
//! [`ShutdownReport`]. What is not done by the deadline is abandoned, and the report says how much; a thread cannot be
//! killed, so a task that never returns keeps its thread. The library installs no signal handler;
//! `examples/task_server.rs` shows how a program connects its own.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//! use std::time::Duration;
//!
//! use backroom::Server;
//!
//! # fn main() -> anyhow::Result<()> {
//! let server = Server::builder()
//!     .on_receive(|conn, data| {
//!         conn.task(data.to_vec())?;
//!         conn.server().shutdown(Duration::from_secs(10)); // while the task is in flight
//!         Ok(())
//!     })
//!     .on_task(|_cx, data| Ok(data.to_ascii_uppercase()))
//!     .on_finish(|conn, done| Ok(conn.send(done.into_result()?)?))
//!     .bind("127.0.0.1:0")?;
//!
//! let addr = server.local_addr();
//! let running = std::thread::spawn(|| server.run());
//! let mut client = TcpStream::connect(addr)?;
//! client.write_all(b"the last request")?;
//! let mut answer = String::new();
//! client.read_to_string(&mut answer)?;
//! assert_eq!(answer, "THE LAST REQUEST");
//!
//! let report = running.join().unwrap()?;
//! assert_eq!((report.tasks.done, report.tasks.abandoned), (1, 0));
//! # Ok(())
//! # }
//! ```
//!
//! # The pool alone
//!
//! A [`TaskPool`] is the back room without a socket, for a program that has a loop of its own: the same queue, task
//! workers, outcomes and finish closures. Each thread takes a [`Submitter`], and its finish closures run when it calls
//! [`run_finished`](Submitter::run_finished).
//!
//! ```
//! use std::cell::Cell;
//! use std::rc::Rc;
//! use std::time::Duration;
//!
//! use backroom::TaskPool;
//!
//! # fn main() -> anyhow::Result<()> {
//! let pool = TaskPool::builder().task_worker_num(2).on_task(|_cx, text: String| Ok(text.len())).build()?;
//! let mut submitter = pool.submitter();
//!
//! let sum = Rc::new(Cell::new(0)); // stays on this thread
//! for word in ["front", "of", "house"] {
//!     let sum = Rc::clone(&sum);
//!     submitter.task_then(word.to_owned(), move |_submitter, done| {
//!         sum.set(sum.get() + done.into_result()?);
//!         Ok(())
//!     })?;
//! }
//! while submitter.tasks_in_flight() > 0 {
//!     submitter.run_finished_for(Duration::from_millis(100)); // the program's own loop
//! }
//! assert_eq!(sum.get(), 12);
//! assert_eq!(pool.shutdown(Duration::from_secs(10)).tasks.done, 3);
//! # Ok(())
//! # }
//! ```
//!
//! # What goes on inside
//!
//! [`ServerHandle::stats`] has counters that add up, and says who is idle, what waits and for how long;
//! [`task_times`](ServerBuilder::task_times) adds histograms. An [`Observer`] is told of each event. For those who know
//! Swoole, docs/FROM_SWOOLE.md says what became of each of its functions and settings. docs/RELIABILITY.md says what can go
//! wrong and what is promised then, and docs/WHEN_TO_USE.md who should use this, who should not, and what it costs.
//!
//! # Panics
//!
//! A panic in `on_task` is an outcome, and its task worker goes on with a fresh state. A panic in a connection's
//! callback closes that connection. Both need `panic = "unwind"`, the default; with `panic = "abort"` any of them ends
//! the process.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![deny(missing_docs)]
#![deny(clippy::unwrap_used, clippy::expect_used)]
#![warn(missing_debug_implementations)]

#[cfg(not(unix))]
compile_error!("backroom runs on Unix; Linux is what it is tested on");

mod aside;
mod asleep;
mod config;
mod error;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod logging;
mod net;
mod new_thread;
mod observer;
mod own_threads;
mod panic;
mod patience;
mod pool;
mod resources;
mod server;
mod stack;
mod stamp;
mod stats;
mod sync;
mod task;
mod times;

/// The README's program is compiled, so that it stays true.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

/// Likewise the programs for those who come from Swoole.
#[doc = include_str!("../docs/FROM_SWOOLE.md")]
#[cfg(doctest)]
struct FromSwoole;

pub use config::WhenQueueFull;
pub use error::{
    BindError, BuildError, FinishError, JoinError, NotFinished, RunError, SendError, SendFileError, TaskError,
    TaskFailure, TryTaskError, VisitError, WaitError,
};
pub use net::{Address, Decoder, Frame, Framing, LengthPrefix, LengthType, Malformed, PacketPeer, SocketOptions};
#[cfg(feature = "tls")]
pub use net::{Certificate, PeerIdentity, Pem, Tls, TlsConfig, TlsError, TlsInfo};
pub use observer::{Observer, TaskEnded};
pub use pool::{PoolReport, Submitter, TaskPool, TaskPoolBuilder};
pub use server::{
    Broadcast, CloseReason, ClosedStats, Connection, ConnectionId, ConnectionInfo, Connections, Inherited, Limits,
    Link, Listener, PacketSocket, ProxyProtocol, RefusedStats, Remote, Server, ServerBuilder, ServerHandle,
    ShutdownReport, Stats, Timeout, TimerId, Traffic, stage,
};
pub use stats::TaskStats;
pub use task::{
    Finished, Later, Outcome, OutcomeKind, Priority, Progress, Repetition, ReplyDropped, Retry, TaskContext, TaskId,
    TaskInfo, TaskOptions, With,
};
pub use times::{TaskTimes, Times};
