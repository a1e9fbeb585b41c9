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
mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use attacks::{ATTACKS, Attack};
use clap::{Parser, Subcommand};
use common::eventually;
use target::{Holds, Target};

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// Attacks in every way that is listed
    All {
        /// How long each takes
        #[arg(long, default_value_t = 8.0)]
        seconds: f64,
        /// Only those whose name has this in it
        only: Option<String>,
    },
    /// Is attacked
    #[command(hide = true)]
    Serve { max_connections: usize },
}

fn main() -> anyhow::Result<()> {
    match Options::parse().command {
        None => println!("SKIPPED: the attacks take minutes: cargo test --release --test attack -- all"),
        Some(What::Serve { max_connections }) => house::run(max_connections)?,
        Some(What::All { seconds, only }) => {
            common::raise_file_limit();
            let seconds = Duration::from_secs_f64(seconds);
            let wanted = |attack: &&Attack| only.as_ref().is_none_or(|only| attack.name.contains(only.as_str()));
            let won = ATTACKS.iter().filter(wanted).filter(|attack| !is_withstood(attack, seconds)).count();
            anyhow::ensure!(won == 0, "{won} attacks were noticed by others");
        }
    }
    Ok(())
}

/// Whether the well-behaved client hardly noticed. Panics where the server is not what it was before.
fn is_withstood(attack: &Attack, time: Duration) -> bool {
    let mut target = Target::start(9500);
    // What is started when it is first needed is there.
    pings::ping_for(target.lines, Duration::from_millis(500));
    let before = settled(&mut target);
    let quiet = pings::ping_for(target.lines, time / 2);

    let stop = Arc::new(AtomicBool::new(false));
    let lines = target.lines;
    let (done, noticed, most) = thread::scope(|scope| {
        let pings = scope.spawn(|| {
            // What it finds is there by then.
            thread::sleep(Duration::from_millis(500));
            let noticed = pings::ping(lines, &stop);
            noticed
        });
        scope.spawn(|| {
            thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
        });
        let done = attack.run(&mut target, &stop);
        (done, pings.join().expect("the well-behaved client is served"), target.holds())
    });
    let after = settled(&mut target);
    assert!(after.threads <= before.threads + 1, "{}: {before:?}, {after:?}", attack.name);
    assert!(after.files <= before.files + 1, "{}: {before:?}, {after:?}", attack.name);
    let books = target.books();
    assert_eq!(books.of("task_workers"), 4, "{books:?}");
    let report = target.shut_down(Duration::from_secs(5));
    assert_eq!(report["abandoned"], 0, "{report}");

    let [quiet_p99, noticed_p99] = [&quiet, &noticed].map(|times| times.quantile(0.99).as_secs_f64() * 1e3);
    let is_withstood = noticed_p99 < 2.0 * quiet_p99 + 5.0;
    println!(
        "{:<45} {done:>9} {:<12} p99 {quiet_p99:>6.2} -> {noticed_p99:>6.2} ms (max {:>6.2}, {} pings) {:>5} KiB -> {:>6} -> {:>6}{}",
        attack.name,
        attack.unit,
        noticed.quantile(1.0).as_secs_f64() * 1e3,
        noticed.count(),
        before.resident_kib,
        most.resident_kib,
        after.resident_kib,
        if is_withstood { "" } else { "  NOTICED" }
    );
    is_withstood
}

/// Waits until nothing is under way and the threads kept for further clients have ended; what it holds then.
fn settled(target: &mut Target) -> Holds {
    eventually("the books balance, and no client is there", || {
        let books = target.books();
        books.are_at_rest() && books.of("connections") == 0
    });
    let mut holds = target.holds();
    loop {
        thread::sleep(Duration::from_millis(1500));
        let now = target.holds();
        if (now.threads, now.files) == (holds.threads, holds.files) {
            return now;
        }
        holds = now;
    }
}
