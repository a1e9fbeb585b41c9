//! The thread of the timer. Alone in its binary, because it counts the threads of the process.

mod common;

use std::fs;
use std::time::Duration;

use backroom::{Priority, Retry, TaskOptions, TaskPool};
use common::{PATIENCE, eventually, threads};

/// How many threads there are with the name of the timer's.
fn timers() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    // One may end between the two.
    let names = threads.filter_map(|thread| fs::read_to_string(thread.unwrap().path().join("comm")).ok());
    names.filter(|name| name.trim_end() == "br-timer").count()
}

#[test]
fn the_timers_thread_starts_when_it_is_first_used_and_there_is_one() {
    let pool = TaskPool::builder()
        .task_worker_num(2)
        .on_task(|cx, fails: bool| match fails && cx.attempt() == 1 {
            true => anyhow::bail!("not this time"),
            false => Ok(()),
        })
        .build()
        .unwrap();
    let mut submitter = pool.submitter();
    let (deadline, urgent) = (TaskOptions::new().deadline(PATIENCE), TaskOptions::new().priority(Priority::High));
    let short = Duration::from_millis(1);
    let once = TaskOptions::new().retry(Retry::attempts(2).backoff(short, short));
    for options in [TaskOptions::new(), deadline, urgent.worker(1), once.clone()] {
        submitter.with(options).task_wait(false, PATIENCE).unwrap();
    }
    let before = threads();
    assert_eq!(timers(), 0, "nothing was delayed, repeated or tried again");

    let day = Duration::from_secs(24 * 60 * 60);
    submitter.with(TaskOptions::new().after(day)).task(false).unwrap();
    assert_eq!(threads(), before + 1);
    // It takes its name when it begins to run.
    eventually("it has its name", || timers() == 1);

    let mut other = pool.submitter();
    for submitter in [&mut submitter, &mut other] {
        for millis in 0..100 {
            submitter.with(TaskOptions::new().after(Duration::from_millis(millis))).task_oneway(false).unwrap();
        }
        submitter.with(once.clone()).task_wait(true, PATIENCE).unwrap();
    }
    let repetition = other.task_every(short, || false).unwrap();
    eventually("all but the first have ended", || {
        let tasks = pool.stats();
        tasks.one_way == 200 && tasks.retried == 2 && tasks.delayed == 1
    });
    other.run_finished_for(PATIENCE);
    assert_eq!((timers(), threads()), (1, before + 1), "one for all of them");
    repetition.stop();

    let report = pool.shutdown(PATIENCE);
    assert_eq!((report.tasks.cancelled, report.tasks.failed), (1, 0));
    eventually("it has ended with its pool", || timers() == 0);
}
