//! What the program does to the app view by calls of its own: noticed with userfaultfd, each in a process of its own, since
//! other threads of a test process might map something into the holes.

use super::fixture::{Case, Tracked, map_as_needed, page, pages};
use crate::addr::PAGE_SIZE;
use crate::track::Protection::ReadWrite;
use crate::track::{ForeignChange, TrackerOptions};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, mremap_fixed, munmap};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

super::for_each_tracker! { @kind userfaultfd Userfaultfd
    what_was_unmapped_is_reported_and_never_touched_again,
    what_was_mapped_over_is_reported,
    moved_memory_waits_until_the_change_was_followed_and_is_then_free,
    memory_that_grew_while_it_moved_does_not_hang,
    unmapping_waits_for_no_handler_and_keeps_no_operation_waiting,
    stopping_frees_those_who_unmap
}

const A_MOMENT: Duration = Duration::from_millis(20);

/// Watches eight pages, and the changes reported.
fn watched(case: Case) -> (Tracked, Receiver<ForeignChange>) {
    let t = Tracked::watching(case, 8);
    let (report, changes) = channel();
    let report = Mutex::new(report);
    let set = t.handler.follow.set(Box::new(move |change| report.lock().unwrap().send(change).unwrap()));
    assert!(set.is_ok());
    (t, changes)
}

fn next(changes: &Receiver<ForeignChange>) -> ForeignChange {
    changes.recv_timeout(Duration::from_secs(10)).expect("the change is noticed")
}

/// Unmaps pages of the app view behind the tracker's back.
fn unmap(t: &Tracked, from: u32, to: u32) {
    // SAFETY: the test's own memory, which nobody uses.
    unsafe { munmap(t.memory.app(from).cast(), (to - from) as usize * PAGE_SIZE) }.unwrap();
}

fn passed(case: Case) -> bool {
    let Some(output) = case.in_own_process() else { return false };
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    true
}

/// Memory of somebody else at the address of `page`, full of sevens.
fn somebody_elses(t: &Tracked, page: u32) -> *mut u64 {
    let at = t.memory.app(page);
    let flags = MapFlags::PRIVATE | MapFlags::FIXED;
    // SAFETY: nothing else is there, or what is there is the test's.
    unsafe {
        mmap_anonymous(at.cast(), PAGE_SIZE, ProtFlags::READ | ProtFlags::WRITE, flags).unwrap();
        at.write_volatile(7);
    }
    at
}

fn what_was_unmapped_is_reported_and_never_touched_again(case: Case) {
    if passed(case) {
        return;
    }
    let (t, changes) = watched(case);
    (0..8).for_each(|n| t.memory.store(n, 1));
    unmap(&t, 2, 4);
    assert_eq!(next(&changes), ForeignChange::Unmapped(pages(2, 4)));
    let foreign = somebody_elses(&t, 2);

    t.take_faults();
    t.tracker.unmap(pages(0, 8)).unwrap();
    t.tracker.watch(pages(0, 8)).unwrap();
    t.tracker.write_protect(pages(1, 4)).unwrap();
    // SAFETY: mapped above.
    unsafe {
        assert_eq!(foreign.read_volatile(), 7, "it was dropped");
        foreign.write_volatile(8);
    }
    assert_eq!((t.memory.load(1), t.memory.load(4)), (1, 1));
    t.tracker.map(pages(0, 8), ReadWrite).unwrap();
    t.memory.store(1, 2);
    assert_eq!(t.take_faults().iter().map(|fault| fault.0).collect::<Vec<_>>(), [1, 4]);
    t.tracker.stop();
    // SAFETY: as above.
    assert_eq!(unsafe { foreign.read_volatile() }, 8);
}

fn what_was_mapped_over_is_reported(case: Case) {
    if passed(case) {
        return;
    }
    let (t, changes) = watched(case);
    t.memory.store(5, 1);
    let foreign = somebody_elses(&t, 5);
    assert_eq!(next(&changes), ForeignChange::Unmapped(page(5)));
    t.tracker.unmap(pages(0, 8)).unwrap();
    // SAFETY: mapped above.
    assert_eq!(unsafe { foreign.read_volatile() }, 7);
    assert_eq!(t.memory.load_alias(5), 1, "the contents are the handler's to give back");
}

fn moved_memory_waits_until_the_change_was_followed_and_is_then_free(case: Case) {
    if passed(case) {
        return;
    }
    let t = Tracked::watching(case, 8);
    t.memory.store_alias(1, 3);
    t.tracker.unmap(pages(0, 8)).unwrap();
    // What a device wrote comes home while the change is followed.
    let home = t.memory.alias(1) as usize;
    let (report, changes) = channel();
    let report = Mutex::new(report);
    let set = t.handler.follow.set(Box::new(move |change| {
        report.lock().unwrap().send(change).unwrap();
        thread::sleep(A_MOMENT);
        // SAFETY: the alias lives as long as the test.
        unsafe { std::ptr::with_exposed_provenance_mut::<u64>(home).write_volatile(9) };
    }));
    assert!(set.is_ok());
    // SAFETY: the test's own memory.
    let there: *mut u64 = unsafe {
        let room = mmap_anonymous(null_mut(), PAGE_SIZE, ProtFlags::empty(), MapFlags::PRIVATE).unwrap();
        mremap_fixed(t.memory.app(1).cast(), PAGE_SIZE, PAGE_SIZE, MremapFlags::MAYMOVE, room).unwrap().cast()
    };
    // SAFETY: it was moved there.
    unsafe {
        assert_eq!(there.read_volatile(), 9);
        there.write_volatile(10);
    }
    assert_eq!(t.memory.load_alias(1), 10);
    assert_eq!(t.take_faults(), [], "it is no part of the app view");
    assert_eq!(next(&changes), ForeignChange::Moved(page(1)));
    let more = changes.recv_timeout(A_MOMENT);
    assert!(more.is_err(), "the memory lives on: {more:?}");
    t.tracker.unmap(pages(0, 8)).unwrap();
    assert_eq!((t.memory.load(0), t.memory.load(2)), (0, 0));
}

fn memory_that_grew_while_it_moved_does_not_hang(case: Case) {
    if passed(case) {
        return;
    }
    let (t, changes) = watched(case);
    t.memory.store(3, 3);
    t.memory.store(7, 7);
    // SAFETY: the test's own memory: page 5 moves and becomes three.
    let there: *mut u64 =
        unsafe { mremap(t.memory.app(5).cast(), PAGE_SIZE, 3 * PAGE_SIZE, MremapFlags::MAYMOVE).unwrap().cast() };
    assert_eq!(next(&changes), ForeignChange::Moved(page(5)));
    // SAFETY: it was moved there, and shows pages 5 to 7 of the file.
    unsafe { assert_eq!(there.add(2 * PAGE_SIZE / 8).read_volatile(), 7) };
    assert_eq!(t.memory.load(3), 3);
}

fn unmapping_waits_for_no_handler_and_keeps_no_operation_waiting(case: Case) {
    if passed(case) {
        return;
    }
    // A handler that waits, as for a page lock.
    let (go_on, waits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (gate, waiting) = (go_on.clone(), waits.clone());
    let options = TrackerOptions { handler_threads: 1, ..TrackerOptions::default() };
    let t = Tracked::new(case.kind, 64, options, move |tracker, fault| {
        waiting.store(true, Ordering::SeqCst);
        while !gate.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        map_as_needed(tracker, fault)
    });
    t.tracker.watch(pages(0, 64)).unwrap();
    t.tracker.unmap(pages(0, 64)).unwrap();
    thread::scope(|scope| {
        let t = &t;
        let toucher = scope.spawn(|| t.memory.load(0));
        while !waits.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let started = Instant::now();
        let unmapper = scope.spawn(|| (32..48).for_each(|n| unmap(t, n, n + 1)));
        while !unmapper.is_finished() {
            assert!(started.elapsed() < Duration::from_secs(30), "nobody reads the event");
            thread::yield_now();
        }
        let unmapper = scope.spawn(|| (48..64).for_each(|n| unmap(t, n, n + 1)));
        // Whoever holds the lock that the handler waits for does this meanwhile.
        while !unmapper.is_finished() {
            t.tracker.write_protect(pages(1, 16)).unwrap();
            t.tracker.map(pages(1, 16), ReadWrite).unwrap();
            t.tracker.unmap(pages(1, 16)).unwrap();
            assert!(started.elapsed() < Duration::from_secs(30), "the event is never read");
        }
        assert!(!toucher.is_finished());
        go_on.store(true, Ordering::SeqCst);
    });
}

fn stopping_frees_those_who_unmap(case: Case) {
    if passed(case) {
        return;
    }
    for round in 0..100 {
        let t = Tracked::watching(case, 64);
        thread::scope(|scope| {
            let unmapper = scope.spawn(|| (0..64).for_each(|n| unmap(&t, n, n + 1)));
            thread::sleep(Duration::from_micros(10 * (round % 20)));
            t.tracker.stop();
            let started = Instant::now();
            while !unmapper.is_finished() {
                assert!(started.elapsed() < Duration::from_secs(10), "it waits for ever");
                thread::yield_now();
            }
        });
    }
}
