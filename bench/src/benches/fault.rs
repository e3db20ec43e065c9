//! `fault`: one launch that misses a batch of pages, each of them once.
//!
//! Limits: a bare submission with its wait, twice (the pass that misses and the one that hits), and the service's parts done
//! alone: one write-protection, one memcpy, one store for each page table entry.

use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{Push, Raw, WALK_GROUP, idempotent};
use crate::spirv;
use anyhow::{Result, ensure};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vksvm::addr::{PageIndex, PageRange};
use vksvm::mm::views::OwnedViews;
use vksvm::track::{self, CpuFault, FaultHandler, FaultOutcome, Tracker, TrackerOptions};

const ROUNDS: u32 = 9;
const WORDS: usize = 1024;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let svm = suite.open_moving(|builder| builder)?;
    let kernel = idempotent(&svm, "touch", spirv!("touch"))?;
    let heap = svm.heap();
    let most = 65_536usize;
    let mut data = heap.vec_zeroed::<u32>(most * WORDS)?;
    let list: Vec<u32> = (0..most as u32).collect();
    let shared = heap.vec_from_slice(&list)?;
    let mut out = heap.vec_from_slice(&vec![0u32; most])?;
    let mut raw = Raw::new(&svm)?;
    let (raw_data, raw_list, raw_out) =
        (raw.buffer_with(&vec![0u32; WORDS])?, raw.buffer_with(&vec![0u32; most])?, raw.results(most * 4)?);
    let raw_kernel = raw.kernel("raw_touch", spirv!("raw_touch"), 32)?;
    let mut alone = Alone::new(most, svm.info().tracker)?;
    for n in [1usize, 16, 256, 4096, 65_536] {
        let mut stats = Vec::new();
        let groups = (n as u32).div_ceil(WALK_GROUP);
        let push = Push::default().address(&raw_data).address(&raw_list).address(&raw_out).add(n as u32).add(0u32);
        let samples = suite.interleave(&format!("{n} pages"), ROUNDS, 4, |which| match which {
            0 => {
                for page in 0..n {
                    data[page * WORDS] = page as u32 + 1;
                }
                let (time, report) = seconds(|| {
                    let launch = kernel.launch([groups, 1, 1]).read(&data[..]).read(&shared[..]);
                    launch.write(&mut out[..]).value(n as u32).value(0u32).run()
                });
                stats.push(report?);
                ensure!(out[..n].iter().enumerate().all(|(page, &value)| value == page as u32 + 1), "wrong data");
                Ok(time)
            }
            1 => {
                // SAFETY: the list names page 0 only.
                let (time, done) = seconds(|| unsafe {
                    raw.run(&raw_kernel, push.bytes(), groups)?;
                    raw.run(&raw_kernel, push.bytes(), groups)
                });
                done.map(|()| time)
            }
            2 => alone.serve(n),
            _ => alone.memcpy(n),
        })?;
        let case = format!("{n} pages");
        let own = &samples[0];
        let per_fault = own.map(|time| time / n as f64);
        suite.row(&case, "per fault", "s", &per_fault).at(n as f64);
        let row = suite.row(&case, "launch", "s", own);
        row.against("two bare submits", own, &samples[1]).limited_by("memcpy", &samples[3], own);
        if n == most {
            row.wanted(Wanted::LimitAtLeast(0.6));
        }
        suite.row(&case, "launch", "s", own).against("protect + copy + commit alone", own, &samples[2]);
        let part = |f: fn(&vksvm::Stats) -> u64| Samples(stats[1..].iter().map(|stats| f(stats) as f64).collect());
        suite.row(&case, "of it dispatches", "s", &part(|stats| stats.kernel_nanos).map(|ns| ns / 1e9)).at(n as f64);
        suite.row(&case, "of it service", "s", &part(|stats| stats.service_nanos).map(|ns| ns / 1e9)).at(n as f64);
        suite.row(&case, "of it copies", "s", &part(|stats| stats.copy_nanos).map(|ns| ns / 1e9)).at(n as f64);
        let duplicates =
            Samples(stats[1..].iter().map(|s| s.duplicates as f64 / s.device_faults.max(1) as f64 * 100.0).collect());
        let row = suite.row(&case, "duplicate entries", "%", &duplicates);
        if n == most {
            row.wanted(Wanted::ValueAtMost(1.0));
            let pages = Samples(stats[1..].iter().map(|s| n as f64 / s.ranges as f64).collect());
            suite.row(&case, "pages per service operation", "", &pages).wanted(Wanted::ValueAtLeast(256.0));
        }
    }
    Ok(())
}

/// What cannot be saved: protecting, copying and committing, without finding out what and where.
pub(super) struct Alone {
    // The tracker goes before the memory that it watches.
    tracker: Arc<dyn Tracker>,
    views: OwnedViews,
    frames: Vec<u8>,
    table: Vec<AtomicU64>,
}

struct Unexpected;

impl FaultHandler for Unexpected {
    fn cpu_fault(&self, _fault: CpuFault) -> FaultOutcome {
        FaultOutcome::Refused
    }
}

impl Alone {
    pub(super) fn new(pages: usize, kind: vksvm::TrackerKind) -> Result<Self> {
        let views = OwnedViews::reserve((pages * 4096) as u64)?;
        views.grow_to(pages as u32)?;
        // SAFETY: `self` owns the views and drops the tracker first; the app view is written below only.
        let tracker = unsafe { track::choose(Some(kind), views.views(), &TrackerOptions::default()) }?;
        tracker.start(Arc::new(Unexpected))?;
        for page in 0..pages as u32 {
            let address = views.addr_of(PageIndex(page)).as_ptr();
            // SAFETY: a page of our own app view.
            unsafe { address.write(1) };
        }
        tracker.watch(PageRange::of_len(PageIndex(0), pages as u32))?;
        let table = (0..pages).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { tracker, views, frames: vec![1; pages * 4096], table })
    }

    fn serve(&mut self, n: usize) -> Result<f64> {
        let pages = PageRange::of_len(PageIndex(0), n as u32);
        let (time, done) = seconds(|| {
            self.tracker.write_protect(pages)?;
            self.copy(n);
            let base = self.frames.as_ptr() as u64;
            for (page, entry) in self.table[..n].iter().enumerate() {
                entry.store(base + 4096 * page as u64 + 1, Ordering::Release);
            }
            anyhow::Ok(())
        });
        done?;
        self.tracker.map(pages, track::Protection::ReadWrite)?;
        Ok(time)
    }

    fn copy(&mut self, n: usize) {
        let from = self.views.alias_ptr(PageIndex(0));
        // SAFETY: the alias holds n pages, which nobody writes; the frames are other memory of that size.
        unsafe { black_box(from).copy_to_nonoverlapping(self.frames.as_mut_ptr(), n * 4096) };
        black_box(&mut self.frames);
    }

    fn memcpy(&mut self, n: usize) -> Result<f64> {
        Ok(seconds(|| self.copy(n)).0)
    }

    /// The first `n` pages, one call each, all of them just written by the CPU: what the protection takes away is in use, and
    /// the other processors must forget it.
    pub(super) fn protect_one_by_one(&mut self, n: usize) -> Result<f64> {
        let pages = PageRange::of_len(PageIndex(0), n as u32);
        for page in pages.iter() {
            // SAFETY: a page of our own app view, open to us.
            unsafe { self.views.addr_of(page).as_ptr().write_volatile(2) };
        }
        let (time, done) =
            seconds(|| pages.iter().try_for_each(|page| self.tracker.write_protect(PageRange::single(page))));
        done?;
        self.tracker.map(pages, track::Protection::ReadWrite)?;
        Ok(time)
    }

    /// The first `n` pages, one copy each, in the order of `order`.
    pub(super) fn copy_one_by_one(&mut self, order: &[u32]) -> f64 {
        seconds(|| {
            for (at, &page) in order.iter().enumerate() {
                let to = &mut self.frames[at * 4096..][..4096];
                // SAFETY: a page of the alias, which nobody writes, and other memory of that size.
                unsafe {
                    black_box(self.views.alias_ptr(PageIndex(page))).copy_to_nonoverlapping(to.as_mut_ptr(), 4096)
                };
                black_box(to);
            }
        })
        .0
    }
}
