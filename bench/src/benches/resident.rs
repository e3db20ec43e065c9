//! `resident`: what translation costs when no page is missing.
//!
//! The same kernel source is compiled for the runtime and for raw device addresses; both run on the same device, over
//! equal data. Times are whole launches as a program sees them.

use super::workloads::{Arguments, Chase, Gather, Histogram, Stream, Tree, Workload};
use crate::harness::{Suite, Wanted, seconds};
use crate::kernels::{idempotent, once};
use crate::spirv;
use anyhow::Result;
use vksvm::Kernel;

const ROUNDS: u32 = 15;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let svm = suite.open(|builder| builder)?;
    let svm = &svm;
    let load = |name, spirv, array, array_spirv| -> Result<[Kernel; 2]> {
        Ok([idempotent(svm, name, spirv)?, idempotent(svm, array, array_spirv)?])
    };

    let n = suite.size(1u32 << 23, 1 << 22);
    let kernels = load("saxpy", spirv!("saxpy"), "array_saxpy", spirv!("array_saxpy"))?;
    let work = Stream::new(svm, n, false, "raw_saxpy", spirv!("raw_saxpy"))?;
    measure(suite, "saxpy", work, &kernels, "array arguments", Some(1.15))?;
    let kernels = load("grid", spirv!("grid"), "array_grid", spirv!("array_grid"))?;
    let work = Stream::new(svm, n, true, "raw_grid", spirv!("raw_grid"))?;
    measure(suite, "saxpy, grid stride", work, &kernels, "array arguments", Some(1.15))?;

    let kernels = load("gather", spirv!("gather"), "array_gather", spirv!("array_gather"))?;
    let work = Gather::new(svm, suite.size(1u32 << 22, 1 << 21), spirv!("raw_gather"))?;
    measure(suite, "random gather", work, &kernels, "array arguments", Some(1.10))?;

    let kernels = load("chase", spirv!("chase"), "array_chase", spirv!("array_chase"))?;
    let (nodes, n) = (suite.size(1usize << 20, 1 << 19), suite.size(1u32 << 16, 1 << 15));
    let work = Chase::new(svm, nodes, n, spirv!("raw_chase"))?;
    measure(suite, "pointer chase", work, &kernels, "pointers near an array", Some(1.35))?;

    let kernels = load("tree", spirv!("tree"), "array_tree", spirv!("array_tree"))?;
    let (nodes, n) = (suite.size(1usize << 18, 1 << 17), suite.size(1u32 << 18, 1 << 17));
    let work = Tree::new(svm, nodes, n, spirv!("raw_tree"))?;
    measure(suite, "tree traversal", work, &kernels, "pointers near an array", Some(1.35))?;

    // Its atomics must not be repeated: the runtime runs a probe before the real pass, and that is part of the price.
    let kernels =
        [once(svm, "histogram", spirv!("histogram"))?, once(svm, "array_histogram", spirv!("array_histogram"))?];
    let work = Histogram::new(svm, suite.size(1u32 << 22, 1 << 20), spirv!("raw_histogram"))?;
    measure(suite, "atomics histogram", work, &kernels, "array arguments", None)
}

/// Runs a workload with pointers, on raw addresses and in the `better` way; the figure asked for is for that.
fn measure(
    suite: &mut Suite,
    case: &str,
    mut work: impl Workload,
    [pointers, arrays]: &[Kernel; 2],
    better: &str,
    wanted: Option<f64>,
) -> Result<()> {
    let samples = suite.interleave(case, ROUNDS, 3, |which| {
        let (time, done) = seconds(|| match which {
            0 => work.launch(pointers, Arguments::Pointers),
            1 => work.peer().run(),
            _ => work.launch(arrays, Arguments::Arrays),
        });
        done.map(|()| time)
    })?;
    for (which, way, wanted) in [(2, better, wanted), (0, "pointers", None)] {
        let row = suite.row(&format!("{case}, {way}"), "launch", "s", &samples[which]);
        row.against("raw addresses", &samples[which], &samples[1]);
        if let Some(wanted) = wanted {
            row.wanted(Wanted::RatioAtMost(wanted));
        }
    }
    work.check()
}
