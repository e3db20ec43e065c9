//! CPU and kernels on the same pages at the same time: nothing is lost, nobody starves, whatever the policy.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::{FaultMode, Kernel, Mapping, Permission, Stats, Svm, ThrashOptions, ThrashPolicy};
use vksvm_tests::{spirv, with};

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

/// How far both were at a moment.
#[derive(Clone, Copy)]
struct Sample {
    at: Duration,
    cpu: u32,
    device: u32,
    /// How long those who take part were ready to run and had no processor.
    delay: Duration,
}

/// How long the threads that take part, this one, the driver's and the runtime's, have waited for a processor.
fn delay() -> Duration {
    let read = |task: std::path::PathBuf| {
        let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok().map(Duration::from_nanos)
    };
    let takes_part = |task: &std::path::PathBuf| {
        let name = std::fs::read_to_string(task.join("comm"));
        name.is_ok_and(|name| ["llvmpipe", "vksvm-"].iter().any(|start| name.starts_with(start)))
    };
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| Some(task.ok()?.path()));
    tasks.filter(takes_part).filter_map(read).sum::<Duration>() + read("/proc/thread-self".into()).unwrap_or_default()
}

/// What the kernel does between two additions: about a microsecond.
const WORK: u32 = 500;

/// A kernel and this thread add to words of their own on one page, the thread once each `period`. The thread looks at both words
/// whenever it has the page.
fn contend(svm: &Svm, time: Duration, period: Duration) -> (Vec<Sample>, Stats) {
    let (words, stop) = (svm.map(PAGE, Permission::ReadWrite).unwrap(), svm.map(PAGE, Permission::ReadWrite).unwrap());
    let results = svm.map(PAGE, Permission::ReadWrite).unwrap();
    let contend = kernel(svm);
    let before = svm.stats();
    let launch = contend.launch([1, 1, 1]);
    // SAFETY: the mappings outlive the launch, which is waited for below.
    let launch = unsafe { launch.pointer(words.as_ptr()).pointer(stop.as_ptr()).pointer(results.as_ptr()) };
    let launch = launch.value(PAGE as u32).value(1u32).value(u32::MAX).value(WORK);
    // SAFETY: as above.
    let running = unsafe { launch.submit_unscoped() }.unwrap();
    while word(&words, 0).load(Ordering::Relaxed) == 0 && !running.is_done() {
        std::thread::sleep(Duration::from_micros(200));
    }
    let mut samples: Vec<Sample> = Vec::new();
    let start = Instant::now();
    let cpu = loop {
        let cpu = word(&words, 64).fetch_add(1, Ordering::Relaxed) + 1;
        let device = word(&words, 0).load(Ordering::Relaxed);
        let at = start.elapsed();
        if samples.last().is_none_or(|last| at - last.at > Duration::from_millis(1)) {
            samples.push(Sample { at, cpu, device, delay: delay() });
        }
        if at >= time {
            break cpu;
        }
        while start.elapsed() < at + period {
            std::hint::spin_loop();
        }
    };
    word(&stop, 0).store(1, Ordering::Relaxed);
    running.wait().unwrap();
    let count = word(&results, 0).load(Ordering::Relaxed);
    assert_eq!(word(&words, 0).load(Ordering::Relaxed), count, "the kernel's additions");
    assert_eq!(word(&words, 64).load(Ordering::Relaxed), cpu, "the CPU's additions");
    (samples, svm.stats().since(&before))
}

/// How long the kernel needs for an addition that nobody disturbs.
fn pace(svm: &Svm) -> Duration {
    let (words, stop) = (svm.map(PAGE, Permission::ReadWrite).unwrap(), svm.map(PAGE, Permission::ReadWrite).unwrap());
    let results = svm.map(PAGE, Permission::ReadWrite).unwrap();
    let contend = kernel(svm);
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let count = 20_000u32;
        let launch = contend.launch([1, 1, 1]);
        // SAFETY: the mappings outlive the launch.
        let launch = unsafe { launch.pointer(words.as_ptr()).pointer(stop.as_ptr()).pointer(results.as_ptr()) };
        let start = Instant::now();
        launch.value(PAGE as u32).value(1u32).value(count).value(WORK).run().unwrap();
        best = best.min(start.elapsed() / count);
    }
    best
}

/// The smallest share of the other's progress that a side made in any tenth of a second, in which those who take part waited for a
/// processor for less than a quarter of the time: else, it is the machine's doing. And how many tenths were looked at.
fn worst(samples: &[Sample]) -> (f64, usize) {
    const WINDOW: Duration = Duration::from_millis(100);
    let (mut worst, mut judged) = (1.0f64, 0);
    for (index, from) in samples.iter().enumerate() {
        let Some(to) = samples[index..].iter().find(|to| to.at - from.at >= WINDOW) else { break };
        if to.delay.saturating_sub(from.delay) > (to.at - from.at) / 4 {
            continue;
        }
        judged += 1;
        let (cpu, device) = (f64::from(to.cpu - from.cpu), f64::from(to.device - from.device));
        // A gap in the samples is a CPU that starved: its progress is what it made in a tenth of a second.
        let share = WINDOW.as_secs_f64() / (to.at - from.at).as_secs_f64();
        worst = worst.min((cpu * share / device).min(device / cpu));
    }
    (worst, judged)
}

#[test]
fn in_any_tenth_of_a_second_each_side_makes_a_quarter_of_the_others_progress() {
    for policy in [ThrashPolicy::Throttle, ThrashPolicy::Full] {
        let mut enough = false;
        for attempt in 1..=5 {
            let svm = with(|builder| builder.fault_mode(FaultMode::Live).thrash(options(policy)));
            let period = pace(&svm);
            let (samples, stats) = contend(&svm, Duration::from_secs(2), period);
            let (worst, judged) = worst(&samples);
            println!(
                "{policy:?}, attempt {attempt}: an addition each {period:?}; at worst {worst:.2} of the other's progress in {judged} of \
                 {} windows; {} bounces, {} throttles, {} pins\n{stats}",
                samples.len(),
                stats.bounces,
                stats.throttles,
                stats.pins
            );
            assert!(stats.bounces > 0, "nothing was fought over");
            enough = judged * 4 >= samples.len();
            if enough {
                assert!(worst >= 0.25, "{policy:?}: one side made {worst:.3} of the other's progress");
                break;
            }
        }
        if !enough {
            println!("{policy:?}: not judged, this machine had too few processors to spare");
        }
    }
}

#[test]
fn launches_and_cpu_stores_both_go_on_in_replay_mode() {
    for policy in POLICIES {
        let svm = with(|builder| builder.fault_mode(FaultMode::Replay).thrash(options(policy)));
        let (words, stop) =
            (svm.map(PAGE, Permission::ReadWrite).unwrap(), svm.map(PAGE, Permission::ReadWrite).unwrap());
        let results = svm.map(PAGE, Permission::ReadWrite).unwrap();
        let contend = kernel(&svm);
        let (mut cpu, mut device, mut last) = (0u32, 0u32, Instant::now());
        let end = last + Duration::from_secs(1);
        let mut longest = Duration::ZERO;
        while Instant::now() < end {
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
        // Without the policy nothing is promised.
        let enough = device >= 10 && cpu >= 10;
        assert!(enough || policy == ThrashPolicy::Off, "{policy:?}: {device} launches, {cpu} stores");
    }
}

#[test]
fn many_threads_and_workgroups_lose_no_addition_whatever_the_policy() {
    for mode in [FaultMode::Live, FaultMode::Replay] {
        for policy in POLICIES {
            let svm = with(|builder| builder.fault_mode(mode).thrash(options(policy)));
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
