//! Mappings that the program owns: permissions, and operations on parts, with shaders at work on them.

use vksvm::kernel::FaultReason;
use vksvm::{Kernel, LaunchError, Mapping, Permission, Svm};
use vksvm_tests::{moving, open, spirv};

const PAGE: usize = 4096;

/// Loads or stores an object of one word.
fn peek(svm: &Svm) -> Kernel {
    // SAFETY: the kernel copies `bytes` between the two arguments, which are large enough.
    unsafe { svm.kernel("peek", spirv!("peek")) }.unwrap()
}

/// Has a kernel store `value` to a word of the mapping.
fn store(peek: &Kernel, mapping: &Mapping, offset: usize, value: &mut [u32]) -> Result<(), LaunchError> {
    // SAFETY: in bounds; nobody else uses the mapping meanwhile.
    let launch = unsafe { peek.launch([1, 1, 1]).pointer(mapping.as_ptr().add(offset)) };
    launch.write(value).value([4u32, 1]).run().map(drop)
}

/// Has a kernel load a word of the mapping.
fn load(peek: &Kernel, mapping: &Mapping, offset: usize, into: &mut [u32]) -> Result<u32, LaunchError> {
    // SAFETY: in bounds.
    let launch = unsafe { peek.launch([1, 1, 1]).pointer(mapping.as_ptr().add(offset)) };
    launch.write(&mut *into).value([4u32, 0]).run()?;
    Ok(into[0])
}

fn word(mapping: &Mapping, offset: usize) -> u32 {
    u32::from_ne_bytes(mapping.as_slice()[offset..offset + 4].try_into().unwrap())
}

#[test]
fn a_kernels_store_to_read_only_memory_ends_the_launch_and_changes_nothing() {
    let svm = open();
    let peek = peek(&svm);
    let mut value = svm.heap().vec_from_slice(&[11u32]).unwrap();
    let mut mapping = svm.map(4 * PAGE, Permission::ReadWrite).unwrap();
    for page in 0..4 {
        store(&peek, &mapping, page * PAGE, &mut value).unwrap();
    }
    mapping.protect(PAGE..2 * PAGE, Permission::ReadOnly).unwrap();
    value[0] = 12;
    let error = store(&peek, &mapping, PAGE + 8, &mut value).unwrap_err();
    let text = error.to_string();
    let LaunchError::Fault(fault) = error else { panic!("{text}") };
    assert_eq!((fault.reason, fault.address.0), (FaultReason::ReadOnly, mapping.start().0 + PAGE as u64 + 8));
    assert!(text.contains("read-only"), "{text}");
    assert_eq!((word(&mapping, PAGE), word(&mapping, PAGE + 8)), (11, 0));
    store(&peek, &mapping, 2 * PAGE, &mut value).unwrap();
    assert_eq!(load(&peek, &mapping, PAGE, &mut value).unwrap(), 11);
    mapping.protect(0..4 * PAGE, Permission::ReadWrite).unwrap();
    value[0] = 13;
    store(&peek, &mapping, PAGE, &mut value).unwrap();
    assert_eq!((word(&mapping, PAGE), word(&mapping, 2 * PAGE)), (13, 12));
}

#[test]
fn a_mapping_made_read_only_reads_as_zeros_and_takes_no_store() {
    let svm = open();
    let peek = peek(&svm);
    let mut value = svm.heap().vec_from_slice(&[9u32]).unwrap();
    let mapping = svm.map(PAGE, Permission::ReadOnly).unwrap();
    assert_eq!(load(&peek, &mapping, 16, &mut value).unwrap(), 0);
    assert!(matches!(store(&peek, &mapping, 16, &mut value), Err(LaunchError::Fault(_))));
    assert!(mapping.as_slice().iter().all(|&byte| byte == 0));
}

#[test]
fn parts_are_unmapped_moved_and_discarded_without_losing_what_kernels_wrote_elsewhere() {
    for frames in [8, 100_000] {
        let svm = moving(|builder| builder.frames(frames));
        let peek = peek(&svm);
        let mut value = svm.heap().vec_from_slice(&[0u32]).unwrap();
        let mut mapping = svm.map(12 * PAGE, Permission::ReadWrite).unwrap();
        for page in 0..12 {
            value[0] = 100 + page as u32;
            store(&peek, &mapping, page * PAGE, &mut value).unwrap();
        }
        let mut upper = mapping.split_off(8 * PAGE).unwrap();
        let gone = mapping.split_off(4 * PAGE).unwrap();
        let address = gone.start();
        drop(gone);
        upper.move_to(None).unwrap();
        assert_eq!(upper.start(), address, "the lowest free place");
        upper.discard(PAGE..2 * PAGE).unwrap();
        let all = |mapping: &Mapping| (0..4).map(|page| word(mapping, page * PAGE)).collect::<Vec<_>>();
        for page in 0..4 {
            let want = if page == 1 { 0 } else { 108 + page as u32 };
            assert_eq!(load(&peek, &upper, page * PAGE, &mut value).unwrap(), want, "{frames} frames");
        }
        assert_eq!((all(&mapping), all(&upper)), (vec![100, 101, 102, 103], vec![108, 0, 110, 111]));
        let copy = svm.snapshot_of(std::ptr::from_ref(upper.as_slice())).unwrap();
        assert_eq!(copy, upper.as_slice());
    }
}
