//! Shared virtual memory for Vulkan.
#![deny(missing_docs)]

pub mod addr;
pub mod hmm;
pub mod mm;
pub mod rank;
mod sync;
pub mod track;
