//! The SIGSEGV handler: finds out whose fault it is, waits for its resolution, or passes it on.
//!
//! It is installed once per process and stays: an action that others may have saved must stay
//! callable. What it does is async-signal-safe (atomics and futexes), small enough for the smallest signal stack, and
//! preserves errno. The action found at installation is called for every fault that is not ours.

use super::region::{Answer, resolve_in_region};
use crate::addr::Access;
use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

/// The action that was there before ours; null until installed. Leaked boxes, or [`DEFAULT`]: a handler may be reading.
static PREVIOUS: AtomicPtr<sigaction> = AtomicPtr::new(null_mut());
// SAFETY: all zeros is a valid sigaction: SIG_DFL, no flags, an empty mask.
static DEFAULT: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
static INSTALLING: Mutex<()> = Mutex::new(());

const SEGV_ACCERR: c_int = 2;

/// Makes sure that faults come to us: installs the handler the first time, and again if somebody
/// reset the signal to its default.
///
/// A foreign handler on top of ours is left alone: it presumably calls ours, and a second layer of ours
/// above it would make the two call each other for ever.
pub(super) fn install() -> Result<(), Errno> {
    let _one_at_a_time = INSTALLING.lock();
    let current = current_action()?;
    let is_handler = !matches!(current.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN);
    if is_ours(&current) || (is_handler && !PREVIOUS.load(Ordering::Acquire).is_null()) {
        return Ok(());
    }
    // Saved first: a fault may come in as soon as the action is set.
    PREVIOUS.store(Box::into_raw(Box::new(current)), Ordering::Release);
    let mut ours = DEFAULT;
    ours.sa_sigaction = on_fault as *const () as usize;
    // SA_SIGINFO: the handler needs the address and the register state.
    // SA_ONSTACK: earlier handlers detect stack overflow, where the thread's own stack is no use; and
    //   runtimes with small stacks require it of every handler.
    // Not SA_NODEFER: a fault inside the handler is a bug and must kill, not recurse.
    // Not SA_RESTART: synchronous faults interrupt no system call.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: sigfillset initialises the mask: no other signal's handler, which might touch tracked memory while
    // SIGSEGV is blocked and so be killed, runs until the fault is resolved. `on_fault` has the signature that
    // SA_SIGINFO asks for and is async-signal-safe.
    let failed = unsafe {
        libc::sigfillset(&mut ours.sa_mask);
        sigaction(libc::SIGSEGV, &ours, null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Whether faults still come to us first, in words.
pub(super) fn standing() -> &'static str {
    match current_action() {
        Ok(action) if is_ours(&action) => "its SIGSEGV handler is in place",
        Ok(action) if matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
            "its SIGSEGV handler WAS REMOVED by other code, the next fault will kill the process"
        }
        Ok(_) => "another SIGSEGV handler was installed after it and must pass faults on",
        Err(_) => "the state of its SIGSEGV handler is unknown",
    }
}

fn current_action() -> Result<sigaction, Errno> {
    let mut current = MaybeUninit::uninit();
    // SAFETY: with a null action sigaction only reports, and initialises `current` when it succeeds.
    unsafe {
        if sigaction(libc::SIGSEGV, null(), current.as_mut_ptr()) == 0 {
            Ok(current.assume_init())
        } else {
            Err(last_errno())
        }
    }
}

fn last_errno() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error)
}

fn is_ours(action: &sigaction) -> bool {
    action.sa_sigaction == on_fault as *const () as usize
}

/// The signal handler.
extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: errno is the interrupted code's; nothing below may change it as far as that can see. The kernel
    // passes valid `info` and `context` to an SA_SIGINFO handler.
    unsafe {
        let errno = *libc::__errno_location();
        // Only a protection fault can be ours: memory that is not mapped, protection keys and signals sent
        // by processes have other codes.
        let answer = match (*info).si_code {
            SEGV_ACCERR => resolve_in_region((*info).si_addr() as usize, access_of(context)),
            _ => None,
        };
        *libc::__errno_location() = errno;
        if answer != Some(Answer::Retry) {
            pass_on(signal, info, context);
        }
    }
}

/// Whether the faulting access was a load or a store.
///
/// # Safety
/// `context` is what the kernel passed to the signal handler.
#[cfg(target_arch = "x86_64")]
unsafe fn access_of(context: *mut c_void) -> Access {
    // Intel SDM volume 3, 4.7: bit 1 of the page fault's error code is set for a store.
    const STORE: i64 = 1 << 1;
    // SAFETY: the caller's promise; REG_ERR is an index of the array.
    let error = unsafe { (*context.cast::<ucontext_t>()).uc_mcontext.gregs[libc::REG_ERR as usize] };
    if error & STORE != 0 { Access::Write } else { Access::Read }
}

/// Other architectures do not tell in a way that is read here: the stronger access is always right.
///
/// # Safety
/// None is needed; the signature is shared.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn access_of(_context: *mut c_void) -> Access {
    Access::Write
}

/// Does what would have happened without our handler.
///
/// # Safety
/// The arguments are what the kernel passed to the signal handler.
unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.load(Ordering::Acquire);
    // SAFETY: null, a leaked box or a static; their contents are never changed.
    let action = unsafe { previous.as_ref() };
    match action {
        Some(action) if !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
            // SAFETY: the caller's promise.
            unsafe { call(action, signal, info, context) };
        }
        // SAFETY: the kernel fills in `si_code`.
        Some(action) if action.sa_sigaction == libc::SIG_IGN && unsafe { (*info).si_code } <= 0 => {
            // Sent by a process, and to be ignored. A fault cannot be: the kernel kills in spite of SIG_IGN.
        }
        _ => {
            // SAFETY: setting the default action and raising a signal are async-signal-safe. A fault happens again when
            // its instruction is retried, now with the default action: the core shows the right place. A signal
            // that a process sent would not come again, so it is raised; it is blocked until we return.
            unsafe {
                sigaction(signal, &DEFAULT, null_mut());
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
    }
}

/// Calls an earlier handler as the kernel would have: with the mask that it asked for on top of the interrupted
/// code's, and only once if it said so. (It runs on the signal stack even if it did not ask to.)
///
/// # Safety
/// As for [`pass_on`]; `action` is a handler, not SIG_DFL or SIG_IGN.
unsafe fn call(action: &sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the context is the kernel's. The mask set here lasts until the kernel restores the interrupted
    // code's on return, or stays if the handler jumps away, as it would have without us. `sa_sigaction` is a function of
    // the type that the flags say, by sigaction's contract.
    unsafe {
        if action.sa_flags & libc::SA_RESETHAND != 0 {
            PREVIOUS.store((&raw const DEFAULT).cast_mut(), Ordering::Release);
        }
        let mut mask = (*context.cast::<ucontext_t>()).uc_sigmask;
        for other in 1..=libc::SIGRTMAX() {
            if libc::sigismember(&action.sa_mask, other) == 1 {
                libc::sigaddset(&mut mask, other);
            }
        }
        if action.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&mut mask, signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &mask, null_mut());
        if action.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = std::mem::transmute(action.sa_sigaction);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(c_int) = std::mem::transmute(action.sa_sigaction);
            handler(signal);
        }
    }
}
