//! Short intervals, in a table that is addressed by page.
//!
//! Pages are cut into blocks of [`SHORT`], and blocks into chunks of 64. An interval stands in the block that it starts in, and
//! ends in that block or the next: so a query looks at the blocks that it covers and at the one before. A chunk has
//! one bit and the furthest end for each of its blocks, to pass over those that cannot have a hit; inside a block
//! intervals stand sorted by start.
//!
//! What costs when there are many is not steps but cache misses. So the bits and the furthest ends stand in the hash table itself, which
//! is small: a query without a hit touches nothing else, one with a hit its block, the block's list, and the interval.
//!
//! Inserting and removing take a hash look-up and the shift of a short list; finding the `k` intervals over a page takes
//! at most two hash look-ups and a few steps, however many intervals there are elsewhere.

use super::{Item, Keyed, SHORT};
use crate::addr::PageRange;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

const BLOCK_SHIFT: u32 = SHORT.trailing_zeros();
/// Blocks in a chunk: one bit each in a word.
const BLOCKS: usize = 64;
/// Log2 of the pages in a chunk.
const CHUNK_SHIFT: u32 = BLOCK_SHIFT + 6;
/// Empty chunks that are kept, so that an interval that comes and goes does not make one each time.
const KEPT: usize = 8;

struct Chunk<T> {
    /// Which blocks have intervals.
    occupied: u64,
    /// No interval of the block ends later, in pages from the block's first on: at most two blocks.
    furthest: [u8; BLOCKS],
    blocks: Box<[Block<T>; BLOCKS]>,
}

const _: () = assert!(2 * SHORT - 1 <= u8::MAX as u32);

struct Block<T> {
    /// No interval is longer.
    longest: u32,
    items: Vec<Item<T>>,
}

impl<T> Chunk<T> {
    fn new() -> Self {
        let blocks = std::array::from_fn(|_| Block { longest: 0, items: Vec::new() });
        Self { occupied: 0, furthest: [0; BLOCKS], blocks: Box::new(blocks) }
    }
}

/// Spreads chunk numbers: the multiplier is 2^64 over the golden ratio.
#[derive(Default)]
struct ChunkHasher(u64);

impl Hasher for ChunkHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(u32::from(byte)));
    }

    fn write_u32(&mut self, number: u32) {
        let product = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }
}

/// Page ranges of at most [`SHORT`] pages with a value each.
pub(super) struct BlockTable<T> {
    chunks: HashMap<u32, Chunk<T>, BuildHasherDefault<ChunkHasher>>,
    /// Chunks without intervals.
    empty: usize,
}

impl<T: Keyed> BlockTable<T> {
    pub(super) fn new() -> Self {
        Self { chunks: HashMap::default(), empty: 0 }
    }

    /// Adds `value`, which must not be there.
    pub(super) fn insert(&mut self, pages: PageRange, value: Arc<T>) {
        let (start, end) = (pages.start.0, pages.end.0);
        debug_assert!((1..=SHORT).contains(&pages.len()));
        let chunk = self.chunks.entry(start >> CHUNK_SHIFT).or_insert_with(|| {
            self.empty += 1;
            Chunk::new()
        });
        if chunk.occupied == 0 {
            self.empty -= 1;
        }
        let at = block_in_chunk(start);
        chunk.occupied |= 1 << at;
        let Chunk { furthest, blocks, .. } = chunk;
        furthest[at] = furthest[at].max(from_block(start, end));
        let Block { longest, items } = &mut blocks[at];
        *longest = (*longest).max(end - start);
        let item = Item { start, end, value };
        let place = items.partition_point(|other| other.order() < item.order());
        items.insert(place, item);
    }

    /// Removes and returns `value`, if it is there under `pages`.
    pub(super) fn remove(&mut self, pages: PageRange, value: &Arc<T>) -> Option<Arc<T>> {
        let number = pages.start.0 >> CHUNK_SHIFT;
        let chunk = self.chunks.get_mut(&number)?;
        let at = block_in_chunk(pages.start.0);
        let Chunk { furthest, blocks, .. } = chunk;
        let Block { longest, items } = &mut blocks[at];
        let place = items.binary_search_by_key(&(pages.start.0, value.key()), Item::order).ok()?;
        let removed = items.remove(place);
        if items.is_empty() {
            *longest = 0;
            furthest[at] = 0;
            chunk.occupied &= !(1 << at);
            if chunk.occupied == 0 {
                if self.empty < KEPT {
                    self.empty += 1;
                } else {
                    self.chunks.remove(&number);
                }
            }
        } else if from_block(removed.start, removed.end) == furthest[at] {
            furthest[at] = items.iter().map(|item| from_block(item.start, item.end)).max().unwrap_or(0);
        }
        Some(removed.value)
    }

    /// Calls `hit` for each value whose range shares a page with `pages`.
    pub(super) fn for_each_overlapping(&self, pages: PageRange, mut hit: impl FnMut(&Arc<T>)) {
        if pages.is_empty() || self.chunks.len() == self.empty {
            return;
        }
        let first = (pages.start.0 >> BLOCK_SHIFT).saturating_sub(1);
        let last = (pages.end.0 - 1) >> BLOCK_SHIFT;
        let (first_chunk, last_chunk) = (first >> 6, last >> 6);
        let mut visit = |number: u32, chunk: &Chunk<T>| {
            let from = if number == first_chunk { first & 63 } else { 0 };
            let to = if number == last_chunk { last & 63 } else { 63 };
            let mut rest = chunk.occupied & (u64::MAX << from) & (u64::MAX >> (63 - to));
            while rest != 0 {
                let at = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let block = (number << CHUNK_SHIFT) + ((at as u32) << BLOCK_SHIFT);
                if block + u32::from(chunk.furthest[at]) > pages.start.0 {
                    chunk.blocks[at].visit(pages, &mut hit);
                }
            }
        };
        if (last_chunk - first_chunk) as usize >= self.chunks.len() {
            let inside = |number: &u32| (first_chunk..=last_chunk).contains(number);
            self.chunks.iter().filter(|(number, _)| inside(number)).for_each(|(&number, chunk)| visit(number, chunk));
        } else {
            for number in first_chunk..=last_chunk {
                if let Some(chunk) = self.chunks.get(&number) {
                    visit(number, chunk);
                }
            }
        }
    }

    /// Calls `each` for every value.
    pub(super) fn for_each(&self, each: impl FnMut(&Arc<T>)) {
        let blocks = self.chunks.values().flat_map(|chunk| chunk.blocks.iter());
        blocks.flat_map(|block| &block.items).map(|item| &item.value).for_each(each);
    }
}

impl<T> Block<T> {
    fn visit(&self, pages: PageRange, hit: &mut impl FnMut(&Arc<T>)) {
        // What starts earlier ends too early.
        let reach = pages.start.0.saturating_sub(self.longest - 1);
        let from = self.items.partition_point(|item| item.start < reach);
        self.items[from..]
            .iter()
            .take_while(|item| item.start < pages.end.0)
            .filter(|item| item.end > pages.start.0)
            .for_each(|item| hit(&item.value));
    }
}

/// An interval's end in pages from the start of the block that it starts in.
fn from_block(start: u32, end: u32) -> u8 {
    // Lossless: the interval is short.
    (end - start / SHORT * SHORT) as u8
}

fn block_in_chunk(page: u32) -> usize {
    (page >> BLOCK_SHIFT) as usize % BLOCKS
}
