//! Hints act, and change nothing but where pages are; what is discarded is not moved.

mod common;

use common::{increment, soft, trackers, with_each_tracker};
use vksvm::addr::VirtAddr;
use vksvm::device::soft::{SoftContext, SoftOptions};
use vksvm::mm::ops::Span;
use vksvm::{AdviceError, Hint, Kernel, Location, OpError, PageState, Permission, Placement, Stats, Svm, SvmVec};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 4;
type Page = [u32; WORDS];

/// Adds the first words of all pages but the last to that of the last.
fn sum(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [from, pages, to] = invocation.arguments::<[u64; 3]>();
        let sum: u32 = (0..pages).map(|page| invocation.load::<u32>(from + page * PAGE as u64)).sum();
        invocation.store(to, sum);
    };
    // SAFETY: it reads the array and writes the word that it is launched with.
    unsafe { svm.soft_kernel("sum", [1, 1, 1], 24, body) }.unwrap()
}

/// Has the device read all pages; checks the sum and returns what the launch did.
fn read_all(svm: &Svm, kernel: &Kernel, pages: &[Page]) -> Stats {
    let expected = pages.iter().map(|page| page[0]).sum::<u32>();
    let mut result = svm.heap().vec_zeroed::<Page>(1).unwrap();
    // Not the array's frame matters here.
    svm.prefetch_and_wait(&result[..], svm.location()).unwrap();
    let launch = kernel.launch([1, 1, 1]).read(pages).value(pages.len() as u64).write(&mut result[..]);
    let report = launch.run().unwrap();
    assert_eq!(result[0][0], expected);
    report
}

fn filled(svm: &Svm, count: usize) -> SvmVec<Page> {
    svm.heap().vec_from_slice(&(0..count as u32).map(|n| [n + 1; WORDS]).collect::<Vec<_>>()).unwrap()
}

fn state<T>(svm: &Svm, object: &T) -> PageState {
    svm.heap().page_info(object).unwrap().state
}

fn on_device(state: PageState) -> bool {
    matches!(state, PageState::Device(_))
}

#[test]
fn what_was_prefetched_to_the_device_is_not_missed_and_comes_home_when_asked() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = filled(svm, 5000);
            let kernel = increment(svm);
            let before = svm.stats();
            let under_way = svm.prefetch(&pages[..], svm.location()).unwrap();
            assert_eq!(under_way.wait().unwrap(), 5000);
            let moved = svm.stats().since(&before);
            assert_eq!((moved.pages_in, moved.pages_brought, moved.device_faults), (5000, 5000, 0), "{moved}");
            let report = kernel.launch([5000, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!((report.device_faults, report.pages_in), (0, 0), "{report}");

            let before = svm.stats();
            assert_eq!(svm.prefetch_and_wait(&pages[..], Location::Cpu).unwrap(), 5000);
            let moved = svm.stats().since(&before);
            assert_eq!((moved.pages_out, moved.pages_in), (5000, 0), "{moved}");
            for (n, page) in pages.iter_mut().enumerate() {
                assert_eq!(page[..2], [n as u32 + 2, n as u32 + 1]);
                page[1] = 7;
            }
            assert_eq!(svm.stats().since(&before).cpu_faults, 0, "the CPU was let in");
            assert_eq!(svm.prefetch_and_wait(&pages[..], Location::Cpu).unwrap(), 0, "nothing is left to move");
        },
    );
}

#[test]
fn a_prefetch_of_more_than_fits_takes_three_quarters_and_makes_room_where_pages_lie_idle() {
    with_each_tracker(
        |builder| builder.frames(400),
        |svm| {
            let (mut old, mut new) = (filled(svm, 390), filled(svm, 1000));
            let kernel = increment(svm);
            kernel.launch([390, 1, 1]).write(&mut old[..]).run().unwrap();
            assert_eq!(svm.prefetch_and_wait(&new[..], svm.location()).unwrap(), 300);
            assert!(new[..300].iter().all(|page| on_device(state(svm, page))));
            let report = kernel.launch([300, 1, 1]).write(&mut new[..300]).run().unwrap();
            assert_eq!(report.device_faults, 0, "{report}");
            assert!(old.iter().enumerate().all(|(n, page)| page[0] == n as u32 + 2), "evicted pages came home");
        },
    );
}

#[test]
fn both_sides_keep_copies_of_what_is_mostly_read() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = filled(svm, 64);
            let kernel = sum(svm);
            svm.prefetch_and_wait(&pages[..], svm.location()).unwrap();
            assert!(on_device(state(svm, &pages[9])), "without the hint the device has them alone");
            svm.prefetch_and_wait(&pages[..], Location::Cpu).unwrap();

            svm.advise(&pages[..], Hint::ReadMostly(true)).unwrap();
            let before = svm.stats();
            svm.prefetch_and_wait(&pages[..], svm.location()).unwrap();
            assert!(pages.iter().all(|page| state(svm, page) == PageState::Shared));
            assert_eq!(pages.iter().map(|page| page[0]).sum::<u32>(), 64 * 65 / 2);
            assert_eq!(svm.stats().since(&before).cpu_faults, 0, "the CPU kept its mapping");
            svm.prefetch_and_wait(&pages[..], Location::Cpu).unwrap();
            let report = read_all(svm, &kernel, &pages);
            assert_eq!((report.device_faults, report.pages_in), (0, 0), "the device kept its copies: {report}");
            // A store takes the copy of its page away, and of no other.
            pages[5][0] += 1;
            let report = read_all(svm, &kernel, &pages);
            assert_eq!(report.pages_in, 1, "{report}");
        },
    );
}

#[test]
fn readers_of_what_is_mostly_read_have_copies_where_others_map_home_pages() {
    for tracker in trackers() {
        let first = soft(tracker, |builder| builder.placement(Placement::Remote)).unwrap();
        let second = soft(tracker, |builder| builder.placement(Placement::Remote).share_heap_with(&first)).unwrap();
        let pages = filled(&first, 32);
        let kernels = [sum(&first), sum(&second)];
        assert_eq!(read_all(&first, &kernels[0], &pages).pages_in, 0);
        assert_eq!(state(&first, &pages[3]), PageState::Remote);
        first.advise(&pages[..], Hint::ReadMostly(true)).unwrap();
        for (svm, kernel) in [&first, &second].into_iter().zip(&kernels) {
            assert_eq!(read_all(svm, kernel, &pages).pages_in, 32);
        }
        for (svm, kernel) in [&first, &second].into_iter().zip(&kernels) {
            let report = read_all(svm, kernel, &pages);
            assert_eq!((report.pages_in, report.device_faults), (0, 0), "each keeps its copies: {report}");
        }
        first.advise(&pages[..], Hint::ReadMostly(false)).unwrap();
    }
}

#[test]
fn pages_that_prefer_the_cpu_are_used_where_they_are_until_the_hint_is_taken_back() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = filled(svm, 40);
            let kernel = increment(svm);
            svm.advise(&pages[..20], Hint::PreferredLocation(Some(Location::Cpu))).unwrap();
            let report = kernel.launch([40, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!((report.pages_in, report.pages_remote), (20, 20), "{report}");
            assert_eq!(state(svm, &pages[0]), PageState::Remote);
            svm.advise(&pages[..], Hint::PreferredLocation(None)).unwrap();
            let report = kernel.launch([40, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!((report.pages_in, report.pages_remote), (20, 0), "{report}");
            assert!(pages.iter().enumerate().all(|(n, page)| page[0] == n as u32 + 3));
        },
    );
}

#[test]
fn pages_that_prefer_a_device_are_copied_to_it_where_others_are_used_at_home() {
    with_each_tracker(
        |builder| builder.placement(Placement::Remote),
        |svm| {
            let mut pages = filled(svm, 40);
            svm.advise(&pages[..20], Hint::PreferredLocation(Some(svm.location()))).unwrap();
            let report = increment(svm).launch([40, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!((report.pages_in, report.pages_remote), (20, 20), "{report}");
            assert!(pages.iter().enumerate().all(|(n, page)| page[0] == n as u32 + 2));
        },
    );
}

#[test]
fn eviction_takes_those_that_prefer_the_cpu_first_and_those_that_prefer_the_device_last() {
    let without = SoftOptions { imports: false, ..SoftOptions::default() };
    with_each_tracker(
        |builder| builder.frames(96).prefetch(false).soft_device(without.clone()),
        |svm| {
            // Whole granules, so that preferences do not meet in one.
            let whole = |pages| {
                let request = vksvm::MapRequest::new(pages * PAGE as u64, Permission::ReadWrite).align(64 << 10);
                svm.map_as(&request).unwrap()
            };
            let kernel = increment(svm);
            for keep in 0..3 {
                let mut arrays: Vec<_> = (0..3).map(|_| whole(32)).collect();
                svm.advise(arrays[keep].as_slice(), Hint::PreferredLocation(Some(svm.location()))).unwrap();
                svm.advise(arrays[(keep + 1) % 3].as_slice(), Hint::PreferredLocation(Some(Location::Cpu))).unwrap();
                for array in &mut arrays {
                    kernel.launch([32, 1, 1]).write(array.as_mut_slice().unwrap()).run().unwrap();
                }
                let left = |array: &vksvm::Mapping| {
                    let page =
                        |n: usize| svm.address_space().page_info(VirtAddr::of(&raw const array.as_slice()[n * PAGE]));
                    (0..32).filter(|&n| on_device(page(n).unwrap().state)).count()
                };
                let mut more = whole(32);
                kernel.launch([32, 1, 1]).write(more.as_mut_slice().unwrap()).run().unwrap();
                let kept: Vec<_> = (0..3).map(|n| left(&arrays[(keep + n) % 3])).collect();
                assert!(kept[0] == 32 && kept[1] == 0 && kept[2] == 32, "{kept:?}");
            }
        },
    );
}

#[test]
fn a_device_that_is_going_to_access_pages_maps_them_ahead_and_moves_nothing() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = filled(svm, 300);
            let Location::Device(device) = svm.location() else { panic!() };
            let before = svm.stats();
            assert_eq!(svm.advise_and_wait(&pages[..], Hint::AccessedBy(device, true)).unwrap(), 300);
            let report = increment(svm).launch([300, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!(report.device_faults, 0, "{report}");
            assert!(pages.iter().enumerate().all(|(n, page)| page[0] == n as u32 + 2));
            let done = svm.stats().since(&before);
            assert_eq!((done.pages_in, done.pages_out, done.pages_remote), (0, 0, 300), "{done}");
            svm.advise(&pages[..], Hint::AccessedBy(device, false)).unwrap();
            let report = increment(svm).launch([300, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!((report.pages_in, report.pages_remote), (300, 0), "{report}");
            assert!(pages.iter().enumerate().all(|(n, page)| page[0] == n as u32 + 3));
        },
    );
}

#[test]
fn hints_that_a_device_cannot_follow_do_nothing() {
    let without = SoftOptions { imports: false, ..SoftOptions::default() };
    with_each_tracker(
        |builder| builder.soft_device(without.clone()),
        |svm| {
            let mut pages = filled(svm, 20);
            let Location::Device(device) = svm.location() else { panic!() };
            let other = vksvm::mm::pages::DeviceNumber(77);
            for hint in [
                Hint::AccessedBy(device, true),
                Hint::AccessedBy(other, true),
                Hint::PreferredLocation(Some(Location::Cpu)),
                Hint::PreferredLocation(Some(Location::Device(other))),
            ] {
                assert_eq!(svm.advise_and_wait(&pages[..], hint).unwrap(), 0);
            }
            assert_eq!(svm.prefetch_and_wait(&pages[..], Location::Device(other)).unwrap(), 0);
            let report = increment(svm).launch([20, 1, 1]).write(&mut pages[..]).run().unwrap();
            assert_eq!((report.pages_in, report.pages_remote), (20, 0), "{report}");
            assert!(pages.iter().enumerate().all(|(n, page)| page[0] == n as u32 + 2));
        },
    );
}

#[test]
fn nothing_is_fetched_ahead_of_random_accesses_on_either_side() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            // Three pages of four, so that there are holes to fill.
            let body = |invocation: &mut SoftContext<'_>| {
                let id = u64::from(invocation.global_id()[0]);
                let at = invocation.arguments::<u64>() + PAGE as u64 * (id + id / 3);
                let value: u32 = invocation.load(at);
                invocation.store(at, value + 1);
            };
            // SAFETY: it changes the array it is launched with, each page in one invocation.
            let kernel = unsafe { svm.soft_kernel("most", [1, 1, 1], 8, body) }.unwrap();
            let mut guessed = Vec::new();
            for random in [false, true] {
                let mut pages = filled(svm, 2000);
                svm.advise(&pages[..], Hint::Random(random)).unwrap();
                let before = svm.stats();
                for from in [0, 100, 200, 300, 400] {
                    kernel.launch([75, 1, 1]).write(&mut pages[from..from + 100]).run().unwrap();
                }
                let done = svm.stats().since(&before);
                guessed.push((done.pages_filled > 0, pages.iter().fold(0, |sum, page| sum + page[0] as usize)));
                let faults = svm.stats().since(&before).cpu_faults;
                assert!(if random { faults >= 375 } else { faults < 300 }, "{faults} CPU faults, random: {random}");
            }
            let total = 2000 * 2001 / 2 + 375;
            assert_eq!(guessed, [(true, total), (false, total)]);
        },
    );
}

#[test]
fn hints_reach_over_vmas_and_stay_with_pages_that_are_split_off_and_moved() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut lower = svm.map(8 * PAGE, Permission::ReadWrite).unwrap();
            let said = |mapping: &vksvm::Mapping, page: usize| {
                let advice = svm.address_space().advice_at(VirtAddr(mapping.start().0 + (page * PAGE) as u64));
                advice.unwrap().is_read_mostly()
            };
            let mut upper = lower.split_off(4 * PAGE).unwrap();
            lower.protect(0..PAGE, Permission::ReadOnly).unwrap();
            let all = std::ptr::slice_from_raw_parts(lower.as_ptr().cast_const().wrapping_add(PAGE / 2), 7 * PAGE);
            // Touches all eight pages, in three VMAs.
            svm.advise(all, Hint::ReadMostly(true)).unwrap();
            assert!((0..4).all(|page| said(&lower, page) && said(&upper, page)));
            svm.advise(&upper.as_slice()[PAGE..PAGE + 1], Hint::ReadMostly(false)).unwrap();
            upper.move_to(None).unwrap();
            assert_eq!((0..4).map(|page| said(&upper, page)).collect::<Vec<_>>(), [true, false, true, true]);
            let gone = lower.start();
            drop(lower);
            assert_eq!(svm.address_space().advice_at(gone), None);
            let fresh = svm.map_as(&vksvm::MapRequest::new(4 * PAGE as u64, Permission::ReadWrite).at(gone)).unwrap();
            assert!((0..4).all(|page| !said(&fresh, page)), "what is mapped there next has none of it");
        },
    );
}

#[test]
fn ranges_that_are_not_there_are_refused_and_empty_ones_do_nothing() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mapping = svm.map(4 * PAGE, Permission::ReadWrite).unwrap();
            let ordinary = [0u8; 8];
            let beyond = std::ptr::slice_from_raw_parts(mapping.as_ptr().cast_const(), 16 << 20);
            for to in [Location::Cpu, svm.location()] {
                let outside = svm.prefetch(&ordinary[..], to).unwrap_err();
                assert!(matches!(outside, AdviceError::Range(OpError::OutsideHeap { .. })), "{outside}");
                let hole = svm.prefetch(beyond, to).unwrap_err();
                assert!(matches!(hole, AdviceError::Range(OpError::Unmapped { .. })), "{hole}");
                assert!(hole.to_string().contains("not mapped"), "{hole}");
                assert_eq!(svm.prefetch_and_wait(&mapping.as_slice()[..0], to).unwrap(), 0);
            }
            let hole = svm.advise(beyond, Hint::Random(true)).unwrap_err();
            assert!(matches!(hole, AdviceError::Range(OpError::Unmapped { .. })), "{hole}");
            let span = Span { start: mapping.start(), bytes: 0 };
            assert!(matches!(svm.address_space().advise_span(span, Hint::Random(true)), Err(OpError::Empty { .. })));
            assert!(!svm.address_space().advice_at(mapping.start()).unwrap().is_random(), "nothing was noted");
        },
    );
}

#[test]
fn objects_may_straddle_a_border_that_only_advice_drew() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = filled(svm, 8);
            svm.advise(&pages[2..4], Hint::Random(true)).unwrap();
            let body = |invocation: &mut SoftContext<'_>| {
                let at = invocation.arguments::<u64>() + (u64::from(invocation.global_id()[0]) + 1) * PAGE as u64 - 8;
                let [a, b, c, d] = invocation.load::<[u32; 4]>(at);
                invocation.store(at, [b, a, d, c]);
            };
            // SAFETY: it changes what lies around the borders of the array's pages.
            let swap = unsafe { svm.soft_kernel("swap", [1, 1, 1], 8, body) }.unwrap();
            pages.iter_mut().for_each(|page| (page[0], page[WORDS - 1]) = (100, 200));
            swap.launch([7, 1, 1]).write(&mut pages[..]).run().unwrap();
            for page in 0..7 {
                assert_eq!(pages[page][WORDS - 2..], [200, page as u32 + 1], "page {page}");
                assert_eq!(pages[page + 1][..2], [page as u32 + 2, 100], "page {}", page + 1);
            }
        },
    );
}

#[test]
fn discarded_pages_are_not_moved_in_either_direction_and_read_as_zeros() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = filled(svm, 400);
            let kernel = increment(svm);
            // Dirty on the device, and only there.
            kernel.launch([400, 1, 1]).write(&mut pages[..]).run().unwrap();
            let before = svm.stats();
            assert_eq!(svm.discard(&mut pages[..]).unwrap(), 400);
            assert!(pages.iter().all(|page| page.iter().all(|&word| word == 0)));
            let done = svm.stats().since(&before);
            assert_eq!((done.bytes_in(), done.bytes_out()), (0, 0), "nothing comes home: {done}");

            // Newest on the CPU.
            pages.iter_mut().for_each(|page| page[0] = 9);
            let before = svm.stats();
            assert_eq!(svm.discard(&mut pages[..]).unwrap(), 400);
            kernel.launch([400, 1, 1]).write(&mut pages[..]).run().unwrap();
            let done = svm.stats().since(&before);
            assert_eq!((done.bytes_in(), done.bytes_out()), (0, 0), "nothing goes to the device: {done}");
            assert!(pages.iter().all(|page| page[0] == 1));
        },
    );
}

#[test]
fn what_lies_on_pages_that_reach_beyond_the_discarded_values_keeps_its_value() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = filled(svm, 6);
            let words: &mut [u32] = bytemuck::cast_slice_mut(&mut pages[..]);
            let from = WORDS / 2;
            let (first, last) = (words[from], words[5 * WORDS]);
            assert_eq!(svm.discard(&mut words[from..5 * WORDS + 1]).unwrap(), 4);
            assert_eq!((words[from], words[5 * WORDS]), (first, last));
            assert!(words[WORDS..5 * WORDS].iter().all(|&word| word == 0));
            assert_eq!(svm.discard(&mut words[1..WORDS]).unwrap(), 0, "no whole page lies inside");
            assert_eq!(svm.discard(&mut words[..0]).unwrap(), 0);
        },
    );
}

#[test]
fn read_only_and_foreign_memory_is_not_discarded() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut mapping = svm.map(4 * PAGE, Permission::ReadWrite).unwrap();
            mapping.as_mut_slice().unwrap().fill(3);
            mapping.protect(2 * PAGE..3 * PAGE, Permission::ReadOnly).unwrap();
            let values = std::ptr::slice_from_raw_parts_mut(mapping.as_ptr(), 4 * PAGE);
            // SAFETY: refused; nobody else uses the mapping.
            let refused = unsafe { svm.discard_without_waiting(values) }.unwrap().wait().unwrap_err();
            assert!(matches!(refused, AdviceError::Range(OpError::ReadOnly { .. })), "{refused}");
            assert!(mapping.as_slice().iter().all(|&byte| byte == 3), "nothing was discarded");
            let refused = svm.discard(&mut [0u8; PAGE][..]).unwrap_err();
            assert!(matches!(refused, AdviceError::Range(OpError::OutsideHeap { .. })), "{refused}");
        },
    );
}

#[test]
fn discarding_without_waiting_is_done_when_it_was_waited_for() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut pages = filled(svm, 5000);
            increment(svm).launch([5000, 1, 1]).write(&mut pages[..]).run().unwrap();
            let before = svm.stats();
            // SAFETY: nobody uses the pages until it is done.
            let under_way = unsafe { svm.discard_without_waiting(&raw mut pages[..]) }.unwrap();
            assert_eq!(under_way.wait().unwrap(), 5000);
            assert!(pages.iter().all(|page| page[0] == 0));
            assert_eq!(svm.stats().since(&before).bytes_out(), 0);
        },
    );
}

#[test]
fn what_is_asked_for_and_not_waited_for_does_not_keep_a_runtime_from_closing() {
    for tracker in trackers() {
        let svm = soft(tracker, |builder| builder).unwrap();
        let pages = filled(&svm, 3000);
        let heap = svm.heap();
        let asked = [svm.prefetch(&pages[..], svm.location()), svm.prefetch(&pages[..], Location::Cpu)];
        drop(svm);
        asked.into_iter().for_each(|asked| drop(asked.unwrap().wait()));
        assert!(pages.iter().enumerate().all(|(n, page)| page[0] == n as u32 + 1));
        drop(heap);
    }
}
