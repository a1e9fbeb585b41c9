//! `cargo bench --bench tasks`: the back room alone, without a socket, beside other ways to have a thread do something
//! and hear back. See docs/PERFORMANCE.md.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backroom::{Priority, Submitter, TaskId, TaskOptions, TaskPool};
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
    form: Form,
    pool: TaskPool<u64, u64>,
}

/// How it is told what to do.
#[derive(Clone, Copy)]
enum Form {
    /// One finish closure for all.
    OnFinish,
    /// A finish closure for each task.
    Then,
    /// Each task on a task worker of its own choice, turn and turn about.
    Pinned(usize),
    /// High, normal and low, turn and turn about.
    Priorities,
    /// A closure instead of a payload.
    Run,
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
    fn start(threads: usize, form: Form) -> Backroom {
        let pool = TaskPool::builder()
            .task_worker_num(threads)
            .queue_capacity(10_000_000)
            .max_tasks_in_flight(10_000_000)
            .on_task(|_, number| Ok(task(number)))
            .on_finish(move |submitter, done| finish(submitter, done.into_result()?, form))
            .build()
            .expect("a pool");
        Backroom { submitter: pool.submitter(), form, pool }
    }
}

fn submit(submitter: &mut Submitter<u64, u64>, number: u64, form: Form) {
    let submitted = match form {
        Form::OnFinish => submitter.task(number),
        // It holds something, as most do: a closure that holds nothing needs no memory.
        Form::Then => submitter.task_then(number, move |submitter, done| {
            black_box(number);
            finish(submitter, done.into_result()?, form)
        }),
        Form::Pinned(threads) => submitter.with(TaskOptions::new().worker(number as usize % threads)).task(number),
        Form::Priorities => {
            let priority = [Priority::High, Priority::Normal, Priority::Low][number as usize % 3];
            submitter.with(TaskOptions::new().priority(priority)).task(number)
        }
        Form::Run => submitter.run(move || task(number), move |submitter, result| finish(submitter, result?, form)),
    };
    submitted.expect("accepted");
}

/// Takes the result, and submits the next task if there is one to do.
fn finish(submitter: &mut Submitter<u64, u64>, result: u64, form: Form) -> anyhow::Result<()> {
    PROGRESS.with(|Progress { to_send, sent, finished, sum }| {
        finished.set(finished.get() + 1);
        sum.set(sum.get() + result);
        if sent.get() < to_send.get() {
            submit(submitter, sent.replace(sent.get() + 1), form);
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
                submit(&mut self.submitter, number, self.form);
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
        ("backroom", Box::new(Backroom::start(threads, Form::OnFinish))),
        ("backroom, a closure each", Box::new(Backroom::start(threads, Form::Then))),
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

fn beside_rivals(criterion: &mut Criterion) {
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

/// What the options cost, beside a plain task and the raw pair.
fn with_options(criterion: &mut Criterion) {
    const THREADS: usize = 2;
    let forms: [(&str, Form); 5] = [
        ("plain", Form::OnFinish),
        ("a closure each", Form::Then),
        ("chosen task workers", Form::Pinned(THREADS)),
        ("three priorities", Form::Priorities),
        ("closures as tasks", Form::Run),
    ];
    let mut group = criterion.benchmark_group(format!("options, {IN_FLIGHT} in flight, {THREADS} threads"));
    group.throughput(Throughput::Elements(1));
    for (name, form) in forms {
        let mut backroom = Backroom::start(THREADS, form);
        group.bench_function(name, |bencher| bencher.iter_custom(|tasks| time(&mut backroom, tasks, IN_FLIGHT)));
    }
    let mut pair = RawPair::start(THREADS, 0);
    group.bench_function("raw crossbeam pair", |bencher| {
        bencher.iter_custom(|tasks| time(&mut pair, tasks, IN_FLIGHT));
    });
    group.finish();
}

/// A round trip that is waited for: one after the other, so that nobody sleeps, and with all threads asleep before
/// each.
fn waits(criterion: &mut Criterion) {
    let mut backroom = Backroom::start(1, Form::OnFinish);
    let mut pair = RawPair::start(1, 0);
    let wait = |backroom: &mut Backroom| {
        let result = backroom.submitter.task_wait(1, Duration::from_secs(60));
        assert_eq!(result.expect("a result"), 2);
    };
    let mut group = criterion.benchmark_group("task_wait, hot");
    group.bench_function("backroom", |bencher| bencher.iter(|| wait(&mut backroom)));
    group.bench_function("raw crossbeam pair", |bencher| bencher.iter(|| pair.run(1, 1)));
    // The pair as it comes sleeps now and then all the same.
    let mut yielding = RawPair::start(1, 128);
    group.bench_function("raw pair, yielding", |bencher| bencher.iter(|| yielding.run(1, 1)));
    group.finish();

    let mut group = criterion.benchmark_group("task_wait, parked");
    group.bench_function("backroom", |bencher| bencher.iter_custom(|times| parked(times, || wait(&mut backroom))));
    group.bench_function("raw crossbeam pair", |bencher| {
        bencher.iter_custom(|times| parked(times, || assert_eq!(pair.run(1, 1), 1)));
    });
    group.finish();
}

/// Leaves the other thread so long that it sleeps, each time.
fn parked(times: u64, mut round_trip: impl FnMut()) -> Duration {
    let mut sum = Duration::ZERO;
    for _ in 0..times {
        std::thread::sleep(Duration::from_micros(300));
        let start = Instant::now();
        round_trip();
        sum += start.elapsed();
    }
    sum
}

/// Delayed tasks, with a million others pending.
fn timers(criterion: &mut Criterion) {
    const PENDING: u64 = 1_000_000;
    let Backroom { mut submitter, pool, .. } = Backroom::start(2, Form::OnFinish);
    let day = |number: u64| Duration::from_secs(24 * 60 * 60) + Duration::from_micros(number * 7919 % PENDING);
    for number in 0..PENDING {
        delayed(&mut submitter, number, day(number));
    }
    assert_eq!(pool.stats().delayed, PENDING);

    let mut group = criterion.benchmark_group("1,000,000 timers pending");
    group.sample_size(20);
    group.throughput(Throughput::Elements(1));
    group.bench_function("insert and cancel", |bencher| {
        bencher.iter_custom(|times| {
            let start = Instant::now();
            let ids: Vec<_> = (0..times).map(|number| delayed(&mut submitter, number, day(number))).collect();
            ids.into_iter().for_each(|id| assert!(submitter.cancel(id)));
            let elapsed = start.elapsed();
            submitter.run_finished();
            elapsed
        });
    });
    group.bench_function("insert, fire and finish", |bencher| {
        bencher.iter_custom(|times| {
            let start = Instant::now();
            for number in 0..times {
                delayed(&mut submitter, number, Duration::ZERO);
            }
            while submitter.tasks_in_flight() > PENDING as usize {
                submitter.run_finished_for(Duration::from_secs(60));
            }
            start.elapsed()
        });
    });
    group.finish();
}

fn delayed(submitter: &mut Submitter<u64, u64>, number: u64, time: Duration) -> TaskId {
    submitter.with(TaskOptions::new().after(time)).task_then(number, |_, _| Ok(())).expect("accepted")
}

criterion_group! {
    name = tasks;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = beside_rivals, with_options, waits, timers
}
criterion_main!(tasks);
