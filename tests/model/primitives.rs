//! loom's primitives in the shape of those that the library uses.

use std::ops::{Deref, DerefMut};

pub use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub struct Mutex<T>(loom::sync::Mutex<T>);

/// Empty only while it waits.
pub struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

pub struct Condvar(loom::sync::Condvar);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Mutex<T> {
        Mutex(loom::sync::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap()))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}

impl Condvar {
    pub fn new() -> Condvar {
        Condvar(loom::sync::Condvar::new())
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.0 = Some(self.0.wait(guard.0.take().unwrap()).unwrap());
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }
}

/// As the library has it.
pub trait Wake: Send + Sync {
    fn wake(&self) -> bool;
}

/// Looks once, since there is no time here.
pub struct Patience;

impl Patience {
    pub const HOT: std::time::Duration = std::time::Duration::ZERO;

    pub fn wait<X>(
        &mut self,
        _yields: usize,
        _time: std::time::Duration,
        mut ready: impl FnMut() -> Option<X>,
    ) -> Option<X> {
        ready()
    }
}
