//! The library's sources without their fences.

pub use crate::primitives::{Patience, Wake};

pub mod sync {
    pub use crate::primitives::*;

    pub fn fence(_: Ordering) {}
}

#[path = "../../../src/asleep.rs"]
mod asleep;
#[path = "../../../src/task/idle.rs"]
mod idle;
#[path = "../../../src/task/renewals.rs"]
mod renewals;
#[path = "../scenarios.rs"]
pub mod scenarios;
#[path = "../../../src/task/waiters.rs"]
#[allow(dead_code, reason = "a model takes few steps")]
mod waiters;
