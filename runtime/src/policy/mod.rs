//! Policies: what to move before it is asked for. Decisions over plain data: no locks, no I/O, no clocks of their own.

mod prefetch;
mod readahead;

pub use prefetch::{Ahead, Prefetch};
pub use readahead::{MAX_WINDOW, Readahead, Window};
