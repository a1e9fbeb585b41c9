//! `cargo bench --bench server`: the same load, lines in, a task for each, lines out, against this library and its
//! rivals, in turns. See docs/PERFORMANCE.md.
//!
//! Each server runs in a process of its own, so that its processor time and memory can be told apart from the
//! load's; each is warm and idle while another is measured.

mod plot;
mod rivals;
#[path = "../shared/mod.rs"]
mod shared;

use std::path::PathBuf;
use std::time::Duration;

use plot::Panel;
use shared::load::{self, Shape};
use shared::process::{ServerProcess, raise_file_limit};
use shared::report::{Measured, Table, median};

const SHAPES: [Shape; 4] = [
    Shape { connections: 1, in_flight: 1 },
    Shape { connections: 8, in_flight: 16 },
    Shape { connections: 64, in_flight: 16 },
    Shape { connections: 256, in_flight: 16 },
];
/// As many as the machines have cores for; the same for all rivals.
const TASK_WORKERS: usize = 2;
const IDLE_CONNECTIONS: usize = 9_000;
/// Two for each, and some.
const FILES_FOR_IDLE: u64 = 2 * IDLE_CONNECTIONS as u64 + 1_000;

struct Options {
    rounds: usize,
    time: Duration,
    only: Option<String>,
    shape: Option<String>,
    idle: bool,
    plot: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let files = raise_file_limit()?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "--serve") {
        let name = args.get(at + 1).map_or("", String::as_str);
        return rivals::serve(name, TASK_WORKERS);
    }
    let options = parse(&args)?;
    let wanted = |name: &&str| options.only.as_deref().is_none_or(|only| only == *name);
    let names: Vec<&str> = rivals::NAMES.into_iter().filter(wanted).collect();

    println!(
        "{} rounds of {:?} each, in turns; {TASK_WORKERS} task workers; {} cores",
        options.rounds,
        options.time,
        std::thread::available_parallelism()?
    );
    let servers = names.iter().map(|name| ServerProcess::start(name)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut panels = Vec::new();
    for shape in SHAPES {
        if options.shape.as_ref().is_some_and(|only| *only != shape.to_string()) {
            continue;
        }
        let mut table = Table::new(&names);
        for round in 0..options.rounds {
            // Each comes first as often as the others.
            for turn in 0..servers.len() {
                let column = (round + turn) % servers.len();
                table.add(column, measure(&servers[column], shape, options.time)?);
            }
        }
        println!("\n{shape}: connections × requests in flight on each");
        table.print();
        panels.push(Panel { shape, rates: names.iter().copied().zip(table.rates()).collect() });
    }
    if let Some(path) = &options.plot {
        plot::draw(path, &panels)?;
    }
    drop(servers);
    if options.idle && files.is_some_and(|files| files < FILES_FOR_IDLE) {
        println!("\nIDLE CONNECTIONS SKIPPED: they need {FILES_FOR_IDLE} open files, and the limit is {files:?}");
    } else if options.idle {
        for name in names {
            if name != "two threads" {
                measure_idle(name, options.rounds, options.time)?;
            }
        }
    }
    Ok(())
}

fn measure(server: &ServerProcess, shape: Shape, time: Duration) -> anyhow::Result<Measured> {
    load::measure(server, shape, time, Ok)
}

/// What idle connections cost: memory, and what they take from the busy ones. The two threads per connection of the
/// third rival do not fit into the default limit of memory maps.
fn measure_idle(name: &str, rounds: usize, time: Duration) -> anyhow::Result<()> {
    let server = ServerProcess::start(name)?;
    let rate = |rounds: usize| -> anyhow::Result<f64> {
        let mut rates = Vec::new();
        for _ in 0..rounds {
            rates.push(measure(&server, SHAPES[1], time)?.rate);
        }
        Ok(median(&mut rates))
    };
    let without = rate(rounds)?;
    let before = server.resident_kib()?;
    let idle = load::idle_connections(server.addr(), IDLE_CONNECTIONS)?;
    let after = server.resident_kib()?;
    let with = rate(rounds)?;
    println!(
        "\n{name}, {} idle connections: {:.1} KiB resident each; 8 × 16 at {:.2} of the rate without them \
         ({with:.0} and {without:.0} requests/s)",
        idle.len(),
        (after as f64 - before as f64) / idle.len() as f64,
        with / without
    );
    Ok(())
}

fn parse(args: &[String]) -> anyhow::Result<Options> {
    let mut options =
        Options { rounds: 5, time: Duration::from_secs(2), only: None, shape: None, idle: true, plot: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| anyhow::anyhow!("{arg} needs a value"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.time = Duration::from_secs_f64(value()?.parse()?),
            "--only" => options.only = Some(value()?.clone()),
            "--shape" => options.shape = Some(value()?.clone()),
            "--plot" => options.plot = Some(value()?.into()),
            "--no-idle" => options.idle = false,
            "--bench" => {}
            _ => {
                anyhow::bail!("options: --rounds N, --seconds S, --only NAME, --shape 8x16, --no-idle, --plot FILE.svg")
            }
        }
    }
    Ok(options)
}
