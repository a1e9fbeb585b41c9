//! Hashes the files of a folder in a task pool: how a program without async, with a loop of its own, adopts backroom.
//!
//! ```sh
//! cargo run --release --example embed -- /usr/share > sums
//! sha256sum --quiet -c sums
//! ```
//!
//! Digests go to stdout in the form of `sha256sum`, a progress bar and a summary to stderr. Ctrl-C begins no further
//! file, finishes those that are begun, and says what was left out; a second Ctrl-C no longer waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backroom::{Finished, Submitter, TaskInfo, TaskPool};
use clap::Parser;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Writes the SHA-256 of every file under a folder to stdout
#[derive(Parser)]
#[command(name = "embed")]
struct Args {
    folder: PathBuf,
    /// How many files are hashed at once [default: one per processor]
    #[arg(long)]
    threads: Option<usize>,
    /// How long the files that are begun may take after Ctrl-C
    #[arg(long, default_value_t = 10)]
    drain_secs: u64,
}

struct Hashed {
    path: PathBuf,
    bytes: u64,
    digest: String,
}

/// What the finish closures share with the loop. All of it stays on this thread.
struct Tally {
    bar: ProgressBar,
    out: io::BufWriter<io::Stdout>,
    hashed: u64,
    bytes: u64,
    failed: u64,
    /// stdout is gone, so there is no use in going on.
    broken: Option<io::Error>,
}

/// As `eprintln`, but who takes no notes stops nothing.
macro_rules! note {
    ($($text:tt)*) => { drop(writeln!(io::stderr(), $($text)*)) };
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(4, usize::from));
    // Before anything is begun, so that no Ctrl-C ends the program the hard way.
    let interrupts = count_interrupts()?;
    let (mut files, unreadable) = find_files(&args.folder, &interrupts)?;
    let total = files.len() as u64;

    // Each task worker keeps one buffer for all its files.
    let pool = TaskPool::builder()
        .task_worker_num(threads)
        .task_worker(|_index| Ok(vec![0; 256 * 1024]))
        .task_times(true)
        .on_task(|cx, path: PathBuf| {
            let (buffer, task) = cx.parts();
            hash(path, buffer, task)
        })
        .build()?;
    let mut submitter = pool.submitter();
    let tally = Rc::new(RefCell::new(Tally::new(total)));
    let start = Instant::now();

    // The program's own loop: it keeps the pool busy, and hears what has come of it.
    while interrupts.load(Ordering::Relaxed) == 0 && tally.borrow().broken.is_none() {
        while submitter.tasks_in_flight() < 2 * threads {
            let Some(path) = files.pop_front() else { break };
            let tally = Rc::clone(&tally);
            submitter.task_then(path.clone(), move |_, done| tally.borrow_mut().note(&path, done))?;
        }
        if submitter.tasks_in_flight() == 0 {
            break;
        }
        submitter.run_finished_for(Duration::from_millis(100));
    }

    drain(&mut submitter, &interrupts, Duration::from_secs(args.drain_secs));
    let times = pool.task_times();
    let report = pool.shutdown(Duration::ZERO);
    submitter.run_finished();

    let mut tally = tally.borrow_mut();
    let flushed = tally.out.flush();
    tally.bar.finish_and_clear();
    let left = total - tally.hashed - tally.failed;
    note!(
        "{} files, {} in {}; {} failed, {left} left out",
        tally.hashed,
        HumanBytes(tally.bytes),
        HumanDuration(start.elapsed()),
        tally.failed,
    );
    if let Some(times) = times.filter(|times| times.run.count() > 0) {
        let [median, tail, longest] = [times.run.quantile(0.5), times.run.quantile(0.99), times.run.max()];
        note!("per file: median {median:.1?}, 99th percentile {tail:.1?}, longest {longest:.1?}");
    }
    if report.task_workers_running > 0 {
        note!("{} files were given up while they were read", report.task_workers_running);
    }
    if let Some(error) = tally.broken.take().or(flushed.err()) {
        return Err(error).context("stdout");
    }
    Ok(match (interrupts.load(Ordering::Relaxed), tally.failed + unreadable) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::FAILURE,
        _ => ExitCode::from(130),
    })
}

/// Waits for the files that are begun, until the time is over or somebody insists.
fn drain(submitter: &mut Submitter<PathBuf, Hashed>, interrupts: &AtomicUsize, time: Duration) {
    let start = Instant::now();
    while submitter.tasks_in_flight() > 0 && interrupts.load(Ordering::Relaxed) < 2 && start.elapsed() < time {
        submitter.run_finished_for(Duration::from_millis(100));
    }
}

/// Runs on a task worker.
fn hash(path: PathBuf, buffer: &mut [u8], task: &TaskInfo<PathBuf, Hashed, ()>) -> anyhow::Result<Hashed> {
    let mut file = File::open(&path)?;
    let (mut digest, mut bytes) = (Sha256::new(), 0);
    loop {
        // The pool has given this file up; nobody will hear of it.
        if task.cancelled() {
            bail!("given up");
        }
        match file.read(buffer)? {
            0 => break,
            read => {
                digest.update(&buffer[..read]);
                bytes += read as u64;
            }
        }
    }
    let digest = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Hashed { path, bytes, digest })
}

impl Tally {
    fn new(total: u64) -> Tally {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} files, {msg}, {eta} left");
        let bar = ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let out = io::BufWriter::new(io::stdout());
        Tally { bar, out, hashed: 0, bytes: 0, failed: 0, broken: None }
    }

    fn note(&mut self, path: &Path, done: Finished<Hashed>) -> anyhow::Result<()> {
        match done.into_result() {
            Ok(Hashed { path, bytes, digest }) => {
                self.hashed += 1;
                self.bytes += bytes;
                self.bar.inc(1);
                self.bar.set_message(HumanBytes(self.bytes).to_string());
                if let Err(error) = write_sum(&mut self.out, &digest, &path) {
                    self.broken.get_or_insert(error);
                }
            }
            Err(backroom::TaskFailure::Failed(error)) => {
                self.failed += 1;
                self.bar.inc(1);
                self.bar.suspend(|| note!("{}: {error}", path.display()));
            }
            // Given up at the end, or a bug: it is left out.
            Err(failure) => self.bar.suspend(|| note!("{}: {failure}", path.display())),
        }
        Ok(())
    }
}

/// A line as `sha256sum` writes it, whatever is in the name.
fn write_sum(out: &mut impl Write, digest: &str, path: &Path) -> io::Result<()> {
    let name = path.as_os_str().as_encoded_bytes();
    if name.iter().any(|byte| b"\\\n\r".contains(byte)) {
        out.write_all(b"\\")?;
    }
    write!(out, "{digest}  ")?;
    for byte in name {
        match byte {
            b'\\' => out.write_all(b"\\\\")?,
            b'\n' => out.write_all(b"\\n")?,
            b'\r' => out.write_all(b"\\r")?,
            _ => out.write_all(&[*byte])?,
        }
    }
    out.write_all(b"\n")
}

/// The files under the folder, and how many folders could not be read.
fn find_files(folder: &Path, interrupts: &AtomicUsize) -> anyhow::Result<(VecDeque<PathBuf>, u64)> {
    let (mut files, mut unreadable) = (VecDeque::new(), 0);
    let mut folders = list(folder, &mut files).with_context(|| folder.display().to_string())?;
    while let Some(folder) = folders.pop() {
        if interrupts.load(Ordering::Relaxed) > 0 {
            bail!("interrupted before the first file");
        }
        match list(&folder, &mut files) {
            Ok(inner) => folders.extend(inner),
            Err(error) => {
                unreadable += 1;
                note!("{}: {error}", folder.display());
            }
        }
    }
    Ok((files, unreadable))
}

/// Adds the files of one folder, and returns the folders in it.
fn list(folder: &Path, files: &mut VecDeque<PathBuf>) -> io::Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            folders.push(entry.path());
        } else if kind.is_file() {
            files.push_back(entry.path());
        }
    }
    Ok(folders)
}

fn count_interrupts() -> anyhow::Result<Arc<AtomicUsize>> {
    let count = Arc::new(AtomicUsize::new(0));
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if counted.fetch_add(1, Ordering::Relaxed) == 1 {
                // It may hang where nobody reads what it writes.
                std::thread::sleep(Duration::from_secs(1));
                std::process::exit(130);
            }
        }
    });
    Ok(count)
}
