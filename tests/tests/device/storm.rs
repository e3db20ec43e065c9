//! Page table update storms: entries are taken, made and given back at full speed, next to those that a kernel is walking, and VMAs come
//! and go between its pages.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::{FaultMode, MapRequest, Mapping, Permission, Svm, ThrashOptions, ThrashPolicy};
use vksvm_tests::{moving, spirv};

const PAGE: usize = 4096;
/// Pages that the kernel walks; every other page of twice as many.
const WALKED: usize = 32;
const INVOCATIONS: usize = 48;
const STORM: Duration = Duration::from_millis(1200);
/// The word of a page that only the CPU uses.
const LAST: usize = PAGE / 4 - 1;

/// Pages alternately the kernel's and nobody's for long, each a VMA of its own.
struct Pages {
    start: usize,
    walked: Vec<Mapping>,
    between: Vec<Mapping>,
}

impl Pages {
    fn new(svm: &Svm) -> Self {
        let mut rest = svm.map(2 * WALKED * PAGE, Permission::ReadWrite).unwrap();
        let start = rest.start().0 as usize;
        let (mut walked, mut between) = (Vec::new(), Vec::new());
        for page in 0..2 * WALKED {
            let upper = (page + 1 < 2 * WALKED).then(|| rest.split_off(PAGE).unwrap());
            if page % 2 == 0 { &mut walked } else { &mut between }.push(rest);
            let Some(upper) = upper else { break };
            rest = upper;
        }
        Self { start, walked, between }
    }
}

fn word(start: usize, step: usize, index: usize) -> &'static AtomicU32 {
    // SAFETY: callers name aligned words of walked pages, which outlive their use and are accessed atomically by the CPU.
    unsafe { AtomicU32::from_ptr((start as *mut u32).add(step * 2 * PAGE / 4 + index)) }
}

/// Ends the threads that ask, however the launches end.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `budgets` are frames; replayed, they must hold what a workgroup touches.
fn storm(mode: FaultMode, budgets: [u64; 4]) {
    let thrash = ThrashOptions { policy: ThrashPolicy::Off, ..ThrashOptions::default() };
    let svm = moving(|builder| builder.fault_mode(mode).frames(64).thrash(thrash).time_limit(Duration::from_secs(100)));
    let Pages { start, mut walked, between } = Pages::new(&svm);
    let mut stop = svm.heap().vec_from_slice(&[1u32]).unwrap();
    let mut out = svm.heap().vec_zeroed::<[u32; 2]>(INVOCATIONS).unwrap();
    // SAFETY: the kernel loads and stores words of the walked pages other than the last, and leaves counts. Stores may be repeated.
    let kernel = unsafe { svm.kernel("walk", spirv!("walk")) }.unwrap().idempotent();
    let turns = if mode == FaultMode::Live { u32::MAX } else { 200 };
    let flag = stop.as_mut_ptr() as usize;
    let mut launch = || {
        // SAFETY: the pages are mapped for as long as the kernel runs.
        let launch = unsafe { kernel.launch([INVOCATIONS as u32 / 16, 1, 1]).pointer(start as *const u8) };
        launch.read(&stop[..]).write(&mut out[..]).value([WALKED as u32, turns]).run().unwrap();
        assert!(out.iter().all(|&[turns, wrong]| turns > 0 && wrong == 0), "{mode:?}: {:?}", &out[..]);
    };
    // SAFETY: a live word that the kernel only reads meanwhile.
    let tell = |stop: u32| unsafe { AtomicU32::from_ptr(flag as *mut u32) }.store(stop, Ordering::Release);
    // Makes the pipelines.
    launch();
    tell(0);
    let (over, taken, remapped, discarded) =
        (AtomicBool::new(false), [const { AtomicU32::new(0) }; WALKED], AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let (svm, over, taken, remapped, discarded) = (&svm, &over, &taken, &remapped, &discarded);
        let _ends = Ends(over);
        let going = move || !over.load(Ordering::Relaxed);
        // Takes pages back; half of them are never discarded, so that what is added there stays.
        scope.spawn(move || {
            for turn in (0..WALKED).cycle().take_while(|_| going()) {
                word(start, turn, LAST).fetch_add(1, Ordering::Relaxed);
                taken[turn].fetch_add(1, Ordering::Relaxed);
                word(start, (turn + 7) % WALKED, LAST).load(Ordering::Relaxed);
            }
        });
        // Unmaps pages and maps others in their place.
        scope.spawn(move || {
            let places: Vec<_> = between.into_iter().map(|page| page.start()).collect();
            for &place in places.iter().cycle().take_while(|_| going()) {
                let mut page = svm.map_as(&MapRequest::new(PAGE as u64, Permission::ReadWrite).at(place)).unwrap();
                assert!(page.as_slice().iter().all(|&byte| byte == 0), "{mode:?}: a fresh page is not zeros");
                page.as_mut_slice().unwrap()[0] = 1;
                page.unmap().unwrap();
                remapped.fetch_add(1, Ordering::Relaxed);
            }
        });
        let walked = &mut walked;
        scope.spawn(move || {
            let mut frames = budgets.into_iter().cycle();
            for step in (0..WALKED).step_by(2).cycle().take_while(|_| going()) {
                walked[step].discard(0..PAGE).unwrap();
                discarded.fetch_add(1, Ordering::Relaxed);
                if step == 0 {
                    svm.set_budget(frames.next().unwrap() * PAGE as u64);
                }
            }
        });
        let begun = Instant::now();
        if mode == FaultMode::Live {
            scope.spawn(move || {
                std::thread::sleep(STORM);
                tell(1);
            });
        }
        while begun.elapsed() < STORM {
            launch();
        }
    });
    for (step, taken) in taken.iter().enumerate() {
        let found = word(start, step, LAST).load(Ordering::Relaxed);
        let taken = taken.load(Ordering::Relaxed);
        assert!(
            if step % 2 == 0 { found <= taken } else { found == taken },
            "{mode:?}, step {step}: {found}, of {taken}"
        );
        for index in 0..INVOCATIONS {
            let found = word(start, step, index).load(Ordering::Relaxed);
            assert!(found == 0 || found == step as u32, "{mode:?}, step {step}: {found}");
        }
    }
    println!("{mode:?}: {remapped:?} remapped, {discarded:?} discarded, {taken:?} taken\n{}", svm.stats());
}

#[test]
fn a_kernel_that_runs_walks_through_a_storm_of_updates() {
    storm(FaultMode::Live, [64, 20, 40, 28]);
}

#[test]
fn launches_walk_through_a_storm_of_updates() {
    storm(FaultMode::Replay, [64, 40, 56, 44]);
}
