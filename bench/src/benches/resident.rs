//! `resident`: what translation costs when no page is missing.
//!
//! The same kernel source is compiled for the runtime and for raw device addresses; both run on the same device, over
//! equal data. Times are whole launches as a program sees them; a sample is as many launches as take a while, so that what the machine
//! does beside them is small.

use super::rows::Rows;
use super::workloads::{Arguments, Chase, Gather, Histogram, Stream, Tree, Workload};
use crate::harness::{Suite, Wanted, seconds};
use crate::kernels::{idempotent, once};
use crate::spirv;
use anyhow::Result;
use vksvm::Kernel;

const ROUNDS: u32 = 31;
/// Seconds that a sample takes at least.
const SAMPLE: f64 = 0.03;

/// A way of writing the kernel; the figure asked for is for the one that the include recommends.
struct Way {
    name: &'static str,
    kernel: Kernel,
    arguments: Arguments,
    wanted: Option<f64>,
}

fn way(name: &'static str, kernel: Result<Kernel>, arguments: Arguments, wanted: Option<f64>) -> Result<Way> {
    Ok(Way { name, kernel: kernel?, arguments, wanted })
}

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let svm = suite.open(|builder| builder)?;
    let svm = &svm;
    let pointers = |name, spirv| way("pointers", idempotent(svm, name, spirv), Arguments::Pointers, None);
    let arrays =
        |name, spirv, wanted| way("array arguments", idempotent(svm, name, spirv), Arguments::Arrays, Some(wanted));
    let near =
        |name, spirv, wanted| way("pointers near an array", idempotent(svm, name, spirv), Arguments::Arrays, wanted);

    if suite.wants("saxpy") {
        let n = suite.size(1u32 << 23, 1 << 22);
        let work = Stream::new(svm, n, false, "raw_saxpy", spirv!("raw_saxpy"))?;
        let ways = [arrays("array_saxpy", spirv!("array_saxpy"), 1.15)?, pointers("saxpy", spirv!("saxpy"))?];
        measure(suite, "saxpy", work, &ways)?;
        let work = Stream::new(svm, n, true, "raw_grid", spirv!("raw_grid"))?;
        let ways = [arrays("array_grid", spirv!("array_grid"), 1.15)?, pointers("grid", spirv!("grid"))?];
        measure(suite, "saxpy, grid stride", work, &ways)?;
    }
    if suite.wants("rows") {
        let work = Rows::new(svm, suite.size(1 << 15, 1 << 14), spirv!("raw_rows"))?;
        let kept =
            way("kept translations", idempotent(svm, "kept_rows", spirv!("kept_rows")), Arguments::Pointers, None)?;
        let ways = [arrays("array_rows", spirv!("array_rows"), 1.15)?, kept, pointers("rows", spirv!("rows"))?];
        measure(suite, "sums of rows", work, &ways)?;
    }
    if suite.wants("gather") {
        let work = Gather::new(svm, suite.size(1u32 << 22, 1 << 21), spirv!("raw_gather"))?;
        let ways = [arrays("array_gather", spirv!("array_gather"), 1.10)?, pointers("gather", spirv!("gather"))?];
        measure(suite, "random gather", work, &ways)?;
    }
    if suite.wants("chase") {
        let (nodes, n) = (suite.size(1usize << 20, 1 << 19), suite.size(1u32 << 16, 1 << 15));
        let work = Chase::new(svm, nodes, n, spirv!("raw_chase"))?;
        let ways = [near("array_chase", spirv!("array_chase"), Some(1.35))?, pointers("chase", spirv!("chase"))?];
        measure(suite, "pointer chase", work, &ways)?;
    }
    if suite.wants("tree") {
        let (nodes, n) = (suite.size(1usize << 18, 1 << 17), suite.size(1u32 << 18, 1 << 17));
        let work = Tree::new(svm, nodes, n, spirv!("raw_tree"))?;
        let ways = [near("array_tree", spirv!("array_tree"), Some(1.35))?, pointers("tree", spirv!("tree"))?];
        measure(suite, "tree traversal", work, &ways)?;
    }
    if suite.wants("histogram") {
        // Its atomics must not be repeated: the runtime runs a probe before the real pass, and that is part of the price.
        let work = Histogram::new(svm, suite.size(1u32 << 22, 1 << 20), spirv!("raw_histogram"))?;
        let arrays = once(svm, "array_histogram", spirv!("array_histogram"));
        let ways = [
            way("array arguments", arrays, Arguments::Arrays, None)?,
            way("pointers", once(svm, "histogram", spirv!("histogram")), Arguments::Pointers, None)?,
        ];
        measure(suite, "atomics histogram", work, &ways)?;
    }
    Ok(())
}

/// Runs a workload in each way, and on raw addresses.
fn measure(suite: &mut Suite, case: &str, mut work: impl Workload, ways: &[Way]) -> Result<()> {
    // Pipelines are made, pages brought, and fast variants chosen first.
    let mut run = |which: usize, times: u32| -> Result<f64> {
        let (time, done) = seconds(|| -> Result<()> {
            for _ in 0..times {
                match ways.get(which) {
                    Some(way) => work.launch(&way.kernel, way.arguments)?,
                    None => work.peer().run()?,
                }
            }
            Ok(())
        });
        done.map(|()| time / f64::from(times))
    };
    // All equally often: what is counted in the end must be the same.
    for which in 0..=ways.len() {
        run(which, 4)?;
    }
    let mut once = 0f64;
    for which in 0..=ways.len() {
        once = once.max(run(which, 1)?);
    }
    let times = (SAMPLE / once).ceil().clamp(1.0, 100.0) as u32;
    let samples = suite.interleave(case, ROUNDS, ways.len() + 1, |which| run(which, times))?;
    for (which, way) in ways.iter().enumerate() {
        let row = suite.row(&format!("{case}, {}", way.name), "launch", "s", &samples[which]);
        row.against("raw addresses", &samples[which], &samples[ways.len()]);
        if let Some(wanted) = way.wanted {
            row.wanted(Wanted::RatioAtMost(wanted));
        }
    }
    work.check()
}
