//! The CPU side: address space, VMAs, heap.
