//! The samples' side of the runtime: opening it, and saying what it did.

use anyhow::Context;
use vksvm::{Stats, Svm};

/// Opens the runtime on the best device, or on the one that `VKSVM_DEVICE` names, and says which.
///
/// # Errors
/// If there is no Vulkan or no device that can be used; the runtime's error says what to do.
pub fn open() -> anyhow::Result<Svm> {
    let svm = Svm::new().context("no Vulkan device to run on")?;
    println!("{}", svm.info());
    Ok(svm)
}

/// Prints what the runtime did since `before` was taken.
pub fn print_since(svm: &Svm, before: &Stats, what: &str) {
    println!("\n{what}:\n{}", svm.stats().since(before));
}
