//! Operations on mappings, seen from the CPU and from the reference device.

mod common;

use common::{increment, soft, trackers, with_each_tracker};
use std::os::unix::process::ExitStatusExt;
use vksvm::device::soft::SoftContext;
use vksvm::kernel::FaultReason;
use vksvm::{Kernel, LaunchError, MapRequest, Mapping, OpError, Permission, Svm};

const PAGE: usize = 4096;
const SIGSEGV: i32 = 11;

/// Reads `u32`s at an address, one page apart, into an array.
fn gather(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [from, into] = invocation.arguments::<[u64; 2]>();
        let index = u64::from(invocation.global_id()[0]);
        let value: u32 = invocation.load(from + PAGE as u64 * index);
        invocation.store(into + 4 * index, value);
    };
    // SAFETY: it reads one object and writes another.
    unsafe { svm.soft_kernel("gather", [1, 1, 1], 16, body) }.unwrap()
}

/// `pages` pages, the first word of each its number plus `base`.
fn numbered(svm: &Svm, pages: usize, base: u32) -> Mapping {
    let mut mapping = svm.map(pages * PAGE, Permission::ReadWrite).unwrap();
    let bytes = mapping.as_mut_slice().unwrap();
    for (page, bytes) in bytes.chunks_mut(PAGE).enumerate() {
        bytes[..4].copy_from_slice(&(base + page as u32).to_ne_bytes());
    }
    mapping
}

fn words(mapping: &Mapping) -> Vec<u32> {
    mapping.as_slice().chunks(PAGE).map(|page| u32::from_ne_bytes(page[..4].try_into().unwrap())).collect()
}

/// Increments all pages on the device and leaves them there, dirty.
fn increment_all(svm: &Svm, mapping: &mut Mapping) {
    let pages = (mapping.len() / PAGE) as u32;
    increment(svm).launch([pages, 1, 1]).write(mapping.as_mut_slice().unwrap()).run().unwrap();
}

fn fault(error: LaunchError) -> (FaultReason, u64) {
    match error {
        LaunchError::Fault(fault) => (fault.reason, fault.address.0),
        other => panic!("not a kernel fault: {other}"),
    }
}

#[test]
fn a_fresh_mapping_is_zero_on_both_sides_and_takes_what_either_writes() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut mapping =
                svm.map_as(&MapRequest::new(2 << 20, Permission::ReadWrite).align(2 << 20).name("grid")).unwrap();
            assert!(mapping.start().0.is_multiple_of(2 << 20));
            assert!(mapping.as_slice().iter().all(|&byte| byte == 0));
            increment_all(svm, &mut mapping);
            mapping.as_mut_slice().unwrap()[4] = 9;
            increment_all(svm, &mut mapping);
            assert_eq!(words(&mapping), vec![2; 512]);
            assert_eq!(mapping.as_slice()[4], 9);
        },
    );
}

#[test]
fn unmapping_a_part_keeps_what_the_device_wrote_in_the_rest() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut low = numbered(svm, 12, 100);
            increment_all(svm, &mut low);
            let high = low.split_off(8 * PAGE).unwrap();
            let middle = low.split_off(5 * PAGE).unwrap();
            let gone = middle.start().0;
            let before = svm.stats().pages_out;
            middle.unmap().unwrap();
            assert_eq!(svm.stats().pages_out, before, "what is unmapped is not copied");
            assert_eq!(words(&low), [101, 102, 103, 104, 105]);
            assert_eq!(words(&high), [109, 110, 111, 112]);
            let mut out = svm.heap().vec_zeroed::<u32>(6).unwrap();
            let error = gather(svm).launch([6, 1, 1]).read(low.as_slice()).write(&mut out[..]).run().unwrap_err();
            assert_eq!(fault(error), (FaultReason::Unmapped, gone));
        },
    );
}

#[test]
fn what_is_mapped_next_where_something_was_unmapped_is_zero() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            for round in 0..20 {
                let mut mapping = numbered(svm, 6, 1);
                let start = mapping.start();
                if round % 2 == 0 {
                    increment_all(svm, &mut mapping);
                }
                drop(mapping);
                let next = svm.map_as(&MapRequest::new(6 * PAGE as u64, Permission::ReadWrite).at(start)).unwrap();
                let mut out = svm.heap().vec_from_slice(&[7u32; 6]).unwrap();
                gather(svm).launch([6, 1, 1]).read(next.as_slice()).write(&mut out[..]).run().unwrap();
                assert_eq!(&out[..], [0; 6]);
                assert!(next.as_slice().iter().all(|&byte| byte == 0), "round {round}");
            }
        },
    );
}

#[test]
fn a_read_only_part_refuses_the_devices_stores_and_keeps_what_it_wrote_before() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut mapping = numbered(svm, 8, 10);
            increment_all(svm, &mut mapping);
            mapping.protect(2 * PAGE..4 * PAGE, Permission::ReadOnly).unwrap();
            assert!(matches!(mapping.as_mut_slice(), Err(OpError::ReadOnly { .. })));
            let refused = mapping.start().0 + 2 * PAGE as u64;
            let kernel = increment(svm);
            // SAFETY: the mapping lives, and nobody else uses it.
            let launch = unsafe { kernel.launch([8, 1, 1]).pointer(mapping.as_ptr()) }.run();
            assert_eq!(fault(launch.unwrap_err()), (FaultReason::ReadOnly, refused));
            let all = words(&mapping);
            assert_eq!(&all[2..4], [13, 14], "the failed launch changed read-only pages");
            // Reading goes on.
            let mut out = svm.heap().vec_zeroed::<u32>(8).unwrap();
            gather(svm).launch([8, 1, 1]).read(mapping.as_slice()).write(&mut out[..]).run().unwrap();
            assert_eq!(&out[..], all);
            // And with permission, writing.
            mapping.protect(0..8 * PAGE, Permission::ReadWrite).unwrap();
            increment_all(svm, &mut mapping);
            mapping.as_mut_slice().unwrap()[3 * PAGE + 8] = 1;
            assert_eq!(words(&mapping), all.iter().map(|word| word + 1).collect::<Vec<_>>());
        },
    );
}

#[test]
fn moving_takes_dirty_data_holes_and_permissions_along() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut mapping = numbered(svm, 8, 50);
            mapping.discard(5 * PAGE..6 * PAGE).unwrap();
            increment_all(svm, &mut mapping);
            mapping.protect(7 * PAGE..8 * PAGE, Permission::ReadOnly).unwrap();
            let mut part = mapping.split_off(2 * PAGE).unwrap();
            let old = part.start();
            part.move_to(None).unwrap();
            assert_ne!(part.start(), old);
            assert_eq!(words(&part), [53, 54, 55, 1, 57, 58]);
            assert_eq!(words(&mapping), [51, 52]);
            assert_eq!(svm.address_space().mapping_at(old), None);
            assert!(matches!(part.as_mut_slice(), Err(OpError::ReadOnly { .. })));
            let info = svm.heap().page_info(part.as_ptr()).unwrap();
            assert!(info.accessed && info.dirty, "the history moves along: {info:?}");
            part.protect(0..6 * PAGE, Permission::ReadWrite).unwrap();
            increment_all(svm, &mut part);
            part.move_to(Some(old)).unwrap();
            assert_eq!((part.start(), words(&part)), (old, vec![54, 55, 56, 2, 58, 59]));
        },
    );
}

#[test]
fn discarded_pages_read_as_zeros_on_both_sides_and_nothing_is_copied() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut mapping = numbered(svm, 6, 1);
            increment_all(svm, &mut mapping);
            let before = svm.stats().pages_out;
            mapping.discard(PAGE..3 * PAGE).unwrap();
            assert_eq!(svm.stats().pages_out, before);
            let mut out = svm.heap().vec_zeroed::<u32>(6).unwrap();
            gather(svm).launch([6, 1, 1]).read(mapping.as_slice()).write(&mut out[..]).run().unwrap();
            assert_eq!(&out[..], [2, 0, 0, 5, 6, 7]);
            assert_eq!(words(&mapping), [2, 0, 0, 5, 6, 7]);
        },
    );
}

#[test]
fn an_object_may_straddle_parts_of_one_mapping_but_not_two_mappings() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let body = |invocation: &mut SoftContext<'_>| {
                let [from, into] = invocation.arguments::<[u64; 2]>();
                let object: [u64; 4] = invocation.load(from);
                invocation.store(into, object);
            };
            // SAFETY: it reads 32 bytes and writes 32.
            let copy = unsafe { svm.soft_kernel("copy", [1, 1, 1], 16, body) }.unwrap();
            let mut first = svm.map(4 * PAGE, Permission::ReadWrite).unwrap();
            first.as_mut_slice().unwrap().fill(3);
            let behind = svm.map(PAGE, Permission::ReadWrite).unwrap();
            assert_eq!(behind.start().0, first.start().0 + 4 * PAGE as u64, "mapped side by side");
            first.protect(2 * PAGE..3 * PAGE, Permission::ReadOnly).unwrap();
            let mut out = svm.heap().boxed([0u64; 4]).unwrap();
            for page in 1..4 {
                // SAFETY: both mappings live.
                let at = unsafe { first.as_ptr().add(page * PAGE - 8) };
                // SAFETY: as above.
                unsafe { copy.launch([1, 1, 1]).pointer(at) }.write(&mut *out).run().unwrap();
                assert_eq!(*out, [0x0303_0303_0303_0303; 4]);
            }
            // SAFETY: as above.
            let at = unsafe { first.as_ptr().add(4 * PAGE - 8) };
            // SAFETY: as above.
            let error = unsafe { copy.launch([1, 1, 1]).pointer(at) }.write(&mut *out).run().unwrap_err();
            assert_eq!(fault(error).0, FaultReason::PastEnd);
        },
    );
}

#[test]
fn bad_spans_get_clear_errors_and_change_nothing() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let page = PAGE as u64;
            let space = svm.address_space();
            let refused = |bytes: u64, at: Option<vksvm::addr::VirtAddr>| {
                let request = MapRequest::new(bytes, Permission::ReadWrite);
                space.map_span(&at.map_or(request.clone(), |at| request.at(at))).unwrap_err()
            };
            let mut mapping = numbered(svm, 4, 20);
            let neighbour = numbered(svm, 2, 30);
            let start = mapping.start();
            let vmas = || space.vmas().read().iter().map(|vma| (vma.range, vma.permission())).collect::<Vec<_>>();
            let before = vmas();

            assert!(matches!(refused(0, None), OpError::Empty { .. }));
            assert!(matches!(refused(page + 1, None), OpError::Unaligned { .. }));
            assert!(matches!(refused(1 << 40, None), OpError::NoRoom { .. }));
            assert!(matches!(refused(!(page - 1), None), OpError::NoRoom { .. }));
            assert!(matches!(refused(page, Some(start)), OpError::Overlap { .. }));
            assert!(matches!(refused(page, Some(vksvm::addr::VirtAddr(page))), OpError::OutsideHeap { .. }));
            assert!(matches!(refused(!(page - 1), Some(start)), OpError::OutsideHeap { .. }));
            let coarse = MapRequest::new(page, Permission::ReadWrite).align(3 * page);
            assert!(matches!(space.map_span(&coarse), Err(OpError::Alignment { .. })));

            assert!(matches!(mapping.protect(0..0, Permission::ReadOnly), Err(OpError::Empty { .. })));
            assert!(matches!(mapping.protect(1..PAGE, Permission::ReadOnly), Err(OpError::Unaligned { .. })));
            assert!(matches!(mapping.protect(0..5 * PAGE, Permission::ReadOnly), Err(OpError::Unmapped { .. })));
            #[allow(clippy::reversed_empty_ranges, reason = "that is what is tested")]
            let backwards = 2 * PAGE..PAGE;
            assert!(matches!(mapping.discard(backwards), Err(OpError::Empty { .. })));
            assert!(matches!(mapping.discard(PAGE..usize::MAX), Err(OpError::Unmapped { .. })));
            assert!(matches!(mapping.split_off(0), Err(OpError::Empty { .. })));
            assert!(matches!(mapping.split_off(4 * PAGE), Err(OpError::Empty { .. })));
            assert!(matches!(mapping.split_off(PAGE + 4), Err(OpError::Unaligned { .. })));
            assert!(matches!(mapping.split_off(usize::MAX), Err(OpError::Empty { .. })));
            assert!(matches!(mapping.move_to(Some(neighbour.start())), Err(OpError::Overlap { .. })));
            let inside = vksvm::addr::VirtAddr(start.0 + page);
            assert!(matches!(mapping.move_to(Some(inside)), Err(OpError::Overlap { .. })));
            assert!(matches!(
                mapping.move_to(Some(vksvm::addr::VirtAddr(start.0 + 1))),
                Err(OpError::Unaligned { .. })
            ));

            let heap = svm.heap().vec_zeroed::<u8>(1 << 20).unwrap();
            let theirs = vksvm::mm::ops::Span { start: vksvm::addr::VirtAddr(heap.as_ptr() as u64), bytes: page };
            assert!(matches!(space.protect_span(theirs, Permission::ReadOnly), Err(OpError::Allocator { .. })));
            // SAFETY: refused.
            assert!(matches!(unsafe { space.unmap_span(theirs) }, Err(OpError::Allocator { .. })));
            drop(heap);
            // SAFETY: refused.
            assert!(matches!(unsafe { space.unmap_span(theirs) }, Err(OpError::Unmapped { .. })));

            assert_eq!(vmas(), before);
            assert_eq!((words(&mapping), words(&neighbour)), (vec![20, 21, 22, 23], vec![30, 31]));
        },
    );
}

#[test]
fn a_mapping_outlives_its_runtime() {
    for tracker in trackers() {
        let svm = soft(tracker, |builder| builder).unwrap();
        let mut mapping = numbered(&svm, 4, 1);
        increment_all(&svm, &mut mapping);
        drop(svm);
        assert_eq!(words(&mapping), [2, 3, 4, 5]);
        mapping.move_to(None).unwrap();
        mapping.as_mut_slice().unwrap()[0] = 0;
        mapping.unmap().unwrap();
    }
}

/// Runs `touch` in a process of its own under each tracker; it must die of a SIGSEGV.
fn dies(test: &str, touch: impl Fn(&Svm)) {
    const MARK: &str = "VKSVM_OPS_TEST_TRACKER";
    if let Ok(tracker) = std::env::var(MARK) {
        touch(&soft(tracker.parse().unwrap(), |builder| builder).unwrap());
        println!("survived");
        std::process::exit(0);
    }
    for tracker in trackers() {
        // Under a runner the current executable is a dynamic loader.
        let again: Vec<_> = match std::env::var_os("VKSVM_RUNNER") {
            Some(runner) => vec![runner, std::env::args_os().next().unwrap()],
            None => vec![std::env::current_exe().unwrap().into_os_string()],
        };
        let child = std::process::Command::new(&again[0])
            .args(&again[1..])
            .args([test, "--exact", "--nocapture"])
            .env(MARK, tracker.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert_eq!(child.status.signal(), Some(SIGSEGV), "{tracker}: {:?} {said}", child.status);
        assert!(said.contains("now"), "died too early: {said}");
    }
}

fn store(at: *mut u8) {
    println!("now");
    // SAFETY: the process is expected to end here, by a signal.
    unsafe { at.write_volatile(1) };
}

#[test]
fn a_cpu_store_to_a_read_only_mapping_is_a_segmentation_fault() {
    dies("a_cpu_store_to_a_read_only_mapping_is_a_segmentation_fault", |svm| {
        let mapping = svm.map(PAGE, Permission::ReadOnly).unwrap();
        assert_eq!(mapping.as_slice()[0], 0);
        store(mapping.as_ptr());
    });
}

#[test]
fn a_cpu_store_to_what_became_read_only_is_a_segmentation_fault() {
    dies("a_cpu_store_to_what_became_read_only_is_a_segmentation_fault", |svm| {
        let mut mapping = numbered(svm, 3, 1);
        increment_all(svm, &mut mapping);
        mapping.protect(PAGE..2 * PAGE, Permission::ReadOnly).unwrap();
        assert_eq!(words(&mapping), [2, 3, 4]);
        // SAFETY: the first and the last page may be written.
        unsafe { mapping.as_ptr().add(2 * PAGE).write_volatile(1) };
        // SAFETY: in bounds.
        store(unsafe { mapping.as_ptr().add(PAGE) });
    });
}

#[test]
fn a_cpu_touch_of_what_was_unmapped_is_a_segmentation_fault() {
    dies("a_cpu_touch_of_what_was_unmapped_is_a_segmentation_fault", |svm| {
        let mut mapping = numbered(svm, 3, 1);
        let at = mapping.as_ptr();
        let kept = mapping.split_off(2 * PAGE).unwrap();
        drop(mapping);
        assert_eq!(words(&kept), [3]);
        store(at);
    });
}

#[test]
fn a_cpu_touch_of_where_something_was_moved_from_is_a_segmentation_fault() {
    dies("a_cpu_touch_of_where_something_was_moved_from_is_a_segmentation_fault", |svm| {
        let mut mapping = numbered(svm, 3, 1);
        let at = mapping.as_ptr();
        mapping.move_to(None).unwrap();
        assert_eq!(words(&mapping), [1, 2, 3]);
        store(at);
    });
}
