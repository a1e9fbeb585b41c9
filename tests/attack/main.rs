//! Attacks the library, and measures what a well-behaved client notices of it.
//!
//! ```sh
//! cargo test --release --test attack -- all                  # every attack, some eight minutes
//! cargo test --release --test attack -- all --seconds 2 panic # those with "panic" in their name, and shorter
//! cargo test --release --test attack -- soak --minutes 30
//! ```

#![allow(clippy::unit_arg)]

#[path = "../common/mod.rs"]
mod common;

mod attacks;
mod house;
mod pings;
mod soak;
mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use attacks::{ATTACKS, Attack};
use clap::{Parser, Subcommand};
use common::{Client, eventually};
use pings::Pinger;
use target::{Holds, Target};

/// The tables of the server grow with what there is at once, to be used again; but not by more than this.
const HEAP_SLACK: u64 = 4 << 20;

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// Attacks in every way that is listed
    All {
        /// How long each takes
        #[arg(long, default_value_t = 8.0)]
        seconds: f64,
        /// This machine has other things to do: what others notice is shown, and no failure
        #[arg(long)]
        noisy: bool,
        /// Only those whose name has this in it
        only: Option<String>,
    },
    /// Attacks in many ways at once, and compares what is left with what was there before
    Soak {
        #[arg(long, default_value_t = 30.0)]
        minutes: f64,
        /// As above
        #[arg(long)]
        noisy: bool,
    },
    /// Is attacked
    #[command(hide = true)]
    Serve { max_connections: usize },
}

fn main() -> anyhow::Result<()> {
    // `cargo test` starts this too, with what is meant for others.
    let options = match Options::try_parse() {
        Err(error) if !matches!(std::env::args().nth(1).as_deref(), Some("all" | "soak" | "help" | "--help")) => {
            println!(
                "SKIPPED: the attacks take minutes: cargo test --release --test attack -- help ({})",
                error.kind()
            );
            return Ok(());
        }
        options => options.unwrap_or_else(|error| error.exit()),
    };
    if cfg!(debug_assertions) {
        println!("SKIPPED: without optimization the attacks would show nothing: cargo test --release --test attack");
        return Ok(());
    }
    match options.command {
        What::Serve { max_connections } => house::run(max_connections)?,
        What::Soak { minutes, noisy } => {
            common::raise_file_limit();
            soak::run(Duration::from_secs_f64(minutes * 60.0), noisy);
        }
        What::All { seconds, noisy, only } => {
            common::raise_file_limit();
            println!("| attack | done | p99 quiet, ms | p99 attacked | longest | threads | MiB | KiB kept |");
            println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
            let seconds = Duration::from_secs_f64(seconds);
            let wanted = |attack: &&Attack| only.as_ref().is_none_or(|only| attack.name.contains(only.as_str()));
            anyhow::ensure!(ATTACKS.iter().any(|attack| wanted(&attack)), "no attack has that in its name");
            let won = ATTACKS.iter().filter(wanted).filter(|attack| !is_withstood(attack, seconds)).count();
            anyhow::ensure!(won == 0 || noisy, "{won} attacks were noticed by others");
        }
    }
    Ok(())
}

/// Whether the well-behaved client hardly noticed. Panics where the server is not what it was before.
fn is_withstood(attack: &Attack, time: Duration) -> bool {
    let Some(mut target) = (attack.start)() else {
        assert!(std::env::var_os("BACKROOM_TEST_PROGRAMS").is_none(), "{} needs what is not here", attack.name);
        println!("SKIPPED: {}: this machine has not what it needs", attack.name);
        return true;
    };
    // What is started when it is first needed is there: the timer's thread.
    Client::connect(target.lines).ask("delay 1");
    let before = settled(&mut target);
    let books_before = target.books();
    let mut pinger = Pinger::connect(target.lines);
    let quiet = pinger.ping_for(time / 2);

    let stop = Arc::new(AtomicBool::new(false));
    let (done, noticed, most) = thread::scope(|scope| {
        let stop_when_done = Arc::clone(&stop);
        let pings = scope.spawn(move || {
            let _stop = StopWhenDropped(stop_when_done);
            pinger.ping_for(time)
        });
        let (done, most) = attack.run(&mut target, &stop);
        (done, pings.join().expect("the well-behaved client is served"), most)
    });
    let after = settled(&mut target);
    assert_eq!((after.threads, after.files), (before.threads, before.files), "{}", attack.name);
    assert!(after.heap < before.heap + HEAP_SLACK, "{}: {before:?}, {after:?}", attack.name);
    let books = target.books();
    assert_eq!(books.of("task_workers"), 4, "{books:?}");
    assert!(done > 0, "{} did nothing", attack.name);
    // Nobody is closed by a timeout in less.
    let shows = attack.shows.filter(|entry| !entry.ends_with("timeouts") || time > 2 * house::TIMEOUT);
    if let Some(entry) = shows {
        assert!(books.of(entry) > books_before.of(entry), "{}: {entry} in {books:?}", attack.name);
    }
    let mut next = Client::connect(target.lines);
    assert_eq!([next.ask("ping"), next.ask("a task")], ["pong", "a task"], "it serves on");
    drop(next);
    let report = target.shut_down(Duration::from_secs(5));
    assert_eq!(report["abandoned"], 0, "{report}");

    let [quiet_p99, noticed_p99] = [&quiet, &noticed].map(|times| times.quantile(0.99).as_secs_f64() * 1e3);
    let is_withstood = noticed_p99 < 2.0 * quiet_p99 + 5.0;
    println!(
        "| {} | {done} {} | {quiet_p99:.2} | {noticed_p99:.2} | {:.1} | {} | {} | {} |{}",
        attack.name,
        attack.unit,
        noticed.quantile(1.0).as_secs_f64() * 1e3,
        most.threads,
        most.resident_kib / 1024,
        after.heap.saturating_sub(before.heap) / 1024,
        if is_withstood { "" } else { " NOTICED" }
    );
    is_withstood
}

/// However the pinging ends, so does the attack.
struct StopWhenDropped(Arc<AtomicBool>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until nothing is under way and the threads kept for further clients have ended; what it holds then.
fn settled(target: &mut Target) -> Holds {
    eventually("the books balance, and no client is there", || {
        let books = target.books();
        books.are_at_rest() && books.of("connections") == 0
    });
    let mut holds = target.holds();
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(1500));
        let now = target.holds();
        if (now.threads, now.files) == (holds.threads, holds.files) {
            return now;
        }
        holds = now;
    }
    panic!("it does not settle: {holds:?}")
}
