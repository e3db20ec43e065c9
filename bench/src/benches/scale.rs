//! `scale`: how cost grows with the number of VMAs, the size of the heap, and the number of CPU threads.

use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{WALK_GROUP, idempotent};
use crate::spirv;
use anyhow::{Result, ensure};
use rand::rngs::SmallRng;
use rand::{SeedableRng, seq::index};
use std::alloc::Layout;
use std::ptr::NonNull;
use vksvm::{Heap, Kernel, Stats, Svm};

const ROUNDS: u32 = 5;
/// Pages missed a round.
const FAULTS: usize = 4096;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    vmas(suite)?;
    heaps(suite)?;
    threads(suite)
}

/// Single pages, a VMA each.
struct Pages {
    heap: Heap,
    pages: Vec<NonNull<u8>>,
}

/// Larger than a page in alignment: such allocations get a VMA of their own.
fn layout() -> Layout {
    Layout::from_size_align(4096, 8192).expect("a valid layout")
}

impl Pages {
    fn new(svm: &Svm, count: usize) -> Result<Self> {
        let mut pages = Self { heap: svm.heap(), pages: Vec::with_capacity(count) };
        for _ in 0..count {
            pages.pages.push(pages.heap.alloc(layout())?.cast());
        }
        Ok(pages)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for &page in &self.pages {
            // SAFETY: allocated in `new` with this layout; no launch runs any more.
            unsafe { self.heap.dealloc(page, layout()) };
        }
    }
}

/// Writes the pages on the CPU, misses them on the device; seconds for each fault.
fn miss(svm: &Svm, kernel: &Kernel, base: *mut u8, pages: &[u32]) -> Result<(f64, Stats)> {
    for (n, &page) in pages.iter().enumerate() {
        // SAFETY: callers name pages of their own memory, all of it allocated.
        unsafe { base.add(page as usize * 4096).cast::<u32>().write(n as u32) };
    }
    let heap = svm.heap();
    let list = heap.vec_from_slice(pages)?;
    let mut out = heap.vec_from_slice(&vec![0u32; pages.len()])?;
    let n = pages.len() as u32;
    let (time, report) = seconds(|| {
        // SAFETY: as above; nobody else accesses the pages while the launch runs.
        let launch = unsafe { kernel.launch([n.div_ceil(WALK_GROUP), 1, 1]).pointer(base) };
        launch.read(&list[..]).write(&mut out[..]).value(n).value(0u32).run()
    });
    let report = report?;
    ensure!(out.iter().enumerate().all(|(n, &value)| value == n as u32), "the kernel read something else");
    Ok((time / pages.len() as f64, report))
}

fn vmas(suite: &mut Suite) -> Result<()> {
    let counts = suite.size(vec![100usize, 10_000, 100_000, 1_000_000], vec![100, 10_000, 100_000]);
    let mut parts = Vec::new();
    for &count in &counts {
        let svm = suite.open(|builder| builder)?;
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
            let pages = Pages::new(&svm, count)?;
            let base = pages.pages.iter().map(|page| page.as_ptr() as u64).min().unwrap_or(0);
            let chosen = index::sample(&mut SmallRng::seed_from_u64(17), count, FAULTS);
            let list = chosen.into_iter().map(|at| ((pages.pages[at].as_ptr() as u64 - base) / 4096) as u32).collect();
            (Holder::Pages(pages), base, list)
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
    Pages(Pages),
}

fn heaps(suite: &mut Suite) -> Result<()> {
    let sizes = suite.size(vec![1u64, 16, 64, 256], vec![1, 16]);
    let mut parts = Vec::new();
    for &gib in &sizes {
        let svm = suite.open(|builder| builder)?;
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
    let svm = suite.open(|builder| builder)?;
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
