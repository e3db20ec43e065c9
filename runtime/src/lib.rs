//! Shared virtual memory for Vulkan.
#![deny(missing_docs)]

pub mod addr;
pub mod device;
pub mod hmm;
pub mod kernel;
pub mod mm;
pub mod track;
