//! What a call uses: time of a processor and memory, of the calling thread alone, so that other tests and a busy machine do not count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::mpsc;
use std::time::Duration;

/// No module takes this long on the busiest machine: what does waits without end.
const FOR_EVER: Duration = Duration::from_secs(240);

/// What a call used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    /// Time of a processor.
    pub(crate) time: Duration,
    /// The most bytes at once.
    pub(crate) bytes: usize,
}

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn count(bytes: isize) {
    // Threads that end free what they had after their counters are gone.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + bytes);
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

// SAFETY: all is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        // SAFETY: as the caller's.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the structure it is given.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Runs `call` over a module. If it panics or does not end, the module is kept and named, and the test fails.
pub(crate) fn watched<T>(name: &str, module: &[u8], call: impl FnOnce() -> T) -> (T, Measured) {
    let keep = || {
        let name: String =
            name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' }).collect();
        let path = std::env::temp_dir().join(format!("vksvm-hostile-{name}.spv"));
        let kept = std::fs::write(&path, module);
        eprintln!("{name}: the module: {} ({kept:?})", path.display());
    };
    std::thread::scope(|scope| {
        let (ended, end) = mpsc::channel::<()>();
        scope.spawn(move || {
            if end.recv_timeout(FOR_EVER) == Err(mpsc::RecvTimeoutError::Timeout) {
                keep();
                eprintln!("it does not end");
                std::process::abort();
            }
        });
        let (before, held) = (processor_time(), NOW.get());
        MOST.set(held);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        let used = Measured { time: processor_time() - before, bytes: (MOST.get() - held) as usize };
        drop(ended);
        match result {
            Ok(result) => (result, used),
            Err(panic) => {
                keep();
                std::panic::resume_unwind(panic)
            }
        }
    })
}
