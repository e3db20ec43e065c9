//! `scale`: how cost grows with the number of VMAs, the size of the heap, and the number of CPU threads.

use super::pages::{SinglePages, miss};
use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::idempotent;
use crate::spirv;
use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{SeedableRng, seq::index};
use vksvm::device::soft::{SoftContext, SoftOptions};
use vksvm::{Kernel, Svm};

const ROUNDS: u32 = 5;
/// Pages missed a round.
const FAULTS: usize = 4096;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    vmas(suite)?;
    heaps(suite)?;
    threads(suite)?;
    devices(suite)
}

/// Pages that all devices share.
const SHARED: usize = 4096;

/// Reference devices on one heap: all read what the CPU wrote, then each adds to what the one before it left.
fn devices(suite: &mut Suite) -> Result<()> {
    let counts = [1usize, 2, 4, 8];
    let mut parts = Vec::new();
    for &count in &counts {
        let soft = || Svm::builder().soft_device(SoftOptions::default()).heap_bytes(1 << 30);
        let mut svms = vec![soft().build()?];
        for _ in 1..count {
            let next = soft().share_heap_with(&svms[0]).build()?;
            svms.push(next);
        }
        let kernels: Vec<(Kernel, Kernel)> = svms.iter().map(soft_kernels).collect::<Result<_>>()?;
        let data = svms[0].heap().vec_zeroed::<u32>(SHARED * 1024)?;
        let sums = svms[0].heap().vec_zeroed::<u32>(SHARED)?;
        parts.push((data, sums, kernels, svms));
    }
    let mut passed = vec![Vec::new(); counts.len()];
    let samples = suite.interleave("soft devices", ROUNDS, counts.len(), |which| {
        let (data, sums, kernels, _) = &mut parts[which];
        for page in 0..SHARED {
            data[page * 1024] = page as u32;
        }
        let grid = [SHARED as u32 / 64, 1, 1];
        let (read, done) = seconds(|| {
            kernels
                .iter()
                .try_for_each(|(read, _)| read.launch(grid).read(&data[..]).write(&mut sums[..]).run().map(drop))
        });
        done?;
        ensure!(sums.iter().enumerate().all(|(page, &value)| value == page as u32), "a device read something else");
        let (add, done) =
            seconds(|| kernels.iter().try_for_each(|(_, add)| add.launch(grid).write(&mut data[..]).run().map(drop)));
        done?;
        let added = kernels.len() as u32;
        ensure!((0..SHARED).all(|page| data[page * 1024] == page as u32 + added), "an addition was lost");
        let faults = (SHARED * kernels.len()) as f64;
        passed[which].push(add / faults);
        Ok(read / faults)
    })?;
    // The warm-up's.
    let passed: Vec<Samples> = passed.into_iter().map(|times| Samples(times[1..].to_vec())).collect();
    for (at, &count) in counts.iter().enumerate() {
        let case = format!("{count} soft devices");
        for (metric, samples) in [("shared for reading, per fault", &samples), ("passed around, per fault", &passed)] {
            let row = suite.row(&case, metric, "s", &samples[at]);
            row.against("1 device", &samples[at], &samples[0]).at(count as f64);
            row.device = "soft".into();
        }
    }
    Ok(())
}

/// One reads a word of each page, the other adds to it.
fn soft_kernels(svm: &Svm) -> Result<(Kernel, Kernel)> {
    let read = |invocation: &mut SoftContext<'_>| {
        let [from, into] = invocation.arguments::<[u64; 2]>();
        let page = u64::from(invocation.global_id()[0]);
        let value: u32 = invocation.load(from + page * 4096);
        invocation.store(into + page * 4, value);
    };
    let add = |invocation: &mut SoftContext<'_>| {
        let at = invocation.arguments::<u64>() + u64::from(invocation.global_id()[0]) * 4096;
        invocation.atomic_add(at, 1);
    };
    // SAFETY: both access the arrays that their launches name, through the context only.
    let read = unsafe { svm.soft_kernel("read", [64, 1, 1], 16, read) }?.idempotent();
    // SAFETY: as above.
    Ok((read, unsafe { svm.soft_kernel("add", [64, 1, 1], 8, add) }?))
}

fn vmas(suite: &mut Suite) -> Result<()> {
    let counts = suite.size(vec![100usize, 10_000, 100_000, 1_000_000], vec![100, 10_000, 100_000]);
    let mut parts = Vec::new();
    for &count in &counts {
        let svm = suite.open_moving(|builder| builder)?;
        let kernel = idempotent(&svm, "touch", spirv!("touch"))?;
        // As many pages in all cases, far apart from each other, in as many VMAs as the case says.
        let (pages, base, list) = if count < FAULTS {
            let each = FAULTS * 16 / count;
            let blocks: Vec<_> =
                (0..count).map(|_| svm.heap().vec_zeroed::<u32>(each * 1024)).collect::<Result<_, _>>()?;
            let base = blocks.iter().map(|block| block.as_ptr() as u64).min().unwrap_or(0);
            let all: Vec<u32> = blocks
                .iter()
                .flat_map(|block| {
                    (0..each).map(move |page| ((block.as_ptr() as u64 - base) / 4096) as u32 + page as u32)
                })
                .collect();
            let chosen = index::sample(&mut SmallRng::seed_from_u64(17), all.len(), FAULTS);
            let list = chosen.into_iter().map(|at| all[at]).collect::<Vec<_>>();
            (Holder::Blocks(blocks), base, list)
        } else {
            let pages = SinglePages::new(&svm, count)?;
            let (base, all) = pages.list();
            let chosen = index::sample(&mut SmallRng::seed_from_u64(17), count, FAULTS);
            let list = chosen.into_iter().map(|at| all[at]).collect();
            (Holder::Pages(pages), base as u64, list)
        };
        parts.push((pages, kernel, svm, base, list));
    }
    let samples = suite.interleave("VMAs", ROUNDS, counts.len(), |which| {
        let (_, kernel, svm, base, list) = &parts[which];
        Ok(miss(svm, kernel, *base as *mut u8, list)?.0)
    })?;
    for (at, &count) in counts.iter().enumerate() {
        let row = suite.row(&format!("{count} VMAs"), "per fault", "s", &samples[at]);
        row.against("100 VMAs", &samples[at], &samples[0]).at(count as f64);
        if at + 1 == counts.len() {
            row.wanted(Wanted::RatioAtMost(1.5));
        }
    }
    Ok(())
}

/// Keeps a case's memory.
#[allow(dead_code, reason = "held for its drop")]
enum Holder {
    Blocks(Vec<vksvm::SvmVec<u32>>),
    Pages(SinglePages),
}

fn heaps(suite: &mut Suite) -> Result<()> {
    let sizes = suite.size(vec![1u64, 16, 64, 256, 1000], vec![1, 16, 64]);
    let mut parts = Vec::new();
    for &gib in &sizes {
        let svm = suite.open_moving(|builder| builder)?;
        let kernel = idempotent(&svm, "touch", spirv!("touch"))?;
        let data = svm.heap().vec_zeroed::<u32>((gib as usize) << 28)?;
        let pages = (gib as usize) << 18;
        let chosen = index::sample(&mut SmallRng::seed_from_u64(19), pages, FAULTS);
        let list: Vec<u32> = chosen.into_iter().map(|page| page as u32).collect();
        parts.push((data, kernel, svm, list));
    }
    let samples = suite.interleave("heap", ROUNDS, sizes.len(), |which| {
        let (data, kernel, svm, list) = &mut parts[which];
        Ok(miss(svm, kernel, data.as_mut_ptr().cast(), list)?.0)
    })?;
    for (at, &gib) in sizes.iter().enumerate() {
        let case = format!("{gib} GiB heap");
        suite.row(&case, "per fault", "s", &samples[at]).against("1 GiB", &samples[at], &samples[0]).at(gib as f64);
        // Page table and page records, over all that could be mirrored.
        let metadata = parts[at].2.table_bytes() as f64 + (gib << 30) as f64 / 4096.0 * 4.0;
        let share = Samples(vec![metadata / (gib << 30) as f64 * 100.0]);
        suite.row(&case, "metadata / mirrored bytes", "%", &share).wanted(Wanted::ValueAtMost(0.5));
    }
    Ok(())
}

fn threads(suite: &mut Suite) -> Result<()> {
    let svm = suite.open_moving(|builder| builder)?;
    let kernel = idempotent(&svm, "touch", spirv!("touch"))?;
    let pages = 8192usize;
    let mut data = svm.heap().vec_zeroed::<u32>(pages * 1024)?;
    let list: Vec<u32> = (0..pages as u32).collect();
    let counts = [1usize, 4, 16, 64];
    let base = data.as_mut_ptr() as usize;
    let samples = suite.interleave("CPU threads", ROUNDS, counts.len(), |which| {
        miss(&svm, &kernel, base as *mut u8, &list)?;
        let each = pages / counts[which];
        let (time, ()) = seconds(|| {
            std::thread::scope(|scope| {
                for thread in 0..counts[which] {
                    scope.spawn(move || {
                        for page in thread * each..(thread + 1) * each {
                            // SAFETY: in bounds, and each page is written by one thread; no launch runs.
                            unsafe { (base as *mut u32).add(page * 1024).write_volatile(1) };
                        }
                    });
                }
            });
        });
        Ok(time / pages as f64)
    })?;
    for (at, &count) in counts.iter().enumerate() {
        let row = suite.row(&format!("{count} CPU threads"), "CPU write fault", "s", &samples[at]);
        row.against("1 thread", &samples[at], &samples[0]).at(count as f64);
    }
    Ok(())
}
