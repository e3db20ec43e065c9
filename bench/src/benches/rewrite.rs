//! `rewrite`: what plain shaders pay for running on CPU pointers.
//!
//! The rewritten kernel is made from the very module that the peer runs on raw device addresses; the second peer has its
//! translations placed by hand, with pointers (`vksvm.glsl`). Then the price of getting there: the pass itself, by size of the
//! module, and making pipelines.

use super::workloads::{Arguments, Chase, Gather, Stream, Tree, Workload};
use crate::harness::{Suite, Wanted, seconds};
use crate::kernels::{Raw, idempotent};
use crate::spirv;
use anyhow::{Result, ensure};
use std::time::SystemTime;
use vksvm::Svm;
use vksvm::device::Device;
use vksvm::device::layout::variant;
use vksvm::kernel::KernelModule;
use vksvm::kernel::rewrite::rewrite;

const ROUNDS: u32 = 31;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    if suite.wants("first result") {
        first_results(suite)?;
    }
    let svm = suite.open(|builder| builder)?;
    let n = suite.size(1u32 << 23, 1 << 22);
    if suite.wants("saxpy") {
        let work = Stream::new(&svm, n, false, "raw_saxpy", spirv!("raw_saxpy"))?;
        measure(suite, &svm, "saxpy", work, spirv!("raw_saxpy"), spirv!("saxpy"), 1.15)?;
    }
    if suite.wants("saxpy, grid stride") {
        let work = Stream::new(&svm, n, true, "raw_grid", spirv!("raw_grid"))?;
        measure(suite, &svm, "saxpy, grid stride", work, spirv!("raw_grid"), spirv!("grid"), 1.15)?;
    }
    if suite.wants("random gather") {
        let work = Gather::new(&svm, suite.size(1 << 22, 1 << 21), spirv!("raw_gather"))?;
        measure(suite, &svm, "random gather", work, spirv!("raw_gather"), spirv!("gather"), 1.10)?;
    }
    if suite.wants("pointer chase") {
        let (nodes, n) = (suite.size(1usize << 20, 1 << 19), suite.size(1u32 << 16, 1 << 15));
        let work = Chase::new(&svm, nodes, n, spirv!("raw_chase"))?;
        measure(suite, &svm, "pointer chase", work, spirv!("raw_chase"), spirv!("chase"), 1.35)?;
    }
    if suite.wants("tree traversal") {
        let (nodes, n) = (suite.size(1usize << 18, 1 << 17), suite.size(1u32 << 18, 1 << 17));
        let work = Tree::new(&svm, nodes, n, spirv!("raw_tree"))?;
        measure(suite, &svm, "tree traversal", work, spirv!("raw_tree"), spirv!("tree"), 1.35)?;
    }
    if suite.wants("rewriting") {
        sizes(suite)?;
    }
    if suite.wants("pipelines") { pipelines(suite, &svm) } else { Ok(()) }
}

fn measure(
    suite: &mut Suite,
    svm: &Svm,
    case: &str,
    mut work: impl Workload,
    plain: &[u8],
    include: &[u8],
    wanted: f64,
) -> Result<()> {
    let rewritten = idempotent(svm, "rewritten", plain)?;
    ensure!(rewritten.module().rewritten.is_some(), "{case} is no plain shader");
    let include = idempotent(svm, "include", include)?;
    // SAFETY: the benches' kernels stay inside what their launches name.
    let confined = unsafe { idempotent(svm, "confined", plain)?.confined() };
    let direct = svm.stats().direct_dispatches;
    let samples = suite.interleave(case, ROUNDS, 4, |which| {
        let (time, done) = seconds(|| match which {
            0 => work.launch(&rewritten, Arguments::Pointers),
            1 => work.peer().run(),
            2 => work.launch(&include, Arguments::Pointers),
            _ => work.launch(&confined, Arguments::Pointers),
        });
        done.map(|()| time)
    })?;
    let row = suite.row(case, "launch", "s", &samples[0]);
    row.against("raw addresses", &samples[0], &samples[1]).wanted(Wanted::RatioAtMost(wanted));
    let row = suite.row(case, "launch", "s", &samples[0]);
    row.against("vksvm.glsl, pointers", &samples[0], &samples[2]).wanted(Wanted::RatioAtMost(1.10));
    ensure!(svm.stats().direct_dispatches > direct, "{case} was never run without checks");
    let row = suite.row(case, "all resident", "s", &samples[3]);
    row.against("raw addresses", &samples[3], &samples[1]).wanted(Wanted::RatioAtMost(1.02));
    work.check()
}

/// The pass alone, on modules whose entry function repeats an access until they have the size.
fn sizes(suite: &mut Suite) -> Result<()> {
    let mut per_byte = Vec::new();
    for target in [20 << 10, 100 << 10, 1 << 20] {
        let module = repeated(spirv!("raw_gather"), target);
        let case = format!("rewriting {} KiB", module.len() >> 10);
        let samples = suite.interleave(&case, 9, 1, |_| {
            let (time, result) = seconds(|| rewrite(&module));
            result?;
            Ok(time)
        })?;
        per_byte.push(samples[0].map(|time| time / module.len() as f64));
        let row = suite.row(&case, "time", "s", &samples[0]);
        row.at(module.len() as f64);
        if target == 20 << 10 {
            row.wanted(Wanted::ValueAtMost(0.010));
        }
    }
    let (first, last) = (&per_byte[0], &per_byte[per_byte.len() - 1]);
    let row = suite.row("rewriting 1 MiB", "per byte", "s", last);
    row.against("20 KiB", last, first).wanted(Wanted::RatioAtMost(1.5));
    Ok(())
}

/// A module whose longest run of code without a branch is repeated, each time with new ids, until it has `bytes`.
fn repeated(module: &[u8], bytes: usize) -> Vec<u8> {
    const STORE: u32 = 62;
    const LABEL: u32 = 248;
    // Merge instructions and what ends a block.
    const CONTROL: std::ops::RangeInclusive<u32> = 246..=255;
    let words = words(module);
    // Places of instructions, by their first word.
    let mut places = vec![5];
    while let Some(&at) = places.last().filter(|&&at| at < words.len()) {
        places.push(at + (words[at] >> 16) as usize);
    }
    let opcode = |at: usize| words.get(at).map_or(0, |word| word & 0xFFFF);
    let starts = places.iter().filter(|&&at| opcode(at) == LABEL).map(|&at| at + 2);
    let ends = |start: usize| places.iter().copied().find(|&at| at >= start && CONTROL.contains(&opcode(at)));
    let run = starts.filter_map(|start| Some(start..ends(start)?)).max_by_key(|run| run.len()).unwrap_or(0..0);
    let inside = || places.iter().copied().filter(|at| run.contains(at));
    let results: Vec<u32> = inside().filter(|&at| opcode(at) != STORE).map(|at| words[at + 2]).collect();

    let mut bound = words[3];
    let mut repeated = words[..run.start].to_vec();
    while !run.is_empty() && (repeated.len() + words.len() - run.start) * 4 < bytes {
        for at in inside() {
            let length = (words[at] >> 16) as usize;
            repeated.push(words[at]);
            // No literal is as large as the ids of the run.
            repeated.extend(words[at + 1..at + length].iter().map(|word| {
                results.iter().position(|result| result == word).map_or(*word, |index| bound + index as u32)
            }));
        }
        bound += results.len() as u32;
    }
    repeated.extend_from_slice(&words[run.start..]);
    repeated[3] = bound;
    bytemuck::cast_slice(&repeated).to_vec()
}

/// Loading a kernel, up to the pipeline that its first launch takes, and the pipeline of its fast variant; the peer has only one.
fn pipelines(suite: &mut Suite, svm: &Svm) -> Result<()> {
    const CASES: [(&str, &[u8], usize); 3] =
        [("saxpy", spirv!("raw_saxpy"), 32), ("gather", spirv!("raw_gather"), 32), ("tree", spirv!("raw_tree"), 40)];
    let raw = Raw::new(svm)?;
    let mut salt = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64;
    for (name, plain, push) in CASES {
        let case = format!("{name}, pipelines");
        let samples = suite.interleave(&case, 9, 3, |which| {
            salt += 1;
            let module = salted(plain, salt);
            let (time, done) = match which {
                0 => seconds(|| idempotent(svm, "loaded", &module).map(drop)),
                1 => seconds(|| raw.kernel("raw", &module, push).map(drop)),
                _ => {
                    let kernel = KernelModule::new("fast", &module, raw.device.info().push_constant_bytes)?;
                    let variant = variant::FAST | variant::IDEMPOTENT | variant::LINEAR;
                    let measured = seconds(|| raw.device.prepare(&kernel, variant).map_err(Into::into));
                    raw.device.forget(&kernel);
                    measured
                }
            };
            done.map(|()| time)
        })?;
        for (which, metric, wanted) in [(0, "loading", Some(2.0)), (2, "fast variant", None)] {
            let row = suite.row(&case, metric, "s", &samples[which]);
            row.against("raw addresses", &samples[which], &samples[1]);
            if let Some(wanted) = wanted {
                row.wanted(Wanted::RatioAtMost(wanted));
            }
        }
    }
    Ok(())
}

/// From a module's bytes to its first result, drivers' compiling at the first dispatch included: with nothing on disk, and as a program's second
/// start finds it, whose modules and whose driver's code are on disk. The peer has the same driver's cache or none.
fn first_results(suite: &mut Suite) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("vksvm-bench-{}", std::process::id()));
    for (metric, kept) in [("first result, nothing kept", false), ("first result, second start", true)] {
        // SAFETY: nothing else of this process runs yet, or any more: each runtime below ends with its round of this loop.
        unsafe {
            std::env::set_var("MESA_SHADER_CACHE_DISABLE", if kept { "false" } else { "true" });
            std::env::set_var("MESA_SHADER_CACHE_DIR", &folder);
        }
        let svm = suite.open(|builder| builder.cache(kept.then(|| folder.join("vksvm"))))?;
        let spirv = spirv!("raw_saxpy");
        first_result(suite, ("saxpy", spirv), metric, Stream::new(&svm, 4096, false, "raw_saxpy", spirv)?, &svm)?;
        let spirv = spirv!("raw_gather");
        first_result(suite, ("random gather", spirv), metric, Gather::new(&svm, 4096, spirv)?, &svm)?;
        let spirv = spirv!("raw_tree");
        first_result(suite, ("tree traversal", spirv), metric, Tree::new(&svm, 4096, 1024, spirv)?, &svm)?;
    }
    // SAFETY: as above.
    unsafe {
        std::env::remove_var("MESA_SHADER_CACHE_DISABLE");
        std::env::remove_var("MESA_SHADER_CACHE_DIR");
    }
    // What stays behind is in the folder for temporary files.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}

fn first_result(
    suite: &mut Suite,
    (case, spirv): (&str, &[u8]),
    metric: &str,
    mut work: impl Workload,
    svm: &Svm,
) -> Result<()> {
    let samples = suite.interleave(case, 9, 2, |which| {
        let (time, done) = seconds(|| match which {
            0 => idempotent(svm, "first", spirv).and_then(|kernel| work.launch(&kernel, Arguments::Pointers)),
            _ => work.peer().make_and_run(spirv),
        });
        done.map(|()| time)
    })?;
    let row = suite.row(case, metric, "s", &samples[0]);
    row.against("raw addresses", &samples[0], &samples[1]).wanted(Wanted::RatioAtMost(2.0));
    Ok(())
}

/// The module with another factor where it multiplies by four, so that no driver has it in a cache on disk. Not for running.
fn salted(module: &[u8], salt: u64) -> Vec<u8> {
    const CONSTANT: u32 = 5 << 16 | 43;
    let mut words = words(module);
    let four = words.windows(5).position(|words| words[0] == CONSTANT && words[3..] == [4, 0]);
    if let Some(four) = four {
        words[four + 3] = salt as u32 & !7 | 4;
        words[four + 4] = (salt >> 32) as u32 ^ (salt as u32) << 29;
    }
    bytemuck::cast_slice(&words).to_vec()
}

fn words(module: &[u8]) -> Vec<u32> {
    module.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect()
}
