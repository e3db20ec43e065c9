//! Device memory is bounded, also while the bound moves, and running out of it loses nothing.

mod common;

use common::device::{Watch, WatchedDevice};
use common::{passed_in_own_process, seed, soft, trackers};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vksvm::device::soft::SoftContext;
use vksvm::{Builder, Kernel, OpenError, Placement, Svm, TrackerKind};

const PAGE: u64 = 4096;
const WORDS: usize = 1024;

/// Adds `value` to the first word of each of four pages that a seed picks for a workgroup.
fn scatter(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [base, pages, seed, value] = invocation.arguments::<[u64; 4]>();
        let mut at = seed.wrapping_add(u64::from(invocation.global_id()[0]));
        for _ in 0..4 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            invocation.atomic_add(base + (at >> 33) % pages * PAGE, value as u32);
        }
    };
    // SAFETY: it changes the array it is launched with, with atomics only.
    unsafe { svm.soft_kernel("scatter", [1, 1, 1], 32, body) }.unwrap()
}

/// What `scatter` does to the first words.
fn expect(expected: &mut [u32], groups: u32, seed: u64, value: u32) {
    for group in 0..groups {
        let mut at = seed.wrapping_add(u64::from(group));
        for _ in 0..4 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let page = (at >> 33) as usize % expected.len();
            expected[page] = expected[page].wrapping_add(value);
        }
    }
}

fn watched(tracker: TrackerKind, options: impl FnOnce(Builder) -> Builder) -> (Result<Svm, OpenError>, Arc<Watch>) {
    let (device, watch) = WatchedDevice::new();
    (soft(tracker, |builder| options(builder.with_device(device))), watch)
}

/// The budget moves between 8 and 200 pages while kernels work on 300.
#[test]
fn a_budget_that_moves_under_random_load_is_never_exceeded_and_nothing_is_lost() {
    let seed = seed();
    for tracker in trackers() {
        let mut random = SmallRng::seed_from_u64(seed);
        let (svm, watch) = watched(tracker, |builder| builder.budget(100 * PAGE));
        let svm = svm.unwrap();
        watch.allowed.store(100 * PAGE, Ordering::SeqCst);
        let mut data = svm.heap().vec_zeroed::<[u32; WORDS]>(300).unwrap();
        let mut expected = vec![0u32; data.len()];
        let kernel = scatter(&svm);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (svm, watch, done) = (&svm, &watch, &done);
            let mut moves = SmallRng::seed_from_u64(seed ^ 1);
            scope.spawn(move || {
                let mut now = 100 * PAGE;
                while !done.load(Ordering::Relaxed) {
                    let next = moves.random_range(8..200) * PAGE;
                    watch.allowed.store(now.max(next), Ordering::SeqCst);
                    svm.set_budget(next);
                    watch.allowed.store(next, Ordering::SeqCst);
                    let taken = watch.taken.load(Ordering::SeqCst);
                    assert!(taken <= next, "{taken} bytes are taken, {next} are allowed");
                    now = next;
                }
            });
            for round in 0..60 {
                let (groups, pick, value) = (random.random_range(1..80), random.random(), random.random());
                let launch = kernel.launch([groups, 1, 1]).write(&mut data[..]).value([300u64, pick, u64::from(value)]);
                launch.run().unwrap();
                expect(&mut expected, groups, pick, value);
                if round % 4 == 0 {
                    for (page, (found, wanted)) in data.iter_mut().zip(&mut expected).enumerate() {
                        assert_eq!(found[0], *wanted, "page {page} after round {round}");
                        found[0] ^= 1;
                        *wanted ^= 1;
                    }
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        println!("{tracker}:\n{}", svm.stats());
        assert!(svm.stats().evictions > 1000, "{}", svm.stats());
        drop((kernel, svm));
        assert!(data.iter().zip(&expected).all(|(found, wanted)| found[0] == *wanted));
        assert_eq!(watch.taken.load(Ordering::SeqCst), 0, "slabs are given back");
    }
}

#[test]
fn a_device_that_says_less_is_there_gets_its_memory_back_at_the_next_launch() {
    let (svm, watch) = watched(trackers()[0], |builder| builder);
    let svm = svm.unwrap();
    let mut data = svm.heap().vec_zeroed::<[u32; WORDS]>(400).unwrap();
    let kernel = scatter(&svm);
    let mut run = |groups| {
        let launch = kernel.launch([groups, 1, 1]).write(&mut data[..]).value([400u64, 7, 1]);
        launch.run().unwrap();
    };
    run(400);
    assert!(svm.frames().used > 300, "{:?}", svm.frames());
    watch.told.store(64 * PAGE, Ordering::SeqCst);
    run(1);
    assert!(watch.taken.load(Ordering::SeqCst) <= 60 * PAGE, "{:?}", svm.frames());
    watch.told.store(1 << 30, Ordering::SeqCst);
    run(400);
    assert!(svm.frames().used > 300, "{:?}", svm.frames());
    let mut expected = vec![0; 400];
    expect(&mut expected, 400, 7, 2);
    expect(&mut expected, 1, 7, 1);
    assert!(data.iter().zip(&expected).all(|(found, wanted)| found[0] == *wanted));
}

/// Sets the first word of every page.
fn assign(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [base, value] = invocation.arguments::<[u64; 2]>();
        invocation.store(base + PAGE * u64::from(invocation.global_id()[0]), value as u32);
    };
    // SAFETY: it writes the array it is launched with.
    unsafe { svm.soft_kernel("assign", [1, 1, 1], 16, body) }.unwrap().idempotent()
}

/// Adds one to the first word of every page, from the first page on or from the last.
fn step(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [base, pages, backwards] = invocation.arguments::<[u64; 3]>();
        let index = u64::from(invocation.global_id()[0]);
        let page = if backwards == 0 { index } else { pages - 1 - index };
        invocation.atomic_add(base + PAGE * page, 1);
    };
    // SAFETY: it changes the array it is launched with, with atomics only.
    unsafe { svm.soft_kernel("step", [1, 1, 1], 24, body) }.unwrap()
}

#[test]
fn arguments_larger_than_the_budget_are_brought_part_by_part_where_kernels_go_through_them_in_step() {
    for tracker in trackers() {
        let svm = soft(tracker, |builder| builder.budget(1024 * PAGE)).unwrap();
        let mut data = svm.heap().vec_from_slice(&vec![[7u32; WORDS]; 3000]).unwrap();
        let kernel = step(&svm);
        let mut run = |backwards: u64| {
            let launch = kernel.launch([3000, 1, 1]).write(&mut data[..]).value([3000u64, backwards]);
            launch.run().unwrap()
        };
        let ahead = run(0);
        assert_eq!((ahead.device_faults, ahead.pages_in), (0, 3000), "{ahead}");
        // A sweep leaves most of what it loaded first in place: the next does not load everything again.
        let again = run(0);
        // A page that is just being cleaned, ahead of its eviction, can be stored to only after a fault.
        assert!(again.device_faults < 32 && again.pages_in < 2400, "{again}");
        run(1);
        let backwards = run(1);
        assert!(backwards.device_faults > 0 && backwards.pages_in < 4000, "guessed once, and not again: {backwards}");
        assert!(data.iter().all(|page| page[0] == 7 + 4 && page[1] == 7));
    }
}

/// Every allocation of a whole run is refused in turn. Each time the run either does not notice, or an operation says what it lacked and
/// succeeds when it is tried again.
fn refuse_each_allocation(tracker: TrackerKind, placement: Placement) -> u64 {
    let mut refused = 0;
    loop {
        let (device, watch) = WatchedDevice::new();
        watch.refused.store(refused, Ordering::SeqCst);
        let open =
            || soft(tracker, |builder| builder.with_device(device.clone()).placement(placement).budget(40 * PAGE));
        let clear = |text: String| assert!(text.contains("out of device memory"), "allocation {refused}: {text}");
        let svm = open().or_else(|error| {
            clear(error.to_string());
            open()
        });
        let svm = svm.unwrap();
        let heap = svm.heap();
        let kernel = assign(&svm);
        // The second makes the page table grow.
        for pages in [60usize, 3000] {
            let mut data = heap.vec_zeroed::<[u32; WORDS]>(pages).unwrap();
            data.iter_mut().for_each(|page| page[0] = 1);
            for value in 2..4u32 {
                let mut run = || {
                    let launch = kernel.launch([pages as u32, 1, 1]).write(&mut data[..]);
                    launch.value(u64::from(value)).run()
                };
                if let Err(error) = run() {
                    clear(error.to_string());
                    for (number, page) in data.iter_mut().enumerate() {
                        assert!([value - 1, value].contains(&page[0]), "page {number}: {}", page[0]);
                        page[0] = value - 1;
                    }
                    let launch = kernel.launch([pages as u32, 1, 1]).write(&mut data[..]);
                    launch.value(u64::from(value)).run().unwrap();
                }
                assert!(data.iter().all(|page| page[0] == value));
            }
        }
        assert_eq!(svm.lost(), vksvm::service::LostPages::default());
        if watch.allocations.load(Ordering::SeqCst) <= refused {
            return refused;
        }
        // Those of a long run repeat themselves.
        refused += if refused < 40 { 1 } else { 1 + refused / 8 };
    }
}

#[test]
fn each_allocation_that_is_refused_is_an_error_that_says_so_and_loses_nothing() {
    for tracker in trackers() {
        for placement in [Placement::Copy, Placement::Remote] {
            let allocations = refuse_each_allocation(tracker, placement);
            println!("{tracker}, {placement:?}: {allocations} allocations");
            // Shared memory and windows alone are some; frames and staging come on top.
            assert!(allocations > 5, "what was refused?");
        }
    }
}

#[test]
fn what_a_device_wrote_comes_home_also_where_the_file_behind_the_heap_cannot_be_written() {
    if passed_in_own_process("what_a_device_wrote_comes_home_also_where_the_file_behind_the_heap_cannot_be_written") {
        return;
    }
    for tracker in trackers() {
        let svm = soft(tracker, |builder| builder).unwrap();
        let mut data = svm.heap().vec_zeroed::<[u32; WORDS]>(300).unwrap();
        let kernel = assign(&svm);
        kernel.launch([300, 1, 1]).write(&mut data[..]).value(7u64).run().unwrap();
        let mut all = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a plain system call that fills the structure.
        assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut all) }, 0);
        let none = libc::rlimit { rlim_cur: 0, ..all };
        // SAFETY: plain system calls in a process of its own: files cannot grow from here on, and who tries gets an error and no signal.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const none), 0);
        }
        assert!(data.iter().all(|page| page[0] == 7));
        // SAFETY: as above.
        unsafe { assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const all), 0) };
        assert_eq!(svm.lost(), vksvm::service::LostPages::default());
        assert!(svm.stats().pages_out >= 300, "{}", svm.stats());
    }
}
