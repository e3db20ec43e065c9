//! The size of victims: how many pages leave together when frames are needed.
//!
//! Where access is dense, whole blocks of 2 MiB go: one look for victims, one shootdown and one long copy make room for the next 512
//! misses. Where it is sparse, granules of 64 KiB go, or no page more than is needed. Two things decide:
//!
//! - *Density*: a block goes as a whole if three quarters of its pages are there and may go, and three quarters of those were used in
//!   the last burst of uses; the same holds for a granule. Pages that stand alone go alone.
//! - *Credit*: what goes *early*, beyond what is needed at the moment, is lent. Each page that is asked for again before the room that it
//!   made was needed costs one, each [`EARN`]th page evicted earns one, and no more goes early than is there. So, with `e` pages
//!   evicted, at most `BLOCK_PAGES + e / EARN` pages were evicted too early, whatever the trace; and no more than one in
//!   [`SHARE`] frames ever lies idle for it.
//!
//! Plain data: no locks, no clock.

use super::replace::{GRANULE_PAGES, Granule};
use crate::addr::PageIndex;
use hashbrown::HashMap;
use std::collections::VecDeque;

/// Pages of a block: 2 MiB.
pub const BLOCK_PAGES: u32 = 512;
/// One in so many evictions may turn out to have been too early.
const EARN: u32 = 16;
/// One in so many frames may lie idle because pages went early.
const SHARE: u32 = 16;
/// Credit is not saved up beyond this: a change of the access pattern must not cost more.
const MOST_CREDIT: u32 = BLOCK_PAGES * EARN;

/// What a page goes together with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grain {
    /// Nothing.
    Page,
    /// Its granule of 64 KiB.
    Granule,
    /// Its block of 2 MiB.
    Block,
}

impl Grain {
    /// Whether `page` and `other` go together.
    fn joins(self, page: PageIndex, other: PageIndex) -> bool {
        let unit = match self {
            Self::Page => 1,
            Self::Granule => GRANULE_PAGES,
            Self::Block => BLOCK_PAGES,
        };
        page.0 / unit == other.0 / unit
    }
}

/// The pages of a unit that may go, and how many were used in the last burst of uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Density {
    /// Pages that may go.
    pub going: u32,
    /// Pages that were used together; repeated uses may count.
    pub used: u32,
}

impl Density {
    fn is_dense(self, pages: u32) -> bool {
        self.going * 4 >= pages * 3 && self.used * 4 >= self.going * 3
    }
}

/// What a page of this granule in this block goes together with.
pub fn grain(granule: Density, block: Density) -> Grain {
    if block.is_dense(BLOCK_PAGES) {
        Grain::Block
    } else if granule.is_dense(GRANULE_PAGES) {
        Grain::Granule
    } else {
        Grain::Page
    }
}

/// Pages that go next, in order.
#[derive(Debug, Default)]
pub struct VictimQueue(VecDeque<(PageIndex, Grain)>);

impl VictimQueue {
    /// Replaces the queue by the pages of `granules`, in their order; `used` says how many pages of a granule were used together.
    pub fn fill(&mut self, pages: impl Iterator<Item = PageIndex>, used: impl Fn(Granule) -> u32) {
        self.0.clear();
        self.0.extend(pages.map(|page| (page, Grain::Page)));
        let block_of = |page: PageIndex| page.0 / BLOCK_PAGES;
        let mut granules: HashMap<Granule, Density> = HashMap::new();
        let mut blocks: HashMap<u32, Density> = HashMap::new();
        for &(page, _) in &self.0 {
            let granule = Granule::of(page);
            let in_granule = granules.entry(granule).or_insert_with(|| Density { going: 0, used: used(granule) });
            let in_block = blocks.entry(block_of(page)).or_default();
            if in_granule.going == 0 {
                in_block.used += in_granule.used;
            }
            in_granule.going += 1;
            in_block.going += 1;
        }
        for (page, together) in &mut self.0 {
            *together = grain(granules[&Granule::of(*page)], blocks[&block_of(*page)]);
        }
    }

    /// Nothing goes.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Pages that go next, in order.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = PageIndex> {
        self.0.iter().map(|&(page, _)| page)
    }

    /// Whether there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Moves the next `needed` pages that still may go to `victims`, and with them at most `early` more of what the last of them goes
    /// together with.
    pub fn next(
        &mut self,
        needed: usize,
        early: u32,
        may_go: impl Fn(PageIndex) -> bool,
        victims: &mut Vec<PageIndex>,
    ) {
        let mut last = None;
        while victims.len() < needed
            && let Some((page, together)) = self.0.pop_front()
        {
            if may_go(page) {
                victims.push(page);
                last = Some((page, together));
            }
        }
        let Some((last, together)) = last.filter(|_| victims.len() >= needed) else { return };
        let rest = self.0.iter().take_while(|(page, _)| together.joins(last, *page)).count();
        // Of a block, what is allowed; of a granule all or nothing.
        let rest = if together == Grain::Block || rest <= early as usize { rest.min(early as usize) } else { 0 };
        victims.extend(self.0.drain(..rest).map(|(page, _)| page).filter(|&page| may_go(page)));
    }
}

/// How much may go early.
#[derive(Debug)]
pub struct Credit {
    /// In parts of a page.
    parts: u32,
    /// What went early and made room that is not used up.
    early: HashMap<Granule, u16>,
}

impl Default for Credit {
    fn default() -> Self {
        Self { parts: BLOCK_PAGES * EARN, early: HashMap::new() }
    }
}

impl Credit {
    /// The most pages that may go early, of `frames` that there are.
    pub fn allowance(&self, frames: u32) -> u32 {
        (self.parts / EARN).min(frames / SHARE)
    }

    /// Room was needed: `victims` went, all but the first `needed` of them early. What went early before has been of use.
    pub fn evicted(&mut self, victims: &[PageIndex], needed: usize) {
        self.early.clear();
        self.parts = (self.parts + victims.len() as u32).min(MOST_CREDIT);
        for &page in victims.iter().skip(needed) {
            *self.early.entry(Granule::of(page)).or_default() |= bit(page);
        }
    }

    /// A page is asked for. True if it went too early.
    pub fn asked(&mut self, page: PageIndex) -> bool {
        let Some(early) = self.early.get_mut(&Granule::of(page)).filter(|early| **early & bit(page) != 0) else {
            return false;
        };
        *early &= !bit(page);
        self.parts = self.parts.saturating_sub(EARN);
        true
    }

    /// Whether anything went early that may be asked for.
    pub fn is_open(&self) -> bool {
        !self.early.is_empty()
    }
}

fn bit(page: PageIndex) -> u16 {
    1 << (page.0 % GRANULE_PAGES)
}

#[cfg(test)]
mod tests;
