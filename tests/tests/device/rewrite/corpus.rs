//! Small plain kernels, each written to exercise one thing, and how they are run.
//!
//! Every kernel takes a source, a destination and a count, and computes words of the destination from words of the
//! source; what they should be is computed here on the CPU. It runs cold (all pages at home), warm (the source is on the
//! device), hot (so is the destination: nobody looks between launches, and the kernel's fast variant runs) and hot but touched (before the last
//! launch the CPU writes the source, or only its second half, so that fast passes miss); confined too (then the hot launches check
//! nothing), and, where that is sound, declared idempotent: all this replayed, with room and with exactly the frames that its largest
//! workgroup needs. Live it runs cold and warm.

use std::time::Instant;
use vksvm::{Kernel, Svm};

/// The count that kernels are given.
pub(super) const N: usize = 1000;
/// Bytes of a page, and of the frame that it takes on the device.
const PAGE_BYTES: u64 = 4096;
/// Words of source and of destination.
const WORDS: usize = 8192;

/// How much of a case is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// All of it, with room for every page and in replay mode: fast variants must have been run.
    Roomy,
    /// All of it, with as many frames as the case's largest workgroup needs; with one fewer it must be refused.
    Fewest,
    /// The kernel as it is, cold and warm: each variant is compiled, and that is what takes long.
    Plain,
}

/// Temperatures and launches in a row: the first misses what the CPU wrote, the second finds that nothing is missing any more, the third
/// is fast.
const HOT: [(&str, u32); 5] = [("cold", 1), ("warm", 1), ("hot", 4), (TOUCHED, 4), (HALF, 4)];
/// As hot, but the CPU writes the source before the last launch, whose fast variant then misses.
const TOUCHED: &str = "touched";
/// As touched, but only the second half: the pointers in the first are found, and what they point to is missing.
const HALF: &str = "half touched";

/// A kernel and what it computes.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) spirv: &'static [u8],
    pub(super) groups: [u32; 3],
    /// How many pages the workgroup that touches most touches: with as many frames the kernel must run.
    pub(super) pages: u64,
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

/// A kernel over `N` invocations of 32 a workgroup, on random words, whose largest workgroup touches `pages`.
pub(super) fn case((name, spirv): (&'static str, &'static [u8]), pages: u64, expect: fn(&[u32], &mut [u32])) -> Case {
    Case { name, spirv, groups: [32, 1, 1], pages, idempotent: false, fill: noise, expect }
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
    /// Runs the kernel and compares; says what went wrong.
    pub(super) fn run(&self, svm: &Svm, extent: Extent) -> Result<(), String> {
        // SAFETY: the kernel reads and writes only source and destination, which are large enough for its count.
        let kernel = unsafe { svm.kernel(self.name, self.spirv) }.map_err(|error| error.to_string())?;
        if extent == Extent::Plain {
            return self.run_kernel(svm, &kernel, &HOT[..2], "");
        }
        if extent == Extent::Fewest {
            self.refused_with_fewer(svm, &kernel)?;
            svm.set_budget(self.pages * PAGE_BYTES);
        }
        self.run_hot(svm, &kernel, extent, "")?;
        let kernel = if self.idempotent {
            let kernel = kernel.idempotent();
            self.run_hot(svm, &kernel, extent, " and idempotent")?;
            kernel
        } else {
            kernel
        };
        let direct = svm.stats().direct_dispatches;
        // SAFETY: as above.
        self.run_kernel(svm, &unsafe { kernel.confined() }, &HOT, " and confined")?;
        if extent == Extent::Roomy && svm.stats().direct_dispatches == direct {
            return Err("it was never run without checks".into());
        }
        Ok(())
    }

    /// With a frame fewer than `pages`, the launch must say so: else `pages` is not the fewest, or something is lost.
    fn refused_with_fewer(&self, svm: &Svm, kernel: &Kernel) -> Result<(), String> {
        if self.pages == 1 {
            return Ok(());
        }
        svm.set_budget((self.pages - 1) * PAGE_BYTES);
        match self.run_kernel(svm, kernel, &[("short", 1)], "") {
            Err(error) if error.contains("this workgroup alone needs more") => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(format!("it also runs with fewer than {} pages", self.pages)),
        }
    }

    /// Runs one variant cold, warm and hot; where there is room, its fast variant must have been run.
    fn run_hot(&self, svm: &Svm, kernel: &Kernel, extent: Extent, how: &str) -> Result<(), String> {
        let fast = svm.stats().fast_dispatches;
        self.run_kernel(svm, kernel, &HOT, how)?;
        if extent == Extent::Roomy && svm.stats().fast_dispatches == fast {
            return Err(format!("its fast variant{how} was never run"));
        }
        Ok(())
    }

    /// Runs one variant at each temperature, so many launches in a row.
    fn run_kernel(&self, svm: &Svm, kernel: &Kernel, temperatures: &[(&str, u32)], how: &str) -> Result<(), String> {
        let heap = svm.heap();
        let mut source = heap.vec_from_slice(&[0u32; WORDS]).map_err(|error| error.to_string())?;
        let base = source.as_ptr() as u64;
        assert!(base.is_multiple_of(PAGE_BYTES), "cases count pages from the first of the source");
        (self.fill)(base, &mut source[..]);
        let before: Vec<u32> = (0..WORDS as u32).map(|i| i * 3 + 1).collect();
        let mut expected = before.clone();
        let mut destination = heap.vec_from_slice(&before).map_err(|error| error.to_string())?;
        for &(temperature, launches) in temperatures {
            destination.copy_from_slice(&before);
            expected.copy_from_slice(&before);
            for left in (0..launches).rev() {
                let touched = match temperature {
                    TOUCHED => 0..WORDS,
                    HALF => WORDS / 2..WORDS,
                    _ => 0..0,
                };
                if left == 0 && !touched.is_empty() {
                    let same = source[touched.clone()].to_vec();
                    source[touched].copy_from_slice(&same);
                }
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
        Ok(())
    }
}

/// Runs cases; fails with all that failed.
pub(super) fn run(cases: &[Case], svm: &Svm, extent: Extent) {
    let mut failures = Vec::new();
    for case in cases {
        let begin = Instant::now();
        failures.extend(case.run(svm, extent).err().map(|error| format!("{}: {error}", case.name)));
        println!("{}: {:?}", case.name, begin.elapsed());
    }
    assert!(failures.is_empty(), "{} of {} kernels failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
}
