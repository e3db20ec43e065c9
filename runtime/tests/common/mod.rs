//! What the tests on the reference device share: opening it under each tracker.
#![allow(dead_code, reason = "every test binary uses its part")]

pub(crate) mod device;

use vksvm::device::soft::{SoftContext, SoftOptions};
use vksvm::{Builder, Kernel, Svm, TrackerKind};

/// The trackers that work here.
pub(crate) fn trackers() -> Vec<TrackerKind> {
    [TrackerKind::Userfaultfd, TrackerKind::Sigsegv]
        .into_iter()
        .filter(|&kind| {
            let opened = soft(kind, |builder| builder);
            if let Err(error) = &opened {
                println!("not tested with {kind}: {error}");
            }
            opened.is_ok()
        })
        .collect()
}

/// A runtime on a reference device with a small heap.
pub(crate) fn soft(tracker: TrackerKind, options: impl FnOnce(Builder) -> Builder) -> Result<Svm, vksvm::OpenError> {
    options(Svm::builder().soft_device(SoftOptions::default()).tracker(tracker).heap_bytes(256 << 20)).build()
}

/// Runs `test` on a reference device under every tracker that works here.
pub(crate) fn with_each_tracker(options: impl Fn(Builder) -> Builder, test: impl Fn(&Svm)) {
    for tracker in trackers() {
        test(&soft(tracker, &options).unwrap());
    }
}

/// Adds one to the first word of each page of an array, one invocation a page.
pub(crate) fn increment(svm: &Svm) -> Kernel {
    const PAGE: u64 = 4096;
    let body = |invocation: &mut SoftContext<'_>| {
        let at = invocation.arguments::<u64>() + PAGE * u64::from(invocation.global_id()[0]);
        let value: u32 = invocation.load(at);
        invocation.store(at, value.wrapping_add(1));
    };
    // SAFETY: it changes the array it is launched with, each page in one invocation.
    unsafe { svm.soft_kernel("increment", [1, 1, 1], 8, body) }.unwrap()
}

/// Runs the named test again, in a process of its own: false there, where the test does what only a process of its own may do. True in
/// the test process, once that passed.
pub(crate) fn passed_in_own_process(test: &str) -> bool {
    const MARK: &str = "VKSVM_OWN_PROCESS";
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    // Under a runner the current executable is a dynamic loader.
    let again: Vec<_> = match std::env::var_os("VKSVM_RUNNER") {
        Some(runner) => vec![runner, std::env::args_os().next().unwrap()],
        None => vec![std::env::current_exe().unwrap().into_os_string()],
    };
    let mut child = std::process::Command::new(&again[0]);
    let output = child.args(&again[1..]).args([test, "--exact", "--nocapture"]).env(MARK, "1").output().unwrap();
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    true
}

/// The seed of a random test: `VKSVM_SEED`, or one from the clock. Printed, so that a failure can be repeated.
pub(crate) fn seed() -> u64 {
    let now = || std::time::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
    let seed = std::env::var("VKSVM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(now);
    println!("VKSVM_SEED={seed}");
    seed
}
