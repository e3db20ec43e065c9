//! Home pages mapped by the device: shaders work on them where they are.

use vksvm::{FaultMode, Placement, Svm};
use vksvm_tests::{spirv, with};

fn saxpy(svm: &Svm, x: &[f32], y: &mut [f32]) -> vksvm::Stats {
    // SAFETY: the kernel reads x and y and writes y.
    let kernel = unsafe { svm.kernel("saxpy", spirv!("saxpy")) }.unwrap();
    let n = x.len() as u32;
    kernel.launch([n.div_ceil(64), 1, 1]).read(x).write(y).value(2.0f32).value(n).run().unwrap()
}

#[test]
fn shaders_work_on_home_pages_beside_the_cpu_and_nothing_is_copied() {
    for mode in [FaultMode::Replay, FaultMode::Live] {
        let svm = with(|builder| builder.placement(Placement::Remote).frames(2).fault_mode(mode));
        let n = 300_000;
        let x = svm.heap().vec_from_slice(&(0..n).map(|i| (i % 1000) as f32).collect::<Vec<_>>()).unwrap();
        let mut y = svm.heap().vec_zeroed::<f32>(n).unwrap();
        for round in 1..4 {
            saxpy(&svm, &x, &mut y);
            for (i, y) in y.iter_mut().enumerate() {
                assert_eq!(*y, (i % 1000) as f32 * 2.0 + (round - 1) as f32, "element {i}, round {round}");
                *y = round as f32;
            }
        }
        let stats = svm.stats();
        assert_eq!((stats.pages_in, stats.pages_out, stats.evictions), (0, 0, 0), "{stats}");
        assert!(stats.pages_remote > 500, "{stats}");
        assert_eq!(stats.driver_cpu_faults, 0);
    }
}

#[test]
fn pages_pinned_between_launches_keep_what_either_side_wrote() {
    let svm = with(|builder| builder.frames(64));
    let n = 1 << 16;
    let x = svm.heap().vec_from_slice(&vec![1.0f32; n]).unwrap();
    let mut y = svm.heap().vec_zeroed::<f32>(n).unwrap();
    let space = svm.address_space();
    let pages = |from: usize, count: usize| vksvm::mm::ops::Span {
        start: vksvm::addr::VirtAddr(vksvm::addr::VirtAddr::of(&raw const y[from]).0 & !4095),
        bytes: 4096 * count as u64,
    };
    let (lower, upper) = (pages(0, 20), pages(n / 2, 20));
    for round in 0..6 {
        match round % 3 {
            0 => space.pin_home(lower).unwrap(),
            1 => space.pin_home(upper).unwrap(),
            _ => {
                space.unpin_home(lower).unwrap();
                space.unpin_home(upper).unwrap();
            }
        }
        saxpy(&svm, &x, &mut y);
        for (i, y) in y.iter_mut().enumerate() {
            assert_eq!(*y, (round * 3 + 2) as f32, "element {i}, round {round}");
            *y += 1.0;
        }
    }
}
