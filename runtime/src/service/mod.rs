//! Fault service: from drained queue entries to page table entries.
//!
//! drain → drop duplicates → sort → coalesce per VMA → one range per span → protect the CPU side in bulk → copy in bulk →
//! commit. Every state change of a page happens under its lock; entries are written under the mirror's update lock after the
//! range's retry said that nothing came between.

mod advice;
mod ahead;
mod batch;
mod budget;
mod clean;
mod coalesce;
mod contents;
mod epochs;
mod evict;
mod fault;
mod fills;
mod flying;
mod grace;
mod guesses;
mod hold;
#[cfg(all(test, loom))]
mod loom_models;
mod mirror;
mod place;
mod steps;
mod taking;
mod windows;

pub use coalesce::{PageFault, Span};
pub use epochs::Epochs;
pub use fault::{Served, Service, ServiceError};
pub(crate) use mirror::Found;
pub use mirror::{DeviceMirror, GateGuard, LostPages};
