//! Keeps the thread that reads faults on the processor of the thread that raises them.
//!
//! Where reader and toucher last ran on different processors, each fault wakes two idle processors: the reader's by the fault, the toucher's by
//! the answer. A virtual processor that sleeps is woken through the hypervisor, 20 to 30 µs each time, against 8 µs for a whole
//! fault where both share a processor, since one always sleeps while the other runs. The scheduler puts a thread back where it last
//! ran, if nothing else runs there, so either state lasts.
//!
//! The sign is a reader that sleeps before each fault, and shortly: then it looks, seldom, at where the toucher last ran, and moves there once.
//! Nobody stays bound to a processor. Where the scheduler parts the two again it costs nothing to leave them so: each look that changed nothing for
//! long doubles the time until the next.

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::io::Write;
use std::time::Duration;

/// Sleeps up to this are between two faults of a series.
const SHORT: Duration = Duration::from_micros(200);
/// Short sleeps in a row before the first look.
const FIRST_LOOK: u32 = 16;
/// And before any later one, at most: some tens of milliseconds of faults.
const LAST_LOOK: u32 = 1024;
/// So many more faults without a sleep than with one, and the two have found each other. Together, the reader sleeps before every third fault or
/// so; parted, before all but a few in a thousand.
const TOGETHER: u32 = 16;

/// When to look where the toucher runs.
#[derive(Debug)]
pub(super) struct Near {
    /// Short sleeps in a row.
    asleep: u32,
    /// By how much faults without a sleep have outnumbered those with one.
    awake: u32,
    /// Short sleeps until the next look.
    patience: u32,
}

impl Default for Near {
    fn default() -> Self {
        Self { asleep: 0, awake: 0, patience: FIRST_LOOK }
    }
}

impl Near {
    /// Faults were answered, before which the reader slept so long, or not at all. Whether to look.
    pub(super) fn answered(&mut self, slept: Option<Duration>) -> bool {
        match slept {
            None => {
                self.asleep = 0;
                self.awake += 1;
                if self.awake >= TOGETHER {
                    (self.awake, self.patience) = (0, FIRST_LOOK);
                }
                return false;
            }
            Some(time) if time > SHORT => self.asleep = 0,
            Some(_) => self.asleep += 1,
        }
        self.awake = self.awake.saturating_sub(1);
        if self.asleep < self.patience {
            return false;
        }
        self.asleep = 0;
        self.patience = (self.patience * 2).min(LAST_LOOK);
        true
    }
}

/// Moves the calling thread to the processor that `thread` of this process last ran on, if it may run there. It stays there as long as the
/// scheduler sees no reason to move it: it may run afterwards where it might before.
pub(super) fn move_to(thread: u32) {
    let Some(processor) = processor_of(thread).filter(|&processor| processor != sched_getcpu()) else { return };
    let Ok(allowed) = sched_getaffinity(None) else { return };
    if processor >= CpuSet::MAX_CPU || !allowed.is_set(processor) {
        return;
    }
    let mut there = CpuSet::new();
    there.set(processor);
    if sched_setaffinity(None, &there).is_ok() {
        // Fails only if all these processors were taken from the process meanwhile; then the kernel has chosen others.
        let _ = sched_setaffinity(None, &allowed);
    }
}

/// The processor that `thread` of this process last ran on.
fn processor_of(thread: u32) -> Option<usize> {
    Pid::from_raw(i32::try_from(thread).ok()?)?;
    let mut path = [0u8; 40];
    write!(&mut path[..], "/proc/self/task/{thread}/stat").ok()?;
    let path = std::ffi::CStr::from_bytes_until_nul(&path).ok()?;
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0u8; 1024];
    let read = rustix::io::read(&file, &mut text).ok()?;
    // proc_pid_stat(5): field 39, where 3 is the first behind the name, which may contain anything.
    let fields = text[..read].rsplitn(2, |&byte| byte == b')').next()?;
    let field = fields.split(|&byte| byte == b' ').nth(39 - 3 + 1)?;
    str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const STORM: Option<Duration> = Some(Duration::from_micros(25));
    const PAUSE: Option<Duration> = Some(Duration::from_millis(1));

    fn looks(near: &mut Near, faults: u32, slept: Option<Duration>) -> u32 {
        (0..faults).map(|_| u32::from(near.answered(slept))).sum()
    }

    #[test]
    fn a_reader_that_sleeps_shortly_before_each_fault_looks_soon_and_then_ever_more_seldom() {
        let mut near = Near::default();
        assert_eq!(looks(&mut near, FIRST_LOOK - 1, STORM), 0);
        assert_eq!(looks(&mut near, 1, STORM), 1);
        assert_eq!(looks(&mut near, 2 * FIRST_LOOK, STORM), 1);
        assert!(looks(&mut near, 100_000, STORM) <= 100_000 / LAST_LOOK + 8);
    }

    #[test]
    fn faults_now_and_then_and_faults_one_upon_the_other_are_no_sign() {
        let mut near = Near::default();
        assert_eq!(looks(&mut near, 10_000, PAUSE) + looks(&mut near, 10_000, None), 0);
        let mixed = (0..10_000).filter(|n| near.answered(if n % 8 == 0 { None } else { STORM })).count();
        assert_eq!(mixed, 0);
    }

    #[test]
    fn after_a_time_together_the_next_parting_is_noticed_soon() {
        let mut near = Near::default();
        looks(&mut near, 100_000, STORM);
        let together = (0..200).filter(|n| near.answered(if n % 5 < 2 { STORM } else { None })).count();
        assert_eq!(together, 0);
        assert_eq!(looks(&mut near, FIRST_LOOK, STORM), 1);
    }

    #[test]
    fn a_thread_moves_to_where_another_runs_and_may_still_run_where_it_might_before() {
        let allowed = sched_getaffinity(None).unwrap();
        for processor in (0..CpuSet::MAX_CPU).filter(|&processor| allowed.is_set(processor)) {
            let (say, said) = mpsc::channel();
            let (end, ended) = mpsc::channel::<()>();
            let toucher = std::thread::spawn(move || {
                let mut there = CpuSet::new();
                there.set(processor);
                sched_setaffinity(None, &there).unwrap();
                say.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
                let _ = ended.recv();
            });
            let thread = said.recv().unwrap();
            assert_eq!(processor_of(thread), Some(processor));
            // The scheduler may move this thread on at any moment, so that one look is not enough.
            let moved = (0..1000).any(|_| {
                move_to(thread);
                sched_getcpu() == processor
            });
            assert!(moved, "still not on processor {processor}");
            assert_eq!(sched_getaffinity(None).unwrap(), allowed);
            drop(end);
            toucher.join().unwrap();
        }
    }

    #[test]
    fn threads_that_are_not_there_are_not_followed() {
        assert_eq!(processor_of(0), None);
        assert_eq!(processor_of(u32::MAX), None);
        move_to(0);
    }
}
