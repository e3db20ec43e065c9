//! Kernels that are confined to what they are given run without checks while all of it is on the device.

use vksvm::{FaultMode, Kernel, Stats, Svm, ThrashOptions, ThrashPolicy};
use vksvm_tests::{Fixture, moving, spirv};

const N: u32 = 50_000;

fn open() -> Fixture {
    // Pages that go to and fro would be pinned at home. Untranslated accesses would be caught.
    let thrash = ThrashOptions { policy: ThrashPolicy::Off, ..ThrashOptions::default() };
    moving(|builder| builder.fault_mode(FaultMode::Replay).thrash(thrash).trap_untranslated(true))
}

/// A plain kernel: y += a x.
fn saxpy(svm: &Svm) -> Kernel {
    // SAFETY: the kernel reads x and y and writes y, `n` elements of each.
    unsafe { svm.kernel("saxpy", spirv!("../plain/spv/saxpy")).unwrap().confined() }
}

fn launch(kernel: &Kernel, x: &[f32], y: &mut [f32], n: u32) -> Stats {
    kernel.launch([N.div_ceil(64), 1, 1]).read(x).write(y).value(1.0f32).value(n).run().unwrap()
}

#[test]
fn what_is_resident_runs_without_checks_and_what_it_wrote_comes_home() {
    let svm = open();
    let x = svm.heap().vec_from_slice(&(0..N).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![0.0f32; N as usize]).unwrap();
    let kernel = saxpy(&svm);

    assert_eq!(launch(&kernel, &x, &mut y, N).direct_dispatches, 0, "nothing is on the device yet");
    for _ in 1..4 {
        let report = launch(&kernel, &x, &mut y, N);
        assert!(report.direct_dispatches > 0);
        assert_eq!(report.direct_dispatches, report.dispatches, "no probe, no replay");
    }

    assert!(y.iter().enumerate().all(|(i, &value)| value == 4.0 * i as f32));
}

#[test]
fn what_the_cpu_took_back_is_brought_again_before_a_launch_runs_without_checks() {
    let svm = open();
    let x = svm.heap().vec_from_slice(&vec![1.0f32; N as usize]).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![0.0f32; N as usize]).unwrap();
    let kernel = saxpy(&svm);
    let mut expected = 0.0;
    for round in 0..4u32 {
        launch(&kernel, &x, &mut y, N);
        launch(&kernel, &x, &mut y, N);
        assert!(launch(&kernel, &x, &mut y, N).direct_dispatches > 0);
        expected += 3.0;
        // One page of many, in another place each time.
        let at = (round * 1024 + 17) as usize;
        y[at] += 100.0;
        let report = launch(&kernel, &x, &mut y, N);
        assert!(report.direct_dispatches > 0, "round {round}: the page was brought before: {report:?}");
        assert_eq!(report.direct_dispatches, report.dispatches);
        assert!(report.pages_in >= 1);
        expected += 1.0;
        y[at] -= 100.0;
    }
    assert!(y.iter().all(|&value| value == expected), "{expected}");
}

#[test]
fn pages_that_a_direct_launch_may_have_written_count_as_written_and_others_do_not() {
    let svm = open();
    let x = svm.heap().vec_from_slice(&vec![1.0f32; N as usize]).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![0.0f32; N as usize]).unwrap();
    let kernel = saxpy(&svm);
    launch(&kernel, &x, &mut y, N);
    // All comes home, and the device keeps what was read.
    assert!(y.iter().all(|&value| value == 1.0));
    launch(&kernel, &x, &mut y, N);

    // Of the launch's elements, it does a few only: still, all pages of y may be written.
    assert!(launch(&kernel, &x, &mut y, 1).direct_dispatches > 0);
    let before = svm.stats();
    assert!(y.iter().enumerate().all(|(i, &value)| value == if i == 0 { 3.0 } else { 2.0 }));
    assert!(x.iter().all(|&value| value == 1.0));
    let pages = u64::from(N * 4).div_ceil(4096);
    let out = svm.stats().since(&before).pages_out;
    assert!((pages..=pages + 1).contains(&out), "{out} pages came home, y has {pages}");
}

#[test]
fn a_raw_pointer_to_anything_else_or_live_mode_or_the_option_keeps_the_checks() {
    let svm = open();
    let x = svm.heap().vec_from_slice(&vec![1.0f32; N as usize]).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![0.0f32; N as usize]).unwrap();
    let kernel = saxpy(&svm);
    for _ in 0..3 {
        // SAFETY: x lives and is not written.
        let launch = unsafe { kernel.launch([N.div_ceil(64), 1, 1]).pointer(x.as_ptr()) };
        let report = launch.write(&mut y[..]).value(1.0f32).value(N).run().unwrap();
        assert_eq!(report.direct_dispatches, 0);
    }
    assert!(y.iter().all(|&value| value == 3.0));

    let checked: [fn(vksvm::Builder) -> vksvm::Builder; 2] = [
        |builder| builder.fault_mode(FaultMode::Replay).direct_arrays(false),
        |builder| builder.fault_mode(FaultMode::Live),
    ];
    for options in checked {
        let svm = moving(options);
        let x = svm.heap().vec_from_slice(&vec![1.0f32; N as usize]).unwrap();
        let mut y = svm.heap().vec_from_slice(&vec![0.0f32; N as usize]).unwrap();
        let kernel = saxpy(&svm);
        for _ in 0..3 {
            assert_eq!(launch(&kernel, &x, &mut y, N).direct_dispatches, 0);
        }
        assert!(y.iter().all(|&value| value == 3.0));
    }
}

#[test]
fn every_workgroup_of_a_large_grid_runs_once() {
    let svm = open();
    // More than a row of the device's grid, and not a multiple of it.
    let n = 64 * 33_001;
    let x = svm.heap().vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![0.0f32; n as usize]).unwrap();
    let kernel = saxpy(&svm);
    let mut direct = 0;
    for _ in 0..6 {
        let launch = kernel.launch([n / 64, 1, 1]).read(&x[..]).write(&mut y[..]).value(1.0f32).value(n);
        direct += launch.run().unwrap().direct_dispatches;
    }
    assert!(direct > 0);
    assert!(y.iter().all(|&value| value == 6.0));
}
