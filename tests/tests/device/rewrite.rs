//! Plain compute shaders, which know nothing of vksvm, run on the CPU's pointers.
// The references repeat the kernels line by line, indices and operators included.
#![allow(clippy::complexity, clippy::perf, clippy::style)]

mod control;
mod corpus;
mod memory;
mod pointers;
mod random;
mod reuse;
mod slang;
mod waits;

use corpus::{Case, Extent};
use vksvm::{FaultMode, ThrashOptions, ThrashPolicy};
use vksvm_tests::{moving, open, spirv, with};

fn roomy(cases: &[Case]) {
    // Pages that went to and fro too often would be pinned at home, and then nothing runs without checks. Untranslated accesses would
    // be caught.
    let thrash = ThrashOptions { policy: ThrashPolicy::Off, ..ThrashOptions::default() };
    let svm = moving(|builder| builder.fault_mode(FaultMode::Replay).thrash(thrash).trap_untranslated(true));
    corpus::run(cases, &svm, Extent::Roomy);
}

fn fewest(cases: &[Case]) {
    random::compile_fast();
    let svm = moving(|builder| builder.fault_mode(FaultMode::Replay));
    corpus::run(cases, &svm, Extent::Fewest);
}

fn live(cases: &[Case]) {
    random::compile_fast();
    let svm = with(|builder| builder.fault_mode(FaultMode::Live));
    corpus::run(cases, &svm, Extent::Plain);
}

#[test]
fn every_kind_of_access_is_translated() {
    roomy(&memory::cases());
}

#[test]
fn every_kind_of_access_works_with_few_frames() {
    fewest(&memory::cases());
}

#[test]
fn every_kind_of_access_works_live() {
    live(&memory::cases());
}

#[test]
fn pointers_from_everywhere_are_followed() {
    roomy(&pointers::cases());
}

#[test]
fn pointers_are_followed_with_few_frames() {
    fewest(&pointers::cases());
}

#[test]
fn pointers_are_followed_live() {
    live(&pointers::cases());
}

#[test]
fn translations_are_reused_where_they_are_still_good() {
    roomy(&reuse::cases());
}

#[test]
fn translations_are_reused_with_few_frames() {
    fewest(&reuse::cases());
}

#[test]
fn translations_are_reused_live_only_while_no_page_can_go() {
    live(&reuse::cases());
}

#[test]
fn what_slang_compiles_runs() {
    slang::cases().iter().for_each(|cases| roomy(cases));
}

#[test]
fn what_slang_compiles_runs_live() {
    slang::cases().iter().for_each(|cases| live(cases));
}

#[test]
fn control_flow_and_barriers_survive_missing_pages() {
    roomy(&control::cases());
}

#[test]
fn control_flow_and_barriers_survive_few_frames() {
    fewest(&control::cases());
}

#[test]
fn control_flow_and_barriers_work_live() {
    live(&control::cases());
}

#[test]
fn a_fault_names_the_line_or_else_the_instruction() {
    let svm = open();
    let mut y = svm.heap().vec_from_slice(&[0u32; 64]).unwrap();
    let mut fault = |name: &str, spirv: &[u8]| {
        // SAFETY: the kernel reads nothing, as its source is null, and writes y.
        let kernel = unsafe { svm.kernel(name, spirv) }.unwrap();
        // SAFETY: a null pointer reaches nothing.
        let launch = unsafe { kernel.launch([1, 1, 1]).pointer(std::ptr::null::<u32>()) };
        let launch = launch.write(&mut y[..]).value(32u32);
        // Blocks end at the alignment of their pointers.
        let launch = if kernel.module().argument_bytes == 24 { launch.value(0u32) } else { launch };
        launch.run().unwrap_err().to_string()
    };

    let error = fault("debug_information", spirv!("../plain/spv/debug_information"));
    assert!(error.contains("debug_information.comp:"), "{error}");
    let error = fault("copy", spirv!("../plain/spv/copy"));
    assert!(error.contains(", in OpLoad %") && error.contains(" in main"), "{error}");
}

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

#[test]
fn a_later_start_takes_kernels_and_their_variants_as_the_first_made_them() {
    let folder = std::env::temp_dir().join(format!("vksvm-later-{}", std::process::id()));
    // What a process of the same number left that failed.
    let _ = std::fs::remove_dir_all(&folder);
    let run = || {
        let svm = with(|builder| builder.cache(Some(folder.clone())));
        let x = svm.heap().vec_from_slice(&[3.0f32; 4096]).unwrap();
        let mut y = svm.heap().vec_from_slice(&[1.0f32; 4096]).unwrap();
        // SAFETY: the kernel reads x and y and writes y.
        let saxpy = unsafe { svm.kernel("saxpy", spirv!("../plain/spv/saxpy")) }.unwrap();
        saxpy.launch([64, 1, 1]).read(&x[..]).write(&mut y[..]).value(2.0f32).value(4096u32).run().unwrap();
        assert!(y.iter().all(|&value| value == 7.0));
        let stats = svm.stats();
        [stats.modules_made, stats.modules_kept, stats.variants_made, stats.variants_kept]
    };

    let [made, kept, cut, taken] = run();
    assert_eq!((made, kept, taken), (1, 0, 0));
    assert!(cut > 0);
    let [made, kept, _, taken] = run();
    assert_eq!((made, kept), (0, 1));
    assert!(taken > 0);
    std::fs::remove_dir_all(folder).unwrap();
}
