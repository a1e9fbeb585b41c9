//! Random programs of several submitters: whatever is submitted, repeated, cancelled, delayed, waited for or shut down,
//! each accepted task has one outcome, and the books balance.

mod common;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use backroom::{
    Finished, Later, OutcomeKind, Priority, Repetition, Retry, Submitter, TaskContext, TaskId, TaskOptions, TaskPool,
    TaskStats, WaitError,
};
use common::{PATIENCE, assert_balanced};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use proptest::prelude::*;

/// What a task does.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Return,
    Fail,
    Panic,
    /// Gives so many results first.
    Results(u8),
    /// Runs for so long, or until it is cancelled.
    Work(u8),
    /// Submits this many further tasks, the last with little time left.
    Submit(u8),
    FinishLater,
    DropReply,
    Progress,
}

/// What a submitter does.
#[derive(Clone, Debug)]
enum Step {
    Submit(Deed, Way, Options),
    Closure(bool),
    Repeat(Deed, Options),
    StopRepeating,
    Cancel(prop::sample::Index),
    Wait(Deed, u8),
    WaitMulti(Vec<Deed>, u8),
    RunFinished,
    Recycle,
    LookAtStats,
}

#[derive(Clone, Copy, Debug)]
enum Way {
    OnFinish,
    Then,
    Each,
    Unheard,
    Try,
}

#[derive(Clone, Copy, Debug)]
struct Options {
    worker: Option<usize>,
    priority: Priority,
    deadline: Option<u8>,
    after: Option<u8>,
    attempts: u32,
}

#[derive(Clone, Debug)]
struct Program {
    task_workers: usize,
    capacity: usize,
    in_order: bool,
    max_tasks: Option<u64>,
    /// Those of each submitter.
    steps: Vec<Vec<Step>>,
    end: End,
}

#[derive(Clone, Copy, Debug)]
enum End {
    /// All is finished and heard of, and then the pool is shut down.
    AtRest,
    /// The pool is shut down with so many milliseconds, and then the submitters hear what has come.
    Shutdown(u8),
    /// The submitters are gone first.
    SubmittersGone,
}

fn deeds() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => Just(Deed::Return),
        2 => Just(Deed::Fail),
        1 => Just(Deed::Panic),
        2 => (1..5u8).prop_map(Deed::Results),
        2 => (0..4u8).prop_map(Deed::Work),
        2 => (1..4u8).prop_map(Deed::Submit),
        1 => Just(Deed::FinishLater),
        1 => Just(Deed::DropReply),
        1 => Just(Deed::Progress),
    ]
}

fn all_options() -> impl Strategy<Value = Options> {
    let priority = prop_oneof![3 => Just(Priority::Normal), 1 => Just(Priority::High), 1 => Just(Priority::Low)];
    let worker = prop_oneof![3 => Just(None), 1 => (0..4usize).prop_map(Some)];
    let millis = || prop_oneof![3 => Just(None), 1 => (0..6u8).prop_map(Some)];
    (worker, priority, millis(), millis(), 1..4u32).prop_map(|(worker, priority, deadline, after, attempts)| Options {
        worker,
        priority,
        deadline,
        after,
        attempts,
    })
}

fn steps() -> impl Strategy<Value = Step> {
    let ways = prop_oneof![Just(Way::OnFinish), Just(Way::Then), Just(Way::Each), Just(Way::Unheard), Just(Way::Try)];
    prop_oneof![
        10 => (deeds(), ways, all_options()).prop_map(|(deed, way, options)| Step::Submit(deed, way, options)),
        1 => any::<bool>().prop_map(Step::Closure),
        1 => (deeds(), all_options()).prop_map(|(deed, options)| Step::Repeat(deed, options)),
        1 => Just(Step::StopRepeating),
        4 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        1 => (deeds(), 0..4u8).prop_map(|(deed, millis)| Step::Wait(deed, millis)),
        1 => (prop::collection::vec(deeds(), 0..5), 0..4u8).prop_map(|(deeds, millis)| Step::WaitMulti(deeds, millis)),
        3 => Just(Step::RunFinished),
        1 => Just(Step::Recycle),
        1 => Just(Step::LookAtStats),
    ]
}

fn programs() -> impl Strategy<Value = Program> {
    let end = prop_oneof![Just(End::AtRest), (0..4u8).prop_map(End::Shutdown), Just(End::SubmittersGone)];
    let max_tasks = prop_oneof![Just(None), (1..5u64).prop_map(Some)];
    let all_steps = prop::collection::vec(prop::collection::vec(steps(), 0..40), 1..4);
    (1..4usize, 3..30usize, any::<bool>(), max_tasks, all_steps, end).prop_map(
        |(task_workers, capacity, in_order, max_tasks, steps, end)| Program {
            task_workers,
            capacity,
            in_order,
            max_tasks,
            steps,
            end,
        },
    )
}

impl Options {
    fn build<T: Clone>(self) -> TaskOptions<T> {
        let mut options = TaskOptions::new().priority(self.priority);
        if let Some(worker) = self.worker {
            options = options.worker(worker);
        }
        if let Some(time) = self.deadline {
            options = options.deadline(millis(time));
        }
        if let Some(time) = self.after {
            options = options.after(millis(time));
        }
        if self.attempts > 1 {
            options = options.retry(Retry::attempts(self.attempts).backoff(millis(1), millis(2)));
        }
        options
    }
}

fn millis(millis: u8) -> Duration {
    Duration::from_millis(millis.into())
}

/// Without a line on stderr.
fn quiet_panic() -> ! {
    std::panic::resume_unwind(Box::new("as it was told"))
}

fn perform(cx: &mut TaskContext<Deed, u8, u64, ()>, deed: Deed) -> anyhow::Result<u8> {
    *cx.worker() += 1;
    match deed {
        Deed::Return => {}
        Deed::Fail => bail!("as it was told"),
        Deed::Panic => quiet_panic(),
        Deed::Results(count) => (0..count).for_each(|number| drop(cx.finish(number))),
        Deed::Work(time) => {
            let start = Instant::now();
            while start.elapsed() < millis(time) && !cx.cancelled() && !cx.expired() {
                thread::yield_now();
            }
        }
        Deed::Submit(count) => {
            for _ in 0..count {
                let _ = cx.task(Deed::Return);
                let _ = cx.task_oneway(Deed::Fail);
            }
            let _ = cx.task_with(&TaskOptions::new().deadline(millis(count - 1)), Deed::Work(2));
        }
        Deed::FinishLater => {
            return cx.finish_later(|reply: Later<u8>| drop(thread::spawn(move || reply.finish(1))));
        }
        Deed::DropReply => return cx.finish_later(drop),
        Deed::Progress => (0..10).for_each(|done| cx.progress(done, 10)),
    }
    Ok(0)
}

/// How often each task's end was heard.
type Ends = Rc<RefCell<HashMap<TaskId, Vec<OutcomeKind>>>>;

thread_local! {
    /// What `on_finish` hears, on the thread of each submitter.
    static HEARD: RefCell<Vec<(TaskId, OutcomeKind)>> = const { RefCell::new(Vec::new()) };
}

/// One submitter, which takes the steps of a program.
struct Run {
    pool: Arc<TaskPool<Deed, u8>>,
    submitter: Submitter<Deed, u8>,
    ends: Ends,
    /// Tasks whose end is to be heard of, and closures'.
    expected: Vec<TaskId>,
    accepted: Vec<TaskId>,
    repetitions: Vec<Repetition>,
    /// The last sequence that was handed out.
    taken: u64,
}

fn start(program: &Program) -> TaskPool<Deed, u8> {
    let mut builder = TaskPool::builder()
        .task_worker(|_| Ok(0u64))
        .task_worker_num(program.task_workers)
        .queue_capacity(program.capacity)
        .results_in_order(program.in_order)
        .max_results(4);
    if let Some(tasks) = program.max_tasks {
        builder = builder.task_max_request(tasks).task_max_request_grace(1);
    }
    builder
        .on_task(perform)
        .on_finish(|_, done| {
            if done.is_last() {
                HEARD.with_borrow_mut(|heard| heard.push((done.id(), done.outcome().kind())));
            }
            Ok(())
        })
        .on_progress(|_, _, _| Ok(()))
        .build()
        .unwrap()
}

impl Run {
    fn new(pool: Arc<TaskPool<Deed, u8>>) -> Run {
        let submitter = pool.submitter();
        let (expected, accepted, repetitions) = (Vec::new(), Vec::new(), Vec::new());
        Run { pool, submitter, ends: Ends::default(), expected, accepted, repetitions, taken: 0 }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Submit(deed, way, options) => self.submit(*deed, *way, *options),
            Step::Closure(panics) => {
                let (panics, ends) = (*panics, Rc::clone(&self.ends));
                let id = Rc::new(RefCell::new(None));
                let own = Rc::clone(&id);
                let work = move || if panics { quiet_panic() } else { 7 };
                let finish = move |_: &mut Submitter<_, _>, result: Result<i32, _>| {
                    let kind = result.map_or(OutcomeKind::Panicked, |_| OutcomeKind::Done);
                    ends.borrow_mut().entry(own.borrow().unwrap()).or_default().push(kind);
                    Ok(())
                };
                if let Ok(task) = self.submitter.run(work, finish) {
                    *id.borrow_mut() = Some(task);
                    self.accept(task);
                    self.expected.push(task);
                }
            }
            Step::Repeat(deed, options) => {
                let deed = *deed;
                let with = self.submitter.with(options.build());
                self.repetitions.extend(with.task_every(millis(1), move || deed));
            }
            Step::StopRepeating => self.repetitions.drain(..).for_each(|repetition| repetition.stop()),
            Step::Cancel(index) => {
                if !self.accepted.is_empty() {
                    self.submitter.cancel(*index.get(&self.accepted));
                }
            }
            Step::Wait(deed, time) => {
                let result = self.submitter.task_wait(*deed, millis(*time));
                self.waited(&result);
            }
            Step::WaitMulti(deeds, time) => {
                let results = self.submitter.task_wait_multi(deeds.clone(), millis(*time));
                assert_eq!(results.len(), deeds.len());
                results.iter().for_each(|result| self.waited(result));
            }
            Step::RunFinished => drop(self.submitter.run_finished()),
            Step::Recycle => self.pool.recycle(),
            Step::LookAtStats => {
                let stats = self.pool.stats();
                assert!(stats.accepted >= stats.outcomes() && stats.accepted >= stats.pending, "{stats:?}");
            }
        }
    }

    /// A waited task takes an id like any other, but nobody is told it.
    fn waited(&mut self, result: &Result<u8, WaitError>) {
        if !matches!(result, Err(WaitError::NotAccepted(_))) {
            self.taken += 1;
        }
    }

    /// Ids have no gaps.
    fn accept(&mut self, id: TaskId) {
        self.taken += 1;
        assert_eq!(id.sequence(), self.taken);
        self.accepted.push(id);
    }

    fn submit(&mut self, deed: Deed, way: Way, options: Options) {
        let ends = Rc::clone(&self.ends);
        let note = move |_: &mut Submitter<_, _>, done: Finished<u8>| {
            if done.is_last() {
                ends.borrow_mut().entry(done.id()).or_default().push(done.outcome().kind());
            }
            Ok(())
        };
        let with = self.submitter.with(options.build());
        let submitted = match way {
            Way::OnFinish => with.task(deed),
            Way::Then => with.task_then(deed, note),
            Way::Each => with.task_each(deed, note),
            Way::Unheard => with.task_oneway(deed),
            Way::Try => with.try_task(deed).map_err(|error| error.reason()),
        };
        if let Ok(id) = submitted {
            self.accept(id);
            if !matches!(way, Way::Unheard) {
                self.expected.push(id);
            }
        }
    }

    /// A one-way task, or one that has timed out and still runs, may submit tasks that are to be heard of.
    fn hear_all(&mut self) {
        self.take(&Step::StopRepeating);
        let start = Instant::now();
        let is_busy = |run: &Run| run.pool.stats().pending > 0 || run.pool.stats().task_workers_busy > 0;
        while self.submitter.tasks_in_flight() > 0 || is_busy(self) || self.submitter.tasks_in_flight() > 0 {
            assert!(start.elapsed() < PATIENCE, "{:?} {:?}", self.submitter, self.pool.stats());
            self.submitter.run_finished_for(millis(1));
        }
    }
}

/// What a submitter and the main thread say to each other.
struct Line {
    /// It lets go of the pool now, and later says how many tasks it has to hear of.
    says: Sender<usize>,
    is_told: Receiver<()>,
}

fn check(program: &Program) {
    let pool = Arc::new(start(program));
    thread::scope(|scope| {
        let (says, heard) = unbounded();
        let told: Vec<Sender<()>> = program
            .steps
            .iter()
            .map(|steps| {
                let (tell, is_told) = bounded(1);
                let (pool, line) = (Arc::clone(&pool), Line { says: says.clone(), is_told });
                scope.spawn(move || take_steps(pool, steps, program.end, &line));
                tell
            })
            .collect();
        drop(says);
        // Fewer where one has failed, which ends the test.
        let done = heard.iter().take(told.len()).count();
        let time = if let End::Shutdown(time) = program.end { millis(time) } else { PATIENCE };
        let tasks = Arc::into_inner(pool).expect("all have let go of it").shutdown(time).tasks;
        for tell in &told {
            // One that has failed does not listen.
            let _ = tell.send(());
        }
        let to_be_heard: usize = heard.iter().sum();
        if done == told.len() {
            check_books(program.end, &tasks, to_be_heard);
        }
    });
}

fn take_steps(pool: Arc<TaskPool<Deed, u8>>, steps: &[Step], end: End, line: &Line) {
    let mut run = Run::new(pool);
    steps.iter().for_each(|step| run.take(step));
    if let End::AtRest = end {
        run.hear_all();
    }
    let Run { pool, mut submitter, ends, expected, .. } = run;
    drop(pool);
    if let End::SubmittersGone = end {
        drop(submitter);
        return line.says.send(0).unwrap();
    }
    line.says.send(0).unwrap();
    line.is_told.recv().unwrap();
    line.says.send(submitter.tasks_in_flight()).unwrap();
    while submitter.tasks_in_flight() > 0 {
        assert!(submitter.run_finished() > 0, "all outcomes are here: {submitter:?}");
    }
    assert_each_ended_once(&expected, &ends);
}

fn check_books(end: End, tasks: &TaskStats, to_be_heard: usize) {
    match end {
        End::AtRest => assert_eq!((to_be_heard, tasks.abandoned), (0, 0), "{tasks:?}"),
        End::Shutdown(_) | End::SubmittersGone => {}
    }
    // As if the submitters had heard all of it.
    let mut tasks = *tasks;
    tasks.delivered += to_be_heard as u64;
    assert_balanced(&tasks);
}

fn assert_each_ended_once(expected: &[TaskId], ends: &Ends) {
    let mut heard = ends.borrow().clone();
    HEARD.with_borrow(|more| more.iter().for_each(|(id, kind)| heard.entry(*id).or_default().push(*kind)));
    for id in expected {
        assert_eq!(heard.get(id).map_or(0, Vec::len), 1, "{id}: {:?}", heard.get(id));
    }
    assert!(heard.values().all(|kinds| kinds.len() == 1), "{heard:?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300),
        // What fails depends on the time as well, so it is of no use to keep.
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn random_programs_keep_the_books_balanced_and_give_each_task_one_outcome(program in programs()) {
        check(&program);
    }
}
