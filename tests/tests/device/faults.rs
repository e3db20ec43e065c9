//! Objects that straddle pages, and accesses that cannot be served.

use vksvm::kernel::{FaultReason, KernelFault};
use vksvm::{FaultMode, LaunchError};
use vksvm_tests::{moving, open, spirv, with};

fn fault(error: LaunchError) -> KernelFault {
    match error {
        LaunchError::Fault(fault) => *fault,
        other => panic!("not a kernel fault: {other}"),
    }
}

#[test]
fn objects_at_every_offset_are_read_and_written_whole() {
    // Few frames: neighbouring pages do not get neighbouring frames, so straddling objects need assembling.
    for frames in [7, 100_000] {
        let svm = moving(|builder| builder.frames(frames));
        let heap = svm.heap();
        let pages = 40usize;
        let mut data = heap.vec_from_slice(&(0..pages as u32 * 1024).collect::<Vec<_>>()).unwrap();
        let mut object = heap.vec_from_slice(&[0u32; 512]).unwrap();
        // SAFETY: the kernel copies `bytes` between the two arguments, which are large enough.
        let peek = unsafe { svm.kernel("peek", spirv!("peek")) }.unwrap();
        for round in 0..60usize {
            let words = [1, 3, 16, 100, 512][round % 5];
            let at = 1024 * (1 + round % (pages - 2)) - round % (words + 1);
            peek.launch([1, 1, 1])
                .write(&mut data[at..at + words])
                .write(&mut object[..])
                .value([words as u32 * 4, 0])
                .run()
                .unwrap();
            assert_eq!(&object[..words], &data[at..at + words], "read of {words} words at {at}, {frames} frames");
            for (i, word) in object.iter_mut().enumerate() {
                *word = (round * 1000 + i) as u32;
            }
            let (before, after) = (data[at - 1], data[at + words]);
            peek.launch([1, 1, 1])
                .write(&mut data[at..at + words])
                .write(&mut object[..])
                .value([words as u32 * 4, 1])
                .run()
                .unwrap();
            assert_eq!(&object[..words], &data[at..at + words], "write of {words} words at {at}, {frames} frames");
            assert_eq!((data[at - 1], data[at + words]), (before, after), "neighbours were changed");
        }
    }
}

#[test]
fn a_null_pointer_ends_the_launch_and_names_the_place() {
    let svm = open();
    let mut out = svm.heap().vec_from_slice(&[0u32; 4]).unwrap();
    // SAFETY: the kernel faults before it does anything.
    let peek = unsafe { svm.kernel("peek", spirv!("peek")) }.unwrap();
    // SAFETY: null is allowed.
    let launch = unsafe { peek.launch([1, 1, 1]).pointer(std::ptr::null::<u32>()) };
    let error = launch.write(&mut out[..]).value([4u32, 0]).run().unwrap_err();
    let text = error.to_string();
    let fault = fault(error);
    assert_eq!(fault.reason, FaultReason::Null);
    assert_eq!(fault.workgroup, [0, 0, 0]);
    for part in ["peek", "null pointer", "workgroup (0, 0, 0)", "0x0"] {
        assert!(text.contains(part), "the message lacks {part:?}: {text}");
    }
    // The runtime stays usable.
    out[0] = 5;
    let data = svm.heap().vec_from_slice(&[9u32; 4]).unwrap();
    peek.launch([1, 1, 1]).read(&data[..]).write(&mut out[..]).value([4u32, 0]).run().unwrap();
    assert_eq!(out[0], 9);
}

#[test]
fn freed_memory_cannot_be_read() {
    let svm = open();
    let heap = svm.heap();
    let mut cell = heap.vec_from_slice(&[0u64; 1]).unwrap();
    let mut out = heap.vec_from_slice(&[0u32; 4]).unwrap();
    let gone = heap.vec_from_slice(&vec![1u32; 100_000]).unwrap();
    cell[0] = gone.as_ptr() as u64;
    let address = gone.as_ptr();
    drop(gone);
    // SAFETY: the kernel faults before it does anything.
    let peek = unsafe { svm.kernel("peek", spirv!("peek")) }.unwrap();
    // At launch, a pointer argument to freed memory is refused.
    // SAFETY: the launch does not start.
    let refused = unsafe { peek.launch([1, 1, 1]).pointer(address) }.write(&mut out[..]).value([4u32, 0]).run();
    assert!(matches!(refused, Err(LaunchError::NotAllocated { index: 0, .. })), "{refused:?}");
    // Reached through memory, it is a fault.
    // SAFETY: the kernel faults on the first node.
    let late = unsafe { svm.kernel("chase", spirv!("chase")) }.unwrap().idempotent();
    let error = late.launch([1, 1, 1]).read(&cell[..]).write(&mut out[..]).value(1u32).run().unwrap_err();
    let fault = fault(error);
    assert_eq!(fault.reason, FaultReason::Unmapped);
    assert_eq!(fault.address.0, address as u64);
    assert!(fault.nearest.is_some());
}

#[test]
fn an_object_past_its_mappings_end_is_refused() {
    let svm = open();
    let heap = svm.heap();
    // A large allocation has a mapping of its own.
    let words = 64 * 1024usize;
    let data = heap.vec_from_slice(&vec![3u32; words]).unwrap();
    let neighbour = heap.vec_from_slice(&vec![4u32; words]).unwrap();
    let mut out = heap.vec_from_slice(&[0u32; 4]).unwrap();
    // SAFETY: the kernel faults on the last read.
    let peek = unsafe { svm.kernel("peek", spirv!("peek")) }.unwrap();
    for target in [&data, &neighbour] {
        peek.launch([1, 1, 1]).read(&target[..]).write(&mut out[..]).value([16u32, 0]).run().unwrap();
        let error =
            peek.launch([1, 1, 1]).read(&target[words - 2..]).write(&mut out[..]).value([16u32, 0]).run().unwrap_err();
        let fault = fault(error);
        assert!(matches!(fault.reason, FaultReason::PastEnd | FaultReason::Unmapped), "{fault}");
        assert_eq!(fault.bytes, if fault.reason == FaultReason::PastEnd { 16 } else { fault.bytes });
    }
}

#[test]
fn a_late_fault_is_an_error_and_not_a_repeated_store() {
    // In live mode the kernel would wait for the page and go on.
    let svm = with(|builder| builder.fault_mode(FaultMode::Replay));
    let heap = svm.heap();
    let mut cell = heap.vec_from_slice(&[0u64; 1]).unwrap();
    let target = heap.vec_from_slice(&vec![11u32; 100_000]).unwrap();
    let mut out = heap.vec_from_slice(&vec![0u32; 20_000]).unwrap();
    // SAFETY: the kernel stores to `cell` and `out` and reads `target`.
    let late = unsafe { svm.kernel("late", spirv!("late")) }.unwrap();
    let launch = late.launch([1, 1, 1]).write(&mut cell[..]).read(&target[..]).write(&mut out[..]);
    match launch.run() {
        Err(LaunchError::LateFault(fault)) => assert_eq!(fault.reason, FaultReason::Late),
        other => panic!("expected a late fault, got {other:?}"),
    }
    // With its pages at hand, the same launch goes through.
    let idempotent = late.idempotent();
    idempotent.launch([1, 1, 1]).write(&mut cell[..]).read(&target[..]).write(&mut out[..]).run().unwrap();
    assert_eq!(out[0], 11);
}
