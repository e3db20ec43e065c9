//! What became of guesses: which of the pages that were mapped ahead kernels used.
//!
//! The page table says it while a page stays mapped, since an entry starts out without its accessed bit. What is taken away before
//! anybody asks is noted here, page by page, at the moment when its bits are collected: the page's record would not do, since its accessed bit
//! tells of all of the past. A leaf lock, taken under the update lock.

use crate::addr::PageIndex;
use crate::policy::Ahead;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Guesses that are followed at a time; older ones count by what their entries say.
const MAX_GUESSES: usize = 64;

/// Guesses that wait to be judged.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    /// First page and one past the last of all guesses, so that most pages need no lock.
    cover: AtomicU64,
    /// By first page: the guess, and a bit for each of its pages that was taken away after it had been used.
    guesses: Mutex<BTreeMap<u32, (Ahead, Vec<u64>)>>,
}

impl Guesses {
    /// Starts to follow a guess.
    pub(super) fn follow(&self, ahead: Ahead) {
        let mut guesses = self.guesses.lock();
        if guesses.len() >= MAX_GUESSES {
            guesses.pop_first();
        }
        guesses.insert(ahead.first.0, (ahead, vec![0; ahead.count.div_ceil(64) as usize]));
        self.set_cover(&guesses);
    }

    /// A page that had been used is taken away.
    pub(super) fn used(&self, page: PageIndex) {
        let cover = self.cover.load(Ordering::Acquire);
        if !((cover >> 32) as u32..cover as u32).contains(&page.0) {
            return;
        }
        let mut guesses = self.guesses.lock();
        // Guesses may interleave (strides), so that more than the nearest one is asked; there are few.
        for (ahead, used) in guesses.range_mut(..=page.0).rev().map(|(_, guess)| guess) {
            if let Some(index) = ahead.index_of(page) {
                used[index as usize / 64] |= 1 << (index % 64);
                return;
            }
        }
    }

    /// How many pages of a guess were used: those taken away since, and of the others those of which `mapped` says so. Ends following it.
    pub(super) fn judge(&self, ahead: Ahead, mapped: impl Fn(PageIndex) -> bool) -> u32 {
        let mut guesses = self.guesses.lock();
        let followed = guesses.remove(&ahead.first.0).filter(|(guess, _)| *guess == ahead);
        self.set_cover(&guesses);
        drop(guesses);
        let noted =
            |index: u32| followed.as_ref().is_some_and(|(_, used)| used[index as usize / 64] >> (index % 64) & 1 == 1);
        let page = |index: u32| ahead.first.plus(index * ahead.step);
        (0..ahead.count).filter(|&index| noted(index) || mapped(page(index))).count() as u32
    }

    fn set_cover(&self, guesses: &BTreeMap<u32, (Ahead, Vec<u64>)>) {
        let start = guesses.keys().next().copied().unwrap_or(0);
        let end = guesses.values().map(|(ahead, _)| ahead.end().0).max().unwrap_or(0);
        self.cover.store(u64::from(start) << 32 | u64::from(end), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY_FOURTH: Ahead = Ahead { first: PageIndex(100), step: 4, count: 100 };

    #[test]
    fn a_page_counts_whether_it_is_still_mapped_or_was_taken_away_after_use() {
        let guesses = Guesses::default();
        guesses.follow(EVERY_FOURTH);
        guesses.used(PageIndex(104));
        guesses.used(PageIndex(104));
        guesses.used(PageIndex(105));
        guesses.used(PageIndex(900));
        assert_eq!(guesses.judge(EVERY_FOURTH, |page| page == PageIndex(104) || page == PageIndex(496)), 2);
    }

    #[test]
    fn use_before_the_guess_does_not_count() {
        let guesses = Guesses::default();
        guesses.used(PageIndex(100));
        guesses.follow(EVERY_FOURTH);
        assert_eq!(guesses.judge(EVERY_FOURTH, |_| false), 0);
        guesses.used(PageIndex(100));
        guesses.follow(EVERY_FOURTH);
        assert_eq!(guesses.judge(EVERY_FOURTH, |_| false), 0, "nor does use between two guesses");
    }

    #[test]
    fn interleaved_guesses_are_told_apart() {
        let guesses = Guesses::default();
        let other = Ahead { first: PageIndex(102), ..EVERY_FOURTH };
        guesses.follow(EVERY_FOURTH);
        guesses.follow(other);
        guesses.used(PageIndex(108));
        assert_eq!((guesses.judge(other, |_| false), guesses.judge(EVERY_FOURTH, |_| false)), (0, 1));
    }
}
