//! The samples' side of the runtime: opening it, and saying what it did.

use anyhow::Context;
use vksvm::{Builder, Stats, Svm};

/// Opens the runtime on the best device, or on the one that `VKSVM_DEVICE` names, and says which.
///
/// # Errors
/// If there is no Vulkan or no device that can be used; the runtime's error says what to do.
pub fn open() -> anyhow::Result<Svm> {
    open_with(|builder| builder)
}

/// The same with options.
///
/// # Errors
/// As for [`open`].
pub fn open_with(options: impl FnOnce(Builder) -> Builder) -> anyhow::Result<Svm> {
    let svm = options(Svm::builder()).build().context("no Vulkan device to run on")?;
    println!("{}", svm.info());
    Ok(svm)
}

/// Prints what the runtime did since `before` was taken.
pub fn print_since(svm: &Svm, before: &Stats, what: &str) {
    println!("\n{what}:\n{}", svm.stats().since(before));
}
