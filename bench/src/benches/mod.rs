//! The benches. Each is a function that measures into a [`Suite`].

mod coalesce;
mod cold;
mod expert;
mod fault;
mod hmm;
mod invalidate;
mod live;
mod memory;
mod oversub;
mod pages;
mod resident;
mod rewrite;
mod rows;
mod scale;
mod sparse;
mod thrash;
mod workloads;

use crate::harness::Suite;
use anyhow::Result;

/// A benchmark.
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&mut Suite) -> Result<()>,
}

/// All of them, in the order in which they run.
pub(crate) fn all() -> Vec<Bench> {
    let bench = |name, about, run| Bench { name, about, run };
    vec![
        bench("resident", "kernels on resident data, against the same kernels on raw addresses", resident::run as _),
        bench("rewrite", "plain shaders that were rewritten, against raw addresses and vksvm.glsl", rewrite::run as _),
        bench("cold", "first touch, from data on the CPU to the result on the CPU", cold::run as _),
        bench("sparse", "few pages of a large array, in random order", sparse::run as _),
        bench("fault", "one launch that misses a batch of pages; placement copy", fault::run as _),
        bench("coalesce", "patterns of misses; placement copy", coalesce::run as _),
        bench("invalidate", "the CPU takes pages back; placement copy", invalidate::run as _),
        bench("thrash", "CPU and a running kernel fight over pages; placement copy", thrash::run as _),
        bench("live", "faults serviced while the kernel runs; placement copy", live::run as _),
        bench("scale", "many VMAs, large heaps, many threads; placement copy", scale::run as _),
        bench("oversub", "working sets larger than the budget of device memory; placement copy", oversub::run as _),
        bench("hmm", "the range protocol alone", hmm::run as _),
    ]
}
