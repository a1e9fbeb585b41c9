//! Lines in, a slow task for each, its result out: the program to start with.
//!
//! `cargo run --release --example task_server -- --demo` starts it, plays a client, and shuts it down.
//! Without `--demo` it listens on 127.0.0.1:9501; try `nc 127.0.0.1 9501`.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use backroom::{Address, Framing, Outcome, Server};
use clap::Parser;
use common::say;

/// Lines in, a slow task for each, its result out
///
/// A client sends lines. `ping` is answered at once; `panic` and `fail` have tasks that end so; any other line is
/// answered by its task.
#[derive(Parser)]
#[command(name = "task_server")]
struct Options {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:9501")]
    listen: String,
    /// How many threads run tasks
    #[arg(long, default_value_t = 4)]
    task_workers: usize,
    /// Each task takes so long
    #[arg(long, default_value_t = 0)]
    task_ms: u64,
    /// At SIGINT or SIGTERM, how long tasks may take to finish
    #[arg(long, default_value_t = 10)]
    drain_seconds: u64,
    /// No line per event
    #[arg(long)]
    quiet: bool,
    /// Listen on a free port, play a client that sends three lines, shut down
    #[arg(long, conflicts_with = "listen")]
    demo: bool,
}

fn main() -> ExitCode {
    common::run("warn", serve)
}

fn serve() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let signals = (!options.demo).then(common::signals).transpose()?;
    let server = build(&options)?;
    say!("listening on {}", server.local_addr());

    let handle = server.handle();
    let drain_time = Duration::from_secs(options.drain_seconds);
    let demo = match signals {
        Some(signals) => {
            common::shut_down_at(signals, handle, drain_time);
            None
        }
        None => Some(thread::spawn(move || {
            let played = play_client(handle.local_addr());
            handle.shutdown(drain_time);
            played
        })),
    };

    let report = server.run()?;
    if let Some(client) = demo {
        client.join().map_err(|_| anyhow::anyhow!("the demo's client panicked"))??;
    }
    let tasks = report.tasks;
    say!(
        "shutdown: accepted={} done={} failed={} abandoned={} orphaned={}",
        tasks.accepted,
        tasks.done,
        tasks.failed + tasks.panicked,
        tasks.abandoned,
        tasks.orphaned
    );
    Ok(if tasks.abandoned == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn build(options: &Options) -> anyhow::Result<Server> {
    let (task_time, loud) = (Duration::from_millis(options.task_ms), !options.quiet);
    let listen = if options.demo { "127.0.0.1:0" } else { &options.listen };
    let server = Server::builder()
        .task_worker_num(options.task_workers)
        .framing(Framing::lines())
        .on_receive(move |conn, line| {
            let line = String::from_utf8_lossy(line).trim_end_matches('\r').to_owned();
            if line == "ping" {
                conn.send("pong\n")?;
                return Ok(());
            }
            let id = conn.task_then(line.clone(), move |conn, done| {
                let (id, answer) = (done.id(), answer(&line, done.into_outcome()));
                if loud {
                    say!("Async task [{id}] finished: {}", shown(&answer));
                }
                Ok(conn.send(answer + "\n")?)
            })?;
            if loud {
                say!("Dispatched async task: id={id}");
            }
            Ok(())
        })
        .on_task(move |cx, line: String| {
            if loud {
                say!("New async task [id={}]", cx.id());
            }
            if !task_time.is_zero() {
                thread::sleep(task_time);
            }
            match line.as_str() {
                "panic" => panic!("a task that panics"),
                "fail" => bail!("a task that fails"),
                _ => Ok(format!("{line} -> OK")),
            }
        })
        .bind(listen)?;
    Ok(server)
}

fn answer(line: &str, outcome: Outcome<String>) -> String {
    match outcome {
        Outcome::Done(result) => result,
        Outcome::Failed(error) => format!("{line} -> FAILED: {error:#}"),
        Outcome::Panicked(message) => format!("{line} -> FAILED: the task panicked: {message}"),
        _ => format!("{line} -> FAILED: the server shut down first"),
    }
}

/// What a client had a hand in, fit for a terminal.
fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

/// Sends three lines and prints their answers, which come in the order in which the tasks end.
fn play_client(addr: Address) -> anyhow::Result<()> {
    let mut server = TcpStream::connect(addr)?;
    server.set_read_timeout(Some(Duration::from_secs(60)))?;
    let lines = ["first mail", "second mail", "third mail"];
    for line in lines {
        say!("client sends: {line}");
    }
    server.write_all((lines.join("\n") + "\n").as_bytes())?;
    let mut answers = BufReader::new(server).lines();
    for _ in lines {
        let answer = answers.next().context("the server closed before it had answered")??;
        say!("client gets: {answer}");
        anyhow::ensure!(lines.iter().any(|line| answer == format!("{line} -> OK")), "not what was to come");
    }
    Ok(())
}
