//! Hints, prefetch and discard beside kernels that run, in both modes: they move pages and change no result.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::addr::VirtAddr;
use vksvm::policy::Granule;
use vksvm::{FaultMode, Hint, Kernel, Location, Mapping, Permission, Svm, ThrashOptions, ThrashPolicy};
use vksvm_tests::{moving, spirv, with};

const PAGE: usize = 4096;
const MODES: [FaultMode; 2] = [FaultMode::Replay, FaultMode::Live];

fn word(mapping: &Mapping, at: usize) -> &AtomicU32 {
    assert!(at + 4 <= mapping.len());
    // SAFETY: in bounds, aligned, lives as long as the mapping; everybody accesses it atomically.
    unsafe { AtomicU32::from_ptr(mapping.as_ptr().add(at).cast()) }
}

fn map(svm: &Svm, pages: usize) -> Mapping {
    svm.map(pages * PAGE, Permission::ReadWrite).unwrap()
}

fn saxpy(svm: &Svm) -> Kernel {
    // SAFETY: the kernel reads x and y and writes y.
    unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap()
}

fn contend(svm: &Svm) -> Kernel {
    // SAFETY: the launches below give it words and results that are theirs, which both sides access atomically.
    unsafe { svm.kernel("contend", spirv!("contend")) }.unwrap()
}

/// Any advice about any part of `values`, waited for or not.
fn advise(svm: &Svm, random: &mut SmallRng, values: &[u8]) {
    let from = random.random_range(0..values.len());
    let part = &values[from..random.random_range(from + 1..=values.len())];
    let places = [Location::Cpu, svm.location()];
    let place = places[random.random_range(0..2)];
    let Location::Device(device) = svm.location() else { panic!("a device") };
    let on = random.random();
    let under_way = match random.random_range(0..6) {
        0 | 1 => svm.prefetch(part, place),
        2 => svm.advise(part, Hint::ReadMostly(on)),
        3 => svm.advise(part, Hint::PreferredLocation(on.then_some(place))),
        4 => svm.advise(part, Hint::AccessedBy(device, on)),
        _ => svm.advise(part, Hint::Random(on)),
    };
    let under_way = under_way.unwrap();
    if random.random() {
        under_way.wait().unwrap();
    }
}

#[test]
fn no_addition_is_lost_whatever_is_advised_and_prefetched_meanwhile() {
    let given = std::env::var("VKSVM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("VKSVM_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    for mode in MODES {
        for frames in [0, 24] {
            let svm = if frames > 0 {
                moving(|builder| builder.fault_mode(mode).frames(frames))
            } else {
                with(|builder| builder.fault_mode(mode))
            };
            let kernel = contend(&svm);
            let (pages, groups) = (20usize, 4u32);
            let (words, stop, results) = (map(&svm, pages), map(&svm, 1), map(&svm, 1));
            let (mut cpu, mut device) = (0u32, 0u32);
            let end = Instant::now() + Duration::from_secs(2);
            while Instant::now() < end {
                let launch = kernel.launch([groups, 1, 1]);
                // SAFETY: the mappings outlive the launch, which is waited for below.
                let launch = unsafe { launch.pointer(words.as_ptr()).pointer(stop.as_ptr()).pointer(results.as_ptr()) };
                let launch = launch.value(PAGE as u32).value(pages as u32).value(2000u32).value(20u32);
                // SAFETY: as above.
                let running = unsafe { launch.submit_unscoped() }.unwrap();
                while !running.is_done() {
                    let page = random.random_range(0..pages);
                    word(&words, page * PAGE + 64).fetch_add(1, Ordering::Relaxed);
                    cpu += 1;
                    advise(&svm, &mut random, words.as_slice());
                }
                running.wait().unwrap();
                device += groups * 2000;
            }
            let sum = |at| (0..pages).map(|page| word(&words, page * PAGE + at).load(Ordering::Relaxed)).sum::<u32>();
            assert_eq!((sum(0), sum(64)), (device, cpu), "{mode:?}, {frames} frames\n{}", svm.stats());
            println!("{mode:?}: {device} of kernels, {cpu} of the CPU\n{}", svm.stats());
        }
    }
}

#[test]
fn discarded_memory_moves_no_byte_and_is_written_anew() {
    for mode in MODES {
        let svm = moving(|builder| builder.fault_mode(mode));
        let n = 300_000usize;
        let x = svm.heap().vec_from_slice(&vec![1.0f32; n]).unwrap();
        let mut y = svm.heap().vec_from_slice(&vec![5.0f32; n]).unwrap();
        let kernel = saxpy(&svm);
        svm.prefetch_and_wait(&x[..], svm.location()).unwrap();
        let whole = (n * 4 / PAGE) as u64;
        for round in 0..4 {
            let before = svm.stats();
            // Newest on the CPU at first, dirty on the device later.
            let discarded = svm.discard(&mut y[..]).unwrap();
            assert!(discarded >= whole - 1, "{discarded} pages");
            let launch = kernel.launch([n.div_ceil(64) as u32, 1, 1]);
            launch.read(&x[..]).write(&mut y[..]).value(2.0f32).value(n as u32).run().unwrap();
            let done = svm.stats().since(&before);
            // The first and the last page reach beyond.
            assert!(done.pages_in <= 2 && done.pages_out <= 2, "{mode:?}, round {round}: {done}");
        }
        let middle = &y[PAGE / 4..n - PAGE / 4];
        assert!(middle.iter().all(|&y| y == 2.0));
    }
}

#[test]
fn discarding_beside_a_kernel_that_runs_spares_what_is_not_discarded() {
    for mode in MODES {
        let svm = moving(|builder| builder.fault_mode(mode));
        let kernel = contend(&svm);
        let pages = 12usize;
        let mut kept = map(&svm, pages);
        // Every other page stays; the kernel works on all of them.
        let (stop, results) = (map(&svm, 1), map(&svm, 1));
        let limit = 60_000u32;
        let launch = kernel.launch([1, 1, 1]);
        // SAFETY: the mappings outlive the launch, which is waited for below.
        let launch = unsafe { launch.pointer(kept.as_ptr()).pointer(stop.as_ptr()).pointer(results.as_ptr()) };
        // SAFETY: as above.
        let running =
            unsafe { launch.value(PAGE as u32).value(pages as u32).value(limit).value(50u32).submit_unscoped() };
        let running = running.unwrap();
        let mut discards = 0;
        while !running.is_done() || discards < 20 {
            let page = discards % (pages / 2) * 2 + 1;
            kept.discard(page * PAGE..(page + 1) * PAGE).unwrap();
            discards += 1;
        }
        running.wait().unwrap();
        for page in 0..pages {
            let count = word(&kept, page * PAGE).load(Ordering::Relaxed);
            let all = limit / pages as u32;
            assert!(if page % 2 == 0 { count == all } else { count <= all }, "{mode:?}, page {page}: {count} of {all}");
        }
        println!("{mode:?}: {discards} discards\n{}", svm.stats());
    }
}

#[test]
fn what_is_prefetched_while_a_kernel_runs_is_there_for_the_next() {
    for mode in MODES {
        let svm = moving(|builder| builder.fault_mode(mode));
        let (busy, kernel) = (contend(&svm), saxpy(&svm));
        let n = 100_000usize;
        let x = svm.heap().vec_from_slice(&vec![1.0f32; n]).unwrap();
        let mut y = svm.heap().vec_from_slice(&vec![3.0f32; n]).unwrap();
        let (words, stop, results) = (map(&svm, 1), map(&svm, 1), map(&svm, 1));
        let launch = busy.launch([1, 1, 1]);
        // SAFETY: the mappings outlive the launch, which is waited for below.
        let launch = unsafe { launch.pointer(words.as_ptr()).pointer(stop.as_ptr()).pointer(results.as_ptr()) };
        // SAFETY: as above.
        let running = unsafe { launch.value(PAGE as u32).value(1u32).value(50_000u32).value(50u32).submit_unscoped() };
        let running = running.unwrap();
        let brought = [svm.prefetch(&x[..], svm.location()), svm.prefetch(&y[..], svm.location())];
        let brought = brought.map(|brought| brought.unwrap().wait().unwrap());
        running.wait().unwrap();
        assert!(brought.iter().all(|&pages| pages >= (n * 4 / PAGE) as u64), "{brought:?}");
        let launch = kernel.launch([n.div_ceil(64) as u32, 1, 1]);
        let report = launch.read(&x[..]).write(&mut y[..]).value(2.0f32).value(n as u32).run().unwrap();
        assert_eq!((report.device_faults, report.pages_in), (0, 0), "{mode:?}: {report}");
        svm.prefetch_and_wait(&y[..], Location::Cpu).unwrap();
        let before = svm.stats();
        assert!(y.iter().all(|&y| y == 5.0));
        assert_eq!(svm.stats().since(&before).cpu_faults, 0);
    }
}

#[test]
fn pages_that_prefer_a_device_are_never_pinned_at_home() {
    let thrash = ThrashOptions { policy: ThrashPolicy::Full, ..ThrashOptions::default() };
    for prefers in [true, false] {
        let svm = moving(|builder| builder.fault_mode(FaultMode::Live).thrash(thrash));
        let kernel = contend(&svm);
        // A granule of its own.
        let request = vksvm::MapRequest::new(16 * PAGE as u64, Permission::ReadWrite).align(16 * PAGE as u64);
        let (words, stop, results) = (svm.map_as(&request).unwrap(), map(&svm, 1), map(&svm, 1));
        if prefers {
            svm.advise(words.as_slice(), Hint::PreferredLocation(Some(svm.location()))).unwrap();
        }
        let launch = kernel.launch([1, 1, 1]);
        // SAFETY: the mappings outlive the launch, which is waited for below.
        let launch = unsafe { launch.pointer(words.as_ptr()).pointer(stop.as_ptr()).pointer(results.as_ptr()) };
        // SAFETY: as above.
        let running = unsafe { launch.value(PAGE as u32).value(1u32).value(u32::MAX).value(50u32).submit_unscoped() };
        let running = running.unwrap();
        let space = svm.address_space();
        let first = space.home().views.page_of(VirtAddr(words.as_ptr() as u64)).unwrap();
        let granule = Granule::of(first);
        let (end, mut cpu, mut pinned) = (Instant::now() + Duration::from_secs(1), 0u32, false);
        while Instant::now() < end {
            word(&words, 64).fetch_add(1, Ordering::Relaxed);
            cpu += 1;
            // Pins last long enough to be seen.
            pinned |= space.thrash().granule(granule).is_pinned();
        }
        word(&stop, 0).store(1, Ordering::Relaxed);
        running.wait().unwrap();
        let stats = svm.stats();
        println!(
            "prefers its device: {prefers}, was pinned: {pinned}; {} pins, {} throttles, {} bounces",
            stats.pins, stats.throttles, stats.bounces
        );
        assert_eq!(word(&words, 64).load(Ordering::Relaxed), cpu);
        assert_eq!(word(&words, 0).load(Ordering::Relaxed), word(&results, 0).load(Ordering::Relaxed));
        // Others may be pinned: nothing was said of those with the kernel's other arguments.
        assert!(!prefers || !pinned, "{stats}");
    }
}
