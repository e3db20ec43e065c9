//! `invalidate`: the CPU takes pages back from the device.
//!
//! Peers: userfaultfd by hand, on memory that no device knows; where the runtime catches signals instead, the same tracker with a
//! handler that only opens the page.

use super::expert::Expert;
use super::memory::Memcpy;
use crate::harness::{Samples, Suite, Wanted, seconds};
use crate::kernels::{STREAM_GROUP, WALK_GROUP, idempotent};
use crate::spirv;
use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use std::sync::{Arc, OnceLock};
use vksvm::addr::{Access, PageIndex, PageRange};
use vksvm::mm::views::OwnedViews;
use vksvm::track::{self, CpuFault, FaultHandler, FaultOutcome, Protection, Tracker, TrackerOptions};
use vksvm::{Svm, TrackerKind};

const ROUNDS: u32 = 9;
const WORDS: usize = 1024;
/// Single faults a round.
const FAULTS: usize = 1024;

pub(super) fn run(suite: &mut Suite) -> Result<()> {
    let svm = suite.open_moving(|builder| builder)?;
    write_to_shared(suite, &svm)?;
    read_of_dirty(suite, &svm)?;
    scan(suite, &svm)
}

/// Pages far apart in random order, so that nothing that recognises streams helps or harms.
fn scattered(pages: usize) -> Vec<usize> {
    let mut list: Vec<usize> = (0..FAULTS).map(|n| n * (pages / FAULTS)).collect();
    list.shuffle(&mut SmallRng::seed_from_u64(13));
    list
}

fn write_to_shared(suite: &mut Suite, svm: &Svm) -> Result<()> {
    if !suite.wants("CPU write to a shared page") {
        return Ok(());
    }
    let pages = FAULTS * 8;
    let heap = svm.heap();
    let kernel = idempotent(svm, "touch", spirv!("touch"))?;
    let mut data = heap.vec_from_slice(&vec![1u32; pages * WORDS])?;
    let list = heap.vec_from_slice(&(0..pages as u32).collect::<Vec<_>>())?;
    let mut out = heap.vec_from_slice(&vec![0u32; pages])?;
    let mut bare = Peer::new(pages, svm.info().tracker)?;
    let order = scattered(pages);
    let samples = suite.interleave("CPU write to a shared page", ROUNDS, 2, |which| {
        if which == 1 {
            return bare.faults(&order, Access::Write);
        }
        let launch = kernel.launch([(pages as u32).div_ceil(WALK_GROUP), 1, 1]).read(&data[..]).read(&list[..]);
        launch.write(&mut out[..]).value(pages as u32).value(0u32).run()?;
        let before = svm.stats();
        let (time, ()) = seconds(|| order.iter().for_each(|&page| data[page * WORDS] += 1));
        let faults = svm.stats().since(&before).cpu_faults;
        ensure!(faults >= FAULTS as u64, "only {faults} faults: the pages were not shared");
        Ok(time / FAULTS as f64)
    })?;
    ensure!(data[order[0] * WORDS] as usize == samples[0].0.len() + 2, "a write was lost");
    let row = suite.row("CPU write to a shared page", "per fault", "s", &samples[0]);
    row.against("bare fault", &samples[0], &samples[1]).wanted(Wanted::RatioAtMost(1.5));
    Ok(())
}

fn read_of_dirty(suite: &mut Suite, svm: &Svm) -> Result<()> {
    if !suite.wants("CPU read of a device-dirty page") {
        return Ok(());
    }
    let pages = FAULTS * 64;
    let kernel = idempotent(svm, "fill", spirv!("fill"))?;
    let mut data = svm.heap().vec_from_slice(&vec![1u32; pages * WORDS])?;
    let mut bare = Peer::new(pages, svm.info().tracker)?;
    let order = scattered(pages);
    let mut seed = 0u32;
    let n = (pages * WORDS) as u32;
    let samples = suite.interleave("CPU read of a device-dirty page", ROUNDS, 2, |which| {
        if which == 1 {
            return bare.faults(&order, Access::Read);
        }
        seed += 1;
        kernel.launch([n.div_ceil(STREAM_GROUP), 1, 1]).write(&mut data[..]).value(n).value(seed).run()?;
        let (time, right) = seconds(|| order.iter().all(|&page| data[page * WORDS] == (page * WORDS) as u32 + seed));
        ensure!(right, "the CPU read something else than the device wrote");
        Ok(time / FAULTS as f64)
    })?;
    let row = suite.row("CPU read of a device-dirty page", "per read", "s", &samples[0]);
    row.against("bare fault", &samples[0], &samples[1]);
    Ok(())
}

fn scan(suite: &mut Suite, svm: &Svm) -> Result<()> {
    let bytes = suite.size(1usize << 30, 128 << 20);
    let case = format!("CPU scan of {} MiB", bytes >> 20);
    if !suite.wants(&case) {
        return Ok(());
    }
    let kernel = idempotent(svm, "fill", spirv!("fill"))?;
    let n = (bytes / 4) as u32;
    let mut data = svm.heap().vec_zeroed::<u32>(n as usize)?;
    let mut memcpy = Memcpy::new(64 << 20);
    let mut seed = 0u32;
    let mut faults = Vec::new();
    let samples = suite.interleave(&case, ROUNDS.div_ceil(2), 2, |which| {
        if which == 1 {
            return Ok(memcpy.seconds(bytes));
        }
        seed += 1;
        kernel.launch([n.div_ceil(STREAM_GROUP), 1, 1]).write(&mut data[..]).value(n).value(seed).run()?;
        let before = svm.stats();
        let (time, sum) = seconds(|| data.iter().map(|&word| u64::from(word)).sum::<u64>());
        faults.push(svm.stats().since(&before).cpu_faults as f64);
        let expected = (0..u64::from(n)).sum::<u64>() + u64::from(n) * u64::from(seed);
        ensure!(sum == expected, "the scan found {sum}, not {expected}");
        Ok(time)
    })?;
    let row = suite.row(&case, "scan", "s", &samples[0]);
    row.limited_by("memcpy", &samples[1], &samples[0]).wanted(Wanted::LimitAtLeast(0.5));
    suite.row(&case, "CPU faults", "", &Samples(faults.split_off(1)));
    Ok(())
}

/// Who only takes faults.
enum Peer {
    Expert(Expert),
    Tracker(Bare),
}

impl Peer {
    fn new(pages: usize, kind: TrackerKind) -> Result<Self> {
        Ok(match kind {
            TrackerKind::Userfaultfd => Self::Expert(Expert::new(pages)?),
            TrackerKind::Sigsegv => Self::Tracker(Bare::new(pages, kind)?),
        })
    }

    fn faults(&mut self, order: &[usize], access: Access) -> Result<f64> {
        match self {
            Self::Expert(expert) => expert.faults(order, access),
            Self::Tracker(bare) => bare.faults(order, access),
        }
    }
}

/// Memory that a tracker watches for nobody.
struct Bare {
    tracker: Arc<dyn Tracker>,
    views: OwnedViews,
    pages: PageRange,
}

/// Opens the page and no more.
struct Open(OnceLock<Arc<dyn Tracker>>);

impl FaultHandler for Open {
    fn cpu_fault(&self, fault: CpuFault) -> FaultOutcome {
        let protection = if fault.access == Access::Write { Protection::ReadWrite } else { Protection::ReadOnly };
        match self.0.get().map(|tracker| tracker.map(tracker.unit(fault.page), protection)) {
            Some(Ok(())) => FaultOutcome::Resolved,
            _ => FaultOutcome::Refused,
        }
    }

    fn cpu_fault_at_once(&self, fault: CpuFault) -> Option<FaultOutcome> {
        Some(self.cpu_fault(fault))
    }
}

impl Bare {
    fn new(pages: usize, kind: TrackerKind) -> Result<Self> {
        let views = OwnedViews::reserve(((pages * 4096) as u64).next_multiple_of(2 << 20))?;
        views.grow_to(pages as u32)?;
        // SAFETY: `self` owns the views and stops the tracker before they go; only this bench touches the memory.
        let tracker = unsafe { track::choose(Some(kind), views.views(), &TrackerOptions::default()) }?;
        let handler = Open(OnceLock::new());
        let _ = handler.0.set(tracker.clone());
        tracker.start(Arc::new(handler))?;
        let bare = Self { tracker, views, pages: PageRange::of_len(PageIndex(0), pages as u32) };
        for page in bare.pages.iter() {
            // SAFETY: a page of our own app view.
            unsafe { bare.views.addr_of(page).as_ptr().write(1) };
        }
        bare.tracker.watch(bare.pages)?;
        Ok(bare)
    }

    /// Seconds for each of the faults that touching the pages of `order` raises.
    fn faults(&mut self, order: &[usize], access: Access) -> Result<f64> {
        self.tracker.map(self.pages, Protection::ReadWrite)?;
        match access {
            Access::Write => self.tracker.write_protect(self.pages)?,
            Access::Read => self.tracker.unmap(self.pages)?,
        }
        let before = self.tracker.faults();
        let (time, ()) = seconds(|| {
            for &page in order {
                let address = self.views.addr_of(PageIndex(page as u32)).as_ptr();
                // SAFETY: a page of our own app view; volatile, so that it happens.
                unsafe {
                    match access {
                        Access::Write => address.write_volatile(2),
                        Access::Read => drop(address.read_volatile()),
                    }
                }
            }
        });
        ensure!(self.tracker.faults() - before >= order.len() as u64, "the peer did not fault");
        Ok(time / order.len() as f64)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // The handler holds the tracker: stopping it is what lets go of the memory.
        self.tracker.stop();
    }
}
