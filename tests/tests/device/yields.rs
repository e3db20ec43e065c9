//! Live mode's fast passes: kernels on resident data run without safe points, and still neither keep the CPU waiting nor wait for it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;
use vksvm::{FaultMode, ThrashOptions, ThrashPolicy};
use vksvm_tests::{Fixture, spirv, with};

fn live() -> Fixture {
    // The policy would leave pages at home, which need not be taken.
    let thrash = ThrashOptions { policy: ThrashPolicy::Off, ..ThrashOptions::default() };
    with(|builder| builder.fault_mode(FaultMode::Live).time_limit(Duration::from_secs(100)).thrash(thrash))
}

/// A word that the CPU uses while a kernel runs.
fn word(words: *mut u32, index: usize) -> &'static AtomicU32 {
    // SAFETY: callers name words of allocations that outlive the launch, accessed atomically by the CPU meanwhile.
    unsafe { AtomicU32::from_ptr(words.add(index)) }
}

#[test]
fn a_kernel_that_waits_for_the_cpu_goes_on_where_its_pages_can_be_taken() {
    // The CPU's store takes the page at once; or long after the pass had to end because it had lasted too long.
    for delay in [10, 250] {
        let svm = live();
        let mut flag = svm.heap().vec_from_slice(&[0u32; 1024]).unwrap();
        let mut out = svm.heap().vec_from_slice(&[9u32; 64]).unwrap();
        // SAFETY: the kernel reads the flag and stores to `out`; meanwhile the CPU accesses the flag only, atomically.
        let kernel = unsafe { svm.kernel("wait_for", spirv!("wait_for")) }.unwrap().idempotent();
        // On a busy machine a pass may last too long for other reasons, and then there is none for some time.
        let settled = (0..200).any(|_| {
            let launch = kernel.launch([2, 1, 1]).read(&flag[..]).write(&mut out[..]).value([100u32, 0]);
            let report = launch.run().unwrap();
            report.fast_dispatches > 0 && report.fast_dispatches == report.dispatches
        });
        assert!(settled, "{}", svm.stats());
        let at = flag.as_mut_ptr() as usize;
        let launch = kernel.launch([2, 1, 1]).read(&flag[..]).write(&mut out[..]).value([u32::MAX, 0]);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| launch.run());
            std::thread::sleep(Duration::from_millis(delay));
            word(at as *mut u32, 0).store(7, Ordering::Release);
            let report = running.join().unwrap().unwrap();
            assert!(report.fast_dispatches > 0 && report.dispatches > report.fast_dispatches, "{report}");
        });
        assert_eq!(out[..], [7; 64]);
    }
}

#[test]
fn results_are_right_while_the_cpu_takes_pages_from_passes_that_yield() {
    let svm = live();
    let (pages, groups) = (64usize, 3000u32);
    let mut data = svm.heap().vec_zeroed::<[u32; 1024]>(pages).unwrap();
    data.iter_mut().enumerate().for_each(|(page, words)| words[0] = page as u32 + 1);
    let mut out = svm.heap().vec_from_slice(&vec![0u32; groups as usize]).unwrap();
    let at = data.as_mut_ptr() as usize;
    // SAFETY: the kernel reads the first word of each page, which nobody changes meanwhile, and stores to `out`.
    let kernel = unsafe { svm.kernel("sum_pages", spirv!("sum_pages")) }.unwrap().idempotent();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut turn = 0usize;
            while !over.load(Ordering::Relaxed) {
                // A burst now and then, so that there are launches that find all pages.
                for _ in 0..5 {
                    turn += 1;
                    word(at as *mut u32, turn % pages * 1024 + 7).fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(200));
                }
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        // Ends the thread also where an assertion fails.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _ends = Ends(&over);
        for _ in 0..60 {
            let launch = kernel.launch([groups, 1, 1]).read(&data[..]).write(&mut out[..]);
            launch.value([pages as u32, pages as u32]).run().unwrap();
            let sum = (1..=pages as u32).sum::<u32>();
            assert!(out.iter().all(|&found| found == sum), "{:?}", &out[..8]);
            out.fill(0);
        }
    });
}
