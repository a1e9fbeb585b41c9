//! Lines in, a slow task for each, its result out: the program to start with.
//!
//! `cargo run --release --example task_server -- --demo` starts it, plays a client, and shuts it down.
//! Without `--demo` it listens on 127.0.0.1:9501; try `nc 127.0.0.1 9501`.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use backroom::{Address, Framing, Outcome, Server, ServerHandle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const USAGE: &str = "\
usage: task_server [options]
  --listen ADDR        where to listen (127.0.0.1:9501)
  --task-workers N     how many threads run tasks (4)
  --task-ms MS         each task takes so long (0)
  --drain-seconds S    at SIGINT or SIGTERM, how long tasks may take to finish (10)
  --quiet              no line per event
  --demo               listen on a free port, play a client that sends three lines, shut down

A client sends lines. `ping` is answered at once; `panic` and `fail` have tasks that end so; any other line
is answered by its task.";

struct Options {
    listen: String,
    task_workers: usize,
    task_time: Duration,
    drain_time: Duration,
    quiet: bool,
    demo: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let Some(options) = parse_options()? else {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    };
    // Before anybody can connect, so that no signal finds us unprepared.
    let signals = (!options.demo).then(|| Signals::new([SIGINT, SIGTERM])).transpose()?;
    let server = build(&options)?;
    println!("listening on {}", server.local_addr());

    let handle = server.handle();
    let drain_time = options.drain_time;
    let demo = match signals {
        Some(signals) => {
            thread::spawn(move || shut_down_on_signal(signals, &handle, drain_time));
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
    println!(
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
    let (task_time, loud) = (options.task_time, !options.quiet);
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
                    println!("Async task [{id}] finished: {}", shown(&answer));
                }
                Ok(conn.send(answer + "\n")?)
            })?;
            if loud {
                println!("Dispatched async task: id={id}");
            }
            Ok(())
        })
        .on_task(move |cx, line: String| {
            if loud {
                println!("New async task [id={}]", cx.id());
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
        .bind(options.listen.as_str())?;
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

/// The first signal drains; a second one no longer waits.
fn shut_down_on_signal(mut signals: Signals, handle: &ServerHandle, drain_time: Duration) {
    let mut patience = drain_time;
    for _ in signals.forever() {
        handle.shutdown(patience);
        patience = Duration::ZERO;
    }
}

/// Sends three lines and prints their answers, which come in the order in which the tasks end.
fn play_client(addr: Address) -> anyhow::Result<()> {
    let mut server = TcpStream::connect(addr)?;
    server.set_read_timeout(Some(Duration::from_secs(60)))?;
    let lines = ["first mail", "second mail", "third mail"];
    for line in lines {
        println!("client sends: {line}");
    }
    server.write_all((lines.join("\n") + "\n").as_bytes())?;
    let mut answers = BufReader::new(server).lines();
    for _ in lines {
        let answer = answers.next().context("the server closed before it had answered")??;
        println!("client gets: {answer}");
        anyhow::ensure!(lines.iter().any(|line| answer == format!("{line} -> OK")), "not what was to come");
    }
    Ok(())
}

fn parse_options() -> anyhow::Result<Option<Options>> {
    let mut options = Options {
        listen: "127.0.0.1:9501".to_owned(),
        task_workers: 4,
        task_time: Duration::ZERO,
        drain_time: Duration::from_secs(10),
        quiet: false,
        demo: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--listen" => options.listen = value()?,
            "--task-workers" => options.task_workers = value()?.parse().context("--task-workers")?,
            "--task-ms" => options.task_time = Duration::from_millis(value()?.parse().context("--task-ms")?),
            "--drain-seconds" => options.drain_time = Duration::from_secs(value()?.parse().context("--drain-seconds")?),
            "--quiet" => options.quiet = true,
            "--demo" => options.demo = true,
            "--help" | "-h" => return Ok(None),
            _ => bail!("unknown option {arg}\n{USAGE}"),
        }
    }
    if options.demo {
        options.listen = "127.0.0.1:0".to_owned();
    }
    Ok(Some(options))
}
