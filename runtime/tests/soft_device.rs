//! The replay protocol on the reference device: what kernels see, what is replayed, and what ends a launch.

mod common;

use common::{soft, trackers, with_each_tracker};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use vksvm::device::soft::{SoftContext, SoftOptions};
use vksvm::kernel::FaultReason;
use vksvm::{Kernel, LaunchError, PageState, Svm};

const PAGE: usize = 4096;

/// Adds one to each element of an array of `u32`, one invocation an element.
fn increment(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let at = invocation.arguments::<u64>() + 4 * u64::from(invocation.global_id()[0]);
        let value: u32 = invocation.load(at);
        invocation.store(at, value.wrapping_add(1));
    };
    // SAFETY: it changes the array it is launched with, each element in one invocation.
    unsafe { svm.soft_kernel("increment", [64, 1, 1], 8, body) }.unwrap()
}

/// Sums an array of `u32`, one element every page, into the first element of another, with an atomic.
fn sum(svm: &Svm) -> Kernel {
    let body = |invocation: &mut SoftContext<'_>| {
        let [from, into] = invocation.arguments::<[u64; 2]>();
        let value: u32 = invocation.load(from + u64::from(invocation.global_id()[0]) * PAGE as u64);
        invocation.atomic_add(into, value);
    };
    // SAFETY: it reads one array and changes the other with atomics only.
    unsafe { svm.soft_kernel("sum", [1, 1, 1], 16, body) }.unwrap()
}

#[test]
fn a_kernel_that_may_not_be_repeated_changes_every_element_once() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut numbers = svm.heap().vec_from_slice(&(0..100_000u32).collect::<Vec<_>>()).unwrap();
            let groups = numbers.len().div_ceil(64) as u32;
            numbers.resize(groups as usize * 64, 0);
            let kernel = increment(svm);
            for _ in 0..3 {
                kernel.launch([groups, 1, 1]).write(&mut numbers[..]).run().unwrap();
            }
            for (index, &number) in numbers.iter().take(100_000).enumerate() {
                assert_eq!(number, index as u32 + 3);
            }
        },
    );
}

#[test]
fn atomics_count_every_workgroup_once_although_most_are_probed_several_times() {
    with_each_tracker(
        |builder| builder.frames(16),
        |svm| {
            let heap = svm.heap();
            let pages = 200;
            let mut numbers = heap.vec_zeroed::<[u32; PAGE / 4]>(pages).unwrap();
            numbers.iter_mut().enumerate().for_each(|(index, page)| page[0] = index as u32);
            let mut total = heap.boxed(0u32).unwrap();
            let report = sum(svm).launch([pages as u32, 1, 1]).read(&numbers[..]).write(&mut *total).run().unwrap();
            assert_eq!(*total, (0..pages as u32).sum());
            assert!(report.evictions > 0, "16 frames hold 200 pages: {report}");
        },
    );
}

#[test]
fn a_page_nobody_wrote_reads_as_zeros_and_takes_no_frame() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let heap = svm.heap();
            let numbers = heap.vec_zeroed::<[u32; PAGE / 4]>(50).unwrap();
            let mut total = heap.boxed(7u32).unwrap();
            let report = sum(svm).launch([50, 1, 1]).read(&numbers[..]).write(&mut *total).run().unwrap();
            assert_eq!(*total, 7);
            assert_eq!((report.pages_zero, report.pages_in), (50, 1), "{report}");
        },
    );
}

#[test]
fn the_state_of_a_page_follows_who_touches_it() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut numbers = svm.heap().vec_from_slice(&[1u32; 64]).unwrap();
            let state = |numbers: &[u32]| svm.heap().page_info(numbers.as_ptr()).unwrap().state;
            assert_eq!(state(&numbers), PageState::Cpu);
            increment(svm).launch([1, 1, 1]).write(&mut numbers[..]).run().unwrap();
            assert!(matches!(state(&numbers), PageState::Device(_)));
            assert_eq!(numbers[5], 2);
            assert_eq!(state(&numbers), PageState::Shared);
            numbers[5] = 9;
            assert_eq!(state(&numbers), PageState::Cpu);
            let info = svm.heap().page_info(numbers.as_ptr()).unwrap();
            assert!(info.accessed && info.dirty, "{info:?}");
        },
    );
}

#[test]
fn a_full_fault_queue_loses_no_work() {
    with_each_tracker(
        |builder| builder.queue_capacity(1),
        |svm| {
            let mut numbers = svm.heap().vec_from_slice(&vec![1u32; 64 * 1024]).unwrap();
            let report = increment(svm).launch([1024, 1, 1]).write(&mut numbers[..]).run().unwrap();
            assert!(report.lost_faults > 0);
            assert!(numbers.iter().all(|&number| number == 2));
        },
    );
}

#[test]
fn objects_may_straddle_pages() {
    let [tracker, ..] = trackers()[..] else { return };
    let svm = soft(tracker, |builder| builder).unwrap();
    let mut bytes = svm.heap().vec_from_slice(&vec![0u8; 4 * PAGE]).unwrap();
    (0..4 * PAGE).for_each(|index| bytes[index] = index as u8);
    // SAFETY: it changes 32 bytes of the array that it is launched with.
    let kernel = unsafe {
        svm.soft_kernel("straddle", [1, 1, 1], 8, |invocation| {
            let at = invocation.arguments::<u64>() + PAGE as u64 - 13;
            let object: [u8; 32] = invocation.load(at);
            invocation.store(at, object.map(|byte| byte ^ 0xff));
        })
    }
    .unwrap();
    kernel.launch([1, 1, 1]).write(&mut bytes[..]).run().unwrap();
    for (index, &byte) in bytes.iter().enumerate() {
        let changed = (PAGE - 13..PAGE + 19).contains(&index);
        assert_eq!(byte, index as u8 ^ if changed { 0xff } else { 0 }, "byte {index}");
    }
}

#[test]
fn a_fault_after_a_store_is_an_error_and_not_a_second_run() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let heap = svm.heap();
            let mut numbers = heap.vec_zeroed::<[u32; PAGE / 4]>(4).unwrap();
            // What it stores decides where it looks next: in the probe, which stores nothing, it looks elsewhere.
            // SAFETY: it changes the array that it is launched with.
            let kernel = unsafe {
                svm.soft_kernel("late", [1, 1, 1], 8, |invocation| {
                    let first = invocation.arguments::<u64>();
                    let count = invocation.atomic_add(first, 1);
                    let again: u32 = invocation.load(first);
                    if again > count {
                        invocation.store(first + 2 * PAGE as u64, 1u32);
                    }
                })
            }
            .unwrap();
            let error = kernel.launch([1, 1, 1]).write(&mut numbers[..]).run().unwrap_err();
            assert!(matches!(&error, LaunchError::LateFault(fault) if fault.reason == FaultReason::Late), "{error}");
            assert_eq!((numbers[0][0], numbers[2][0]), (1, 0));
        },
    );
}

#[test]
fn a_fatal_fault_says_what_and_where_and_leaves_no_page_waiting_for_ever() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut numbers = svm.heap().vec_from_slice(&vec![1u32; 64 * 64]).unwrap();
            // SAFETY: it reads only.
            let wild = unsafe {
                svm.soft_kernel("wild", [1, 1, 1], 8, |invocation| {
                    let at = invocation.arguments::<u64>();
                    match invocation.workgroup_id()[0] {
                        3 => invocation.load::<u32>(8),
                        group => invocation.load::<u32>(at + 4096 * u64::from(group % 3)),
                    };
                })
            }
            .unwrap();
            let error = wild.launch([4, 1, 1]).read(&numbers[..]).run().unwrap_err();
            let LaunchError::Fault(fault) = &error else { panic!("{error}") };
            assert_eq!((fault.reason, fault.workgroup), (FaultReason::Null, [3, 0, 0]));
            // The pages that it waited for when it ended must be reported again.
            increment(svm).launch([64, 1, 1]).write(&mut numbers[..]).run().unwrap();
            assert!(numbers.iter().all(|&number| number == 2));
        },
    );
}

#[test]
fn a_workgroup_that_needs_more_frames_than_there_are_fails_and_the_next_launch_runs() {
    with_each_tracker(
        |builder| builder.frames(4),
        |svm| {
            let mut numbers = svm.heap().vec_from_slice(&vec![1u32; 64 * 256]).unwrap();
            // SAFETY: it reads only.
            let greedy = unsafe {
                svm.soft_kernel("greedy", [1, 1, 1], 8, |invocation| {
                    let at = invocation.arguments::<u64>();
                    for page in 0..8 {
                        invocation.load::<u32>(at + 4096 * page);
                    }
                })
            }
            .unwrap();
            let error = greedy.launch([2, 1, 1]).read(&numbers[..]).run().unwrap_err();
            assert!(matches!(error, LaunchError::OutOfFrames { frames: 4, .. }), "{error}");
            increment(svm).launch([256, 1, 1]).write(&mut numbers[..]).run().unwrap();
            assert!(numbers.iter().all(|&number| number == 2));
        },
    );
}

#[test]
fn a_kernel_that_does_not_translate_is_found() {
    with_each_tracker(
        |builder| builder.trap_untranslated(true),
        |svm| {
            let numbers = svm.heap().vec_from_slice(&[5u32; 64]).unwrap();
            // SAFETY: it reads only. That it does so past the translation is what is tested; the vector outlives the launch.
            let kernel = unsafe {
                svm.soft_kernel("cheat", [1, 1, 1], 8, |invocation| {
                    let at = std::ptr::with_exposed_provenance::<u32>(invocation.arguments::<u64>() as usize);
                    std::hint::black_box(at.read_volatile());
                })
            }
            .unwrap();
            let error = kernel.launch([1, 1, 1]).read(&numbers[..]).run().unwrap_err();
            assert!(matches!(error, LaunchError::Untranslated { .. }), "{error}");
        },
    );
}

#[test]
fn a_panicking_kernel_ends_its_launch_only() {
    let [tracker, ..] = trackers()[..] else { return };
    let svm = soft(tracker, |builder| builder).unwrap();
    let mut numbers = svm.heap().vec_from_slice(&[1u32; 64]).unwrap();
    // SAFETY: it reads only.
    let broken = unsafe {
        svm.soft_kernel("broken", [1, 1, 1], 8, |invocation| {
            let at = invocation.arguments::<u64>();
            invocation.load::<u32>(at);
            panic!("out of luck");
        })
    }
    .unwrap();
    let error = broken.launch([3, 1, 1]).read(&numbers[..]).run().unwrap_err();
    assert!(error.to_string().contains("out of luck"), "{error}");
    // Neither does the page that it waited for wait for ever, nor is its fault taken for the next kernel's.
    increment(&svm).launch([1, 1, 1]).write(&mut numbers[..]).run().unwrap();
    assert_eq!(numbers[63], 2);
}

#[test]
fn one_worker_runs_workgroups_in_an_order_that_the_seed_decides() {
    let [tracker, ..] = trackers()[..] else { return };
    let order = |seed| {
        let options = SoftOptions { seed, ..SoftOptions::default() };
        let svm = soft(tracker, |builder| builder.soft_device(options)).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let body = move |invocation: &mut SoftContext<'_>| log.lock().unwrap().push(invocation.workgroup_id());
        // SAFETY: it touches nothing of the heap.
        let kernel = unsafe { svm.soft_kernel("order", [1, 1, 1], 0, body) }.unwrap().idempotent();
        kernel.launch([4, 3, 2]).run().unwrap();
        seen.lock().unwrap().clone()
    };
    let plain = order(None);
    assert_eq!((plain[0], plain[1], plain[4], plain[12]), ([0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]));
    assert_eq!(order(Some(1)), order(Some(1)));
    assert_ne!(order(Some(1)), plain);
}

#[test]
fn several_workers_share_a_launch() {
    let [tracker, ..] = trackers()[..] else { return };
    let options = SoftOptions { workers: 3, ..SoftOptions::default() };
    let svm = soft(tracker, |builder| builder.soft_device(options)).unwrap();
    let runs = Arc::new(AtomicU32::new(0));
    let count = runs.clone();
    let mut total = svm.heap().boxed(0u32).unwrap();
    // SAFETY: it changes the number that it is launched with, with atomics.
    let kernel = unsafe {
        svm.soft_kernel("count", [4, 1, 1], 8, move |invocation| {
            count.fetch_add(1, Ordering::Relaxed);
            let total = invocation.arguments::<u64>();
            invocation.atomic_add(total, 1);
        })
    }
    .unwrap();
    kernel.launch([1000, 1, 1]).write(&mut *total).run().unwrap();
    assert_eq!(*total, 4000);
    assert!(runs.load(Ordering::Relaxed) >= 8000, "a probe comes before the real pass");
}

#[test]
fn the_reference_device_refuses_shaders() {
    let [tracker, ..] = trackers()[..] else { return };
    let svm = soft(tracker, |builder| builder).unwrap();
    let shader = include_bytes!("../../tests/shaders/spv/saxpy.spv");
    // SAFETY: it is not run.
    let error = unsafe { svm.kernel("saxpy", shader) }.err().expect("refused");
    assert!(error.to_string().contains("Rust functions"), "{error}");
}

#[test]
fn a_page_read_as_zeros_and_then_written_has_been_accessed() {
    with_each_tracker(
        |builder| builder,
        |svm| {
            let mut numbers = svm.heap().vec_zeroed::<u32>(PAGE / 4).unwrap();
            let page = numbers.as_ptr();
            let mut total = svm.heap().boxed(0u32).unwrap();
            sum(svm).launch([1, 1, 1]).read(&numbers[..]).write(&mut *total).run().unwrap();
            assert!(!svm.heap().page_info(page).unwrap().accessed, "collected when the entry goes");
            // It asks for the page and does not use it: the fault is served, and what was known must stay known.
            let asked = AtomicU32::new(0);
            // SAFETY: it changes the array that it is launched with.
            let kernel = unsafe {
                svm.soft_kernel("ask", [1, 1, 1], 8, move |invocation| {
                    if asked.fetch_add(1, Ordering::Relaxed) == 0 {
                        let at = invocation.arguments::<u64>();
                        invocation.store(at, 1u32);
                    }
                })
            }
            .unwrap();
            kernel.launch([1, 1, 1]).write(&mut numbers[..]).run().unwrap();
            assert_eq!(numbers[0], 0);
            assert!(svm.heap().page_info(page).unwrap().accessed);
        },
    );
}
