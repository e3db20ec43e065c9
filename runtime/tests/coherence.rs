//! Coherence, fuzzed against an oracle: CPU threads and several devices on one heap.
//!
//! A test runs in rounds. In a round, CPU threads and devices work at the same time on the same pages: each owns some words, which it
//! reads, writes and changes atomically, all may read the words that nobody owns, and all add to common counters. So
//! pages bounce between all of them while the outcome of every operation is determined. The oracle is a plain copy of every word.
//! Frame limits are small, so that evictions never stop; between rounds allocations are freed and made anew.
//!
//! `VKSVM_SEED` repeats a run; `VKSVM_FUZZ_ROUNDS` makes it longer.

mod common;

use common::{seed, soft, trackers};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use vksvm::device::soft::{SoftContext, SoftOptions};
use vksvm::mm::ops::Span;
use vksvm::{Heap, Kernel, Svm, SvmVec, TrackerKind};

/// What an actor does with a word.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Operation {
    address: u64,
    kind: u32,
    value: u32,
}

const LOAD: u32 = 0;
const STORE: u32 = 1;
const ADD: u32 = 2;
const MAX: u32 = 3;
const EXCHANGE: u32 = 4;
const KINDS: u32 = 5;

/// What `kind` with `value` makes of a word.
fn outcome(kind: u32, old: u32, value: u32) -> u32 {
    match kind {
        LOAD => old,
        ADD => old.wrapping_add(value),
        MAX => old.max(value),
        STORE | EXCHANGE => value,
        _ => unreachable!("no such kind"),
    }
}

/// The kernel: one operation an invocation; notes what was there before.
fn operate(invocation: &mut SoftContext<'_>) {
    let [operations, results, count] = invocation.arguments::<[u64; 3]>();
    let index = u64::from(invocation.global_id()[0]);
    if index >= count {
        return;
    }
    let Operation { address, kind, value } = invocation.load(operations + 16 * index);
    let old = match kind {
        LOAD => invocation.load(address),
        STORE => {
            invocation.store(address, value);
            value
        }
        ADD => invocation.atomic_add(address, value),
        MAX => invocation.atomic_max(address, value),
        _ => invocation.atomic_exchange(address, value),
    };
    invocation.store(results + 4 * index, old);
}

/// The same on the CPU.
fn operate_on_cpu(operation: Operation) -> u32 {
    let Operation { address, kind, value } = operation;
    // SAFETY: the address is that of a word of a live allocation, which everybody accesses atomically in a round.
    let word = unsafe { &*std::ptr::with_exposed_provenance::<AtomicU32>(address as usize) };
    match kind {
        LOAD => word.load(Ordering::Relaxed),
        STORE => {
            word.store(value, Ordering::Relaxed);
            value
        }
        ADD => word.fetch_add(value, Ordering::Relaxed),
        MAX => word.fetch_max(value, Ordering::Relaxed),
        _ => word.swap(value, Ordering::Relaxed),
    }
}

/// An allocation and what must be in it.
struct Tracked {
    memory: SvmVec<u32>,
    expected: Vec<u32>,
}

impl Tracked {
    fn new(heap: &Heap, random: &mut SmallRng) -> Self {
        // From a word to some pages; large ones are VMAs of their own.
        let words =
            if random.random_bool(0.5) { random.random_range(1..3000) } else { random.random_range(9000..30_000) };
        if random.random_bool(0.5) {
            return Self { memory: heap.vec_zeroed(words).unwrap(), expected: vec![0; words] };
        }
        let expected: Vec<u32> = (0..words).map(|_| random.random()).collect();
        Self { memory: heap.vec_from_slice(&expected).unwrap(), expected }
    }

    fn address(&self, word: usize) -> u64 {
        self.memory.as_ptr().expose_provenance() as u64 + 4 * word as u64
    }

    fn check(&self, what: &str) {
        for (word, (&found, &expected)) in self.memory.iter().zip(&self.expected).enumerate() {
            assert_eq!(found, expected, "{what}: word {word} of {} at {:#x}", self.expected.len(), self.address(word));
        }
    }
}

/// What an actor does in a round, with what it must see.
#[derive(Default)]
struct Script {
    operations: Vec<Operation>,
    /// What each operation returns; nothing for adding to common counters.
    expected: Vec<Option<u32>>,
}

impl Script {
    fn push(&mut self, operation: Operation, expected: Option<u32>) {
        self.operations.push(operation);
        self.expected.push(expected);
    }

    fn check(&self, actor: &str, results: &[u32]) {
        for (index, (&found, expected)) in results.iter().zip(&self.expected).enumerate() {
            if let Some(expected) = *expected {
                assert_eq!(found, expected, "{actor}, operation {index}: {:x?}", self.operations[index]);
            }
        }
    }
}

const CPU_THREADS: usize = 2;
const COUNTERS: usize = 4;

/// Writes a round's scripts and updates the oracle.
fn scripts(random: &mut SmallRng, actors: usize, pool: &mut [Tracked], counters: &mut Tracked) -> Vec<Script> {
    let mut scripts: Vec<Script> = (0..actors).map(|_| Script::default()).collect();
    for tracked in pool {
        let touched = random.random_range(0..200usize);
        // Distinct words: a word has one owner a round, and one operation, since invocations are not ordered.
        let stride = (tracked.expected.len() / touched.max(1)).max(1);
        for word in (0..tracked.expected.len()).step_by(stride).take(touched) {
            let word = (word + random.random_range(0..stride)).min(tracked.expected.len() - 1);
            let address = tracked.address(word);
            let old = tracked.expected[word];
            if random.random_bool(0.3) {
                // Nobody's: read by some.
                for script in scripts.iter_mut().filter(|_| random.random_bool(0.5)) {
                    script.push(Operation { address, kind: LOAD, value: 0 }, Some(old));
                }
                continue;
            }
            let (kind, value) = (random.random_range(0..KINDS), random.random());
            let owner = &mut scripts[random.random_range(0..actors)];
            if owner.operations.iter().any(|operation| operation.address == address) {
                continue;
            }
            tracked.expected[word] = outcome(kind, old, value);
            owner.push(Operation { address, kind, value }, Some(if kind == STORE { value } else { old }));
        }
    }
    for script in &mut scripts {
        for _ in 0..random.random_range(0..20) {
            let counter = random.random_range(0..COUNTERS);
            let value = random.random();
            counters.expected[counter] = counters.expected[counter].wrapping_add(value);
            script.push(Operation { address: counters.address(counter), kind: ADD, value }, None);
        }
    }
    scripts
}

fn run_on_device(heap: &Heap, kernel: &Kernel, script: &Script, name: &str) {
    if script.operations.is_empty() {
        return;
    }
    let operations = heap.vec_from_slice(&script.operations).unwrap();
    let mut results = heap.vec_zeroed::<u32>(operations.len()).unwrap();
    let groups = operations.len().div_ceil(8) as u32;
    let launch = kernel.launch([groups, 1, 1]).read(&operations[..]).write(&mut results[..]);
    launch.value(operations.len() as u64).run().unwrap_or_else(|error| panic!("{name}: {error}"));
    script.check(name, &results);
}

/// Ends the process if a test makes no progress: a deadlock or livelock would hang for ever.
fn watchdog(seconds: u64) -> impl Drop {
    struct Stop(Option<std::sync::mpsc::Sender<()>>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.take();
        }
    }
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if stopped.recv_timeout(std::time::Duration::from_secs(seconds))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            eprintln!("no end after {seconds} s: deadlock or livelock");
            std::process::abort();
        }
    });
    Stop(Some(stop))
}

/// When the last actor of a round has ended, so has the round.
struct Ended<'a>(&'a AtomicBool, &'a AtomicUsize);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if self.1.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Pins pages at home and unpins them, in random order, until told to stop.
fn pin_at_random(svm: &Svm, pages: &[u64], seed: u64, stop: &AtomicBool) {
    let mut random = SmallRng::seed_from_u64(seed);
    let space = svm.address_space();
    while !stop.load(Ordering::Relaxed) {
        let start = vksvm::addr::VirtAddr(pages[random.random_range(0..pages.len())]);
        let span = Span { start, bytes: 4096 };
        if random.random_bool(0.5) { space.pin_home(span) } else { space.unpin_home(span) }.unwrap();
        std::thread::yield_now();
    }
}

fn fuzz(tracker: TrackerKind, devices: usize, frames: u32, seed: u64) {
    fuzz_with(tracker, devices, frames, seed, false);
}

/// With `pinning`, pages are pinned at home and unpinned all the time, and the last device cannot map home pages.
fn fuzz_with(tracker: TrackerKind, devices: usize, frames: u32, seed: u64, pinning: bool) {
    let rounds = std::env::var("VKSVM_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    let _watchdog = watchdog(60 + 5 * rounds);
    let mut random = SmallRng::seed_from_u64(seed);
    let mut svms: Vec<Svm> = Vec::new();
    for number in 0..devices {
        let imports = number == 0 || number + 1 < devices;
        let options = SoftOptions { workers: 1 + number % 2, seed: Some(seed), imports, ..SoftOptions::default() };
        let svm = soft(tracker, |builder| {
            let builder = builder.soft_device(options).frames(frames);
            svms.first().map_or_else(|| builder.clone(), |first| builder.clone().share_heap_with(first))
        });
        svms.push(svm.unwrap());
    }
    let heap = svms[0].heap();
    // SAFETY: it accesses what its operations name: words of allocations that outlive the round, each owned by one actor or
    // changed with atomics by all.
    let kernels: Vec<Kernel> =
        svms.iter().map(|svm| unsafe { svm.soft_kernel("operate", [8, 1, 1], 24, operate) }.unwrap()).collect();
    let mut pool: Vec<Tracked> = (0..6).map(|_| Tracked::new(&heap, &mut random)).collect();
    let mut counters = Tracked { memory: heap.vec_zeroed(COUNTERS).unwrap(), expected: vec![0; COUNTERS] };
    for round in 0..rounds {
        let scripts = scripts(&mut random, CPU_THREADS + devices, &mut pool, &mut counters);
        let allocations = pool.iter().chain([&counters]);
        let pages: Vec<u64> = allocations
            .flat_map(|tracked| (0..tracked.expected.len()).step_by(1024).map(|word| tracked.address(word) & !4095))
            .collect();
        let done = AtomicBool::new(false);
        let working = AtomicUsize::new(CPU_THREADS + devices);
        std::thread::scope(|scope| {
            let (done, working, svm, pages) = (&done, &working, &svms[0], &pages);
            if pinning {
                let seed = random.random();
                scope.spawn(move || pin_at_random(svm, pages, seed, done));
            }
            for (number, script) in scripts.iter().enumerate() {
                let (heap, kernels) = (&heap, &kernels);
                scope.spawn(move || {
                    // However this thread ends.
                    let _ended = Ended(done, working);
                    match number.checked_sub(CPU_THREADS) {
                        None => {
                            let results: Vec<u32> =
                                script.operations.iter().map(|&operation| operate_on_cpu(operation)).collect();
                            script.check(&format!("round {round}, CPU thread {number}"), &results);
                        }
                        Some(device) => {
                            run_on_device(heap, &kernels[device], script, &format!("round {round}, device {device}"));
                        }
                    }
                });
            }
        });
        counters.check(&format!("after round {round}, counters"));
        if random.random_bool(0.5) {
            let looked_at = random.random_range(0..pool.len());
            pool[looked_at].check(&format!("after round {round}"));
        }
        if random.random_bool(0.5) {
            let freed = random.random_range(0..pool.len());
            pool.remove(freed);
            pool.push(Tracked::new(&heap, &mut random));
        }
    }
    for svm in &svms {
        println!("{tracker}:\n{}", svm.stats());
    }
    drop((kernels, svms));
    pool.iter().for_each(|tracked| tracked.check("after closing the runtimes"));
}

#[test]
fn one_device_and_cpu_threads_agree_with_the_oracle() {
    let seed = seed();
    trackers().into_iter().for_each(|tracker| fuzz(tracker, 1, 24, seed));
}

#[test]
fn two_devices_and_cpu_threads_agree_with_the_oracle() {
    let seed = seed();
    trackers().into_iter().for_each(|tracker| fuzz(tracker, 2, 24, seed));
}

#[test]
fn four_devices_and_cpu_threads_agree_with_the_oracle() {
    let seed = seed();
    trackers().into_iter().for_each(|tracker| fuzz(tracker, 4, 26, seed));
}

#[test]
fn pages_that_are_pinned_at_home_and_unpinned_meanwhile_agree_with_the_oracle() {
    let seed = seed();
    for tracker in trackers() {
        fuzz_with(tracker, 1, 24, seed, true);
        fuzz_with(tracker, 3, 24, seed, true);
    }
}

/// Every workgroup needs all pages at once, for writing, and so does every other device and the CPU.
#[test]
fn devices_that_fight_for_the_same_pages_all_get_on() {
    const FOUGHT_FOR: usize = 24;
    const LAUNCHES: u32 = 30;
    for tracker in trackers() {
        let _watchdog = watchdog(120);
        let mut svms: Vec<Svm> = Vec::new();
        for _ in 0..4 {
            let svm = soft(tracker, |builder| match svms.first() {
                Some(first) => builder.share_heap_with(first),
                None => builder,
            });
            svms.push(svm.unwrap());
        }
        let heap = svms[0].heap();
        let pages = heap.vec_zeroed::<[u32; 1024]>(FOUGHT_FOR).unwrap();
        let base = pages.as_ptr().expose_provenance() as u64;
        std::thread::scope(|scope| {
            for svm in &svms {
                scope.spawn(move || {
                    // SAFETY: it changes the array, which outlives the scope, with atomics.
                    let kernel = unsafe {
                        svm.soft_kernel("fight", [1, 1, 1], 8, move |invocation| {
                            for page in 0..FOUGHT_FOR as u64 {
                                invocation.atomic_add(base + 4096 * page, 1);
                            }
                        })
                    }
                    .unwrap();
                    for _ in 0..LAUNCHES {
                        kernel.launch([2, 1, 1]).value(0u64).run().unwrap();
                    }
                });
            }
            for page in 0..FOUGHT_FOR as u64 {
                operate_on_cpu(Operation { address: base + 4096 * page, kind: ADD, value: 1 });
            }
        });
        println!("{tracker}: {}", svms[0].stats());
        assert!(
            pages.iter().all(|page| page[0] == 4 * 2 * LAUNCHES + 1),
            "{:?}",
            pages.iter().map(|page| page[0]).collect::<Vec<_>>()
        );
    }
}
