//! The threads that resolve faults, and the one way in which they call the handler.

use super::{CpuFault, FaultHandler, FaultOutcome, FaultPathGuard};
use parking_lot::Mutex;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

/// A tracker's handler threads. Forgotten, not detached, unless joined: in a forked child they do
/// not exist, and there the tracker's destructor must leave them alone.
#[derive(Default)]
pub(crate) struct HandlerThreads(Mutex<Vec<ManuallyDrop<JoinHandle<()>>>>);

impl HandlerThreads {
    /// Starts `count` threads that run `body(index)`, on the fault path (I1) and with asynchronous signals blocked.
    ///
    /// On an error the threads already started keep running: stop them and [`join`](Self::join).
    pub(crate) fn spawn(&self, count: usize, body: Arc<dyn Fn(usize) + Send + Sync>) -> io::Result<()> {
        // A signal handler of the program may touch the heap. On a thread that resolves faults it
        // would wait for itself, so these threads take no signals; the mask is inherited at birth.
        let _blocked = SignalsBlocked::new();
        for index in 0..count {
            let body = Arc::clone(&body);
            crate::scarce::ask("starting a fault handler", rustix::io::Errno::AGAIN)?;
            let thread = thread::Builder::new().name("vksvm-fault".into()).spawn(move || {
                let _fault_path = FaultPathGuard::enter();
                crate::prompt::make_prompt();
                body(index);
            })?;
            self.0.lock().push(ManuallyDrop::new(thread));
        }
        Ok(())
    }

    /// Waits for all threads to end, except the calling one if it is one of them. Returns whether all ended.
    pub(super) fn join(&self) -> bool {
        let mut all = true;
        let threads = std::mem::take(&mut *self.0.lock());
        for thread in threads.into_iter().map(ManuallyDrop::into_inner) {
            if thread.thread().id() != thread::current().id() {
                // The body catches what the handler throws; a panic beyond that was printed already.
                let _ = thread.join();
            } else {
                all = false;
            }
        }
        all
    }
}

/// Calls the handler, which may wait. A handler that panics refuses the access: the toucher gets a signal where it
/// would otherwise wait for ever.
pub(super) fn resolve(handler: &dyn FaultHandler, fault: CpuFault) -> FaultOutcome {
    catch_unwind(AssertUnwindSafe(|| handler.cpu_fault(fault))).unwrap_or(FaultOutcome::Refused)
}

/// Calls the handler, which may not wait: nothing if it would have to.
pub(super) fn resolve_at_once(handler: &dyn FaultHandler, fault: CpuFault) -> Option<FaultOutcome> {
    catch_unwind(AssertUnwindSafe(|| handler.cpu_fault_at_once(fault))).unwrap_or(Some(FaultOutcome::Refused))
}

/// Keeps asynchronous signals from the current thread until dropped.
struct SignalsBlocked {
    before: libc::sigset_t,
}

impl SignalsBlocked {
    fn new() -> Self {
        let mut before = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises `all`; pthread_sigmask reads it, initialises `before`, and
        // fails only for an unknown `how`. Synchronous faults stay deliverable, so that a crash on a
        // handler thread is reported like any other.
        unsafe {
            let mut all = MaybeUninit::uninit();
            libc::sigfillset(all.as_mut_ptr());
            for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT] {
                libc::sigdelset(all.as_mut_ptr(), fault);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr());
            Self { before: before.assume_init() }
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: `before` is the mask that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}
