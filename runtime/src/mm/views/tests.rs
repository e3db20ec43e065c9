use super::*;

fn small() -> OwnedViews {
    OwnedViews::reserve(16 * RESERVATION_ALIGN).unwrap()
}

fn app_byte(views: &OwnedViews, page: u32) -> *mut u8 {
    views.addr_of(PageIndex(page)).as_ptr()
}

#[test]
fn the_default_reservation_costs_no_memory_until_used() {
    let views = OwnedViews::reserve(DEFAULT_RESERVATION).unwrap();
    assert_eq!(views.pages(), 1 << 28);
    assert_eq!(views.resident_bytes(), 0);
    assert_eq!(views.views().app % RESERVATION_ALIGN as usize, 0);
    assert_eq!(views.views().alias % RESERVATION_ALIGN as usize, 0);

    let last = PageIndex(views.pages() - 1);
    views.grow_to(views.pages()).unwrap();
    // SAFETY: both point at the same mapped, accessible page of memory this test owns.
    unsafe {
        views.addr_of(last).as_ptr().write_volatile(7);
        assert_eq!(views.alias_ptr(last).read_volatile(), 7);
    }
    assert_eq!(views.resident_bytes(), PAGE_SIZE as u64);
}

#[test]
fn what_one_view_writes_the_other_reads_and_punching_zeroes_both() {
    let views = small();
    views.grow_to(4).unwrap();
    // SAFETY: pages 0..4 are accessible in both views and owned by this test.
    unsafe {
        app_byte(&views, 2).write_volatile(11);
        assert_eq!(views.alias_ptr(PageIndex(2)).read_volatile(), 11);
        views.alias_ptr(PageIndex(3)).write_volatile(12);
        assert_eq!(app_byte(&views, 3).read_volatile(), 12);
    }
    let before = views.resident_bytes();
    views.punch(PageRange::of_len(PageIndex(2), 2)).unwrap();
    assert!(views.resident_bytes() < before);
    // SAFETY: as above.
    unsafe {
        assert_eq!(app_byte(&views, 2).read_volatile(), 0);
        assert_eq!(views.alias_ptr(PageIndex(3)).read_volatile(), 0);
    }
}

#[test]
fn populated_ranges_are_found_clipped_and_in_order() {
    let views = small();
    for page in [3, 4, 9, 100] {
        // SAFETY: the alias is always accessible.
        unsafe { views.alias_ptr(PageIndex(page)).write_volatile(1) };
    }
    let found = |start, end| -> Vec<_> {
        views.has_data(PageRange::new(PageIndex(start), PageIndex(end))).map(|r| (r.start.0, r.end.0)).collect()
    };
    assert_eq!(found(0, views.pages()), [(3, 5), (9, 10), (100, 101)]);
    assert_eq!(found(4, 10), [(4, 5), (9, 10)]);
    assert_eq!(found(5, 9), []);
    assert_eq!(found(7, 7), []);
    views.punch(PageRange::single(PageIndex(9))).unwrap();
    assert_eq!(found(0, 50), [(3, 5)]);
}

#[test]
fn addresses_and_pages_convert_both_ways_and_end_at_the_heaps_borders() {
    let views = small();
    let page = PageIndex(5);
    let address = views.addr_of(page);
    assert_eq!(views.page_of(address), Some(page));
    assert_eq!(views.page_of(VirtAddr(address.0 + 4095)), Some(page));
    assert_eq!(views.page_of(VirtAddr(views.views().app as u64 - 1)), None);
    assert_eq!(views.page_of(views.addr_of(PageIndex(views.pages()))), None);
}

#[test]
fn growing_past_the_end_and_odd_sizes_are_refused_with_a_remedy() {
    let views = small();
    let error = views.grow_to(views.pages() + 1).unwrap_err();
    assert!(matches!(error, ViewsError::BeyondEnd { .. }), "{error}");
    for bytes in [0, 4096, RESERVATION_ALIGN + 4096, MAX_RESERVATION + RESERVATION_ALIGN] {
        let error = OwnedViews::reserve(bytes).unwrap_err();
        assert!(matches!(error, ViewsError::Size { .. }), "{error}");
    }
}

/// Runs `touch` in a forked child and tells the signal that ended it.
fn signal_of_child(touch: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child calls only async-signal-safe functions (signal, the access itself, _exit), as the
    // child of a process with threads must.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above; default handling, so that a handler of the parent's does not decide.
        unsafe {
            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        }
        touch();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(0) };
    }
    assert!(child > 0);
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

#[test]
fn a_forked_child_sees_neither_view() {
    let views = small();
    views.grow_to(1).unwrap();
    let (app, alias) = (app_byte(&views, 0), views.alias_ptr(PageIndex(0)));
    // SAFETY: accessible in the parent; in the child the access is the experiment and faults.
    assert_eq!(signal_of_child(|| unsafe { _ = app.read_volatile() }), Some(libc::SIGSEGV));
    // SAFETY: as above.
    assert_eq!(signal_of_child(|| unsafe { _ = alias.read_volatile() }), Some(libc::SIGSEGV));
}

#[test]
fn a_limited_address_space_gives_an_error_that_names_the_limit_and_a_smaller_size() {
    const INSIDE: &str = "VKSVM_TEST_LIMITED_ADDRESS_SPACE";
    if std::env::var_os(INSIDE).is_some() {
        let error = OwnedViews::reserve(DEFAULT_RESERVATION).unwrap_err().to_string();
        assert!(error.contains("ulimit -v") && error.contains("smaller heap"), "{error}");
        OwnedViews::reserve(64 * RESERVATION_ALIGN).unwrap();
        return;
    }
    let name = "mm::views::tests::a_limited_address_space_gives_an_error_that_names_the_limit_and_a_smaller_size";
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", "ulimit -v 8000000 && exec \"$@\" --test-threads 1", "sh"])
        .args(crate::own_process::again())
        .args(["--exact", name])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
