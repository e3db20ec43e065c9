//! The proof of I1 in debug builds: threads that resolve faults carry a mark, and whatever could
//! touch tracked memory (the heap's allocator, the app view's accessors) asserts that the mark is absent.

use std::cell::Cell;
use std::marker::PhantomData;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Marks the current thread as being on the fault path until dropped. Nests.
#[derive(Debug)]
pub struct FaultPathGuard {
    _not_send: PhantomData<*const ()>,
}

impl FaultPathGuard {
    /// Enters the fault path on this thread.
    pub fn enter() -> Self {
        DEPTH.with(|depth| depth.set(depth.get() + 1));
        Self { _not_send: PhantomData }
    }
}

impl Drop for FaultPathGuard {
    fn drop(&mut self) {
        DEPTH.with(|depth| depth.set(depth.get() - 1));
    }
}

/// Whether the current thread is resolving a fault, and so must not touch tracked memory.
pub fn on_fault_path() -> bool {
    DEPTH.with(|depth| depth.get() > 0)
}
