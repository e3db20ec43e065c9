//! The trap: on a device that computes on the CPU, device addresses are host pointers, and a kernel that forgets to
//! translate seems to work.

use vksvm::{LaunchError, Placement, Svm};
use vksvm_tests::{moving, spirv, with};

#[test]
fn a_kernel_that_skips_translation_is_caught_wherever_pages_are() {
    skips_translation(&with(|builder| builder.trap_untranslated(true)));
    skips_translation(&moving(|builder| builder.trap_untranslated(true)));
}

fn skips_translation(svm: &Svm) {
    if !svm.info().is_cpu {
        eprintln!("skipped: on {} an untranslated access ends in a device fault", svm.info().device);
        return;
    }
    let data = svm.heap().vec_from_slice(&[42u32; 4]).unwrap();
    let mut out = svm.heap().vec_from_slice(&vec![0u32; 4096]).unwrap();
    // SAFETY: not sound, which is the point; on a CPU device the access is caught by the tracker.
    let kernel = unsafe { svm.kernel("untranslated", spirv!("untranslated")) }.unwrap();
    let error = kernel.launch([1, 1, 1]).read(&data[..]).write(&mut out[..]).run().unwrap_err();
    assert!(matches!(error, LaunchError::Untranslated { .. }), "{error}");
    assert!(svm.stats().driver_cpu_faults > 0);
}

#[test]
fn device_owned_pages_are_out_of_the_drivers_reach_without_the_option_too() {
    is_caught(&moving(|builder| builder));
}

#[test]
fn under_validation_pages_at_home_are_out_of_the_drivers_reach_until_the_cpu_touches_them() {
    match std::env::var("VKSVM_VALIDATION").as_deref() {
        Ok("1") => is_caught(&with(|builder| builder.placement(Placement::Remote))),
        _ => eprintln!("skipped: VKSVM_VALIDATION is not 1"),
    }
}

/// A kernel uses a page, and then one that does not translate reads it.
fn is_caught(svm: &Svm) {
    if !svm.info().is_cpu {
        return;
    }
    let mut data = svm.heap().vec_from_slice(&vec![1.0f32; 4096]).unwrap();
    let x = svm.heap().vec_from_slice(&vec![1.0f32; 4096]).unwrap();
    let mut out = svm.heap().vec_from_slice(&vec![0u32; 4096]).unwrap();
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    saxpy.launch([64, 1, 1]).read(&x[..]).write(&mut data[..]).value(1.0f32).value(4096u32).run().unwrap();
    // SAFETY: as above.
    let kernel = unsafe { svm.kernel("untranslated", spirv!("untranslated")) }.unwrap();
    let error = kernel.launch([1, 1, 1]).read(&data[..]).write(&mut out[..]).run().unwrap_err();
    assert!(matches!(error, LaunchError::Untranslated { .. }), "{error}");
}

#[test]
fn translating_kernels_are_counted_and_raise_no_driver_fault() {
    let svm = with(|builder| builder.trap_untranslated(true).count_translations(true));
    let n = 20_000u32;
    let x = svm.heap().vec_from_slice(&vec![2.0f32; n as usize]).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    saxpy.launch([n.div_ceil(64), 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
    assert!(y.iter().all(|&value| value == 5.0));
    let stats = svm.stats();
    assert!(stats.translations >= u64::from(3 * n), "{} translations", stats.translations);
    assert_eq!(stats.driver_cpu_faults, 0);
}
