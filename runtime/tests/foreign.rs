//! Heap memory that the program unmaps, moves or drops by system calls of its own. What unmaps runs in a process of its own: other
//! threads of a test process might map something into the holes.

mod common;

use common::{passed_in_own_process, soft, trackers, with_each_tracker};
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mremap_fixed, munmap};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use vksvm::addr::VirtAddr;
use vksvm::device::soft::SoftOptions;
use vksvm::device::{CommandError, Commands, Seen};
use vksvm::mm::ops::Span;
use vksvm::{MapRequest, Mapping, OpError, Permission, Svm, TrackerKind};

const PAGE: usize = 4096;

/// A runtime whose tracker notices such calls, if there is one.
fn noticing() -> Option<Svm> {
    let kind = trackers().into_iter().find(|&kind| kind == TrackerKind::Userfaultfd);
    kind.map(|kind| soft(kind, |builder| builder).unwrap())
}

fn commands(svm: &Svm) -> Commands {
    Commands::soft(svm, SoftOptions::default(), 128).unwrap()
}

/// Pages whose first byte is their number, from one, written by the device.
fn on_device(svm: &Svm, device: &Commands, pages: usize) -> Mapping {
    let mapping = svm.map(pages * PAGE, Permission::ReadWrite).unwrap();
    (0..pages).for_each(|page| device.write(at(&mapping, page), &[page as u8 + 1]).unwrap());
    mapping
}

fn at(mapping: &Mapping, page: usize) -> VirtAddr {
    VirtAddr(mapping.start().0 + (page * PAGE) as u64)
}

fn byte(at: VirtAddr) -> u8 {
    // SAFETY: the tests pass what is mapped.
    unsafe { at.as_ptr().read_volatile() }
}

/// Waits until the device sees `pages` from `at` on as unmapped.
fn wait_until_unmapped(device: &Commands, at: VirtAddr, pages: usize) {
    let started = Instant::now();
    let span = Span { start: at, bytes: (pages * PAGE) as u64 };
    while !device.snapshot(span).unwrap().iter().all(|&seen| seen == Seen::Unmapped) {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", device.snapshot(span));
        thread::yield_now();
    }
}

#[test]
fn what_the_program_unmaps_is_taken_from_devices_and_its_addresses_are_not_used_again() {
    if passed_in_own_process("what_the_program_unmaps_is_taken_from_devices_and_its_addresses_are_not_used_again") {
        return;
    }
    let Some(svm) = noticing() else { return };
    let device = commands(&svm);
    let mapping = on_device(&svm, &device, 6);
    let lost = at(&mapping, 2);
    // SAFETY: the mapping is this test's; only its other pages are used from here on.
    let foreign = unsafe {
        munmap(lost.as_ptr().cast(), 2 * PAGE).unwrap();
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        mmap_anonymous(lost.as_ptr().cast(), PAGE, ProtFlags::READ | ProtFlags::WRITE, flags).unwrap().cast::<u8>()
    };
    // SAFETY: just mapped.
    unsafe { foreign.write_bytes(7, PAGE) };
    wait_until_unmapped(&device, lost, 2);

    let refused = device.read(lost, &mut [0]);
    assert!(matches!(refused, Err(CommandError::Refused { .. })), "{refused:?}");
    assert_eq!([0, 1, 4, 5].map(|page| byte(at(&mapping, page))), [1, 2, 5, 6]);
    device.release();
    let again = svm.map_as(&MapRequest::new(PAGE as u64, Permission::ReadWrite).at(lost));
    assert!(matches!(again, Err(OpError::Overlap { .. })), "{again:?}");
    drop(mapping);
    assert_eq!(svm.address_space().vmas().read().iter().filter(|vma| vma.kind().is_mapping()).count(), 0);
    let others: Vec<_> = (0..8).map(|_| on_device(&svm, &device, 5)).collect();
    assert!(
        others
            .iter()
            .all(|other| other.start().0 + 5 * PAGE as u64 <= lost.0 || other.start().0 > lost.0 + PAGE as u64)
    );
    drop((others, device));
    // SAFETY: mapped above.
    unsafe { assert!((0..PAGE).all(|byte| foreign.add(byte).read_volatile() == 7)) };
}

#[test]
fn what_the_program_moves_has_what_the_device_wrote() {
    if passed_in_own_process("what_the_program_moves_has_what_the_device_wrote") {
        return;
    }
    let Some(svm) = noticing() else { return };
    let device = commands(&svm);
    let mapping = on_device(&svm, &device, 4);
    // SAFETY: the mapping is this test's; its second and third page are used where they are moved to.
    let there = unsafe {
        let room = mmap_anonymous(null_mut(), 2 * PAGE, ProtFlags::empty(), MapFlags::PRIVATE).unwrap();
        let from = at(&mapping, 1).as_ptr().cast();
        mremap_fixed(from, 2 * PAGE, 2 * PAGE, MremapFlags::MAYMOVE, room).unwrap()
    };
    let there = VirtAddr::of(there.cast::<u8>());
    assert_eq!((byte(there), byte(VirtAddr(there.0 + PAGE as u64))), (2, 3), "touches wait until it is home");
    wait_until_unmapped(&device, at(&mapping, 1), 2);
    device.write(at(&mapping, 0), &[9]).unwrap();
    // SAFETY: moved there, and this test's.
    unsafe { there.as_ptr().write_volatile(5) };
    assert_eq!((byte(there), byte(at(&mapping, 0)), byte(at(&mapping, 3))), (5, 9, 4));
}

#[test]
fn unmapping_page_by_page_under_a_device_and_the_cpu_at_work_blocks_nobody() {
    if passed_in_own_process("unmapping_page_by_page_under_a_device_and_the_cpu_at_work_blocks_nobody") {
        return;
    }
    let Some(svm) = noticing() else { return };
    let (device, other) = (commands(&svm), commands(&svm));
    let (prey, kept) = (on_device(&svm, &device, 64), on_device(&svm, &device, 8));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (prey, kept, done, device, other) = (&prey, &kept, &done, &device, &other);
        for (number, worker) in [device, other].into_iter().enumerate() {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for page in 0..64 {
                        // It may be gone.
                        let _ = worker.write(at(prey, page), &[1]);
                        worker.write(at(kept, page % 8), &[number as u8 + 1]).unwrap();
                    }
                }
            });
        }
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                assert!((0..8).all(|page| byte(at(kept, page)) <= 8));
            }
        });
        for page in 0..64 {
            thread::sleep(Duration::from_micros(300));
            // SAFETY: no CPU thread uses that mapping.
            unsafe { munmap(at(prey, page).as_ptr().cast(), PAGE) }.unwrap();
        }
        wait_until_unmapped(device, prey.start(), 64);
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn dropping_entries_of_the_app_view_changes_nothing() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let device = commands(svm);
            let mut mapping = svm.map(4 * PAGE, Permission::ReadWrite).unwrap();
            mapping.as_mut_slice().unwrap().chunks_mut(PAGE).for_each(|page| page[0] = 1);
            device.read(at(&mapping, 1), &mut [0]).unwrap();
            device.write(at(&mapping, 2), &[3]).unwrap();
            let before = device.snapshot(Span { start: mapping.start(), bytes: 4 * PAGE as u64 }).unwrap();
            // SAFETY: of a shared mapping this drops entries, no contents.
            unsafe { madvise(mapping.as_ptr().cast(), 4 * PAGE, Advice::LinuxDontNeed) }.unwrap();
            assert_eq!(device.snapshot(Span { start: mapping.start(), bytes: 4 * PAGE as u64 }).unwrap(), before);
            assert_eq!([0, 1, 2, 3].map(|page| byte(at(&mapping, page))), [1, 1, 3, 1]);
            mapping.as_mut_slice().unwrap()[PAGE] = 2;
            let mut seen = [0];
            device.read(at(&mapping, 1), &mut seen).unwrap();
            assert_eq!(seen, [2], "a store after the drop is still noticed");
        },
    );
}
