//! The primitives of what is checked by a model: `tests/model.rs` puts others in their place.

pub(crate) use std::sync::atomic::{AtomicUsize, Ordering, fence};

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
