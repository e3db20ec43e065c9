//! The races that have bitten others, by their numbers in the project's list, where they need memory and a device. Those of the
//! range protocol alone are in `hmm/races.rs`.
//!
//! Kernels here are Rust functions that stop where the test wants them to, so that each race happens in the order that hurts.
//! Where naive code cannot be had by breaking a rule, the test shows the moment at which it would have gone wrong.

mod common;

use common::{soft, trackers, with_each_tracker};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use vksvm::addr::{PageRange, VirtAddr};
use vksvm::device::soft::{SoftContext, SoftOptions};
use vksvm::hmm::{Blocking, Event, PageEntry};
use vksvm::kernel::FaultReason;
use vksvm::{Kernel, LaunchError, MapRequest, Mapping, Permission, Svm};

const PAGE: usize = 4096;
const A_MOMENT: Duration = Duration::from_millis(20);

/// Copies the first word of each page of one array into another array.
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

/// Sets the first word of each page to what it is launched with.
fn fill(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [at, value] = invocation.arguments::<[u64; 2]>();
        invocation.store(at + PAGE as u64 * u64::from(invocation.global_id()[0]), value as u32);
    };
    // SAFETY: it changes the pages it is launched with.
    unsafe { svm.soft_kernel("fill", [1, 1, 1], 16, body) }.unwrap()
}

/// A place where a kernel waits for the test.
#[derive(Default)]
struct Meeting {
    arrived: AtomicU32,
    open: AtomicBool,
}

impl Meeting {
    /// The kernel's side. Everybody passes once it is open.
    fn stop_here(&self) {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        wait_for(|| self.open.load(Ordering::SeqCst));
    }

    /// The test's side: returns when a kernel stands there.
    fn wait(&self) {
        wait_for(|| self.arrived.load(Ordering::SeqCst) > 0);
    }

    fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }
}

fn wait_for(condition: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < until, "nobody came");
        thread::sleep(Duration::from_micros(100));
    }
}

fn device_entry(svm: &Svm, at: VirtAddr) -> PageEntry {
    let page = svm.address_space().home().views.page_of(at).unwrap();
    let mut entries = Vec::new();
    svm.device_mappings(PageRange::single(page), &mut entries);
    entries[0]
}

fn first_word(mapping: &Mapping) -> u32 {
    u32::from_ne_bytes(mapping.as_slice()[..4].try_into().unwrap())
}

#[test]
fn race_07_a_cpu_write_takes_the_zero_frame_away_from_a_device_that_reads_it() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut mapping = svm.map(PAGE, Permission::ReadWrite).unwrap();
            let mut out = svm.heap().vec_from_slice(&[7u32]).unwrap();
            let read = gather(svm);
            for round in 1..50u32 {
                read.launch([1, 1, 1]).read(mapping.as_slice()).write(&mut out[..]).run().unwrap();
                assert_eq!(out[0], if round == 1 { 0 } else { round - 1 });
                let entry = device_entry(svm, mapping.start());
                assert!(entry.valid && !entry.write, "the device would read on through this: {entry:?}");
                mapping.as_mut_slice().unwrap()[..4].copy_from_slice(&round.to_ne_bytes());
                assert!(!device_entry(svm, mapping.start()).valid);
            }
        },
    );
}

#[test]
fn race_07_a_device_that_reads_while_the_cpu_writes_never_reads_what_was_overwritten_before_its_launch() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let pages = 16;
            let mapping = svm.map(pages * PAGE, Permission::ReadWrite).unwrap();
            let mut out = svm.heap().vec_zeroed::<u32>(pages).unwrap();
            let read = gather(svm);
            let word = |page: usize| {
                // SAFETY: atomics only, in bounds; the mapping outlives the threads.
                unsafe { AtomicU32::from_ptr(mapping.as_ptr().add(page * PAGE).cast()) }
            };
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    for round in 1.. {
                        (0..pages).for_each(|page| word(page).store(round, Ordering::SeqCst));
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        thread::sleep(Duration::from_micros(50));
                    }
                });
                for _ in 0..200 {
                    let before: Vec<u32> = (0..pages).map(|page| word(page).load(Ordering::SeqCst)).collect();
                    read.launch([pages as u32, 1, 1]).read(mapping.as_slice()).write(&mut out[..]).run().unwrap();
                    assert!(out.iter().zip(&before).all(|(seen, before)| seen >= before), "{out:?} after {before:?}");
                }
                stop.store(true, Ordering::Relaxed);
            });
        },
    );
}

#[test]
fn race_08_a_fault_service_that_was_overtaken_by_unmap_and_map_maps_nothing() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let space = svm.address_space();
            let mapping = svm.map(4 * PAGE, Permission::ReadWrite).unwrap();
            let start = mapping.start();
            let span = space.home().views.page_of(start).map(|page| PageRange::of_len(page, 4)).unwrap();
            let store = fill(svm);
            let ids = || space.vmas().read().find(span.start).map(|vma| (vma.id, vma.range, vma.permission())).unwrap();
            let before = ids();
            // The service has sorted its faults by VMA when it waits for this to end.
            let bracket = space.notifiers().invalidate(span, Event::SoftDirty, None, Blocking::Yes).unwrap();
            let next = thread::scope(|scope| {
                let start = start.0;
                let store = &store;
                let launch = scope.spawn(move || {
                    let at = VirtAddr(start).as_ptr();
                    // SAFETY: what it reaches may be unmapped meanwhile; that is what is tested.
                    unsafe { store.launch([4, 1, 1]).pointer(at) }.value(5u64).run()
                });
                thread::sleep(A_MOMENT);
                mapping.unmap().unwrap();
                let next =
                    svm.map_as(&MapRequest::new(4 * PAGE as u64, Permission::ReadWrite).at(VirtAddr(start))).unwrap();
                let after = ids();
                assert_eq!((before.1, before.2), (after.1, after.2), "range and permission tell nothing");
                assert_ne!(before.0, after.0, "the generation does");
                assert!(!launch.is_finished());
                // To be seen: what the service does for the old mapping, and nothing else. Read-only, so that the kernel
                // cannot simply write the new one when it asks again.
                space.protect_span(space.span_of(span), Permission::ReadOnly).unwrap();
                drop(bracket);
                assert!(matches!(launch.join().unwrap(), Err(LaunchError::Fault(_))));
                next
            });
            assert!(!device_entry(svm, start).write);
            assert!(next.as_slice().iter().all(|&byte| byte == 0));
        },
    );
}

#[test]
fn race_08_a_fault_service_that_was_overtaken_by_a_protection_gives_no_permission() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let space = svm.address_space();
            let mut mapping = svm.map(4 * PAGE, Permission::ReadWrite).unwrap();
            let span = space.home().views.page_of(mapping.start()).map(|page| PageRange::of_len(page, 4)).unwrap();
            let store = fill(svm);
            let bracket = space.notifiers().invalidate(span, Event::SoftDirty, None, Blocking::Yes).unwrap();
            thread::scope(|scope| {
                let (start, store) = (mapping.start(), &store);
                let launch = scope.spawn(move || {
                    // SAFETY: it lives, and nobody else looks at its contents now.
                    unsafe { store.launch([4, 1, 1]).pointer(start.as_ptr()) }.value(5u64).run()
                });
                thread::sleep(A_MOMENT);
                // The VMA keeps its id: all of it changes.
                mapping.protect(0..4 * PAGE, Permission::ReadOnly).unwrap();
                drop(bracket);
                match launch.join().unwrap() {
                    Err(LaunchError::Fault(fault)) => assert_eq!(fault.reason, FaultReason::ReadOnly),
                    other => panic!("{other:?}"),
                }
            });
            assert!(!device_entry(svm, mapping.start()).write);
            assert!(mapping.as_slice().iter().all(|&byte| byte == 0));
        },
    );
}

#[test]
fn race_08_nothing_is_written_back_into_what_is_mapped_next() {
    with_each_tracker(
        |builder| builder.frames(24),
        |svm| {
            let store = fill(svm);
            let stop = AtomicBool::new(false);
            let place = Mutex::new(svm.map(8 * PAGE, Permission::ReadWrite).unwrap().start());
            let (mut ended, mut faulted) = (0, 0);
            thread::scope(|scope| {
                let (stop, place) = (&stop, &place);
                scope.spawn(move || {
                    for round in 0..300 {
                        let at = *place.lock().unwrap();
                        let size = 8 * PAGE as u64;
                        let mapping = svm.map_as(&MapRequest::new(size, Permission::ReadWrite).at(at)).unwrap();
                        thread::sleep(Duration::from_micros(100 * (round % 7)));
                        mapping.unmap().unwrap();
                        // Kernels that are under way may have dirty frames of the old mapping, not of this one.
                        let next = svm.map_as(&MapRequest::new(size, Permission::ReadOnly).at(at)).unwrap();
                        for _ in 0..3 {
                            assert!(next.as_slice().iter().step_by(512).all(|&byte| byte == 0), "round {round}");
                            thread::sleep(Duration::from_micros(50));
                        }
                        drop(next);
                    }
                    stop.store(true, Ordering::Relaxed);
                });
                while !stop.load(Ordering::Relaxed) {
                    let at = place.lock().unwrap().as_ptr();
                    // SAFETY: what it reaches may be unmapped meanwhile; that is what is tested.
                    match unsafe { store.launch([8, 1, 1]).pointer(at) }.value(u64::MAX).run() {
                        Ok(_) => ended += 1,
                        Err(LaunchError::Fault(_) | LaunchError::NotAllocated { .. }) => faulted += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
            });
            println!("{ended} launches ended, {faulted} found nothing to write to");
            assert!(ended > 0 && faulted > 0, "{ended} ended, {faulted} faulted");
        },
    );
}

#[test]
fn race_09_launches_operations_and_runtimes_that_come_and_go_do_not_deadlock() {
    for tracker in trackers() {
        let (done, all_done) = channel();
        let worker = thread::spawn(move || {
            let svm = soft(tracker, |builder| builder.frames(32)).unwrap();
            let until = Instant::now() + Duration::from_millis(700);
            let mut shared = svm.heap().vec_zeroed::<u8>(16 * PAGE).unwrap();
            let cells = shared.as_ptr().addr();
            thread::scope(|scope| {
                let svm = &svm;
                // A device that works, and whose data the CPU and the other device take away.
                scope.spawn(move || {
                    let store = fill(svm);
                    while Instant::now() < until {
                        // SAFETY: races with the other threads' accesses are of no interest, nobody looks at the values.
                        unsafe { store.launch([16, 1, 1]).pointer(VirtAddr(cells as u64).as_ptr()) }
                            .value(1u64)
                            .run()
                            .unwrap();
                    }
                });
                // Unmapping, protecting, moving: invalidations that wait for devices.
                scope.spawn(move || {
                    let store = fill(svm);
                    while Instant::now() < until {
                        let mut mapping = svm.map(8 * PAGE, Permission::ReadWrite).unwrap();
                        store.launch([8, 1, 1]).write(mapping.as_mut_slice().unwrap()).value(2u64).run().unwrap();
                        mapping.protect(0..4 * PAGE, Permission::ReadOnly).unwrap();
                        mapping.move_to(None).unwrap();
                        assert_eq!(first_word(&mapping), 2);
                        drop(mapping);
                    }
                });
                // Mirrors that register, migrate and unregister: fewer than a heap has numbers for.
                scope.spawn(move || {
                    for _ in (0..200).take_while(|_| Instant::now() < until) {
                        let soft = SoftOptions::default();
                        let other = Svm::builder().soft_device(soft).frames(32).share_heap_with(svm).build().unwrap();
                        let store = fill(&other);
                        // SAFETY: as above.
                        unsafe { store.launch([16, 1, 1]).pointer(VirtAddr(cells as u64).as_ptr()) }
                            .value(3u64)
                            .run()
                            .unwrap();
                    }
                });
                // The CPU.
                scope.spawn(move || {
                    while Instant::now() < until {
                        for page in 0..16 {
                            let at = VirtAddr((cells + page * PAGE) as u64).as_ptr().cast();
                            // SAFETY: in bounds; an atomic.
                            unsafe { AtomicU32::from_ptr(at) }.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            });
            shared[0] = 0;
            drop(shared);
            done.send(()).unwrap();
        });
        let ended = all_done.recv_timeout(Duration::from_secs(60));
        assert!(ended.is_ok() || worker.is_finished(), "deadlock with {tracker}");
        worker.join().unwrap();
    }
}

#[test]
fn race_10_a_frame_is_not_given_to_another_page_while_a_kernel_still_uses_it() {
    with_each_tracker(
        |builder| builder.frames(16),
        |svm| {
            let meeting = Arc::new(Meeting::default());
            let side = meeting.clone();
            let body = move |invocation: &mut SoftContext<'_>| {
                let [first, other] = invocation.arguments::<[u64; 2]>();
                // Translated before the page is taken away; used again after.
                let before: u32 = invocation.load(first);
                if !invocation.poisoned() {
                    side.stop_here();
                }
                let after: u32 = invocation.load(first);
                let _: u32 = invocation.load(other);
                assert!(invocation.poisoned() || before == after, "the frame became another page's: {before} {after}");
            };
            // SAFETY: it reads two words.
            let kernel = unsafe { svm.soft_kernel("look twice", [1, 1, 1], 16, body) }.unwrap().idempotent();
            let victim = svm.heap().vec_from_slice(&[1u32; PAGE / 4]).unwrap();
            let other = svm.heap().vec_from_slice(&[2u32; 64 * PAGE / 4]).unwrap();
            // SAFETY: in bounds; an atomic; the kernel's accesses to it are what is tested.
            let cell = unsafe { AtomicU32::from_ptr(victim.as_ptr().cast_mut()) };
            let taken = AtomicBool::new(false);
            thread::scope(|scope| {
                let launch = scope.spawn(|| {
                    // SAFETY: both live; the race is what is tested.
                    unsafe { kernel.launch([1, 1, 1]).pointer(victim.as_ptr()).pointer(other.as_ptr()) }.run()
                });
                meeting.wait();
                // The CPU takes the page away while the kernel holds its translation: it has to wait.
                let writer = scope.spawn(|| {
                    cell.store(9, Ordering::SeqCst);
                    taken.store(true, Ordering::SeqCst);
                });
                thread::sleep(A_MOMENT);
                assert!(!taken.load(Ordering::SeqCst), "the page was taken from under the kernel");
                meeting.open();
                launch.join().unwrap().unwrap();
                writer.join().unwrap();
            });
            // Its frame serves others now, which have their own contents.
            let mut out = svm.heap().vec_zeroed::<u32>(64).unwrap();
            gather(svm).launch([64, 1, 1]).read(&other[..]).write(&mut out[..]).run().unwrap();
            assert!(out.iter().all(|&word| word == 2));
            assert_eq!(victim[0], 9);
        },
    );
}

#[test]
fn a_drivers_thread_that_strays_is_let_through_while_another_fault_waits_for_its_dispatch() {
    for tracker in trackers() {
        let (done, all_done) = channel();
        let worker = thread::spawn(move || {
            let svm = soft(tracker, |builder| builder).unwrap();
            let mapping = svm.map(2 * PAGE, Permission::ReadWrite).unwrap();
            let store = fill(&svm);
            // SAFETY: it lives, and nobody looks at it now.
            unsafe { store.launch([2, 1, 1]).pointer(mapping.as_ptr()) }.value(6u64).run().unwrap();
            let meeting = Arc::new(Meeting::default());
            let side = meeting.clone();
            let body = move |invocation: &mut SoftContext<'_>| {
                let [at] = invocation.arguments::<[u64; 1]>();
                side.stop_here();
                // SAFETY: mapped in the app view; that it is not translated is what is tested.
                let _ = unsafe { VirtAddr(at + PAGE as u64).as_ptr().cast::<u32>().read_volatile() };
            };
            // SAFETY: as above.
            let stray = unsafe { svm.soft_kernel("stray", [1, 1, 1], 8, body) }.unwrap().idempotent();
            thread::scope(|scope| {
                let launch = scope.spawn(|| {
                    // SAFETY: it lives.
                    unsafe { stray.launch([1, 1, 1]).pointer(mapping.as_ptr()) }.run()
                });
                meeting.wait();
                // Each has a page of the device's brought home, for which the dispatch has to end: more of them than threads that may wait.
                let readers = [(); 8].map(|()| scope.spawn(|| first_word(&mapping)));
                thread::sleep(A_MOMENT);
                meeting.open();
                assert!(matches!(launch.join().unwrap(), Err(LaunchError::Untranslated { .. })));
                readers.into_iter().for_each(|reader| assert_eq!(reader.join().unwrap(), 6));
            });
            done.send(()).unwrap();
        });
        let ended = all_done.recv_timeout(Duration::from_secs(60));
        assert!(ended.is_ok() || worker.is_finished(), "deadlock with {tracker}");
        worker.join().unwrap();
    }
}

#[test]
fn race_11_what_a_kernel_writes_after_its_page_was_asked_for_comes_home() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let meeting = Arc::new(Meeting::default());
            let side = meeting.clone();
            let runs = AtomicU32::new(0);
            let body = move |invocation: &mut SoftContext<'_>| {
                let at = invocation.arguments::<u64>();
                // A first probe misses the page, a second does not, the third is the real run.
                if runs.fetch_add(1, Ordering::SeqCst) == 2 {
                    side.stop_here();
                }
                invocation.store(at, 1u32);
            };
            // SAFETY: it stores one word.
            let kernel = unsafe { svm.soft_kernel("late store", [1, 1, 1], 8, body) }.unwrap();
            let mapping = svm.map(PAGE, Permission::ReadWrite).unwrap();
            thread::scope(|scope| {
                let launch = scope.spawn(|| {
                    // SAFETY: it lives; the race is what is tested.
                    unsafe { kernel.launch([1, 1, 1]).pointer(mapping.as_ptr()) }.run()
                });
                meeting.wait();
                // The CPU asks for the page while the kernel is on its way to the store.
                let reader = scope.spawn(|| first_word(&mapping));
                thread::sleep(A_MOMENT);
                let entry = device_entry(svm, mapping.start());
                assert!(entry.write && !entry.dirty, "collected now, the store would be lost: {entry:?}");
                assert!(!reader.is_finished());
                meeting.open();
                launch.join().unwrap().unwrap();
                assert_eq!(reader.join().unwrap(), 1);
            });
            assert!(svm.heap().page_info(mapping.as_ptr()).unwrap().dirty, "the dirty bit came home too");
        },
    );
}
