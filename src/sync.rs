//! The primitives of what is checked by a model: `tests/model` puts others in their place.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard};
