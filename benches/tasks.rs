//! `cargo bench --bench tasks`: the back room alone, without a socket, beside other ways to have a thread do something
//! and hear back. See docs/PERFORMANCE.md.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backroom::{Finished, Submitter, TaskPool};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use crossbeam_channel::{Receiver, Sender, unbounded};

const THREADS: [usize; 3] = [1, 2, 4];
const IN_FLIGHT: u64 = 256;

/// Somebody who takes numbers and gives them back incremented, in any order.
trait Rival {
    fn submit(&mut self, number: u64);
    fn wait(&mut self) -> u64;
}

fn task(number: u64) -> u64 {
    black_box(number) + 1
}

struct Backroom {
    submitter: Submitter<u64, u64>,
    /// Results that have come, for whoever waits for them.
    results: Rc<RefCell<VecDeque<u64>>>,
    _pool: TaskPool<u64, u64>,
}

impl Backroom {
    fn start(threads: usize) -> Backroom {
        let pool = TaskPool::builder()
            .task_worker_num(threads)
            .on_task(|_cx, number| Ok(task(number)))
            .build()
            .expect("a pool");
        Backroom { submitter: pool.submitter(), results: Rc::default(), _pool: pool }
    }
}

impl Rival for Backroom {
    fn submit(&mut self, number: u64) {
        let results = Rc::clone(&self.results);
        let finish = move |_: &mut Submitter<_, _>, done: Finished<u64>| {
            results.borrow_mut().push_back(done.into_result()?);
            Ok(())
        };
        self.submitter.task_then(number, finish).expect("accepted");
    }

    fn wait(&mut self) -> u64 {
        loop {
            if let Some(result) = self.results.borrow_mut().pop_front() {
                return result;
            }
            self.submitter.run_finished_for(Duration::from_secs(60));
        }
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

impl Rival for RawPair {
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

impl<E: FnMut(Job)> Rival for Closures<E> {
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
        ("backroom", Box::new(Backroom::start(threads))),
        ("raw crossbeam pair", Box::new(RawPair::start(threads, 0))),
        ("raw pair, yielding", Box::new(RawPair::start(threads, 128))),
        ("threadpool", closures(move |job| threadpool.execute(|| job.run()))),
        ("rayon spawn", closures(move |job| rayon.spawn(|| job.run()))),
        ("tokio spawn_blocking", closures(move |job| drop(tokio.spawn_blocking(|| job.run())))),
    ]
}

fn round_trip(rival: &mut dyn Rival) {
    rival.submit(1);
    assert_eq!(rival.wait(), 2);
}

/// Keeps so many in flight that none waits for another's way back.
fn many_in_flight(rival: &mut dyn Rival, tasks: u64) -> Duration {
    let start = Instant::now();
    let (mut sent, mut sum) = (0, 0u64);
    while sent < tasks.min(IN_FLIGHT) {
        rival.submit(sent);
        sent += 1;
    }
    for _ in 0..tasks {
        sum += rival.wait();
        if sent < tasks {
            rival.submit(sent);
            sent += 1;
        }
    }
    assert_eq!(sum, tasks * (tasks + 1) / 2, "every result came back once");
    start.elapsed()
}

fn benchmarks(criterion: &mut Criterion) {
    for threads in THREADS {
        let mut group = criterion.benchmark_group(format!("round trip, 1 in flight, {threads} threads"));
        for (name, mut rival) in rivals(threads) {
            group.bench_function(name, |bencher| bencher.iter(|| round_trip(&mut *rival)));
        }
        group.finish();

        let mut group = criterion.benchmark_group(format!("rate, {IN_FLIGHT} in flight, {threads} threads"));
        group.throughput(Throughput::Elements(1));
        for (name, mut rival) in rivals(threads) {
            group.bench_function(name, |bencher| bencher.iter_custom(|tasks| many_in_flight(&mut *rival, tasks)));
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
