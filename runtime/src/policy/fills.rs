//! Whether neighbours of what is asked for are brought along: holes between missed pages, and the rest of dense blocks.
//!
//! A page that is brought along costs about a copy; one that is missed afterwards costs about four. So it is worth it while a quarter of what was
//! brought along is used. That is judged VMA by VMA, once kernels have missed four times as many pages there since, and some
//! more: by then they would have used it. Where it was not worth it, *full* filling pauses for some rounds, twice as many each time.
//!
//! Holes of one page are filled always: to go round one takes another call that protects pages, which costs more than the page.

use std::collections::BTreeMap;

/// Share of the pages brought along that must be used: one in this many.
const WORTH: u64 = 4;
/// Pages missed for each page brought along, and besides, before its use is judged: what was just brought is not used yet.
const SEEN: u32 = 4;
const SEEN_BESIDES: u32 = 256;
/// Rounds without full filling after the first bad judgement, and at most.
const FIRST_PAUSE: u32 = 4;
const LONGEST_PAUSE: u32 = 256;
/// VMAs that are followed at a time.
const MAX_VMAS: usize = 64;
/// Longest holes that are filled, at full filling and in a pause.
const FULL: u32 = 8;
const SPARING: u32 = 1;

#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// Pages brought along that are to be judged, and pages missed since the first of them.
    filled: u32,
    missed: u32,
    /// Rounds left of the pause, and how long it was.
    pause: u32,
    last_pause: u32,
    /// Whether the round at hand is filled sparingly.
    sparing: bool,
    used_at: u64,
}

/// Follows what filling brings, VMA by VMA.
#[derive(Debug, Default)]
pub struct Fills {
    vmas: BTreeMap<u64, Record>,
    rounds: u64,
}

impl Fills {
    /// A round of `missed` pages in the VMA called `id` begins. Whether what was brought along there is to be judged first
    /// ([`judged`](Self::judged)).
    pub fn begin(&mut self, id: u64, missed: u32) -> bool {
        self.rounds += 1;
        let Some(record) = self.vmas.get_mut(&id) else { return false };
        record.used_at = self.rounds;
        record.missed = record.missed.saturating_add(missed);
        record.filled > 0 && record.missed >= record.filled.saturating_mul(SEEN).saturating_add(SEEN_BESIDES)
    }

    /// Of `filled` pages brought along in the VMA, kernels used `used`.
    pub fn judged(&mut self, id: u64, filled: u32, used: u32) {
        let Some(record) = self.vmas.get_mut(&id) else { return };
        (record.filled, record.missed) = (0, 0);
        if u64::from(used) * WORTH >= u64::from(filled) {
            (record.pause, record.last_pause) = (0, 0);
        } else if record.pause == 0 {
            record.last_pause = (record.last_pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            record.pause = record.last_pause;
        }
    }

    /// Longest hole between missed pages that is filled in the round that began, in pages.
    pub fn holes(&mut self, id: u64) -> u32 {
        let Some(record) = self.vmas.get_mut(&id) else { return FULL };
        record.sparing = record.pause > 0;
        record.pause = record.pause.saturating_sub(1);
        if record.sparing { SPARING } else { FULL }
    }

    /// Whether dense blocks are filled up in the round that began.
    pub fn blocks(&self, id: u64) -> bool {
        !self.vmas.get(&id).is_some_and(|record| record.sparing)
    }

    /// So many pages were brought along in the round that began.
    pub fn filled(&mut self, id: u64, pages: u32) {
        if pages == 0 {
            return;
        }
        if self.vmas.len() >= MAX_VMAS
            && !self.vmas.contains_key(&id)
            && let Some(oldest) = self.vmas.iter().min_by_key(|(_, record)| record.used_at).map(|(&id, _)| id)
        {
            self.vmas.remove(&oldest);
        }
        let record = self.vmas.entry(id).or_default();
        record.used_at = self.rounds;
        record.filled = record.filled.saturating_add(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round that misses `missed` pages and brings a tenth along, wherever it may, of which `share` are used.
    fn round(fills: &mut Fills, missed: u32, share: f64) -> u32 {
        if fills.begin(7, missed) {
            let filled = fills.vmas[&7].filled;
            fills.judged(7, filled, (f64::from(filled) * share) as u32);
        }
        let holes = fills.holes(7);
        fills.filled(7, if fills.blocks(7) { missed / 10 } else { 0 });
        holes
    }

    fn full(fills: &mut Fills, rounds: u32, share: f64) -> usize {
        (0..rounds).filter(|_| round(fills, 1000, share) == FULL).count()
    }

    #[test]
    fn what_is_used_goes_on_being_brought_along() {
        assert_eq!(full(&mut Fills::default(), 100, 0.3), 100);
    }

    #[test]
    fn what_is_not_used_is_tried_ever_more_seldom() {
        let mut fills = Fills::default();
        assert_eq!(full(&mut fills, 5, 0.1), 1, "the first round, and no other of the first five");
        assert!(full(&mut fills, 995, 0.1) <= 10);
    }

    #[test]
    fn a_pattern_that_changes_is_noticed_with_the_next_try() {
        let mut fills = Fills::default();
        full(&mut fills, 20, 0.0);
        full(&mut fills, 2 * LONGEST_PAUSE, 1.0);
        assert_eq!(full(&mut fills, 100, 1.0), 100);
        assert_eq!(full(&mut fills, 1 + FIRST_PAUSE, 0.0), 1, "and the first pause is short again");
    }

    #[test]
    fn use_is_judged_only_when_kernels_have_gone_on() {
        let mut fills = Fills::default();
        fills.begin(7, 100);
        fills.filled(7, 100);
        assert!(!(0..6).any(|_| fills.begin(7, 100)));
        assert!(fills.begin(7, 100));
        fills.judged(7, 100, 100);
        assert!(!fills.begin(7, 1000), "nothing is left to be judged");
    }

    #[test]
    fn one_vma_says_nothing_of_another_and_their_number_is_bounded() {
        let mut fills = Fills::default();
        full(&mut fills, 3, 0.0);
        assert_eq!((fills.holes(7), fills.holes(8)), (SPARING, FULL));
        assert_eq!((fills.blocks(7), fills.blocks(8)), (false, true));
        for id in 0..1000 {
            fills.begin(id, 10);
            fills.filled(id, 1);
        }
        assert!(fills.vmas.len() <= MAX_VMAS);
    }
}
