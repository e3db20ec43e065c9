//! Array arguments: the same results whether they are passed by device address or translated.

use vksvm::{PageState, Svm};
use vksvm_tests::{moving, spirv, with};

const N: u32 = 50_000;

/// Adds what pointers point to, all over `extra`, to an array that does not start at a page.
fn add(svm: &Svm, idempotent: bool, count: bool) -> vksvm::LaunchReport {
    let heap = svm.heap();
    let data = heap.vec_from_slice(&(0..N + 3).collect::<Vec<_>>()).unwrap();
    let extra = heap.vec_from_slice(&(0..N).map(|i| i * 7).collect::<Vec<_>>()).unwrap();
    let pointers: Vec<u64> = (0..N).map(|i| &extra[(i * 31 % N) as usize] as *const u32 as u64).collect();
    let pointers = heap.vec_from_slice(&pointers).unwrap();
    let mut out = heap.vec_from_slice(&vec![1u32; N as usize + 5]).unwrap();
    let mut calls = heap.vec_from_slice(&[0u32]).unwrap();
    // SAFETY: the kernel reads the data and what the pointers point to, and writes `out` and `calls`.
    let mut kernel = unsafe { svm.kernel("arrays", spirv!("arrays")) }.unwrap();
    if idempotent {
        kernel = kernel.idempotent();
    }
    let launch = kernel.launch([N.div_ceil(64), 1, 1]).read_array(&data[3..]).write_array(&mut out[5..]);
    let launch = launch.read(&pointers[..]);
    let launch = if count { launch.write(&mut calls[..]) } else { launch.value(0u64) };
    let report = launch.value(N).value(0u32).run().unwrap();
    for i in 0..N {
        assert_eq!(out[i as usize + 5], i + 3 + i * 31 % N * 7, "element {i}");
    }
    assert_eq!(out[..5], [1; 5], "what lies before the slice changed");
    assert_eq!(calls[0], if count { N } else { 0 }, "invocations were repeated");
    report
}

#[test]
fn arrays_and_pointers_mix_in_one_kernel() {
    for direct in [true, false] {
        let svm = with(|builder| builder.direct_arrays(direct));
        add(&svm, true, false);
        add(&svm, false, true);
    }
}

#[test]
fn resident_arrays_are_not_translated() {
    let svm = moving(|builder| builder.count_translations(true));
    let heap = svm.heap();
    let data = heap.vec_from_slice(&vec![5u32; N as usize]).unwrap();
    let mut out = heap.vec_from_slice(&vec![0u32; N as usize]).unwrap();
    // SAFETY: the kernel reads the data and writes `out`.
    let kernel = unsafe { svm.kernel("arrays", spirv!("arrays")) }.unwrap().idempotent();
    for _ in 0..2 {
        let launch = kernel.launch([N.div_ceil(64), 1, 1]).read_array(&data[..]).write_array(&mut out[..]);
        let report = launch.value([0u64; 2]).value(N).value(0u32).run().unwrap();
        assert_eq!((report.translations, report.device_faults), (0, 0), "{report}");
    }
    assert!(matches!(svm.heap().page_info(&out[0]).unwrap().state, PageState::Device(_)));
    assert!(out.iter().all(|&value| value == 5), "what the kernel wrote did not come home");
    // The CPU's next change is seen.
    drop(out);
    let mut out = heap.vec_from_slice(&vec![0u32; N as usize]).unwrap();
    let mut data = data;
    data[17] = 6;
    let launch = kernel.launch([N.div_ceil(64), 1, 1]).read_array(&data[..]).write_array(&mut out[..]);
    launch.value([0u64; 2]).value(N).value(0u32).run().unwrap();
    assert_eq!((out[16], out[17]), (5, 6));
}

#[test]
fn arrays_that_do_not_fit_are_translated() {
    let svm = moving(|builder| builder.frames(60));
    let report = add(&svm, true, false);
    assert!(report.device_faults > 0, "{report}");
    add(&svm, false, true);
}

#[test]
fn arrays_that_were_never_written_read_as_zeros() {
    let svm = with(|builder| builder);
    let data = svm.heap().vec_zeroed::<u32>(N as usize).unwrap();
    let mut out = svm.heap().vec_from_slice(&vec![9u32; N as usize]).unwrap();
    // SAFETY: the kernel reads the data and writes `out`.
    let kernel = unsafe { svm.kernel("arrays", spirv!("arrays")) }.unwrap();
    let launch = kernel.launch([N.div_ceil(64), 1, 1]).read_array(&data[..]).write_array(&mut out[..]);
    launch.value([0u64; 2]).value(N).value(0u32).run().unwrap();
    assert!(out.iter().all(|&value| value == 0));
}

#[test]
fn a_cpu_scan_of_what_the_device_wrote_faults_rarely_and_sees_all_of_it() {
    let svm = moving(|builder| builder);
    let pages = 2048usize;
    let n = (pages * 1024) as u32;
    let data = svm.heap().vec_from_slice(&(0..n).collect::<Vec<_>>()).unwrap();
    let mut out = svm.heap().vec_from_slice(&vec![0u32; n as usize]).unwrap();
    // SAFETY: the kernel reads the data and writes `out`.
    let kernel = unsafe { svm.kernel("arrays", spirv!("arrays")) }.unwrap().idempotent();
    let launch = kernel.launch([n.div_ceil(64), 1, 1]).read_array(&data[..]).write_array(&mut out[..]);
    launch.value([0u64; 2]).value(n).value(0u32).run().unwrap();
    let before = svm.stats();
    assert!(out.iter().enumerate().all(|(i, &value)| value == i as u32));
    let faults = svm.stats().since(&before).cpu_faults;
    assert!(faults < 64, "{faults} faults for a scan of {pages} pages");
}

#[test]
fn pointers_near_an_array_may_also_lead_elsewhere() {
    for (direct, idempotent) in [(true, true), (true, false), (false, true)] {
        let svm = with(|builder| builder.direct_arrays(direct));
        let heap = svm.heap();
        let data = heap.vec_from_slice(&(0..N).collect::<Vec<_>>()).unwrap();
        let far = heap.vec_from_slice(&(0..N).map(|i| 7 * i).collect::<Vec<_>>()).unwrap();
        let mut near_out = heap.vec_from_slice(&vec![0u32; N as usize]).unwrap();
        let mut far_out = heap.vec_from_slice(&vec![0u32; N as usize]).unwrap();
        let is_far = |i: u32| i.is_multiple_of(5);
        let source = |i: u32| &(if is_far(i) { &far } else { &data })[(i * 31 % N) as usize] as *const u32 as u64;
        let sources = heap.vec_from_slice(&(0..N).map(source).collect::<Vec<_>>()).unwrap();
        let (near_at, far_at) = (near_out.as_ptr() as u64, far_out.as_ptr() as u64);
        let target = |i: u32| if is_far(i + 1) { far_at } else { near_at } + 4 * u64::from(i);
        let targets = heap.vec_from_slice(&(0..N).map(target).collect::<Vec<_>>()).unwrap();
        // SAFETY: the kernel reads `data`, `far` and the pointers, and writes where `targets` lead, each once.
        let mut kernel = unsafe { svm.kernel("near", spirv!("near")) }.unwrap();
        if idempotent {
            kernel = kernel.idempotent();
        }
        // The last of them in the kernel's fast variant, which is replay's.
        for _ in 0..4 {
            let launch = kernel.launch([N.div_ceil(64), 1, 1]).read_array(&data[..]).write_array(&mut near_out[..]);
            launch.read(&sources[..]).read(&targets[..]).value(N).value(0u32).run().unwrap();
        }
        assert!(svm.stats().fast_dispatches > 0 || svm.info().fault_mode.starts_with("live"));
        for i in 0..N {
            let want = i * 31 % N * if is_far(i) { 7 } else { 1 } + 1;
            let [here, other] =
                if is_far(i + 1) { [&mut far_out, &mut near_out] } else { [&mut near_out, &mut far_out] };
            assert_eq!((here[i as usize], other[i as usize]), (want, 0), "element {i}");
        }
    }
}

#[test]
fn arrays_larger_than_the_frames_are_brought_part_by_part_and_miss_nothing() {
    let svm = moving(|builder| builder.frames(256));
    let heap = svm.heap();
    let n = 400_000u32;
    let mut data = heap.vec_from_slice(&(0..n).collect::<Vec<_>>()).unwrap();
    let mut out = heap.vec_from_slice(&vec![0u32; n as usize]).unwrap();
    // SAFETY: the kernel reads the data and writes `out`.
    let kernel = unsafe { svm.kernel("arrays", spirv!("arrays")) }.unwrap().idempotent();
    for round in 0..3 {
        let launch = kernel.launch([n.div_ceil(64), 1, 1]).read_array(&data[..]).write_array(&mut out[..]);
        let report = launch.value([0u64; 2]).value(n).value(0u32).run().unwrap();
        assert_eq!(report.device_faults, 0, "{report}");
        assert!(round == 0 || report.fast_dispatches == report.dispatches, "{report}");
        assert!(report.evictions > 300, "{report}");
        let wrong = (0..n).find(|&i| out[i as usize] != i + u32::from(i % 500 == 0) * round);
        assert_eq!(wrong, None, "round {round}");
        data.iter_mut().step_by(500).for_each(|value| *value += 1);
    }
}
