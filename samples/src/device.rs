//! The samples' side of the runtime: opening it, and saying what it did.

use anyhow::Context;
use vksvm::{LaunchReport, Stats, Svm};

/// Opens the runtime on the best device, or on the one that `VKSVM_DEVICE` names.
///
/// # Errors
/// If there is no Vulkan or no device that can be used; the runtime's error says what to do.
pub fn open() -> anyhow::Result<Svm> {
    let svm = Svm::new().context("no Vulkan device to run on")?;
    println!("{}", svm.info());
    Ok(svm)
}

/// Prints what the runtime did for a launch, and which CPU faults there were since `before` was taken.
pub fn print_report(what: &str, report: &LaunchReport, before: &Stats, after: &Stats) {
    println!("\n{what}:\n{report}");
    println!(
        "CPU faults: {} ({} of them by driver threads)",
        after.cpu_faults - before.cpu_faults,
        after.driver_cpu_faults - before.driver_cpu_faults
    );
}
