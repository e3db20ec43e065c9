//! Threads that others wait for run promptly: the scheduler is asked for short turns and exact timers.
//!
//! Where kernels compute on the CPU, and waiting invocations poll, more threads may want processors than there are. A thread that
//! sleeps most of the time and then has little to do (a fault handler, the executor in live mode) should run when it wakes, not when
//! somebody's turn of milliseconds ends. Linux 6.12 and later start a thread earlier that asks for shorter turns; it gets no larger share.

use std::mem::offset_of;

/// Turns asked for: the shortest that Linux grants.
const TURN_NANOSECONDS: u64 = 100_000;
/// How late timers may fire; Linux's default is 50 µs.
const SLACK_NANOSECONDS: libc::c_ulong = 1_000;

/// `struct sched_attr`, the first version; see sched_setattr(2).
#[derive(Default)]
#[repr(C)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

const _: () = assert!(size_of::<Attributes>() == 48 && offset_of!(Attributes, runtime) == 24);

/// Makes the calling thread one of these. Nothing happens where the kernel does not know how, or the thread is not scheduled by fair
/// shares.
pub(crate) fn make_prompt() {
    let size = size_of::<Attributes>() as u32;
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes at most `size` bytes, the structure's.
    let read = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) };
    if read == 0 && attributes.policy == libc::SCHED_OTHER as u32 {
        attributes.size = size;
        attributes.runtime = TURN_NANOSECONDS;
        // SAFETY: a complete structure of the size it names, for the calling thread, with what it had but for the turn.
        // Kernels before 6.12 take no notice of the turn.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
    // SAFETY: concerns the calling thread's timers only; the unused arguments are zero as the call asks.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, SLACK_NANOSECONDS, 0, 0, 0) };
}
