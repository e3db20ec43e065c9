//! The plain path: data made on the CPU, changed by a kernel, read on the CPU.

use vksvm_tests::{open, spirv, with};

#[test]
fn saxpy_reads_and_writes_vectors_of_the_heap() {
    let svm = open();
    println!("{}", svm.info());
    let heap = svm.heap();
    let n = 100_000u32;
    let x = heap.vec_from_slice(&(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let mut y = heap.vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    let report =
        saxpy.launch([n.div_ceil(64), 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
    println!("{report}");
    for (i, &value) in y.iter().enumerate() {
        assert_eq!(value, 2.0 * i as f32 + 1.0, "element {i}");
    }
    println!("{}", svm.stats());
}

#[test]
fn two_runtimes_live_side_by_side() {
    let first = open();
    let second = with(|builder| builder.heap_bytes(1 << 30));
    let a = first.heap().vec_from_slice(&[1u32, 2, 3]).unwrap();
    let b = second.heap().vec_from_slice(&[4u32]).unwrap();
    drop(first);
    assert_eq!((a[2], b[0]), (3, 4));
}
