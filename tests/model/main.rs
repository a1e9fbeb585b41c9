//! Models of how threads go to sleep, are woken, and end, in the orders of their steps that the memory model allows,
//! by loom. The sources checked are the library's own, on loom's primitives; but what pushes a task, and the end of a
//! crew, are written out again in `scenarios`.
//!
//! Each scenario runs twice: as it is, and with the full fences taken out. Then loom must find a lost wake-up, which it
//! sees as a deadlock; if it did not, the models would show nothing.
//!
//! What this cannot see: the channels of crossbeam and the condition variables of parking_lot, which stand here as
//! loom's atomics and condition variables; `poll` and the wake-up descriptor, which stand as a condition variable; what
//! takes more than a few threads, steps and preemptions; time, and so the yields before a sleep and every timeout. And
//! loom takes `SeqCst` accesses for `AcqRel`, which is why the library relies on fences and not on those.

#![allow(unreachable_pub, clippy::duplicate_mod, reason = "the same sources, with fences and without")]

#[path = "../common/mod.rs"]
mod common;
mod fenced;
mod primitives;
mod unfenced;

/// Checks a scenario with fences, and that it fails without.
macro_rules! checked {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            // In a process of its own, since where loom finds a deadlock it may abort.
            let Some(child) = common::run_again(stringify!($name)) else {
                return bounded().check(unfenced::scenarios::$name);
            };
            bounded().check(fenced::scenarios::$name);
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && stderr.contains("deadlock"), "without its fences: {stderr}");
        }
    )*};
}

checked! {
    a_task_worker_that_goes_to_sleep_sees_a_task_that_is_pushed_meanwhile
    of_two_task_workers_one_is_woken_for_each_task_that_is_left
    a_task_worker_is_woken_for_a_task_of_its_own_whoever_else_looks
    a_connection_that_goes_to_sleep_hears_of_a_reply_that_comes_meanwhile
    a_submitter_that_waits_for_room_hears_of_a_task_that_is_taken_meanwhile
    of_two_submitters_that_wait_for_room_both_hear_of_one_task_that_is_taken
    a_task_worker_is_woken_for_its_turn_to_renew_its_state_when_another_has_had_it
    task_workers_end_when_the_last_task_ends_during_a_shutdown
    task_workers_end_though_a_submitter_was_refused_meanwhile
}

/// Enough for every order of a few steps, and done in seconds.
fn bounded() -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model
}
