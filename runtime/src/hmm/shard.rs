//! The registry, cut up by address so that threads at work in different places do not meet.
//!
//! Pages are grouped in chunks of 16 MiB, chunks are spread over [`SHARDS`] shards. An entry stands in the index of
//! each shard that its pages fall into, an invalidation in the list of flights of each shard that its pages fall into:
//! one or two for the common sizes, all of them for a mirror, which covers everything. There is no lock and no
//! counter that all of them share.
//!
//! Lock protocol: each shard has a lock of rank `Notifiers`; at most one is held at a time, for the length of one
//! look-up, and never while a callback runs. That is enough, because everything between one entry and one
//! invalidation is decided in one shard, the first that both touch ([`ShardSet::meet`]):
//!
//! - if the invalidation comes there first, the entry finds it in the list of flights when it is inserted;
//! - if the entry comes there first, the invalidation finds it in the index.
//!
//! Either way its start is counted exactly once, and so is its end, as long as the entry stays: at any time an
//! entry's count equals the number of listed flights that overlap it. That makes the end balanced without remembering
//! who was told.

use super::entry::Entry;
use super::event::{Event, OwnerId};
use super::index::{IntervalIndex, Keyed};
use super::mutation::{Mutation, mutated};
use crate::addr::PageRange;
use crate::rank::{Rank, RankedMutex};
use crate::sync::model_failed;
use std::sync::Arc;

/// Log2 of the number of shards; models get by with two.
const SHARD_BITS: u32 = if cfg!(any(loom, shuttle)) { 1 } else { 6 };
/// Number of shards.
pub(super) const SHARDS: usize = 1 << SHARD_BITS;
/// Log2 of the pages in a chunk: 16 MiB.
const CHUNK_SHIFT: u32 = 12;

/// A set of shards, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShardSet(u64);

impl ShardSet {
    const ALL: Self = Self(if SHARDS == 64 { u64::MAX } else { (1 << SHARDS) - 1 });

    /// The shards that `pages`, which are not empty, fall into.
    pub(super) fn of(pages: PageRange) -> Self {
        let (first, last) = (pages.start.0 >> CHUNK_SHIFT, (pages.end.0 - 1) >> CHUNK_SHIFT);
        if (last - first) as usize >= SHARDS {
            return Self::ALL;
        }
        Self((first..=last).fold(0, |set, chunk| set | 1 << shard_of(chunk)))
    }

    /// The shards by ascending number.
    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let next = (rest != 0).then(|| rest.trailing_zeros() as usize);
            rest &= rest.wrapping_sub(1);
            next
        })
    }

    /// The shard in which everything between two sets of pages is decided. Pages that overlap share a chunk, so
    /// there is one.
    fn meet(self, other: Self) -> usize {
        (self.0 & other.0).trailing_zeros() as usize
    }
}

/// Spreads chunks so that neither neighbours nor spans at a power of two from each other share a shard:
/// multiplication by 2^32 over the golden ratio.
fn shard_of(chunk: u32) -> u32 {
    chunk.wrapping_mul(0x9e37_79b9) >> (32 - SHARD_BITS)
}

/// An invalidation in flight, as far as counting goes. Equal flights stand for each other.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Flight {
    pub(super) pages: PageRange,
    pub(super) shards: ShardSet,
    /// The key of the one entry that stays valid: the range of the service that invalidates for itself.
    pub(super) except: Option<usize>,
}

impl Flight {
    /// Whether `entry`'s validity is affected, and that is decided in shard `here`.
    fn counts_for(&self, entry: &Arc<Entry>, here: usize) -> bool {
        self.shards.meet(entry.shards) == here && self.except != Some(entry.key())
    }
}

/// Listeners that an invalidation has to call. Each is kept from leaving (its grace period) until it was called, or
/// until this is dropped.
#[derive(Default)]
pub(super) struct Told(Vec<Arc<Entry>>);

impl Told {
    fn add(&mut self, entry: &Arc<Entry>) {
        if let Some(listener) = &entry.listener {
            listener.running.start();
            self.0.push(Arc::clone(entry));
        }
    }

    /// Calls `call` for one listener after the other until it fails.
    pub(super) fn each<E>(mut self, mut call: impl FnMut(&Arc<Entry>) -> Result<(), E>) -> Result<(), E> {
        while let Some(entry) = self.0.pop() {
            let outcome = call(&entry);
            if let Some(listener) = &entry.listener {
                listener.running.end();
            }
            outcome?;
        }
        Ok(())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if model_failed() {
            return;
        }
        for listener in self.0.iter().filter_map(|entry| entry.listener.as_ref()) {
            listener.running.end();
        }
    }
}

/// One part of the registry. Padded, so that neighbours do not share a cache line.
#[repr(align(128))]
pub(super) struct Shard {
    state: RankedMutex<State>,
}

struct State {
    index: IntervalIndex<Entry>,
    flights: Vec<Flight>,
    released: bool,
}

impl Shard {
    pub(super) fn new() -> Self {
        let state = State { index: IntervalIndex::new(), flights: Vec::new(), released: false };
        Self { state: RankedMutex::new(Rank::Notifiers, state) }
    }

    /// Adds an entry, with the invalidations that are in flight over it counted (I11).
    pub(super) fn insert(&self, here: usize, entry: &Arc<Entry>) {
        let mut state = self.state.lock();
        if state.released {
            entry.validity.release();
        }
        if !mutated(Mutation::InsertionIgnoresFlights) {
            let over = |flight: &&Flight| flight.pages.overlaps(entry.pages) && flight.counts_for(entry, here);
            state.flights.iter().filter(over).for_each(|_| entry.validity.start());
        }
        state.index.insert(entry.pages, Arc::clone(entry));
    }

    /// Takes an entry away; no harm if it is not there.
    pub(super) fn remove(&self, entry: &Arc<Entry>) {
        let removed = self.state.lock().index.remove(entry.pages, entry);
        // Outside the lock: this may be the last reference.
        drop(removed);
    }

    /// Lists a flight, makes what it overlaps invalid, and collects whom to call.
    pub(super) fn open(&self, here: usize, flight: &Flight, event: Event, owner: Option<OwnerId>, told: &mut Told) {
        let mut state = self.state.lock();
        let marks = !mutated(Mutation::CallbacksBeforeMarking);
        if marks {
            state.flights.push(*flight);
        }
        let released = state.released;
        let for_itself = flight.except.is_some();
        state.index.for_each_overlapping(flight.pages, |entry| {
            if !flight.counts_for(entry, here) {
                return;
            }
            if marks {
                entry.validity.start();
            }
            let concerned = entry.listener.as_ref().is_some_and(|listener| !listener.caused(event, owner, for_itself));
            if concerned && !released {
                told.add(entry);
            }
        });
    }

    /// The second half of [`open`](Self::open) under the mutation that tears it apart.
    #[cfg(test)]
    pub(super) fn mark_late(&self, here: usize, flight: &Flight) {
        let mut state = self.state.lock();
        state.flights.push(*flight);
        state.index.for_each_overlapping(flight.pages, |entry| {
            if flight.counts_for(entry, here) {
                entry.validity.start();
            }
        });
    }

    /// Whether no flight is listed and no entry counts one.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let mut idle = state.flights.is_empty();
        state.index.for_each(|entry| idle &= entry.validity.is_idle());
        idle
    }

    /// Takes a flight off the list; what only it made invalid is valid again.
    pub(super) fn shut(&self, here: usize, flight: &Flight) {
        let mut state = self.state.lock();
        if let Some(at) = state.flights.iter().position(|other| other == flight) {
            state.flights.swap_remove(at);
        }
        state.index.for_each_overlapping(flight.pages, |entry| {
            if flight.counts_for(entry, here) {
                entry.validity.end();
            }
        });
    }

    /// The address space goes away: nothing here becomes valid again, and no invalidation calls anybody. Collects
    /// the listeners that this shard speaks for.
    pub(super) fn release(&self, here: usize, told: &mut Told) {
        let mut state = self.state.lock();
        if state.released {
            return;
        }
        state.released = true;
        state.index.for_each(|entry| {
            entry.validity.release();
            if entry.shards.meet(entry.shards) == here {
                told.add(entry);
            }
        });
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::addr::PageIndex;

    #[test]
    fn ranges_that_overlap_meet_in_a_shard_of_both() {
        let sizes = [1, 5, 4096, 4097, 1 << 18, 1 << 24];
        for (i, &a) in sizes.iter().enumerate() {
            for (j, &b) in sizes.iter().enumerate() {
                for start in [0, 4095, 4096, 123_456, 1 << 27] {
                    let x = PageRange::of_len(PageIndex(start), a);
                    let y = PageRange::of_len(PageIndex(start + a - 1), b);
                    let meet = ShardSet::of(x).meet(ShardSet::of(y));
                    assert!(ShardSet::of(x).iter().any(|s| s == meet), "{i} {j}");
                    assert!(ShardSet::of(y).iter().any(|s| s == meet), "{i} {j}");
                }
            }
        }
    }

    #[test]
    fn common_sizes_touch_at_most_two_shards_and_the_whole_space_all() {
        for start in 0..10_000 {
            assert!(ShardSet::of(PageRange::of_len(PageIndex(start), 4096)).iter().count() <= 2);
        }
        let everything = PageRange::new(PageIndex(0), PageIndex(u32::MAX));
        assert_eq!(ShardSet::of(everything).iter().count(), SHARDS);
    }

    #[test]
    fn eight_spans_a_gibibyte_apart_do_not_all_share_a_shard() {
        let shards: std::collections::HashSet<_> =
            (0..8).map(|n| ShardSet::of(PageRange::single(PageIndex(n << 18))).0).collect();
        assert!(shards.len() >= 6, "{shards:?}");
    }
}
