//! Shared virtual memory for Vulkan: compute shaders follow the CPU's pointers.
//!
//! A program keeps its data in ordinary structures with ordinary pointers, in memory from [`Heap`]. Kernels, plain compute
//! shaders or ones that include `vksvm.glsl`, dereference the same pointers. Pages move to the device when a kernel misses them
//! and home when the CPU touches them.
//!
//! Start with [`Svm`]; the README has a complete example. The modules below it can be used on their own by who ports the runtime
//! to another device: [`hmm`] is the range protocol, [`device`] what a device has to offer.
#![deny(missing_docs)]

pub mod addr;
mod advice;
mod cache;
pub mod device;
pub mod hmm;
pub mod kernel;
pub mod mm;
pub mod observe;
#[cfg(test)]
mod own_process;
pub mod policy;
mod prompt;
pub mod rank;
#[doc(hidden)]
pub mod scarce;
pub mod service;
mod svm;
mod sync;
pub mod track;

pub use advice::{AdviceError, Advised};
pub use device::layout::{GLSL_INCLUDE, GLSL_LAYOUT};
pub use kernel::{Kernel, KernelError, Launch, LaunchError, LaunchReport, Pending, Scope};
pub use mm::advice::{Advice, Hint, Location};
pub use mm::copy::SnapshotError;
pub use mm::heap::{Heap, HeapError, SvmBox, SvmMap, SvmVec};
pub use mm::ops::{MapRequest, Mapping, OpError};
pub use mm::pages::{PageInfo, PageState};
pub use mm::state::Placement;
pub use mm::vma::Permission;
pub use observe::Stats;
pub use policy::{ThrashOptions, ThrashPolicy};
pub use svm::{Builder, FaultMode, Info, OpenError, Svm};
pub use track::TrackerKind;
