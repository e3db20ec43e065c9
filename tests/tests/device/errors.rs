//! Bad input gets a clear error and loses nothing.

use vksvm::{HeapError, KernelError, LaunchError, Svm};
use vksvm_tests::{open, spirv, with};

#[test]
fn a_module_without_the_include_is_refused() {
    let svm = open();
    // SAFETY: it is not loaded.
    match unsafe { svm.kernel("stranger", spirv!("no_include")) } {
        Err(error @ KernelError::WithoutInclude { .. }) => assert!(error.to_string().contains("vksvm.glsl")),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
    // SAFETY: as above.
    assert!(matches!(unsafe { svm.kernel("noise", &[1, 2, 3]) }, Err(KernelError::Malformed { .. })));
}

#[test]
fn badly_formed_launches_say_what_is_wrong() {
    let svm = open();
    let x = svm.heap().vec_from_slice(&[1.0f32; 64]).unwrap();
    let mut y = svm.heap().vec_from_slice(&[1.0f32; 64]).unwrap();
    let outside = [1.0f32; 64];
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    let error = saxpy.launch([0, 1, 1]).read(&x[..]).write(&mut y[..]).value(1.0f32).value(64u32).run().unwrap_err();
    assert!(matches!(error, LaunchError::EmptyGrid { .. }), "{error}");
    let error = saxpy
        .launch([1 << 20, 1 << 20, 2])
        .read(&x[..])
        .write(&mut y[..])
        .value(1.0f32)
        .value(64u32)
        .run()
        .unwrap_err();
    assert!(matches!(error, LaunchError::GridTooLarge { .. }), "{error}");
    let error = saxpy.launch([1, 1, 1]).read(&x[..]).write(&mut y[..]).value(1.0f32).run().unwrap_err();
    assert!(matches!(error, LaunchError::Arguments { expected: 24, given: 20, .. }), "{error}");
    let error =
        saxpy.launch([1, 1, 1]).read(&outside[..]).write(&mut y[..]).value(1.0f32).value(64u32).run().unwrap_err();
    assert!(matches!(error, LaunchError::NotInHeap { index: 0, .. }), "{error}");
    assert!(y.iter().all(|&value| value == 1.0), "a refused launch changed something");
}

#[test]
fn an_exhausted_heap_is_an_error_and_usable_again_after_freeing() {
    let svm = with(|builder| builder.heap_bytes(64 << 20));
    let heap = svm.heap();
    let big = heap.vec_with_capacity::<u8>(40 << 20).unwrap();
    let error = heap.vec_with_capacity::<u8>(40 << 20).expect_err("the heap has 64 MiB");
    assert!(matches!(error, HeapError::Exhausted { .. }), "{error}");
    drop(big);
    heap.vec_with_capacity::<u8>(40 << 20).unwrap();
}

#[test]
fn an_unknown_device_is_refused_with_the_devices_there_are() {
    let error = Svm::builder().device("no such device").build().err().expect("there is no such device");
    let text = error.to_string();
    assert!(text.contains("VKSVM_DEVICE") && text.contains("0: "), "{text}");
}

#[test]
fn a_heap_of_an_impossible_size_is_refused() {
    assert!(Svm::builder().heap_bytes(4097).build().is_err());
    assert!(Svm::builder().heap_bytes(0).build().is_err());
}
