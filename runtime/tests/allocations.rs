//! What a fault must not cost: an allocation. A warm service has its lists, and grows none of them by the fault.

mod common;

use common::soft;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use vksvm::device::soft::SoftContext;
use vksvm::{Kernel, LaunchReport, Svm, TrackerKind};

/// Counts what all threads allocate.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// One test at a time, as all count together.
static TURN: Mutex<()> = Mutex::new(());

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract; the block came from `alloc` or `realloc`.
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(block, layout, bytes) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const PAGE: usize = 4096;
const PAGES: usize = 8192;
/// A whole round's lists may grow now and then; this many faults may not each.
const FAULTS: usize = 1024;

/// Loads, or stores to, the first word of each page that a list names, one page an invocation.
fn touch(svm: &Svm, store: bool) -> Kernel {
    let body = move |invocation: &mut SoftContext<'_>| {
        let [data, list] = invocation.arguments::<[u64; 2]>();
        let page: u32 = invocation.load(list + 4 * u64::from(invocation.global_id()[0]));
        let word = data + u64::from(page) * PAGE as u64;
        if store {
            invocation.store(word, page);
        } else {
            let _: u32 = invocation.load(word);
        }
    };
    // SAFETY: it changes the array it is launched with, each page to the same value however often.
    unsafe { svm.soft_kernel("touch", [1, 1, 1], 16, body) }.unwrap()
}

/// Allocations of a launch that touches the pages of `list`, all of them written by the CPU before.
fn launch(kernel: &Kernel, data: &mut [[u32; PAGE / 4]], list: &[u32]) -> (u64, LaunchReport) {
    data.iter_mut().for_each(|page| page[0] += 1);
    let launch = kernel.launch([list.len() as u32, 1, 1]).write(data).read(list);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let report = launch.run().unwrap();
    (ALLOCATIONS.load(Ordering::Relaxed) - before, report)
}

fn faults_allocate_nothing(store: bool) {
    let _turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let Ok(svm) = soft(TrackerKind::Userfaultfd, |builder| builder) else {
        return println!("not tested: no userfaultfd");
    };
    let mut data = svm.heap().vec_zeroed::<[u32; PAGE / 4]>(PAGES).unwrap();
    // As many invocations, on pages far from each other and all on one.
    let scattered: Vec<u32> = (0..FAULTS as u32).map(|n| n * (PAGES / FAULTS) as u32).collect();
    let many = svm.heap().vec_from_slice(&scattered).unwrap();
    let one = svm.heap().vec_from_slice(&vec![0u32; FAULTS]).unwrap();
    let kernel = touch(&svm, store);
    let mut measured = Vec::new();
    for _ in 0..4 {
        let (base, _) = launch(&kernel, &mut data, &one);
        let (allocations, report) = launch(&kernel, &mut data, &many);
        // On a busy machine the launch is cut into slices, and some of the pages are there before they are asked for.
        assert!(report.pages_in >= FAULTS as u64, "{report}");
        measured.push(allocations.saturating_sub(base));
    }
    println!("allocations, round by round: {measured:?}");
    // The first launches fill the lists. What a slice allocates is allowed: how many there are depends on the machine.
    let warm = *measured.iter().min().unwrap();
    assert!(warm < FAULTS as u64 / 8, "{FAULTS} faults cost {measured:?} allocations");
}

#[test]
fn a_fault_for_reading_allocates_nothing() {
    faults_allocate_nothing(false);
}

#[test]
fn a_fault_for_writing_allocates_nothing() {
    faults_allocate_nothing(true);
}
