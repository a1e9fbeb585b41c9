//! Medians, spreads and ratios, as a table.

use std::time::Duration;

use hdrhistogram::Histogram;

/// What a load has had from a server.
pub(crate) struct Answers {
    pub(crate) count: u64,
    pub(crate) time: Duration,
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
}

/// One round of one server.
pub(crate) struct Measured {
    /// Requests per second.
    pub(crate) rate: f64,
    /// Microseconds.
    p50: f64,
    p99: f64,
    p999: f64,
    /// Microseconds of processor time of the server per request.
    cpu: f64,
}

impl Measured {
    pub(crate) fn new(answers: &Answers, cpu: Duration) -> Measured {
        let percentile = |quantile| answers.latency.value_at_quantile(quantile) as f64 / 1e3;
        Measured {
            rate: answers.count as f64 / answers.time.as_secs_f64(),
            p50: percentile(0.5),
            p99: percentile(0.99),
            p999: percentile(0.999),
            cpu: cpu.as_secs_f64() * 1e6 / answers.count as f64,
        }
    }
}

/// Of several rounds.
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

/// A figure's name, how to get it, and with how many digits to print it.
type Figure = (&'static str, fn(&Measured) -> f64, usize);

const FIGURES: [Figure; 5] = [
    ("requests/s", |measured| measured.rate, 0),
    ("p50, µs", |measured| measured.p50, 1),
    ("p99, µs", |measured| measured.p99, 1),
    ("p99.9, µs", |measured| measured.p999, 1),
    ("server CPU, µs/request", |measured| measured.cpu, 2),
];

/// A column per server, the first of which the others are compared with.
pub(crate) struct Table<'a> {
    names: &'a [&'a str],
    rounds: Vec<Vec<Measured>>,
}

impl Table<'_> {
    pub(crate) fn new<'a>(names: &'a [&'a str]) -> Table<'a> {
        Table { names, rounds: names.iter().map(|_| Vec::new()).collect() }
    }

    pub(crate) fn add(&mut self, column: usize, measured: Measured) {
        self.rounds[column].push(measured);
    }

    pub(crate) fn print(&self) {
        print!("{:<24}", "median (least–most)");
        self.names.iter().for_each(|name| print!("{name:>34}"));
        println!();
        for (figure, get, digits) in FIGURES {
            print!("{figure:<24}");
            for rounds in &self.rounds {
                let Spread { median, least, most } = spread(rounds, get);
                print!("{:>34}", format!("{median:.digits$} ({least:.digits$}–{most:.digits$})"));
            }
            println!();
        }
        for (column, name) in self.names.iter().enumerate().skip(1) {
            let ratios: Vec<String> =
                FIGURES.iter().map(|(figure, get, _)| format!("{figure} × {:.2}", self.ratio(column, *get))).collect();
            println!("{} / {name}, median of the rounds: {}", self.names[0], ratios.join(", "));
        }
    }

    /// Requests per second of each server.
    pub(crate) fn rates(&self) -> Vec<Spread> {
        self.rounds.iter().map(|rounds| spread(rounds, |measured| measured.rate)).collect()
    }

    /// Round by round, since two servers measured one after the other had the same neighbours on the machine.
    fn ratio(&self, column: usize, get: fn(&Measured) -> f64) -> f64 {
        let mut ratios: Vec<f64> =
            self.rounds[0].iter().zip(&self.rounds[column]).map(|(ours, theirs)| get(ours) / get(theirs)).collect();
        median(&mut ratios)
    }
}

fn spread(rounds: &[Measured], get: fn(&Measured) -> f64) -> Spread {
    let mut values: Vec<f64> = rounds.iter().map(get).collect();
    let median = median(&mut values);
    Spread { median, least: values[0], most: values[values.len() - 1] }
}

/// Sorts the values and returns the middle one.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
