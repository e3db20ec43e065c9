//! Snapshots of a range at a moment, and snapshots of mappings page by page, on the reference device.

mod common;

use common::with_each_tracker;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vksvm::addr::{PageIndex, PageRange};
use vksvm::device::soft::SoftContext;
use vksvm::hmm::{
    Blocking, Event, InvalidateInfo, Mirror, MirrorOps, OwnerId, PageEntry, PageError, Request, Want, WouldBlock,
    read_pages,
};
use vksvm::mm::walk::HomeWalk;
use vksvm::{Kernel, MapRequest, OpError, PageState, Permission, SnapshotError, Svm};

const PAGE: usize = 4096;

/// Adds one to the first word of each page.
fn increment(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let at = invocation.arguments::<u64>() + PAGE as u64 * u64::from(invocation.global_id()[0]);
        let value: u64 = invocation.load(at);
        invocation.store(at, value + 1);
    };
    // SAFETY: it changes the pages it is launched with, each in one invocation.
    unsafe { svm.soft_kernel("increment", [1, 1, 1], 8, body) }.unwrap()
}

#[test]
fn a_snapshot_has_what_the_device_wrote_and_leaves_pages_where_they_are() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut values = svm.heap().vec_zeroed::<u64>(4 * 512).unwrap();
            increment(svm).launch([4, 1, 1]).write(&mut values[..]).run().unwrap();
            let copy = svm.snapshot_of(&raw const values[..]).unwrap();
            assert!(copy.iter().enumerate().all(|(index, &value)| value == u64::from(index % 512 == 0)));
            assert_eq!(svm.heap().page_info(&raw const values[0]).unwrap().state, PageState::Shared);
            values[0] = 7;
            assert_eq!((copy[0], values[0]), (1, 7));
            increment(svm).launch([4, 1, 1]).write(&mut values[..]).run().unwrap();
            assert_eq!(svm.snapshot_of(&raw const values[510..514]).unwrap(), [0, 0, 2, 0], "across pages, unaligned");
        },
    );
}

#[test]
fn no_snapshot_sees_a_store_without_those_before_it_while_threads_write() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let pages = 8;
            let values = svm.heap().vec_zeroed::<u64>(pages * 512).unwrap();
            let cell = |page: usize| {
                // SAFETY: atomics only, in bounds; the vector outlives the threads.
                unsafe { AtomicU64::from_ptr(values.as_ptr().cast_mut().add(page * 512)) }
            };
            let stop = AtomicBool::new(false);
            let rounds = AtomicU64::new(0);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let round = rounds.fetch_add(1, Ordering::Relaxed) + 1;
                        (0..pages).for_each(|page| cell(page).store(round, Ordering::Release));
                    }
                });
                let mut moments = std::collections::HashSet::new();
                for _ in 0..300 {
                    let copy = svm.snapshot_of(&raw const values[..]).unwrap();
                    let seen: Vec<u64> = (0..pages).map(|page| copy[page * 512]).collect();
                    assert!(
                        seen.windows(2).all(|two| two[0] >= two[1]),
                        "a later store without an earlier one: {seen:?}"
                    );
                    assert!(seen[0] - seen[pages - 1] <= 1, "{seen:?}");
                    moments.insert(seen[0]);
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
                stop.store(true, Ordering::Relaxed);
                assert!(moments.len() > 10, "the writer was kept from writing");
            });
        },
    );
}

#[test]
fn no_snapshot_sees_half_of_a_launch() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let pages = 8;
            let mut values = svm.heap().vec_zeroed::<u64>(pages * 512).unwrap();
            let look = &raw const values[..];
            // A raw pointer is not `Send`; its parts are.
            let (start, length) = (look.cast::<u64>().addr(), look.len());
            let kernel = increment(svm);
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let stop = &stop;
                scope.spawn(move || {
                    let look = std::ptr::slice_from_raw_parts(std::ptr::with_exposed_provenance::<u64>(start), length);
                    while !stop.load(Ordering::Relaxed) {
                        let copy = svm.snapshot_of(look).unwrap();
                        let seen: Vec<u64> = copy.iter().step_by(512).copied().collect();
                        assert!(seen.iter().all(|&value| value == seen[0]), "half a launch: {seen:?}");
                    }
                });
                for _ in 0..200 {
                    kernel.launch([pages as u32, 1, 1]).write(&mut values[..]).run().unwrap();
                }
                stop.store(true, Ordering::Relaxed);
            });
            assert!(values.iter().step_by(512).all(|&value| value == 200));
        },
    );
}

#[test]
fn a_snapshot_of_what_is_not_there_is_an_error_and_one_of_nothing_is_empty() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let outside = [1u32; 4];
            let refused = svm.snapshot_of(&raw const outside[..]);
            assert!(matches!(refused, Err(SnapshotError::Range(OpError::OutsideHeap { .. }))), "{refused:?}");
            let mapping = svm.map(2 * PAGE, Permission::ReadOnly).unwrap();
            let all = mapping.as_slice();
            assert_eq!(svm.snapshot_of(&raw const all[..0]).unwrap(), []);
            assert_eq!(svm.snapshot_of(&raw const all[..]).unwrap(), [0; 2 * PAGE]);
            let past = std::ptr::slice_from_raw_parts(mapping.as_ptr().cast_const(), 3 * PAGE);
            assert!(matches!(svm.snapshot_of(past), Err(SnapshotError::Range(OpError::Unmapped { .. }))));
            let wild = std::ptr::slice_from_raw_parts(mapping.as_ptr().cast_const(), isize::MAX as usize);
            assert!(matches!(svm.snapshot_of(wild), Err(SnapshotError::Range(OpError::OutsideHeap { .. }))));
        },
    );
}

/// Ranges for tests: a mirror that has nothing.
struct Nothing;

impl MirrorOps for Nothing {
    fn invalidate(&self, _: &InvalidateInfo) -> Result<(), WouldBlock> {
        Ok(())
    }
    fn release(&self) {}
}

fn pages_of(svm: &Svm, start: vksvm::addr::VirtAddr, pages: u32) -> PageRange {
    PageRange::of_len(svm.address_space().home().views.page_of(start).unwrap(), pages)
}

#[test]
fn the_address_space_is_snapshot_and_faulted_as_hmm_range_fault_does() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let space = svm.address_space();
            let mirror =
                Mirror::register(space.notifiers(), OwnerId::unique(), "test", std::sync::Arc::new(Nothing)).unwrap();
            // Written by the CPU, written by the device, read by the device, read-only, never touched, not mapped.
            let mut mapping = svm.map(5 * PAGE, Permission::ReadWrite).unwrap();
            mapping.as_mut_slice().unwrap()[..4 * PAGE].fill(1);
            let kernel = increment(svm);
            // SAFETY: in bounds; the mapping lives and nobody else uses it.
            unsafe { kernel.launch([1, 1, 1]).pointer(mapping.as_ptr().add(PAGE)) }.run().unwrap();
            mapping.protect(3 * PAGE..4 * PAGE, Permission::ReadOnly).unwrap();
            let span = pages_of(svm, mapping.start(), 6);
            let range = mirror.range(span).unwrap();
            let mut entries = Vec::new();

            let vmas = space.vmas().read();
            let walk = HomeWalk::new(space, &vmas);
            range.snapshot(range.begin(), &walk, &mut entries).unwrap();
            let seen: Vec<_> = entries.iter().map(|entry| (entry.valid, entry.write, entry.error)).collect();
            let gone = Some(PageError::Unmapped);
            let expected = [
                (true, true, None),
                (false, false, None),
                (true, true, None),
                (true, false, None),
                (false, false, None),
                (false, false, gone),
            ];
            assert_eq!(seen, expected);

            // Reading all that is mapped: the device's page comes home, the untouched one gets memory.
            let wants = [Want::Read; 5];
            let request = Request { default: Want::Nothing, each: &wants };
            let mut attempts = 0;
            while let Err(error) = range.fault(range.begin(), &walk, request, &mut entries) {
                assert!(error.is_stale() && attempts < 5, "{error}");
                attempts += 1;
            }
            assert_eq!(attempts, 1, "bringing the device's page home invalidates the range, once");
            assert!(entries[..5].iter().all(|entry| entry.valid));
            assert!(
                entries[1].accessed && entries[1].dirty && !entries[1].write,
                "the device may still read it: {:?}",
                entries[1]
            );

            // Writing: the device lets go; a read-only page cannot be had; one that is not mapped neither.
            let wants = [Want::Write, Want::Write, Want::Write];
            let request = Request { default: Want::Nothing, each: &wants };
            while let Err(error) = range.fault(range.begin(), &walk, request, &mut entries) {
                assert!(error.is_stale(), "{error}");
            }
            assert!(entries[..3].iter().all(|entry| entry.write));
            let error = range.fault(range.begin(), &walk, Request::all(Want::Write), &mut entries).unwrap_err();
            assert_eq!((error.page, error.error), (PageIndex(span.start.0 + 3), PageError::NoPermission));
            let error = range.fault(range.begin(), &walk, Request::all(Want::Read), &mut entries).unwrap_err();
            assert_eq!((error.page, error.error), (PageIndex(span.start.0 + 5), PageError::Unmapped));

            // An invalidation makes it stale.
            let seq = range.begin();
            drop(
                space
                    .notifiers()
                    .invalidate(PageRange::single(span.start), Event::SoftDirty, None, Blocking::Yes)
                    .unwrap(),
            );
            assert!(range.snapshot(seq, &walk, &mut entries).unwrap_err().is_stale());
            drop(vmas);
            assert_eq!(mapping.as_slice()[PAGE], 2);
        },
    );
}

#[test]
fn home_and_device_report_the_leaves_that_a_span_could_be_mapped_with() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let leaf = 2 << 20;
            let mut mapping =
                svm.map_as(&MapRequest::new(2 * leaf as u64, Permission::ReadWrite).align(leaf as u64)).unwrap();
            let span = pages_of(svm, mapping.start(), 1024);
            mapping.as_mut_slice().unwrap().fill(1);
            let orders = |svm: &Svm, span: PageRange| {
                let space = svm.address_space();
                let vmas = space.vmas().read();
                let mut entries: Vec<PageEntry> = Vec::new();
                read_pages(&HomeWalk::new(space, &vmas), span, &mut entries);
                entries.iter().map(|entry| entry.order).collect::<Vec<_>>()
            };
            assert_eq!(orders(svm, span), [9; 1024]);
            assert_eq!(orders(svm, PageRange::of_len(span.start.plus(500), 20)), [9; 20]);
            // A page of the second leaf becomes the device's: home has a hole there.
            let kernel = increment(svm);
            // SAFETY: in bounds; nobody else uses the mapping.
            unsafe { kernel.launch([1, 1, 1]).pointer(mapping.as_ptr().add(leaf + 100 * PAGE)) }.run().unwrap();
            let home = orders(svm, span);
            assert_eq!(home[..512], [9; 512]);
            assert_eq!((home[512 + 95], home[512 + 96], home[512 + 111], home[512 + 112]), (4, 0, 0, 4));
            // All of it on the device: frames of one mapping are contiguous.
            kernel.launch([1024, 1, 1]).write(mapping.as_mut_slice().unwrap()).run().unwrap();
            let mut entries = Vec::new();
            svm.device_mappings(PageRange::of_len(span.start.plus(3), 1000), &mut entries);
            assert!(entries.iter().all(|entry| entry.valid && entry.write && entry.dirty && entry.order == 9));
            assert!(orders(svm, span).iter().all(|&order| order == 0));
        },
    );
}
