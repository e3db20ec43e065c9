//! `coalesce`: which service operations, and which bytes, a pattern of misses leads to.

use super::memory::Memcpy;
use super::pages::{SinglePages, miss};
use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{WALK_GROUP, idempotent};
use crate::spirv;
use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng, seq::index};
use vksvm::{Stats, SvmVec};

const ROUNDS: u32 = 7;
const WORDS: usize = 1024;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let pages = suite.size(65_536usize, 16_384);
    let mut rng = SmallRng::seed_from_u64(11);
    // As one launch, or as many that go on where the one before ended.
    let every = |step: usize| (0..pages as u32).step_by(step).collect::<Vec<_>>();
    let mut patterns = vec![("sequential".to_owned(), every(1))];
    patterns.extend([2, 4, 16, 64].map(|step| (format!("stride {step}"), every(step))));
    let few = pages / 64;
    patterns.push(("random".into(), index::sample(&mut rng, pages, few).into_iter().map(|page| page as u32).collect()));
    let mut clusters: Vec<u32> = (0..few / 16)
        .flat_map(|_| {
            let start = rng.random_range(0..pages as u32 - 16);
            start..start + 16
        })
        .collect();
    clusters.sort_unstable();
    clusters.dedup();
    clusters.shuffle(&mut rng);
    patterns.push(("clustered".into(), clusters));
    for (name, list) in patterns {
        pattern(suite, &name, pages, &list, 1)?;
    }
    pattern(suite, "stream", pages, &every(1), 32)?;
    small_vmas(suite, pages / 16)
}

/// Pages that each are a VMA of their own: the largest batch of the smallest spans.
fn small_vmas(suite: &mut Suite, count: usize) -> Result<()> {
    let name = format!("{count} VMAs of a page");
    if !suite.wants(&name) {
        return Ok(());
    }
    let svms = [suite.open_moving(|builder| builder)?, suite.open_moving(|builder| builder.prefetch(false))?];
    let mut parts = Vec::new();
    for svm in &svms {
        let pages = SinglePages::new(svm, count)?;
        let (base, list) = pages.list();
        parts.push((idempotent(svm, "touch", spirv!("touch"))?, pages, base, list));
    }
    let mut memcpy = Memcpy::new(64 << 20);
    let mut stats = Vec::new();
    let samples = suite.interleave(&name, ROUNDS, 3, |which| {
        let Some((kernel, _, base, list)) = parts.get(which) else { return Ok(memcpy.seconds(count * 4096)) };
        let (time, report) = miss(&svms[which], kernel, *base, list)?;
        if which == 0 {
            stats.push(report);
        }
        Ok(time * count as f64)
    })?;
    let own = &samples[0];
    let row = suite.row(&name, "launch", "s", own);
    row.against("without prefetch", own, &samples[1]).limited_by("memcpy", &samples[2], own);
    let figure = |f: &dyn Fn(&Stats) -> f64| Samples(stats[1..].iter().map(f).collect());
    let operations = figure(&|stats| count as f64 / stats.ranges.max(1) as f64);
    suite.row(&name, "pages per service operation", "", &operations);
    suite.row(&name, "bytes moved / needed", "", &figure(&|stats| stats.pages_in as f64 / count as f64));
    Ok(())
}

/// Runs one pattern, in so many launches, in two runtimes: with prefetch and without.
fn pattern(suite: &mut Suite, name: &str, pages: usize, list: &[u32], launches: usize) -> Result<()> {
    if !suite.wants(name) {
        return Ok(());
    }
    let n = list.len();
    let svms = [suite.open_moving(|builder| builder)?, suite.open_moving(|builder| builder.prefetch(false))?];
    let mut parts = Vec::new();
    for svm in &svms {
        let heap = svm.heap();
        parts.push((
            idempotent(svm, "touch", spirv!("touch"))?,
            heap.vec_zeroed::<u32>(pages * WORDS)?,
            heap.vec_from_slice(list)?,
            heap.vec_from_slice(&vec![0u32; n])?,
        ));
    }
    let fill = |data: &mut SvmVec<u32>| (0..pages).for_each(|page| data[page * WORDS] = page as u32 + 1);
    let mut memcpy = Memcpy::new(64 << 20);
    let mut reports: [Vec<Stats>; 2] = Default::default();
    let samples = suite.interleave(name, ROUNDS, 3, |which| {
        let Some((kernel, data, shared, out)) = parts.get_mut(which) else { return Ok(memcpy.seconds(n * 4096)) };
        fill(data);
        let before = svms[which].stats();
        let (time, done) = seconds(|| -> Result<()> {
            for (list, out) in shared.chunks(n / launches).zip(out.chunks_mut(n / launches)) {
                let count = list.len() as u32;
                let launch = kernel.launch([count.div_ceil(WALK_GROUP), 1, 1]).read(&data[..]).read(list);
                launch.write(out).value(count).value(0u32).run()?;
            }
            Ok(())
        });
        reports[which].push(svms[which].stats().since(&before));
        done?;
        ensure!(out.iter().zip(list).all(|(&out, &page)| out == page + 1), "the kernel read something else");
        Ok(time)
    })?;
    let own = &samples[0];
    let figure = |f: &dyn Fn(&Stats) -> f64| Samples(reports[0][1..].iter().map(f).collect());
    let row = suite.row(name, "launch", "s", own);
    row.against("without prefetch", own, &samples[1]).limited_by("memcpy", &samples[2], own);
    match name {
        "sequential" => drop(row.wanted(Wanted::LimitAtLeast(0.6))),
        "random" => drop(row.wanted(Wanted::RatioAtMost(1.1))),
        _ => {}
    }
    let operations = figure(&|stats| n as f64 / stats.ranges.max(1) as f64);
    let row = suite.row(name, "pages per service operation", "", &operations);
    if name == "sequential" {
        row.wanted(Wanted::ValueAtLeast(256.0));
    }
    let prefetched: u64 = reports[0].iter().map(|stats| stats.prefetched).sum();
    if prefetched > 0 {
        let used: u64 = reports[0].iter().map(|stats| stats.prefetched_used).sum();
        let accuracy = Samples(vec![used as f64 / prefetched as f64]);
        let row = suite.row(name, "prefetched and used / prefetched", "", &accuracy);
        if name == "stream" {
            row.wanted(Wanted::ValueAtLeast(0.9));
        }
    }
    let moved = figure(&|stats| stats.pages_in as f64 / n as f64);
    let row = suite.row(name, "bytes moved / needed", "", &moved);
    if name == "random" {
        row.wanted(Wanted::ValueAtMost(1.5));
    }
    Ok(())
}
