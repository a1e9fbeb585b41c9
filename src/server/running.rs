//! A server from its start to its end. What it does step by step never waits for the program's own code longer than it
//! may: each hook runs on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::builder::OnHandle;
use super::core::Core;
use super::handle::ServerHandle;
use super::lifecycle::ShutdownReport;
use super::{BackRoom, Doors, RunHooks};
use crate::aside::aside;
use crate::error::RunError;
use crate::panic::catch;

/// After the deadline, how long the abandoned outcomes may take to be delivered, and `on_shutdown` to return.
const GRACE: Duration = Duration::from_millis(250);

/// Serves until a shutdown was asked for, and is done or at its deadline.
pub(super) fn run(
    core: Arc<Core>,
    doors: Doors,
    back_room: Arc<dyn BackRoom>,
    hooks: RunHooks,
) -> Result<ShutdownReport, RunError> {
    let RunHooks { on_start, before_shutdown, on_shutdown } = hooks;
    let handle = ServerHandle { core: Arc::clone(&core) };
    let mut steps = Steps { core: &core, unfinished: Vec::new() };
    let opened = match start(&mut steps, on_start, &handle)? {
        true => doors.open(&core),
        // A shutdown came first.
        false => Ok(()),
    };
    match &opened {
        Ok(()) => core.lifecycle.wait_for_shutdown(),
        Err(_) => core.lifecycle.begin_shutdown(Duration::ZERO),
    }
    let hook_core = Arc::clone(&core);
    steps.run("before_shutdown", GRACE, move || {
        // A logger may panic, and that is nothing to the hook.
        let _ = catch(|| log::info!("shutting down"));
        if let Some(before_shutdown) = before_shutdown {
            hook_core.run_hook("before_shutdown", || before_shutdown(&handle));
        }
    });
    core.lifecycle.drain();
    let mut report = drain(&mut steps, &back_room);
    let (hook_core, told) = (Arc::clone(&core), report.clone());
    let opened_well = opened.is_ok();
    steps.run("on_shutdown", GRACE, move || {
        let _ = catch(|| log_end(&told));
        drop(back_room);
        if let Some(on_shutdown) = on_shutdown.filter(|_| opened_well) {
            hook_core.run_hook("on_shutdown", || on_shutdown(&told));
        }
    });
    opened.map_err(RunError::Acceptor)?;
    report.hooks_running = steps.unfinished();
    core.lifecycle.end(Ok(report.clone()));
    Ok(report)
}

/// Whether `on_start` has returned before the deadline of a shutdown.
fn start(steps: &mut Steps<'_>, on_start: Option<OnHandle>, handle: &ServerHandle) -> Result<bool, RunError> {
    let Some(on_start) = on_start else { return Ok(true) };
    let handle = handle.clone();
    match steps.run("on_start", Duration::ZERO, move || on_start(&handle)) {
        None => Ok(false),
        Some(Ok(Ok(()))) => Ok(true),
        Some(Ok(Err(error))) => Err(RunError::OnStart(error)),
        Some(Err(message)) => Err(RunError::OnStart(anyhow::anyhow!("it panicked: {message}"))),
    }
}

/// Waits for the connections to finish and close, then for the tasks that nobody waits for any more; at the
/// deadline gives up what is left.
fn drain(steps: &mut Steps<'_>, back_room: &Arc<dyn BackRoom>) -> ShutdownReport {
    let core = steps.core;
    let workers = || core.registry.threads().load(Ordering::Acquire);
    let task_workers = || back_room.loops();

    let room = Arc::clone(back_room);
    core.wake_all();
    steps.run("cancelling", Duration::ZERO, move || room.drain());
    let in_time = core.lifecycle.wait_until(|| workers() == 0) && {
        back_room.end();
        core.lifecycle.wait_until(|| back_room.is_at_rest())
    };
    // In time, this refuses and gives up what no one can have submitted any more: nothing.
    let room = Arc::clone(back_room);
    steps.run("giving up", GRACE, move || room.abandon());
    if !in_time {
        // Not before, since a worker goes once it has delivered what is there.
        core.lifecycle.expire();
        core.wake_all();
        back_room.end();
        core.lifecycle.wait_at_most(GRACE, || workers() == 0 && task_workers() == 0);
    }
    ShutdownReport {
        tasks: back_room.stats(),
        task_workers_running: task_workers(),
        workers_running: workers(),
        hooks_running: steps.unfinished(),
    }
}

fn log_end(report: &ShutdownReport) {
    log::info!(
        "shut down: {} tasks accepted, {} abandoned; {} task workers, {} workers and {:?} still run",
        report.tasks.accepted,
        report.tasks.abandoned,
        report.task_workers_running,
        report.workers_running,
        report.hooks_running,
    );
}

/// What runs the program's own code, one thing after the other.
struct Steps<'a> {
    core: &'a Arc<Core>,
    /// What was not waited for any longer, and whether it has ended since.
    unfinished: Vec<(&'static str, HasEnded)>,
}

type HasEnded = Box<dyn Fn() -> bool>;

impl Steps<'_> {
    /// Runs `code` and waits for it, until the shutdown's deadline or for `grace`, whichever is later. `None`: it was
    /// not waited for any longer.
    fn run<X: Send + 'static>(
        &mut self,
        name: &'static str,
        grace: Duration,
        code: impl FnOnce() -> X + Send + 'static,
    ) -> Option<Result<X, String>> {
        let core = Arc::clone(self.core);
        let returned = aside(&self.core.threads, code, move || core.lifecycle.notify());
        if self.core.lifecycle.wait_with_grace(grace, || !returned.is_empty()) {
            return returned.try_recv().ok();
        }
        self.unfinished.push((name, Box::new(move || !returned.is_empty())));
        None
    }

    /// What has not ended yet.
    fn unfinished(&self) -> Vec<&'static str> {
        self.unfinished.iter().filter(|(_, has_ended)| !has_ended()).map(|(name, _)| *name).collect()
    }
}
