//! Hostile SPIR-V: damaged kernels of the corpus, noise, and modules that are large in one way. Each becomes a kernel or a clear error, in time and
//! memory that its size bounds. The target is the one that libFuzzer runs (`fuzz/`).
//!
//! `VKSVM_FUZZ_SECONDS` sets how long damaged modules are tried (default 5, CI sets 60), `VKSVM_FUZZ_SEED` repeats a run: the seed that is printed with a
//! failure makes the failing module the first. The module itself is kept.

mod damage;
mod large;
mod measure;
#[path = "../../../fuzz/target.rs"]
mod target;

use measure::Measured;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The kernels of the corpus, and those of the include.
fn corpus() -> Vec<Vec<u8>> {
    let folders =
        ["plain/spv", "spv"].map(|folder| format!("{}/../tests/shaders/{folder}", env!("CARGO_MANIFEST_DIR")));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "spv"));
    paths.sort();
    assert!(paths.len() > 60);
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// Runs the target within bounds; says whether it took the module, and what it used.
fn within_bounds(name: &str, module: &[u8]) -> (bool, Measured) {
    let (taken, used) = measure::watched(name, module, || target::hostile(module));
    // Ten times of what rewriting takes by the byte in a debug build. What the library and a module's bound of ids take does not depend on size.
    let time = Duration::from_secs(3) + Duration::from_micros(10) * module.len() as u32;
    let bytes = (256 << 20) + 1000 * module.len();
    assert!(used.time <= time, "{name}, {} bytes: {:?} of a processor, at most {time:?}", module.len(), used.time);
    assert!(used.bytes <= bytes, "{name}, {} bytes: {} bytes of memory, at most {bytes}", module.len(), used.bytes);
    (taken, used)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn damaged_modules_become_kernels_or_errors() {
    let first: u64 = setting("VKSVM_FUZZ_SEED").unwrap_or_else(|| SmallRng::from_os_rng().random());
    let asked = setting("VKSVM_FUZZ_SECONDS").unwrap_or(5);
    // Nothing here depends on the tracker: the second pass with another one need not repeat it.
    let seconds = if std::env::var_os("VKSVM_TRACKER").is_some_and(|name| name == "sigsegv") { 1 } else { asked };
    println!("VKSVM_FUZZ_SEED={first}");
    let corpus = corpus();
    let begin = Instant::now();
    let (mut tried, mut taken) = (0u64, 0u64);
    while begin.elapsed() < Duration::from_secs(seconds) || tried < 20 {
        let seed = first.wrapping_add(tried);
        let mut random = SmallRng::seed_from_u64(seed);
        let module = damage::damaged(&corpus, &mut random);
        taken += u64::from(within_bounds(&format!("VKSVM_FUZZ_SEED={seed}"), &module).0);
        tried += 1;
    }
    println!("{tried} modules in {:?}, {taken} became kernels all the same", begin.elapsed());
}

#[test]
fn kernels_cut_short_anywhere_are_refused() {
    for kernel in corpus().iter().step_by(16) {
        for end in (0..kernel.len()).step_by(if kernel.len() > 4000 { 97 } else { 1 }) {
            assert!(!target::hostile(&kernel[..end]), "{end} bytes were taken for a module");
        }
    }
}

#[test]
fn ten_megabytes_of_noise_are_refused() {
    let mut random = SmallRng::seed_from_u64(1);
    let mut noise = vec![0u8; 10 << 20];
    random.fill(&mut noise[..]);
    assert!(!within_bounds("noise", &noise).0);
    // Behind a good header; and as instructions that are as long as they say.
    noise[..20].copy_from_slice(&corpus()[0][..20]);
    assert!(!within_bounds("noise with a header", &noise).0);
    let mut words: Vec<u32> = noise.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    let mut at = 5;
    while at < words.len() {
        let count = random.random_range(1..8).min(words.len() - at);
        words[at] = (count as u32) << 16 | random.random_range(0..400);
        at += count;
    }
    assert!(!within_bounds("instructions at random", &damage::bytes(&words)).0);
}

#[test]
fn modules_that_are_large_in_one_way_take_time_and_memory_in_proportion() {
    for (name, make) in large::KINDS {
        for size in [300, 4000] {
            let module = make(size);
            let (taken, used) = within_bounds(&format!("{name}-{size}"), &module);
            let (bytes, memory) = (module.len(), used.bytes >> 10);
            println!("{name:32} {size:6} {bytes:8} bytes, taken: {taken:5}, {:10.3?}, {memory:7} KiB", used.time);
        }
    }
}
