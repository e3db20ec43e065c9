//! Coherence against an oracle: CPU threads and kernels work on overlapping pages, separated by launches.
//!
//! `VKSVM_FUZZ_SECONDS` sets how long (default 5, CI sets 60), `VKSVM_FUZZ_SEED` repeats a run.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};
use vksvm::Svm;
use vksvm_tests::{moving, spirv, with};

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Op {
    address: u64,
    kind: u32,
    value: u32,
}

/// A setting of the fuzz, from the environment.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64, svm: &Svm, queue: u32, until: Instant) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let heap = svm.heap();
    let pages = 96usize;
    let words = pages * 1024;
    let mut data = heap.vec_from_slice(&vec![0u32; words]).unwrap();
    let mut oracle = vec![0u32; words];
    // SAFETY: the operations' addresses lie in `data`, and no two of a launch race.
    let mix = unsafe { svm.kernel("mix", spirv!("mix")) }.unwrap();
    let mut round = 0;
    while Instant::now() < until || round < 3 {
        round += 1;
        // A few hot words on few pages, or words all over.
        let hot = rng.random_bool(0.5);
        let place = |rng: &mut SmallRng| {
            if hot { rng.random_range(0..8) * 1024 + rng.random_range(0..64) } else { rng.random_range(0..words) }
        };
        // Kernel: each word gets either one plain operation, or any number of one kind of atomics.
        let count = rng.random_range(1..400usize);
        let mut taken = std::collections::HashMap::new();
        let base = data.as_ptr() as u64;
        let mut ops = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..count {
            let word = place(&mut rng);
            let kind = rng.random_range(0..4u32);
            let value = rng.random_range(0..1_000_000u32);
            match taken.get(&word) {
                None => drop(taken.insert(word, kind)),
                Some(&before) if before == kind && kind != 1 => {}
                Some(_) => continue,
            }
            ops.push(Op { address: base + 4 * word as u64, kind, value });
            expected.push((kind == 0).then_some(oracle[word]));
            match kind {
                1 => oracle[word] = value,
                2 => oracle[word] = oracle[word].wrapping_add(value),
                3 => oracle[word] = oracle[word].max(value),
                _ => {}
            }
        }
        let list = heap.vec_from_slice(&ops).unwrap();
        let mut out = heap.vec_from_slice(&vec![0u32; ops.len()]).unwrap();
        mix.launch([(ops.len() as u32).div_ceil(32), 1, 1])
            .read(&list[..])
            .write(&mut out[..])
            .value(ops.len() as u32)
            .run()
            .unwrap_or_else(|error| panic!("seed {seed}, round {round}: {error}"));
        for (i, want) in expected.iter().enumerate() {
            if let Some(want) = want {
                assert_eq!(out[i], *want, "seed {seed}, round {round}: the kernel read a stale word");
            }
        }
        // CPU: four threads, each on words of its own, spread over the same pages.
        let threads = 4usize;
        let cells = data.as_mut_ptr() as usize;
        let changes: Vec<Vec<(usize, u32)>> = (0..threads)
            .map(|thread| {
                let n = rng.random_range(0..200);
                (0..n).map(|_| (place(&mut rng) / threads * threads + thread, rng.random())).collect()
            })
            .collect();
        std::thread::scope(|scope| {
            for changes in &changes {
                let oracle = &oracle;
                scope.spawn(move || {
                    let mut own = std::collections::HashMap::new();
                    for &(word, value) in changes {
                        // SAFETY: in bounds; each word belongs to one thread; no launch runs.
                        let cell = unsafe { &mut *(cells as *mut u32).add(word) };
                        let want = own.get(&word).copied().unwrap_or(oracle[word]);
                        assert_eq!(*cell, want, "seed {seed}, round {round}: the CPU read a stale word {word}");
                        if value % 2 == 0 {
                            *cell = value;
                            own.insert(word, value);
                        }
                    }
                });
            }
        });
        for (word, value) in changes.into_iter().flatten() {
            if value % 2 == 0 {
                oracle[word] = value;
            }
        }
        if rng.random_bool(0.05) {
            assert_eq!(&data[..], &oracle[..], "seed {seed}, round {round}");
        }
        if rng.random_bool(0.02) {
            // New memory where the old one was.
            drop(std::mem::replace(&mut data, heap.vec_from_slice(&oracle).unwrap()));
        }
    }
    assert_eq!(&data[..], &oracle[..], "seed {seed}");
    assert_eq!(svm.stats().driver_cpu_faults, 0);
    let frames = svm.info().frames;
    println!("seed {seed}, {frames} frames, queue of {queue}: {round} rounds without a mismatch\n{}", svm.stats());
}

fn fuzz(svm: &Svm, queue: u32) {
    let seed = setting("VKSVM_FUZZ_SEED").unwrap_or_else(|| SmallRng::from_os_rng().random());
    println!("VKSVM_FUZZ_SEED={seed}");
    let seconds = setting("VKSVM_FUZZ_SECONDS").unwrap_or(5);
    run(seed, svm, queue, Instant::now() + Duration::from_secs(seconds).div_f64(4.0));
}

#[test]
fn coherent_with_plenty_of_frames() {
    fuzz(&moving(|builder| builder.frames(100_000)), 1 << 16);
}

#[test]
fn coherent_under_memory_pressure() {
    fuzz(&moving(|builder| builder.frames(48)), 1 << 16);
}

#[test]
fn coherent_with_a_tiny_queue() {
    fuzz(&moving(|builder| builder.frames(100_000).queue_capacity(3)), 3);
}

#[test]
fn coherent_where_pages_are_placed_by_measurement() {
    fuzz(&with(|builder| builder.placement_by_measurement().frames(48)), 1 << 16);
}
