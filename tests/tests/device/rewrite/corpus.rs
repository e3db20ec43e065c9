//! Small plain kernels, each written to exercise one thing, and how they are run.
//!
//! Every kernel takes a source, a destination and a count, and computes words of the destination from words of the
//! source; what they should be is computed here on the CPU. It runs cold (all pages at home), warm (the source is on the
//! device), hot (so is the destination: nobody looks between launches, and the kernel's fast variant runs), with no more frames than a workgroup needs, confined
//! (then the hot launches check nothing), and, where that is sound, declared idempotent.

use std::time::Instant;
use vksvm::{Kernel, Svm};

/// The count that kernels are given.
pub(super) const N: usize = 1000;
/// Words of source and of destination.
const WORDS: usize = 8192;

/// Launches in a row: the first misses what the CPU wrote, the second finds that nothing is missing any more, the third is fast.
const HOT_LAUNCHES: u32 = 4;

/// A kernel and what it computes.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) spirv: &'static [u8],
    pub(super) groups: [u32; 3],
    /// The fewest frames with which one workgroup can run.
    pub(super) frames: u32,
    pub(super) idempotent: bool,
    /// Writes the source, given its address.
    pub(super) fill: fn(u64, &mut [u32]),
    /// Computes the destination from the source.
    pub(super) expect: fn(&[u32], &mut [u32]),
}

/// A name and a kernel under `tests/shaders/plain`.
#[macro_export]
macro_rules! plain {
    ($name:literal) => {
        ($name, vksvm_tests::spirv!("../plain/spv/", $name))
    };
}

/// A kernel over `N` invocations of 32 a workgroup, on random words.
pub(super) fn case((name, spirv): (&'static str, &'static [u8]), expect: fn(&[u32], &mut [u32])) -> Case {
    Case { name, spirv, groups: [32, 1, 1], frames: 6, idempotent: false, fill: noise, expect }
}

fn noise(_: u64, words: &mut [u32]) {
    for (i, word) in words.iter_mut().enumerate() {
        let mixed = (i as u32).wrapping_mul(0x9E37_79B9) ^ 0x5BD1_E995;
        *word = mixed ^ (mixed >> 15);
    }
}

/// A floating-point number from its bits.
pub(super) fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

impl Case {
    /// Runs the kernel cold, warm and hot, and compares; says what went wrong.
    pub(super) fn run(&self, svm: &Svm, roomy: bool) -> Result<(), String> {
        // SAFETY: the kernel reads and writes only source and destination, which are large enough for its count.
        let kernel = unsafe { svm.kernel(self.name, self.spirv) }.map_err(|error| error.to_string())?;
        self.run_kernel(svm, &kernel, roomy, "")?;
        let kernel = if self.idempotent {
            let kernel = kernel.idempotent();
            self.run_kernel(svm, &kernel, roomy, " and idempotent")?;
            kernel
        } else {
            kernel
        };
        let direct = svm.stats().direct_dispatches;
        // SAFETY: as above.
        self.run_kernel(svm, &unsafe { kernel.confined() }, false, " and confined")?;
        if roomy && svm.stats().direct_dispatches == direct {
            return Err("it was never run without checks".into());
        }
        Ok(())
    }

    fn run_kernel(&self, svm: &Svm, kernel: &Kernel, roomy: bool, how: &str) -> Result<(), String> {
        let heap = svm.heap();
        let mut source = heap.vec_from_slice(&[0u32; WORDS]).map_err(|error| error.to_string())?;
        let base = source.as_ptr() as u64;
        (self.fill)(base, &mut source[..]);
        let before: Vec<u32> = (0..WORDS as u32).map(|i| i * 3 + 1).collect();
        let mut expected = before.clone();
        let mut destination = heap.vec_from_slice(&before).map_err(|error| error.to_string())?;
        let fast = svm.stats().fast_dispatches;
        for (temperature, launches) in [("cold", 1), ("warm", 1), ("hot", HOT_LAUNCHES)] {
            destination.copy_from_slice(&before);
            expected.copy_from_slice(&before);
            for _ in 0..launches {
                (self.expect)(&source, &mut expected);
                let launch = kernel.launch(self.groups).read(&source[..]).write(&mut destination[..]).value(N as u32);
                // Blocks end at the alignment of their pointers.
                let launch = if kernel.module().argument_bytes == 24 { launch.value(0u32) } else { launch };
                launch.run().map_err(|error| format!("{temperature}{how}: {error}"))?;
            }
            if let Some(at) = (0..WORDS).find(|&at| destination[at] != expected[at]) {
                let (is, should) = (destination[at], expected[at]);
                return Err(format!("{temperature}{how}: word {at} is {is:#x} and should be {should:#x}"));
            }
        }
        if roomy && svm.stats().fast_dispatches == fast {
            return Err(format!("its fast variant{how} was never run"));
        }
        Ok(())
    }
}

/// Runs cases; fails with all that failed. Where there is room, and replay mode, fast variants must have been run.
pub(super) fn run(cases: &[&Case], svm: &Svm, roomy: bool) {
    let mut failures = Vec::new();
    for case in cases {
        let begin = Instant::now();
        failures.extend(case.run(svm, roomy).err().map(|error| format!("{}: {error}", case.name)));
        println!("{}: {:?}", case.name, begin.elapsed());
    }
    assert!(failures.is_empty(), "{} of {} kernels failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
}
