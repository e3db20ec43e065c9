//! The CPU side: address space, VMAs, heap.

pub mod heap;
pub mod views;
pub mod vma;
