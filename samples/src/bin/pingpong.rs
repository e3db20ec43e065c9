//! CPU and device fight over a work queue: both take tasks from it at the same time and store results beside each other's, so that the
//! queue's page is wanted by both sides always and the tasks' pages often. Shows what the policy against thrashing does about it.

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vksvm::{FaultMode, Kernel, Mapping, Permission, Placement, Stats, Svm, ThrashOptions, ThrashPolicy};
use vksvm_samples::progress;

/// Has the CPU and the device take tasks from one queue at the same time, with and without the policy against thrashing
#[derive(Parser)]
struct Options {
    /// Tasks in the queue
    #[arg(default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    tasks: u32,
    /// What to do when both sides want the same pages
    #[arg(long, value_enum, default_value_t = Policy::All)]
    policy: Policy,
    /// Steps of computation for each task
    #[arg(long, default_value_t = 1000)]
    work: u32,
    /// The longest that a policy may take, in seconds; what is left of the queue then is left
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Whether kernels wait for pages (live: both sides run at once) or are run again (replay: the CPU waits for the dispatch in flight)
    #[arg(long, value_enum, default_value_t = Mode::Live)]
    mode: Mode,
    /// Workgroups that take tasks on the device
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1024))]
    groups: u32,
    /// The most tasks that a workgroup takes in a launch
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    batch: u32,
}

#[derive(ValueEnum, Clone, Copy, PartialEq)]
enum Policy {
    /// Pages move as they are touched
    Off,
    /// Who has a page that is fought over keeps it for a while
    Throttle,
    /// After that, the page stays at home and the device reaches it there
    Full,
    /// One after the other
    All,
}

#[derive(ValueEnum, Clone, Copy, PartialEq)]
enum Mode {
    Live,
    Replay,
}

/// A task as the kernel sees it: how often it was taken, and what it came to.
type Task = [AtomicU32; 2];

/// What a policy came to.
struct Score {
    name: &'static str,
    time: Duration,
    of_cpu: u32,
    of_device: u32,
    stats: Stats,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.seconds > 0.0 && options.seconds < 3600.0, "--seconds wants a time between 0 and 3600");
    let policies = [("off", ThrashPolicy::Off), ("throttle", ThrashPolicy::Throttle), ("full", ThrashPolicy::Full)];
    let chosen = match options.policy {
        Policy::All => &policies[..],
        one => &policies[one as usize..=one as usize],
    };
    let scores = chosen.iter().map(|&(name, policy)| play(&options, name, policy)).collect::<Result<Vec<_>>>()?;
    report(&scores);
    println!("ok: every task was done once, and rightly");
    Ok(())
}

/// Empties a queue with one policy.
fn play(options: &Options, name: &'static str, policy: ThrashPolicy) -> Result<Score> {
    let Options { tasks: n, work, groups, batch, .. } = *options;
    let mode = if options.mode == Mode::Live { FaultMode::Live } else { FaultMode::Replay };
    let thrash = ThrashOptions { policy, ..ThrashOptions::default() };
    let svm = Svm::builder().fault_mode(mode).placement(Placement::Copy).thrash(thrash).build()?;
    println!("policy {name}: {}", svm.info().fault_mode);
    // SAFETY: it takes numbers from a queue, changes the tasks of these numbers, of which launches give it `n`, and adds to a count.
    let kernel = unsafe { svm.kernel("pingpong", include_bytes!("../../shaders/spv/pingpong.spv"))? };
    let pages = |bytes: usize| svm.map(bytes.next_multiple_of(4096), Permission::ReadWrite);
    let (queue, tasks, count) = (pages(4)?, pages(n as usize * size_of::<Task>())?, pages(4)?);
    launch(&kernel, &[&queue, &tasks, &count], [groups, 0, 0, 0])?; // makes the kernel's pipeline
    let before = svm.stats();
    let (next, done) = (word(&queue, 0), AtomicBool::new(false));
    let bar = progress::bar(name, u64::from(n));
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(options.seconds);
    let of_cpu = std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                launch(&kernel, &[&queue, &tasks, &count], [groups, n, batch, work])?;
            }
            anyhow::Ok(())
        });
        let mut taken = 0;
        // As long as the device is at it: if it fails, what it says matters.
        while Instant::now() < end && !device.is_finished() {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= n {
                break;
            }
            let at = task as usize * size_of::<Task>();
            word(&tasks, at + 4).store(compute(task, work), Ordering::Relaxed);
            word(&tasks, at).fetch_add(1, Ordering::Relaxed);
            taken += 1;
            if taken % 64 == 0 {
                bar.set_position(u64::from(task));
            }
        }
        done.store(true, Ordering::Relaxed);
        device.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map(|()| taken)
    })?;
    let time = start.elapsed();
    bar.finish_and_clear();
    let stats = svm.stats().since(&before);
    let of_device = word(&count, 0).load(Ordering::Relaxed);
    check(&tasks, next.load(Ordering::Relaxed).min(n), n, work)?;
    ensure!(of_cpu + of_device == next.load(Ordering::Relaxed).min(n), "tasks were counted wrongly");
    Ok(Score { name, time, of_cpu, of_device, stats })
}

/// Has the device take tasks: workgroups, tasks in all, tasks for each workgroup at most, and steps of computation.
fn launch(kernel: &Kernel, mappings: &[&Mapping; 3], [groups, n, batch, work]: [u32; 4]) -> Result<()> {
    let launch = kernel.launch([groups, 1, 1]);
    // SAFETY: the mappings outlive the launch, which is waited for; CPU and kernel access them with atomics, or words that the queue gave to one of
    // them.
    let launch = mappings.iter().fold(launch, |launch, mapping| unsafe { launch.pointer(mapping.as_ptr()) });
    launch.value(n).value(batch).value(work).run()?;
    Ok(())
}

/// What a task comes to.
fn compute(task: u32, work: u32) -> u32 {
    (0..work).fold(task, |value, _| {
        let value = value.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        value ^ value >> 15
    })
}

/// A word of a mapping that CPU and kernel access at the same time.
fn word(mapping: &Mapping, at: usize) -> &AtomicU32 {
    assert!(at + 4 <= mapping.len() && at.is_multiple_of(4));
    // SAFETY: in bounds and aligned, and lives as long as the mapping; both sides access it atomically while they share it.
    unsafe { AtomicU32::from_ptr(mapping.as_ptr().add(at).cast()) }
}

/// Checks that the first `taken` tasks were done once each, and no other.
fn check(tasks: &Mapping, taken: u32, n: u32, work: u32) -> Result<()> {
    for task in 0..n {
        let at = task as usize * size_of::<Task>();
        let found = [at, at + 4].map(|at| word(tasks, at).load(Ordering::Relaxed));
        let wanted = if task < taken { [1, compute(task, work)] } else { [0, 0] };
        ensure!(found == wanted, "task {task} of {taken} taken: {found:?} instead of {wanted:?}");
    }
    Ok(())
}

fn report(scores: &[Score]) {
    println!("\n{:10} {:>10} {:>11} {:>9} {:>9}", "policy", "time", "tasks/s", "CPU's", "device's");
    for Score { name, time, of_cpu, of_device, .. } in scores {
        let rate = f64::from(of_cpu + of_device) / time.as_secs_f64();
        println!("{name:10} {time:>10.2?} {rate:>11.0} {of_cpu:>9} {of_device:>9}");
    }
    println!(
        "\n{:10} {:>10} {:>10} {:>8} {:>6} {:>10} {:>10} {:>10}",
        "policy", "CPU faults", "bounces", "waits", "pins", "faults", "pages in", "pages out"
    );
    for Score { name, stats, .. } in scores {
        println!(
            "{name:10} {:>10} {:>10} {:>8} {:>6} {:>10} {:>10} {:>10}",
            stats.cpu_faults,
            stats.bounces,
            stats.throttles,
            stats.pins,
            stats.device_faults,
            stats.pages_in,
            stats.pages_out
        );
    }
    if let [first, .., last] = scores {
        let rate = |score: &Score| f64::from(score.of_cpu + score.of_device) / score.time.as_secs_f64();
        println!("\n{}: {:.1} times the tasks a second of {}", last.name, rate(last) / rate(first), first.name);
    }
}
