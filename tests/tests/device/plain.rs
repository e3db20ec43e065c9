//! The plain path: data made on the CPU, changed by a kernel, read on the CPU.

use std::collections::HashSet;
use vksvm::PageState;
use vksvm_tests::{moving, open, spirv, with};

#[test]
fn a_kernel_reads_and_writes_vectors_of_the_heap() {
    let svm = open();
    let heap = svm.heap();
    let n = 100_000u32;
    let x = heap.vec_from_slice(&(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let mut y = heap.vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    for round in 1..4 {
        saxpy.launch([n.div_ceil(64), 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
        for (i, &value) in y.iter().enumerate() {
            assert_eq!(value, 2.0 * i as f32 * round as f32 + 1.0, "element {i} after round {round}");
        }
    }
}

#[test]
fn only_dirty_pages_come_home_and_untouched_ones_stay_on_the_device() {
    let svm = moving(|builder| builder);
    let heap = svm.heap();
    let n = 64 * 1024u32;
    let x = heap.vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    let mut y = heap.vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    saxpy.launch([n / 64, 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
    let info = svm.heap().page_info(&x[0]).unwrap();
    assert_eq!(info.state, PageState::Shared);
    assert!(info.faults > 0);
    assert!(matches!(svm.heap().page_info(&y[0]).unwrap().state, PageState::Device(_)));
    let before = svm.stats();
    assert!(x.iter().all(|&value| value == 1.0));
    assert_eq!(svm.stats().since(&before).pages_out, 0, "clean pages were copied home");
    assert!(y.iter().all(|&value| value == 3.0));
    assert_eq!(svm.stats().since(&before).pages_out, u64::from(n / 1024));
    let info = svm.heap().page_info(&y[0]).unwrap();
    assert!(info.dirty && info.accessed, "the dirty and accessed bits were not carried over: {info:?}");
    // Both sides have them now: nothing moves for another reading.
    let before = svm.stats();
    saxpy.launch([n / 64, 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
    assert_eq!(svm.stats().since(&before).pages_in, 0);
}

#[test]
fn pointers_of_a_linked_list_are_followed() {
    #[repr(C)]
    struct Node {
        next: *const Node,
        value: u32,
        pad: u32,
    }
    let svm = open();
    let heap = svm.heap();
    let lists = 100usize;
    let mut nodes = Vec::new();
    let mut heads = heap.vec_from_slice(&vec![std::ptr::null::<Node>(); lists]).unwrap();
    let mut expected = vec![0u32; lists];
    for i in 0..20_000u32 {
        let list = i as usize % lists;
        let node = heap.boxed(Node { next: heads[list], value: i, pad: 0 }).unwrap();
        heads[list] = &*node;
        expected[list] = expected[list].wrapping_add(i);
        nodes.push(node);
    }
    let mut sums = heap.vec_from_slice(&vec![0u32; lists]).unwrap();
    // SAFETY: the kernel reads the heads and what they lead to, and writes the sums.
    let chase = unsafe { svm.kernel("chase", spirv!("chase")) }.unwrap().idempotent();
    let report = chase
        .launch([(lists as u32).div_ceil(32), 1, 1])
        .read(&heads[..])
        .write(&mut sums[..])
        .value(lists as u32)
        .run()
        .unwrap();
    assert_eq!(&sums[..], &expected[..]);
    assert!(report.pages_in + report.pages_remote > 0 && report.device_faults > 0);
}

#[test]
fn three_dimensional_grids_run_every_workgroup_once() {
    let svm = open();
    let (nx, ny, nz) = (37u32, 19u32, 11u32);
    let mut marks = svm.heap().vec_from_slice(&vec![0u32; (nx * ny * nz) as usize]).unwrap();
    // SAFETY: the kernel writes the marks.
    let kernel = unsafe { svm.kernel("grid", spirv!("grid")) }.unwrap();
    kernel
        .launch([nx.div_ceil(4), ny.div_ceil(2), nz.div_ceil(2)])
        .write(&mut marks[..])
        .value([nx, ny, nz, 0])
        .run()
        .unwrap();
    for z in 0..nz {
        for y in 0..ny {
            for x in 0..nx {
                assert_eq!(marks[(x + nx * (y + ny * z)) as usize], 1 + x + 100 * y + 10_000 * z, "({x}, {y}, {z})");
            }
        }
    }
}

#[test]
fn launches_of_a_scope_run_in_order_and_end_with_it() {
    let svm = open();
    let n = 10_000u32;
    let x = svm.heap().vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![0.0f32; n as usize]).unwrap();
    let mut z = svm.heap().vec_from_slice(&vec![0.0f32; n as usize]).unwrap();
    // SAFETY: the kernel reads its first and second argument and writes the second.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    svm.scope(|scope| {
        let first =
            saxpy.launch([157, 1, 1]).read(&x[..]).write(&mut y[..]).value(3.0f32).value(n).submit(scope).unwrap();
        let second =
            saxpy.launch([157, 1, 1]).read(&x[..]).write(&mut z[..]).value(5.0f32).value(n).submit(scope).unwrap();
        first.wait().unwrap();
        drop(second);
    });
    assert!(y.iter().all(|&v| v == 3.0));
    assert!(z.iter().all(|&v| v == 5.0), "the scope ended before its launch");
}

#[test]
fn a_page_nobody_wrote_reads_as_zero_on_the_device_and_takes_no_frame() {
    let svm = open();
    let pages = 64u32;
    let data = svm.heap().vec_with_capacity::<u32>(pages as usize * 1024).unwrap();
    let mut out = svm.heap().vec_from_slice(&[7u32]).unwrap();
    // SAFETY: the kernel reads words of the data's allocation, which read as zeros, and writes `out`.
    let kernel = unsafe { svm.kernel("sum_pages", spirv!("sum_pages")) }.unwrap().idempotent();
    // SAFETY: the vector's memory stays allocated while the launch runs.
    let launch = unsafe { kernel.launch([1, 1, 1]).pointer(data.as_ptr()) };
    let report = launch.write(&mut out[..]).value([pages, pages]).run().unwrap();
    assert_eq!(out[0], 0);
    assert_eq!(report.pages_zero, u64::from(pages));
    assert_eq!(report.pages_in + report.pages_remote, 1, "only the page of `out` has contents");
}

#[test]
fn a_store_after_the_zero_frame_was_mapped_is_seen_by_the_device() {
    let svm = open();
    let mut data = svm.heap().vec_with_capacity::<u32>(4096).unwrap();
    let mut out = svm.heap().vec_from_slice(&[7u32]).unwrap();
    // SAFETY: as above.
    let kernel = unsafe { svm.kernel("sum_pages", spirv!("sum_pages")) }.unwrap().idempotent();
    for round in 0..3u32 {
        // SAFETY: the vector's memory stays allocated while the launch runs.
        let launch = unsafe { kernel.launch([1, 1, 1]).pointer(data.as_ptr()) };
        launch.write(&mut out[..]).value([4u32, 4u32]).run().unwrap();
        assert_eq!(out[0], round * 10);
        // SAFETY: the capacity is 4096 words; the memory reads as zeros where it was never written.
        unsafe { data.as_mut_ptr().add(1024).write((round + 1) * 10) };
    }
}

#[test]
fn a_queue_of_one_entry_loses_no_work() {
    let svm = with(|builder| builder.queue_capacity(1));
    let replay = svm.info().fault_mode.starts_with("replay");
    let n = 40_000u32;
    let x = svm.heap().vec_from_slice(&vec![2.0f32; n as usize]).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    let report =
        saxpy.launch([n.div_ceil(64), 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
    assert!(y.iter().all(|&value| value == 5.0));
    assert!(!replay || report.lost_faults > 0, "the queue was never full: {report}");
}

#[test]
fn handles_may_be_dropped_in_any_order() {
    let n = 4096u32;
    for order in 0..6 {
        let svm = open();
        let heap = svm.heap();
        let x = heap.vec_from_slice(&vec![2.0f32; n as usize]).unwrap();
        let mut y = heap.vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
        // SAFETY: the kernel reads x and y and writes y.
        let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
        saxpy.launch([n / 64, 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
        match order {
            0 => {
                drop(svm);
                drop(saxpy);
                assert!(y.iter().all(|&value| value == 5.0), "dirty pages did not come home");
            }
            1 => {
                drop(y);
                drop(svm);
            }
            2 => {
                drop(saxpy);
                drop(svm);
                drop(heap);
                assert!(y.iter().all(|&value| value == 5.0));
            }
            3 => {
                drop(svm);
                saxpy.launch([n / 64, 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
                assert!(y.iter().all(|&value| value == 9.0), "a kernel keeps the runtime alive");
            }
            4 => {
                drop((x, y));
                drop(heap);
                drop(saxpy);
            }
            _ => drop((saxpy, x, heap, y)),
        }
    }
    // Other tests' runtimes are in the way, unless each test has a process of its own.
    if std::env::var_os("NEXTEST").is_none() {
        return;
    }
    let leftover: HashSet<String> = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("vksvm"))
        .collect();
    assert!(leftover.is_empty(), "threads were left behind: {leftover:?}");
}
