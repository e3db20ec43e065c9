//! Pages mapped where they are: devices work on the home page itself, together with the CPU, and nothing is copied.

mod common;

use common::device::WatchedDevice;
use common::{increment, soft, trackers, with_each_tracker};
use std::sync::{Arc, Mutex};
use vksvm::addr::{PageRange, VirtAddr};
use vksvm::device::soft::{SoftContext, SoftOptions};
use vksvm::hmm::{Event, InvalidateInfo, Mirror, MirrorOps, OwnerId, WouldBlock};
use vksvm::kernel::FaultReason;
use vksvm::mm::ops::Span;
use vksvm::{Builder, Kernel, LaunchError, PageState, Permission, Placement, Stats, Svm};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 4;

fn pages_of<T>(pages: &[T]) -> Span {
    Span { start: VirtAddr::of(pages), bytes: size_of_val(pages) as u64 }
}

fn state<T>(svm: &Svm, object: &T) -> PageState {
    svm.heap().page_info(object).unwrap().state
}

fn copied(stats: &Stats) -> (u64, u64) {
    (stats.pages_in, stats.pages_out)
}

#[test]
fn a_pinned_page_is_worked_on_by_both_sides_and_never_copied() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut mapping = svm.map(4 * PAGE, Permission::ReadWrite).unwrap();
            svm.address_space().pin_home(pages_of(mapping.as_slice())).unwrap();
            let kernel = increment(svm);
            for round in 0..5 {
                let words = bytemuck_words(mapping.as_mut_slice().unwrap());
                words.iter_mut().step_by(WORDS).for_each(|word| *word += 1);
                kernel.launch([4, 1, 1]).write(&mut words[..]).run().unwrap();
                assert!(words.iter().step_by(WORDS).all(|&word| word == 2 * round + 2));
                assert_eq!(state(svm, &words[0]), PageState::Remote);
            }
            let stats = svm.stats();
            assert_eq!((copied(&stats), stats.pages_remote, stats.pages_faulted), ((0, 0), 4, 4), "{stats}");
        },
    );
}

fn bytemuck_words(bytes: &mut [u8]) -> &mut [u32] {
    bytemuck::cast_slice_mut(bytes)
}

#[test]
fn what_a_device_wrote_to_its_copy_is_home_before_it_maps_the_home_page() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = svm.heap().vec_zeroed::<[u32; WORDS]>(16).unwrap();
            let kernel = increment(svm);
            kernel.launch([16, 1, 1]).write(&mut pages[..]).run().unwrap();
            svm.address_space().pin_home(pages_of(&pages[..])).unwrap();
            kernel.launch([16, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert!(matches!(state(svm, &pages[3]), PageState::Device(_)), "what is mapped stays as it is");
            // Downgraded by the CPU's load, so that the device faults again, with a dirty copy beside a shared page.
            assert_eq!(pages[3][0], 2);
            kernel.launch([16, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!(state(svm, &pages[3]), PageState::Remote);
            assert!(pages.iter().all(|page| page[0] == 3));
            kernel.launch([16, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert!(pages.iter().all(|page| page[0] == 4));
            let info = svm.heap().page_info(&pages[3]).unwrap();
            assert!(info.pinned_home && info.accessed && info.dirty, "{info:?}");
        },
    );
}

#[test]
fn unpinned_pages_are_copied_again_and_nothing_is_lost() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = svm.heap().vec_zeroed::<[u32; WORDS]>(16).unwrap();
            let span = pages_of(&pages[..]);
            let kernel = increment(svm);
            for round in 0..4 {
                if round % 2 == 0 { svm.address_space().pin_home(span) } else { svm.address_space().unpin_home(span) }
                    .unwrap();
                kernel.launch([16, 1, 1]).write(&mut pages[..]).run().unwrap();
                let remote = state(svm, &pages[7]) == PageState::Remote;
                assert_eq!(remote, round % 2 == 0);
                assert!(pages.iter().all(|page| page[0] == round + 1));
            }
        },
    );
}

#[test]
fn where_home_is_the_default_place_nothing_is_copied_and_no_frame_is_taken() {
    with_each_tracker(
        |builder| builder.placement(Placement::Remote).frames(2),
        |svm| {
            let mut pages = svm.heap().vec_zeroed::<[u32; WORDS]>(300).unwrap();
            let report = increment(svm).launch([300, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert!(pages.iter().all(|page| page[0] == 1));
            assert_eq!((copied(&report), report.evictions), ((0, 0), 0), "{report}");
        },
    );
}

#[test]
fn a_device_that_cannot_map_home_pages_copies_them() {
    let options = SoftOptions { imports: false, ..SoftOptions::default() };
    with_each_tracker(
        |builder| builder.soft_device(options.clone()).placement(Placement::Remote),
        |svm| {
            let mut pages = svm.heap().vec_zeroed::<[u32; WORDS]>(4).unwrap();
            pages[2][0] = 5;
            let report = increment(svm).launch([4, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!(pages[2][0], 6);
            assert_eq!((report.pages_remote, report.pages_in > 0), (0, true), "{report}");
        },
    );
}

#[test]
fn several_devices_and_the_cpu_map_one_home_page_until_one_wants_a_copy() {
    for tracker in trackers() {
        let first = soft(tracker, |builder| builder).unwrap();
        let second = soft(tracker, |builder| builder.share_heap_with(&first)).unwrap();
        let copying = SoftOptions { imports: false, ..SoftOptions::default() };
        let third = soft(tracker, |builder| builder.soft_device(copying).share_heap_with(&first)).unwrap();
        let mut pages = first.heap().vec_zeroed::<[u32; WORDS]>(4).unwrap();
        first.address_space().pin_home(pages_of(&pages[..])).unwrap();
        let kernels = [increment(&first), increment(&second), increment(&third)];
        for (round, kernel) in [0, 1, 0, 2, 2, 1, 0].into_iter().enumerate() {
            kernels[kernel].launch([4, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!(state(&first, &pages[0]) == PageState::Remote, kernel != 2);
            if round % 2 == 0 {
                assert!(pages.iter().all(|page| page[0] == round as u32 + 1));
            }
        }
        assert_eq!(copied(&first.stats()), (0, 0));
    }
}

#[test]
fn discarded_protected_moved_and_unmapped_home_pages_are_out_of_the_devices_reach() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut mapping = svm.map(8 * PAGE, Permission::ReadWrite).unwrap();
            svm.address_space().pin_home(pages_of(mapping.as_slice())).unwrap();
            let kernel = increment(svm);
            let word = |mapping: &vksvm::Mapping, page: usize| {
                u32::from_ne_bytes(mapping.as_slice()[page * PAGE..page * PAGE + 4].try_into().unwrap())
            };
            let run = |mapping: &vksvm::Mapping| {
                // SAFETY: the mapping has 8 pages, and nobody else uses them.
                unsafe { kernel.launch([8, 1, 1]).pointer(mapping.as_ptr()) }.run()
            };
            run(&mapping).unwrap();
            mapping.discard(PAGE..3 * PAGE).unwrap();
            assert_eq!(svm.address_space().home().views.resident_bytes() / PAGE as u64, 6);
            run(&mapping).unwrap();
            assert_eq!((0..4).map(|page| word(&mapping, page)).collect::<Vec<_>>(), [2, 1, 1, 2]);
            mapping.protect(5 * PAGE..6 * PAGE, Permission::ReadOnly).unwrap();
            let LaunchError::Fault(fault) = run(&mapping).unwrap_err() else { panic!() };
            assert_eq!(fault.reason, FaultReason::ReadOnly);
            assert_eq!(word(&mapping, 5), 2);
            mapping.protect(5 * PAGE..6 * PAGE, Permission::ReadWrite).unwrap();
            let before: Vec<_> = (0..8).map(|page| word(&mapping, page)).collect();
            mapping.move_to(None).unwrap();
            run(&mapping).unwrap();
            let after: Vec<_> = (0..8).map(|page| word(&mapping, page)).collect();
            assert!(before.iter().zip(&after).all(|(before, after)| before + 1 == *after), "{before:?} {after:?}");
            let copy = svm.snapshot_of(std::ptr::from_ref(mapping.as_slice())).unwrap();
            run(&mapping).unwrap();
            assert_eq!(u32::from_ne_bytes(copy[..4].try_into().unwrap()), after[0]);
            assert_eq!(word(&mapping, 0), after[0] + 1);
            let gone = mapping.as_ptr();
            drop(mapping);
            // SAFETY: refused before it runs.
            let refused = unsafe { kernel.launch([8, 1, 1]).pointer(gone) }.run();
            assert!(refused.is_err());
        },
    );
}

#[test]
fn pages_read_here_and_there_are_read_at_home_once_and_copied_when_they_are_used_again() {
    // The reference device claims to be one on which a kernel reads a word at home faster than a page is copied.
    for tracker in trackers() {
        let device = WatchedDevice::measured([1000, 5000, 10, 400]);
        let svm = soft(tracker, |builder| builder.with_device(device).placement_by_measurement()).unwrap();
        assert!(svm.info().placement.contains("here and there"), "{}", svm.info().placement);
        let mut pages = svm.heap().vec_zeroed::<[u32; WORDS]>(1024).unwrap();
        pages.iter_mut().for_each(|page| page[0] = 3);
        let body = |invocation: &mut SoftContext<'_>| {
            let [from, to] = invocation.arguments::<[u64; 2]>();
            let id = u64::from(invocation.global_id()[0]);
            let value: u32 = invocation.load(from + PAGE as u64 * 100 * id);
            invocation.store(to + 4 * id, value);
        };
        // SAFETY: it reads one array and writes the other.
        let kernel = unsafe { svm.soft_kernel("here and there", [1, 1, 1], 16, body) }.unwrap();
        let mut found = svm.heap().vec_zeroed::<[u32; WORDS]>(1).unwrap();
        let mut reports = Vec::new();
        for _ in 0..4 {
            let report = kernel.launch([10, 1, 1]).read(&pages[..]).write(&mut found[..]).run().unwrap();
            assert_eq!(found[0][..11], [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 0]);
            reports.push((report.pages_remote, report.pages_in, report.pages_sparse_again));
        }
        // Found out before the third launch, since what came before is the launch that they were placed for.
        assert_eq!(reports, [(10, 0, 0), (0, 0, 0), (0, 10, 10), (0, 0, 0)]);
        // A dense read is none of that.
        let dense = increment(&svm).launch([64, 1, 1]).write(&mut pages[1..65]).run().unwrap();
        assert!(dense.pages_remote == 0 && dense.pages_in >= 64, "{dense}");
    }
}

#[test]
fn what_is_fastest_by_measurement_is_said_and_done() {
    let open = |times| {
        let device = WatchedDevice::measured(times);
        soft(trackers()[0], |builder| builder.with_device(device).placement_by_measurement()).unwrap()
    };
    let svm = open([1000, 1050, 10, 400]);
    assert!(svm.info().placement.starts_with("at home: measured") && svm.info().placement.contains("1050 ns"));
    let mut pages = svm.heap().vec_zeroed::<[u32; WORDS]>(30).unwrap();
    pages[4][0] = 1;
    let report = increment(&svm).launch([30, 1, 1]).write(&mut pages[..]).run().unwrap();
    assert_eq!((copied(&report), report.pages_remote), ((0, 0), 30), "{report}");
    assert_eq!((pages[4][0], pages[5][0]), (2, 1));

    let svm = open([1000, 3000, 900, 400]);
    assert!(svm.info().placement.starts_with("copied: measured"), "{}", svm.info().placement);
    let soft_device = soft(trackers()[0], Builder::placement_by_measurement).unwrap();
    assert!(soft_device.info().placement.starts_with("copied: the device"), "{}", soft_device.info().placement);
}

/// A mirror of its own that may have a kernel use a page beside those that are about to be given back, once the device has let go of these.
struct Neighbour {
    device: Arc<WatchedDevice>,
    uses: Arc<Mutex<Option<(Kernel, VirtAddr)>>>,
}

impl MirrorOps for Neighbour {
    fn invalidate(&self, info: &InvalidateInfo) -> Result<(), WouldBlock> {
        if info.event == Event::Clear
            && self.device.live_windows() == 0
            && let Some((kernel, page)) = self.uses.lock().unwrap().take()
        {
            let launch = || {
                let page = std::ptr::with_exposed_provenance::<u32>(page.0 as usize);
                // SAFETY: the page belongs to the test's vector, and nobody else uses it meanwhile.
                unsafe { kernel.launch([1, 1, 1]).pointer(page) }.run().unwrap()
            };
            std::thread::scope(|scope| scope.spawn(launch).join().unwrap());
        }
        Ok(())
    }
    fn release(&self) {}
}

#[test]
fn what_takes_the_place_of_memory_that_was_given_back_is_reached_where_imports_pin() {
    for tracker in trackers() {
        let owner = soft(tracker, |builder| builder).unwrap();
        let device = WatchedDevice::pinning();
        // In which order they are told is not said: of so many, made before the device and after it, one hears of it when that has let go.
        let uses = Arc::default();
        let registered = || {
            let neighbour = Arc::new(Neighbour { device: device.clone(), uses: Arc::clone(&uses) });
            Mirror::register(owner.address_space().notifiers(), OwnerId::unique(), "neighbour", neighbour).unwrap()
        };
        let _before: Vec<_> = (0..20).map(|_| registered()).collect();
        let options = |builder: Builder| {
            let builder = builder.with_device(device.clone()).share_heap_with(&owner);
            builder.placement(Placement::Remote).prefetch(false)
        };
        let svm = soft(tracker, options).unwrap();
        let _after: Vec<_> = (0..20).map(|_| registered()).collect();
        let mut pages = svm.heap().vec_zeroed::<[u32; WORDS]>(16).unwrap();
        let kernel = increment(&svm);
        let views = &svm.address_space().home().views;
        for beside in [false, true, true] {
            pages.iter_mut().for_each(|page| page[0] = 10);
            kernel.launch([16, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!(state(&svm, &pages[2]), PageState::Remote);
            assert!(pages.iter().all(|page| page[0] == 11));
            let gone = PageRange::of_len(views.page_of(VirtAddr::of(&pages[2])).unwrap(), 4);
            let before = device.windows();
            *uses.lock().unwrap() = beside.then(|| (increment(&svm), VirtAddr::of(&pages[9])));
            // The device lets go, then the neighbour's page is used, then the memory is given back.
            assert_eq!(svm.discard(&mut pages[2..6]).unwrap(), 4);
            device.given_back(views.alias_ptr(gone.start), gone.bytes());
            assert_eq!(device.windows() - before, usize::from(beside), "a window was to be made in between");
            assert_eq!(pages[9][0], 11 + u32::from(beside));

            pages[3][0] = 20;
            kernel.launch([16, 1, 1]).write(&mut pages[..]).run().unwrap();
            let found = [2, 3, 4, 6, 9].map(|page: usize| pages[page][0]);
            assert_eq!(found, [1, 21, 1, 12, 12 + u32::from(beside)], "tracker {tracker}, beside {beside}");
        }
    }
}
