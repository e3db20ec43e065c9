//! The CPU side: address space, page records, VMAs, heap.

pub mod heap;
pub mod pages;
pub mod space;
pub(crate) mod state;
pub mod views;
pub mod vma;
