//! mprotect and SIGSEGV.
