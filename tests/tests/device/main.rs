//! The runtime on a Vulkan device. Run through `cargo xtask test`, which finds or sets up a driver.

mod advice;
mod arrays;
mod coherence;
mod direct;
mod errors;
mod evict;
mod faults;
mod live;
mod mappings;
mod plain;
mod pressure;
mod remote;
mod rewrite;
mod storm;
mod thrash;
mod translation;
mod trap;
mod versions;
