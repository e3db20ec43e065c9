//! Cleaning ahead of need: pages are written home while kernels run, no store is lost, and eviction finds them clean.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::addr::VirtAddr;
use vksvm::mm::ops::Span;
use vksvm::{FaultMode, Mapping, Permission, ThrashOptions, ThrashPolicy};
use vksvm_tests::{moving, spirv};

const PAGE: usize = 4096;

fn word(mapping: &Mapping, at: usize) -> &AtomicU32 {
    assert!(at + 4 <= mapping.len());
    // SAFETY: in bounds, aligned, lives as long as the mapping; everybody accesses it atomically.
    unsafe { AtomicU32::from_ptr(mapping.as_ptr().add(at).cast()) }
}

fn unfought() -> ThrashOptions {
    ThrashOptions { policy: ThrashPolicy::Off, ..ThrashOptions::default() }
}

/// A kernel dirties more pages than there are frames, a few at a time; before it goes on, the CPU waits until the writer has done what the low
/// watermark asks for. So whatever processors do, all but the first victims are clean.
#[test]
fn evictions_beside_a_running_kernel_find_clean_victims() {
    let (frames, pages, phases) = (1024u32, 48u32, 50u32);
    let svm = moving(|builder| {
        let builder = builder.fault_mode(FaultMode::Live).poll_limit(u32::MAX).time_limit(Duration::from_secs(120));
        builder.frames(frames).prefetch(false).thrash(unfought())
    });
    let words = svm.map((pages * phases) as usize * PAGE, Permission::ReadWrite).unwrap();
    let control = svm.map(PAGE, Permission::ReadWrite).unwrap();
    let span = Span { start: VirtAddr(control.start().0), bytes: PAGE as u64 };
    svm.address_space().pin_home(span).unwrap();
    (0..pages * phases).for_each(|page| word(&words, page as usize * PAGE).store(page, Ordering::Relaxed));
    let (phase, done) = (word(&control, 0), word(&control, 64));
    phase.store(0, Ordering::Relaxed);
    done.store(0, Ordering::Relaxed);
    // SAFETY: it is launched with words that both sides access atomically.
    let kernel = unsafe { svm.kernel("phases", spirv!("phases")) }.unwrap();
    // SAFETY: the mappings outlive the launch, which is waited for below.
    let launch = unsafe { kernel.launch([1, 1, 1]).pointer(words.as_ptr()).pointer(control.as_ptr()) };
    // SAFETY: as above.
    let running = unsafe { launch.value([pages, phases]).submit_unscoped() }.unwrap();
    let before = svm.stats();
    let wait_until = |what: &str, is: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !is() {
            assert!(start.elapsed() < Duration::from_secs(60) && !running.is_done(), "{what}\n{}", svm.stats());
            std::thread::sleep(Duration::from_micros(200));
        }
    };
    for number in 1..=phases {
        phase.store(number, Ordering::Release);
        wait_until("the phase is not done", &|| done.load(Ordering::Acquire) == number);
        wait_until("too few pages are clean", &|| {
            let (stats, usage) = (svm.stats().since(&before), svm.frames());
            let clean = stats.written_ahead - (stats.evictions - stats.evicted_dirty);
            // Nothing is cleaned before frames are short.
            let ready = clean + u64::from(usage.limit.saturating_sub(usage.used));
            stats.evictions == 0 || ready >= u64::from(frames / 16)
        });
        if number == phases {
            break;
        }
    }
    running.wait().unwrap();
    let stats = svm.stats().since(&before);
    println!(
        "{} evicted, of them {} dirty, {} cleaned ahead",
        stats.evictions, stats.evicted_dirty, stats.written_ahead
    );
    assert!(stats.evictions >= u64::from(pages * phases - frames), "{stats}");
    assert!(stats.evicted_dirty * 4 <= stats.evictions, "{} of {}", stats.evicted_dirty, stats.evictions);
    for page in 0..pages * phases {
        assert_eq!(word(&words, page as usize * PAGE).load(Ordering::Relaxed), page + 1, "page {page}");
    }
}

/// Kernels and CPU threads add to words all over pages that do not fit, so that pages are cleaned, dirtied again, evicted and brought home all the
/// time.
#[test]
fn no_addition_is_lost_while_pages_are_cleaned_evicted_and_brought_home() {
    // In replay mode a workgroup's pages must fit at once.
    for (mode, frames) in [(FaultMode::Live, 64u32), (FaultMode::Replay, 96)] {
        let (groups, part, pages, count) = (4u32, 80usize, 200usize, 800u32);
        let svm = moving(|builder| builder.fault_mode(mode).frames(frames).thrash(unfought()));
        let words = svm.map(pages * PAGE, Permission::ReadWrite).unwrap();
        let stop = svm.map(PAGE, Permission::ReadWrite).unwrap();
        let results = svm.map(PAGE, Permission::ReadWrite).unwrap();
        // SAFETY: the launches below give it words and results that are theirs, which both sides access atomically.
        let kernel = unsafe { svm.kernel("contend", spirv!("contend")) }.unwrap();
        let mut expected = vec![[0u32; 2]; pages];
        let mut launches = 0;
        while launches < 8 || svm.stats().written_ahead == 0 {
            assert!(launches < 200, "{mode:?}: nothing is written ahead\n{}", svm.stats());
            let first = launches * 37 % (pages - part);
            let launch = kernel.launch([groups, 1, 1]);
            // SAFETY: the mappings outlive the launch, which is waited for below.
            let launch = unsafe { launch.pointer(words.as_ptr().add(first * PAGE)).pointer(stop.as_ptr()) };
            // SAFETY: as above.
            let launch = unsafe { launch.pointer(results.as_ptr()) };
            let launch = launch.value(PAGE as u32).value(part as u32).value(count).value(0u32);
            // SAFETY: as above.
            let running = unsafe { launch.submit_unscoped() }.unwrap();
            for at in 0..pages {
                word(&words, at * 7 % pages * PAGE + 64).fetch_add(1, Ordering::Relaxed);
            }
            expected.iter_mut().for_each(|expected| expected[1] += 1);
            expected[first..first + part].iter_mut().for_each(|expected| expected[0] += count / part as u32 * groups);
            running.wait().unwrap();
            launches += 1;
        }
        for (page, expected) in expected.iter().enumerate() {
            let found = [0, 64].map(|at| word(&words, page * PAGE + at).load(Ordering::Relaxed));
            assert_eq!(found, *expected, "{mode:?}, page {page}");
        }
        println!("{mode:?}: {launches} launches\n{}", svm.stats());
    }
}
