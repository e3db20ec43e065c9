//! Victims of adapted size against single pages, on simulated traces.

use super::super::replace::{Replacement, Resident};
use super::*;
use hashbrown::HashSet;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// What a trace cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    misses: u32,
    /// Times that victims were looked for.
    operations: u32,
    /// Pages asked for before the room that they made was needed.
    too_early: u32,
    evicted: u32,
}

/// Frames and the policies, as eviction uses them.
struct Simulation {
    frames: u32,
    adapts: bool,
    resident: HashSet<PageIndex>,
    used: HashSet<PageIndex>,
    replacement: Replacement,
    queue: VictimQueue,
    credit: Credit,
    cost: Cost,
}

impl Simulation {
    fn new(frames: u32, adapts: bool) -> Self {
        let mut replacement = Replacement::default();
        replacement.set_capacity(frames.div_ceil(GRANULE_PAGES));
        Self {
            frames,
            adapts,
            resident: HashSet::new(),
            used: HashSet::new(),
            replacement,
            queue: VictimQueue::default(),
            credit: Credit::default(),
            cost: Cost { misses: 0, operations: 0, too_early: 0, evicted: 0 },
        }
    }

    fn touch(&mut self, page: PageIndex) {
        if !self.resident.contains(&page) {
            self.cost.misses += 1;
            self.cost.too_early += u32::from(self.credit.asked(page));
            if self.resident.len() as u32 == self.frames {
                self.evict();
            }
            self.resident.insert(page);
        }
        self.used.insert(page);
    }

    fn evict(&mut self) {
        let early = if self.adapts { self.credit.allowance(self.frames) } else { 0 };
        let mut victims = Vec::new();
        for _ in 0..2 {
            let (used, resident) = (&self.used, &self.resident);
            let may_go = |page: PageIndex| resident.contains(&page) && !used.contains(&page);
            self.queue.next(1, early, may_go, &mut victims);
            if victims.is_empty() {
                let going = resident.iter().filter(|&&page| may_go(page));
                let one = |&page: &PageIndex| Resident { granule: Granule::of(page), dirty: false, pages: 1 };
                let mut granules: Vec<_> = going.map(one).collect();
                granules.sort_unstable();
                granules.dedup_by(|next, kept| kept.joined(*next));
                // As the service does.
                let batch = (self.frames / 8 / GRANULE_PAGES).max(8);
                self.replacement.order(&mut granules, (self.frames / 8) as usize, batch as usize);
                let pages = granules.iter().flat_map(|one| one.granule.pages().iter()).filter(|&page| may_go(page));
                self.queue.fill(pages, |granule| self.replacement.used_together(granule));
            }
        }
        assert!(!victims.is_empty(), "a period uses more than fits");
        self.cost.operations += 1;
        self.cost.evicted += victims.len() as u32;
        self.credit.evicted(&victims, 1);
        victims.iter().for_each(|page| assert!(self.resident.remove(page), "{page:?} goes twice"));
    }

    /// A slice of a kernel, or a launch, ends.
    fn end_period(&mut self) {
        self.used.drain().for_each(|page| self.replacement.record(Granule::of(page)));
        self.replacement.end_period();
        self.queue.clear();
    }
}

fn cost(trace: &[u32], frames: u32, period: usize, adapts: bool) -> Cost {
    let mut simulation = Simulation::new(frames, adapts);
    for uses in trace.chunks(period) {
        uses.iter().for_each(|&page| simulation.touch(PageIndex(page)));
        simulation.end_period();
    }
    simulation.cost
}

/// So many that whole blocks may go early.
const FRAMES: u32 = BLOCK_PAGES * SHARE;

/// Costs with victims of adapted size, and with single pages.
fn compare(name: &str, trace: &[u32], period: usize) -> (Cost, Cost) {
    let (own, single) = (cost(trace, FRAMES, period, true), cost(trace, FRAMES, period, false));
    println!("{name}: {own:?}; single pages: {single:?}");
    assert_eq!(single.operations, single.evicted, "page by page");
    assert!(own.too_early <= BLOCK_PAGES + own.evicted / EARN, "{name}: beyond the bound");
    (own, single)
}

#[test]
fn a_sweep_over_more_than_fits_takes_whole_blocks_and_far_fewer_operations() {
    for percent in [125, 150, 200, 400] {
        let pages = FRAMES * percent / 100;
        let trace: Vec<u32> = (0..6).flat_map(|_| 0..pages).collect();
        let (own, single) = compare(&format!("sweep of {percent} %"), &trace, 256);
        assert!(own.operations * 50 <= single.operations, "{} operations", own.operations);
        assert!(own.misses * 10 <= single.misses * 11, "{} misses", own.misses);
    }
}

#[test]
fn dense_blocks_in_random_order_are_taken_whole_too() {
    let mut random = SmallRng::seed_from_u64(1);
    let blocks: Vec<u32> = (0..300).map(|_| random.random_range(0..32)).collect();
    let trace: Vec<u32> = blocks.iter().flat_map(|block| block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES).collect();
    let (own, single) = compare("random blocks", &trace, 512);
    assert!(own.operations * 50 <= single.operations && own.misses * 10 <= single.misses * 11);
}

#[test]
fn sparse_uses_cost_hardly_a_miss_more_than_with_single_pages() {
    let mut random = SmallRng::seed_from_u64(2);
    for percent in [110, 125, 150, 200] {
        let pages = FRAMES * percent / 100;
        let trace: Vec<u32> = (0..60_000).map(|_| random.random_range(0..pages)).collect();
        let (own, single) = compare(&format!("random, {percent} %"), &trace, 384);
        assert!(own.misses <= single.misses + single.misses / 20, "{} misses", own.misses);
    }
    // One page of each granule, again and again, over more pages than fit.
    let trace: Vec<u32> = (0..6).flat_map(|_| (0..FRAMES + 512).map(|index| index * GRANULE_PAGES)).collect();
    let (own, single) = compare("a page of each granule", &trace, 128);
    assert_eq!(own, single, "nothing is dense here");
}

#[test]
fn uses_that_look_dense_and_are_not_cost_no_more_than_was_stated() {
    // Whoever knows the policy asks at once for what went early.
    let mut credit = Credit::default();
    let (mut too_early, mut evicted) = (0, 0);
    for _ in 0..2000 {
        let early = credit.allowance(1 << 20);
        let victims: Vec<PageIndex> = (0..=early.min(BLOCK_PAGES - 1)).map(PageIndex).collect();
        evicted += victims.len() as u32;
        credit.evicted(&victims, 1);
        too_early += victims.iter().filter(|&&page| credit.asked(page)).count() as u32;
        assert!(too_early <= BLOCK_PAGES + evicted / EARN, "{too_early} of {evicted}");
    }
    assert!(too_early >= BLOCK_PAGES, "the adversary did not try");
}

#[test]
fn credit_comes_back_when_access_becomes_dense_again() {
    let mut credit = Credit::default();
    // Each round that goes too early uses up more than it earns.
    for _ in 0..BLOCK_PAGES {
        let victims: Vec<PageIndex> = (0..=credit.allowance(1 << 20).min(511)).map(PageIndex).collect();
        if victims.len() == 1 {
            break;
        }
        credit.evicted(&victims, 1);
        victims.iter().for_each(|&page| _ = credit.asked(page));
    }
    assert_eq!(credit.allowance(1 << 20), 0, "it is used up");
    for _ in 0..BLOCK_PAGES * EARN {
        credit.evicted(&[PageIndex(0)], 1);
    }
    assert_eq!(credit.allowance(1 << 20), BLOCK_PAGES);
}

#[test]
fn few_frames_are_never_emptied_ahead() {
    let credit = Credit::default();
    for frames in 1..SHARE {
        assert_eq!(credit.allowance(frames), 0, "of {frames} frames");
    }
    assert_eq!(credit.allowance(64), 64 / SHARE);
}

#[test]
fn a_block_goes_whole_only_if_it_is_there_may_go_and_was_used() {
    let dense = |going, used| Density { going, used };
    let all = dense(16, 16);
    assert_eq!(grain(all, dense(512, 512)), Grain::Block);
    assert_eq!(grain(all, dense(384, 288)), Grain::Block);
    assert_eq!(grain(all, dense(383, 383)), Grain::Granule, "too little of it may go");
    assert_eq!(grain(all, dense(512, 383)), Grain::Granule, "too little of it was used");
    assert_eq!(grain(dense(11, 16), dense(300, 300)), Grain::Page);
    assert_eq!(grain(dense(16, 11), dense(300, 300)), Grain::Page);
}

#[test]
fn what_may_not_go_stays_and_what_is_not_allowed_early_too() {
    let mut queue = VictimQueue::default();
    let refill = |queue: &mut VictimQueue| queue.fill((0..1024).map(PageIndex), |_| GRANULE_PAGES);
    let take = |needed, early, may_go: &dyn Fn(PageIndex) -> bool| {
        let (mut queue, mut victims) = (VictimQueue::default(), Vec::new());
        refill(&mut queue);
        queue.next(needed, early, may_go, &mut victims);
        victims
    };
    let all = |_: PageIndex| true;
    assert_eq!(take(1, 512, &all).len(), 512, "a block");
    assert_eq!(take(513, 512, &all).len(), 1024, "the rest of the block that the last is of");
    assert_eq!(take(1, 100, &all).len(), 101, "what is allowed of it");
    assert_eq!(take(1, 0, &all).len(), 1);
    let odd = |page: PageIndex| page.0 % 2 == 1;
    assert!(take(1, 512, &odd).iter().all(|page| page.0 % 2 == 1));
    let mut granule = |early| {
        let mut victims = Vec::new();
        queue.fill((0..100).map(PageIndex), |_| GRANULE_PAGES);
        queue.next(1, early, all, &mut victims);
        victims.len()
    };
    assert_eq!((granule(512), granule(15), granule(14)), (16, 16, 1), "a granule whole or not at all");
}
