//! All attacks at once and in turns, for long, after which everything is where it began.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::HEAP_SLACK;
use crate::attacks::{ATTACKS, Attack, Attacker};
use crate::common::Client;
use crate::pings::Pinger;
use crate::settled;
use crate::target::{Holds, Target};

/// So many attack at the same time, each in one way for a moment, and then in another.
const ATTACKERS: usize = 8;

/// Panics where anything is not where it began, or a well-behaved client noticed, unless the machine is noisy.
pub(crate) fn run(time: Duration, noisy: bool) {
    let mut target = Target::start();
    // The timer's thread starts when it is first needed, which the attacks below leave to chance.
    Client::connect(target.lines).ask("delay 1");
    // Half a minute shows how large the tables get.
    attack(&mut target, time.min(Duration::from_secs(60)) / 2);
    let before = settled(&mut target);
    println!("begins with {before:?}");
    let mut pinger = Pinger::connect(target.lines);
    let quiet = pinger.ping_for(Duration::from_secs(5)).quantile(0.99);
    let bar = 2 * quiet + Duration::from_millis(5);

    let start = Instant::now();
    let (mut acts, mut worst) = (0, Duration::ZERO);
    while start.elapsed() < time {
        // Not the seconds that are left over, of which nothing could be said.
        let moment = time.min(Duration::from_secs(60));
        let noticed = thread::scope(|scope| {
            let pings = scope.spawn(|| pinger.ping_for(moment));
            acts += attack(&mut target, moment);
            pings.join().expect("the well-behaved client is served").quantile(0.99)
        });
        worst = worst.max(noticed);
        let (books, holds) = (target.books(), target.holds());
        let of = |name| books.of(name);
        println!(
            "{:>5.1} min: p99 {noticed:.1?}; so far {} connections, {} tasks, {} panics, {} cancelled, {} recycled; {holds:?}",
            start.elapsed().as_secs_f64() / 60.0,
            of("accepted_connections"),
            of("accepted"),
            of("panicked"),
            of("cancelled"),
            of("recycled"),
        );
    }
    drop(pinger);
    let after = settled(&mut target);
    println!("ends with {after:?}, after {acts} acts in {:.1} minutes", start.elapsed().as_secs_f64() / 60.0);
    println!("p99 of a ping: quiet {quiet:.1?}, in the worst minute {worst:.1?}");

    let books = target.books();
    assert!(books.are_at_rest(), "{books:?}");
    let connections = ["accepted_connections", "refused_connections", "closed_connections"].map(|name| books.of(name));
    assert_eq!(connections[0], connections[1] + connections[2], "{books:?}");
    assert_eq!((books.of("connections"), books.of("task_workers")), (0, 4), "{books:?}");
    let mut next = Client::connect(target.lines);
    assert_eq!([next.ask("ping"), next.ask("a task")], ["pong", "a task"], "it serves on");
    drop(next);
    let Holds { heap, threads, files, .. } = before;
    assert_eq!((after.threads, after.files), (threads, files), "threads and descriptors");
    assert!(after.heap <= heap + HEAP_SLACK, "{heap} bytes before, {} after", after.heap);
    assert!(noisy || worst < bar, "the well-behaved client noticed");
    let report = target.shut_down(Duration::from_secs(5));
    assert_eq!((&report["abandoned"], &report["workers_running"]), (&0.into(), &0.into()), "{report}");
}

/// How much was done.
fn attack(target: &mut Target, time: Duration) -> u64 {
    let ways: Vec<&Attack> = ATTACKS.iter().filter(|attack| attack.has_company).collect();
    let (done, start) = (AtomicU64::new(0), Instant::now());
    thread::scope(|scope| {
        for _ in 0..ATTACKERS {
            let attacker = Attacker::of(target);
            let (ways, done) = (&ways, &done);
            scope.spawn(move || {
                while start.elapsed() < time {
                    let way = ways[fastrand::usize(..ways.len())];
                    let moment = Duration::from_millis(fastrand::u64(50..3000));
                    done.fetch_add(way.run_for(&attacker, moment), Ordering::Relaxed);
                }
            });
        }
        while start.elapsed() < time {
            target.recycle();
            thread::sleep(Duration::from_millis(100));
        }
    });
    done.load(Ordering::Relaxed)
}
