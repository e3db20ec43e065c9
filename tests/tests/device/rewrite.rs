//! Plain compute shaders, which know nothing of vksvm, run on the CPU's pointers.

use vksvm_tests::{open, spirv};

#[test]
fn a_plain_saxpy_runs_on_the_heap() {
    let svm = open();
    let n = 10_000u32;
    let x = svm.heap().vec_from_slice(&(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("../plain/spv/saxpy")) }.unwrap();
    assert_eq!(saxpy.module().rewritten.unwrap().translations, 3);
    for round in 1..4 {
        saxpy.launch([n.div_ceil(64), 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
        for (i, &value) in y.iter().enumerate() {
            assert_eq!(value, 2.0 * i as f32 * round as f32 + 1.0, "element {i} after round {round}");
        }
    }
}
