//! `cargo bench --bench tasks`: the back room alone, without a socket, beside other ways to have a thread do something
//! and hear back. See docs/PERFORMANCE.md.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backroom::{Finished, Submitter, TaskPool};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_channel::{Receiver, Sender, unbounded};

const THREADS: [usize; 3] = [1, 2, 4];
const IN_FLIGHT: u64 = 256;

/// Somebody who takes numbers and gives them back incremented, in any order.
trait Rival {
    /// Hands over the numbers from 0 to `tasks` - 1, so many in flight at once that none waits for another's way back.
    /// The sum of the results.
    fn run(&mut self, tasks: u64, in_flight: u64) -> u64;
}

/// The same for a rival that takes one number, and waits for one result.
trait OneByOne {
    fn submit(&mut self, number: u64);
    fn wait(&mut self) -> u64;
}

impl<O: OneByOne> Rival for O {
    fn run(&mut self, tasks: u64, in_flight: u64) -> u64 {
        let mut sent = tasks.min(in_flight);
        (0..sent).for_each(|number| self.submit(number));
        let mut sum = 0;
        for _ in 0..tasks {
            sum += self.wait();
            if sent < tasks {
                self.submit(sent);
                sent += 1;
            }
        }
        sum
    }
}

fn task(number: u64) -> u64 {
    black_box(number) + 1
}

struct Backroom {
    submitter: Submitter<u64, u64>,
    closures: bool,
    _pool: TaskPool<u64, u64>,
}

thread_local! {
    /// What its finish closures share.
    static PROGRESS: Progress = Progress::default();
}

#[derive(Default)]
struct Progress {
    to_send: Cell<u64>,
    sent: Cell<u64>,
    finished: Cell<u64>,
    sum: Cell<u64>,
}

impl Backroom {
    /// With a finish closure for each task, or with one for all.
    fn start(threads: usize, closures: bool) -> Backroom {
        let pool = TaskPool::builder()
            .task_worker_num(threads)
            .on_task(|_, number| Ok(task(number)))
            .on_finish(|submitter, done| finish(submitter, done, false))
            .build()
            .expect("a pool");
        Backroom { submitter: pool.submitter(), closures, _pool: pool }
    }
}

fn submit(submitter: &mut Submitter<u64, u64>, number: u64, closures: bool) {
    let submitted = match closures {
        // It holds something, as most do: a closure that holds nothing needs no memory.
        true => {
            submitter.task_then(number, move |submitter, done| finish(submitter, done, black_box(number) < u64::MAX))
        }
        false => submitter.task(number),
    };
    submitted.expect("accepted");
}

/// Takes the result, and submits the next task if there is one to do.
fn finish(submitter: &mut Submitter<u64, u64>, done: Finished<u64>, closures: bool) -> anyhow::Result<()> {
    let result = done.into_result()?;
    PROGRESS.with(|Progress { to_send, sent, finished, sum }| {
        finished.set(finished.get() + 1);
        sum.set(sum.get() + result);
        if sent.get() < to_send.get() {
            submit(submitter, sent.replace(sent.get() + 1), closures);
        }
    });
    Ok(())
}

impl Rival for Backroom {
    fn run(&mut self, tasks: u64, in_flight: u64) -> u64 {
        PROGRESS.with(|Progress { to_send, sent, finished, sum }| {
            to_send.set(tasks);
            sent.set(tasks.min(in_flight));
            finished.set(0);
            sum.set(0);
            for number in 0..sent.get() {
                submit(&mut self.submitter, number, self.closures);
            }
            while finished.get() < tasks {
                self.submitter.run_finished_for(Duration::from_secs(60));
            }
            sum.get()
        })
    }
}

/// The least there could be: one channel there, one back, and nothing else.
struct RawPair {
    there: Sender<u64>,
    back: Receiver<u64>,
}

impl RawPair {
    /// `yields`: how often a thread with nothing to do lets others run before it blocks, beside the few times that the
    /// channel itself does. We yield, so the pair is shown with it as well.
    fn start(threads: usize, yields: usize) -> RawPair {
        let (there, tasks) = unbounded();
        let (results, back) = unbounded();
        for _ in 0..threads {
            let (tasks, results) = (tasks.clone(), results.clone());
            std::thread::spawn(move || {
                while let Some(number) = next(&tasks, yields) {
                    if results.send(task(number)).is_err() {
                        break;
                    }
                }
            });
        }
        RawPair { there, back }
    }
}

fn next(tasks: &Receiver<u64>, yields: usize) -> Option<u64> {
    for _ in 0..yields {
        if let Ok(number) = tasks.try_recv() {
            return Some(number);
        }
        std::thread::yield_now();
    }
    tasks.recv().ok()
}

impl OneByOne for RawPair {
    fn submit(&mut self, number: u64) {
        self.there.send(number).expect("a thread");
    }

    fn wait(&mut self) -> u64 {
        self.back.recv().expect("a result")
    }
}

/// What a pool runs: a task that sends its result back on a crossbeam channel.
struct Job {
    number: u64,
    results: Sender<u64>,
}

impl Job {
    fn run(self) {
        // Nobody waits for it at the end of a benchmark.
        let _ = self.results.send(task(self.number));
    }
}

struct Closures<E> {
    execute: E,
    results: Sender<u64>,
    back: Receiver<u64>,
}

fn closures<E: FnMut(Job) + 'static>(execute: E) -> Box<dyn Rival> {
    let (results, back) = unbounded();
    Box::new(Closures { execute, results, back })
}

impl<E: FnMut(Job)> OneByOne for Closures<E> {
    fn submit(&mut self, number: u64) {
        (self.execute)(Job { number, results: self.results.clone() });
    }

    fn wait(&mut self) -> u64 {
        self.back.recv().expect("a result")
    }
}

fn rivals(threads: usize) -> Vec<(&'static str, Box<dyn Rival>)> {
    let rayon = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("rayon");
    let threadpool = threadpool::ThreadPool::new(threads);
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(threads)
        .build()
        .map(Arc::new)
        .expect("tokio");
    vec![
        ("backroom", Box::new(Backroom::start(threads, false))),
        ("backroom, a closure each", Box::new(Backroom::start(threads, true))),
        ("raw crossbeam pair", Box::new(RawPair::start(threads, 0))),
        ("raw pair, yielding", Box::new(RawPair::start(threads, 128))),
        ("threadpool", closures(move |job| threadpool.execute(|| job.run()))),
        ("rayon spawn", closures(move |job| rayon.spawn(|| job.run()))),
        ("tokio spawn_blocking", closures(move |job| drop(tokio.spawn_blocking(|| job.run())))),
    ]
}

/// How long so many tasks take.
fn time(rival: &mut dyn Rival, tasks: u64, in_flight: u64) -> Duration {
    let start = Instant::now();
    let sum = rival.run(tasks, in_flight);
    assert_eq!(sum, tasks * (tasks + 1) / 2, "every result came back once");
    start.elapsed()
}

fn benchmarks(criterion: &mut Criterion) {
    for threads in THREADS {
        let mut group = criterion.benchmark_group(format!("round trip, 1 in flight, {threads} threads"));
        for (name, mut rival) in rivals(threads) {
            group.bench_function(name, |bencher| bencher.iter_custom(|tasks| time(&mut *rival, tasks, 1)));
        }
        group.finish();

        let mut group = criterion.benchmark_group(format!("rate, {IN_FLIGHT} in flight, {threads} threads"));
        group.throughput(Throughput::Elements(1));
        for (name, mut rival) in rivals(threads) {
            group.bench_function(name, |bencher| bencher.iter_custom(|tasks| time(&mut *rival, tasks, IN_FLIGHT)));
        }
        group.finish();
    }
}

criterion_group! {
    name = tasks;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = benchmarks
}
criterion_main!(tasks);
