//! One guarantee a test.

use super::fixture::{Case, Tracked, map_as_needed, page, pages};
use crate::addr::Access::{Read, Write};
use crate::addr::{PAGE_SIZE, PageIndex};
use crate::track::Protection::{ReadOnly, ReadWrite};
use crate::track::{FaultOutcome, TrackerKind, TrackerOptions, choose};
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

super::for_each_tracker! {
    a_load_from_an_unmapped_page_is_reported_once_and_sees_the_contents,
    a_store_to_an_unmapped_page_is_reported_as_a_write,
    a_store_to_a_protected_page_is_reported_and_loads_go_on,
    a_page_mapped_read_only_reports_stores,
    mapping_read_only_takes_write_access_away,
    protecting_an_unmapped_page_leaves_it_unmapped,
    a_hole_reads_zero_and_never_blocks,
    a_hole_mapped_read_only_reports_stores,
    a_punched_page_is_zero_and_makes_progress,
    pages_never_watched_are_never_reported,
    operations_need_watched_pages,
    watching_again_changes_nothing,
    no_access_completes_before_the_handler_allows_it,
    who_stores_sleeps_until_the_protection_is_lifted,
    the_toucher_is_named,
    spans_of_mixed_pages_are_changed_at_once,
    spans_may_cross_kernel_mappings,
    a_fault_needs_no_change_to_be_resolved,
    stop_makes_everything_accessible,
    stop_frees_threads_that_wait,
    stop_works_from_within_a_handler,
    two_trackers_keep_to_their_own_memory,
    a_system_call_on_an_unmapped_page_works_or_fails_cleanly,
    a_small_budget_of_mappings_suffices,
    several_handler_threads_resolve_at_once,
    a_fault_that_is_put_off_is_asked_again_and_holds_up_no_other,
}

fn a_load_from_an_unmapped_page_is_reported_once_and_sees_the_contents(case: Case) {
    let t = Tracked::watching(case, 8);
    t.memory.store_alias(3, 7);
    t.tracker.unmap(page(3)).unwrap();

    assert_eq!(t.memory.load(3), 7);
    assert_eq!(t.memory.load(3), 7);

    assert_eq!(t.take_faults(), [(3, Read)]);
    assert_eq!(t.tracker.faults(), 1);
}

fn a_store_to_an_unmapped_page_is_reported_as_a_write(case: Case) {
    let t = Tracked::watching(case, 8);
    t.tracker.unmap(pages(0, 8)).unwrap();

    t.memory.store(7, 9);

    assert_eq!(t.take_faults(), [(7, Write)]);
    assert_eq!(t.memory.load_alias(7), 9);
}

fn a_store_to_a_protected_page_is_reported_and_loads_go_on(case: Case) {
    let t = Tracked::watching(case, 8);
    t.memory.store(2, 5);
    t.take_faults();
    t.tracker.write_protect(pages(1, 4)).unwrap();

    assert_eq!(t.memory.load(2), 5);
    assert_eq!(t.take_faults(), []);
    t.memory.store(2, 6);
    t.memory.store(2, 7);

    assert_eq!(t.take_faults(), [(2, Write)]);
    assert_eq!(t.memory.load(2), 7);
}

fn a_page_mapped_read_only_reports_stores(case: Case) {
    let t = Tracked::watching(case, 8);
    t.memory.store_alias(0, 1);
    t.tracker.unmap(page(0)).unwrap();
    t.tracker.map(page(0), ReadOnly).unwrap();

    assert_eq!(t.memory.load(0), 1);
    assert_eq!(t.take_faults(), []);
    t.memory.store(0, 2);

    assert_eq!(t.take_faults(), [(0, Write)]);
    assert_eq!(t.memory.load(0), 2);
}

fn mapping_read_only_takes_write_access_away(case: Case) {
    let t = Tracked::watching(case, 8);
    t.tracker.map(pages(0, 4), ReadWrite).unwrap();
    t.memory.store(1, 1);
    t.tracker.map(pages(0, 4), ReadOnly).unwrap();

    t.memory.store(1, 2);

    assert_eq!(t.take_faults(), [(1, Write)]);
}

fn protecting_an_unmapped_page_leaves_it_unmapped(case: Case) {
    let t = Tracked::watching(case, 8);
    t.memory.store_alias(4, 3);
    t.tracker.unmap(page(4)).unwrap();
    t.tracker.write_protect(pages(0, 8)).unwrap();

    assert_eq!(t.memory.load(4), 3);

    assert_eq!(t.take_faults(), [(4, Read)]);
}

fn a_hole_reads_zero_and_never_blocks(case: Case) {
    let t = Tracked::watching(case, 8);
    t.tracker.unmap(pages(0, 8)).unwrap();
    assert_eq!(t.memory.load(5), 0);
    assert_eq!(t.take_faults(), [(5, Read)]);
    t.tracker.map(pages(0, 8), ReadWrite).unwrap();
    for n in 0..8 {
        assert_eq!(t.memory.load(n), 0);
        t.memory.store(n, 1);
    }
    assert_eq!(t.take_faults(), []);
}

fn a_hole_mapped_read_only_reports_stores(case: Case) {
    let t = Tracked::watching(case, 8);
    t.tracker.map(pages(0, 8), ReadOnly).unwrap();

    assert_eq!(t.memory.load(6), 0);
    assert_eq!(t.take_faults(), []);
    t.memory.store(6, 1);

    assert_eq!(t.take_faults(), [(6, Write)]);
}

fn a_punched_page_is_zero_and_makes_progress(case: Case) {
    let t = Tracked::watching(case, 8);
    for round in 1..50 {
        t.memory.store(1, round);
        t.memory.punch(1);
        assert_eq!(t.memory.load(1), 0);
        t.memory.store(1, round);
        assert_eq!(t.memory.load_alias(1), round);
        t.tracker.write_protect(page(1)).unwrap();
        t.memory.punch(1);
    }
}

fn pages_never_watched_are_never_reported(case: Case) {
    let t = Tracked::new(case.kind, 8, TrackerOptions::default(), map_as_needed);
    t.tracker.watch(pages(2, 4)).unwrap();
    t.tracker.unmap(pages(2, 4)).unwrap();

    for n in [0, 1, 4, 5, 6, 7] {
        assert_eq!(t.memory.load(n), 0);
        t.memory.store(n, 1);
    }

    assert_eq!(t.take_faults(), []);
}

fn operations_need_watched_pages(case: Case) {
    let t = Tracked::new(case.kind, 8, TrackerOptions::default(), map_as_needed);
    t.tracker.watch(pages(2, 4)).unwrap();

    let errors = [
        t.tracker.write_protect(pages(0, 2)).unwrap_err(),
        t.tracker.unmap(pages(3, 5)).unwrap_err(),
        t.tracker.map(pages(1, 4), ReadWrite).unwrap_err(),
    ];

    assert!(errors.iter().all(|e| e.source.raw_os_error() == Some(Errno::NOENT.raw_os_error())), "{errors:?}");
    assert!(t.tracker.watch(pages(4, 9)).unwrap_err().to_string().contains("pages 4..9"));
    t.tracker.unmap(pages(3, 3)).unwrap();
}

fn watching_again_changes_nothing(case: Case) {
    let t = Tracked::watching(case, 8);
    t.memory.store(1, 4);
    t.tracker.write_protect(page(1)).unwrap();
    t.tracker.unmap(page(2)).unwrap();
    t.take_faults();

    t.tracker.watch(pages(0, 3)).unwrap();
    t.memory.store(1, 5);
    t.memory.load(2);

    assert_eq!(t.take_faults(), [(1, Write), (2, Read)]);
}

fn no_access_completes_before_the_handler_allows_it(case: Case) {
    let (allow, allowed) = mpsc::channel::<()>();
    let allowed = parking_lot::Mutex::new(allowed);
    let t = Tracked::new(case.kind, 4, TrackerOptions::default(), move |tracker, fault| {
        allowed.lock().recv().unwrap();
        map_as_needed(tracker, fault)
    });
    t.tracker.watch(pages(0, 4)).unwrap();
    t.memory.store_alias(0, 1);
    t.tracker.unmap(page(0)).unwrap();

    std::thread::scope(|scope| {
        scope.spawn(|| t.memory.store(0, 2));
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(t.memory.load_alias(0), 1);
        // Even a mapping made by somebody else does not let the thread go before its handler is done.
        t.tracker.map(page(0), ReadWrite).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(t.memory.load_alias(0), 1);
        allow.send(()).unwrap();
    });
    assert_eq!(t.memory.load(0), 2);
}

fn who_stores_sleeps_until_the_protection_is_lifted(case: Case) {
    let t = Tracked::new(case.kind, 4, TrackerOptions::default(), move |tracker, fault| {
        std::thread::sleep(Duration::from_millis(20));
        map_as_needed(tracker, fault)
    });
    t.tracker.watch(pages(0, 4)).unwrap();
    t.memory.store_alias(0, 1);
    t.tracker.map(page(0), ReadOnly).unwrap();

    t.memory.store(0, 2);

    // Woken any earlier, it would have tried again in vain, and been reported again.
    assert_eq!(t.take_faults(), [(0, Write)]);
    assert_eq!(t.memory.load_alias(0), 2);
}

fn the_toucher_is_named(case: Case) {
    let t = Tracked::watching(case, 4);
    t.tracker.unmap(page(0)).unwrap();

    t.memory.load(0);

    // SAFETY: gettid has no preconditions.
    let own = unsafe { libc::gettid() } as u32;
    assert_eq!(t.take_threads(), [own]);
}

fn spans_of_mixed_pages_are_changed_at_once(case: Case) {
    const PAGES: u32 = 10_240;
    let t = Tracked::watching(case, PAGES);
    let all = pages(0, PAGES);
    // Runs of holes, of contents unmapped, of pages mapped read-write and read-only, of uneven length.
    for (index, start) in (0..PAGES).step_by(37).enumerate() {
        let run = pages(start, (start + 37).min(PAGES));
        match index % 4 {
            0 => {}
            1 => run.iter().for_each(|p| t.memory.store_alias(p.0, 1 + u64::from(p.0))),
            2 => t.tracker.map(run, ReadWrite).unwrap(),
            _ => t.tracker.map(run, ReadOnly).unwrap(),
        }
    }
    let contents: Vec<u64> = (0..PAGES).map(|n| t.memory.load_alias(n)).collect();
    let unchanged = || (0..PAGES).all(|n| t.memory.load(n) == contents[n as usize]);

    t.tracker.map(all, ReadOnly).unwrap();
    assert!(unchanged());
    assert_eq!(t.take_faults(), []);
    t.memory.store(PAGES / 2, contents[PAGES as usize / 2]);
    assert_eq!(t.take_faults(), [(PAGES / 2, Write)]);

    t.tracker.unmap(all).unwrap();
    t.tracker.map(all, ReadWrite).unwrap();
    (0..PAGES).for_each(|n| t.memory.store(n, contents[n as usize]));
    assert_eq!(t.take_faults(), []);

    t.tracker.write_protect(all).unwrap();
    (0..PAGES).for_each(|n| t.memory.store(n, contents[n as usize]));
    assert_eq!(t.take_faults().len(), PAGES as usize);

    t.tracker.unmap(all).unwrap();
    assert!(unchanged());
    assert_eq!(t.take_faults().len(), PAGES as usize);
}

fn spans_may_cross_kernel_mappings(case: Case) {
    let t = Tracked::watching(case, 64);
    for start in [5, 20, 41] {
        // SAFETY: advice on three pages of the app view: it splits the kernel's mapping.
        let advised = unsafe { libc::madvise(t.memory.app(start).cast(), 3 * PAGE_SIZE, libc::MADV_SEQUENTIAL) };
        assert_eq!(advised, 0);
    }
    (0..64).filter(|n| n % 3 != 0).for_each(|n| t.memory.store_alias(n, u64::from(n)));

    for protection in [ReadOnly, ReadWrite] {
        t.tracker.unmap(pages(0, 64)).unwrap();
        t.tracker.map(pages(0, 64), protection).unwrap();
        (0..64).for_each(|n| assert_eq!(t.memory.load(n), if n % 3 == 0 { 0 } else { u64::from(n) }));
    }
    t.tracker.write_protect(pages(0, 64)).unwrap();
    assert_eq!(t.take_faults(), []);
    (0..64).for_each(|n| t.memory.store(n, 1));
    assert_eq!(t.take_faults().len(), 64);
}

fn a_fault_needs_no_change_to_be_resolved(case: Case) {
    // The first answer maps nothing: the thread faults again instead of sleeping for ever.
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let t = Tracked::new(case.kind, 4, TrackerOptions::default(), move |tracker, fault| {
        match counted.fetch_add(1, Ordering::Relaxed) {
            0..5 => FaultOutcome::Resolved,
            _ => map_as_needed(tracker, fault),
        }
    });
    t.tracker.watch(pages(0, 4)).unwrap();
    t.tracker.unmap(pages(0, 4)).unwrap();

    t.memory.store(0, 1);

    assert!(calls.load(Ordering::Relaxed) >= 6);
}

fn stop_makes_everything_accessible(case: Case) {
    let t = Tracked::watching(case, 64);
    (0..64).for_each(|n| t.memory.store_alias(n, u64::from(n)));
    t.tracker.unmap(pages(0, 20)).unwrap();
    t.tracker.map(pages(20, 40), ReadOnly).unwrap();
    t.tracker.map(pages(40, 64), ReadWrite).unwrap();
    t.tracker.write_protect(pages(50, 64)).unwrap();

    t.tracker.stop();
    t.tracker.stop();

    for n in 0..64 {
        assert_eq!(t.memory.load(n), u64::from(n));
        t.memory.store(n, 1);
    }
    assert_eq!(t.take_faults(), []);
    assert!(t.tracker.map(page(0), ReadWrite).is_ok());
    assert!(t.tracker.unmap(page(0)).is_err());
}

fn stop_frees_threads_that_wait(case: Case) {
    // A handler that never maps: the touchers wait and retry until tracking ends.
    for _ in 0..20 {
        let t = Tracked::new(case.kind, 16, TrackerOptions::default(), |_, _| {
            std::thread::sleep(Duration::from_micros(200));
            FaultOutcome::Resolved
        });
        t.tracker.watch(pages(0, 16)).unwrap();
        t.tracker.unmap(pages(0, 16)).unwrap();
        std::thread::scope(|scope| {
            for n in 0..16 {
                let t = &t;
                scope.spawn(move || t.memory.store(n, 1));
            }
            std::thread::sleep(Duration::from_millis(3));
            t.tracker.stop();
        });
        assert!((0..16).all(|n| t.memory.load(n) == 1));
    }
}

fn stop_works_from_within_a_handler(case: Case) {
    let t = Tracked::new(case.kind, 4, TrackerOptions::default(), |tracker, _| {
        tracker.stop();
        FaultOutcome::Resolved
    });
    t.tracker.watch(pages(0, 4)).unwrap();
    t.tracker.unmap(pages(0, 4)).unwrap();

    t.memory.store(0, 1);

    t.memory.store(1, 1);
    assert_eq!(t.tracker.faults(), 1);
}

fn two_trackers_keep_to_their_own_memory(case: Case) {
    let other = TrackerKind::Sigsegv;
    let one = Tracked::watching(case, 8);
    let two = Tracked::new(other, 8, TrackerOptions::default(), map_as_needed);
    two.tracker.watch(pages(0, 8)).unwrap();
    one.tracker.unmap(pages(0, 8)).unwrap();
    two.tracker.unmap(pages(0, 8)).unwrap();

    one.memory.store(1, 1);
    two.memory.load(2);

    assert_eq!(one.take_faults(), [(1, Write)]);
    assert_eq!(two.take_faults(), [(2, Read)]);
    drop(one);
    two.memory.load(3);
    assert_eq!(two.take_faults(), [(3, Read)]);
}

fn a_system_call_on_an_unmapped_page_works_or_fails_cleanly(case: Case) {
    let t = Tracked::watching(case, 4);
    t.memory.store_alias(0, 42);
    t.tracker.unmap(page(0)).unwrap();
    let (_reader, writer) = rustix::pipe::pipe().unwrap();

    let write = || {
        use std::os::fd::AsRawFd;
        // SAFETY: write(2) checks the address itself; the tracked page needs no Rust reference for it.
        let written = unsafe { libc::write(writer.as_raw_fd(), t.memory.app(0).cast(), PAGE_SIZE) };
        if written < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(written as usize) }
    };

    if t.tracker.describe().contains("system calls on tracked pages work") {
        assert_eq!(write(), Ok(PAGE_SIZE));
        assert_eq!(t.take_faults(), [(0, Read)]);
    } else {
        assert_eq!(write(), Err(libc::EFAULT));
        assert!(t.tracker.describe().contains("EFAULT"));
    }
}

fn a_small_budget_of_mappings_suffices(case: Case) {
    const PAGES: u32 = 9000;
    let options = TrackerOptions { mapping_budget: Some(24), ..TrackerOptions::default() };
    let t = Tracked::new(case.kind, PAGES, options, map_as_needed);
    let mappings = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let all = t.memory.views.app..t.memory.views.app + t.memory.views.all().bytes();
        let start = |line: &str| usize::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        maps.lines().filter(|line| all.contains(&start(line))).count()
    };

    // Every other pair watched: userfaultfd registers the gaps, and resolves faults there unseen.
    for start in (0..800).step_by(4) {
        t.tracker.watch(pages(start, start + 2)).unwrap();
    }
    assert!(mappings() <= 40, "{}", mappings());
    t.memory.store(3, 1);
    assert_eq!((t.memory.load(3), t.take_faults().len()), (1, 0));

    // Every other page protected: SIGSEGV protects coarser units.
    t.tracker.watch(pages(1000, PAGES)).unwrap();
    for n in (1000..PAGES).step_by(2) {
        t.memory.store_alias(n, u64::from(n));
        t.tracker.unmap(page(n)).unwrap();
    }
    assert!(mappings() <= 40, "{}", mappings());
    for n in 1000..PAGES {
        let unit = t.tracker.unit(PageIndex(n));
        assert!(unit.contains(PageIndex(n)) && pages(1000, PAGES).contains_range(unit));
        assert_eq!(t.memory.load(n), if n % 2 == 0 { u64::from(n) } else { 0 });
        t.memory.store(n, 1);
    }
    let faults = t.take_faults();
    if case.kind == TrackerKind::Userfaultfd {
        assert!((1000..PAGES).step_by(2).all(|n| faults.contains(&(n, Read))));
    } else {
        assert!(!faults.is_empty());
    }
}

fn several_handler_threads_resolve_at_once(case: Case) {
    // The first fault is held up until a second one has been resolved, by another thread.
    let second_done = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&second_done);
    let options = TrackerOptions { handler_threads: 3, ..TrackerOptions::default() };
    let t = Tracked::new(case.kind, 4, options, move |tracker, fault| {
        let patience = Instant::now() + Duration::from_secs(10);
        while fault.page.0 == 0 && !seen.load(Ordering::Acquire) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        map_as_needed(tracker, fault)
    });
    t.tracker.watch(pages(0, 4)).unwrap();
    t.tracker.unmap(pages(0, 4)).unwrap();

    std::thread::scope(|scope| {
        let first = scope.spawn(|| t.memory.store(0, 1));
        std::thread::sleep(Duration::from_millis(20));
        t.memory.store(1, 1);
        assert!(!first.is_finished());
        second_done.store(true, Ordering::Release);
    });
}

fn a_fault_that_is_put_off_is_asked_again_and_holds_up_no_other(case: Case) {
    let other_done = Arc::new(AtomicBool::new(false));
    let (seen, asked) = (Arc::clone(&other_done), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&asked);
    let t = Tracked::new(case.kind, 4, TrackerOptions::default(), move |tracker, fault| {
        if fault.page.0 == 0 {
            count.fetch_add(1, Ordering::Relaxed);
            if !seen.load(Ordering::Acquire) {
                return FaultOutcome::Later(Duration::from_millis(1));
            }
        }
        map_as_needed(tracker, fault)
    });
    t.tracker.watch(pages(0, 4)).unwrap();
    t.tracker.unmap(pages(0, 4)).unwrap();

    std::thread::scope(|scope| {
        let threads = [0, 1].map(|_| scope.spawn(|| t.memory.store(0, 1)));
        while asked.load(Ordering::Relaxed) < 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
        t.memory.store(1, 1);
        assert!(threads.iter().all(|thread| !thread.is_finished()), "its threads wait");
        other_done.store(true, Ordering::Release);
    });
    assert_eq!(t.memory.load(0), 1);
}

#[test]
fn auto_picks_a_tracker_that_works_and_says_why() {
    let other = Tracked::new(TrackerKind::Sigsegv, 4, TrackerOptions::default(), map_as_needed);
    // SAFETY: the mappings outlive the tracker, which watches nothing.
    let tracker = unsafe { choose(None, other.memory.views, &TrackerOptions::default()) }.unwrap();
    let text = tracker.describe();
    match tracker.kind() {
        TrackerKind::Userfaultfd => assert!(text.starts_with("userfaultfd (")),
        TrackerKind::Sigsegv => assert!(text.contains("because userfaultfd was not taken")),
    }
}

#[test]
fn trackers_are_named_in_configuration() {
    assert_eq!("uffd".parse(), Ok(TrackerKind::Userfaultfd));
    assert_eq!(TrackerKind::Sigsegv.to_string().parse(), Ok(TrackerKind::Sigsegv));
    assert!("kvm".parse::<TrackerKind>().unwrap_err().to_string().contains("`kvm`"));
}
