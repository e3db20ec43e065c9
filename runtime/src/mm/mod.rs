//! The CPU side: address space, page records, VMAs, heap.

pub mod heap;
pub mod ops;
pub mod pages;
pub mod space;
pub mod views;
pub mod vma;
