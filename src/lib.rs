//! An embeddable TCP server for programs that do not use async: a request never waits for slow work.
//!
//! Each connection has a worker thread of its own. What is slow, a mail to send or a file to convert, its callback
//! hands over as a [task](Connection::task) to a fixed pool of task workers, and goes on at once. The result comes back
//! to the very worker that asked, where a finish closure runs. The model is the task system of Swoole's server.
//!
//! ```no_run
//! use backroom::Server;
//!
//! fn main() -> anyhow::Result<()> {
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
//!             Ok(())
//!         })
//!         .bind("127.0.0.1:9501")?
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
//! # States: a session per connection, a state per task worker
//!
//! Each is made on the thread that will own it, so neither has to be `Send`. They are set before the callbacks that use
//! them.
//!
//! ```
//! use std::io::{BufRead, BufReader, Write};
//! use std::net::TcpStream;
//! use std::time::Duration;
//!
//! use backroom::{Framing, Server};
//!
//! struct Mailer { sent: u32 } // would hold an SMTP connection
//!
//! # fn main() -> anyhow::Result<()> {
//! let server = Server::builder()
//!     .session(|_peer| 0u32) // how many mails this client has sent
//!     .task_worker(|_index| Ok(Mailer { sent: 0 }))
//!     .framing(Framing::lines())
//!     .on_receive(|conn, line| {
//!         *conn.session_mut() += 1;
//!         conn.task(line.to_vec())?;
//!         Ok(())
//!     })
//!     .on_task(|cx, mail| {
//!         cx.worker().sent += 1;
//!         Ok(mail.len())
//!     })
//!     .on_finish(|conn, done| {
//!         let answer = format!("mail {} of {} bytes\n", conn.session(), done.into_result()?);
//!         Ok(conn.send(answer)?)
//!     })
//!     .bind("127.0.0.1:0")?;
//!
//! let (addr, handle) = (server.local_addr(), server.handle());
//! let running = std::thread::spawn(|| server.run());
//!
//! let mut client = BufReader::new(TcpStream::connect(addr)?);
//! client.get_mut().write_all(b"hello\n")?;
//! let mut answer = String::new();
//! client.read_line(&mut answer)?;
//! assert_eq!(answer, "mail 1 of 5 bytes\n");
//!
//! handle.shutdown(Duration::from_secs(10));
//! let report = running.join().unwrap()?;
//! assert_eq!((report.tasks.done, report.tasks.abandoned), (1, 0));
//! # Ok(())
//! # }
//! ```
//!
//! # How a task ends
//!
//! Every accepted task has exactly one [`Outcome`]: it returned a result or an error, it panicked, its deadline came
//! first, it was cancelled, or a shutdown gave it up. Unless the task is one-way, the outcome reaches the finish
//! closure as a [`Finished`]; where the connection is gone by then, it is counted as orphaned. A task may bring [a
//! finish closure of its own](Connection::task_then), which stays on the connection's thread and may hold what is not
//! `Send`. What comes after the outcome is decided, such as the result of a task that was cancelled while it ran, is
//! counted as late and is nothing else.
//!
//! Inside `on_receive`, a finish closure may need `R` before it could be inferred. Then `on_task` comes first, with the
//! type of its payload written out:
//!
//! ```
//! # use backroom::Server;
//! # fn main() -> anyhow::Result<()> {
//! let server = Server::builder()
//!     .on_task(|_cx, data: Vec<u8>| Ok(data.len()))
//!     .on_receive(|conn, data| {
//!         conn.task_then(data.to_vec(), |conn, done| {
//!             Ok(conn.send(done.into_result()?.to_string())?)
//!         })?;
//!         Ok(())
//!     })
//!     .bind("127.0.0.1:0")?;
//! # Ok(())
//! # }
//! ```
//!
//! # Tasks that are not like all others
//!
//! [`TaskOptions`] say which task worker runs a task, with what priority, until when, how much later, and how often it
//! is tried. [`with`](Connection::with) takes them before any way of submitting. A running task sees them as
//! [`attempt`](TaskInfo::attempt) and [`expired`](TaskInfo::expired), and learns from
//! [`cancelled`](TaskInfo::cancelled) that nobody waits for it any more, because of a [`cancel`](Connection::cancel),
//! say.
//!
//! A task can give [results before its last](TaskInfo::finish), say [how far it has come](TaskInfo::progress), submit
//! [further tasks](TaskInfo::task), and [give its reply away](TaskInfo::finish_later) to whatever will know the result.
//! It cannot wait for another task: if all task workers did, none would be left to run it.
//!
//! # Waiting
//!
//! Where an answer cannot go on without a result, [`task_wait`](Connection::task_wait) blocks the connection's own
//! worker, and nobody else's. [`task_wait_multi`](Connection::task_wait_multi) waits for several, with one deadline.
//!
//! # Without a socket
//!
//! A [`TaskPool`] is the back room alone, for a program that has a loop of its own: each thread takes a [`Submitter`],
//! and its finish closures run when it calls [`run_finished`](Submitter::run_finished).
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
//!     .listen(Listener::tcp("[::1]:0").framing(Framing::fixed(8)).name("eights"))
//!     .listen_udp("127.0.0.1:0")
//!     .on_receive(|conn, data| Ok(conn.send(format!("{}: {} bytes\n", conn.listener(), data.len()))?))
//!     .on_packet(|socket, from, data| Ok(socket.send_to(from, data)?))
//!     .on_task(|_cx, ()| Ok(()))
//!     .build()?;
//! assert_eq!(server.local_addrs().len(), 3);
//! # Ok(())
//! # }
//! ```
//!
//! # Sending, and reaching other connections
//!
//! A callback [sends](Connection::send) to its own client; tasks and other threads send [by id](ServerHandle::send), or
//! to [all at once](ServerHandle::broadcast). [`Remote::with_connection`] runs a closure on the worker of another
//! connection, where its session is. [`ServerHandle::connections`] lists them, and
//! [`connections_of`](ServerHandle::connections_of) finds those that are [bound](Connection::bind) to a user.
//! [`after`](Connection::after) and [`every`](Connection::every) run closures later.
//!
//! # Full queues and slow clients
//!
//! [`task`](Connection::task) never blocks. When as many tasks wait as
//! [`queue_capacity`](ServerBuilder::queue_capacity) allows, the connection that submitted is no longer read until half
//! of them are done: a flooding client is slowed down by TCP, and everything else on that connection goes on. The same
//! holds at [`max_tasks_in_flight`](ServerBuilder::max_tasks_in_flight). Who would rather be refused says so with
//! [`when_queue_full`](ServerBuilder::when_queue_full), or uses [`try_task`](Connection::try_task), whose error hands
//! the payload back.
//!
//! A client that takes too little, sends too slowly, too much or nothing at all runs into one of the [`Limits`], which
//! closes its connection and no other; [`on_close`](ServerBuilder::on_close) is told which. docs/LIMITS.md has all limits
//! in one table.
//!
//! # Shutdown
//!
//! [`ServerHandle::shutdown`] begins it, from any thread and any callback: accept no more, read no more, finish what is
//! in flight, deliver the outcomes, flush, close; what is delayed is cancelled. [`Server::run`] then returns a
//! [`ShutdownReport`]. What is not done by the deadline is abandoned, and the report says how much; a thread cannot be
//! killed, so a task that never returns keeps its thread. The library installs no signal handler;
//! `examples/task_server.rs` shows how a program connects its own.
//!
//! # What goes on inside
//!
//! [`ServerHandle::stats`] has counters that add up, and says who is idle, what waits and for how long;
//! [`task_times`](ServerBuilder::task_times) adds histograms. An [`Observer`] is told of each event. For those who know
//! Swoole, docs/FROM_SWOOLE.md says what became of each of its functions and settings.
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

mod asleep;
mod config;
mod error;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod logging;
mod net;
mod observer;
mod panic;
mod patience;
mod pool;
mod server;
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
pub use net::{Address, Decoder, Frame, Framing, LengthPrefix, LengthType, Malformed, SocketOptions};
#[cfg(feature = "tls")]
pub use net::{Certificate, PeerIdentity, Pem, Tls, TlsConfig, TlsError, TlsInfo};
pub use observer::Observer;
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
