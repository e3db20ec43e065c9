//! Policies: what to move before it is asked for, and what to leave where it is. Decisions over plain data: no locks, no I/O, no
//! clocks of their own.

mod density;
mod fills;
mod guards;
mod optimal;
mod placement;
mod prefetch;
mod readahead;
mod replace;
pub mod thrash;
mod victims;
mod watermarks;
mod writes;

pub use density::fill_up;
pub use fills::Fills;
pub use guards::Guards;
pub use optimal::{Misses, optimal};
pub use placement::{Habit, Wanted, agree, eviction_rank, fastest, is_sparse, may_pin, placement};
pub use prefetch::{Ahead, Prefetch};
pub use readahead::{MAX_WINDOW, Readahead, Window};
pub use replace::{Distance, GRANULE_PAGES, Granule, Replacement, Resident};
pub use thrash::{ThrashOptions, ThrashPolicy};
pub use victims::{BLOCK_PAGES, Credit, Density, Grain, VictimQueue, grain};
pub use watermarks::Watermarks;
pub use writes::Writes;
