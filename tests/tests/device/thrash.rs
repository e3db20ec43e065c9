//! CPU and kernels on the same pages at the same time: nothing is lost, nobody starves, whatever the policy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::addr::VirtAddr;
use vksvm::hmm::{Clock, ManualClock};
use vksvm::mm::ops::Span;
use vksvm::policy::Granule;
use vksvm::policy::thrash::{Side, Verdict};
use vksvm::{FaultMode, Kernel, Mapping, Permission, Stats, Svm, ThrashOptions, ThrashPolicy};
use vksvm_tests::{moving, spirv};

const PAGE: usize = 4096;
const POLICIES: [ThrashPolicy; 3] = [ThrashPolicy::Off, ThrashPolicy::Throttle, ThrashPolicy::Full];

fn word(mapping: &Mapping, at: usize) -> &AtomicU32 {
    assert!(at + 4 <= mapping.len());
    // SAFETY: in bounds, aligned, lives as long as the mapping; everybody accesses it atomically.
    unsafe { AtomicU32::from_ptr(mapping.as_ptr().add(at).cast()) }
}

fn options(policy: ThrashPolicy) -> ThrashOptions {
    ThrashOptions { policy, ..ThrashOptions::default() }
}

fn kernel(svm: &Svm) -> Kernel {
    // SAFETY: the launches below give it words and results that are theirs, which both sides access atomically.
    unsafe { svm.kernel("contend", spirv!("contend")) }.unwrap()
}

/// What the test's clock shows more with each tick.
const TICK: Duration = Duration::from_micros(200);
/// Where on the mapping the words are that say which tick it is and which the kernel has done: granules away from those fought over.
const TICKS: usize = 1 << 17;
const END: u32 = u32::MAX;

/// Additions of CPU and kernel so far, tick by tick.
type Progress = Vec<[u32; 2]>;

/// A kernel and a CPU thread fight over a page, each adding to a word of its own once in each tick in which it gets the page. The policy goes
/// by a clock that moves from tick to tick, which ends when each side has made its addition or is, as the policy has it, to wait for the
/// other's residency to end. So what a side gets depends on what the policy decides and on its being done, and not on who has a processor when.
fn fight(policy: ThrashPolicy, ticks: u32) -> (Progress, Stats) {
    let clock = Arc::new(ManualClock::new());
    let svm = moving(|builder| {
        // The limit is for kernels whose page never comes.
        let builder = builder.fault_mode(FaultMode::Live).poll_limit(u32::MAX).time_limit(Duration::from_secs(120));
        builder.thrash(options(policy)).thrash_clock(clock.clone())
    });
    let words = svm.map(2 * TICKS, Permission::ReadWrite).unwrap();
    let space = svm.address_space();
    space.pin_home(Span { start: VirtAddr(words.start().0 + TICKS as u64), bytes: PAGE as u64 }).unwrap();
    // SAFETY: it is launched with words that both sides access atomically.
    let kernel = unsafe { svm.kernel("ticks", spirv!("ticks")) }.unwrap();
    let (tick, kernels) = (word(&words, TICKS), word(&words, TICKS + 64));
    tick.store(0, Ordering::Relaxed);
    kernels.store(0, Ordering::Relaxed);
    let granule = Granule::of(space.home().views.page_of(words.start()).unwrap());
    let cpus = AtomicU32::new(0);
    let before = svm.stats();
    // SAFETY: the mapping outlives the launch, which is waited for below.
    let launch = unsafe { kernel.launch([1, 1, 1]).pointer(words.as_ptr()).pointer(words.as_ptr().add(TICKS)) };
    // SAFETY: as above.
    let running = unsafe { launch.submit_unscoped() }.unwrap();
    let mut progress = vec![[0; 2]];
    let mut late = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while last != END {
                let now = tick.load(Ordering::Acquire);
                if now != last && now != END {
                    word(&words, 64).fetch_add(1, Ordering::Relaxed);
                    cpus.store(now, Ordering::Release);
                }
                last = now;
                std::thread::yield_now();
            }
        });
        let mut counts = [0u32; 2];
        for now in 1..=ticks {
            clock.advance(TICK);
            tick.store(now, Ordering::Release);
            let start = Instant::now();
            for (side, done, count) in [(Side::CPU, &cpus, 0), (Side::device(0), kernels, 1)] {
                let is_done = || done.load(Ordering::Acquire) == now;
                // The first time, kernels are compiled.
                let patience = if now == 1 { 30 * PATIENCE } else { PATIENCE };
                while !is_done() && !is_held(&svm, granule, side, clock.now()) {
                    std::thread::yield_now();
                    if start.elapsed() > patience || running.is_done() {
                        late.push((side, now));
                        break;
                    }
                }
                counts[count] += u32::from(is_done());
            }
            progress.push(counts);
            if late.len() > MOST_LATE {
                break;
            }
        }
        clock.advance(Duration::from_secs(1));
        tick.store(END, Ordering::Release);
    });
    running.wait().unwrap();
    assert!(late.len() <= MOST_LATE, "{policy:?}: who does not get what it may have, and when: {late:?}");
    (progress, svm.stats().since(&before))
}

/// How long a side may need, in real time, to make an addition that nothing keeps it from: far more than it does. Then the clock moves on, and the
/// tick is lost to it.
const PATIENCE: Duration = Duration::from_secs(2);
/// Ticks lost so, of all, that a machine may have excuses for.
const MOST_LATE: usize = 10;

/// Whether the policy has `side` wait for `granule`.
fn is_held(svm: &Svm, granule: Granule, side: Side, now: Duration) -> bool {
    let thrash = svm.address_space().thrash();
    let options = thrash.options();
    let record = thrash.granule(granule);
    let decision = options.touch(record, side, now + thrash.origin(), true, false, granule.0);
    matches!(decision.verdict, Verdict::Wait(_))
}

/// The smallest share of the other's progress that a side made in any tenth of a second on the policy's clock.
fn worst(progress: &[[u32; 2]]) -> f64 {
    let window = (Duration::from_millis(100).as_micros() / TICK.as_micros()) as usize;
    let shares = progress.windows(window + 1).map(|span| {
        let made = |side: usize| f64::from(span[window][side] - span[0][side]);
        (made(0) / made(1)).min(made(1) / made(0))
    });
    shares.fold(1.0, f64::min)
}

#[test]
fn in_any_tenth_of_a_second_each_side_makes_a_quarter_of_the_others_progress() {
    for policy in [ThrashPolicy::Throttle, ThrashPolicy::Full] {
        let (progress, stats) = fight(policy, 2000);
        let (worst, all) = (worst(&progress), progress.last().unwrap());
        println!(
            "{policy:?}: {worst:.2} of the other's progress at worst, {all:?} in all; {} bounces, {} throttles, {} pins",
            stats.bounces, stats.throttles, stats.pins
        );
        assert!(stats.bounces > 0, "nothing was fought over");
        assert!(policy == ThrashPolicy::Full || stats.throttles > 50, "{} throttles", stats.throttles);
        assert!(worst >= 0.25, "{policy:?}: one side made {worst:.3} of the other's progress");
    }
}

#[test]
fn launches_and_cpu_stores_both_go_on_in_replay_mode() {
    for policy in POLICIES {
        let svm = moving(|builder| builder.fault_mode(FaultMode::Replay).thrash(options(policy)));
        let (words, stop) =
            (svm.map(PAGE, Permission::ReadWrite).unwrap(), svm.map(PAGE, Permission::ReadWrite).unwrap());
        let results = svm.map(PAGE, Permission::ReadWrite).unwrap();
        let contend = kernel(&svm);
        let (mut cpu, mut device, mut last) = (0u32, 0u32, Instant::now());
        let end = last + Duration::from_secs(1);
        let mut longest = Duration::ZERO;
        // Without the policy nothing is promised. With it, a slow machine needs longer, and no more than that.
        let begun = last;
        let more = |device| policy != ThrashPolicy::Off && device < 10 && begun.elapsed() < Duration::from_secs(60);
        while Instant::now() < end || more(device) {
            let launch = contend.launch([1, 1, 1]);
            // SAFETY: the mappings outlive the launch, which is waited for below.
            let launch = unsafe { launch.pointer(words.as_ptr()).pointer(stop.as_ptr()).pointer(results.as_ptr()) };
            let launch = launch.value(PAGE as u32).value(1u32).value(1000u32).value(0u32);
            // SAFETY: as above.
            let running = unsafe { launch.submit_unscoped() }.unwrap();
            while !running.is_done() {
                word(&words, 64).fetch_add(1, Ordering::Relaxed);
                cpu += 1;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            running.wait().unwrap();
            device += 1;
        }
        println!("{policy:?}: {device} launches, {cpu} stores, {longest:?} between two at most\n{}", svm.stats());
        assert_eq!(word(&words, 0).load(Ordering::Relaxed), device * 1000);
        assert_eq!(word(&words, 64).load(Ordering::Relaxed), cpu);
        let enough = device >= 10 && cpu >= 10;
        assert!(enough || policy == ThrashPolicy::Off, "{policy:?}: {device} launches, {cpu} stores");
    }
}

#[test]
fn many_threads_and_workgroups_lose_no_addition_whatever_the_policy() {
    for mode in [FaultMode::Live, FaultMode::Replay] {
        for policy in POLICIES {
            let svm = moving(|builder| builder.fault_mode(mode).thrash(options(policy)));
            let (groups, threads, pages, count) = (4u32, 4u32, 20usize, 20_000u32);
            let words = svm.map(pages * PAGE, Permission::ReadWrite).unwrap();
            let (stop, results) =
                (svm.map(PAGE, Permission::ReadWrite).unwrap(), svm.map(PAGE, Permission::ReadWrite).unwrap());
            let contend = kernel(&svm);
            let launch = contend.launch([groups, 1, 1]);
            // SAFETY: the mappings outlive the launch, which is waited for below.
            let launch = unsafe { launch.pointer(words.as_ptr()).pointer(stop.as_ptr()).pointer(results.as_ptr()) };
            let launch = launch.value(PAGE as u32).value(pages as u32).value(count).value(0u32);
            // SAFETY: as above.
            let running = unsafe { launch.submit_unscoped() }.unwrap();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        for n in 0..count as usize {
                            word(&words, n % pages * PAGE).fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            running.wait().unwrap();
            for page in 0..pages {
                let found = word(&words, page * PAGE).load(Ordering::Relaxed);
                assert_eq!(found, count / pages as u32 * (groups + threads), "{mode:?}, {policy:?}, page {page}");
            }
            println!("{mode:?}, {policy:?}:\n{}", svm.stats());
        }
    }
}
