//! The CPU side: address space, page records, VMAs and what can be done with them, heap.

pub mod advice;
mod background;
pub mod copy;
mod foreign;
pub mod heap;
mod lacking;
pub mod ops;
pub mod pages;
pub mod space;
pub(crate) mod state;
pub mod thrash;
pub mod views;
pub mod vma;
pub mod walk;
