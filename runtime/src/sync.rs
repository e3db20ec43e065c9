//! The synchronisation primitives that models can replace.
//!
//! `hmm` and `rank` take their locks, condition variables and atomics from here only. An ordinary build
//! gets parking_lot and std; with `--cfg loom` or `--cfg shuttle` the same code runs on the model
//! checker's primitives. Guards are handed through condition variables by value, because that is the
//! one form that all three can offer.

#[cfg(loom)]
use loom as model;
#[cfg(shuttle)]
use shuttle as model;

#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::thread_local;

#[cfg(any(loom, shuttle))]
pub(crate) use model::thread_local;

/// Whether a model has failed and is being torn down: its primitives do not work any more, so destructors leave them alone.
/// Never so outside models.
#[inline(always)]
pub(crate) fn model_failed() -> bool {
    cfg!(any(loom, shuttle)) && std::thread::panicking()
}

/// Atomics: std's, or the model's.
pub(crate) mod atomic {
    #[cfg(any(loom, shuttle))]
    pub(crate) use super::model::sync::atomic::{AtomicU64, AtomicUsize};
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize};

    pub(crate) use std::sync::atomic::Ordering;
}

#[cfg(not(any(loom, shuttle)))]
mod primitives {
    use std::time::Duration;

    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

    /// parking_lot's condition variable, taking guards by value.
    #[derive(Default)]
    pub(crate) struct Condvar(parking_lot::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(&mut guard);
            guard
        }

        /// Waits for at most `limit`; the flag says whether the time ran out.
        pub(crate) fn wait_for<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            limit: Duration,
        ) -> (MutexGuard<'a, T>, bool) {
            let result = self.0.wait_for(&mut guard, limit);
            (guard, result.timed_out())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
    }
}

#[cfg(any(loom, shuttle))]
mod primitives {
    use super::model::sync as std_like;
    use std::sync::PoisonError;
    use std::time::Duration;

    pub(crate) use std_like::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// The model's mutex with parking_lot's manners: a panic does not poison it.
    pub(crate) struct Mutex<T>(std_like::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std_like::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    /// The model's reader-writer lock with parking_lot's manners.
    pub(crate) struct RwLock<T>(std_like::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(std_like::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            self.0.try_read().ok()
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// The model's condition variable. Models have no time: `wait_for` waits for a notification.
    pub(crate) struct Condvar(std_like::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(std_like::Condvar::new())
        }

        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn wait_for<'a, T>(&self, guard: MutexGuard<'a, T>, _limit: Duration) -> (MutexGuard<'a, T>, bool) {
            (self.wait(guard), false)
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }
    }
}

pub(crate) use primitives::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
