//! Short memory: everything finishes with as many frames as one workgroup needs, and says so with fewer.

use vksvm::{FaultMode, LaunchError};
use vksvm_tests::{moving, spirv};

#[test]
fn two_frames_are_enough_for_workgroups_that_touch_two_pages() {
    let svm = moving(|builder| builder.frames(2));
    let pages = 50u32;
    let mut data = svm.heap().vec_from_slice(&vec![0u32; pages as usize * 1024]).unwrap();
    for page in 0..pages {
        data[page as usize * 1024] = page + 1;
    }
    let mut out = svm.heap().vec_from_slice(&vec![0u32; pages as usize]).unwrap();
    // SAFETY: the kernel reads the data and writes `out`.
    let kernel = unsafe { svm.kernel("sum_pages", spirv!("sum_pages")) }.unwrap();
    kernel.launch([pages, 1, 1]).read(&data[..]).write(&mut out[..]).value([pages, 1]).run().unwrap();
    assert!(out.iter().enumerate().all(|(i, &value)| value == i as u32 + 1), "{:?}", &out[..]);
    assert!(svm.stats().evictions > 0);
}

#[test]
fn one_frame_too_few_is_said() {
    // In live mode a workgroup needs only the pages of one access at a time.
    let svm = moving(|builder| builder.frames(4).fault_mode(FaultMode::Replay));
    let data = svm.heap().vec_from_slice(&vec![1u32; 64 * 1024]).unwrap();
    let mut out = svm.heap().vec_from_slice(&[0u32; 16]).unwrap();
    // SAFETY: the kernel reads the data and writes `out`.
    let kernel = unsafe { svm.kernel("sum_pages", spirv!("sum_pages")) }.unwrap().idempotent();
    // Three pages of data and one of results fit.
    kernel.launch([16, 1, 1]).read(&data[..]).write(&mut out[..]).value([64u32, 3]).run().unwrap();
    assert!(out.iter().all(|&value| value == 3));
    let error = kernel.launch([16, 1, 1]).read(&data[..]).write(&mut out[..]).value([64u32, 4]).run().unwrap_err();
    assert!(matches!(error, LaunchError::OutOfFrames { frames: 4, .. }), "{error}");
    assert!(error.to_string().contains("4 frames"), "{error}");
    // Nothing is lost and the runtime is usable.
    kernel.launch([16, 1, 1]).read(&data[..]).write(&mut out[..]).value([64u32, 2]).run().unwrap();
    assert!(out.iter().all(|&value| value == 2));
}

#[test]
fn data_larger_than_the_frames_streams_through_and_comes_out_right() {
    let svm = moving(|builder| builder.frames(64));
    let n = 1_000_000u32;
    let x = svm.heap().vec_from_slice(&(0..n).map(|i| (i % 1000) as f32).collect::<Vec<_>>()).unwrap();
    let mut y = svm.heap().vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
    // SAFETY: the kernel reads x and y and writes y.
    let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    let report =
        saxpy.launch([n.div_ceil(64), 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(n).run().unwrap();
    for (i, &value) in y.iter().enumerate() {
        assert_eq!(value, (i as u32 % 1000) as f32 * 2.0 + 1.0, "element {i}");
    }
    assert!(report.evictions > 1000, "{report}");
}

/// Pages are evicted while kernels run, by kernels' own needs and by a budget that another thread moves; the CPU writes between.
#[test]
fn evictions_beside_running_kernels_lose_nothing_in_either_fault_mode() {
    for mode in [FaultMode::Replay, FaultMode::Live] {
        let svm = moving(|builder| builder.fault_mode(mode).budget(200 * 4096));
        let n = 400_000u32;
        let x = svm.heap().vec_from_slice(&vec![1.0f32; n as usize]).unwrap();
        let mut y = svm.heap().vec_zeroed::<f32>(n as usize).unwrap();
        // SAFETY: the kernel reads x and y and writes y.
        let saxpy = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (svm, done) = (&svm, &done);
            scope.spawn(move || {
                for frames in [40u64, 300, 64, 120, 500, 32].into_iter().cycle() {
                    svm.set_budget(frames * 4096);
                    let usage = svm.frames();
                    assert!(u64::from(usage.allocated) <= frames, "{usage:?}, {frames} allowed");
                    std::thread::sleep(std::time::Duration::from_millis(3));
                    if done.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                }
            });
            for round in 1..6 {
                saxpy
                    .launch([n.div_ceil(64), 1, 1])
                    .read(&x[..])
                    .write(&mut y[..])
                    .value(2.0f32)
                    .value(n)
                    .run()
                    .unwrap();
                for (i, y) in y.iter_mut().enumerate().step_by(97) {
                    assert_eq!(*y, 3.0 * round as f32 - 1.0, "element {i}, round {round}, {mode:?}");
                    *y += 1.0;
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(y.iter().enumerate().all(|(i, &y)| y == if i % 97 == 0 { 15.0 } else { 10.0 }));
        assert!(svm.stats().evictions > 1000, "{}", svm.stats());
    }
}
