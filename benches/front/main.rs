//! `cargo bench --bench front --features tls`: what the front of house does beside requests: connections that come and
//! go, TLS, and one message to thousands; against rivals, in turns. See docs/PERFORMANCE.md.

mod broadcast;
mod churn;
mod rivals;
#[path = "../shared/mod.rs"]
mod shared;
#[cfg(feature = "tls")]
mod tls;

use std::time::Duration;

use shared::process::raise_file_limit;

/// As many as the machines have cores for; the same for all rivals.
const THREADS: usize = 2;

pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    only: Option<String>,
    rival: Option<String>,
}

impl Options {
    /// Of these, those that are asked for.
    pub(crate) fn names<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let wanted = |name: &&str| self.rival.as_deref().is_none_or(|only| only == *name);
        names.iter().copied().filter(wanted).collect()
    }
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "--serve") {
        return rivals::serve(args.get(at + 1).map_or("", String::as_str), THREADS);
    }
    raise_file_limit()?;
    let options = parse(&args)?;
    let asked_for = |section: &str| options.only.as_deref().is_none_or(|only| only == section);
    println!("{} rounds, in turns; {} cores", options.rounds, std::thread::available_parallelism()?);
    if asked_for("churn") {
        churn::run(&options)?;
    }
    #[cfg(feature = "tls")]
    if asked_for("tls") {
        tls::run(&options)?;
    }
    #[cfg(not(feature = "tls"))]
    println!("\nTLS SKIPPED: it needs --features tls");
    if asked_for("broadcast") {
        broadcast::run(&options)?;
    }
    Ok(())
}

fn parse(args: &[String]) -> anyhow::Result<Options> {
    let mut options = Options { rounds: 7, time: Duration::from_secs(1), only: None, rival: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| anyhow::anyhow!("{arg} needs a value"));
        match arg.as_str() {
            "--rounds" => options.rounds = value()?.parse()?,
            "--seconds" => options.time = Duration::from_secs_f64(value()?.parse()?),
            "--only" => options.only = Some(value()?.clone()),
            "--rival" => options.rival = Some(value()?.clone()),
            "--bench" => {}
            _ => anyhow::bail!("options: --rounds N, --seconds S, --only churn|tls|broadcast, --rival NAME"),
        }
    }
    Ok(options)
}
