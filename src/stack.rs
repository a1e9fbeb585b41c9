//! The stacks of the library's threads.

/// Of threads that run the program's code beside the connections, in bytes.
pub(crate) const DEFAULT_STACK: usize = 2 * 1024 * 1024;

/// As many copies of a value may be on a stack at once: every call that passes it on may have some, and without
/// optimizations each has. Measured: 12, and 36.
const COPIES: usize = if cfg!(debug_assertions) { 48 } else { 20 };

/// The size of a stack of `bytes`, and beside them room for values of these sizes, which users' types have. Of both only what
/// is touched takes memory.
pub(crate) fn with_room_for(values: &[usize], bytes: usize) -> usize {
    let values: usize = values.iter().sum();
    bytes.saturating_add(values.saturating_mul(COPIES))
}
