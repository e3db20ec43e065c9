//! What ends a process, changes its signal handlers or forks: each in a process of its own.

use super::fixture::{Case, Tracked, map_as_needed, page, pages};
use crate::addr::Access::{Read, Write};
use crate::addr::PAGE_SIZE;
use crate::track::Protection::ReadWrite;
use crate::track::{FaultOutcome, TrackerKind, TrackerOptions};
use libc::{c_int, c_void, sigaction, siginfo_t};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

super::for_each_tracker! {
    a_refused_load_is_a_sigsegv,
    a_refused_store_is_a_sigsegv,
    a_handler_that_panics_refuses,
    a_refusal_lasts_until_the_next_operation,
    a_fault_elsewhere_kills_as_ever,
    a_stack_overflow_is_still_reported,
    a_fault_elsewhere_reaches_an_earlier_handler,
    a_refused_access_reaches_an_earlier_handler,
    an_earlier_handler_without_details_is_called,
    a_one_shot_handler_is_called_once,
    an_ignored_signal_stays_ignored,
    signal_handlers_may_touch_tracked_memory,
    a_forked_child_gets_a_sigsegv_and_does_no_harm,
    a_forked_child_can_track_memory_of_its_own,
    a_removed_handler_is_noticed,
    the_kernels_own_limit_of_mappings_is_survived,
}

fn assert_killed(output: &Output, signal: c_int) {
    assert_eq!(output.status.signal(), Some(signal), "{output:?}");
}

fn assert_passed(output: &Output) {
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
}

fn no_core_dump() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid limit.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
}

/// Refuses everything on page 0 and maps the rest.
fn refusing(case: Case) -> Tracked {
    no_core_dump();
    let t = Tracked::new(case.kind, 8, TrackerOptions::default(), |tracker, fault| match fault.page.0 {
        0 => FaultOutcome::Refused,
        _ => map_as_needed(tracker, fault),
    });
    t.tracker.watch(pages(0, 8)).unwrap();
    t.tracker.unmap(pages(0, 8)).unwrap();
    t
}

fn install(handler: usize, flags: c_int) {
    // SAFETY: the tests pass handlers whose signature fits the flags, and which only do what a handler may.
    unsafe {
        let mut action: sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        libc::sigaddset(&mut action.sa_mask, libc::SIGUSR2);
        assert_eq!(sigaction(libc::SIGSEGV, &action, null_mut()), 0);
    }
}

/// A page of our own that nobody tracks and nobody may touch.
fn forbidden_page() -> *mut u64 {
    // SAFETY: a new mapping.
    let page =
        unsafe { libc::mmap(null_mut(), PAGE_SIZE, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    page.cast()
}

fn a_refused_load_is_a_sigsegv(case: Case) {
    if let Some(output) = case.in_own_process() {
        return assert_killed(&output, libc::SIGSEGV);
    }
    let t = refusing(case);
    t.memory.load(1);
    t.memory.load(0);
}

fn a_refused_store_is_a_sigsegv(case: Case) {
    if let Some(output) = case.in_own_process() {
        return assert_killed(&output, libc::SIGSEGV);
    }
    let t = refusing(case);
    t.tracker.map(page(0), crate::track::Protection::ReadOnly).unwrap();
    t.memory.load(0);
    t.memory.store(0, 1);
}

fn a_handler_that_panics_refuses(case: Case) {
    if let Some(output) = case.in_own_process() {
        assert!(String::from_utf8_lossy(&output.stderr).contains("handler's panic"));
        return assert_killed(&output, libc::SIGSEGV);
    }
    no_core_dump();
    let t = Tracked::new(case.kind, 8, TrackerOptions::default(), |_, _| panic!("handler's panic"));
    t.tracker.watch(pages(0, 8)).unwrap();
    t.tracker.unmap(pages(0, 8)).unwrap();
    t.memory.load(0);
}

fn a_refusal_lasts_until_the_next_operation(case: Case) {
    static REFUSE: AtomicBool = AtomicBool::new(true);
    static CAUGHT: AtomicU32 = AtomicU32::new(0);
    extern "C" fn forgive(_: c_int) {
        // Returns to retry: refused again (and caught again) as long as the refusal lasts.
        if CAUGHT.fetch_add(1, Ordering::SeqCst) == 3 {
            REFUSE.store(false, Ordering::SeqCst);
        }
    }
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    install(forgive as *const () as usize, 0);
    let t = Tracked::new(case.kind, 8, TrackerOptions::default(), |tracker, fault| {
        if REFUSE.load(Ordering::SeqCst) { FaultOutcome::Refused } else { map_as_needed(tracker, fault) }
    });
    t.tracker.watch(pages(0, 8)).unwrap();
    t.tracker.unmap(pages(0, 8)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| t.memory.store(0, 1));
        while REFUSE.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        t.tracker.map(page(0), ReadWrite).unwrap();
    });
    assert_eq!(t.memory.load(0), 1);
    t.tracker.unmap(page(0)).unwrap();
    t.take_faults();
    t.memory.load(0);
    assert_eq!(t.take_faults(), [(0, Read)]);
}

fn a_fault_elsewhere_kills_as_ever(case: Case) {
    if let Some(output) = case.in_own_process() {
        return assert_killed(&output, libc::SIGSEGV);
    }
    let t = refusing(case);
    t.memory.store(1, 1);
    // SAFETY: not a valid access: that is the test. It kills the process.
    unsafe { forbidden_page().write_volatile(1) };
}

fn a_stack_overflow_is_still_reported(case: Case) {
    #[allow(unconditional_recursion)]
    fn deeper(depth: &mut [u64; 512]) -> u64 {
        let mut next = *depth;
        next[0] += 1;
        std::hint::black_box(deeper(&mut next)) + next[1]
    }
    if let Some(output) = case.in_own_process() {
        assert!(String::from_utf8_lossy(&output.stderr).contains("overflowed its stack"), "{output:?}");
        return assert_killed(&output, libc::SIGABRT);
    }
    let t = refusing(case);
    t.memory.store(1, 1);
    let _ = std::thread::spawn(|| deeper(&mut [0; 512])).join();
}

static CALLED_FOR: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicU32 = AtomicU32::new(0);

/// Opens the page that was touched.
extern "C" fn open_page(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: called for faults on pages of the test's own; the mask may be read at any time.
    unsafe {
        let address = (*info).si_addr() as usize;
        let mut mask = MaybeUninit::uninit();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr());
        let mask = mask.assume_init();
        let as_asked = libc::sigismember(&mask, libc::SIGSEGV) == 1
            && libc::sigismember(&mask, libc::SIGUSR2) == 1
            && libc::sigismember(&mask, libc::SIGUSR1) == 0;
        CALLED_FOR.store(if as_asked { address } else { 1 }, Ordering::SeqCst);
        CALLS.fetch_add(1, Ordering::SeqCst);
        let start = std::ptr::with_exposed_provenance_mut(address & !(PAGE_SIZE - 1));
        libc::mprotect(start, PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE);
    }
}

fn a_fault_elsewhere_reaches_an_earlier_handler(case: Case) {
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    install(open_page as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
    let t = refusing(case);
    let elsewhere = forbidden_page();
    for round in 1..4 {
        // SAFETY: the earlier handler opens the page.
        unsafe {
            libc::mprotect(elsewhere.cast(), PAGE_SIZE, libc::PROT_NONE);
            elsewhere.write_volatile(7);
            assert_eq!(elsewhere.read_volatile(), 7);
        }
        assert_eq!(CALLED_FOR.load(Ordering::SeqCst), elsewhere as usize);
        assert_eq!(CALLS.load(Ordering::SeqCst), round);
        t.tracker.unmap(page(1)).unwrap();
        t.memory.store(1, 1);
    }
    assert_eq!(t.take_faults(), [(1, Write); 3]);
}

fn a_refused_access_reaches_an_earlier_handler(case: Case) {
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    install(open_page as *const () as usize, libc::SA_SIGINFO);
    let t = refusing(case);
    if case.kind == TrackerKind::Sigsegv {
        t.memory.store(0, 9);
        assert_eq!(CALLED_FOR.load(Ordering::SeqCst), t.memory.app(0) as usize);
        assert_eq!(t.memory.load_alias(0), 9);
    } else {
        // The mapping may be opened by the program, but userfaultfd goes on refusing: end that.
        std::thread::scope(|scope| {
            scope.spawn(|| t.memory.store(0, 9));
            while CALLS.load(Ordering::SeqCst) < 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
            t.tracker.stop();
        });
        assert_eq!(t.memory.load_alias(0), 9);
    }
}

fn an_earlier_handler_without_details_is_called(case: Case) {
    static PAGE: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn open(signal: c_int) {
        let start = std::ptr::with_exposed_provenance_mut(PAGE.load(Ordering::SeqCst));
        // SAFETY: the test's own page.
        unsafe { libc::mprotect(start, PAGE_SIZE, libc::PROT_READ | libc::PROT_WRITE) };
        CALLS.fetch_add(signal as u32, Ordering::SeqCst);
    }
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    install(open as *const () as usize, 0);
    let _tracked = refusing(case);
    let elsewhere = forbidden_page();
    PAGE.store(elsewhere as usize, Ordering::SeqCst);
    // SAFETY: the earlier handler opens the page.
    unsafe { elsewhere.write_volatile(1) };
    assert_eq!(CALLS.load(Ordering::SeqCst), libc::SIGSEGV as u32);
}

fn a_one_shot_handler_is_called_once(case: Case) {
    if let Some(output) = case.in_own_process() {
        assert!(String::from_utf8_lossy(&output.stderr).contains("called once"), "{output:?}");
        return assert_killed(&output, libc::SIGSEGV);
    }
    install(open_page as *const () as usize, libc::SA_SIGINFO | libc::SA_RESETHAND);
    let t = refusing(case);
    t.memory.store(1, 1);
    // SAFETY: the first is opened by the earlier handler; the second kills the process, which is the test.
    unsafe {
        forbidden_page().write_volatile(1);
        eprintln!("called once: {}", CALLS.load(Ordering::SeqCst) == 1);
        forbidden_page().write_volatile(1);
    }
}

fn an_ignored_signal_stays_ignored(case: Case) {
    if let Some(output) = case.in_own_process() {
        assert!(String::from_utf8_lossy(&output.stderr).contains("survived"), "{output:?}");
        return assert_killed(&output, libc::SIGSEGV);
    }
    install(libc::SIG_IGN, 0);
    let t = refusing(case);
    // SAFETY: a signal sent by a process is ignored; a fault, later, cannot be and kills the process.
    unsafe {
        libc::raise(libc::SIGSEGV);
        t.memory.store(1, 1);
        eprintln!("survived");
        forbidden_page().write_volatile(1);
    }
}

fn signal_handlers_may_touch_tracked_memory(case: Case) {
    static TARGET: AtomicUsize = AtomicUsize::new(0);
    static TICKS: AtomicU32 = AtomicU32::new(0);
    extern "C" fn tick(_: c_int) {
        let target: *mut u64 = std::ptr::with_exposed_provenance_mut(TARGET.load(Ordering::SeqCst));
        // SAFETY: a tracked page that outlives the signals; one thread alone takes them.
        unsafe { target.write_volatile(target.read_volatile() + 1) };
        TICKS.fetch_add(1, Ordering::SeqCst);
    }
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    let t = Tracked::watching(case, 8);
    TARGET.store(t.memory.app(0) as usize, Ordering::SeqCst);
    // SAFETY: an initialised action, whose handler has the signature that its flags ask for.
    unsafe {
        let mut action: sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = tick as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(sigaction(libc::SIGALRM, &action, null_mut()), 0);
    }
    // SAFETY: has no preconditions.
    let toucher = unsafe { libc::pthread_self() };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
                // SAFETY: the toucher waits for this thread before it ends.
                unsafe { libc::pthread_kill(toucher, libc::SIGALRM) };
            }
        });
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            // The contract: not while it interrupts a call into the tracker.
            block_alarm(true);
            t.tracker.unmap(pages(0, 8)).unwrap();
            block_alarm(false);
            (0..8).for_each(|n| _ = t.memory.load(n));
            (1..8).for_each(|n| t.memory.store(n, 1));
        }
        over.store(true, Ordering::SeqCst);
    });
    let ticks = TICKS.load(Ordering::SeqCst);
    assert!(ticks > 10 && t.memory.load(0) == u64::from(ticks), "{ticks} ticks, counted {}", t.memory.load(0));
}

fn block_alarm(blocked: bool) {
    // SAFETY: an initialised set of one signal.
    unsafe {
        let mut alarm = MaybeUninit::zeroed().assume_init();
        libc::sigaddset(&mut alarm, libc::SIGALRM);
        libc::pthread_sigmask(if blocked { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK }, &alarm, null_mut());
    }
}

/// Forks; the child runs `child` and exits. Returns its wait status.
fn in_forked_child(child: impl FnOnce()) -> c_int {
    // SAFETY: the child only runs `child` and then leaves without destructors; what it needs from other threads (the
    // allocator's locks) the C library makes usable after a fork.
    unsafe {
        let pid = libc::fork();
        if pid == 0 {
            child();
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        status
    }
}

fn a_forked_child_gets_a_sigsegv_and_does_no_harm(case: Case) {
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    no_core_dump();
    let t = Tracked::watching(case, 8);
    t.memory.store(1, 5);
    t.tracker.unmap(pages(0, 8)).unwrap();
    t.take_faults();

    for n in 0..2 {
        let status = in_forked_child(|| _ = t.memory.load(n));
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
    }
    let status = in_forked_child(|| {
        assert!(t.tracker.unmap(page(1)).is_err());
        assert!(t.tracker.map(page(1), ReadWrite).is_err());
        t.tracker.stop();
    });
    assert_eq!(status, 0);

    assert_eq!((t.memory.load(1), t.take_faults()), (5, vec![(1, Read)]));
}

fn a_forked_child_can_track_memory_of_its_own(case: Case) {
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    let parent = Tracked::watching(case, 8);
    let status = in_forked_child(|| {
        let own = Tracked::watching(case, 8);
        own.tracker.unmap(pages(0, 8)).unwrap();
        own.memory.store(3, 1);
        assert_eq!(own.take_faults(), [(3, Write)]);
        assert!(parent.tracker.unmap(page(0)).is_err());
    });
    assert_eq!(status, 0);
    parent.tracker.unmap(page(2)).unwrap();
    parent.memory.load(2);
    assert_eq!(parent.take_faults(), [(2, Read)]);
}

fn a_removed_handler_is_noticed(case: Case) {
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    if case.kind != TrackerKind::Sigsegv {
        return;
    }
    let t = Tracked::watching(case, 8);
    assert!(t.tracker.describe().contains("in place"));
    install(open_page as *const () as usize, libc::SA_SIGINFO);
    assert!(t.tracker.describe().contains("installed after it"));
    install(libc::SIG_DFL, 0);
    assert!(t.tracker.describe().contains("WAS REMOVED"));
    let again = Tracked::watching(case, 8);
    assert!(again.tracker.describe().contains("in place"));
    t.tracker.unmap(page(2)).unwrap();
    t.memory.load(2);
    assert_eq!(t.take_faults(), [(2, Read)]);
}

fn the_kernels_own_limit_of_mappings_is_survived(case: Case) {
    const PAGES: u32 = 150_000;
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse::<u32>().unwrap();
    if limit > PAGES / 2 {
        eprintln!("skipped: vm.max_map_count is {limit}");
        return;
    }
    if let Some(output) = case.in_own_process() {
        return assert_passed(&output);
    }
    // A budget that pretends that there is no limit.
    let options = TrackerOptions { mapping_budget: Some(usize::MAX), ..TrackerOptions::default() };
    let t = Tracked::new(case.kind, PAGES, options, map_as_needed);
    if case.kind == TrackerKind::Sigsegv {
        t.tracker.watch(pages(0, PAGES)).unwrap();
    }
    for n in (0..PAGES).step_by(2) {
        t.tracker.watch(page(n)).unwrap();
        t.memory.store_alias(n, 1);
        t.tracker.unmap(page(n)).unwrap();
    }
    (0..PAGES).for_each(|n| assert_eq!(t.memory.load(n), u64::from(n % 2 == 0)));
    (0..PAGES).for_each(|n| t.memory.store(n, 2));
    assert!(t.tracker.faults() > 1000);
}
