//! Pages that are missed one by one, and pages that are a VMA each.

use crate::harness::seconds;
use crate::kernels::WALK_GROUP;
use anyhow::{Result, ensure};
use std::alloc::Layout;
use std::ptr::NonNull;
use vksvm::{Heap, Kernel, Stats, Svm};

/// Single pages, a VMA each.
pub(super) struct SinglePages {
    heap: Heap,
    pages: Vec<NonNull<u8>>,
}

/// Larger than a page in alignment: such allocations get a VMA of their own.
fn layout() -> Layout {
    Layout::from_size_align(4096, 8192).expect("a valid layout")
}

impl SinglePages {
    pub(super) fn new(svm: &Svm, count: usize) -> Result<Self> {
        let mut pages = Self { heap: svm.heap(), pages: Vec::with_capacity(count) };
        for _ in 0..count {
            pages.pages.push(pages.heap.alloc(layout())?.cast());
        }
        Ok(pages)
    }

    /// The lowest page's address, and each page counted from there.
    pub(super) fn list(&self) -> (*mut u8, Vec<u32>) {
        let base = self.pages.iter().map(|page| page.as_ptr()).min().unwrap_or(std::ptr::null_mut());
        (base, self.pages.iter().map(|page| ((page.addr().get() - base.addr()) / 4096) as u32).collect())
    }
}

impl Drop for SinglePages {
    fn drop(&mut self) {
        for &page in &self.pages {
            // SAFETY: allocated in `new` with this layout; no launch runs any more.
            unsafe { self.heap.dealloc(page, layout()) };
        }
    }
}

/// Writes the pages on the CPU, misses them on the device; seconds for each fault.
pub(super) fn miss(svm: &Svm, kernel: &Kernel, base: *mut u8, pages: &[u32]) -> Result<(f64, Stats)> {
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
