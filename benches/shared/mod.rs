//! What the benchmarks of servers share: the load, the servers that it is put on, and the figures.

// Each of them uses a part.
#![allow(dead_code)]

pub(crate) mod lines;
pub(crate) mod load;
pub(crate) mod process;
pub(crate) mod report;
